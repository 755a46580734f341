"""Green threads on eventlet: the names that `green` needs of a library. `green_gevent` has the same ones."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

with warnings.catch_warnings():
    # eventlet warns that it is deprecated: see docs/deploy.md on pinned libraries.
    warnings.simplefilter("ignore")
    import eventlet
    import eventlet.event
    import eventlet.green.select
    import eventlet.green.urllib.request
    import eventlet.hubs
    import eventlet.patcher
    import eventlet.queue
    import eventlet.semaphore
    import eventlet.tpool


logger = logging.getLogger("socketio_pg.green")

NAME = "eventlet"
Queue = eventlet.queue.Queue
QueueEmpty = eventlet.queue.Empty
Lock = eventlet.semaphore.Semaphore
#: The library's own time-out, which is not an Exception.
Timeout = eventlet.Timeout
#: Raises the returned time-out in the current green thread after some seconds, unless its cancel() is called.
start_timeout: Callable[[float], Any] = eventlet.Timeout

# The unpatched modules. The patched functions wait for the descriptor even when it is non-blocking, and two green
# threads must not wait for the same descriptor.
plain_os: Any = eventlet.patcher.original("os")
plain_socket: Any = eventlet.patcher.original("socket")


def patch() -> None:
    """Make the standard library's functions wait in green threads."""
    eventlet.monkey_patch()


def is_patched() -> bool:
    """Return whether the library has patched the standard library's functions that wait for descriptors."""
    return bool(eventlet.patcher.is_monkey_patched("select"))


def spawn(function: Callable[..., object], *args: object) -> Any:
    """Run ``function`` in a green thread, and return that."""
    return eventlet.spawn(function, *args)


def spawn_raw(function: Callable[..., object], *args: object) -> None:
    """Run ``function`` in a green thread that nobody can wait for."""
    eventlet.spawn_n(function, *args)


def current() -> Any:
    """Return the current green thread."""
    return eventlet.getcurrent()


def sleep(seconds: float = 0.0) -> None:
    """Yield to other green threads, and to the callbacks of ready descriptors, for at least ``seconds``."""
    eventlet.sleep(seconds)


def call_later(seconds: float, callback: Callable[[], object]) -> None:
    """Let the hub call ``callback`` after ``seconds``."""
    eventlet.hubs.get_hub().schedule_call_global(seconds, callback)


def call_in_thread(function: Callable[..., Any], *args: object) -> Any:
    """Call ``function`` in a thread of the operating system, and return its result."""
    return eventlet.tpool.execute(function, *args)


class Result:
    """A result that green threads wait for."""

    def __init__(self) -> None:
        self._event = eventlet.event.Event()
        self.ready: Callable[[], bool] = self._event.ready
        self.set: Callable[[object], None] = self._event.send
        self.get: Callable[[], Any] = self._event.wait


def select(descriptors: list[Any], seconds: float) -> list[Any]:
    """Wait up to ``seconds`` and return the readable ``descriptors``: objects with ``fileno()``, also above 1,023."""
    readable, _, _ = eventlet.green.select.select(descriptors, [], [], max(0.0, seconds))
    return list(readable)


def wait_readable(descriptor: int) -> None:
    """Wait until ``descriptor`` is readable."""
    eventlet.hubs.trampoline(descriptor, read=True)


def wait_writable(descriptor: int) -> None:
    """Wait until ``descriptor`` is writable."""
    eventlet.hubs.trampoline(descriptor, write=True)


def urlopen(request: Any, seconds: float) -> Any:
    """Send a request of `urllib`; ``seconds`` is the limit of each wait."""
    return eventlet.green.urllib.request.urlopen(request, timeout=seconds)


class Readiness:
    """Calls functions from the hub when a descriptor is readable or writable. They must not wait.

    A function may be called once more after it was stopped: another callback may have stopped it in the same round.
    :meth:`close` must come before the descriptor is closed.
    """

    __slots__ = ("_descriptor", "_reading", "_writing")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._reading: Any = None
        self._writing: Any = None

    def start_reading(self, callback: Callable[..., object]) -> None:
        """Call ``callback`` whenever the descriptor is readable, with or without arguments, until it is stopped."""
        hub = eventlet.hubs.get_hub()
        self._reading = self._add(hub, hub.READ, callback)

    def start_writing(self, callback: Callable[..., object]) -> None:
        """Call ``callback`` whenever the descriptor is writable, with or without arguments, until it is stopped."""
        hub = eventlet.hubs.get_hub()
        self._writing = self._add(hub, hub.WRITE, callback)

    def _add(self, hub: Any, kind: str, callback: Callable[..., object]) -> Any:
        listener = hub.add(kind, self._descriptor, callback, _ignore, _ignore)
        # Otherwise the listener would keep the request's green thread alive, with its stack.
        listener.greenlet = hub.greenlet
        return listener

    def stop_reading(self) -> None:
        """Undo :meth:`start_reading`. Idempotent."""
        found, self._reading = self._reading, None
        if found is not None:
            eventlet.hubs.get_hub().remove(found)

    def stop_writing(self) -> None:
        """Undo :meth:`start_writing`. Idempotent."""
        found, self._writing = self._writing, None
        if found is not None:
            eventlet.hubs.get_hub().remove(found)

    def close(self) -> None:
        """Stop both, for good."""
        self.stop_reading()
        self.stop_writing()


def _ignore(*_: object) -> None:
    """Do nothing: a callback of the hub for descriptors that are closed elsewhere, which never happens to these."""
