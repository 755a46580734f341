"""A login with CREATE makes the schema or parts of it, or overloads functions: nothing of it runs as the victim."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from click.testing import CliRunner

from socketio_pg.access.policies import Policies
from socketio_pg.cli import main as cli
from socketio_pg.cluster.postgres_manager import PostgresManager
from socketio_pg.core.errors import ConfigurationError, DatabaseError, LogNotInstalledError, UntrustedSchemaError
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.log.backlog import Backlog
from socketio_pg.log.history import History
from socketio_pg.log.recent import Recent
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.key_reader import KeyReader
from socketio_pg.postgres.outgoing import Outgoing
from socketio_pg.postgres.publisher import Publisher
from tests.support.hostile import FOREIGN_SCHEMAS, FUNCTIONS, HostileDatabase
from tests.support.log_database import MAX_PAYLOAD
from tests.support.policies import question
from tests.support.postgres import Cluster, in_thread


@pytest.fixture
def hostile(newest_pg: Cluster) -> Iterator[HostileDatabase]:
    made = HostileDatabase(newest_pg, "hostile")
    yield made
    newest_pg.sql("DROP DATABASE hostile WITH (FORCE)")


def install(database: Database) -> None:
    in_thread(schema.install, database, MAX_PAYLOAD)


def use(database: Database, work: Callable[[], Any]) -> None:
    """Run ``work``, and expect that the schema is refused, wherever it is used."""
    with pytest.raises(LogNotInstalledError) as refused:
        in_thread(work)
    assert isinstance(refused.value, UntrustedSchemaError)
    assert refused.value.message == "the schema socketio_pg is not trusted"
    assert "belongs to mallory" in refused.value.detail
    assert database.schema_problem == refused.value.detail


def command(hostile: HostileDatabase, *arguments: str, **settings: str) -> tuple[int, str]:
    environment = {"DATABASE_URL": hostile.url, **settings}
    result = in_thread(lambda: CliRunner().invoke(cli.main, list(arguments), env=environment))
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", FOREIGN_SCHEMAS)
def test_foreign_schema_is_refused_unread(hostile: HostileDatabase, kind: str) -> None:
    hostile.sql(FOREIGN_SCHEMAS[kind], role="mallory")
    database = Database(hostile.url)
    use(database, lambda: schema.install(database, MAX_PAYLOAD))
    use(database, lambda: schema.install(database, MAX_PAYLOAD, again=False))
    use(database, lambda: schema.uninstall(database))
    assert not hostile.attacked
    # As part of the user's own migrations.
    with pytest.raises(psycopg2.Error, match="is not trusted: the schema socketio_pg belongs to mallory") as refused:
        hostile.sql(schema.statements(MAX_PAYLOAD))
    assert refused.value.pgcode == "SG007"
    assert not hostile.attacked


def test_default_privileges_grant_nothing(hostile: HostileDatabase) -> None:
    """With TRIGGER on the outbox, a publisher would run its code with the rights of the schema's owner."""
    hostile.sql("CREATE ROLE colleague")
    try:
        for kind in ("TABLES", "SEQUENCES", "FUNCTIONS", "SCHEMAS"):
            hostile.sql(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO mallory, colleague")
        hostile.sql("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
        hostile.sql(schema.statements(MAX_PAYLOAD, publisher_role="mallory"))
        create = "CREATE TRIGGER mine BEFORE INSERT ON socketio_pg.outbox FOR EACH ROW EXECUTE FUNCTION evil.fire()"
        refused = [create, "SELECT * FROM socketio_pg.log", "SELECT * FROM socketio_pg.cluster_key"]
        refused += ["UPDATE socketio_pg.head SET term = 9", "SELECT nextval('socketio_pg.busy_until')"]
        refused += ["SELECT socketio_pg.probe_kinds('{x}', '{event}')", "SELECT socketio_pg.watch('pg_class')"]
        for statement in refused:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                hostile.sql(statement, role="mallory")
        hostile.sql("SELECT socketio_pg.publish('x', '1')", role="mallory")
        # The owner's own grants stay, except those that let others run code.
        hostile.sql("GRANT ALL ON ALL TABLES IN SCHEMA socketio_pg TO mallory WITH GRANT OPTION")
        hostile.sql("GRANT TRIGGER ON socketio_pg.outbox TO colleague", role="mallory")
        hostile.sql(schema.statements(MAX_PAYLOAD))
        hostile.sql("SELECT * FROM socketio_pg.log", role="mallory")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            hostile.sql(create, role="mallory")
    finally:
        hostile.sql("DROP OWNED BY colleague; DROP ROLE colleague")


def test_server_parts_refuse_a_foreign_schema(hostile: HostileDatabase) -> None:
    database = Database(hostile.url)
    history, publisher, policies = History(database, Recent()), Publisher(database), Policies(database, 2.0)
    durable = [Outgoing("orders", "1", durable=True)]
    # They have connected before the schema appears.
    publisher.publish([Outgoing("orders", "1")])
    with pytest.raises(LogNotInstalledError):
        history.head()
    hostile.sql(FOREIGN_SCHEMAS["views"], role="mallory")
    hostile.sql(FUNCTIONS, role="mallory")
    for work in (
        history.head,
        lambda: publisher.publish(durable),
        lambda: policies.ask(question("subscribe", "orders", role="postgres")),
    ):
        with pytest.raises(UntrustedSchemaError):
            work()
    # NOTIFY needs no schema.
    publisher.publish([Outgoing("orders", "2")])
    for part in (history, publisher, policies):
        part.stop()
    assert not hostile.attacked


@pytest.mark.parametrize("arguments", [("init",), ("drop", "--yes"), ("status",), ("doctor",), ("watches",),
    ("publish", "orders", "1", "--durable"), ("watch", "vault.proof")])  # fmt: skip
def test_commands_refuse_a_foreign_schema(hostile: HostileDatabase, arguments: tuple[str, ...]) -> None:
    hostile.sql(FOREIGN_SCHEMAS["views"], role="mallory")
    hostile.sql(FUNCTIONS, role="mallory")
    code, output = command(hostile, *arguments)
    assert not hostile.attacked
    assert "the schema socketio_pg is not trusted: the schema socketio_pg belongs to mallory" in output
    assert "Traceback" not in output
    assert code == (0 if arguments == ("status",) else 1)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("GRANT CREATE ON SCHEMA socketio_pg TO mallory", "CREATE on the schema socketio_pg is granted to mallory"),
        ("GRANT CREATE ON SCHEMA socketio_pg TO PUBLIC", "CREATE on the schema socketio_pg is granted to PUBLIC"),
        ("ALTER TABLE socketio_pg.head OWNER TO mallory", "socketio_pg.head belongs to mallory"),
        ("ALTER FUNCTION socketio_pg.publish(text, jsonb) OWNER TO mallory",
             "the function socketio_pg.publish belongs to mallory"),
        ("CREATE DOMAIN socketio_pg.text AS text; ALTER DOMAIN socketio_pg.text OWNER TO mallory",
         "the type socketio_pg.text belongs to mallory"),
        ("CREATE TRIGGER mine BEFORE INSERT ON socketio_pg.outbox FOR EACH ROW EXECUTE FUNCTION evil.fire()",
         "the function of the trigger mine on socketio_pg.outbox belongs to mallory"),
        ("DROP TABLE socketio_pg.node CASCADE; CREATE VIEW socketio_pg.node AS SELECT 1",
         "socketio_pg.node is not a table"),
    ],
)  # fmt: skip
def test_foreign_parts_of_our_schema_are_refused(hostile: HostileDatabase, statement: str, problem: str) -> None:
    database = Database(hostile.url)
    install(database)
    hostile.sql("GRANT CREATE ON SCHEMA socketio_pg TO mallory; GRANT ALL ON SCHEMA evil TO PUBLIC")
    hostile.sql(f"{statement}; {'' if 'GRANT' in statement else 'REVOKE CREATE ON SCHEMA socketio_pg FROM mallory'}")
    with pytest.raises(UntrustedSchemaError) as refused:
        install(database)
    assert problem in refused.value.detail
    assert not hostile.attacked


