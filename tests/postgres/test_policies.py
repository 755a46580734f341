"""Row-level-security policies on a real database: what they decide, and what goes wrong with them."""

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest

from socketio_pg import green, schema
from socketio_pg.complaints import Complaints
from socketio_pg.database import Database
from socketio_pg.errors import DatabaseError, DatabaseTimeoutError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.policies import Policies
from socketio_pg.questions import Action, Question, Slow
from tests.support.policies import PolicyDatabase
from tests.support.postgres import Cluster


@pytest.fixture(scope="module")
def database(postgres: Cluster) -> PolicyDatabase:
    made = PolicyDatabase(postgres, "policies")
    made.join("alice", "kitchen", writes=True)
    made.join("bob", "kitchen")
    return made


@pytest.fixture
def policies(database: PolicyDatabase) -> Iterator[Policies]:
    callback = psycopg2.extensions.get_wait_callback()
    made = Policies(Database(database.server_url), 2.0)
    yield made
    made.stop()
    psycopg2.extensions.set_wait_callback(callback)


@pytest.fixture
def room() -> str:
    return f"room-{uuid.uuid4().hex[:12]}"


def question(action: Action, channel: str, sub: str = "alice", role: str = "authenticated", **claims: Any) -> Question:
    return Question(action, role, json.dumps({"sub": sub, "role": role} | claims), channel)


def nothing_is_left(database: PolicyDatabase) -> bool:
    return database.sql("SELECT count(*) FROM socketio_pg.messages") == [(0,)]


@pytest.mark.parametrize(
    ("sub", "role", "channel", "subscribe", "publish"),
    [
        ("alice", "authenticated", "kitchen", True, True),
        ("bob", "authenticated", "kitchen", True, False),
        ("carol", "authenticated", "kitchen", False, False),
        ("alice", "authenticated", "bedroom", False, False),
        ("alice", "authenticated", "user:alice", True, False),
        ("bob", "authenticated", "user:alice", False, False),
        ("alice", "anon", "kitchen", False, False),
        ("alice", "anon", "lobby", True, False),
        ("carol", "authenticated", "lobby", True, False),
        ("alice", "service_role", "anything", True, True),
        ("alice", "not_granted", "lobby", False, False),
        ("alice", "postgres", "lobby", False, False),
        ("alice", "web", "lobby", False, False),
        ("alice", "nobody_has_this_name", "lobby", False, False),
        ("alice", "none", "lobby", False, False),
    ],
)
def test_what_the_policies_say(
    policies: Policies, database: PolicyDatabase, sub: str, role: str, channel: str, subscribe: bool, publish: bool
) -> None:
    assert policies.ask(question("subscribe", channel, sub, role)) is subscribe
    assert policies.ask(question("publish", channel, sub, role)) is publish
    assert nothing_is_left(database)


def test_questions_of_many_do_not_mix(policies: Policies, database: PolicyDatabase) -> None:
    """In one batch, on one connection: each with its own role and claims."""
    users = ["alice", "bob", "carol", "dave"]
    database.join("dave", "cellar", writes=True)
    wanted = {
        (user, role, channel, action): _may(user, role, channel, action)
        for user in users
        for role in ("authenticated", "anon")
        for channel in ("kitchen", "cellar", "lobby", "user:bob")
        for action in ("subscribe", "publish")
    }
    answers: dict[Any, bool] = {}

    def ask(key: Any) -> None:
        user, role, channel, action = key
        answers[key] = policies.ask(question(action, channel, user, role))

    threads = [green.spawn(ask, key) for key in wanted]
    for thread in threads:
        thread.wait()
    assert answers == wanted
    assert len(policies._idle) <= 2


def _may(user: str, role: str, channel: str, action: str) -> bool:
    if action == "publish":
        return role == "authenticated" and (user, channel) in {("alice", "kitchen"), ("dave", "cellar")}
    if channel == "lobby":
        return True
    member = (user, channel) in {("alice", "kitchen"), ("bob", "kitchen"), ("dave", "cellar"), ("bob", "user:bob")}
    return role == "authenticated" and member


