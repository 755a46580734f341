"""Waiting in asyncio without losing a cancellation, which :func:`asyncio.wait_for` does before Python 3.12."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Changes:
    """Wakes the tasks that wait for a condition, as :class:`threading.Condition` wakes threads. One event loop."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify_all(self) -> None:
        """Let all waiting tasks check their conditions."""
        for waiting in self._waiting:
            _finish(waiting)

    async def wait_for(self, condition: Callable[[], object], seconds: float) -> bool:
        """Wait until ``condition()`` is true, for at most ``seconds``; return whether it is."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            waiting = loop.create_future()
            timer = loop.call_at(deadline, _finish, waiting)
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                timer.cancel()
                self._waiting.discard(waiting)
            if loop.time() >= deadline:
                return bool(condition())
        return True


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``. Raises :class:`TimeoutError` after ``seconds``; cancels ``work`` then."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if not done:
        raise TimeoutError
    return task.result()


def _finish(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
