"""workers/loads: the load of each worker, with the connections on their way to it."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketio_pg.workers import loads
from socketio_pg.workers.loads import Loads
from tests.support.patience import PATIENCE, until

ALL = range(3)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loads, "fresh", PATIENCE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loads") / "loads"
    Loads(made).create()
    return made


_numbers = itertools.count()


def join(path: Path, slot: int) -> Loads:
    """Return the loads of a new worker in this slot."""
    made = Loads(path)
    made.join(slot, hashlib.blake2s(b"%d" % next(_numbers), digest_size=4).digest())
    return made


@pytest.fixture
def workers(path: Path) -> list[Loads]:
    return [join(path, slot) for slot in ALL]


def test_a_passed_connection_counts_until_its_session_is_told(workers: list[Loads]) -> None:
    one, other, watching = workers
    other.tell(7)
    pair = one.passing(1)
    assert watching.of(ALL, ALL) == {0: 0, 1: 8, 2: 0}
    other.tell(6)  # it has not arrived yet, and another session has ended
    assert watching.of(ALL, ALL) == {0: 0, 1: 7, 2: 0}
    other.received(0, pair)
    assert watching.of(ALL, ALL) == {0: 0, 1: 7, 2: 0}
    other.tell(7)
    assert watching.of(ALL, ALL) == {0: 0, 1: 7, 2: 0}


def test_a_connection_that_could_not_be_passed_is_taken_back(workers: list[Loads]) -> None:
    one, _, watching = workers
    pair = one.passing(1)
    one.passing(1)
    one.take_back(1, pair)
    assert watching.of(ALL, ALL)[1] == 1


def test_a_successor_begins_with_no_connections(path: Path, workers: list[Loads]) -> None:
    one, _, watching = workers
    pair = one.passing(1)
    successor = join(path, 1)
    assert watching.of(ALL, ALL)[1] == 0
    one.take_back(1, pair)  # which was passed to the predecessor
    successor.received(0, pair)
    successor.tell(0)
    assert watching.of(ALL, ALL)[1] == 0
    new = one.passing(1)
    assert watching.of(ALL, ALL)[1] == 1
    successor.received(0, new)
    one.take_back(1, pair)
    successor.tell(1)
    assert watching.of(ALL, ALL)[1] == 1


def test_connections_that_a_worker_had_passed_before_it_ended_do_not_count(path: Path, workers: list[Loads]) -> None:
    one, other, watching = workers
    pair = one.passing(1)
    assert watching.of(ALL, [1, 2])[1] == 0  # it has ended
    successor = join(path, 0)
    assert watching.of(ALL, ALL)[1] == 0
    new = successor.passing(1)
    other.received(0, pair)  # it had been sent
    other.tell(1)
    assert watching.of(ALL, ALL)[1] == 2
    other.received(0, new)
    other.tell(2)
    assert watching.of(ALL, ALL)[1] == 2


def test_counts_begin_again_after_the_last_number(workers: list[Loads], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "_COUNT", 3)
    one, other, watching = workers
    for number in range(20):
        pairs = [one.passing(1) for _ in range(3)]
        assert watching.of(ALL, ALL)[1] == number + 3
        one.take_back(1, pairs[0])
        for pair in pairs[1:]:
            other.received(0, pair)
        other.tell(number + 1)
        assert watching.of(ALL, ALL)[1] == number + 1


def test_a_worker_that_wants_no_more_is_left_out(workers: list[Loads]) -> None:
    one, other, _ = workers
    other.tell(None)
    one.passing(1)
    assert one.of(ALL, ALL) == {0: 0, 2: 0}
    assert one.of([1], ALL) == {}


def test_a_worker_that_no_longer_tells_its_load_is_left_out(
    workers: list[Loads], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, _ = workers
    monkeypatch.setattr(Loads, "fresh", 0.05)
    until(lambda: one.of([0, 1], ALL) == {0: 0}, "the load of the other one is too old")
    one.passing(1)
    assert one.of([0, 1], ALL) == {0: 0}
    monkeypatch.setattr(Loads, "fresh", PATIENCE)
    other.tell(7)
    assert one.of([0, 1], ALL) == {0: 0, 1: 8}


def test_all_slots_can_be_used(path: Path) -> None:
    last = join(path, loads.MAX_WORKERS - 1)
    first = join(path, 0)
    slots = [0, loads.MAX_WORKERS - 1]
    for one, other in ((last, 0), (first, slots[1])):
        for _ in range(other + 1):
            one.passing(other)
    assert first.of(slots, slots) == {0: 1, slots[1]: slots[1] + 1}
    first.wanted = 5
    assert (last.wanted, first.of(slots, slots)) == (5, {0: 1, slots[1]: slots[1] + 1})
    last.tell(None)


class Model:
    """Workers with sessions, and the connections on their way between them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.workers = [join(path, slot) for slot in ALL]
        self.sessions = [0] * len(ALL)
        #: By sender and receiver: the pair of each connection.
        self.on_the_way: dict[tuple[int, int], list[int]] = defaultdict(list)

    def do(self, choose: Callable[[int], int]) -> None:
        one, other = (first := choose(3)), (first + 1 + choose(2)) % 3
        waiting = self.on_the_way[one, other]
        step = choose(6)
        if step == 0:
            self.on_the_way[one, other].append(self.workers[one].passing(other))
        elif step == 1 and waiting:
            self.workers[other].received(one, waiting.pop(choose(len(waiting))))
            self.sessions[other] += choose(2)
        elif step == 2 and waiting:
            self.workers[one].take_back(other, waiting.pop(choose(len(waiting))))
        elif step == 3:
            self.sessions[one] = max(0, self.sessions[one] + choose(3) - 1)
        elif step == 4:
            self.workers[one].tell(self.sessions[one])
        elif step == 5 and choose(4) == 0:
            self.workers[one] = join(self.path, one)
            self.sessions[one] = 0
            for (sender, receiver), found in self.on_the_way.items():
                if sender == one:  # some may arrive, none is taken back
                    self.on_the_way[sender, receiver] = []
                    for pair in found[: choose(len(found) + 1)]:
                        self.workers[receiver].received(sender, pair)
                        self.sessions[receiver] += 1
                elif receiver == one:  # none arrives, some are taken back
                    self.on_the_way[sender, receiver] = []
                    for pair in found[: choose(len(found) + 1)]:
                        self.workers[sender].take_back(receiver, pair)

    def loads(self) -> dict[int, int]:
        return {
            slot: self.sessions[slot] + sum(len(self.on_the_way[sender, slot]) for sender in ALL if sender != slot)
            for slot in ALL
        }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_loads_are_exact_once_all_workers_have_told_theirs(path: Path, data: st.DataObject) -> None:
    model = Model(path)
    for _ in range(data.draw(st.integers(0, 40))):
        model.do(lambda number: data.draw(st.integers(0, number - 1)))
    for worker, sessions in zip(model.workers, model.sessions, strict=True):
        worker.tell(sessions)
    for worker in model.workers:
        assert worker.of(ALL, ALL) == model.loads()
