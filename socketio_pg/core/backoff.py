"""Pauses between attempts. Pure: green threads and operating-system threads use it alike."""

import random


class Backoff:
    """The pause before each retry: ``first`` seconds, doubled every time up to ``longest``.

    ``jitter`` is the largest part of a pause that is taken off at random, so that processes which failed together do
    not retry together.
    """

    def __init__(self, first: float, longest: float, jitter: float = 0.5) -> None:
        self._first = min(first, longest)
        self._longest = longest
        self._jitter = jitter
        self._pause = self._first

    def next(self) -> float:
        """Return the seconds to wait before the next attempt; doubles the pause after that."""
        pause, self._pause = self._pause, min(self._pause * 2.0, self._longest)
        return pause * random.uniform(1.0 - self._jitter, 1.0)

    def reset(self) -> None:
        """Go back to the first pause, after a success."""
        self._pause = self._first
