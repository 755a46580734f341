"""The schema on a real database: installation, upgrades and privileges."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from socketio_pg.core.errors import DatabaseError, LogNotInstalledError
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.log import epochs
from socketio_pg.log.moves import PREPARE
from socketio_pg.log.relay import Relay
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import Database, fetch, session
from socketio_pg.workers.node import Node
from tests.support.log_database import MAX_PAYLOAD, LogDatabase, move_everything, prepare, run_cli
from tests.support.postgres import Cluster, in_thread

pytestmark = pytest.mark.majors


def test_installing_again_keeps_everything(log: LogDatabase) -> None:
    log.publish("a", "1")
    log.move()
    log.publish("a", "2")
    before = log.sql("SELECT epoch, trimmed FROM socketio_pg.head")
    # A session that calls a function would fail at that moment if it was created again.
    functions = "SELECT oid FROM pg_proc WHERE pronamespace = 'socketio_pg'::regnamespace ORDER BY oid"
    known = log.sql(functions)
    log.install()
    assert log.sql("SELECT epoch, trimmed FROM socketio_pg.head") == before
    assert log.sql(functions) == known
    log.move()
    assert log.log() == [(1, "a", 1), (2, "a", 2)]


EVIDENCE = "socketio_pg.newest_position, socketio_pg.newest_id, socketio_pg.removed_position"


def test_log_of_version_3_is_upgraded(log: LogDatabase) -> None:
    """Its head had no leader, and its relay was elected with an advisory lock."""
    log.publish("a", "1")
    log.move()
    before = log.sql("SELECT epoch FROM socketio_pg.head")
    log.sql("DROP VIEW socketio_pg.nodes, socketio_pg.consumers; DROP TABLE socketio_pg.consumer")
    log.sql(
        "ALTER TABLE socketio_pg.head DROP COLUMN term, DROP COLUMN leader, DROP COLUMN leader_name,"
        " DROP COLUMN session_pid, DROP COLUMN session_started, DROP COLUMN written_by, DROP COLUMN began_at,"
        " DROP COLUMN reason"
    )
    log.sql("DROP TRIGGER sign ON socketio_pg.head; DROP FUNCTION socketio_pg.sign_head")
    log.sql("DROP TRIGGER removed ON socketio_pg.log; DROP TRIGGER truncated ON socketio_pg.log")
    log.sql(f"DROP SEQUENCE socketio_pg.lease, socketio_pg.busy_until, {EVIDENCE}")
    with pytest.raises(LogNotInstalledError, match="run 'socketio-pg init'"):
        in_thread(prepare_relay, Database(log.url))
    log.install()
    log.publish("a", "2")
    log.move()
    assert log.sql("SELECT epoch FROM socketio_pg.head") == before
    assert log.log() == [(1, "a", 1), (2, "a", 2)]


def prepare_relay(database: Database) -> None:
    with session(database, "test") as connection:
        fetch(connection, PREPARE)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_servers_of_earlier_versions_get_the_new_rights(log: LogDatabase, version: int) -> None:
    """`init` upgrades without --server-role: the log must not stand still until somebody grants the rest."""
    log.sql("DROP ROLE IF EXISTS web_of_3; CREATE ROLE web_of_3; DROP ROLE IF EXISTS developer; CREATE ROLE developer")
    try:
        log.install(server="web_of_3")
        rights = rights_of_others(log)
        functions = functions_of_others(log)
        log.sql("DROP VIEW socketio_pg.consumers; DROP TABLE socketio_pg.consumer")
        log.sql(
            "DROP FUNCTION socketio_pg.live_table, socketio_pg.live_rows, socketio_pg.snapshot,"
            " socketio_pg.publish_as(text, text, boolean, text), socketio_pg.publish_with_meta"
        )
        if version < 5:
            log.sql(f"DROP SEQUENCE {EVIDENCE}")
            log.sql("REVOKE UPDATE ON SEQUENCE socketio_pg.outbox_id_seq FROM web_of_3")
        if version == 3:
            log.sql("DROP SEQUENCE socketio_pg.lease, socketio_pg.busy_until; DROP TABLE socketio_pg.cluster_key")
        log.sql("UPDATE socketio_pg.schema_version SET version = %s", version)
        log.sql("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO developer")
        log.sql("ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO developer")
        log.sql("ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO developer")
        log.install()
        assert functions_of_others(log) == functions
        upgraded = rights_of_others(log)
        # An unreleased build of version 4 keeps what default privileges grant on the sequences that it lacked.
        assert upgraded >= rights if version == 4 else upgraded == rights
        assert ("cluster_key", "web_of_3", "SELECT") in rights
    finally:
        log.sql("DROP OWNED BY web_of_3, developer; DROP ROLE web_of_3, developer")


def test_nodes_of_version_4_stay_and_work_after_the_upgrade(log: LogDatabase) -> None:
    """Its nodes had no workers. AUTO_INIT upgrades it."""
    log.sql("DROP VIEW socketio_pg.nodes")
    log.sql("ALTER TABLE socketio_pg.node DROP COLUMN workers")
    log.sql(
        "CREATE VIEW socketio_pg.nodes AS SELECT name, version, false AS relay, position, clients, started_at, seen_at,"
        " refused FROM socketio_pg.node"
    )
    log.sql("UPDATE socketio_pg.schema_version SET version = 4")
    with_one, with_two = described(log, "one"), described(log, "two", 2)
    in_thread(with_one)
    with pytest.raises(LogNotInstalledError, match="run 'socketio-pg init'"):
        in_thread(with_two)
    in_thread(lambda: schema.install(Database(log.url), MAX_PAYLOAD, again=False))
    in_thread(with_one)
    in_thread(with_two)
    assert log.sql("SELECT workers, clients FROM socketio_pg.nodes ORDER BY workers IS NOT NULL") == [
        (None, 7),
        ([{"slot": 0, "problem": None}, {"slot": 1, "problem": None}], 7),
    ]


def test_log_of_version_5_is_upgraded_and_its_server_may_go_on(log: LogDatabase) -> None:
    """Its rows have no id of the outbox, and its server adds more of them, as it does not know the column."""
    log.publish("a", "1")
    log.move()
    log.sql("ALTER TABLE socketio_pg.log DROP COLUMN id; UPDATE socketio_pg.schema_version SET version = 5")
    file = log.sql("SELECT pg_relation_filenode('socketio_pg.log')")
    log.install()
    assert log.sql("SELECT pg_relation_filenode('socketio_pg.log')") == file, "the table is not rewritten"
    log.publish("a", "2", "3")
    log.sql(
        "WITH moved AS (DELETE FROM socketio_pg.outbox WHERE id = 2 RETURNING *)"
        " INSERT INTO socketio_pg.log (position, channel, payload, size, published_at)"
        " SELECT 2, channel, payload, size, published_at FROM moved"
    )
    log.move()
    assert log.sql("SELECT position, id FROM socketio_pg.log ORDER BY position") == [(1, None), (2, None), (3, 3)]


#: What version 6 had in place of the functions of version 7.
VERSION_6 = """
ALTER TABLE socketio_pg.outbox DROP COLUMN meta;
ALTER TABLE socketio_pg.log DROP COLUMN meta;
DROP FUNCTION socketio_pg.publish(text, jsonb, boolean, text, text, text), socketio_pg.publish_with_meta,
    socketio_pg.publish_as(text, text, boolean, text, text, text), socketio_pg.add_with_meta, socketio_pg.chosen_meta,
    socketio_pg.consume;
