"""A streaming response on a connection that was taken over from the WSGI server. Knows neither events nor channels.

The body ends with the connection, so that its bytes are the same for all clients, whatever their version of HTTP.
"""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from socketio_pg.core import green
from socketio_pg.engine.buffered import READ_SIZE, BufferedConnection

#: Bytes that a client may send after its request, before it is disconnected: it has nothing to send.
MAX_RECEIVED = 65_536
_LINE_BREAKS = str.maketrans("", "", "\r\n\0")


def response_head(status: HTTPStatus, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return the head of a response whose body ends with the connection."""
    lines = "".join(f"{name}: {value.translate(_LINE_BREAKS)}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}Connection: close\r\n\r\n".encode("latin-1", "replace")


class StreamConnection(BufferedConnection):
    """One open streaming response. What the client sends is ignored."""

    __slots__ = ("_received",)

    def __init__(self, socket: Any, on_closed: Callable[[str], None], send_buffer: int) -> None:
        self._received = 0
        super().__init__(socket, on_closed, send_buffer)

    def end(self, last: bytes = b"") -> None:
        """Send ``last`` after all that waits, and end the response."""
        if self.closed:
            return
        self.uncork()
        if last:
            self.send(last)
        if not self.closed:  # by the failed send
            self._finish()

    def cut(self, reason: str) -> None:
        """Close the connection at once, without what waits."""
        if not self.closed:
            self._lose(reason)

    def wait_room(self, most: int) -> bool:
        """Wait until at most ``most`` bytes wait for the client to read. Return False when the stream has ended.

        There is one caller at a time.
        """
        while not self.closed:
            if self.buffered <= most:
                return True
            room = green.Event()
            self.when_room(most, room.send)
            room.wait()
        return False

    def _readable(self, *_: object) -> None:
        if self._readiness is None:
            return  # another callback of the same round of the hub has released it
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if self._closing:
            if not data:
                self._release()
        elif not data:
            self._lose("transport close")
        else:
            self._received += len(data)
            if self._received > MAX_RECEIVED:
                self._lose("transport error")
