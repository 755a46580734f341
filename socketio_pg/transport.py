"""A WebSocket's connection, taken over from the WSGI server: bytes in and out, bounded, without a green thread.

The descriptor is duplicated and registered with eventlet's hub; the WSGI request can end. What is sent is tried at
once; what the kernel does not take waits in a buffer that is bounded in bytes. It knows frames but not Engine.IO.
"""

import contextlib
import logging
import os
import ssl
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import eventlet.hubs
import eventlet.patcher
import eventlet.wsgi

from socketio_pg import frames
from socketio_pg.frames import FrameError, FrameReader

logger = logging.getLogger("socketio_pg.transport")

# The blocking originals: green sockets would wait where we must not.
_socket: Any = eventlet.patcher.original("socket")

#: Bytes read at once.
READ_SIZE = 65536
#: Seconds that the peer gets to close its side after our close frame.
CLOSE_TIMEOUT = 2.0


def can_take_over(environ: dict[str, Any]) -> bool:
    """Whether the request's socket is a plain one: TLS that ends in this process lives in the request's own socket."""
    return not isinstance(_request_socket(environ), ssl.SSLSocket)


def outlives_request(environ: dict[str, Any]) -> bool:
    """Whether the connection stays when the request ends: gunicorn closes its copy only, eventlet.wsgi shuts down."""
    return "gunicorn.socket" in environ


def take_over(environ: dict[str, Any]) -> Any:
    """A non-blocking socket of our own on the request's connection; the WSGI server will write nothing to it."""
    eventlet.wsgi.WSGI_LOCAL.already_handled = True
    taken = _socket.socket(fileno=os.dup(_request_socket(environ).fileno()))
    taken.setblocking(False)
    with contextlib.suppress(OSError):  # not on a Unix socket
        taken.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return taken


def handshake_problem(environ: dict[str, Any]) -> str | None:
    """Why this is no WebSocket handshake (RFC 6455, section 4.2.1), or None."""
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        return "Sec-WebSocket-Version must be 13"
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    if len(key) != 24 or not key.endswith("=="):
        return "Sec-WebSocket-Key must be 16 bytes in base64"
    upgrades = [token.strip() for token in environ.get("HTTP_CONNECTION", "").lower().split(",")]
    if "upgrade" not in upgrades:
        return "Connection must be Upgrade"
    return None


def handshake_answer(environ: dict[str, Any]) -> bytes:
    """What a good handshake is answered with."""
    accept = frames.accept_key(environ["HTTP_SEC_WEBSOCKET_KEY"])
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


def _request_socket(environ: dict[str, Any]) -> Any:
    return environ["gunicorn.socket"] if "gunicorn.socket" in environ else environ["eventlet.input"].get_socket()