def test_emitter_refuses_a_foreign_key(hostile: HostileDatabase) -> None:
    """A role that chooses the key could read and forge what programs emit."""
    key = "CREATE VIEW socketio_pg.cluster_key AS SELECT 1 AS id, evil.attack() AS key, now() AS created_at"
    hostile.sql(f"CREATE SCHEMA socketio_pg; {key}; GRANT ALL ON socketio_pg.cluster_key TO PUBLIC", role="mallory")
    hostile.sql("GRANT USAGE ON SCHEMA socketio_pg TO PUBLIC", role="mallory")
    hostile.shadow()
    manager = PostgresManager(hostile.url, write_only=True)
    with pytest.raises(ConfigurationError, match="or its table cluster_key, belongs to mallory") as refused:
        in_thread(manager.emit, "news", {"id": 7})
    assert "mallory" not in refused.value.message
    assert not hostile.attacked
    hostile.sql("DROP SCHEMA socketio_pg CASCADE")
    install(Database(hostile.url))
    in_thread(manager.emit, "news", {"id": 7})
    assert not hostile.attacked


def test_schema_that_another_role_creates_after_the_removal_is_refused(hostile: HostileDatabase) -> None:
    """Connections that have verified the schema do not use its successor."""
    database = Database(hostile.url)
    install(database)
    history, publisher = History(database, Recent()), Publisher(database)
    history.head()
    publisher.publish([Outgoing("orders", "1", durable=True)])
    assert in_thread(schema.uninstall, database)
    # The follower reads the head: the removal notifies it.
    with pytest.raises(LogNotInstalledError):
        history.head()
    hostile.sql(FOREIGN_SCHEMAS["functions"], role="mallory")
    with pytest.raises(UntrustedSchemaError):
        publisher.publish([Outgoing("orders", "1", durable=True)])
    assert not hostile.attacked
    history.stop()
    publisher.stop()


