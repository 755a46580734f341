"""Green threads on eventlet: spawn, sleep, queue, event, lock, waiting for descriptors, the WSGI server.

Only this module, `engine.transport` and `server` import eventlet, but others depend on it as well: some forty modules
rely on green threads that switch cooperatively, and `engine.handover` reads eventlet's keys of the WSGI environ.
"""

import contextlib
import errno
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

with warnings.catch_warnings():
    # eventlet warns that it is deprecated: see docs/deploy.md on pinned libraries.
    warnings.simplefilter("ignore")
    import eventlet
    import eventlet.event
    import eventlet.green.http.client
    import eventlet.green.select
    import eventlet.green.socket
    import eventlet.green.ssl
    import eventlet.green.urllib.request
    import eventlet.greenio
    import eventlet.hubs
    import eventlet.patcher
    import eventlet.queue
    import eventlet.semaphore
    import eventlet.tpool
    import eventlet.wsgi

logger = logging.getLogger("socketio_pg.green")

P = ParamSpec("P")
T = TypeVar("T")

Queue = eventlet.queue.Queue
#: ``with lock:``, for the green threads of one process.
Lock = eventlet.semaphore.Semaphore
QueueEmpty = eventlet.queue.Empty
GreenThread: TypeAlias = Any  # eventlet has no types
#: What an application's function may raise: its own `eventlet.Timeout` is not an Exception.
FAILURES: tuple[type[BaseException], ...] = (Exception, eventlet.Timeout)


class TimedOut(Exception):
    """A wait took longer than :func:`timeout` or :meth:`Event.wait` allowed."""


