"""Removing the schema leaves the user's tables unchanged; upgrading from version 2, which has no watch()."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import Database
from tests.support.postgres import Cluster
from tests.support.watching import MAX_PAYLOAD, WatchDatabase, watch_database

pytestmark = pytest.mark.majors


@pytest.fixture
def database(postgres: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(postgres, "uninstalled") as made:
        yield made


def uninstall(database: WatchDatabase) -> bool:
    return schema.uninstall(Database(database.url))


def dump(database: WatchDatabase) -> list[str]:
    """Return the database as SQL, without the lines that differ between dumps."""
    command: list[Any] = [database.cluster.client_dir / "pg_dump", "-d", database.url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line for line in text.splitlines() if not line.startswith(("--", "\\"))]


TABLES = """
CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text);
CREATE TABLE parts (id int, region text) PARTITION BY LIST (region);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER mine AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION mine('an argument');
INSERT INTO orders VALUES (1)
"""


def test_uninstall_restores_the_database(database: WatchDatabase) -> None:
    assert uninstall(database)
    assert not uninstall(database)
    database.sql(TABLES)
    before = dump(database)
    database.sql(schema.statements(MAX_PAYLOAD))
    database.watch("orders")
    database.watch("orders", "o{id}", when="1 / new.id > 0")
    database.watch("parts", per="row", exclude=["region"])
    database.sql("CREATE TABLE gone (); SELECT socketio_pg.watch('gone'); DROP TABLE gone")
    database.sql("CREATE POLICY mine ON socketio_pg.messages USING (channel = socketio_pg.channel())")
    database.sql("SELECT socketio_pg.publish('a', '1')")
    assert dump(database) != before
    assert uninstall(database)
    assert dump(database) == before
    # The schema can be installed again.
    database.sql(schema.statements(MAX_PAYLOAD))
    database.watch("orders")
    assert len(database.sent("INSERT INTO orders VALUES (2)")) == 1


@pytest.mark.parametrize(
    ("statement", "named", "remedy"),
    [
        ("CREATE TABLE socketio_pg.mine ()", "table socketio_pg.mine", "DROP TABLE socketio_pg.mine"),
        ("CREATE VIEW mine AS SELECT * FROM socketio_pg.log", "view public.mine", "DROP VIEW mine"),
        (
            "CREATE TRIGGER mine AFTER INSERT ON orders EXECUTE FUNCTION socketio_pg.recheck_on_change()",
            "trigger mine on table public.orders",
            "DROP TRIGGER mine ON orders",
        ),
        (
            "ALTER TABLE orders ADD x text DEFAULT socketio_pg.channel()",
            "default value for column x of table public.orders",
            "ALTER TABLE orders DROP x",
        ),
    ],
)
def test_user_objects_prevent_uninstall(database: WatchDatabase, statement: str, named: str, remedy: str) -> None:
    database.sql("CREATE TABLE orders (id int)")
    database.watch("orders")
    database.sql(statement)
    before = dump(database)
    with pytest.raises(DatabaseError, match="other objects depend on the schema socketio_pg") as caught:
        uninstall(database)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert dump(database) == before
    database.sql(remedy)
    assert uninstall(database)
    assert database.sql("SELECT to_regnamespace('socketio_pg')") == [(None,)]


def test_uninstall_does_not_wait_for_tables_in_use(database: WatchDatabase) -> None:
    database.sql("CREATE TABLE orders (id int)")
    database.watch("orders")
    database.sql("BEGIN; INSERT INTO orders VALUES (1)")
    with pytest.raises(DatabaseUnavailableError, match="lock timeout"):
        uninstall(database)
    database.sql("COMMIT")
    assert uninstall(database)


def test_upgrade_from_version_2_installs_watch(database: WatchDatabase) -> None:
    """A message waits in the outbox during the upgrade, and is kept."""
    database.sql("CREATE TABLE orders (id int); SELECT socketio_pg.publish('kept', '1')")
    # Version 2 has nothing of sql/4_watch.sql and the later files.
    database.sql(
        """DROP VIEW socketio_pg.watches, socketio_pg.watch_triggers;
        DO $$ DECLARE f regprocedure; BEGIN
            FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'socketio_pg'::regnamespace
                AND (proname LIKE '%watch%' OR proname = 'channel_problem') LOOP
                EXECUTE format('DROP FUNCTION %s', f);
            END LOOP; END $$;
        UPDATE socketio_pg.schema_version SET version = 2"""
    )
    schema.install(Database(database.url), MAX_PAYLOAD, again=False)
    assert database.sql("SELECT version FROM socketio_pg.schema_version") == [(schema.VERSION,)]
    database.watch("orders")
    assert [channel for channel, _ in database.sent("INSERT INTO orders VALUES (1)")] == ["kept", "table:public.orders"]
    # Once more, now with a watch.
    schema.install(Database(database.url), MAX_PAYLOAD)
    assert len(database.sent("INSERT INTO orders VALUES (1)")) == 1


def test_older_schema_can_be_uninstalled(database: WatchDatabase) -> None:
    database.sql(
        "DROP TABLE socketio_pg.messages; DROP FUNCTION socketio_pg.decide, socketio_pg.watch, socketio_pg.unwatch"
    )
    database.sql("DROP VIEW socketio_pg.watches; UPDATE socketio_pg.schema_version SET version = 1")
    assert uninstall(database)
