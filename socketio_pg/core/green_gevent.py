"""Green threads on gevent: the names that `green` needs of a library. `green_eventlet` has the same ones."""

import contextvars
import http.client
import logging
import os
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.hub
import gevent.lock
import gevent.monkey
import gevent.queue
import gevent.select
import gevent.socket
import gevent.ssl

from socketio_pg.core import green_library

logger = logging.getLogger("socketio_pg.green")

# gevent raises KeyboardInterrupt in the main green thread, but prints it first.
gevent.hub.Hub.NOT_ERROR = (*gevent.hub.Hub.NOT_ERROR, KeyboardInterrupt)

NAME = "gevent"
Queue = gevent.queue.Queue
QueueEmpty = gevent.queue.Empty
Lock = gevent.lock.Semaphore
#: The library's own time-out, which is not an Exception.
Timeout = gevent.Timeout
#: Raises the returned time-out in the current green thread after some seconds, unless its cancel() is called.
start_timeout: Callable[[float], Any] = gevent.Timeout.start_new

# gevent replaces neither os.read() nor os.write(); its sockets wrap the standard library's in `_sock`.
plain_os: Any = os


class _PlainSockets:
    """The standard library's socket module, with the classes and functions that gevent replaces as they were."""

    def __getattr__(self, name: str) -> Any:
        return gevent.monkey.get_original("socket", name)


plain_socket: Any = _PlainSockets()


def patch() -> None:
    """Make the standard library's functions wait in green threads."""
    # A worker of gunicorn is patched before it imports the application, gunicorn's master is not (--preload).
    is_master = green_library.of_worker_class() is not None and not is_patched()
    gevent.monkey.patch_all()
    if is_master:
        # gevent calls handlers of SIGCHLD in its event loop, which the master does not run: it would not start another
        # worker when one has ended.
        for module, names in ((os, ("fork", "waitpid")), (signal, ("signal", "getsignal"))):
            for name in names:
                setattr(module, name, gevent.monkey.get_original(module.__name__, name))
        os.register_at_fork(after_in_child=_patch_processes)


def _patch_processes() -> None:
    gevent.monkey.patch_os()
    gevent.monkey.patch_signal()


def is_patched() -> bool:
    """Return whether the library has patched the standard library's functions that wait for descriptors."""
    return bool(gevent.monkey.is_module_patched("select"))


class _GreenThread(gevent.Greenlet):  # type: ignore[misc]
    """A green thread with the methods that eventlet's has."""

    wait = gevent.Greenlet.get

    def kill(self, exception: Any = gevent.GreenletExit, block: bool = True, timeout: float | None = None) -> None:
        """Run the thread's ``finally`` blocks until one of them waits, like eventlet. gevent waits for their end."""
        super().kill(exception, block=False)
        gevent.sleep()


def spawn(function: Callable[..., object], *args: object) -> Any:
    """Run ``function`` in a green thread, and return that."""
    thread = _GreenThread(function, *args)
    # gevent copies the context variables, and with them a request of Flask, which would live as long as the thread.
    thread.gr_context = contextvars.Context()
    thread.start()
    return thread


def spawn_raw(function: Callable[..., object], *args: object) -> None:
    """Run ``function`` in a green thread that nobody can wait for."""
    gevent.spawn_raw(function, *args)


def current() -> Any:
    """Return the current green thread."""
    return gevent.getcurrent()


def sleep(seconds: float = 0.0) -> None:
    """Yield to other green threads, and to the callbacks of ready descriptors, for at least ``seconds``."""
    if seconds > 0:
        gevent.sleep(seconds)
        return
    # gevent.sleep(0) lets other green threads run, but for some milliseconds no callbacks of descriptors. The loop
    # polls for those before a timer ends, and calls them first if the timer has a lower priority.
    hub = gevent.get_hub()
    with hub.loop.timer(1e-9, priority=hub.loop.MINPRI) as timer:
        hub.loop.update_now()
        hub.wait(timer)
    gevent.sleep()  # after all green threads that are ready, also those that these callbacks have woken


