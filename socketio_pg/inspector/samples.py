"""The last ten minutes of one process, as samples of five seconds. Pure, no I/O."""

from collections import deque
from collections.abc import Sequence

#: Seconds of a sample, and their number.
INTERVAL, COUNT = 5.0, 120
#: What a sample has. Rates are per second; p50 and p99 are raw latencies.
NAMES = (
    "messages_in", "bytes_in", "messages_out", "bytes_out", "published", "clients", "subscriptions", "live_tables",
    "p50", "p99", "loop_lag", "outbox_age", "replays", "replayed", "cpu",
)  # fmt: skip
#: How the values of several processes become one; the others are added.
HIGHEST = frozenset({"loop_lag", "outbox_age", "p99"})
LATENCIES = ("p50", "p99")
#: Decimal places.
_PLACES = {"p50": 5, "p99": 5, "loop_lag": 5, "outbox_age": 3, "cpu": 4}

#: A value of a series: None where there is none.
Value = float | None
Sample = Sequence[Value]


def slot(at: float) -> int:
    """Return the number of the sample that a time is in, the same in all processes."""
    return int(at // INTERVAL)


class Samples:
    """The samples by their slot."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, Sample]] = deque(maxlen=COUNT)

    def add(self, number: int, sample: Sample) -> None:
        """Add the sample of a slot. A clock that was set back must not leave two of one."""
        while self._samples and self._samples[-1][0] >= number:
            self._samples.pop()
        self._samples.append((number, sample))

    def series(self, last: int, offset: Value) -> dict[str, list[Value]]:
        """Return each series up to the slot ``last``. ``offset``: what is added to raw latencies; None: not known."""
        found: dict[str, list[Value]] = {name: [None] * COUNT for name in NAMES}
        for number, sample in self._samples:
            place = number - last + COUNT - 1
            if 0 <= place < COUNT:
                for name, value in zip(NAMES, sample, strict=True):
                    if value is not None and name in LATENCIES:
                        value = None if offset is None else max(0.0, value + offset)
                    found[name][place] = value if value is None else rounded(name, value)
        return found


def rounded(name: str, value: float) -> float:
    """Return a value with as many decimal places as say something."""
    return round(value, _PLACES.get(name, 1))


def merge(name: str, values: Sequence[Value], weights: Sequence[float]) -> Value:
    """Return the value of all processes: the sum, the highest, or for p50 the median, weighted by messages."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    if not known:
        return None
    if name in HIGHEST:
        return max(value for value, _ in known)
    if name != "p50":
        return rounded(name, sum(value for value, _ in known))
    total, passed = sum(weight for _, weight in known), 0.0
    for value, weight in sorted(known):
        passed += weight
        if passed >= total / 2:
            return value
    return known[-1][0]
