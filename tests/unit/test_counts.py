"""socketio_pg.workers.counts: counts of several processes, which are killed and suspended in the middle of changes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.workers import counts as module
from socketio_pg.workers.counts import FILE_NAME, SharedCounts
from socketio_pg.workers.local_counts import ATTEMPTS, CLIENTS, FAILURES, LOGINS, LocalCounts
from tests.support.counting import ADDRESSES, begin, check_alone, joined, worker
from tests.support.patience import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


@pytest.fixture
def counts(path: Path) -> Iterator[SharedCounts]:
    counts = joined(path, 0)
    yield counts
    counts.leave()


@pytest.mark.parametrize(
    ("action", "most"), [("count_connections", 400), ("count_pending", 3 * len(ADDRESSES)), ("count_clients", 400)]
)
def test_limit_is_exact_when_several_processes_reach_it_together(path: Path, action: str, most: int) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(path, slot, action, green)) for slot, green in enumerate(LIBRARIES)]
        for each in workers:
            begin(each)
        assert sum(int(each.stdout.readline()) for each in workers) == most


#: Of the four workers, those on a patched standard library.
LIBRARIES = ("", "", "eventlet", "gevent")


def test_processes_share_token_buckets(path: Path) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(path, slot, "count_attempts")) for slot in range(3)]
        began = time.monotonic()
        for each in workers:
            begin(each)
        taken = sum(int(each.stdout.readline()) for each in workers)
        assert 100 <= taken <= 100 + 20 * (time.monotonic() - began) + 1


def test_killed_processes_leave_no_counts_and_no_lock(path: Path) -> None:
    with worker(path, 0, "kill_others") as process:
        begin(process)
        assert process.stdout.readline() == "50\n"


def test_counts_of_a_dead_process_are_cleared_when_a_limit_is_reached(path: Path, counts: SharedCounts) -> None:
    with worker(path, 1, "count_connections") as process:
        begin(process)
        assert process.stdout.readline() == "400\n"
        assert counts.open("192.0.2.1", 400, 0) == "connections"
        assert not counts.forget(1), "it lives"
        assert counts.workers == 2
    deadline = time.monotonic() + PATIENCE
    while counts.open("192.0.2.1", 400, 0) is not None:  # it searches now and then
        assert time.monotonic() < deadline
    counts.close("192.0.2.1", pending=True)
    check_alone(counts)


def test_successor_does_not_inherit_counts(path: Path, counts: SharedCounts) -> None:
    for _ in range(2):
        with worker(path, 1, "count_connections") as process:
            begin(process)
            assert process.stdout.readline() == "400\n"
    assert counts.forget(1)
    assert not counts.forget(1)
    check_alone(counts)


def test_slot_of_a_living_process_is_not_available(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLAIM", 0.01)
    with worker(path, 3, "count_connections"), pytest.raises(RuntimeError, match="slot 3 belongs to another process"):
        joined(path, 3)
    joined(path, 3).leave()


def test_suspended_process_loses_the_lock(path: Path, counts: SharedCounts) -> None:
    with worker(path, 1, "be_stopped") as process:
        begin(process)
        assert process.stdout.readline() == "locked\n"
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        first = counts._words[module._LOCK]
        for address in ADDRESSES:
            assert counts.open(address, 1, 0) is None
            assert counts.open(address, 1, 0) == "connections"
        assert counts._words[module._LOCK] == first + 1, "only the first one waits"
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == "2\n", "it begins again, with the new lock"
    assert counts.forget(1)
    check_alone(counts)


@pytest.fixture
def small(counts: SharedCounts, monkeypatch: pytest.MonkeyPatch) -> SharedCounts:
    """Counts whose addresses have only one window."""
    place = counts._place
    monkeypatch.setattr(counts, "_place", lambda address: (place(address)[0], 0))
    return counts


def test_connections_survive_a_full_table(small: SharedCounts) -> None:
    assert small.open("first", 1, 0) is None
    assert small.take(FAILURES, "first", 1)
    for number in range(1000):
        assert small.take(ATTEMPTS, str(number), 1)
    keys = [key for key in small._keys.tolist() if key]
    assert len(keys) == len(set(keys)) == module.WINDOW
    assert small.open("first", 1, 0) == "connections"
    small.close("first", pending=True)
    check_alone(small)


def test_fullest_buckets_are_forgotten_first(small: SharedCounts, clock: Callable[[float], None]) -> None:
    clock(10)
    for number in range(module.WINDOW):
        small.take((ATTEMPTS, FAILURES)[number % 2], str(number), 1)
        clock(0.5)
    for _ in range(3):
        small.take(ATTEMPTS, "0", 1)
    remembered = {str(number) for number in range(10, module.WINDOW)}
    for number in range(9):
        small.take(ATTEMPTS, f"new {number}", 10)
    assert remembered <= {address for address in map(str, range(module.WINDOW)) if small._find(address) >= 0}
    assert small._find("new 8") >= 0


def test_new_row_has_full_buckets(small: SharedCounts, clock: Callable[[float], None]) -> None:
    for number in range(10 * module.WINDOW):
        assert sum(small.take(FAILURES, str(number), 1) for _ in range(6)) == 5


def test_addresses_beyond_a_full_table_are_counted_by_each_worker(small: SharedCounts) -> None:
    for number in range(module.WINDOW + 1):
        assert small.open(str(number), 1, 1) is None
    last = str(module.WINDOW)
    assert small._find(last) == -1
    assert small.open(last, 1, 0) == "connections"
    assert small.open(last, 0, 1) == "pending"
    assert small.take(ATTEMPTS, last, 1)
    small.admit(last)
    assert small.open(last, 0, 1) is None
    small.close("0", pending=True)
    small.close(last, pending=True)
    assert small.open(last, 1, 0) == "connections"
    small.close(last, pending=False)
    assert small.open(last, 1, 0) is None
    assert small._find(last) >= 0, "the row of a closed connection"
    assert small._find("0") == -1


def test_address_is_found_among_similar_keys(counts: SharedCounts) -> None:
    key, first = counts._place("a")
    assert counts._find("a") == -1
    place = 8 * (module._HEADER + first)
    counts._map[place + 4 : place + 12] = key  # across two rows
    assert counts._find("a") == -1
    counts._map[place + 8 * 5 : place + 8 * 6] = key
    assert counts._find("a") == first + 5


def test_file_is_private_and_sparse(path: Path, counts: SharedCounts) -> None:
    found = path.stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_blocks * 512 < 6_000_000 < found.st_size


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"):
        joined(tmp_path / "link", 0)


# -- the same as one process -------------------------------------------------------------------------------------------

SLOTS = st.integers(0, 2)
ADDRESS = st.sampled_from("abc")
MOST = st.integers(0, 4)
STEP = st.one_of(
    st.tuples(st.just("open"), SLOTS, ADDRESS, MOST, MOST),
    st.tuples(st.just("admit"), SLOTS, ADDRESS),
    st.tuples(st.just("close"), SLOTS, ADDRESS, st.booleans()),
    st.tuples(st.just("take"), SLOTS, ADDRESS, st.sampled_from([ATTEMPTS, FAILURES]), st.sampled_from([1, 3, 7])),
    st.tuples(st.just("grow"), SLOTS, st.sampled_from([CLIENTS, LOGINS]), st.integers(0, 300), st.integers(0, 300)),
    st.tuples(st.just("put"), SLOTS, st.sampled_from([CLIENTS, LOGINS]), st.integers(0, 300)),
    st.tuples(st.just("die"), SLOTS),
    st.tuples(st.just("clock"), st.floats(0, 3)),
)


@given(st.lists(STEP, max_size=60))
def test_several_workers_count_like_one_process(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    now = 1000.0
    path = tmp_path_factory.mktemp("counts") / FILE_NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now)
        # A process has no lock against itself, and would take its other objects for those of dead processes.
        patch.setattr(SharedCounts, "_forget_dead", lambda self: False)
        workers = [joined(path, slot) for slot in range(3)]
        local = LocalCounts()
        parts = {total: [0, 0, 0] for total in (CLIENTS, LOGINS)}
        for name, *arguments in steps:
            if name == "clock":
                now += arguments[0]
                continue
            slot, *rest = arguments
            own = workers[slot]
            if name == "open":
                assert own.open(*rest) == local.open(*rest)
            elif name == "take":
                address, bucket, rate = rest
                assert own.may_take(bucket, address, rate) == local.may_take(bucket, address, rate)
                assert own.take(bucket, address, rate) == local.take(bucket, address, rate)
            elif name == "admit" and _pending(own, rest[0]):
                own.admit(rest[0])
                local.admit(rest[0])
            elif name == "close" and rest[0] in own._mine:
                # One that is pending, or one that is not.
                pending = _pending(own, rest[0]) > 0 and (
                    rest[1] or _connections(own, rest[0]) == _pending(own, rest[0])
                )
                own.close(rest[0], pending=pending)
                local.close(rest[0], pending=pending)
            elif name == "put":
                parts[rest[0]][slot] = rest[1]
                own.put(*rest)
            elif name == "grow":
                total, wanted, most = rest
                fits = sum(parts[total]) - parts[total][slot] + wanted <= most
                assert own.grow(*rest) == fits
                if fits:
                    parts[total][slot] = wanted
            elif name == "die":
                for address in list(own._mine):
                    for _ in range(_pending(own, address)):
                        local.close(address, pending=True)
                    for _ in range(_connections(own, address) - _pending(own, address)):
                        local.close(address, pending=False)
                parts = {
                    total: [0 if of == slot else part for of, part in enumerate(each)] for total, each in parts.items()
                }
                assert workers[(slot + 1) % 3].forget(slot)
                workers[slot] = joined(path, slot)
            assert {total: workers[0].sum(total) for total in parts} == {
                total: sum(each) for total, each in parts.items()
            }
            assert own.workers == 3
        for each in workers:
            each.leave()


def _connections(counts: SharedCounts, address: str) -> int:
    return counts._mine.get(address, (0, 0))[1] >> 32


def _pending(counts: SharedCounts, address: str) -> int:
    return counts._mine.get(address, (0, 0))[1] & 0xFFFFFFFF
