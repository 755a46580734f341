"""socketio_pg.workers.local_counts: counts of one process. `test_counts` compares it with those of several."""

from collections.abc import Callable

from socketio_pg.workers.local_counts import ATTEMPTS, CLIENTS, FAILURES, LOGINS, LocalCounts, full_again


def test_token_bucket_refills_at_its_rate() -> None:
    second, taken = 10**9, 0
    full_at: int | None = 0
    while (found := full_again(full_at or 0, 100 * second, 3)) is not None:
        full_at, taken = found, taken + 1
    assert taken == 15, "five seconds' worth"
    assert full_again(full_at or 0, 100 * second + second // 2, 3) is not None
    assert full_again(full_at or 0, 100 * second + second // 4, 3) is None


def test_number_of_remembered_addresses_is_limited(clock: Callable[[float], None]) -> None:
    counts = LocalCounts()
    counts.max_addresses = 100
    for number in range(1000):
        assert counts.take(ATTEMPTS, str(number), 2)
    assert len(counts._buckets[ATTEMPTS]) == 100
    assert not counts._buckets[FAILURES]
    clock(10)
    counts.take(ATTEMPTS, "a", 2)
    # Full buckets are removed.
    assert list(counts._buckets[ATTEMPTS]) == ["a"]


def test_closed_connections_leave_nothing_behind() -> None:
    counts = LocalCounts()
    for address in "aab":
        assert counts.open(address, 2, 0) is None
    counts.admit("a")
    assert (counts._connections, counts._pending) == ({"a": 2, "b": 1}, {"a": 1, "b": 1})
    for address, pending in (("a", False), ("a", True), ("b", True), ("b", True)):
        counts.close(address, pending=pending)
    assert counts._connections == counts._pending == {}


def test_totals() -> None:
    counts = LocalCounts()
    assert counts.grow(CLIENTS, 3, 3)
    assert not counts.grow(CLIENTS, 4, 3)
    counts.put(LOGINS, 7)
    assert (counts.sum(CLIENTS), counts.sum(LOGINS), counts.workers) == (3, 7, 1)
