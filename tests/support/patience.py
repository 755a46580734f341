"""How long tests wait for what must come."""

import time
from collections.abc import Callable

#: Seconds: what comes is taken at once, and a busy machine may stand still for some of them.
PATIENCE = 30.0


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for ``condition``, which asks another process and so can only be asked again. ``what`` it is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
