"""watch() and unwatch(): the view of watches, dropped tables, invalid arguments, concurrent calls."""

import contextlib
import re
import threading
from collections.abc import Iterator

import psycopg2
import pytest

from tests.support.postgres import Cluster
from tests.support.watching import WatchDatabase, watch_database


@pytest.fixture(scope="module")
def database(postgres: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(postgres, "watch_options") as made:
        yield made


@pytest.fixture
def orders(database: WatchDatabase) -> WatchDatabase:
    return database.with_orders()


def test_watches_view_follows_watch_and_unwatch(orders: WatchDatabase) -> None:
    orders.watch("orders")
    orders.watch(
        "orders", "orders:{customer_id}", operations=["UPDATE"], columns=["status"], exclude=["id"], when="true",
        old=False, tier="notify", per="row", bulk_limit=None,
    )  # fmt: skip
    view = "SELECT * FROM socketio_pg.watches WHERE table_name = 'public.orders' ORDER BY channel"
    everything = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    plain = ("public.orders", "table:public.orders", everything, None, None, None, True, "log", "statement", 1000, 0)
    failures = (None, None)  # the last error, and its time
    assert orders.sql(view) == [
        (
            "public.orders",
            "orders:{customer_id}",
            ["UPDATE"],
            ["status"],
            ["id"],
            "true",
            False,
            "notify",
            "row",
            None,
            0,
            *failures,
        ),
        plain + failures,
    ]
    # The same channel again replaces the watch.
    orders.watch("orders", "orders:{customer_id}")
    replaced = (everything[:3], None, None, None, True, "log", "statement", 1000, 0)
    assert orders.sql(view)[0][2:] == replaced + failures
    assert orders.sql("SELECT socketio_pg.unwatch('orders', 'other')") == [(0,)]
    assert orders.sql("SELECT socketio_pg.unwatch('orders', 'orders:{customer_id}')") == [(1,)]
    assert orders.sql(view) == [plain + failures]
    orders.watch("orders", "second")
    assert orders.sql("SELECT socketio_pg.unwatch('orders')") == [(2,)]
    assert orders.sql("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'orders'::regclass") == [(0,)]
    assert orders.sent("INSERT INTO orders VALUES (1)") == []


def test_dropped_table_drops_its_watch(orders: WatchDatabase) -> None:
    orders.watch("orders")
    orders.sql("DROP TABLE orders; CREATE TABLE orders (id int)")
    assert orders.sql("SELECT count(*) FROM socketio_pg.watches") == [(0,)]
    # The next call of watch() removes its counter.
    counters = "SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relname LIKE 'watch\\_%'"
    assert orders.sql(counters) == [(1,)]
    orders.watch("orders")
    assert orders.sql(counters) == [(1,)]


@pytest.mark.parametrize(
    ("table", "channel", "options", "code", "message"),
    [
        ("orders", None, {"when": "new.foo = 1"}, "SG005", "column new.foo does not exist"),
        ("orders", None, {"when": "new.id"}, "SG005", "cannot be matched"),
        ("orders", None, {"when": "count(*) > 1"}, "SG005", "nested"),
        ("orders", None, {"when": "new.id ="}, "SG005", "syntax error"),
        ("orders", None, {"when": "unqualified()"}, "SG005", "does not exist"),
        ("orders", None, {"exclude": ["id", "foo"]}, "SG005", "no column foo"),
        ("orders", None, {"columns": ["Status"]}, "SG005", 'no column "Status"'),
        ("orders", None, {"columns": [None]}, "SG005", "no column"),
        ("orders", "o:{foo}", {}, "SG005", "{foo} in the channel is not a column"),
        ("orders", "o:{}", {}, "SG005", "not a valid channel with placeholders"),
        ("orders", "o:{id", {}, "SG005", "not a valid channel with placeholders"),
        ("orders", "o:id}", {}, "SG005", "not a valid channel with placeholders"),
        ("orders", "o:{secret}", {"exclude": ["secret"]}, "SG005", "its values would be disclosed"),
        ("orders", "o:{id}", {"operations": ["INSERT", "TRUNCATE"]}, "SG005", "TRUNCATE has no row"),
        ("orders", None, {"operations": ["SELECT"]}, "SG005", "SELECT is not an operation"),
        ("orders", None, {"operations": []}, "SG005", "must not be empty"),
        ("orders", None, {"tier": "nil"}, "SG005", "tier must be"),
        ("orders", None, {"per": None}, "SG005", "per must be"),
        ("orders", None, {"old": None}, "SG005", "old must be"),
        ("orders", None, {"bulk_limit": -1}, "SG005", "bulk_limit must not be negative"),
        ("orders", "", {}, "SG001", "channel must not be empty"),
        ("orders", "x" * 64, {}, "SG001", "at most 63 bytes"),
        ("orders", "x" * 63 + "{id}", {}, "SG001", "at most 63 bytes"),
        ("orders", "socketio_pg{id}", {}, "SG001", "reserved"),
        ("orders", "a*{id}", {}, "SG001", "must not contain"),
        ("socketio_pg.outbox", None, {}, "SG005", "it belongs to socketio_pg itself"),
        ("pg_views", None, {}, "SG005", "it is not a table"),
        ("temporary", None, {}, "SG005", "or it is temporary"),
        (f'"{"é" * 30}"', None, {}, "SG001", "at most 63 bytes"),
        ('"a{b"', None, {}, "SG005", "pass a channel"),
        (None, None, {}, "SG005", "cannot be watched"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused_immediately(
    orders: WatchDatabase, table: str | None, channel: str | None, options: dict[str, object], code: str, message: str
) -> None:
    orders.sql(
        f'CREATE TABLE "{"é" * 30}" (); CREATE TABLE "a{{b" (); CREATE TEMPORARY TABLE IF NOT EXISTS temporary ()'
    )
    with pytest.raises(psycopg2.Error, match=re.escape(message)) as caught:
        orders.watch(table, channel, **options)
    assert caught.value.pgcode == code
    assert caught.value.diag.message_hint
    assert orders.sql("SELECT count(*) FROM socketio_pg.watches") == [(0,)]
    assert orders.sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'watch\\_%' AND relkind = 'S'") == [(0,)]


def test_concurrent_calls_do_not_block_or_fail(orders: WatchDatabase) -> None:
    """The calls are for different tables, and both find the same unused counters to remove."""
    orders.sql(
        "CREATE TABLE a (); CREATE TABLE b (); CREATE TABLE gone (); SELECT socketio_pg.watch('gone'); DROP TABLE gone"
    )
    errors: list[Exception] = []

    def watch(table: str) -> None:
        with contextlib.closing(orders.connect()) as connection, connection.cursor() as cursor:
            try:
                for turn in range(10):
                    cursor.execute("SELECT socketio_pg.watch(%s, %s)", (table, f"{table}{turn % 2}"))
            except psycopg2.Error as error:
                errors.append(error)

    threads = [threading.Thread(target=watch, args=(table,)) for table in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert orders.sql("SELECT count(*) FROM socketio_pg.watches") == [(4,)]
    orders.sql("SELECT socketio_pg.watch_sweep()")
    assert orders.sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'watch\\_%' AND relkind = 'S'") == [(4,)]