class Connection:
    """One open WebSocket.

    ``on_message(payload)`` gets each message, str or bytes, and ``on_closed(reason)`` is called once. Both are called
    by eventlet's hub: they must not wait, only spawn.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_closing",
        "_corked",
        "_drained",
        "_fileno",
        "_limit",
        "_on_closed",
        "_on_message",
        "_read_listener",
        "_reader",
        "_send_now",
        "_socket",
        "_write_listener",
        "closed",
    )

    def __init__(
        self,
        socket: Any,
        on_message: Callable[[str | bytes], None],
        on_closed: Callable[[str], None],
        max_message: int,
        send_buffer: int,
    ) -> None:
        self._socket = socket
        self._send_now: Callable[[bytes], int] = socket.send
        self._fileno: int = socket.fileno()
        self._on_message = on_message
        self._on_closed = on_closed
        self._reader = FrameReader(max_message)
        self._buffer: deque[bytes] | None = None
        self._buffered = 0
        self._limit = send_buffer
        self._write_listener: Any = None
        self._closing = False
        self._corked = False
        self._drained: list[Callable[[], None]] = []
        #: Nothing is sent any more.
        self.closed = False
        hub = eventlet.hubs.get_hub()
        self._read_listener = hub.add(hub.READ, self._fileno, self._readable, _ignore, _ignore)
        # The listener would keep the green thread alive in which it was made, that of the request, with its stack.
        self._read_listener.greenlet = hub.greenlet

    @property
    def buffered(self) -> int:
        """Bytes that wait for the kernel to take them."""
        return self._buffered

    def send(self, data: bytes) -> None:
        """Send whole frames, after all that was sent before. Never waits and never raises.

        When over ``send_buffer`` bytes wait already the connection is cut: ``on_closed("slow_consumer")``. So a message
        of any size reaches a client that reads.
        """
        if self.closed:
            return
        if self._buffer is None:
            try:
                sent = self._send_now(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._lose("transport error")
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._buffer = deque()
            hub = eventlet.hubs.get_hub()
            self._write_listener = hub.add(hub.WRITE, self._fileno, self._writable, _ignore, _ignore)
            self._write_listener.greenlet = hub.greenlet
        if self._buffered <= self._limit:
            self._buffer.append(data)
            self._buffered += len(data)
        else:
            # A reset, so that the kernel's buffer is freed as well.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._lose("slow_consumer")

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when nothing waits to be sent, or the connection has gone. It must not wait."""
        if self._buffer is None or self.closed:
            callback()
        else:
            self._drained.append(callback)

    def cork(self) -> None:
        """Keep back what is sent until :meth:`uncork`, so that it goes in one call. Nothing may wait meanwhile."""
        if self._buffer is None and not self.closed:
            self._corked, self._buffer = True, deque()

    def uncork(self) -> None:
        """Send what :meth:`cork` kept back."""
        if not self._corked:
            return
        self._corked = False
        waiting, self._buffer, self._buffered = self._buffer, None, 0
        if waiting:
            self.send(b"".join(waiting))

    def close(self, code: int = frames.NORMAL) -> None:
        """Send what waits and a close frame, then close when the peer has, or after :data:`CLOSE_TIMEOUT`."""
        if self.closed:
            return
        self.uncork()
        self.send(frames.encode_close(code))
        if self.closed:  # the send has lost it
            return
        self.closed = self._closing = True
        if self._buffer is None:
            self._shut_down()
        eventlet.hubs.get_hub().schedule_call_global(CLOSE_TIMEOUT, self._release)

    def _readable(self, _: int) -> None:
        if self._read_listener is None:
            return  # released by another callback of the same round of the hub
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if self._closing:
            if not data:
                self._release()
            return  # what comes after our close frame is not read
        if not data:
            self._lose("transport close")
            return
        try:
            for opcode, payload in self._reader.feed(data):
                if opcode in (frames.TEXT, frames.BINARY):
                    self._on_message(payload)
                elif opcode == frames.PING:
                    assert isinstance(payload, bytes)
                    self.send(frames.encode_frame(frames.PONG, payload))
                elif opcode == frames.CLOSE:
                    self._end(frames.NORMAL, "transport close")
                if self.closed:
                    return
        except FrameError as error:
            self._end(error.code, "transport error")
        except Exception:
            # Out of a callback of the hub it would leave the descriptor registered and the client half alive.
            logger.exception("a message could not be taken")
            self._end(1011, "transport error")

    def _writable(self, _: int) -> None:
        if self._write_listener is None or self._buffer is None:
            return  # as above
        # Joined: a client that lags gets many small frames in few calls.
        data = self._buffer.popleft() if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            if self._closing:
                self._release()
            else:
                self._lose("transport error")
            return
        self._buffered -= sent
        if sent < len(data):
            self._buffer.append(data[sent:])
            return
        eventlet.hubs.get_hub().remove(self._write_listener)
        self._write_listener = self._buffer = None
        self._call_drained()
        if self._closing:
            self._shut_down()

    def _end(self, code: int, reason: str) -> None:
        if not self.closed:
            self.close(code)
            self._on_closed(reason)

    def _lose(self, reason: str) -> None:
        self.closed = True
        self._release()
        self._on_closed(reason)

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(_socket.SHUT_WR)

    def _release(self) -> None:
        if self._read_listener is None:
            return
        hub = eventlet.hubs.get_hub()
        hub.remove(self._read_listener)
        if self._write_listener is not None:
            hub.remove(self._write_listener)
        self._read_listener = self._write_listener = self._buffer = None
        self._corked = False
        self._buffered = 0
        self._socket.close()
        self._call_drained()

    def _call_drained(self) -> None:
        waiting, self._drained = self._drained, []
        for callback in waiting:
            callback()


def _ignore(*_: object) -> None:
    """For the hub's callbacks about a descriptor that is closed elsewhere: ours is ours alone."""
