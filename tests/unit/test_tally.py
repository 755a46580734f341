"""Counting messages while somebody looks: rates, their windows, and the bounds of memory."""

import pytest

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.pubsub.tally import Tally


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally(clock: Clock) -> Tally:
    return Tally(clock)


def message(channel: str = "news", payload: str = '"é"', position: int | None = None) -> EncodedMessage:
    return EncodedMessage(channel, payload, position)


def test_rates_are_averages_over_two_windows(tally: Tally, clock: Clock) -> None:
    assert not tally.active
    tally.look()
    assert tally.active
    tally.count([message(), message(position=7)])
    first = tally.of("news")
    assert first is not None
    assert (first.messages_in, first.bytes_in) == (None, None)
    assert (first.last_bytes, first.position) == (4, 7)
    clock.now += 2
    found = tally.of("news")
    assert found is not None
    assert (found.messages_in, found.bytes_in) == (1.0, 4.0)
    clock.now += 4  # 6 s: the first window counts fully
    tally.count([message()])
    found = tally.of("news")
    assert found is not None
    assert found.messages_in == pytest.approx(3 / 6)
    clock.now += 5  # 11 s: only from the beginning of the second window on
    assert dict(tally.all())["news"].messages_in == pytest.approx(1 / 6)
    clock.now += 5
    found = tally.of("news")
    assert found is not None
    assert (found.messages_in, found.position) == (0.0, None)
    assert tally.of("other") is None
    assert tally.seconds() == 16


def test_counting_ends_when_nobody_looks(tally: Tally, clock: Clock) -> None:
    tally.look()
    tally.count([message()])
    clock.now += tally.linger - 1
    tally.look()
    clock.now += tally.linger - 1
    assert tally.of("news") is not None
    clock.now += 2
    assert (tally.seconds(), tally.of("news"), list(tally.all())) == (0.0, None, [])
    tally.count([message()])
    assert (tally.active, len(tally)) == (False, 0)
    tally.look()
    assert (tally.seconds(), len(tally)) == (0.0, 0)


def test_memory_is_bounded(tally: Tally, clock: Clock) -> None:
    tally.max_channels = 10
    tally.look()
    tally.count([message(f"c{n}") for n in range(50)])
    assert len(tally) == 10
    clock.now += tally.window * 2
    tally.count([message("c49")])
    assert [name for name, _ in tally.all()] == ["c49"]