@pytest.mark.parametrize("first", ["backlog", "publisher", "policies", "history"])
def test_whichever_part_misses_the_schema_first_has_it_verified_again(hostile: HostileDatabase, first: str) -> None:
    """DROP SCHEMA by hand notifies nobody. The attacker creates the next one within the second."""
    database = Database(hostile.url)
    install(database)
    history, publisher, policies = History(database, Recent()), Publisher(database), Policies(database, 2.0)
    backlog, keys = Backlog(database), KeyReader(database, Sealing(Seal()), ())

    def publish() -> None:
        publisher.publish([Outgoing("orders", "1", durable=True)])

    work: dict[str, Callable[[], object]] = {
        "backlog": backlog._look,
        "publisher": publish,
        "policies": lambda: policies.ask(question("subscribe", "orders", role="postgres")),
        "history": history.head,
        "keys": keys.read,
    }
    for use_schema in work.values():
        use_schema()
    hostile.sql("DROP SCHEMA socketio_pg CASCADE")
    with contextlib.suppress(LogNotInstalledError):  # the backlog notes it
        work[first]()
    hostile.sql(FOREIGN_SCHEMAS["views"], role="mallory")
    hostile.sql(FUNCTIONS, role="mallory")
    hostile.sql("CREATE SEQUENCE socketio_pg.outbox_id_seq", role="mallory")
    hostile.sql(
        "CREATE VIEW socketio_pg.cluster_key AS SELECT ''::bytea AS key, now() AS created_at, evil.attack() AS id",
        role="mallory",
    )
    hostile.sql("GRANT ALL ON ALL TABLES IN SCHEMA socketio_pg TO PUBLIC; GRANT ALL ON SCHEMA socketio_pg TO PUBLIC")
    for use_schema in work.values():
        with contextlib.suppress(LogNotInstalledError, ConfigurationError):
            use_schema()
    assert not hostile.attacked
    for part in (history, publisher, policies, keys):
        part.stop()
    backlog._hang_up()


