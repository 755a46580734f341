"""socketio_pg.limits and idle: buckets, clients, addresses."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from socketio_pg.core.config import Settings
from socketio_pg.core.errors import FilterTooExpensiveError, RateLimitedError, TooManySubscriptionsError
from socketio_pg.gateway.limits import AddressLimits, Bucket, ClientLimits, RequestLimits
from socketio_pg.workers.counts import FILE_NAME
from socketio_pg.workers.local_counts import Counts, LocalCounts
from tests.support.counting import joined


def count(take: Callable[[], object], error: type[Exception] = RateLimitedError) -> int:
    """Return how often ``take`` succeeds."""
    for number in range(100_000):
        try:
            if take() is False:
                return number
        except error:
            return number
    raise AssertionError("there is no limit")


def test_bucket_refills_at_its_rate(clock: Callable[[float], None]) -> None:
    bucket = Bucket(10, 50)
    assert bucket.is_full()
    assert count(bucket.take) == 50
    assert not bucket.is_full()
    clock(1)
    assert count(bucket.take) == 10
    clock(0.0625)
    assert not bucket.take()
    clock(0.0625)
    assert bucket.take()
    clock(1000)
    assert bucket.is_full()
    assert count(bucket.take) == 50


def test_cost_above_the_capacity_needs_a_full_bucket(clock: Callable[[float], None]) -> None:
    bucket = Bucket(10, 50)
    assert bucket.take(1000)
    clock(94)
    assert not bucket.take(1)
    clock(2)
    assert bucket.take(1)


def test_bucket_in_debt(clock: Callable[[float], None]) -> None:
    bucket = Bucket(10, 50)
    assert bucket.spend(50)
    assert not bucket.spend(1)
    clock(0.25)
    assert bucket.spend(0)
    assert not bucket.spend(10**9)
    clock(4.75)
    assert not bucket.spend(0), "a burst is the largest debt"
    clock(0.5)
    assert bucket.spend(0)


def test_cost_of_filters_is_limited_per_client(clock: Callable[[float], None]) -> None:
    limits = ClientLimits(Settings(max_filter_milliseconds_per_second=10))
    limits.check_filters(4_000, 262_144)
    assert limits.spend_on_filters("a", 20_000_000)
    limits.check_new_filter("a")
    assert not limits.spend_on_filters("a", 1)
    with pytest.raises(FilterTooExpensiveError, match="retry later"):
        limits.check_new_filter("a")
    limits.check_new_filter("b")
    clock(5)
    limits.check_new_filter("a")
    for conditions, characters in ((4_001, 1), (1, 262_145)):
        with pytest.raises(FilterTooExpensiveError, match="in all its channels"):
            limits.check_filters(conditions, characters)
    unlimited = ClientLimits(Settings(max_filter_milliseconds_per_second=0))
    assert unlimited.spend_on_filters("a", 10**12)


def test_event_rate_is_limited_per_client(clock: Callable[[float], None]) -> None:
    limits = ClientLimits(Settings(max_events_per_second=10))
    assert count(lambda: limits.check_event("a", 1)) == 50
    clock(1)
    assert count(lambda: limits.check_event("a", 1)) == 10
    # Other clients are not affected.
    assert count(lambda: limits.check_event("b", 1)) == 50
    limits.drop("a")
    assert count(lambda: limits.check_event("a", 1)) == 50
    limits.drop("nobody")


def test_client_that_ignores_the_limit_is_cut_off(clock: Callable[[float], None]) -> None:
    limits = ClientLimits(Settings(max_events_per_second=10))
    cut_off = []
    for _ in range(200):
        try:
            limits.check_event("a", 1)
        except RateLimitedError as error:
            cut_off.append(error.cut_off)
    assert cut_off == [False] * 50 + [True] * 100


def test_byte_rate_is_limited_per_client(clock: Callable[[float], None]) -> None:
    limits = ClientLimits(Settings(max_event_bytes_per_second=1000, max_payload=20_000))
    # The first payload may always have the maximum size.
    limits.check_event("a", 20_100)
    with pytest.raises(RateLimitedError):
        limits.check_event("a", 1)
    clock(1.125)
    limits.check_event("a", 1000)
    limits.check_event("b", 100)


def test_seconds_until_tokens_are_available(clock: Callable[[float], None]) -> None:
    bucket = Bucket(10, 50)
    assert bucket.seconds_until(50) == 0
    bucket.take(50)
    assert bucket.seconds_until() == pytest.approx(0.1)
    assert bucket.seconds_until(1000) == pytest.approx(5)
    clock(2)
    assert bucket.seconds_until(30) == pytest.approx(1)
    assert bucket.seconds_until(20) == 0


def test_batches_count_as_their_number_of_events(clock: Callable[[float], None]) -> None:
    limits = RequestLimits(Settings(max_events_per_second=10))
    limits.check_event("a", 1)
    limits.check_together("a", 50)
    clock(2)
    for _ in range(3):  # a refused request costs nothing
        limits.check_event("a", 1)
        with pytest.raises(RateLimitedError) as raised:
            limits.check_together("a", 30)
        assert raised.value.retry_after == pytest.approx(1)
    clock(1)
    limits.check_event("a", 1)
    limits.check_together("a", 30)
    with pytest.raises(RateLimitedError):
        limits.check_event("a", 1)


def test_oldest_http_clients_are_forgotten(clock: Callable[[float], None]) -> None:
    limits = RequestLimits(Settings(max_events_per_second=10))
    limits.max_clients = 3
    for who in "abcd":
        assert count(functools.partial(limits.check_event, who, 1)) == 50
        limits.check_together("nobody", 1)
    assert set(limits._clients) == set("bcd")
    with pytest.raises(RateLimitedError):
        limits.check_event("b", 1)
    limits.check_event("e", 1)
    # The one that was heard of longest ago.
    assert set(limits._clients) == set("dbe")


def test_number_of_subscriptions_is_limited() -> None:
    limits = ClientLimits(Settings(max_subscriptions=3))
    limits.check_subscriptions(2)
    with pytest.raises(TooManySubscriptionsError, match="3 channels"):
        limits.check_subscriptions(3)


def test_zero_disables_limits() -> None:
    limits = ClientLimits(Settings(max_events_per_second=0, max_event_bytes_per_second=0, max_subscriptions=0))
    for _ in range(10_000):
        limits.check_event("a", 10**9)
        limits.check_subscriptions(10**9)
    assert limits._clients == {}


@pytest.fixture(params=["one process", "a node"])
def counts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Counts]:
    if request.param == "one process":
        yield LocalCounts()
        return
    shared = joined(tmp_path / FILE_NAME, 0)
    yield shared
    shared.leave()


def test_connections_per_address_are_limited(counts: Counts) -> None:
    limits = AddressLimits(Settings(max_connections_per_address=2), counts)
    for _ in range(2):
        assert limits.open("a") is None
    assert limits.open("a") == ("address_connections", "too many connections from this address")
    assert limits.open("b") is None
    limits.closed("a", pending=True)
    assert limits.open("a") is None
    for _ in range(4):  # more than were opened
        limits.closed("a", pending=True)
    assert count(lambda: limits.open("a") is None) == 2


def test_pending_connections_per_public_address_are_limited(counts: Counts) -> None:
    limits = AddressLimits(Settings(max_pending_per_address=2), counts)
    for address in ("203.0.113.1", "10.0.0.1"):
        for _ in range(2):
            assert limits.open(address) is None
    assert limits.open("203.0.113.1") == ("address_pending", "too many clients of this address are not admitted yet")
    assert limits.open("10.0.0.1") is None, "perhaps a proxy, with many clients"
    limits.joined("203.0.113.1")
    assert count(lambda: limits.open("203.0.113.1") is None) == 1
    limits.closed("203.0.113.1", pending=False)
    assert limits.open("203.0.113.1") is not None
    limits.closed("203.0.113.1", pending=True)
    assert limits.open("203.0.113.1") is None


def test_refused_tokens_per_public_address_are_limited(counts: Counts, clock: Callable[[float], None]) -> None:
    limits = AddressLimits(Settings(max_failed_attempts_per_second_per_address=2), counts)
    for address, most in (("203.0.113.1", 10), ("192.168.1.1", 1000)):
        for _ in range(most):
            assert limits.may_try(address)
            limits.failed(address)
    assert not limits.may_try("203.0.113.1")
    assert limits.may_try("203.0.113.2")
    clock(1)
    assert limits.may_try("203.0.113.1")


def test_attempts_per_address_are_limited(counts: Counts, clock: Callable[[float], None]) -> None:
    limits = AddressLimits(Settings(max_attempts_per_second_per_address=2), counts)
    assert count(lambda: limits.open("a") is None) == 10
    assert limits.open("a") == ("address_attempts", "too many attempts to connect from this address")
    assert limits.open("b") is None
    clock(1)
    assert count(lambda: limits.open("a") is None) == 2


def test_zero_disables_limits_of_addresses(counts: Counts) -> None:
    limits = AddressLimits(Settings(max_pending_per_address=0, max_failed_attempts_per_second_per_address=0), counts)
    for _ in range(1000):
        assert limits.open("203.0.113.1") is None
        limits.failed("203.0.113.1")
        assert limits.may_try("203.0.113.1")
