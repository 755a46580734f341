"""Green threads on eventlet: spawn, sleep, queue, event, wait for a descriptor.

Only this module, `engine.transport` and `server` import eventlet, but others depend on it as well: some forty modules
rely on green threads that switch cooperatively, and `engine.handover` reads eventlet's keys of the WSGI environ.
"""

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeAlias

with warnings.catch_warnings():
    # Known, and dealt with: README, "Why eventlet is pinned".
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

Queue = eventlet.queue.Queue
#: ``with lock:``, between green threads of one process.
Lock = eventlet.semaphore.Semaphore
QueueEmpty = eventlet.queue.Empty
GreenThread: TypeAlias = Any  # eventlet has no types


class TimedOut(Exception):
    """What :func:`timeout` raises."""


def spawn(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> GreenThread:
    """Run ``function`` in a green thread; an exception that leaves it is logged, not lost."""
    return eventlet.spawn(_logged, function, args, kwargs)


def run_soon(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """:func:`spawn` without the thread to wait for, at half the cost. May be called by the hub's callbacks."""
    eventlet.spawn_n(_logged, function, args, kwargs)


def _logged(function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # Nobody is above it who could do better: left alone, the error would go nowhere or to standard error.
    try:
        function(*args, **kwargs)
    except Exception:
        logger.exception("a green thread ended with an error")


def current() -> GreenThread:
    """The green thread that runs."""
    return eventlet.getcurrent()


class Worker:
    """One green thread of a part of the server, started and stopped any number of times."""

    def __init__(self) -> None:
        self._thread: GreenThread | None = None

    @property
    def running(self) -> bool:
        """Whether it was started, and has neither ended nor been stopped."""
        return self._thread is not None

    def start(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run ``function`` in a green thread, unless one is running. Call it after a fork, in the process that works.

        An exception that leaves ``function`` is logged.
        """
        if self._thread is None:
            self._thread = spawn(self._run, function, args, kwargs)

    def stop(self) -> None:
        """Kill the green thread, whose ``finally`` blocks run; does nothing when none is running.

        When the green thread itself calls it, it does not return: the thread ends there.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.kill()

    def _run(self, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            function(*args, **kwargs)
        finally:
            # After a stop() another may be running already.
            if self._thread is current():
                self._thread = None


def sleep(seconds: float = 0.0) -> None:
    """Let others run, for ``seconds`` at least."""
    eventlet.sleep(seconds)


@contextlib.contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Raise :class:`TimedOut` in the body when it waits longer than ``seconds``."""
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
    """Something that happens once, with a result; any number of green threads wait for it."""

    def __init__(self) -> None:
        self._event = eventlet.event.Event()

    def send(self, result: object = None) -> None:
        if not self._event.ready():
            self._event.send(result)

    def is_set(self) -> bool:
        return bool(self._event.ready())

    def wait(self, seconds: float | None = None) -> Any:
        """The result; raises :class:`TimedOut` after ``seconds``."""
        if seconds is None or self._event.ready():
            return self._event.wait()
        with timeout(seconds):
            return self._event.wait()


# The functions that monkey-patching left alone. The patched ones wait for the descriptor even when it is
# non-blocking, and two green threads must not wait for one descriptor.
_os: Any = eventlet.patcher.original("os")


class Waker:
    """A pipe that wakes a green thread which waits in :func:`select`. Create it in the process that uses it.

    Waking never waits, and any number of green threads may do it at once.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        return self._reader

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            _os.write(self._writer, b"w")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            _os.read(self._reader, 65536)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def select(descriptors: list[Any], seconds: float) -> list[Any]:
    """Which of ``descriptors`` (with ``fileno()``) are readable, after up to ``seconds``; over 1,023 too."""
    readable, _, _ = eventlet.green.select.select(descriptors, [], [], max(0.0, seconds))
    return list(readable)


def wait_readable(descriptor: int) -> None:
    eventlet.hubs.trampoline(descriptor, read=True)


def wait_writable(descriptor: int) -> None:
    eventlet.hubs.trampoline(descriptor, write=True)


def resolve(host: str) -> list[str]:
    """The addresses of ``host``, asked of the system's resolver in a real thread. Raises OSError."""
    # The resolver that monkey-patching left alone: eventlet's own knows neither nsswitch nor search domains.
    original = eventlet.patcher.original("socket")
    found = eventlet.tpool.execute(original.getaddrinfo, host, None, 0, original.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


def fetch(url: str, seconds: float, most_bytes: int) -> bytes:
    """The body of a GET within ``seconds``. Raises OSError, also for more than ``most_bytes``."""
    request = eventlet.green.urllib.request.Request(url, headers={"Accept": "application/json"})
    try:
        # The outer one for all of it: the inner one begins anew with each read.
        with timeout(seconds), eventlet.green.urllib.request.urlopen(request, timeout=seconds) as answer:
            body: bytes = answer.read(most_bytes + 1)
    except TimedOut as error:
        raise OSError(str(error)) from None
    except eventlet.green.http.client.HTTPException as error:
        raise OSError(f"no answer in HTTP: {error!r}") from error
    if len(body) > most_bytes:
        raise OSError(f"the answer has over {most_bytes} bytes")
    return body


#: Seconds without any progress after which a client that does not read its answer, or send its request, is cut off.
STALLED = 20.0
#: Seconds for a client's TLS handshake.
HANDSHAKE = 5.0


class _ClientSocket(eventlet.greenio.GreenSocket):  # type: ignore[misc]
    """An accepted connection that neither waits for ever nor keeps others waiting.

    Its time-outs look as if the client had gone, which WSGI servers take in silence.
    """

    _in_a_row = 0

    def _trampoline(self, *args: Any, **options: Any) -> Any:
        self._in_a_row = 0
        if options.get("timeout") is None:
            options["timeout"] = STALLED
        options["timeout_exc"] = ConnectionResetError(errno.ECONNRESET, "the client has stalled")
        return super()._trampoline(*args, **options)

    def recv(self, size: int, flags: int = 0) -> bytes:
        # As long as bytes come fast enough eventlet's does not give way to anybody.
        self._in_a_row += 1
        if self._in_a_row > 8:
            self._in_a_row = 0
            eventlet.sleep()
        received: bytes = super().recv(size, flags)
        return received


# The blocking original: where nothing must wait, a green socket would.
_socket: Any = eventlet.patcher.original("socket")
SHUT_WR, SHUT_RDWR = _socket.SHUT_WR, _socket.SHUT_RDWR


def answer_elsewhere() -> None:
    """The WSGI server writes no answer to the request that is being handled."""
    eventlet.wsgi.WSGI_LOCAL.already_handled = True


def duplicate(connection: Any) -> Any:
    """A non-blocking socket, not a green one, on the same connection as the green ``connection``."""
    taken = _socket.socket(fileno=os.dup(connection.fileno()))
    taken.setblocking(False)
    with contextlib.suppress(OSError):  # not on a Unix socket
        taken.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return taken


def socket_pair() -> tuple[Any, Any]:
    """Two connected sockets: a non-blocking one that is not green, and a green one."""
    plain, other = _socket.socketpair()
    plain.setblocking(False)
    return plain, eventlet.greenio.GreenSocket(other)


@contextlib.contextmanager
def noticing_end(connection: Any, on_end: Callable[[], None]) -> Iterator[None]:
    """Call ``on_end``, from the hub, when the peer of a green socket closes it while the body lasts."""
    hub = eventlet.hubs.get_hub()
    listener: Any = None

    def readable(_: int) -> None:
        nonlocal listener
        found, listener = listener, None
        if found is None:
            return
        hub.remove(found)  # once: what is there may be the next request, and would wake us for ever
        try:
            gone = not (connection.fd if hasattr(connection, "fd") else connection).recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            on_end()

    def ignore(*_: object) -> None:
        """For the hub's callbacks about a descriptor that is closed elsewhere."""

    listener = hub.add(hub.READ, connection.fileno(), readable, ignore, ignore)
    listener.greenlet = hub.greenlet
    try:
        yield
    finally:
        if listener is not None:
            hub.remove(listener)
            listener = None


def keep_accepting() -> None:
    """Make accepted connections :class:`_ClientSocket`, and let no passing lack of descriptors or memory end a server.

    gunicorn's acceptor would, for good. It does not limit TLS handshakes either.
    """
    accept = eventlet.greenio.GreenSocket.accept

    def patient(self: Any) -> Any:
        while True:
            try:
                client, address = accept(self)
                if not isinstance(client, eventlet.greenio.GreenSocket):
                    return client, address  # gunicorn's listener is one within another: the outer one's is green
                # Not a new one around its descriptor: the old one closes that when it goes.
                client.__class__ = _ClientSocket
                return client, address
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    raise
                logger.warning("a connection could not be accepted: %s", error.strerror)
                eventlet.sleep(0.1)

    eventlet.greenio.GreenSocket.accept = patient

    shake_hands = eventlet.green.ssl.GreenSSLSocket.do_handshake

    def shake_hands_soon(self: Any, *args: Any) -> Any:
        if not self.server_side:
            return shake_hands(self, *args)
        with eventlet.Timeout(HANDSHAKE, ConnectionResetError(errno.ECONNRESET, "no TLS handshake")):
            return shake_hands(self, *args)

    eventlet.green.ssl.GreenSSLSocket.do_handshake = shake_hands_soon


def listen(host: str, port: int, backlog: int = 4096) -> Any:
    """A listening green socket."""
    family, _, _, _, address = eventlet.green.socket.getaddrinfo(host, port, type=eventlet.green.socket.SOCK_STREAM)[0]
    return eventlet.listen(address, family, backlog=backlog, reuse_port=False)


def serve_wsgi(listener: Any, application: Any, max_connections: int) -> None:
    """Serve ``application`` until :func:`stop_serving` is called on this green thread."""
    with contextlib.suppress(eventlet.StopServe):
        # debug=False: eventlet would write Python tracebacks to the client.
        eventlet.wsgi.server(listener, application, max_size=max_connections, log_output=False, debug=False)


def stop_serving(thread: GreenThread) -> None:
    """Stop accepting; the serving green thread ends when the requests under way have."""
    eventlet.kill(thread, eventlet.StopServe())
