"""The positions of published messages, for publishers that wait for them."""

import time

import pytest

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage, Position, from_log
from socketio_pg.log.places import Places
from socketio_pg.log.recent import Recent
from tests.support.patience import PATIENCE


class Numbered:
    """A log of one node: :meth:`append` delivers the next messages."""

    def __init__(self) -> None:
        self.recent = Recent()
        self.places = Places(self.recent)
        self.places.reset("e")
        self.position = 0

    def append(self, *ids: int | None) -> None:
        batch: list[EncodedMessage] = []
        for outbox_id in ids:
            self.position += 1
            batch.append(from_log(self.position, "a", "2026", "0", outbox_id))
        self.recent.append(batch)
        self.places.note(batch)

    def wait(self, *ids: int, seconds: float = 0.0) -> list[int | None]:
        return [place and place["position"] for place in self.places.wait(ids, seconds)]


class Waiter:
    """Waits for positions in a green thread."""

    def __init__(self, log: Numbered, *ids: int) -> None:
        self._found: list[int | None] = []
        self._thread = green.spawn(lambda: self._found.extend(log.wait(*ids, seconds=PATIENCE)))
        green.sleep()

    def result(self) -> list[int | None]:
        self._thread.wait()
        return self._found


def at(position: int, epoch: str = "e") -> Position:
    return Position(epoch=epoch, position=position)


def test_messages_that_arrived_before_the_question_are_found() -> None:
    log = Numbered()
    log.append(7, None, 5)
    log.append(9)
    assert log.places.wait([9, 5, 7], 0) == [at(4), at(3), at(1)]
    log.append(11)
    assert log.wait(5, 11, 12) == [3, 5, None]


def test_waiters_get_their_positions_when_the_last_message_arrives() -> None:
    log = Numbered()
    waiters = [Waiter(log, *ids) for ids in ((3, 1), (1,), (2, 2))]
    log.append(1)
    assert waiters[1].result() == [1]
    log.append(8, 2)
    log.append(3)
    assert [waiter.result() for waiter in waiters] == [[4, 1], [1], [3, 3]]
    assert not log.places._waiting


def test_waiting_ends_with_the_time_and_with_the_epoch() -> None:
    log = Numbered()
    log.append(1)
    began = time.monotonic()
    assert log.wait(1, 2, seconds=0.01) == [1, None]
    assert time.monotonic() - began >= 0.01
    assert not log.places._waiting
    waiter = Waiter(log, 1, 2)
    log.places.reset("f")
    # Ids of another epoch may be those of other messages.
    assert waiter.result() == [None, None]
    log.recent.reset(0)
    log.append(2)
    assert log.places.wait([2], 0) == [at(2, "f")]


def test_message_that_was_published_long_ago_is_not_waited_for() -> None:
    log = Numbered()
    log.append(7)
    # If it was published a moment ago, it still arrives.
    assert log.places.wait([5, 7], PATIENCE, {5, 7}) == [None, at(1)]
    waiter = Waiter(log, 8)
    assert log.places.wait([8], 0.01, {8}) == [None]
    log.append(8)
    assert waiter.result() == [2]


def test_a_relay_of_an_older_version_is_not_waited_for() -> None:
    """During an upgrade each publisher would otherwise wait for the whole time."""
    log = Numbered()
    waiter = Waiter(log, 1)
    log.append(None)
    assert waiter.result() == [None]
    assert log.wait(2, seconds=PATIENCE) == [None]
    log.append(3)
    waiter = Waiter(log, 4)
    log.append(4)
    assert waiter.result() == [3]


def test_without_a_log_nothing_is_waited_for() -> None:
    log = Numbered()
    log.places.reset(None)
    assert log.wait(1, seconds=PATIENCE) == [None]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "look_at", 10)
    monkeypatch.setattr(Places, "remembered", 15)
    log = Numbered()
    log.append(*range(1, 101))
    assert log.wait(90, 91, 100) == [None, 91, 100]
    log.append(*range(101, 109))
    assert log.wait(92, 94, 108) == [None, 94, 108]
