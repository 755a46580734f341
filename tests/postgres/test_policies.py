"""Row-level-security policies on a real database: their decisions, and errors in policies."""

import logging
from typing import Any, get_args

import pytest

from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Action, Question
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import Database
from tests.support.policies import PolicyDatabase, locked, nothing_is_left, question
from tests.support.postgres import Cluster


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
def test_policies_decide(
    policies: Policies, database: PolicyDatabase, sub: str, role: str, channel: str, subscribe: bool, publish: bool
) -> None:
    assert policies.ask(question("subscribe", channel, sub, role)) is subscribe
    assert policies.ask(question("publish", channel, sub, role)) is publish
    assert nothing_is_left(database)


def test_policies_tell_messages_from_members_and_ephemeral_messages(
    policies: Policies, database: PolicyDatabase, room: str
) -> None:
    """`kind` in a policy: SELECT and INSERT mean to see members and to be one."""
    for n, (command, kind) in enumerate([("SELECT", "presence"), ("INSERT", "presence"), ("INSERT", "ephemeral")]):
        check = "WITH CHECK" if command == "INSERT" else "USING"
        database.sql(
            f"""CREATE POLICY "{room}{n}" ON socketio_pg.messages FOR {command} TO authenticated
                {check} (channel = '{room}{n}' AND kind = '{kind}')"""
        )
    allowed = {
        (n, action) for n in range(3) for action in get_args(Action) if policies.ask(question(action, f"{room}{n}"))
    }
    assert allowed == {(0, "presence"), (1, "join"), (2, "ephemeral")}
    assert nothing_is_left(database)
    for n in range(3):
        database.sql(f'DROP POLICY "{room}{n}" ON socketio_pg.messages')


def test_batched_questions_do_not_mix(policies: Policies, database: PolicyDatabase) -> None:
    """Questions in one batch on one connection keep their own roles and claims."""
    users = ["alice", "bob", "carol", "dave"]
    database.join("dave", "cellar", writes=True)
    expected = {
        (user, role, channel, action): is_allowed(user, role, channel, action)
        for user in users
        for role in ("authenticated", "anon")
        for channel in ("kitchen", "cellar", "lobby", "user:bob")
        for action in ("subscribe", "publish")
    }
    answers: dict[Any, bool] = {}

    def ask(key: Any) -> None:
        user, role, channel, action = key
        answers[key] = policies.ask(question(action, channel, user, role))

    threads = [green.spawn(ask, key) for key in expected]
    for thread in threads:
        thread.wait()
    assert answers == expected
    assert len(policies._idle) <= 2


def is_allowed(user: str, role: str, channel: str, action: str) -> bool:
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
def test_sql_in_claims_and_names_is_treated_as_text(policies: Policies, database: PolicyDatabase, hostile: str) -> None:
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


def test_claims_can_be_any_json(policies: Policies, database: PolicyDatabase, room: str) -> None:
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
def test_failing_policy_refuses_and_is_logged(
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
            policies._limited_log = RateLimitedLog(logging.getLogger("socketio_pg.policies"))
            with caplog.at_level(logging.WARNING, "socketio_pg.policies"):
                assert policies.ask(question(action, room)) is False
            [record] = caplog.records
            assert f"refused role 'authenticated' to {action} channel '{room}' because a policy failed: " in (
                record.getMessage()
            )
            assert "\n" not in record.getMessage()
            caplog.clear()
        # Other channels are not affected.
        assert policies.ask(question("subscribe", "kitchen")) is True
    finally:
        database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages')


def test_refusals_are_not_logged(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    assert not policies.ask(question("subscribe", "kitchen", "carol"))
    assert not policies.ask(question("publish", "kitchen", "carol"))
    assert caplog.records == []


def test_log_lines_are_rate_limited(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    policies._limited_log = RateLimitedLog(logging.getLogger("socketio_pg.policies"), seconds=3600)
    for number in range(20):
        assert not policies.ask(question("subscribe", f"r{number}", role="not_granted"))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("role", ["superuser", "owner", "member of the owner"])
def test_roles_that_bypass_policies_are_refused(postgres: Cluster, role: str) -> None:
    """A small installation may have one role for everything: it owns the table, and policies do not apply to owners."""
    postgres.sql("DROP DATABASE IF EXISTS owned WITH (FORCE)")
    postgres.sql("DROP ROLE IF EXISTS app, app_member")
    postgres.sql("CREATE ROLE app LOGIN")
    postgres.sql("CREATE ROLE app_member LOGIN IN ROLE app")
    postgres.sql("CREATE DATABASE owned OWNER app")
    owner = postgres.url("owned").replace("postgres@", "app@")
    schema.install(Database(owner), 1_000_000)
    asking, asked = {
        "superuser": (postgres.url("owned"), "postgres"),
        "owner": (owner, "app"),
        "member of the owner": (owner.replace("app@", "app_member@"), "app_member"),
    }[role]
    # A superuser does not trust the database's owner otherwise.
    policies = Policies(Database(asking, schema_owner="app"), 10.0)
    for action in ("subscribe", "publish"):
        assert policies.ask(question(action, "secret", role=asked)) is False
    policies.stop()
    postgres.sql("DROP DATABASE owned WITH (FORCE)")
    postgres.sql("DROP ROLE app, app_member")


def test_lock_timeout_is_an_error_and_no_decision(database: PolicyDatabase) -> None:
    policies = Policies(Database(database.server_url), 2.0)  # asks again until then
    database.sql("ALTER ROLE web SET lock_timeout = '100ms'")
    try:
        with locked(database, "LOCK TABLE members"):
            for action in ("subscribe", "publish"):
                with pytest.raises(DatabaseUnavailableError):
                    policies.ask(question(action, "kitchen"))
    finally:
        database.sql("ALTER ROLE web RESET lock_timeout")
        policies.stop()
