"""Finds threads and green threads that a module's tests leave running in the test process."""

import gc
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

from socketio_pg.core import green
from tests.support.patience import PATIENCE


def running() -> set[object]:
    """Return the threads and green threads that are running."""
    # The hub itself and Playwright's greenlets have another parent.
    hub = _hub()
    threads = [found for found in gc.get_objects() if isinstance(found, greenlet) and found.parent is hub]
    alive: list[object] = [*threading.enumerate(), *(found for found in threads if not found.dead)]
    return {found for found in alive if not _does_nothing(found)}


def left_since(before: set[object], seconds: float = PATIENCE) -> list[str]:
    """Return descriptions of what runs, did not run ``before``, and does not end within ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        left = running() - before
        if not left or time.monotonic() > deadline:
            return [_described(found) for found in left]
        threads = [found for found in left if isinstance(found, threading.Thread)]
        if threads:
            threads[0].join(0.1)
        if len(threads) < len(left):
            green.sleep(0.01)  # green threads end only while the hub runs


def _hub() -> greenlet:
    """Return the hub, which is the parent of all green threads."""
    parents: list[greenlet] = []
    thread = green.spawn(lambda: parents.append(getcurrent().parent))
    thread.wait()
    return parents[0]


def _does_nothing(found: object) -> bool:
    """Return whether this is a thread of eventlet's or gevent's own pool, or an idle worker of a thread pool."""
    frames = _stack(found)
    return bool(frames) and (
        frames[0].name == "tpool_trampoline"
        or (frames[-1].name, Path(frames[-1].filename).parts[-3:])
        == ("_worker", ("concurrent", "futures", "thread.py"))
    )


def _described(found: object) -> str:
    return f"{found}\n{''.join(_stack(found).format()) or 'not started'}"


def _stack(found: object) -> traceback.StackSummary:
    """Return the stack, outermost frame first; empty if it has not started."""
    frame: FrameType | None
    frame = sys._current_frames().get(found.ident or 0) if isinstance(found, threading.Thread) else found.gr_frame  # type: ignore[attr-defined]
    return traceback.StackSummary() if frame is None else traceback.extract_stack(frame)
