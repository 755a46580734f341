"""Row-level-security policies that are slow, wait for locks, or lose their connection."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Slow
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseTimeoutError, DatabaseUnavailableError
from tests.support.patience import PATIENCE
from tests.support.policies import PolicyDatabase, locked, outcomes, question

# -- slow policies -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def policy_with(policies: Policies, database: PolicyDatabase, room: str, case: str) -> Iterator[None]:
    """A policy for the body that runs ``case``, a part of an SQL CASE, and allows nothing else."""
    database.sql(
        f"""CREATE POLICY "{room}" ON socketio_pg.messages FOR SELECT TO authenticated USING (
            CASE WHEN {case} IS NOT NULL ELSE false END)"""
    )
    try:
        yield
    finally:
        policies.stop()  # an open transaction of a failed test would block the DROP for ever
        database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


@pytest.fixture
def slow_room(policies: Policies, database: PolicyDatabase, room: str) -> Iterator[str]:
    with policy_with(policies, database, room, f"channel = '{room}' THEN pg_sleep({PATIENCE:g})"):
        yield room


@pytest.mark.serial
def test_slow_policy_times_out_and_barely_delays_others(policies: Policies, slow_room: str) -> None:
    policies._timeout = 1.5
    others = [question("subscribe", "kitchen", f"user{number}") for number in range(30)]
    alice = question("subscribe", "kitchen")
    began = time.monotonic()
    slow, *rest = outcomes(policies, question("subscribe", slow_room), alice, *others)
    assert isinstance(slow, DatabaseTimeoutError)
    assert rest == [True] + [False] * 30
    assert time.monotonic() - began < 1.5 * policies.patience + 5
    # From now on questions about that channel take the slow lane, and delay no others.
    done: list[Any] = []
    thread = green.spawn(lambda: done.extend(outcomes(policies, question("subscribe", slow_room))))
    green.sleep()
    assert policies.ask(alice) is True
    assert done == []
    thread.wait()
    # The table's policy for publishing is not slow.
    assert policies.ask(question("publish", "kitchen")) is True


def test_many_short_decisions_are_not_taken_for_a_slow_one(
    policies: Policies, database: PolicyDatabase, room: str
) -> None:
    """50 of them in a row take longer than the timeout of one."""
    policies._timeout = 2.0
    with policy_with(policies, database, room, f"channel = '{room}' THEN pg_sleep(0.05)"):
        asked = [question("subscribe", room, str(number)) for number in range(100)]
        assert outcomes(policies, *asked) == [True] * 100
        assert question("subscribe", room) not in policies._slow


@pytest.mark.serial
def test_client_with_many_slow_channels_is_isolated(policies: Policies, database: PolicyDatabase, room: str) -> None:
    policies._timeout = 0.6
    with policy_with(policies, database, room, f"starts_with(channel, '{room}') THEN pg_sleep(10)"):
        for number in range(Slow.times):
            [error] = outcomes(policies, question("subscribe", f"{room}-{number}", "mallory"))
            assert isinstance(error, DatabaseTimeoutError)
        attack = green.spawn(
            lambda: outcomes(policies, *(question("subscribe", f"{room}-new-{n}", "mallory") for n in range(20)))
        )
        green.sleep()
        for number in range(5):
            began = time.monotonic()
            assert policies.ask(question("subscribe", "kitchen")) is True
            assert time.monotonic() - began < 0.5, number
        attack.wait()


def test_flood_by_one_client_does_not_delay_others(policies: Policies, database: PolicyDatabase) -> None:
    flood = [green.spawn(policies.ask, question("subscribe", f"c{number}", "mallory")) for number in range(5000)]
    green.sleep()
    assert policies._lane.size > 4800
    assert policies.ask(question("subscribe", "kitchen")) is True
    # It was answered in one of the next batches. Meanwhile the other connections go on; how far depends on the machine.
    assert policies._lane.size > 1000
    for thread in flood:
        thread.wait()


@pytest.mark.serial
def test_many_slow_questions_do_not_block_others(policies: Policies, slow_room: str) -> None:
    policies._timeout = 0.3
    outcomes(policies, question("subscribe", slow_room))
    answers: list[Any] = []
    slow = green.spawn(
        lambda: answers.extend(outcomes(policies, *(question("subscribe", slow_room, str(n)) for n in range(50))))
    )
    green.sleep(0.05)
    for _ in range(5):
        assert policies.ask(question("subscribe", "kitchen")) is True
    assert answers == []
    slow.wait()
    assert [type(answer) for answer in answers] == [DatabaseTimeoutError] * 50


@pytest.mark.serial
def test_questions_time_out_while_all_connections_are_busy(policies: Policies, database: PolicyDatabase) -> None:
    """A migration locks the table that the policies read, which exhausts the pool."""
    policies._timeout = 0.3
    with locked(database, "LOCK TABLE members"):
        asked = [question("subscribe", "kitchen", f"u{number}") for number in range(300)]
        began = time.monotonic()
        found = outcomes(policies, *asked)
        assert {type(answer) for answer in found} == {DatabaseTimeoutError}
        assert time.monotonic() - began < 0.3 * policies.patience + 10
        sessions = "SELECT pid FROM pg_stat_activity WHERE usename = 'web' AND datname = current_database()"
        assert len(database.sql(sessions)) <= policies.connections
    policies._slow = Slow()
    policies._timeout = 2.0
    assert policies.ask(question("subscribe", "kitchen")) is True


def test_full_queue_refuses_questions(policies: Policies) -> None:
    policies.queue_size = 10
    found = outcomes(policies, *(question("subscribe", "kitchen", str(number)) for number in range(30)))
    assert [type(answer) for answer in found].count(DatabaseUnavailableError) == 20
    assert policies.ask(question("subscribe", "kitchen")) is True


# -- connections -------------------------------------------------------------------------------------------------------


def test_lost_idle_connections_are_replaced(policies: Policies, database: PolicyDatabase) -> None:
    for _ in range(3):
        assert policies.ask(question("subscribe", "kitchen")) is True
        database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'web'")


def test_connection_lost_during_a_decision_is_an_error(
    policies: Policies, database: PolicyDatabase, slow_room: str
) -> None:
    policies._timeout = PATIENCE
    assert policies.ask(question("subscribe", "kitchen")) is True
    found: list[Any] = []
    thread = green.spawn(lambda: found.extend(outcomes(policies, question("subscribe", slow_room))))

    killed: list[int] = []

    def kill() -> bool:
        # A backend that was told to end is there for a while.
        rows = database.sql(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'web' AND datname = current_database() AND wait_event = 'PgSleep' AND pid <> ALL (%s)",
            killed,
        )
        killed.extend(pid for pid, _ in rows)
        return bool(rows)

    for _ in range(2):  # an idle connection is replaced once, its replacement is not
        with green.timeout(PATIENCE):
            while not kill():
                green.sleep(0.01)
    thread.wait()
    assert [type(answer) for answer in found] == [DatabaseUnavailableError]
    assert policies.ask(question("subscribe", "kitchen")) is True


def test_stop_fails_all_waiting_questions(policies: Policies, database: PolicyDatabase, slow_room: str) -> None:
    policies._timeout = PATIENCE
    found: list[Any] = []
    thread = green.spawn(
        lambda: found.extend(outcomes(policies, *(question("subscribe", slow_room, str(n)) for n in range(200))))
    )
    deciding = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE usename = 'web' AND datname = current_database() AND wait_event = 'PgSleep'"
    )
    with green.timeout(PATIENCE):
        while not database.sql(deciding):
            green.sleep(0.01)
    policies.stop()
    database.sql(f"SELECT pg_terminate_backend(pid) FROM ({deciding}) AS left_behind")
    thread.wait()
    assert {type(answer) for answer in found} == {DatabaseUnavailableError}
    assert policies._lane.busy == policies._slow_lane.busy == 0
