"""A connection that was taken over from the WSGI server: non-blocking sends through a bounded buffer, no green thread.

The descriptor is taken from the WSGI request, which can end, and registered with the hub of the green threads. A send
is tried at once; bytes that the kernel does not accept wait in a buffer. `transport` has WebSockets, `stream` has
streaming responses.
"""

import contextlib
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.metrics import fan_out
from socketio_pg.engine import tcp

#: Bytes of one read. A flood of the smallest frames yields to other clients after some milliseconds with this size.
READ_SIZE = 16384
#: Seconds that the client has to close its side after the end that the server has sent.
CLOSE_TIMEOUT = 2.0


class BufferedConnection:
    """A non-blocking connection with a bounded send buffer.

    The hub calls ``on_closed(reason)`` once, so it must not wait, only spawn. A client for which more than
    ``send_buffer`` bytes wait is disconnected. Subclasses read: they define ``_readable()``.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_closing",
        "_corked",
        "_limit",
        "_on_closed",
        "_paused",
        "_readiness",
        "_room_for",
        "_send_now",
        "_socket",
        "_spare",
        "_stuck_since",
        "_writing",
        "closed",
    )

    def __init__(self, socket: Any, on_closed: Callable[[str], None], send_buffer: int) -> None:
        self._socket = socket
        self._send_now: Callable[[bytes], int] = socket.send
        #: None once the connection has been given up.
        self._readiness: green.Readiness | None = green.Readiness(socket.fileno())
        self._on_closed = on_closed
        self._buffer: deque[bytes] | None = None
        self._buffered = 0
        self._limit = send_buffer
        self._writing = False
        self._closing = False
        self._corked = False
        #: The waiting call of :meth:`when_room`: the bytes that may still wait, and the callback.
        self._room_for: tuple[int, Callable[[], None]] | None = None
        #: Bytes that do not count towards the limit until the buffer is empty.
        self._spare = 0
        #: When the kernel last accepted bytes, while others wait.
        self._stuck_since = 0.0
        #: True when nothing more is sent.
        self.closed = False
        self._paused = False
        self._readiness.start_reading(self._readable)

    def _readable(self, *_: object) -> None:
        """Read what has arrived. The hub calls it."""
        raise NotImplementedError

    @property
    def buffered(self) -> int:
        """The number of bytes that wait for the kernel."""
        return self._buffered

    def kernel_counts(self) -> tcp.Counts | None:
        """Return what the kernel has counted of this connection; None if it is closed, or the system has no counts."""
        return None if self._readiness is None else tcp.read(self._socket)

    def send(self, data: bytes) -> None:
        """Send whole frames after all earlier ones. Never waits and never raises.

        Disconnects the client, with ``on_closed("slow_consumer")``, when more than ``send_buffer`` bytes wait already.
        So a message of any size reaches a client that reads.
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
            self._stuck_since = time.monotonic()
            assert self._readiness is not None
            self._writing = True
            self._readiness.start_writing(self._writable)
        if self._buffered <= self._limit + self._spare:
            self._buffer.append(data)
            self._buffered += len(data)
        else:
            fan_out.cut_bytes += self._buffered + len(data)
            self._buffered = 0
            # A reset frees the kernel's buffer too.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(green.SOL_SOCKET, green.SO_LINGER, struct.pack("ii", 1, 0))
            self._lose("slow_consumer")

    def send_page(self, data: bytes) -> None:
        """Send like :meth:`send`, from a caller that waits for :meth:`when_room` between two calls.

        ``data`` does not count towards the limit, so that all of the buffer is left for other messages.
        """
        before = self._buffered
        self.send(data)
        if self._buffered > before:
            self._spare = self._buffered - before

    def pause(self) -> None:
        """Stop reading. The client has to wait once the kernel's buffer is full."""
        if self._readiness is not None and not self._paused:
            self._paused = True
            self._readiness.stop_reading()

    def resume(self) -> None:
        """Continue to read after :meth:`pause`."""
        if self._readiness is not None and self._paused:
            self._paused = False
            self._readiness.start_reading(self._readable)

    def when_room(self, most: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` once at most ``most`` bytes wait, or the connection is closed. It must not wait.

        There is one caller at a time.
        """
        if self._buffered <= most or self.closed:
            callback()
        else:
            self._room_for = (most, callback)

    def stuck_seconds(self, now: float) -> float:
        """Return for how long bytes have waited without the kernel accepting any, at the monotonic time ``now``."""
        return now - self._stuck_since if self._writing and not self.closed else 0.0

    def cork(self) -> None:
        """Hold sends back until :meth:`uncork`, which sends them in one call. The caller must not wait in between."""
        if self._buffer is None and not self.closed:
            self._corked, self._buffer = True, deque()

    def uncork(self) -> None:
        """Send all that :meth:`cork` held back."""
        if not self._corked:
            return
        self._corked = False
        waiting, self._buffer, self._buffered = self._buffer, None, 0
        if waiting:
            self.send(b"".join(waiting))

    def _finish(self) -> None:
        """Send the buffer and end; close when the client has closed, or after :data:`CLOSE_TIMEOUT`."""
        self.closed = self._closing = True
        self.resume()  # to notice that the client closes
        if self._buffer is None:
            self._shut_down()
        green.call_later(CLOSE_TIMEOUT, self._release)

    def _writable(self, *_: object) -> None:
        if self._readiness is None or not self._writing or self._buffer is None:
            return  # as in `_readable`
        # Joins small frames, so that a slow client gets many of them in few calls.
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
        if sent:
            self._stuck_since = time.monotonic()
        if sent < len(data):
            self._buffer.append(data[sent:])
            self._report_room()
            return
        self._readiness.stop_writing()
        self._writing, self._buffer = False, None
        self._spare = 0
        self._report_room()
        if self._closing:
            self._shut_down()

    def _lose(self, reason: str) -> None:
        self.closed = True
        self._release()
        self._on_closed(reason)

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(green.SHUT_WR)

    def _release(self) -> None:
        if self._readiness is None:
            return
        self._readiness.close()
        self._readiness = self._buffer = None
        self._writing = self._corked = False
        fan_out.lost_bytes += self._buffered
        self._buffered = 0
        self._socket.close()
        self._report_room()

    def _report_room(self) -> None:
        if self._room_for is not None and (self._buffered <= self._room_for[0] or self.closed):
            callback, self._room_for = self._room_for[1], None
            callback()
