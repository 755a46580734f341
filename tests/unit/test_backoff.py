"""Backoff: doubling, the longest pause, jitter, reset."""

import pytest

from socketio_pg.core.backoff import Backoff


def test_pauses_double_up_to_the_maximum() -> None:
    backoff = Backoff(0.1, 0.5, jitter=0.0)
    assert [backoff.next() for _ in range(5)] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


def test_reset_goes_back_to_the_first_pause() -> None:
    backoff = Backoff(1.0, 8.0, jitter=0.0)
    assert [backoff.next() for _ in range(3)] == [1.0, 2.0, 4.0]
    backoff.reset()
    assert [backoff.next() for _ in range(2)] == [1.0, 2.0]


def test_maximum_limits_the_first_pause() -> None:
    backoff = Backoff(5.0, 2.0, jitter=0.0)
    assert [backoff.next() for _ in range(2)] == [2.0, 2.0]
    backoff.reset()
    assert backoff.next() == 2.0


def test_jitter_shortens_pauses_independently() -> None:
    firsts, thirds = set(), set()
    for _ in range(200):
        backoff = Backoff(1.0, 4.0)
        first, second, third, fourth = [backoff.next() for _ in range(4)]
        assert 0.5 <= first <= 1.0
        assert 1.0 <= second <= 2.0
        assert 2.0 <= third <= 4.0
        assert 2.0 <= fourth <= 4.0
        firsts.add(first)
        thirds.add(third)
    assert len(firsts) > 100
    assert len(thirds) > 100


def test_zero_means_no_pause() -> None:
    backoff = Backoff(0.0, 0.0)
    assert [backoff.next() for _ in range(3)] == [0.0, 0.0, 0.0]


def test_many_attempts_do_not_overflow() -> None:
    backoff = Backoff(0.1, 30.0, jitter=0.0)
    assert [backoff.next() for _ in range(5000)][-1] == 30.0
