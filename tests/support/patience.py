"""The timeout of tests for events that must happen."""

import time
from collections.abc import Callable

#: Seconds. Generous, because a busy machine may stall; tests continue as soon as the event happens: it costs time only
#: when a test fails.
PATIENCE = 90.0


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Poll ``condition``, which depends on another process, until it holds. ``what`` describes it in the error."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
