"""Watches for the inspector: read with their last error, and switched on and off with the server's role."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core.errors import DatabaseRefusedError, ForbiddenError, InvalidRequestError
from socketio_pg.postgres import schema, watches
from socketio_pg.postgres.database import Database
from tests.support.postgres import Cluster
from tests.support.watching import MAX_PAYLOAD, WatchDatabase, watch_database


@pytest.fixture(scope="module")
def shared(postgres: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(postgres, "watches") as made:
        yield made


@pytest.fixture
def orders(shared: WatchDatabase) -> WatchDatabase:
    return shared.with_orders()


@pytest.fixture
def connection(orders: WatchDatabase) -> Iterator[Any]:
    with contextlib.closing(Database(orders.url).connect("inspector")) as made:
        yield made


def test_watches_are_switched_on_and_off_and_show_their_last_error(orders: WatchDatabase, connection: Any) -> None:
    table = watches.find_table(connection, "public.orders")
    assert table is not None
    assert watches.find_table(connection, "nothing") is None
    with pytest.raises(InvalidRequestError):
        watches.find_table(connection, "a.b.c.d")
    assert [one["table"] for one in watches.read_tables(connection)] == ["public.orders"]
    given = {"channel": "o:{customer_id}", "operations": ["INSERT"], "exclude": ["secret"], "old": False}
    assert watches.watch(connection, table, given) == ("o:{customer_id}", [])
    assert watches.watch(connection, table, {}) == ("table:public.orders", [])
    [first, second] = watches.read(connection)
    assert first["table"] == second["table"] == "public.orders"
    assert first | given == first
    assert (first["failures"], first["last_error"], first["last_error_at"]) == (0, None, None)
    assert (first["owner"], first["disabled"], second["operations"]) == ("postgres", False, list(watches.OPERATIONS))
    assert watches.read_tables(connection) == []

    orders.sql("INSERT INTO orders VALUES (1, NULL, 'private')")
    orders.sql("INSERT INTO orders VALUES (2, NULL, 'private')")
    [first, second] = watches.read(connection)
    assert first["failures"] == 2
    assert first["last_error"].startswith("INSERT: 1 rows have no channel: ")
    assert "private" not in first["last_error"]
    assert first["last_error_at"] == pytest.approx(orders.sql("SELECT extract(epoch FROM now())::float")[0][0], abs=60)
    assert (second["failures"], second["last_error"]) == (0, None)
    # Failures are added up from time to time: the newest error stays.
    orders.sql("BEGIN; INSERT INTO orders SELECT n, NULL, 'x' FROM generate_series(10, 12) AS n; COMMIT")
    for n in range(100, 300):
        orders.sql("INSERT INTO orders VALUES (%s, NULL)", n)
    [first, _] = watches.read(connection)
    assert (first["failures"], first["last_error"].partition(" rows")[0]) == (203, "INSERT: 1")

    orders.sql("ALTER TABLE orders DISABLE TRIGGER USER")
    assert [one["disabled"] for one in watches.read(connection)] == [True, True]
    assert watches.unwatch(connection, table, "o:{customer_id}") == 1
    assert watches.unwatch(connection, table, None) == 1
    assert watches.unwatch(connection, table, None) == 0
    assert watches.read(connection) == []


def test_wrong_options_are_explained(orders: WatchDatabase, connection: Any) -> None:
    table = watches.find_table(connection, "orders")
    assert table is not None
    for options, problem in (
        ({"channel": "o:{nothing}"}, "{nothing} in the channel is not a column of"),
        ({"channel": "socketio_pg_x"}, "reserved"),
        ({"operations": ["SELECT"]}, "SELECT is not an operation"),
        ({"when": "new.nothing = 1"}, '"when" is not a valid condition'),
        ({"tier": "x"}, "tier must be"),
    ):
        with pytest.raises(InvalidRequestError, match=problem):
            watches.watch(connection, table, options)
    with contextlib.closing(orders.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE orders IN ROW EXCLUSIVE MODE")
        with pytest.raises(DatabaseRefusedError, match="in use"):
            watches.watch(connection, table, {})
    assert watches.read(connection) == []


def test_servers_role_reads_watches_and_learns_what_it_may(orders: WatchDatabase) -> None:
    orders.sql(
        "DROP ROLE IF EXISTS watches_web; CREATE ROLE watches_web LOGIN; GRANT USAGE ON SCHEMA public TO watches_web"
    )
    orders.sql(schema.statements(MAX_PAYLOAD, server_role="watches_web"))
    orders.watch("orders", "mine")
    url = orders.url.replace("postgres@", "watches_web@")
    try:
        with contextlib.closing(Database(url).connect("inspector")) as connection:
            assert [one["channel"] for one in watches.read(connection)] == ["mine"]
            role, reason = watches.rights(connection)
            assert role == "watches_web"
            assert "init --watcher-role watches_web" in (reason or "")
            table = watches.find_table(connection, "public.orders")
            assert table is not None
            with pytest.raises(ForbiddenError, match="permission denied for function"):
                watches.unwatch(connection, table, None)
            orders.sql(schema.statements(MAX_PAYLOAD, watcher_role="watches_web"))
            assert watches.rights(connection) == ("watches_web", None)
            with pytest.raises(ForbiddenError, match="only its owner may watch it"):
                watches.watch(connection, table, {})
            orders.sql("CREATE TABLE own (id int); ALTER TABLE own OWNER TO watches_web")
            assert watches.read_tables(connection) == [
                {"table": "public.own", "owner": "watches_web", "may_watch": True}
            ]
            own = watches.find_table(connection, "public.own")
            assert own is not None
            assert watches.watch(connection, own, {"channel": "own"})[0] == "own"
            assert watches.unwatch(connection, own, "own") == 1
    finally:
        orders.sql("DROP TABLE IF EXISTS own; DROP OWNED BY watches_web; DROP ROLE watches_web")
