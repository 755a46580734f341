"""watch(): the messages of a transaction are in the order in which its rows changed, whatever triggers do in between.

The truth is the WAL, which logical decoding reads.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketio_pg.postgres import schema
from tests.support.decoding import changes
from tests.support.nightly import sampled
from tests.support.postgres import VERSIONS, Cluster, in_thread
from tests.support.watching import MAX_PAYLOAD, WatchDatabase, dropped_at_the_end

Change = tuple[Any, ...]

#: Errors of the random statements.
EXPECTED = (
    psycopg2.IntegrityError, psycopg2.errors.TriggeredDataChangeViolation, psycopg2.errors.CardinalityViolation,
    psycopg2.errors.ObjectInUse,
)  # fmt: skip


class OrderDatabase(WatchDatabase):
    """Tables that are watched on one channel: a; b; c, whose rows belong to those of a; and marks, for publish()."""

    def prepare(self) -> None:
        self.with_orders()
        self.sql("""
            CREATE TABLE a (id int PRIMARY KEY, n int);
            CREATE TABLE b (id int PRIMARY KEY, n int);
            CREATE TABLE c (id int PRIMARY KEY, n int REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE);
            CREATE TABLE marks (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
            ALTER TABLE a REPLICA IDENTITY FULL;
            ALTER TABLE b REPLICA IDENTITY FULL;
            ALTER TABLE c REPLICA IDENTITY FULL;
            CREATE PUBLICATION everything FOR TABLE a, b, c, marks;
            CREATE FUNCTION mark() RETURNS void LANGUAGE plpgsql AS $$
            DECLARE
                new_id int;
            BEGIN
                INSERT INTO marks DEFAULT VALUES RETURNING id INTO new_id;
                PERFORM socketio_pg.publish('all', to_jsonb(new_id));
            END $$;
        """)
        self.sql("SELECT pg_create_logical_replication_slot('watch_order', 'pgoutput')")

    def watch_all(self, per: str) -> None:
        for table in "abc":
            self.watch(table, "all", per=per, bulk_limit=None)

    def knows(self, statement: str) -> bool:
        return self.version >= 15 or "MERGE" not in statement

    def reset(self, triggers: "list[Trigger]") -> None:
        """Empty the tables, and replace the user's triggers."""
        self.sql("""
            SET session_replication_role = replica; TRUNCATE a, b, c, marks RESTART IDENTITY;
            RESET session_replication_role; DELETE FROM socketio_pg.outbox;
            DROP FUNCTION IF EXISTS f0, f1, f2, f3 CASCADE
        """)
        self.sql("SELECT pg_replication_slot_advance('watch_order', pg_current_wal_insert_lsn())")
        for number, trigger in enumerate(triggers):
            if self.knows(trigger.action):
                self.sql(trigger.sql(number))

    def both(self, statements: list[str]) -> tuple[list[Change], list[Change]]:
        """Run a transaction. Return the changes according to the messages, and those according to the WAL."""
        found: tuple[list[Change], list[Change]] = in_thread(self._both, statements)
        return found

    def _both(self, statements: list[str]) -> tuple[list[Change], list[Change]]:
        with self.connection.cursor() as cursor:
            cursor.execute("BEGIN")
            for statement in filter(self.knows, statements):
                cursor.execute("SAVEPOINT s")
                try:
                    cursor.execute(statement)
                except EXPECTED:
                    cursor.execute("ROLLBACK TO s")
            cursor.execute("COMMIT")
            truth = changes(cursor, "watch_order", "everything")
        expected = [
            ("mark", new["id"]) if table == "marks" and new else (table, op, old, new)
            for table, op, old, new in truth
            # An UPDATE that changes nothing sends nothing.
            if op != "UPDATE" or old != new
        ]
        return [self._change(payload) for _, payload in self._taken()], expected

    def drop_slot(self) -> None:
        self.sql("SELECT pg_drop_replication_slot('watch_order')")

    def _taken(self) -> list[tuple[str, Any]]:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "WITH d AS (DELETE FROM socketio_pg.outbox RETURNING *) SELECT channel, payload FROM d ORDER BY id"
            )
            return list(cursor.fetchall())

    @staticmethod
    def _change(payload: Any) -> Change:
        if isinstance(payload, int):
            return ("mark", str(payload))

        def row(image: dict[str, Any] | None) -> dict[str, str | None] | None:
            return image and {name: None if value is None else str(value) for name, value in image.items()}

        return payload["table"], payload["op"], row(payload["old"]), row(payload["new"])


