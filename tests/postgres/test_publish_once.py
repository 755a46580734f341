"""publish() with `durable` and `id`: the same id on a channel within five minutes is published once."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from socketio_pg.log.old_ids import OldIds
from tests.support.log_database import LogDatabase
from tests.support.patience import until
from tests.support.postgres import Cluster


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> LogDatabase:
    return LogDatabase(newest_pg, "publish_once")


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)[:63].replace("*", "")


class Session:
    """A connection to the database, with its own transactions."""

    def __init__(self, log: LogDatabase) -> None:
        self._log = log
        self._connection = log.connect()
        self._cursor = self._connection.cursor()
        [(self.pid,)] = self.sql("SELECT pg_backend_pid()")

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        self._cursor.execute(statement, parameters or None)
        return list(self._cursor.fetchall()) if self._cursor.description else []

    def publish(self, channel: str, id: str, payload: str = "1") -> bool:
        return bool(self.sql("SELECT socketio_pg.publish(%s, %s, id => %s)", channel, payload, id)[0][0])

    def later(self, *arguments: str) -> "Later":
        """Publish in a thread, and return when this session waits for another transaction."""
        later = Later(self, *arguments)
        until(
            lambda: self._log.sql("SELECT cardinality(pg_blocking_pids(%s)) > 0", self.pid)[0][0],
            "the session waits for another one",
        )
        return later

    def close(self) -> None:
        self._connection.close()


class Later:
    """A publication in a thread."""

    def __init__(self, session: Session, *arguments: str) -> None:
        self._results: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(session, arguments))
        self._thread.start()

    def _run(self, session: Session, arguments: tuple[str, ...]) -> None:
        try:
            self._results.append(session.publish(*arguments))
        except psycopg2.Error as error:
            self._results.append(error.pgcode)

    def result(self) -> Any:
        self._thread.join()
        return self._results[0]


@pytest.fixture
def sessions(log: LogDatabase) -> Iterator[tuple[Session, Session]]:
    with contextlib.closing(Session(log)) as one, contextlib.closing(Session(log)) as other:
        yield one, other


def payloads(log: LogDatabase, channel: str) -> list[Any]:
    """Move everything to the log, and return the channel's payloads in it."""
    while log.move():
        pass
    return [payload for _, of, payload in log.log() if of == channel]


def test_forms_of_publish(log: LogDatabase, channel: str) -> None:
    calls = {
        "%s, '1'": "",
        "%s, '2'::jsonb": "",
        "payload => '3', channel => %s": "",
        "%s, '4', durable => true": True,
        "%s, '5', NULL::boolean": True,
        "%s, '6', id => 'six'": True,
        "%s, '7', 'six'": False,
        "%s, '8', true, 'eight'": True,
        "%s, '9', id => 'eight', durable => true": False,
        "%s, '10', id => NULL": True,
        "%s, NULL, durable => true": True,
    }
    for arguments, result in calls.items():
        assert log.sql(f"SELECT socketio_pg.publish({arguments})", channel) == [(result,)], arguments
    assert payloads(log, channel) == [1, 2, 3, 4, 5, 6, 8, 10, None]


def test_publish_as_without_a_choice_takes_the_log(log: LogDatabase, channel: str) -> None:
    """It must not take the id and send nothing."""
    assert log.sql("SELECT socketio_pg.publish_as(%s, '1', NULL, 'x') > 0", channel) == [(True,)]
    assert log.sql("SELECT payload FROM socketio_pg.outbox WHERE channel = %s", channel) == [(1,)]


def test_notify_has_ids_too(log: LogDatabase, channel: str) -> None:
    with contextlib.closing(log.connect()) as listener, listener.cursor() as cursor:
        cursor.execute(f'LISTEN "{channel}"')
        for id, published in (("a", True), ("a", False), (None, True), ("b", True)):
            sent = log.sql("SELECT socketio_pg.publish(%s, %s, false, %s)", channel, f'"{id}"', id)
            assert sent == [(published,)]
        # An id stands for one message, whichever way it goes.
        assert log.sql("SELECT socketio_pg.publish(%s, '1', true, 'a')", channel) == [(False,)]
        cursor.execute("SELECT 1")
        assert [found.payload for found in listener.notifies] == ['"a"', '"None"', '"b"']
    assert payloads(log, channel) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("'a', '1', id => ''", "SG008"),
        ("'a', '1', id => repeat('\u00e9', 33)", "SG008"),
        ("'a', '1', id => E'a\\n'", "SG008"),
        ("'a*', '1', id => 'x'", "SG001"),
        ("'a*', '1', durable => false", "SG001"),
        ("'a', to_jsonb(repeat('x', 7998)), durable => false", "SG002"),
        ("'a', to_jsonb(repeat('x', 100000)), id => 'x'", "SG002"),
    ],
)
def test_invalid_requests(log: LogDatabase, arguments: str, code: str) -> None:
    with pytest.raises(psycopg2.Error) as refused:
        log.sql(f"SELECT socketio_pg.publish({arguments})")
    assert refused.value.pgcode == code