CREATE FUNCTION socketio_pg.publish(channel text, payload jsonb, durable boolean, id text DEFAULT NULL)
RETURNS boolean LANGUAGE sql AS 'SELECT socketio_pg.publish_as(channel, payload::text, durable, id) > 0';
CREATE OR REPLACE FUNCTION socketio_pg.publish_as(channel text, payload text, durable boolean, id text) RETURNS bigint
LANGUAGE sql AS 'SELECT socketio_pg.publish(channel, payload::jsonb); SELECT 1::bigint';
CREATE FUNCTION socketio_pg.consume(
    consumer text, channels text[] DEFAULT NULL, most integer DEFAULT 1, start text DEFAULT 'now'
) RETURNS TABLE (epoch uuid, "position" bigint, channel text, payload jsonb, published_at timestamptz)
LANGUAGE sql AS 'SELECT NULL::uuid, 1::bigint, NULL, NULL::jsonb, now()';
REVOKE ALL ON FUNCTION socketio_pg.publish(text, jsonb, boolean, text), socketio_pg.consume FROM PUBLIC;
GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb, boolean, text) TO web_of_6, app_of_6 WITH GRANT OPTION;
GRANT EXECUTE ON FUNCTION socketio_pg.consume TO reader_of_6;
UPDATE socketio_pg.schema_version SET version = 6;
"""


def test_log_of_version_6_is_upgraded_with_its_privileges(log: LogDatabase) -> None:
    """A message has metadata from then on, and its functions have more parameters; older servers go on."""
    log.sql("".join(f"DROP ROLE IF EXISTS {one}_of_6; CREATE ROLE {one}_of_6;" for one in ("web", "app", "reader")))
    try:
        log.install(server="web_of_6", publisher="app_of_6", consumer="reader_of_6")
        rights, functions = rights_of_others(log), functions_of_others(log)
        log.sql(VERSION_6)
        log.publish("a", "1")
        log.install()
        assert functions_of_others(log) == functions
        assert rights_of_others(log) == rights
        assert log.sql("SELECT has_function_privilege('app_of_6',"
                       " 'socketio_pg.publish(text, jsonb, boolean, text, text, text)', 'EXECUTE WITH GRANT OPTION')"
                       ) == [(True,)]  # fmt: skip
        log.sql(
            "WITH moved AS (DELETE FROM socketio_pg.outbox RETURNING *) INSERT INTO socketio_pg.log"
            " (position, channel, payload, size, published_at, id)"
            " SELECT 1, channel, payload, size, published_at, id FROM moved"
        )
        log.sql("SELECT socketio_pg.publish('a', '2', true, exclude => 'somebody')")
        log.move()
        assert log.sql("SELECT position, meta FROM socketio_pg.log ORDER BY position") == [
            (1, None),
            (2, {"exclude": "somebody"}),
        ]
    finally:
        log.sql("DROP OWNED BY web_of_6, app_of_6, reader_of_6; DROP ROLE web_of_6, app_of_6, reader_of_6")


def described(log: LogDatabase, name: str, workers: int = 0) -> Callable[[], None]:
    """Return a function that writes down a node with so many workers, as its relay does."""
    node = Node(Path(name), name.encode()) if workers else None
    relay = Relay(
        Database(log.url), Rules(), 1, lambda: (0, 7), lambda channel, text: text,
        node=node, workers=lambda: [{"slot": slot, "problem": None} for slot in range(workers)],
    )  # fmt: skip

    def beat() -> None:
        relay._next_beat = 0.0
        with session(Database(log.url), "test") as connection:
            relay._beat(connection)

    return beat


def test_superuser_upgrades_the_schema_of_another_role(log: LogDatabase) -> None:
    """Its functions use the new objects with their owner's rights: with another owner, nobody could publish."""
    run_cli("drop", "--yes", url=log.url)
    log.sql(f"DROP ROLE IF EXISTS own; CREATE ROLE own; GRANT CREATE ON DATABASE {log.name} TO own")
    try:
        log.sql(f"SET ROLE own; {schema.statements(MAX_PAYLOAD)}")
        log.sql("DROP SEQUENCE socketio_pg.lease, socketio_pg.busy_until; DROP TABLE socketio_pg.cluster_key")
        log.sql("DROP FUNCTION socketio_pg.rotate_cluster_key")
        log.sql("UPDATE socketio_pg.schema_version SET version = 3")
        log.sql(schema.statements(MAX_PAYLOAD, schema_owner="own"))
        log.sql("SET ROLE own; SELECT socketio_pg.publish('a', '1'), socketio_pg.rotate_cluster_key()")
        log.move()
        assert log.log() == [(1, "a", 1)]
    finally:
        log.sql("DROP OWNED BY own CASCADE; DROP ROLE own")


