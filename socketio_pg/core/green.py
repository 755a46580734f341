"""Green threads: spawn, sleep, queue, event, lock, waiting for descriptors, the WSGI server of the development server.

The interface to the green-thread library, which `green_library` chooses when this module is imported: `green_eventlet`
and `wsgi_eventlet`, or `green_gevent` and `wsgi_gevent`. Both pairs define the same names; tests/unit/test_green.py
compares them. Only these modules import a library, but others depend on green threads as well: some forty modules rely
on their switching cooperatively.
"""

import contextlib
import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from socketio_pg.core import green_library

if TYPE_CHECKING or green_library.name() == "eventlet":
    from socketio_pg.core import green_eventlet as _library
    from socketio_pg.core import wsgi_eventlet as _wsgi
else:
    from socketio_pg.core import green_gevent as _library
    from socketio_pg.core import wsgi_gevent as _wsgi

P = ParamSpec("P")
T = TypeVar("T")

#: The library's name, which is also that of python-engineio's asynchronous mode.
LIBRARY: str = _library.NAME
Queue = _library.Queue
QueueEmpty = _library.QueueEmpty
#: ``with lock:``, for the green threads of one process.
Lock = _library.Lock
GreenThread: TypeAlias = Any  # the libraries have no types
#: The library's own time-out, which is not an Exception.
Timeout: type[BaseException] = _library.Timeout
#: What an application's function may raise.
FAILURES: tuple[type[BaseException], ...] = (Exception, Timeout)
#: Calls functions when a descriptor is readable or writable, without a green thread.
Readiness = _library.Readiness

patch = _library.patch
is_patched = _library.is_patched
current = _library.current
sleep = _library.sleep
select = _library.select
wait_readable, wait_writable = _library.wait_readable, _library.wait_writable
call_later = _library.call_later
request_socket = _wsgi.request_socket
unread_body = _wsgi.unread_body
socket_pair = _wsgi.socket_pair
client_socket, adopt, take_received = _wsgi.client_socket, _wsgi.adopt, _wsgi.take_received
noticing_end = _wsgi.noticing_end
keep_accepting = _wsgi.keep_accepting
listen = _wsgi.listen
serve_wsgi, stop_serving = _wsgi.serve_wsgi, _wsgi.stop_serving

logger = logging.getLogger("socketio_pg.green")
# The unpatched module.
#: The socket module without cooperation: its sockets must be non-blocking.
plain_socket: Any = _library.plain_socket
_socket = plain_socket
SHUT_WR, SHUT_RDWR = _socket.SHUT_WR, _socket.SHUT_RDWR
SOL_SOCKET, SO_LINGER = _socket.SOL_SOCKET, _socket.SO_LINGER
#: The second one is 18 on Linux; systems without it refuse the option.
IPPROTO_TCP, TCP_USER_TIMEOUT = _socket.IPPROTO_TCP, getattr(_socket, "TCP_USER_TIMEOUT", 18)


class TimedOut(Exception):
    """A wait took longer than :func:`timeout` or :meth:`Event.wait` allowed."""


def spawn(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> GreenThread:
    """Run ``function`` in a green thread, which has the methods ``wait()`` and ``kill()``.

    An exception that ``function`` raises is logged.
    """
    return _library.spawn(_logged, function, args, kwargs)


def run_soon(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Like :func:`spawn`, at half the cost, but without a thread to wait for. The hub's callbacks may call it."""
    _library.spawn_raw(_logged, function, args, kwargs)


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
    # There is no caller to handle the error: the library would drop it or print it to standard error.
    try:
        function(*args, **kwargs)
    except Exception:
        logger.exception("a green thread ended with an error")


class HomeThread:
    """The thread of the operating system whose green threads may use an object.

    Those of another thread belong to another event loop. Nothing would wake them, and they would wait for ever.
    """

    def __init__(self) -> None:
        self._thread: int | None = None

    def require(self, what: str) -> None:
        """Raise RuntimeError in another thread than the first one that called this. ``what`` is for the error."""
        current = threading.get_native_id()  # the libraries do not replace it, unlike get_ident()
        if self._thread is None:
            self._thread = current
        elif self._thread != current:
            raise RuntimeError(
                f"{what} was called in another thread than that of the server's green threads, as by a thread pool of "
                f"{LIBRARY} or a library with native threads; use socketio_pg.client.Client or the HTTP API there"
            )

    def reset(self) -> None:
        """Let the next caller of :meth:`require` decide: after a fork it is another thread."""
        self._thread = None


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


@contextlib.contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Raise :class:`TimedOut` in the ``with`` block when it takes longer than ``seconds``."""
    timer = _library.start_timeout(seconds)
    try:
        yield
    except Timeout as raised:
        if raised is not timer:
            raise
        raise TimedOut(f"no answer within {seconds:g} s") from None
    finally:
        timer.cancel()


class Event:
    """An event that happens once and has a result. Any number of green threads may wait for it."""

    def __init__(self) -> None:
        self._result = _library.Result()

    def send(self, result: object = None) -> None:
        if not self._result.ready():
            self._result.set(result)

    def is_set(self) -> bool:
        return bool(self._result.ready())

    def wait(self, seconds: float | None = None) -> Any:
        """Wait for the event and return its result. Raises :class:`TimedOut` after ``seconds``."""
        if seconds is None or self._result.ready():
            return self._result.get()
        with timeout(seconds):
            return self._result.get()


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
            _library.plain_os.write(self._writer, b"w")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            _library.plain_os.read(self._reader, 65536)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def take_over(connection: Any) -> Any:
    """Return a non-blocking plain socket on the connection of the current request, which its WSGI server gives up.

    The application must call start_response() and return an empty body: a server that still answers finds the
    connection reset.
    """
    taken = _wsgi.take_over(connection)
    with contextlib.suppress(OSError):  # a Unix socket has no TCP_NODELAY
        taken.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return taken


def resolve(host: str) -> list[str]:
    """Return the addresses of ``host``; the system's resolver runs in an OS thread. Raises OSError."""
    # The unpatched resolver: eventlet's own supports neither nsswitch nor search domains.
    found = _library.call_in_thread(_socket.getaddrinfo, host, None, 0, _socket.SOCK_STREAM)
    return list(dict.fromkeys(entry[4][0] for entry in found))


def fetch(url: str, seconds: float, max_bytes: int) -> bytes:
    """Send a GET request and return the body. Raises OSError, also after ``seconds`` or over ``max_bytes``."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    try:
        # The outer timeout limits the whole request: the inner one starts anew with each read.
        with timeout(seconds), _library.urlopen(request, seconds) as answer:
            body: bytes = answer.read(max_bytes + 1)
    except TimedOut as error:
        raise OSError(str(error)) from None
    except OSError as error:
        if hasattr(error, "close"):  # HTTPError, of which eventlet has a copy
            error.close()
        raise
    except Exception as error:  # HTTPException, of which eventlet has a copy
        raise OSError(f"not an HTTP response: {error!r}") from error
    if len(body) > max_bytes:
        raise OSError(f"the response is larger than {max_bytes} bytes")
    return body