@dataclass(frozen=True)
class Trigger:
    """A trigger of the user's, which runs ``action``, and rolls it back if ``failing``."""

    table: str
    when: str
    level: str
    operations: str
    action: str
    failing: bool

    def sql(self, number: int) -> str:
        # Some fire before the triggers of a watch, some after them.
        name = f"{'at~'[number % 3]}{number}"
        result = "coalesce(NEW, OLD)" if self.when == "BEFORE" and self.level == "ROW" else "NULL"
        if "DELETE" in self.operations and result != "NULL":
            result = "CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END"
        fails = "RAISE 'rolled back';" if self.failing else ""
        return f"""
            CREATE FUNCTION f{number}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF pg_trigger_depth() < 4 THEN
                    BEGIN
                        {self.action}; {fails}
                    EXCEPTION WHEN OTHERS THEN NULL;
                    END;
                END IF;
                RETURN {result};
            END $$;
            CREATE TRIGGER "{name}" {self.when} {self.operations} ON {self.table} FOR EACH {self.level}
                EXECUTE FUNCTION f{number}();
        """


TABLES = st.sampled_from("aab")
RANGES = st.tuples(st.integers(1, 3), st.integers(0, 2)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def actions(draw: st.DrawFn) -> str:
    table, other = draw(TABLES), draw(TABLES)
    first, last = draw(RANGES)
    n = "NULL" if other == "c" else str(draw(st.integers(0, 9)))
    template = draw(st.sampled_from([
        "INSERT INTO {t} SELECT g, {n} FROM generate_series({first}, {last}) AS g ON CONFLICT DO NOTHING",
        "INSERT INTO {t} SELECT g, {n} FROM generate_series({first}, {last}) AS g"
        " ON CONFLICT (id) DO UPDATE SET n = {t}.n + 1",
        "UPDATE {t} SET n = n + 1 WHERE id BETWEEN {first} AND {last}",
        "UPDATE {t} SET id = id + 10 WHERE id BETWEEN {first} AND {last}",
        "DELETE FROM {t} WHERE id BETWEEN {first} AND {last}",
        "MERGE INTO {t} USING generate_series({first}, {last}) AS g ON {t}.id = g"
        " WHEN MATCHED AND g % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = n + 1"
        " WHEN NOT MATCHED THEN INSERT VALUES (g, {n})",
        "WITH x AS (INSERT INTO {o} SELECT g, {n} FROM generate_series({first}, {last}) AS g"
        " ON CONFLICT (id) DO UPDATE SET n = {n} RETURNING id)"
        " INSERT INTO {t} SELECT id + 1, {n} FROM x ON CONFLICT DO NOTHING",
        "WITH x AS (DELETE FROM {o} WHERE id BETWEEN {first} AND {last} RETURNING id)"
        " UPDATE {t} SET n = n + 1 WHERE id <= 2",
        "INSERT INTO c SELECT id, id FROM a ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        "TRUNCATE {t} CASCADE",
        "PERFORM mark()",
    ]))  # fmt: skip
    return str(template.format(t=table, o=other, first=first, last=last, n=n))


TRIGGERS = st.builds(
    Trigger,
    TABLES,
    st.sampled_from(["BEFORE", "AFTER"]),
    st.sampled_from(["ROW", "ROW", "STATEMENT"]),
    st.sampled_from(["INSERT", "UPDATE", "DELETE", "INSERT OR UPDATE", "INSERT OR UPDATE OR DELETE"]),
    actions(),
    st.sampled_from([False, False, False, True]),
)


@pytest.fixture(scope="module", params=sampled(VERSIONS, lambda version: version == VERSIONS[0]))
def prepared(request: pytest.FixtureRequest, cluster_of: Callable[[int], Cluster]) -> Iterator[OrderDatabase]:
    with dropped_at_the_end(OrderDatabase(cluster_of(request.param), "watch_order")) as made:
        made.prepare()
        yield made
        made.drop_slot()


@pytest.fixture(scope="module", params=["statement", "row"])
def database(prepared: OrderDatabase, request: pytest.FixtureRequest) -> OrderDatabase:
    prepared.watch_all(request.param)
    return prepared


def as_statement(action: str) -> str:
    return action.replace("PERFORM", "SELECT")


@given(st.lists(TRIGGERS, max_size=4), st.lists(actions(), min_size=1, max_size=4))
@settings(deadline=None, max_examples=10 if settings().max_examples <= 100 else 300)
def test_messages_have_the_order_of_the_wal(
    database: OrderDatabase, triggers: list[Trigger], statements: list[str]
) -> None:
    database.reset(triggers)
    start = "INSERT INTO a SELECT g, 0 FROM generate_series(1, 2) AS g ON CONFLICT DO NOTHING"
    told, truth = database.both([start, *map(as_statement, statements)])
    assert told == truth
    assert database.failures("public.a") == [0]


ROWS = "INSERT INTO a SELECT g, 0 FROM generate_series(1, 3) AS g"
#: The user's trigger on the table a, a statement, and the operations of the messages in order.
NESTS = {
    "updates the row": ("AFTER INSERT ROW", "UPDATE a SET n = n + 1 WHERE id = NEW.id", ROWS, "III UUU"),
    "replaces the row": ("BEFORE INSERT ROW", "DELETE FROM a WHERE id = NEW.id", f"{ROWS} {ROWS}", "III DIDIDI"),
    "writes before": ("BEFORE UPDATE ROW", "INSERT INTO b VALUES (NEW.n, NEW.id)",
        f"{ROWS} UPDATE a SET n = id", "III IUIUIU"),
    "writes before the statement": ("BEFORE DELETE STATEMENT", "PERFORM mark()",
        f"{ROWS} WITH x AS (DELETE FROM a RETURNING id) INSERT INTO b SELECT id, id FROM x", "III mDIDIDI"),
    "publishes": ("BEFORE INSERT ROW", "PERFORM mark()", ROWS, "mImImI"),
    "fails": ("BEFORE INSERT ROW", "BEGIN INSERT INTO b VALUES (NEW.id); RAISE 'x'; EXCEPTION WHEN OTHERS THEN END",
        ROWS, "III"),
    "truncates": ("AFTER TRUNCATE STATEMENT", f"{ROWS}; UPDATE a SET n = 1; PERFORM mark()",
        f"{ROWS} TRUNCATE a, c", "IIITTIIIUUUm"),
    "is called by the statement": ("AFTER UPDATE ROW", "NULL",
        f"{ROWS} INSERT INTO b SELECT g, 0 FROM generate_series(1, 2) AS g, mark() RETURNING mark()", "III mImIm"),
}  # fmt: skip


@pytest.mark.parametrize("nest", NESTS)
def test_order_of_one_nest_of_triggers(database: OrderDatabase, nest: str) -> None:
    event, action, statement, expected = NESTS[nest]
    when, operation, level = event.split()
    database.reset([Trigger("a", when, level, operation, action, False)])
    told, truth = database.both([part for part in re.split(f"(?<={re.escape(ROWS)}) ", statement) if part])
    assert told == truth
    letters = "".join("m" if change[0] == "mark" else change[1][0] for change in told)
    assert letters == expected.replace(" ", "")


def test_nest_of_statements_of_the_same_kind(database: OrderDatabase) -> None:
    """Each row has a place of its own, and a nested statement runs between two calls of a row trigger."""
    nested = "INSERT INTO a SELECT NEW.id * 10 + n, 0 FROM generate_series(1, 2) AS n WHERE NEW.id < 10"
    database.reset([
        Trigger("a", "BEFORE", "ROW", "INSERT", "PERFORM mark()", False),
        Trigger("a", "AFTER", "ROW", "INSERT", nested, False),
    ])  # fmt: skip
    told, truth = database.both([ROWS])
    assert told == truth
    assert len(told) == 18


def test_statement_that_waits_for_another_transaction_comes_after_it(database: OrderDatabase) -> None:
    """The waiting statement has changed a row before the other transaction changes the next one."""
    database.reset([])
    database.sql("INSERT INTO a VALUES (1, 0), (2, 0)")
    database.taken()
    with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; UPDATE a SET n = 10 WHERE id = 2")
        waiting = threading.Thread(target=database.sql, args=("UPDATE a SET n = n + 1",))
        waiting.start()
        wait = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        while True:
            cursor.execute(wait)
            if cursor.fetchone()[0]:
                break
        cursor.execute("UPDATE a SET n = 20 WHERE id = 2; COMMIT")
        waiting.join()
    sent = [(payload["pk"]["id"], payload["new"]["n"]) for _, payload in database.taken()]
    assert sent == [(2, 10), (2, 20), (1, 1), (2, 21)]


# -- other tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def orders(prepared: OrderDatabase) -> WatchDatabase:
    prepared.sql("DROP TABLE IF EXISTS orders CASCADE")
    prepared.sql("CREATE TABLE orders (id int PRIMARY KEY, n int)")
    prepared.taken()
    return prepared


UPDATES_ITSELF = """
CREATE OR REPLACE FUNCTION update_itself() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN UPDATE orders SET n = n + 1 WHERE id = NEW.id; RETURN NULL; END $$;
CREATE TRIGGER a AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION update_itself()
"""


def numbers(sent: list[tuple[str, Any]]) -> list[int]:
    return [payload["new"]["n"] for _, payload in sent]


@pytest.mark.parametrize("per", ["statement", "row"])
def test_rows_that_move_to_another_partition(orders: WatchDatabase, per: str) -> None:
    """And statements that name a partition, which is watched too."""
    orders.sql("DROP TABLE orders; CREATE TABLE orders (id int PRIMARY KEY, n int) PARTITION BY LIST (id)")
    orders.sql("CREATE TABLE low PARTITION OF orders FOR VALUES IN (1, 2); CREATE TABLE high (n int, id int NOT NULL)")
    orders.sql("ALTER TABLE orders ATTACH PARTITION high FOR VALUES IN (11, 12, 13)")
    orders.watch("low")
    orders.watch("orders", per=per)
    channels = [channel for channel, _ in orders.sent("INSERT INTO low VALUES (1, 0)")]
    assert sorted(channels) == ["table:public.low", "table:public.orders"][: 1 if per == "statement" else 2]
    orders.sql(UPDATES_ITSELF.replace("AFTER INSERT", "AFTER UPDATE").replace("WHERE", "WHERE n < 3 AND"))
    orders.sql("INSERT INTO orders VALUES (2, 1)")
    orders.taken()
    sent = orders.sent("UPDATE orders SET id = id + 10, n = n + 1")
    rows: dict[int, int] = {1: 0, 2: 1}
    for _, payload in sent:
        if payload["old"]:
            assert rows.pop(payload["old"]["id"]) == payload["old"]["n"], sent
        if payload["new"]:
            rows[payload["new"]["id"]] = payload["new"]["n"]
    assert rows == dict(orders.sql("SELECT id, n FROM orders"))
    orders.sql("DROP TABLE orders CASCADE")


def test_all_watches_of_a_table_are_in_order(orders: WatchDatabase) -> None:
    orders.sql(UPDATES_ITSELF)
    orders.watch("orders", "first")
    orders.watch("orders", "second", per="row")
    orders.watch("orders", "third", operations=["INSERT"])
    orders.watch("orders", "fourth", bulk_limit=0)
    sent = orders.sent("INSERT INTO orders VALUES (1, 0)")
    for channel in ("first", "second"):
        assert numbers([message for message in sent if message[0] == channel]) == [0, 1]
    assert [payload["op"] for channel, payload in sent if channel == "fourth"] == ["INSERT", "UPDATE"]
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'orders'::regclass AND tgname <> 'a'"
    for channel in ("second", "first"):
        orders.sql("SELECT socketio_pg.unwatch('orders', %s)", channel)
        sent = orders.sent("DELETE FROM orders; INSERT INTO orders VALUES (1, 0)")
        assert [payload["op"] for channel, payload in sent if channel == "fourth"] == ["DELETE", "INSERT", "UPDATE"]
    orders.sql("SELECT socketio_pg.unwatch('orders')")
    assert orders.sql(triggers) == [(0,)]
    assert orders.sent("INSERT INTO orders VALUES (2, 0)") == []


def test_serializable_transactions_do_not_fail_for_messages(orders: WatchDatabase) -> None:
    """They insert different rows. Putting the messages into order would read those of the other transaction."""
    orders.sql("""
        CREATE OR REPLACE FUNCTION also_publish() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM socketio_pg.publish('x', '1'); RETURN NULL; END $$;
        CREATE TRIGGER a AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION also_publish()
    """)
    orders.watch("orders")
    with contextlib.closing(orders.connect()) as first, contextlib.closing(orders.connect()) as second:
        cursors = [first.cursor(), second.cursor()]
        for cursor in cursors:
            cursor.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        for number in range(4):
            cursors[number % 2].execute("INSERT INTO orders VALUES (%s, 0)", (number,))
        for cursor in cursors:
            cursor.execute("COMMIT")
    assert len(orders.taken()) == 8


def test_settings_of_the_writer_change_no_message(orders: WatchDatabase) -> None:
    """Any role may set them. What it sets concerns the order of its own messages at most."""
    orders.watch("orders")
    orders.watch("orders", "rows", per="row")
    [(key,)] = orders.sql(
        "SELECT DISTINCT spec ->> 'key' FROM socketio_pg.watch_triggers WHERE relation = 'orders'::regclass"
    )
    for name in ("place", "run", "sent", "sent_first", f"runs_{key}INSERT", f"runs_{key}UPDATE"):
        for value in ("x", "9" * 19, "|/", "|1/ 2 3", "|999999999999999/ 1 x", "|/ 9 9 9|", "|1/ 2 x", "|1/ 2 3 4 5"):
            sent = orders.sent(
                f"BEGIN; SET LOCAL socketio_pg.{name} = '{value}'; INSERT INTO orders VALUES (1, 0), (2, 0);"
                " UPDATE orders SET n = 1; SELECT socketio_pg.publish('x', '1'); DELETE FROM orders;"
                f" SET LOCAL socketio_pg.{name} = '{value}'; TRUNCATE orders; COMMIT"
            )
            assert len(sent) == 15, (name, value)
    assert orders.failures("public.orders") == [0, 0]


def test_upgrade_gives_existing_watches_the_order(orders: WatchDatabase) -> None:
    """A table in use keeps its watch as it is, and is upgraded by the next installation."""
    orders.sql(UPDATES_ITSELF)
    orders.watch("orders", per="row")
    orders.watch("orders", "second")
    # As an older version has left them.
    orders.sql("""
        DO $$ DECLARE t record; BEGIN
            FOR t IN SELECT * FROM socketio_pg.watch_triggers WHERE relation = 'orders'::regclass LOOP
                EXECUTE format('DROP TRIGGER %I ON orders', t.name);
                EXECUTE format('ALTER TABLE orders ENABLE ALWAYS TRIGGER %I',
                    socketio_pg.watch_create('orders', t.operation, t.spec - 'key'));
            END LOOP;
            PERFORM socketio_pg.watch_order('orders');
        END $$
    """)
    install = schema.statements(MAX_PAYLOAD)
    insert = "INSERT INTO orders VALUES (1, 0); DELETE FROM orders"
    with contextlib.closing(orders.connect()) as writer:
        writer.cursor().execute("BEGIN; DELETE FROM orders")
        orders.sql(install)
        assert "the watches of public.orders keep the order of an older version" in orders.warnings[0]
        writer.cursor().execute("COMMIT")
    assert len(orders.sent(insert)) == 6
    orders.sql(install)
    sent = orders.sent(insert)
    for name in ("second", "table:public.orders"):
        found = [payload for channel, payload in sent if channel == name]
        assert [payload["op"] for payload in found] == ["INSERT", "UPDATE", "DELETE"]
    # Triggers that are enabled as ALWAYS stay so.
    statement = (
        "SET session_replication_role = replica; INSERT INTO orders VALUES (1, 0); RESET session_replication_role"
    )
    assert len(orders.sent(statement)) == 2
    orders.sql(install)
    assert orders.warnings == []