def spawn(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> GreenThread:
    """Run ``function`` in a green thread. An exception that it raises is logged."""
    return eventlet.spawn(_logged, function, args, kwargs)


def run_soon(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Like :func:`spawn`, at half the cost, but without a thread to wait for. The hub's callbacks may call it."""
    eventlet.spawn_n(_logged, function, args, kwargs)


#: Green threads that :func:`run_together` starts without a pause.
_STARTED_TOGETHER = 20


def run_together(functions: Sequence[Callable[[], T]]) -> list[T | BaseException]:
    """Call each of ``functions`` in a green thread of its own. Return their results, or the exceptions they raised.

    Other green threads run in between, also before all have been started.
    """
    results: list[T | BaseException] = [TimedOut("it was killed")] * len(functions)
    done = Event()
    left = len(functions)

    def run(index: int, function: Callable[[], T]) -> None:
        nonlocal left
        try:
            results[index] = function()
        except FAILURES as error:
            results[index] = error
        finally:
            left -= 1
            if not left:
                done.send()

    for index, function in enumerate(functions):
        run_soon(run, index, function)
        if index % _STARTED_TOGETHER == _STARTED_TOGETHER - 1:
            sleep()
    if functions:
        done.wait()
    return results


def _logged(function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # There is no caller to handle the error: eventlet would drop it or print it to standard error.
    try:
        function(*args, **kwargs)
    except Exception:
        logger.exception("a green thread ended with an error")


def is_patched() -> bool:
    """Return whether eventlet has patched the standard library's functions that wait for descriptors."""
    return bool(eventlet.patcher.is_monkey_patched("select"))


class HomeThread:
    """The thread of the operating system whose green threads may use an object.

    Those of another thread belong to another event loop. Nothing would wake them, and they would wait for ever.
    """

    def __init__(self) -> None:
        self._thread: int | None = None

    def require(self, what: str) -> None:
        """Raise RuntimeError in another thread than the first one that called this. ``what`` is for the error."""
        current = threading.get_native_id()  # eventlet does not replace it, unlike get_ident()
        if self._thread is None:
            self._thread = current
        elif self._thread != current:
            raise RuntimeError(
                f"{what} was called in another thread than that of the server's green threads, as by eventlet.tpool or "
                "a library with native threads; use socketio_pg.client.Client or the HTTP API there"
            )

    def reset(self) -> None:
        """Let the next caller of :meth:`require` decide: after a fork it is another thread."""
        self._thread = None


def current() -> GreenThread:
    """Return the current green thread."""
    return eventlet.getcurrent()


class Worker:
    """Starts and stops one green thread, any number of times."""

    def __init__(self) -> None:
        self._thread: GreenThread | None = None

    @property
    def running(self) -> bool:
        """True from :meth:`start` until the function returns or :meth:`stop` is called."""
        return self._thread is not None

    def start(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run ``function`` in a green thread, unless one is running already. Call it after the fork, if there is one.

        An exception that ``function`` raises is logged.
        """
        if self._thread is None:
            self._thread = spawn(self._run, function, args, kwargs)

    def stop(self) -> None:
        """Kill the green thread; its ``finally`` blocks run. Idempotent.

        Does not return when the green thread itself calls it: the thread ends there.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.kill()

    def _run(self, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            function(*args, **kwargs)
        finally:
            # After stop(), start() may have started another thread already.
            if self._thread is current():
                self._thread = None


def sleep(seconds: float = 0.0) -> None:
    """Yield to other green threads for at least ``seconds``."""
    eventlet.sleep(seconds)


@contextlib.contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Raise :class:`TimedOut` in the ``with`` block when it takes longer than ``seconds``."""
    timer = eventlet.Timeout(seconds)
    try:
        yield
    except eventlet.Timeout as raised:
        if raised is not timer:
            raise
        raise TimedOut(f"no answer within {seconds:g} s") from None
    finally:
        timer.cancel()


class Event:
    """An event that happens once and has a result. Any number of green threads may wait for it."""

    def __init__(self) -> None:
        self._event = eventlet.event.Event()

    def send(self, result: object = None) -> None:
        if not self._event.ready():
            self._event.send(result)

    def is_set(self) -> bool:
        return bool(self._event.ready())

    def wait(self, seconds: float | None = None) -> Any:
        """Wait for the event and return its result. Raises :class:`TimedOut` after ``seconds``."""
        if seconds is None or self._event.ready():
            return self._event.wait()
        with timeout(seconds):
            return self._event.wait()


# The unpatched functions. The patched ones wait for the descriptor even when it is non-blocking, and two green threads
# must not wait for the same descriptor.
_os: Any = eventlet.patcher.original("os")


class Waker:
    """A pipe that wakes a green thread waiting in :func:`select`. Create it in the process that uses it.

    :meth:`wake` never blocks, and any number of green threads may call it concurrently.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        return self._reader

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe is readable, which is enough
            _os.write(self._writer, b"w")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            _os.read(self._reader, 65536)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def select(descriptors: list[Any], seconds: float) -> list[Any]:
    """Wait up to ``seconds`` and return the readable ``descriptors``: objects with ``fileno()``, also above 1,023."""
    readable, _, _ = eventlet.green.select.select(descriptors, [], [], max(0.0, seconds))
    return list(readable)


def wait_readable(descriptor: int) -> None:
    eventlet.hubs.trampoline(descriptor, read=True)


def wait_writable(descriptor: int) -> None:
    eventlet.hubs.trampoline(descriptor, write=True)


def resolve(host: str) -> list[str]:
    """Return the addresses of ``host``; the system's resolver runs in an OS thread. Raises OSError."""
    # The unpatched resolver: eventlet's own supports neither nsswitch nor search domains.
    original = eventlet.patcher.original("socket")
    found = eventlet.tpool.execute(original.getaddrinfo, host, None, 0, original.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


def fetch(url: str, seconds: float, max_bytes: int) -> bytes:
    """Send a GET request and return the body. Raises OSError, also after ``seconds`` or over ``max_bytes``."""
    request = eventlet.green.urllib.request.Request(url, headers={"Accept": "application/json"})
    try:
        # The outer timeout limits the whole request: the inner one starts anew with each read.
        with timeout(seconds), eventlet.green.urllib.request.urlopen(request, timeout=seconds) as answer:
            body: bytes = answer.read(max_bytes + 1)
    except TimedOut as error:
        raise OSError(str(error)) from None
    except eventlet.green.http.client.HTTPException as error:
        raise OSError(f"not an HTTP response: {error!r}") from error
    if len(body) > max_bytes:
        raise OSError(f"the response is larger than {max_bytes} bytes")
    return body


#: Seconds without progress after which a client that does not read its response or send its request is disconnected.
STALLED = 20.0
#: Bytes per second that a client must read on average. Otherwise one that reads a byte every few seconds would keep its
#: request, and one of the connections of the WSGI server, for hours.
MIN_SPEED = 2_000
#: Seconds for a client's TLS handshake.
HANDSHAKE = 5.0


class _ClientSocket(eventlet.greenio.GreenSocket):  # type: ignore[misc]
    """An accepted connection that times out, and that yields to other green threads while it receives.

    A timeout raises ConnectionResetError, which WSGI servers handle without logging.
    """

    _in_a_row = 0
    #: Bytes sent, and seconds spent waiting for the client to read them.
    _sent = 0
    _waited = 0.0

    def _trampoline(self, *args: Any, **options: Any) -> Any:
        self._in_a_row = 0
        if options.get("timeout") is None:
            options["timeout"] = STALLED
        options["timeout_exc"] = ConnectionResetError(errno.ECONNRESET, "the client stalled")
        if not options.get("write"):
            return super()._trampoline(*args, **options)
        left = STALLED + self._sent / MIN_SPEED - self._waited
        options["timeout"] = max(0.0, min(options["timeout"], left))
        began = time.monotonic()
        try:
            return super()._trampoline(*args, **options)
        finally:
            self._waited += time.monotonic() - began

    def send(self, data: bytes, flags: int = 0) -> int:
        sent: int = super().send(data, flags)
        self._sent += sent
        return sent

    def recv(self, size: int, flags: int = 0) -> bytes:
        # eventlet does not yield to other green threads while data is available.
        self._in_a_row += 1
        if self._in_a_row > 8:
            self._in_a_row = 0
            eventlet.sleep()
        received: bytes = super().recv(size, flags)
        return received


# The unpatched module: a green socket waits even where the caller must not.
_socket: Any = eventlet.patcher.original("socket")
SHUT_WR, SHUT_RDWR = _socket.SHUT_WR, _socket.SHUT_RDWR


def answer_elsewhere() -> None:
    """Keep the WSGI server from writing a response to the current request."""
    eventlet.wsgi.WSGI_LOCAL.already_handled = True


def duplicate(connection: Any) -> Any:
    """Return a non-blocking plain socket on the same connection as the green ``connection``."""
    taken = _socket.socket(fileno=os.dup(connection.fileno()))
    taken.setblocking(False)
    with contextlib.suppress(OSError):  # a Unix socket has no TCP_NODELAY
        taken.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return taken


def socket_pair() -> tuple[Any, Any]:
    """Return two connected sockets: a non-blocking plain one, and a green one."""
    plain, other = _socket.socketpair()
    plain.setblocking(False)
    return plain, eventlet.greenio.GreenSocket(other)


@contextlib.contextmanager
def noticing_end(connection: Any, on_end: Callable[[], None]) -> Iterator[None]:
    """Call ``on_end`` from the hub when the peer of the green socket closes it during the ``with`` block."""
    hub = eventlet.hubs.get_hub()
    listener: Any = None

    def readable(_: int) -> None:
        nonlocal listener
        found, listener = listener, None
        if found is None:
            return
        hub.remove(found)  # once: unread bytes, perhaps the next request, would call this over and over
        try:
            gone = not (connection.fd if hasattr(connection, "fd") else connection).recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            on_end()

    def ignore(*_: object) -> None:
        """Ignore the hub's notice that the descriptor was closed elsewhere."""

    listener = hub.add(hub.READ, connection.fileno(), readable, ignore, ignore)
    listener.greenlet = hub.greenlet
    try:
        yield
    finally:
        if listener is not None:
            hub.remove(listener)
            listener = None


def keep_accepting() -> None:
    """Patch eventlet's accept(): retries after a lack of descriptors or memory, and limits TLS handshakes.

    Unpatched, such a lack ends gunicorn's acceptor for good, and gunicorn does not limit handshakes. Makes accepted
    connections :class:`_ClientSocket`.
    """
    accept = eventlet.greenio.GreenSocket.accept

    def patient(self: Any) -> Any:
        while True:
            try:
                client, address = accept(self)
                if not isinstance(client, eventlet.greenio.GreenSocket):
                    return client, address  # gunicorn wraps its listener: the outer accept() returns a green socket
                # The class is changed in place: a new object on the descriptor would lose it when the old one is freed.
                client.__class__ = _ClientSocket
                return client, address
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    raise
                logger.warning("cannot accept a connection: %s; retrying", error.strerror)
                eventlet.sleep(0.1)

    eventlet.greenio.GreenSocket.accept = patient

    shake_hands = eventlet.green.ssl.GreenSSLSocket.do_handshake

    def shake_hands_in_time(self: Any, *args: Any) -> Any:
        if not self.server_side:
            return shake_hands(self, *args)
        with eventlet.Timeout(HANDSHAKE, ConnectionResetError(errno.ECONNRESET, "no TLS handshake")):
            return shake_hands(self, *args)

    eventlet.green.ssl.GreenSSLSocket.do_handshake = shake_hands_in_time


def listen(host: str, port: int, backlog: int = 4096) -> Any:
    """Return a listening green socket."""
    family, _, _, _, address = eventlet.green.socket.getaddrinfo(host, port, type=eventlet.green.socket.SOCK_STREAM)[0]
    return eventlet.listen(address, family, backlog=backlog, reuse_port=False)


def serve_wsgi(listener: Any, application: Any, max_connections: int) -> None:
    """Serve ``application`` until :func:`stop_serving` is called on this green thread."""
    with contextlib.suppress(eventlet.StopServe):
        # debug=True would send Python tracebacks to clients.
        eventlet.wsgi.server(listener, application, max_size=max_connections, log_output=False, debug=False)


def stop_serving(thread: GreenThread) -> None:
    """Stop accepting connections; the serving green thread ends when the open requests have."""
    eventlet.kill(thread, eventlet.StopServe())