def test_rollback_frees_the_id(log: LogDatabase, channel: str, sessions: tuple[Session, Session]) -> None:
    session, other = sessions
    session.sql("BEGIN")
    assert session.publish(channel, "x")
    assert not session.publish(channel, "x"), "the same transaction"
    session.sql("SAVEPOINT s")
    assert session.publish(channel, "y", "2")
    session.sql("ROLLBACK TO s")
    assert other.publish(channel, "y", "3")
    assert not session.publish(channel, "y", "4")
    session.sql("ROLLBACK")
    assert other.publish(channel, "x", "5")
    assert payloads(log, channel) == [3, 5]


@pytest.mark.parametrize("commits", [True, False])
def test_a_repeat_waits_for_its_own_transaction_only(
    log: LogDatabase, channel: str, sessions: tuple[Session, Session], commits: bool
) -> None:
    session, other = sessions
    session.sql("BEGIN")
    assert session.publish(channel, "x")
    repeat = other.later(channel, "x", "2")
    log.sql("SET statement_timeout = '20s'; SELECT socketio_pg.publish(%s, '3', id => 'y')", channel)
    log.sql("SET statement_timeout = '20s'; SELECT socketio_pg.publish('other', '4', id => 'x')")
    session.sql("COMMIT" if commits else "ROLLBACK")
    assert repeat.result() is not commits
    assert sorted(payloads(log, channel)) == ([1, 3] if commits else [2, 3])


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_repeats_under_other_isolation_levels(
    log: LogDatabase, channel: str, sessions: tuple[Session, Session], level: str
) -> None:
    """A transaction that cannot see the first publication fails like any other conflict; repeated, it sees it."""
    session, other = sessions
    session.publish(channel, "before")
    other.sql(f"BEGIN ISOLATION LEVEL {level}")
    other.sql("SELECT FROM socketio_pg.log")
    assert not other.publish(channel, "before"), "it is in the snapshot"
    session.publish(channel, "x", "2")
    with pytest.raises(psycopg2.Error) as refused:
        other.publish(channel, "x", "3")
    assert refused.value.pgcode == "40001"
    other.sql("ROLLBACK")
    other.sql(f"BEGIN ISOLATION LEVEL {level}")
    assert not other.publish(channel, "x", "3")
    assert other.publish(channel, "y", "4")
    other.sql("COMMIT")
    assert payloads(log, channel) == [1, 2, 4]


def test_an_id_may_be_used_again_after_five_minutes(
    log: LogDatabase, channel: str, sessions: tuple[Session, Session]
) -> None:
    session, other = sessions
    assert session.publish(channel, "x")
    log.sql("UPDATE socketio_pg.published SET published_at = now() - interval '299 s' WHERE channel = %s", channel)
    assert not session.publish(channel, "x", "2")
    log.sql("UPDATE socketio_pg.published SET published_at = now() - interval '301 s' WHERE channel = %s", channel)
    session.sql("BEGIN")
    assert session.publish(channel, "x", "3")
    # Only one of those that use it again at the same time.
    repeat = other.later(channel, "x", "4")
    session.sql("COMMIT")
    assert repeat.result() is False
    assert payloads(log, channel) == [1, 3]


def test_old_ids_are_removed_in_small_steps(log: LogDatabase, channel: str, sessions: tuple[Session, Session]) -> None:
    """Neither those that are younger, nor those that another transaction is using again."""
    session, _ = sessions
    log.sql("DELETE FROM socketio_pg.published")
    old = "UPDATE socketio_pg.published SET published_at = now() - interval '301 s' WHERE channel = %s"
    session.sql("SELECT socketio_pg.publish(%s, '1', n::text) FROM generate_series(1, 25) AS n", channel)
    log.sql(old, channel)
    session.publish(channel, "young")
    session.sql("BEGIN")
    assert session.publish(channel, "7", "2")

    def left() -> int:
        return int(log.sql("SELECT count(*) FROM socketio_pg.published WHERE channel = %s", channel)[0][0])

    with contextlib.closing(log.connect()) as connection:
        old_ids = OldIds()
        old_ids.size, old_ids.pause = 10, 0.0
        counts = []
        for _ in range(4):
            old_ids.remove(connection, 30.0)
            counts.append(left())
        assert counts == [16, 6, 2, 2]
        session.sql("COMMIT")
        log.sql(old, channel)
        OldIds().remove(connection, 30.0)
    assert left() == 0