def test_trusted_owners(hostile: HostileDatabase) -> None:
    """SCHEMA_OWNER adds to the own role, superusers and (unless a superuser asks) the database's owner."""
    hostile.sql("DROP ROLE IF EXISTS alice, bob, team")
    hostile.sql("CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE team ROLE alice, mallory")
    try:
        for creator, user, name, trusted in [
            ("postgres", "bob", None, True),
            ("bob", "bob", None, True),
            ("alice", "bob", None, True),  # a member of the role that owns the database
            ("alice", "postgres", None, False),
            ("alice", "postgres", "alice", True),
            ("bob", "alice", None, False),
            ("bob", "alice", "bob", True),
            ("bob", "alice", "o'ther\\", False),
        ]:
            hostile.sql("DROP SCHEMA IF EXISTS socketio_pg CASCADE; DROP OWNED BY alice, bob")
            hostile.sql("GRANT CREATE ON DATABASE hostile TO alice, bob; ALTER DATABASE hostile OWNER TO team")
            install(Database(hostile.address(creator)))
            database = Database(hostile.address(user), schema_owner=name)
            history = History(database, Recent())
            try:
                history.head()
                found = True
            except UntrustedSchemaError:
                found = False
            except DatabaseError:
                found = True  # permission denied: trusted, but without grants
            finally:
                history.stop()
            assert found is trusted, (creator, user, name)
    finally:
        hostile.sql("ALTER DATABASE hostile OWNER TO postgres; DROP OWNED BY alice, bob CASCADE")
        hostile.sql("DROP ROLE alice, bob, team")


def test_a_shared_group_is_not_trusted(hostile: HostileDatabase) -> None:
    """Every member of a group can create a schema that belongs to the group."""
    hostile.sql("DROP ROLE IF EXISTS staff")
    hostile.sql("CREATE ROLE staff ROLE mallory, postgres; GRANT CREATE ON DATABASE hostile TO staff")
    try:
        hostile.sql("CREATE SCHEMA socketio_pg AUTHORIZATION staff", role="mallory")
        with pytest.raises(UntrustedSchemaError, match="belongs to staff"):
            install(Database(hostile.url))
    finally:
        hostile.sql("DROP SCHEMA socketio_pg; DROP OWNED BY staff; DROP ROLE staff")


def test_overloaded_functions_are_not_called(hostile: HostileDatabase) -> None:
    """The search_path of the role names a schema of the attacker before pg_catalog."""
    hostile.shadow()
    database = Database(hostile.url)
    install(database)
    history, publisher = History(database, Recent()), Publisher(database)
    publisher.publish([Outgoing("orders", "1", durable=True), Outgoing("orders", "1")])
    assert history.head().position == 0
    assert not history.page(0, 10).page.messages
    history.stop()
    publisher.stop()
    hostile.sql("CREATE TABLE vault.orders (id int PRIMARY KEY)")
    for arguments in [
        ("init", "--server-role", "mallory"), ("status",), ("doctor",), ("watch", "vault.orders"), ("watches",),
        ("publish", "orders", "1", "--durable"), ("publish", "orders", "1"), ("unwatch", "vault.orders"),
        ("drop", "--yes"),
    ]:  # fmt: skip
        code, output = command(hostile, *arguments)
        assert not hostile.attacked, arguments
        assert code == 0 or arguments == ("doctor",), output
    # The user's own migration keeps its search_path.
    printed = schema.statements(MAX_PAYLOAD)
    assert hostile.sql(f"BEGIN; {printed}; SHOW search_path") == [("public, pg_catalog",)]
    assert not hostile.attacked
