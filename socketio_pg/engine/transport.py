"""A WebSocket's connection, taken over from the WSGI server: bytes in and out, bounded, without a green thread.

The descriptor is duplicated and registered with eventlet's hub; the WSGI request can end. What is sent is tried at
once; what the kernel does not take waits in a buffer that is bounded in bytes. It knows frames but not Engine.IO.
"""

import contextlib
import logging
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import eventlet.hubs
import eventlet.patcher

from socketio_pg.core.metrics import fan_out
from socketio_pg.engine import frames
from socketio_pg.engine.frames import FrameError, FrameReader

logger = logging.getLogger("socketio_pg.transport")

# The blocking originals: green sockets would wait where we must not.
_socket: Any = eventlet.patcher.original("socket")

#: Bytes read at once: so few that a flood of the smallest frames gives way to others after some milliseconds.
READ_SIZE = 16384
#: Frames that nobody needs, pings and pongs, in :data:`CHATTER_SECONDS`; who sends more is cut off.
MAX_CHATTER = 1000
CHATTER_SECONDS = 10.0
#: Seconds that the peer gets to close its side after our close frame.
CLOSE_TIMEOUT = 2.0


class WebSocketTransport:
    """One open WebSocket.

    ``on_message(payload)`` gets each message, str or bytes, and ``on_closed(reason)`` is called once. Both are called
    by eventlet's hub: they must not wait, only spawn.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_chatter",
        "_chatter_until",
        "_closing",
        "_corked",
        "_drained",
        "_fileno",
        "_limit",
        "_on_closed",
        "_on_message",
        "_paused",
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
        self._chatter, self._chatter_until = 0, 0.0
        self._closing = False
        self._corked = False
        self._drained: list[Callable[[], None]] = []
        #: Nothing is sent any more.
        self.closed = False
        self._paused = False
        self._listen()

    @property
    def max_message(self) -> int:
        """Bytes of one message from the client, all its fragments together."""
        return self._reader.max_size

    @max_message.setter
    def max_message(self, size: int) -> None:
        self._reader.max_size = size

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
            fan_out.cut_bytes += self._buffered + len(data)
            self._buffered = 0
            # A reset, so that the kernel's buffer is freed as well.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._lose("slow_consumer")

    def pause(self) -> None:
        """Read no further: the client waits, once the kernel's buffer is full."""
        if self._read_listener is not None and not self._paused:
            self._paused = True
            eventlet.hubs.get_hub().remove(self._read_listener)

    def resume(self) -> None:
        """Read again."""
        if self._read_listener is not None and self._paused:
            self._paused = False
            self._listen()

    def _listen(self) -> None:
        hub = eventlet.hubs.get_hub()
        self._read_listener = hub.add(hub.READ, self._fileno, self._readable, _ignore, _ignore)
        # The listener would keep the green thread alive in which it was made, that of the request, with its stack.
        self._read_listener.greenlet = hub.greenlet

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
        self.resume()  # for the peer's close
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
                # Of many that came together only the last one (RFC 6455, section 5.5.3).
                assert isinstance(ping, bytes)
                self.send(frames.encode_frame(frames.PONG, ping))
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

    def chatter(self) -> None:
        """The client has sent something that carries nothing: too much of it ends the connection."""
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
        if not self._paused:
            hub.remove(self._read_listener)
        if self._write_listener is not None:
            hub.remove(self._write_listener)
        self._read_listener = self._write_listener = self._buffer = None
        self._corked = False
        fan_out.lost_bytes += self._buffered
        self._buffered = 0
        self._socket.close()
        self._call_drained()

    def _call_drained(self) -> None:
        waiting, self._drained = self._drained, []
        for callback in waiting:
            callback()


def _ignore(*_: object) -> None:
    """For the hub's callbacks about a descriptor that is closed elsewhere: ours is ours alone."""