def call_later(seconds: float, callback: Callable[[], object]) -> None:
    """Let the hub call ``callback`` after ``seconds``."""
    timer = gevent.get_hub().loop.timer(seconds)

    def fire() -> None:
        timer.close()
        callback()

    timer.start(fire)


def call_in_thread(function: Callable[..., Any], *args: object) -> Any:
    """Call ``function`` in a thread of the operating system, and return its result."""

    def call() -> tuple[Any, Exception | None]:
        try:
            return function(*args), None
        except Exception as error:
            return None, error

    # gevent would print the traceback of an exception that ends the call.
    result, error = gevent.get_hub().threadpool.apply(call)
    if error is not None:
        raise error
    return result


class Result:
    """A result that green threads wait for."""

    def __init__(self) -> None:
        self._result = gevent.event.AsyncResult()
        self.ready: Callable[[], bool] = self._result.ready
        self.set: Callable[[object], None] = self._result.set
        self.get: Callable[[], Any] = self._result.get


def select(descriptors: list[Any], seconds: float) -> list[Any]:
    """Wait up to ``seconds`` and return the readable ``descriptors``: objects with ``fileno()``, also above 1,023."""
    # gevent.select.select() begins with the system's, which refuses descriptors above 1,023.
    poll = gevent.select.poll()
    found = {descriptor.fileno(): descriptor for descriptor in descriptors}
    for descriptor in found:
        poll.register(descriptor, gevent.select.POLLIN)
    return [found[descriptor] for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)]


def wait_readable(descriptor: int) -> None:
    """Wait until ``descriptor`` is readable."""
    gevent.socket.wait_read(descriptor)


def wait_writable(descriptor: int) -> None:
    """Wait until ``descriptor`` is writable."""
    gevent.socket.wait_write(descriptor)


class _Connection(http.client.HTTPConnection):
    """A connection of `urllib` that waits in green threads although the process may not be patched."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = gevent.socket.create_connection


class _SecureConnection(http.client.HTTPSConnection):
    """The same with TLS."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = gevent.socket.create_connection


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: Any) -> Any:
        return self.do_open(_Connection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: Any) -> Any:
        return self.do_open(_SecureConnection, request, context=gevent.ssl.create_default_context())


def urlopen(request: Any, seconds: float) -> Any:
    """Send a request of `urllib`; ``seconds`` is the limit of each wait."""
    return urllib.request.build_opener(_Handler, _SecureHandler).open(request, timeout=seconds)


#: Events of libev.
READ, WRITE = 1, 2


class Readiness:
    """Calls functions from the hub when a descriptor is readable or writable. They must not wait.

    A function may be called once more after it was stopped: another callback may have stopped it in the same round.
    :meth:`close` must come before the descriptor is closed.
    """

    __slots__ = ("_descriptor", "_reader", "_writer")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._reader = gevent.get_hub().loop.io(descriptor, READ)
        self._writer: Any = None  # most connections never need it

    def start_reading(self, callback: Callable[..., object]) -> None:
        """Call ``callback`` whenever the descriptor is readable, with or without arguments, until it is stopped."""
        self._reader.start(callback)

    def start_writing(self, callback: Callable[..., object]) -> None:
        """Call ``callback`` whenever the descriptor is writable, with or without arguments, until it is stopped."""
        if self._writer is None:
            self._writer = gevent.get_hub().loop.io(self._descriptor, WRITE)
        self._writer.start(callback)

    def stop_reading(self) -> None:
        """Undo :meth:`start_reading`. Idempotent."""
        self._reader.stop()

    def stop_writing(self) -> None:
        """Undo :meth:`start_writing`. Idempotent."""
        if self._writer is not None:
            self._writer.stop()

    def close(self) -> None:
        """Stop both, for good."""
        for watcher in (self._reader, self._writer):
            if watcher is not None:
                watcher.stop()
                watcher.close()