def test_many_sessions_with_the_same_ids(log: LogDatabase, channel: str) -> None:
    """Each id is published by exactly one of them, in whatever order they use the ids."""
    published: list[str] = []

    def run(number: int) -> None:
        with contextlib.closing(Session(log)) as session:
            for n in range(30):
                id = str((n * (number + 1)) % 30)
                if session.publish(channel, id, id):
                    published.append(id)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(published) == sorted(map(str, range(30)))
    assert sorted(payloads(log, channel)) == list(range(30))


CALLERS = """
CREATE FUNCTION mine() RETURNS void LANGUAGE sql AS $$ SELECT socketio_pg.publish('mine', '1') $$;
CREATE VIEW notes AS SELECT socketio_pg.publish('mine', '2')::text AS sent;
CREATE TABLE things (id int);
CREATE RULE tell AS ON INSERT TO things DO ALSO SELECT socketio_pg.publish('mine', '3');
"""


def test_callers_of_version_5_go_on(newest_pg: Cluster) -> None:
    """The function of two arguments keeps its identity, its privileges, and what depends on it."""
    log = LogDatabase(newest_pg, "callers_of_5")
    log.sql("DROP ROLE IF EXISTS app_of_5; CREATE ROLE app_of_5; DROP ROLE IF EXISTS web_of_5; CREATE ROLE web_of_5")
    try:
        log.install(server="web_of_5")
        log.sql(
            "DROP FUNCTION socketio_pg.publish(text, jsonb, boolean, text, text, text),"
            " socketio_pg.publish(text, jsonb, text), socketio_pg.publish_as(text, text, boolean, text),"
            " socketio_pg.publish_as(text, text, boolean, text, text, text), socketio_pg.claim;"
            " DROP TABLE socketio_pg.published; UPDATE socketio_pg.schema_version SET version = 5"
        )
        log.sql("GRANT USAGE ON SCHEMA socketio_pg TO app_of_5")
        log.sql("GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb) TO app_of_5 WITH GRANT OPTION")
        log.sql(CALLERS)
        with contextlib.closing(Session(log)) as session:
            session.sql("PREPARE publish (text, jsonb) AS SELECT socketio_pg.publish($1, $2)")
            session.sql("EXECUTE publish ('mine', '4')")
            log.install()
            session.sql("EXECUTE publish ('mine', '5')")
        log.sql("SELECT mine(); SELECT * FROM notes; INSERT INTO things VALUES (1)")
        log.sql("SET ROLE app_of_5; SELECT socketio_pg.publish('mine', '6')")
        assert log.sql("SET ROLE app_of_5; SELECT socketio_pg.publish('mine', '7', id => 'x')") == [(True,)]
        granted = "SELECT has_function_privilege('app_of_5', oid, 'EXECUTE WITH GRANT OPTION') FROM pg_proc"
        assert log.sql(f"{granted} WHERE proname IN ('publish', 'publish_as')") == [(True,)] * 5
        assert log.sql(f"{granted} WHERE proname = 'claim'") == [(False,)]
        # The server's role has what an installation gives it.
        upgraded = rights(log, "web_of_5")
        log.install(server="web_of_5")
        assert rights(log, "web_of_5") == upgraded
        assert payloads(log, "mine") == [4, 5, 1, 2, 3, 6, 7]
    finally:
        log.sql("DROP OWNED BY app_of_5, web_of_5; DROP ROLE app_of_5, web_of_5")


def rights(log: LogDatabase, role: str) -> list[tuple[Any, ...]]:
    return log.sql(
        "SELECT p.oid::regprocedure::text, a.privilege_type FROM pg_proc AS p CROSS JOIN aclexplode(p.proacl) AS a"
        " WHERE pronamespace = 'socketio_pg'::regnamespace AND a.grantee = %s::regrole UNION ALL"
        " SELECT c.oid::regclass::text, a.privilege_type FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS a"
        " WHERE relnamespace = 'socketio_pg'::regnamespace AND a.grantee = %s::regrole ORDER BY 1, 2",
        role, role,
    )  # fmt: skip