def rights_of_others(log: LogDatabase) -> set[tuple[str, ...]]:
    """Return (table or sequence, role, privilege) of each right that is not an owner's."""
    return set(
        log.sql(
            "SELECT c.relname, a.grantee::regrole::text, a.privilege_type FROM pg_class AS c, aclexplode(c.relacl) AS a"
            " WHERE c.relnamespace = 'socketio_pg'::regnamespace AND a.grantee <> c.relowner"
        )
    )


def functions_of_others(log: LogDatabase) -> set[tuple[str, ...]]:
    """Return (function, role) of each right to execute that is not an owner's."""
    return set(
        log.sql(
            "SELECT p.oid::regprocedure::text, a.grantee::regrole::text FROM pg_proc AS p, aclexplode(p.proacl) AS a"
            " WHERE p.pronamespace = 'socketio_pg'::regnamespace AND a.grantee NOT IN (0, p.proowner)"
        )
    )


def test_concurrent_installations_succeed(postgres: Cluster) -> None:
    postgres.sql("DROP DATABASE IF EXISTS twice WITH (FORCE)")
    postgres.sql("CREATE DATABASE twice")
    url = postgres.url("twice")
    outputs: list[str] = []
    threads = [threading.Thread(target=lambda: outputs.append(psql_install(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == ["ok"] * 4


def psql_install(url: str) -> str:
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(schema.statements(MAX_PAYLOAD))
        connection.commit()
    return "ok"


def test_newer_schema_is_not_overwritten(log: LogDatabase) -> None:
    log.sql("UPDATE socketio_pg.schema_version SET version = version + 1")
    with pytest.raises(DatabaseError, match="upgrade the program"):
        in_thread(schema.install, Database(log.url), MAX_PAYLOAD)


def test_printed_sql_installs_the_schema(postgres: Cluster) -> None:
    postgres.sql("DROP DATABASE IF EXISTS printed WITH (FORCE)")
    postgres.sql("CREATE DATABASE printed")
    url = postgres.url("printed")
    printed = run_cli("init", "--sql", url=url)
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(printed)
            cursor.execute("SELECT socketio_pg.publish('a', '1'); SELECT version FROM socketio_pg.schema_version")
            assert cursor.fetchone() == (schema.VERSION,)


def test_install_refuses_an_older_postgres(log: LogDatabase) -> None:
    newer = log.cluster.version + 1
    statements = schema.statements(MAX_PAYLOAD).replace(f"< {schema.MAJORS[0]} THEN", f"< {newer} THEN")
    with pytest.raises(psycopg2.errors.FeatureNotSupported, match=r"PostgreSQL \d+\.\d+.* is too old"):
        log.sql(statements)


def test_install_refuses_other_encodings(postgres: Cluster) -> None:
    postgres.sql("DROP DATABASE IF EXISTS latin WITH (FORCE)")
    postgres.sql("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with pytest.raises(DatabaseError, match="encoding UTF8; this one has LATIN1"):
        in_thread(schema.install, Database(postgres.url("latin")), MAX_PAYLOAD)


@pytest.fixture
def roles(postgres: Cluster) -> Iterator[dict[str, str]]:
    """Role → its address of the database ``granted``. The owner, who installs the log, is not a superuser."""
    names = ("log_owner", "log_server", "log_publisher", "log_nobody")
    postgres.sql("DROP DATABASE IF EXISTS granted WITH (FORCE)")
    for name in names:
        postgres.sql(f"DROP ROLE IF EXISTS {name}")
        postgres.sql(f"CREATE ROLE {name} LOGIN NOSUPERUSER")
    postgres.sql("CREATE DATABASE granted OWNER log_owner")
    yield {name: postgres.url("granted").replace("postgres@", f"{name}@") for name in names}
    postgres.sql("DROP DATABASE granted WITH (FORCE)")
    for name in names:
        postgres.sql(f"DROP ROLE {name}")


def test_roles_have_no_more_privileges_than_they_need(roles: dict[str, str]) -> None:
    run_cli("init", "--server-role", "log_server", "--publisher-role", "log_publisher", url=roles["log_owner"])

    def as_role(role: str, statement: str, *parameters: object) -> str:
        """Return "ok", or the SQLSTATE of the error."""
        with contextlib.closing(psycopg2.connect(roles[role])) as connection, connection.cursor() as cursor:
            try:
                cursor.execute(statement, parameters or None)
                connection.commit()
            except psycopg2.Error as error:
                return error.pgcode or "?"
            return "ok"

    denied = "42501"
    publish = "SELECT socketio_pg.publish('a', '1')"
    assert as_role("log_nobody", publish) == denied
    assert as_role("log_publisher", publish) == "ok"
    assert as_role("log_server", publish) == "ok"
    for table in ("outbox", "log", "head", "node", "channels", "nodes"):
        assert as_role("log_publisher", f"SELECT * FROM socketio_pg.{table}") == denied
        assert as_role("log_server", f"SELECT * FROM socketio_pg.{table}") == "ok"
    assert as_role("log_publisher", "INSERT INTO socketio_pg.outbox (channel, payload) VALUES ('a', '1')") == denied
    assert as_role("log_publisher", "SELECT socketio_pg.ring()") == denied
    for statement in (
        "DROP TABLE socketio_pg.log",
        "TRUNCATE socketio_pg.log",
        "UPDATE socketio_pg.log SET channel = 'b'",
    ):
        assert as_role("log_server", statement) == denied

    # Everything that a server does, with only the server role's privileges.
    rules = Rules(Rule(max_age=0.0))
    rules.replace({"a*": Rule(max_messages=1)})
    relay = Relay(Database(roles["log_server"]), rules, 1, lambda: (0, 0), lambda channel, text: text)
    relay._trimming.min_age = -1.0

    def work() -> None:
        with contextlib.closing(psycopg2.connect(roles["log_server"])) as connection:
            connection.autocommit = True
            prepare(connection)
            term = relay._try_to_lead(connection)
            assert term == 1
            assert relay._lease.renew(connection, term)
            assert not relay._lease.renew(connection, term + 1)
            relay._lease.set_busy(connection, False)
            moved = move_everything(connection, 1000)
            assert (moved.count, moved.more) == (2, False)
            cluster = epochs.read_cluster(connection, 30.0)
            assert cluster.system_identifier
            # As after a restore: ends the epoch, and repairs the sequence of the outbox.
            for past in (epochs.Past(9, 2, 2), epochs.Past(2, 2, 9)):
                assert epochs.check(connection, term, cluster, past, 30.0)[1] is not None
            relay._beat(connection)
            relay._trimming.run(connection, term)

    in_thread(work)
    assert as_role("log_owner", "SELECT 1 / (count(*) - 1) FROM socketio_pg.log") == "22012", "one row is left"
