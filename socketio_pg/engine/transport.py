"""An open WebSocket on a connection that was taken over from the WSGI server. Knows frames, and no Engine.IO."""

import logging
import time
from collections.abc import Callable
from typing import Any

from socketio_pg.engine import frames
from socketio_pg.engine.buffered import READ_SIZE, BufferedConnection
from socketio_pg.engine.frames import FrameError, FrameReader

logger = logging.getLogger("socketio_pg.transport")

#: Frames without content (pings, pongs) that a client may send in :data:`CHATTER_SECONDS` before it is disconnected.
MAX_CHATTER = 1000
CHATTER_SECONDS = 10.0


class WebSocketTransport(BufferedConnection):
    """One open WebSocket.

    ``on_message(payload)`` gets each message, str or bytes. ``on_closed(reason)`` is called once. The hub calls
    both, so they must not wait, only spawn. A message from the client has at most ``max_message`` bytes; a client for
    which more than ``send_buffer`` bytes wait is disconnected.
    """

    __slots__ = ("_chatter", "_chatter_until", "_on_message", "_reader")

    def __init__(
        self,
        socket: Any,
        on_message: Callable[[str | bytes], None],
        on_closed: Callable[[str], None],
        max_message: int,
        send_buffer: int,
    ) -> None:
        self._on_message = on_message
        self._reader = FrameReader(max_message)
        self._chatter, self._chatter_until = 0, 0.0
        super().__init__(socket, on_closed, send_buffer)

    @property
    def max_message(self) -> int:
        """The maximum size of a message from the client in bytes, all its fragments together."""
        return self._reader.max_size

    @max_message.setter
    def max_message(self, size: int) -> None:
        self._reader.max_size = size

    def close(self, code: int = frames.NORMAL) -> None:
        """Send the buffer and a close frame; close when the client has closed, or after some seconds."""
        if self.closed:
            return
        self.uncork()
        self.send(frames.encode_close(code))
        if not self.closed:  # by the failed send
            self._finish()

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
            return  # data after the close frame is discarded
        if not data:
            self._lose("transport close")
            return
        ping: bytes | str | None = None
        try:
            for opcode, payload in self._reader.feed(data):
                if opcode in (frames.TEXT, frames.BINARY):
                    self._on_message(payload)
                elif opcode == frames.CLOSE:
                    self._end(int.from_bytes(payload[:2], "big") if payload else frames.NORMAL, "transport close")  # type: ignore[arg-type]
                else:
                    self.chatter()
                    ping = payload if opcode == frames.PING else ping
                if self.closed:
                    return
            if ping is not None:
                # Answers only the last of several pings (RFC 6455, section 5.5.3).
                assert isinstance(ping, bytes)
                self.send(frames.encode_frame(frames.PONG, ping))
        except FrameError as error:
            self._end(error.code, "transport error")
        except Exception:
            # An exception in a callback of the hub would leave the descriptor registered and the connection half open.
            logger.exception("a message could not be read")
            self._end(1011, "transport error")

    def chatter(self) -> None:
        """Count a frame without content. Too many of them end the connection."""
        now = time.monotonic()
        if now > self._chatter_until:
            self._chatter, self._chatter_until = 0, now + CHATTER_SECONDS
        self._chatter += 1
        if self._chatter > MAX_CHATTER:
            self._end(frames.POLICY_VIOLATION, "transport error")

    def _end(self, code: int, reason: str) -> None:
        if not self.closed:
            self.close(code)
            self._on_closed(reason)
