"""watch() and SQL: partitions, inheritance, upserts, COPY, cascades, ALTER TABLE, dumps and replicas."""

import contextlib
import io
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from socketio_pg.postgres import schema
from tests.support.driver import blocking_driver
from tests.support.postgres import Cluster, cluster, in_thread
from tests.support.watching import MAX_PAYLOAD, WatchDatabase, watch_database


@pytest.fixture(scope="module")
def shared(postgres: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(postgres, "watch_sql") as made:
        yield made


@pytest.fixture
def database(shared: WatchDatabase) -> WatchDatabase:
    """A database without tables."""
    shared.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    shared.taken()
    return shared


@pytest.fixture
def orders(database: WatchDatabase) -> WatchDatabase:
    database.sql("CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text)")
    return database


@pytest.fixture
def parts(database: WatchDatabase) -> WatchDatabase:
    """A partitioned table. The columns of one partition have another order, and include a dropped one."""
    database.sql(
        """CREATE TABLE parts (id int, region text, secret text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
        CREATE TABLE parts_b (junk int, secret text, region text NOT NULL, id int NOT NULL);
        ALTER TABLE parts_b DROP COLUMN junk;
        ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES IN ('b')"""
    )
    return database


def images(payloads: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    return [(payload["op"], payload["old"], payload["new"]) for payload in payloads]


def row(number: int, region: str) -> dict[str, Any]:
    return {"id": number, "region": region}


PER = pytest.mark.parametrize("per", ["statement", "row"])


@PER
def test_partitioned_table_is_watched_as_one_table(parts: WatchDatabase, per: str) -> None:
    parts.watch("parts", per=per, exclude=["secret"], when="new.id > 0 OR old.id > 0")
    payloads = parts.payloads("INSERT INTO parts VALUES (1, 'a', 'private'), (2, 'b', 'private'), (3, 'a', 'private')")
    assert images(payloads) == [
        ("INSERT", None, row(1, "a")),
        ("INSERT", None, row(2, "b")),
        ("INSERT", None, row(3, "a")),
    ]
    assert {(payload["schema"], payload["table"]) for payload in payloads} == {("public", "parts")}
    assert payloads[1]["pk"] == row(2, "b")
    # ALTER TABLE renames the column in all partitions.
    parts.sql("ALTER TABLE parts RENAME secret TO hidden")
    payloads = parts.payloads("UPDATE parts SET hidden = 'private2'; UPDATE parts SET id = id + 10")
    assert sorted(payload["pk"]["id"] for payload in payloads) == [11, 12, 13]
    assert "private" not in str(payloads)
    # A move to another partition is two messages with per => 'row'.
    moved = images(parts.payloads("UPDATE parts SET region = 'b' WHERE region = 'a'"))
    if per == "statement":
        assert sorted(moved, key=str) == [("UPDATE", row(n, "a"), row(n, "b")) for n in (11, 13)]
    else:
        assert moved == [
            ("DELETE", row(11, "a"), None), ("INSERT", None, row(11, "b")),
            ("DELETE", row(13, "a"), None), ("INSERT", None, row(13, "b")),
        ]  # fmt: skip
    # New partitions are watched automatically. Direct writes to a partition are sent only with per => 'row'.
    parts.sql("CREATE TABLE parts_c PARTITION OF parts FOR VALUES IN ('c')")
    assert images(parts.payloads("INSERT INTO parts VALUES (20, 'c')")) == [("INSERT", None, row(20, "c"))]
    expected = [("DELETE", row(20, "c"), None)] if per == "row" else []
    assert images(parts.payloads("DELETE FROM parts_c")) == expected
    assert [payload["op"] for payload in parts.payloads("TRUNCATE parts")] == ["TRUNCATE"]
    assert parts.sql("SELECT table_name, channel, per FROM socketio_pg.watches") == [
        ("public.parts", "table:public.parts", per)
    ]
    assert parts.sql("SELECT socketio_pg.unwatch('parts')") == [(1,)]
    assert parts.sql("SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%socketio_pg%'") == [(0,)]


def test_rows_lost_between_partitions_are_not_mixed_up(parts: WatchDatabase) -> None:
    """A trigger of the other partition drops a row, so later rows have other indexes among the new rows."""
    parts.sql(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON parts_b FOR EACH ROW EXECUTE FUNCTION refuse();
        INSERT INTO parts SELECT n, 'a' FROM generate_series(1, 4) AS n"""
    )
    parts.watch("parts", "all")
    parts.watch("parts", "region:{region}", when="old.id = 3")
    sent = parts.sent("UPDATE parts SET region = 'b'")
    assert {(channel, payload["op"], payload["count"], payload["truncated"]) for channel, payload in sent} == {
        ("all", "UPDATE", 4, True), ("region:a", "UPDATE", 4, True), ("region:b", "UPDATE", 3, True),
    }  # fmt: skip
    assert parts.sql("SELECT count(*) FROM parts") == [(3,)]


def test_notice_names_the_changes_that_are_not_seen(parts: WatchDatabase) -> None:
    parts.sql("CREATE TABLE base (id int); CREATE TABLE derived () INHERITS (base)")

    def blind(table: str, per: str) -> list[str]:
        parts.watch(table, "blind", per=per)
        return [line for notice in parts.connection.notices for line in re.findall("NOTICE:  (.*)", notice)]

    head = "the watch of {} does not see "
    for table, statement, row in (
        ("parts", "statements that name one of its partitions", None),
        ("parts_b", "statements that name its partitioned table", None),
        ("base", "statements that name a table which inherits from it", "rows of tables that inherit from it"),
        ("derived", "statements that name a table from which it inherits", None),
    ):
        name = f"public.{table}"
        assert blind(table, "statement") == [head.format(name) + statement]
        assert blind(table, "row") == ([head.format(name) + row] if row else [])
    parts.sql("CREATE TABLE orders (id int)")
    assert blind("orders", "statement") == blind("orders", "row") == []


def test_single_partition_can_be_watched(parts: WatchDatabase) -> None:
    parts.watch("parts_b")
    [(channel, payload)] = parts.sent("INSERT INTO parts_b VALUES ('s', 'b', 1)")
    assert (channel, payload["table"], payload["pk"]) == ("table:public.parts_b", "parts_b", row(1, "b"))
    # A statement on the parent table fires only the statement triggers of the parent.
    assert parts.sent("INSERT INTO parts VALUES (2, 'b')") == []


def test_inherited_tables_are_watched_with_their_parent(database: WatchDatabase) -> None:
    database.sql("CREATE TABLE parent (id int PRIMARY KEY, a text); CREATE TABLE child (extra text) INHERITS (parent)")
    database.sql("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 'b', 'more')")
    database.watch("parent")
    payloads = database.payloads("UPDATE parent SET a = 'x'")
    assert [payload["new"] for payload in payloads] == [{"id": 1, "a": "x"}, {"id": 2, "a": "x"}]


@PER
def test_upserts_and_merge_send_each_row(orders: WatchDatabase, per: str) -> None:
    orders.sql("INSERT INTO orders SELECT n * 2, 0, 'old' FROM generate_series(1, 4) AS n")
    orders.watch("orders", per=per)
    payloads = orders.payloads(
        "INSERT INTO orders SELECT n, 0, 'new' FROM generate_series(1, 6) AS n"
        " ON CONFLICT (id) DO UPDATE SET status = 'updated', id = -excluded.id WHERE excluded.id < 6"
    )
    found = {payload["pk"]["id"]: (payload["op"], (payload["old"] or {}).get("id")) for payload in payloads}
    inserted = dict.fromkeys((1, 3, 5), ("INSERT", None))
    assert found == inserted | {-2: ("UPDATE", 2), -4: ("UPDATE", 4)}
    assert orders.sent("INSERT INTO orders VALUES (1) ON CONFLICT DO NOTHING") == []
    if orders.version >= 15:  # older ones have no MERGE
        merge = """MERGE INTO orders AS o USING (VALUES (1), (3), (5), (7)) AS s (id) ON o.id = s.id
            WHEN MATCHED AND s.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET id = -o.id, status = 'merged'
            WHEN NOT MATCHED THEN INSERT VALUES (s.id, 0, 'merged')"""
        found = {
            payload["pk"]["id"]: (payload["op"], (payload["old"] or {}).get("id")) for payload in orders.payloads(merge)
        }
        assert found == {1: ("DELETE", 1), -3: ("UPDATE", 3), -5: ("UPDATE", 5), 7: ("INSERT", None)}


@PER
def test_copy_sends_each_row(orders: WatchDatabase, per: str) -> None:
    orders.watch("orders", per=per)
    with blocking_driver(), orders.connection.cursor() as cursor:  # psycopg2 cannot COPY with a wait callback
        cursor.copy_expert("COPY orders (id, status) FROM STDIN", io.StringIO("1\tone\n2\t\\N\n"))
    assert [payload["new"] for _, payload in orders.taken()] == [
        {"id": 1, "customer_id": None, "status": "one"},
        {"id": 2, "customer_id": None, "status": None},
    ]


def test_cascades_of_foreign_keys_are_sent(orders: WatchDatabase) -> None:
    orders.sql(
        """CREATE TABLE items (id int PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE);
        INSERT INTO orders VALUES (1), (2); INSERT INTO items VALUES (1, 1), (2, 1), (3, 2)"""
    )
    orders.watch("items")
    orders.watch("orders")
    sent = orders.sent("UPDATE orders SET id = 5 WHERE id = 1; DELETE FROM orders")
    assert [(payload["table"], payload["op"]) for _, payload in sent].count(("items", "UPDATE")) == 2
    assert sorted(payload["pk"]["id"] for _, payload in sent if payload["op"] == "DELETE") == [1, 2, 2, 3, 5]
    assert {payload["table"] for payload in orders.payloads("TRUNCATE orders CASCADE")} == {"orders", "items"}


def test_writes_by_triggers_and_ctes_are_sent(orders: WatchDatabase) -> None:
    orders.sql(
        """CREATE TABLE audit (at int PRIMARY KEY, what text);
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO audit VALUES (NEW.id, TG_OP); NEW.status := 'triggered'; RETURN NEW; END $$;
        CREATE TRIGGER audit BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION audit()"""
    )
    orders.watch("orders")
    orders.watch("audit")
    payloads = orders.payloads("INSERT INTO orders VALUES (1), (2)")
    assert [(payload["table"], payload["new"].get("status")) for payload in payloads] == [
        ("audit", None), ("orders", "triggered"), ("audit", None), ("orders", "triggered"),
    ]  # fmt: skip
    payloads = orders.payloads(
        "WITH gone AS (DELETE FROM orders RETURNING *) INSERT INTO audit SELECT id + 10, 'gone' FROM gone"
    )
    assert sorted(payload["op"] for payload in payloads) == ["DELETE", "DELETE", "INSERT", "INSERT"]


@PER
def test_alter_table_takes_effect_in_open_sessions(orders: WatchDatabase, per: str) -> None:
    orders.watch("orders", "o{id}", per=per, when="coalesce(new.id, old.id) > 0")
    assert orders.payloads("INSERT INTO orders VALUES (1, 2, 'a')")[0]["new"] == {
        "id": 1,
        "customer_id": 2,
        "status": "a",
    }
    orders.sql("ALTER TABLE orders ADD extra jsonb DEFAULT '{\"a\": [1]}', DROP COLUMN customer_id")
    assert orders.payloads("UPDATE orders SET status = 'b'")[0]["new"] == {"id": 1, "status": "b", "extra": {"a": [1]}}
    orders.sql("ALTER TABLE orders RENAME COLUMN status TO state")
    orders.sql("ALTER TABLE orders ALTER COLUMN state TYPE int USING 7")
    [payload] = orders.payloads("UPDATE orders SET state = 8")
    assert (payload["new"], payload["changed"]) == ({"id": 1, "state": 8, "extra": {"a": [1]}}, ["state"])
    orders.sql("ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders ADD PRIMARY KEY (state)")
    assert orders.payloads("DELETE FROM orders")[0]["pk"] == {"state": 8}
    orders.sql("CREATE SCHEMA other; ALTER TABLE orders SET SCHEMA other; ALTER TABLE other.orders RENAME TO sales")
    [(channel, payload)] = orders.sent("INSERT INTO other.sales VALUES (4, 4)")
    assert (channel, payload["schema"], payload["table"]) == ("o4", "other", "sales")
    # Without a column that the channel and the condition need, the watch fails; the transaction does not.
    orders.sql("ALTER TABLE other.sales RENAME id TO number")
    assert orders.sent("INSERT INTO other.sales VALUES (5, 5)") == []
    assert len(orders.warnings) == 1
    assert orders.failures("other.sales") == [1]
    assert orders.sql("SELECT count(*) FROM other.sales") == [(2,)]
    orders.sql("DROP SCHEMA other CASCADE")


def test_stale_snapshot_does_not_disclose_a_renamed_column(orders: WatchDatabase) -> None:
    """A transaction that still sees the old catalog writes a row with the new column names."""
    orders.sql("ALTER TABLE orders ADD secret text")
    orders.watch("orders", exclude=["secret"])
    with contextlib.closing(orders.connect()) as other:
        cursor = other.cursor()
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        orders.sql("ALTER TABLE orders RENAME secret TO hash")
        cursor.execute("INSERT INTO orders VALUES (1, 1, 'a', 'private'); COMMIT")
    [(_, payload)] = orders.taken()
    assert "private" not in str(payload)
    assert payload["new"]["status"] == "a"


def test_table_newer_than_the_snapshot(database: WatchDatabase) -> None:
    with contextlib.closing(database.connect()) as other:
        cursor = other.cursor()
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        database.sql("CREATE TABLE young (id int PRIMARY KEY, secret text)")
        database.watch("young", "all")
        database.watch("young", "some", exclude=["secret"])
        cursor.execute("INSERT INTO young VALUES (1, 'private'); COMMIT")
        assert not other.notices
    sent = dict(database.taken())
    assert sent["all"]["new"] == {"id": 1, "secret": "private"}
    assert "private" not in str(sent["some"])


def test_names_can_have_quotes_and_unicode(database: WatchDatabase) -> None:
    database.sql(
        'CREATE SCHEMA "Ünï ""s"; CREATE TABLE "Ünï ""s"."T \'x" ("Key \\" int PRIMARY KEY, "日本 %s" text, "a""b" int)'
    )
    table = '"Ünï ""s"."T \'x"'
    assert database.watch(table) == "table:Ünï \"s.T 'x"
    database.watch(table, "ja:{日本 %s}", exclude=['a"b'], when='new."Key \\" > 0', per="row")
    sent = database.sent(f"INSERT INTO {table} VALUES (1, 'é', 2)")
    assert {channel for channel, _ in sent} == {"table:Ünï \"s.T 'x", "ja:é"}
    for channel, payload in sent:
        assert payload["pk"] == {"Key \\": 1}
        assert payload["new"] == {"Key \\": 1, "日本 %s": "é"} | ({} if channel == "ja:é" else {'a"b': 2})
        assert (payload["schema"], payload["table"]) == ('Ünï "s', "T 'x")
    assert database.sql("SELECT DISTINCT table_name FROM socketio_pg.watches") == [(table,)]
    assert database.sql("SELECT socketio_pg.unwatch(%s)", table) == [(2,)]
    database.sql('DROP SCHEMA "Ünï ""s" CASCADE')


def test_dump_includes_watches(orders: WatchDatabase, postgres: Cluster) -> None:
    orders.sql(
        "ALTER TABLE orders DROP customer_id; ALTER TABLE orders ADD secret text, ADD token text, ADD plain text"
    )
    orders.watch("orders", "o{id}", exclude=["secret"], when="new.status <> 'it''s \\ \"x\"'")
    orders.watch("orders", "renamed", exclude=["token"])
    orders.sql("ALTER TABLE orders RENAME token TO key; INSERT INTO orders VALUES (1, 'a', 'private', 'private', 'p')")
    orders.taken()
    text = subprocess.run(
        [postgres.client_dir / "pg_dump", "-d", orders.url], check=True, capture_output=True, env=os.environ
    ).stdout
    postgres.sql("DROP DATABASE IF EXISTS watch_restored WITH (FORCE)")
    postgres.sql("CREATE DATABASE watch_restored")
    command: list[Any] = [
        postgres.client_dir / "psql",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        postgres.url("watch_restored"),
    ]
    subprocess.run(command, input=text, check=True, capture_output=True)
    restored = WatchDatabase.__new__(WatchDatabase)
    restored.url = postgres.url("watch_restored")
    restored.connection = restored.connect()
    view = "SELECT * FROM socketio_pg.watches ORDER BY channel"
    assert restored.sql(view) == orders.sql(view)
    # Column numbers have changed: exclusion is by name, and a watch whose excluded column was renamed sends nothing.
    sent = restored.sent("INSERT INTO orders VALUES (2, 'b', 'private', 'private', 'p')")
    assert [channel for channel, _ in sent] == ["o2"]
    assert sent[0][1]["new"] == {"id": 2, "status": "b", "key": "private", "plain": "p"}
    assert "call watch() again" in str(restored.warnings)
    restored.close()
    postgres.sql("DROP DATABASE watch_restored WITH (FORCE)")


def test_restore_of_some_schemas(orders: WatchDatabase, postgres: Cluster) -> None:
    """The dump lacks what the triggers call. With the schema in the target database, the watches work."""
    orders.watch("orders", "all")
    orders.watch("orders", "some", when="new.id > 1")
    orders.sql("INSERT INTO orders VALUES (1)")
    orders.taken()
    dump: list[Any] = [postgres.client_dir / "pg_dump", "--schema=public", "-d", orders.url]
    text = subprocess.run(dump, check=True, capture_output=True, env=os.environ).stdout
    for installed in (False, True):
        postgres.sql("DROP DATABASE IF EXISTS watch_restored WITH (FORCE)")
        postgres.sql("CREATE DATABASE watch_restored")
        restored = WatchDatabase.__new__(WatchDatabase)
        restored.url = postgres.url("watch_restored")
        restored.connection = restored.connect()
        if installed:
            restored.sql(schema.statements(MAX_PAYLOAD))
        result = subprocess.run(
            [postgres.client_dir / "psql", "-q", "-d", restored.url], input=text, check=True, capture_output=True
        )
        errors = [line for line in result.stderr.decode().splitlines() if "ERROR" in line and '"public"' not in line]
        assert bool(errors) == (not installed)
        assert all('schema "socketio_pg" does not exist' in line for line in errors)
        assert restored.sql("SELECT id FROM public.orders") == [(1,)]
        if not installed:
            # The other remedy.
            restored.sql(schema.statements(MAX_PAYLOAD))
            restored.watch("public.orders", "all")
        assert [channel for channel, _ in restored.sent("INSERT INTO public.orders VALUES (2)")] == ["all"]
        assert restored.failures("public.orders") == ([0, 1] if installed else [0])
        restored.watch("public.orders", "some", when="new.id > 1")
        assert len(restored.sent("INSERT INTO public.orders VALUES (3)")) == 2
        restored.close()
    postgres.sql("DROP DATABASE watch_restored WITH (FORCE)")


def test_replica_role_fires_only_always_triggers(orders: WatchDatabase) -> None:
    orders.watch("orders")
    replicating = "BEGIN; SET LOCAL session_replication_role = replica; INSERT INTO orders VALUES (%s); COMMIT"
    assert orders.sent(replicating, 1) == []
    orders.sql(
        """DO $$ DECLARE t record; BEGIN
            FOR t IN SELECT tgrelid::regclass AS tbl, tgname FROM pg_trigger
                WHERE tgrelid = 'orders'::regclass AND tgname LIKE 'socketio\\_pg\\_watch\\_%' LOOP
                EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.tbl, t.tgname);
            END LOOP; END $$"""
    )
    assert [payload["pk"] for payload in orders.payloads(replicating, 2)] == [{"id": 2}]


def test_logical_replica_fires_only_always_row_triggers() -> None:
    """Writes of the apply worker fire row triggers that are enabled as ALWAYS, and no statement triggers."""
    with cluster() as made:
        made.sql("ALTER SYSTEM SET wal_level = logical")
        made.restart()
        made.sql("CREATE DATABASE source")
        table = "CREATE TABLE orders (id int PRIMARY KEY, status text)"
        with (
            contextlib.closing(psycopg2.connect(made.url("source"))) as source,
            watch_database(made, "replica") as replica,
        ):
            source.autocommit = True
            cursor = source.cursor()
            cursor.execute(table)
            cursor.execute("CREATE PUBLICATION p FOR TABLE orders")
            cursor.execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')")
            replica.sql(table)
            for per in ("row", "statement"):
                replica.watch("orders", per, per=per)
            replica.sql(
                """DO $$ DECLARE t record; BEGIN FOR t IN SELECT name FROM socketio_pg.watch_triggers LOOP
                    EXECUTE format('ALTER TABLE orders ENABLE ALWAYS TRIGGER %I', t.name); END LOOP; END $$"""
            )
            address = made.url("source").replace("'", "''")
            replica.sql(
                f"CREATE SUBSCRIPTION s CONNECTION '{address}' PUBLICATION p"
                " WITH (create_slot = false, slot_name = 'slot', copy_data = false)"
            )
            listener = replica.connect()
            listener.cursor().execute("LISTEN socketio_pg_bell")
            cursor.execute("INSERT INTO orders VALUES (1, 'a'); UPDATE orders SET status = 'b'; DELETE FROM orders")
            sent: list[Any] = []
            while len(sent) < 3:
                in_thread(listener.poll)
                sent += replica.taken()
            assert [(channel, payload["op"]) for channel, payload in sent] == [
                ("row", "INSERT"), ("row", "UPDATE"), ("row", "DELETE"),
            ]  # fmt: skip
            listener.close()
            replica.sql("ALTER SUBSCRIPTION s DISABLE; ALTER SUBSCRIPTION s SET (slot_name = NONE)")
            replica.sql("DROP SUBSCRIPTION s")
            cursor.execute("SELECT pg_drop_replication_slot('slot') FROM pg_replication_slots WHERE NOT active")
