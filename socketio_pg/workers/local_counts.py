"""Counts of connections and attempts in one process: the only worker of its node. Pure, apart from the clock."""

import time
from collections import OrderedDict
from typing import Final, Literal, Protocol, TypeAlias

#: Token buckets of an address: attempts to connect or authenticate; refused tokens and logins.
ATTEMPTS: Final = 0
FAILURES: Final = 1
#: Totals of a node: clients of the engine; messages of clients that were not connected to a namespace, being handled.
CLIENTS: Final = 0
LOGINS: Final = 1
#: Remembered addresses without an open connection; the least useful ones are forgotten first.
MAX_ADDRESSES = 100_000
#: The size of a token bucket, in nanoseconds of its rate.
BURST = 5_000_000_000

#: The limit that another connection of an address would exceed.
Exceeded: TypeAlias = Literal["connections", "pending"]


class Counts(Protocol):
    """Counts of connections and attempts, of one process or of all workers of a node. Each method is an atomic step."""

    def take(self, bucket: int, address: str, rate: float) -> bool:
        """Take a token of :data:`ATTEMPTS` or :data:`FAILURES`; return False when there is none.

        The bucket gains ``rate`` tokens a second, up to those of :data:`BURST`, and starts full.
        """
        ...

    def may_take(self, bucket: int, address: str, rate: float) -> bool:
        """Return whether there is a token."""
        ...

    def open(self, address: str, most: int, most_pending: int) -> Exceeded | None:
        """Count an open connection, which is pending until :meth:`admit`, and return None.

        Count nothing and return the limit when there would be more than ``most`` connections, or more than
        ``most_pending`` pending ones. 0: no limit.
        """
        ...

    def admit(self, address: str) -> None:
        """Count a pending connection as admitted."""
        ...

    def close(self, address: str, *, pending: bool) -> None:
        """Count a closed connection; ``pending``: it had not been admitted."""
        ...

    def grow(self, total: int, own: int, most: int) -> bool:
        """Set this process's part of :data:`CLIENTS` or :data:`LOGINS` to ``own`` and return True.

        Change nothing and return False when all parts together would be more than ``most``.
        """
        ...

    def put(self, total: int, own: int) -> None:
        """Set this process's part of a total."""
        ...

    def sum(self, total: int) -> int:
        """Return all parts of a total together."""
        ...

    @property
    def workers(self) -> int:
        """The number of processes that count."""
        ...


class LocalCounts:
    """The :class:`Counts` of one process, in dictionaries."""

    max_addresses = MAX_ADDRESSES
    workers = 1

    def __init__(self) -> None:
        self._connections: dict[str, int] = {}
        self._pending: dict[str, int] = {}
        #: Address → the time at which its bucket will be full; the least recent address first.
        self._buckets: tuple[OrderedDict[str, int], ...] = (OrderedDict(), OrderedDict())
        self._totals = [0, 0]

    def take(self, bucket: int, address: str, rate: float) -> bool:
        now, buckets = now_ns(), self._buckets[bucket]
        full_at = buckets.pop(address, None)
        if full_at is None:
            full_at = 0
            while buckets:
                oldest = next(iter(buckets))
                if len(buckets) < self.max_addresses and buckets[oldest] > now:
                    break
                del buckets[oldest]
        taken = full_again(full_at, now, rate)
        buckets[address] = full_at if taken is None else taken
        return taken is not None

    def may_take(self, bucket: int, address: str, rate: float) -> bool:
        return full_again(self._buckets[bucket].get(address, 0), now_ns(), rate) is not None

    def open(self, address: str, most: int, most_pending: int) -> Exceeded | None:
        if most and self._connections.get(address, 0) >= most:
            return "connections"
        if most_pending and self._pending.get(address, 0) >= most_pending:
            return "pending"
        _add(self._connections, address, 1)
        _add(self._pending, address, 1)
        return None

    def admit(self, address: str) -> None:
        _add(self._pending, address, -1)

    def close(self, address: str, *, pending: bool) -> None:
        _add(self._connections, address, -1)
        if pending:
            _add(self._pending, address, -1)

    def grow(self, total: int, own: int, most: int) -> bool:
        if own > most:
            return False
        self._totals[total] = own
        return True

    def put(self, total: int, own: int) -> None:
        self._totals[total] = own

    def sum(self, total: int) -> int:
        return self._totals[total]


def now_ns() -> int:
    """Return the time in nanoseconds by the monotonic clock, which all processes of a machine share."""
    return int(time.monotonic() * 1e9)


def full_again(full_at: int, now: int, rate: float) -> int | None:
    """Return the time at which a bucket will be full after a token is taken; None when there is no token.

    ``full_at`` is the time at which it would be full otherwise. Times are nanoseconds. One number describes a bucket,
    so that processes can store it in one step.
    """
    taken = max(full_at, now) + int(1e9 / rate)
    return taken if taken <= now + BURST else None


def _add(counts: dict[str, int], address: str, number: int) -> None:
    left = counts.get(address, 0) + number
    if left > 0:
        counts[address] = left
    else:
        counts.pop(address, None)