@pytest.mark.parametrize(
    "hostile",
    [
        "'; DROP TABLE members; --", "alice' OR '1'='1", '"', "\\", "$$", "%s", "%(x)s", "{}", "\0", "\ud800",
        "alice\0", "é" * 500, "x" * 10_000, "'); SELECT pg_sleep(10); --", "alice\n", " alice",
    ],
)  # fmt: skip
def test_sql_in_claims_and_names_is_only_text(policies: Policies, database: PolicyDatabase, hostile: str) -> None:
    for asked in (
        question("subscribe", "kitchen", sub=hostile),
        question("publish", "kitchen", sub=hostile),
        question("subscribe", "kitchen", sub="carol", extra=hostile, **{hostile: hostile}),
    ):
        assert policies.ask(asked) is False
    if "\0" not in hostile and "\ud800" not in hostile:
        assert policies.ask(Question("subscribe", hostile, "{}", "kitchen")) is False
        assert policies.ask(question("subscribe", hostile)) is False
        assert policies.ask(question("publish", hostile)) is False
    assert policies.ask(question("subscribe", "kitchen")) is True
    assert database.sql("SELECT count(*) > 0 FROM members") == [(True,)]


def test_claims_are_as_rich_as_json(policies: Policies, database: PolicyDatabase, room: str) -> None:
    database.sql(
        f"""CREATE POLICY "{room}" ON socketio_pg.messages FOR SELECT TO authenticated USING (
            channel = '{room}' AND kind = 'event'
            AND (current_setting('request.jwt.claims', true)::jsonb -> 'app_metadata' -> 'teams') ? 'blue')"""
    )
    assert policies.ask(question("subscribe", room, app_metadata={"teams": ["red", "blue"], "n": 10**30, "é": "🐘"}))
    assert not policies.ask(question("subscribe", room, app_metadata={"teams": ["red"]}))
    database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


@pytest.mark.parametrize(
    "expression",
    ["1 / 0 = 1", "'x'::int = 1", "no_such_column IS NULL", "fails()", "asserts()"],
    ids=lambda text: text,
)
def test_a_policy_that_fails_is_a_no_and_is_told(
    policies: Policies, database: PolicyDatabase, room: str, caplog: pytest.LogCaptureFixture, expression: str
) -> None:
    database.sql(
        "CREATE OR REPLACE FUNCTION fails() RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'no, since %', current_setting('request.jwt.claims')::jsonb ->> 'sub'; END $$;"
        " CREATE OR REPLACE FUNCTION asserts() RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN ASSERT false, E'bad\nroom'; RETURN true; END $$;"
        " CREATE OR REPLACE FUNCTION run(sql text) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ DECLARE result boolean; BEGIN EXECUTE 'SELECT ' || sql INTO result; RETURN result; END $$"
    )
    escaped = expression.replace("'", "''")
    database.sql(
        f"""CREATE POLICY "{room}" ON socketio_pg.messages TO authenticated
            USING (CASE WHEN channel = '{room}' THEN run('{escaped}') ELSE false END)
            WITH CHECK (CASE WHEN channel = '{room}' THEN run('{escaped}') ELSE false END)"""
    )
    try:
        for action in ("subscribe", "publish"):
            policies._complain = Complaints(logging.getLogger("socketio_pg.policies"))
            with caplog.at_level(logging.WARNING, "socketio_pg.policies"):
                assert policies.ask(question(action, room)) is False
            [record] = caplog.records
            assert f"may role 'authenticated' {action} '{room}'? No, since it failed: " in record.getMessage()
            assert "\n" not in record.getMessage()
            caplog.clear()
        # Nobody else notices.
        assert policies.ask(question("subscribe", "kitchen")) is True
    finally:
        database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


