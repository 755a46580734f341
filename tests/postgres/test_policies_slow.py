"""Row-level-security policies that take long, are locked, or lose their connection."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Slow
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseTimeoutError, DatabaseUnavailableError
from tests.support.policies import PolicyDatabase, locked, outcomes, question


# -- policies that take long ---------------------------------------------------------------------------------------
@pytest.fixture
def slow_room(database: PolicyDatabase, room: str) -> Iterator[str]:
    database.sql(
        f"""CREATE POLICY "{room}" ON socketio_pg.messages FOR SELECT TO authenticated USING (
            CASE WHEN channel = '{room}' THEN pg_sleep(10) IS NOT NULL ELSE false END)"""
    )
    yield room
    database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


def test_a_slow_policy_is_a_no_in_time_and_costs_the_others_little(policies: Policies, slow_room: str) -> None:
    policies._timeout = 0.5
    others = [question("subscribe", "kitchen", f"user{number}") for number in range(30)]
    alice = question("subscribe", "kitchen")
    began = time.monotonic()
    slow, *rest = outcomes(policies, question("subscribe", slow_room), alice, *others)
    assert isinstance(slow, DatabaseTimeoutError)
    assert rest == [True] + [False] * 30
    assert time.monotonic() - began < 0.5 * policies.patience + 1
    # From now on that channel has its own way, and nobody waits for it at all.
    done: list[Any] = []
    thread = green.spawn(lambda: done.extend(outcomes(policies, question("subscribe", slow_room))))
    green.sleep()
    assert policies.ask(alice) is True
    assert done == []
    thread.wait()
    # Another policy of the same table is not slow.
    assert policies.ask(question("publish", "kitchen")) is True


def test_many_decisions_that_take_a_while_are_not_one_that_takes_long(
    policies: Policies, database: PolicyDatabase, room: str
) -> None:
    """50 of them together take longer than one may."""
    policies._timeout = 1.0
    database.sql(
        f"""CREATE POLICY "{room}" ON socketio_pg.messages FOR SELECT TO authenticated USING (
            CASE WHEN channel = '{room}' THEN pg_sleep(0.03) IS NOT NULL ELSE false END)"""
    )
    try:
        asked = [question("subscribe", room, str(number)) for number in range(100)]
        assert outcomes(policies, *asked) == [True] * 100
        assert question("subscribe", room) not in policies._slow
    finally:
        database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


def test_one_who_finds_new_slow_channels_is_kept_apart(policies: Policies, database: PolicyDatabase, room: str) -> None:
    policies._timeout = 0.3
    database.sql(
        f"""CREATE POLICY "{room}" ON socketio_pg.messages FOR SELECT TO authenticated USING (
            CASE WHEN starts_with(channel, '{room}') THEN pg_sleep(10) IS NOT NULL ELSE false END)"""
    )
    try:
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
            assert time.monotonic() - began < 0.25, number
        attack.wait()
    finally:
        database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


def test_a_flood_of_one_client_does_not_make_others_wait(policies: Policies, database: PolicyDatabase) -> None:
    flood = [green.spawn(policies.ask, question("subscribe", f"c{number}", "mallory")) for number in range(5000)]
    green.sleep()
    assert policies._lane.size > 4800
    assert policies.ask(question("subscribe", "kitchen")) is True
    # It came in one of the next batches.
    assert policies._lane.size > 4500
    for thread in flood:
        thread.wait()


def test_many_slow_ones_do_not_stop_the_rest(policies: Policies, slow_room: str) -> None:
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


def test_when_all_connections_are_busy_the_answer_is_no_answer(policies: Policies, database: PolicyDatabase) -> None:
    """The pool is exhausted: a migration holds the table that the policies look at."""
    policies._timeout = 0.3
    with locked(database, "LOCK TABLE members"):
        asked = [question("subscribe", "kitchen", f"u{number}") for number in range(300)]
        began = time.monotonic()
        found = outcomes(policies, *asked)
        assert {type(answer) for answer in found} == {DatabaseTimeoutError}
        assert time.monotonic() - began < 0.3 * policies.patience + 2
        assert len(database.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'web'")) <= policies.connections
    policies._slow = Slow()
    policies._timeout = 2.0
    assert policies.ask(question("subscribe", "kitchen")) is True


def test_no_more_wait_than_there_is_room_for(policies: Policies) -> None:
    policies.queue_size = 10
    found = outcomes(policies, *(question("subscribe", "kitchen", str(number)) for number in range(30)))
    assert [type(answer) for answer in found].count(DatabaseUnavailableError) == 20
    assert policies.ask(question("subscribe", "kitchen")) is True


# -- connections -------------------------------------------------------------------------------------------------------
def test_connections_that_died_while_idle_are_replaced(policies: Policies, database: PolicyDatabase) -> None:
    for _ in range(3):
        assert policies.ask(question("subscribe", "kitchen")) is True
        database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'web'")


def test_a_connection_killed_in_the_middle_of_a_decision(
    policies: Policies, database: PolicyDatabase, slow_room: str
) -> None:
    policies._timeout = 5.0
    assert policies.ask(question("subscribe", "kitchen")) is True
    found: list[Any] = []
    thread = green.spawn(lambda: found.extend(outcomes(policies, question("subscribe", slow_room))))

    def kill() -> int:
        rows = database.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'web' AND wait_event = 'PgSleep'"
        )
        return len(rows)

    for _ in range(2):  # the one that was idle is replaced once; the new one is not
        with green.timeout(10):
            while not kill():
                green.sleep(0.01)
    thread.wait()
    assert [type(answer) for answer in found] == [DatabaseUnavailableError]
    assert policies.ask(question("subscribe", "kitchen")) is True


def test_nobody_waits_for_one_who_has_stopped(policies: Policies, slow_room: str) -> None:
    found: list[Any] = []
    thread = green.spawn(
        lambda: found.extend(outcomes(policies, *(question("subscribe", slow_room, str(n)) for n in range(200))))
    )
    green.sleep(0.1)
    policies.stop()
    thread.wait()
    assert {type(answer) for answer in found} == {DatabaseUnavailableError}
    assert policies._lane.busy == policies._slow_lane.busy == 0
