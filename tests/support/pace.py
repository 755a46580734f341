"""How fast the machine is at the moment: for bounds in CPU seconds, which depend on it even when nobody else runs."""

import time

#: CPU seconds of :func:`_work` on the machine for which the bounds of the tests are.
_USUAL = 0.05


def slowness() -> float:
    """Return how many times slower this machine is at the moment than the usual one; 1 if it is as fast, or faster.

    The processors of shared machines have been four times slower than an hour before.
    """
    began = time.process_time()
    _work()
    return max(1.0, (time.process_time() - began) / _USUAL)


def _work() -> int:
    total = 0
    for number in range(1_000_000):
        total += number
    return total
