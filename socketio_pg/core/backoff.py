"""Pauses before another attempt."""

import random


def spread(delays: tuple[float, float], attempt: int) -> float:
    """Seconds before another attempt: doubled each time, and spread, so that many do not come back all at once."""
    return min(delays[1], delays[0] * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0)