def test_refusals_are_not_logged(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    assert not policies.ask(question("subscribe", "kitchen", "carol"))
    assert not policies.ask(question("publish", "kitchen", "carol"))
    assert caplog.records == []


def test_complaints_do_not_fill_the_log(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        assert not policies.ask(question("subscribe", f"r{number}", role="not_granted"))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("role", ["superuser", "owner", "of the owner"])
def test_for_whom_policies_would_not_count_there_is_no_yes(postgres: Cluster, role: str) -> None:
    """One role for everything, as in a small set-up: it owns the table, and all would be let through."""
    postgres.sql("DROP DATABASE IF EXISTS owned WITH (FORCE)")
    postgres.sql("DROP ROLE IF EXISTS app, app_member")
    postgres.sql("CREATE ROLE app LOGIN")
    postgres.sql("CREATE ROLE app_member LOGIN IN ROLE app")
    postgres.sql("CREATE DATABASE owned OWNER app")
    owner = postgres.url("owned").replace("postgres@", "app@")
    callback = psycopg2.extensions.get_wait_callback()
    schema.install(Database(owner), 1_000_000)
    asking, asked = {
        "superuser": (postgres.url("owned"), "postgres"),
        "owner": (owner, "app"),
        "of the owner": (owner.replace("app@", "app_member@"), "app_member"),
    }[role]
    policies = Policies(Database(asking), 2.0)
    for action in ("subscribe", "publish"):
        assert policies.ask(question(action, "secret", role=asked)) is False
    policies.stop()
    psycopg2.extensions.set_wait_callback(callback)
    postgres.sql("DROP DATABASE owned WITH (FORCE)")
    postgres.sql("DROP ROLE app, app_member")


def test_a_lock_that_is_not_to_be_had_says_nothing_about_permission(
    policies: Policies, database: PolicyDatabase
) -> None:
    database.sql("ALTER ROLE web SET lock_timeout = '100ms'")
    try:
        with locked(database, "LOCK TABLE members"):
            for action in ("subscribe", "publish"):
                with pytest.raises(DatabaseUnavailableError):
                    policies.ask(question(action, "kitchen"))
    finally:
        database.sql("ALTER ROLE web RESET lock_timeout")


# -- policies that take long ---------------------------------------------------------------------------------------


@pytest.fixture
def slow_room(database: PolicyDatabase, room: str) -> Iterator[str]:
    database.sql(
        f"""CREATE POLICY "{room}" ON socketio_pg.messages FOR SELECT TO authenticated USING (
            CASE WHEN channel = '{room}' THEN pg_sleep(10) IS NOT NULL ELSE false END)"""
    )
    yield room
    database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


def outcomes(policies: Policies, *questions: Question) -> list[Any]:
    """The answer to each, or the error; all asked at once."""
    found: list[Any] = [None] * len(questions)

    def ask(index: int) -> None:
        try:
            found[index] = policies.ask(questions[index])
        except Exception as error:
            found[index] = error

    threads = [green.spawn(ask, index) for index in range(len(questions))]
    for thread in threads:
        thread.wait()
    return found


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


@contextlib.contextmanager
def locked(database: PolicyDatabase, statement: str) -> Iterator[Callable[[], None]]:
    """Somebody's transaction that holds a lock; call the result to end it."""
    connection = database.connect()
    ended = threading.Event()

    def end() -> None:
        if not ended.is_set():
            ended.set()
            connection.rollback()
            connection.close()

    wait_callback = psycopg2.extensions.get_wait_callback()
    psycopg2.extensions.set_wait_callback(None)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        psycopg2.extensions.set_wait_callback(wait_callback)
        yield end
    finally:
        psycopg2.extensions.set_wait_callback(None)
        end()
        psycopg2.extensions.set_wait_callback(wait_callback)


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


# -- installation ------------------------------------------------------------------------------------------------------


def test_without_the_schema(postgres: Cluster, policies: Policies) -> None:
    with pytest.raises(LogNotInstalledError):
        Policies(Database(postgres.url()), 2.0).ask(question("subscribe", "kitchen"))
    with pytest.raises(LogNotInstalledError):
        Policies(Database(postgres.url()), 2.0).check(["authenticated"])


def test_a_role_without_rights_on_the_schema(database: PolicyDatabase, policies: Policies) -> None:
    database.sql("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN")
    other = Policies(Database(database.url.replace("postgres@", "stranger@")), 2.0)
    with pytest.raises(DatabaseError, match="permission denied") as raised:
        other.ask(question("subscribe", "kitchen"))
    assert not isinstance(raised.value, DatabaseUnavailableError)
    other.stop()


def test_roles_that_will_not_do_are_told_at_the_start(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    policies.check(["authenticated", "anon"])
    assert caplog.records == []
    policies.check(["authenticated", "not_granted", "nobody_has_this_name"])
    assert sorted(record.getMessage().partition(":")[0] for record in caplog.records) == [
        "clients of role 'nobody_has_this_name' will be refused",
        "clients of role 'not_granted' will be refused",
    ]


def test_a_client_role_that_was_not_granted_anything(
    policies: Policies, database: PolicyDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    database.sql("DROP ROLE IF EXISTS newcomer; CREATE ROLE newcomer; GRANT newcomer TO web")
    policies.check(["newcomer"])
    assert "socketio-pg init --client-role newcomer" in caplog.text
    assert policies.ask(question("subscribe", "lobby", role="newcomer")) is False
    database.sql("REVOKE newcomer FROM web; DROP ROLE newcomer")


def test_a_client_role_can_do_nothing_else_in_the_schema(database: PolicyDatabase) -> None:
    allowed = []
    for statement in [
        "SELECT * FROM socketio_pg.messages",
        "INSERT INTO socketio_pg.messages (channel) VALUES ('x')",
        "UPDATE socketio_pg.messages SET channel = 'x'",
        "DELETE FROM socketio_pg.messages",
        "SELECT socketio_pg.publish('x', '1')",
        "SELECT socketio_pg.probe(ARRAY['x'])",
        "SELECT socketio_pg.decide(ARRAY['subscribe'], ARRAY['anon'], ARRAY['{}'], ARRAY['x'], 1)",
        "SELECT * FROM socketio_pg.log",
        "SELECT * FROM socketio_pg.outbox",
        "SELECT * FROM socketio_pg.head",
        "SELECT * FROM socketio_pg.node",
        "SELECT * FROM socketio_pg.channels",
        "CREATE TABLE socketio_pg.x ()",
        "CREATE POLICY x ON socketio_pg.messages USING (true)",
    ]:
        try:
            database.sql(f"SET ROLE anon; {statement}")
            allowed.append(statement)
        except psycopg2.errors.InsufficientPrivilege:
            pass
    assert allowed == ["SELECT * FROM socketio_pg.messages"]


def test_an_older_schema_is_upgraded_and_policies_survive(postgres: Cluster) -> None:
    database = PolicyDatabase(postgres, "policies_upgrade")
    before = database.sql("SELECT polname FROM pg_policy ORDER BY 1")
    assert len(before) == 4
    database.sql("SELECT socketio_pg.publish('kept', '1')")
    # As version 1 was: without anything of sql/3_permissions.sql.
    database.sql("UPDATE socketio_pg.schema_version SET version = 1; DROP TABLE socketio_pg.messages CASCADE")
    database.sql("DROP FUNCTION socketio_pg.decide, socketio_pg.probe, socketio_pg.recheck")
    callback = psycopg2.extensions.get_wait_callback()
    schema.install(Database(database.url), 1_000_000, again=False)
    psycopg2.extensions.set_wait_callback(callback)
    assert database.sql("SELECT version FROM socketio_pg.schema_version") == [(schema.VERSION,)]
    assert database.sql("SELECT count(*) FROM socketio_pg.outbox") == [(1,)]
    database.sql("CREATE POLICY mine ON socketio_pg.messages USING (true)")
    database.sql(schema.statements(1_000_000))
    assert database.sql("SELECT polname FROM pg_policy") == [("mine",)]


def test_many_questions_use_up_few_transaction_numbers(policies: Policies, database: PolicyDatabase) -> None:
    """Each number used brings the next vacuum against wraparound nearer: one for a batch, not one for a question."""
    policies.ask(question("subscribe", "kitchen"))
    [(before,)] = database.sql("SELECT pg_current_xact_id()::text::bigint")
    outcomes(policies, *(question("subscribe", "kitchen", str(number)) for number in range(500)))
    [(after,)] = database.sql("SELECT pg_current_xact_id()::text::bigint")
    assert after - before < 50
