"""watch(): failures are counted, logged and do not affect the user's transaction; locks; privileges."""

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.errors
import pytest

from socketio_pg.postgres import schema
from tests.support.postgres import Cluster
from tests.support.watching import MAX_PAYLOAD, WatchDatabase, watch_database


@pytest.fixture(scope="module")
def shared(postgres: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(postgres, "watch_failures") as made:
        yield made


@pytest.fixture
def orders(shared: WatchDatabase) -> WatchDatabase:
    shared.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC")
    shared.sql("CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text)")
    shared.taken()
    return shared


PER = pytest.mark.parametrize("per", ["statement", "row"])


@PER
@pytest.mark.parametrize(
    ("condition", "state"),
    [
        ("1 / (new.id - 2) < 5", "22012"),
        ("new.status::int > 0", "22P02"),
        ("public.fails(new.status)", "P0001"),
        ("public.asserts()", "P0004"),
    ],
)
def test_failing_condition_is_counted_and_logged(orders: WatchDatabase, per: str, condition: str, state: str) -> None:
    orders.sql(
        """CREATE FUNCTION fails(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'no: %', $1; END $$;
        CREATE FUNCTION asserts() RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN ASSERT false, 'private'; RETURN true; END $$"""
    )
    orders.watch("orders", "broken", per=per, when=condition)
    orders.watch("orders", "working")
    sent = orders.sent("INSERT INTO orders VALUES (2, 1, 'private')")
    assert [channel for channel, _ in sent] == ["working"]
    [warning] = orders.warnings
    assert f"socketio_pg.watch, INSERT on public.orders: the condition failed with SQLSTATE {state}" in warning
    assert "private" not in warning
    assert orders.sql("SELECT count(*) FROM orders") == [(1,)]
    assert orders.failures("public.orders") == [1, 0]
    # A failure that is rolled back does not count: nothing had to be sent. watch() resets the counter.
    orders.sql(
        "BEGIN; INSERT INTO orders VALUES (3, 1, 'private'); ROLLBACK; BEGIN; SAVEPOINT a;"
        " INSERT INTO orders VALUES (3, 1, 'private'); ROLLBACK TO a; COMMIT"
    )
    assert orders.failures("public.orders") == [1, 0]
    orders.watch("orders", "broken", when="true")
    assert orders.failures("public.orders") == [0, 0]


def test_many_failures_are_added_up(orders: WatchDatabase) -> None:
    orders.watch("orders", "broken", when="1 / (new.id - new.id) = 1")
    orders.sql("DO $$ BEGIN FOR n IN 1 .. 400 LOOP INSERT INTO orders VALUES (n); END LOOP; END $$")
    # Above READ COMMITTED the rows of others are not read.
    orders.sql("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO orders VALUES (0); COMMIT")
    assert orders.failures("public.orders") == [401]
    [(rows,)] = orders.sql("SELECT count(*) FROM socketio_pg.watch_failure")
    assert rows < 400
    orders.sql("SELECT socketio_pg.unwatch('orders')")
    assert orders.sql("SELECT count(*) FROM socketio_pg.watch_failure") == [(0,)]


def test_serialization_failure_of_the_writer_is_not_counted(orders: WatchDatabase) -> None:
    orders.sql("INSERT INTO orders VALUES (1, 0), (2, 0)")
    orders.watch("orders", "sum", when="(SELECT sum(customer_id) FROM public.orders) >= 0")
    begin = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT sum(customer_id) FROM orders"
    with contextlib.closing(orders.connect()) as first, contextlib.closing(orders.connect()) as second:
        first.cursor().execute(begin)
        second.cursor().execute(begin)
        first.cursor().execute("UPDATE orders SET customer_id = 1 WHERE id = 1")
        first.cursor().execute("COMMIT")
        with pytest.raises(psycopg2.errors.SerializationFailure):
            second.cursor().execute("UPDATE orders SET customer_id = 1 WHERE id = 2; COMMIT")
    assert orders.failures("public.orders") == [0]
    assert len(orders.taken()) == 1


@pytest.mark.parametrize("bulk_limit", [1000, 0], ids=["rows", "bulk"])
def test_warning_names_the_placeholder(orders: WatchDatabase, bulk_limit: int) -> None:
    orders.watch("orders", "o{customer_id}:{status}", bulk_limit=bulk_limit)
    name = "o{customer_id}:{status}"

    def warning(statement: str) -> str:
        orders.sql(statement)
        [found] = orders.warnings
        return str(found.partition("public.orders: ")[2])

    text = "1 rows have no channel: "
    null = "{status} is NULL" if bulk_limit else f"a placeholder is NULL, or the name is invalid: {name}"
    assert warning("INSERT INTO orders VALUES (1, 1, NULL)") == text + null
    if bulk_limit:
        assert warning("INSERT INTO orders VALUES (2, 1, 'private*')") == (
            text + "{customer_id}, {status} results in an invalid name: channel must not contain '*'"
        )
    orders.sql("ALTER TABLE orders RENAME status TO state")
    assert warning("INSERT INTO orders VALUES (3, 1, 'x')") == (
        "the channel's placeholder {status} is an excluded column, or no column any more: call watch() again"
    )
    orders.watch("orders", "o{customer_id}:{state}", when="new.state <> ''")
    orders.sql("SELECT socketio_pg.unwatch('orders', %s); ALTER TABLE orders RENAME state TO status", name)
    found = warning("INSERT INTO orders VALUES (4, 1, 'x')")
    assert "{state}" in found
    orders.watch("orders", "fixed", when="new.status <> ''")
    orders.sql("SELECT socketio_pg.unwatch('orders', 'o{customer_id}:{state}'); ALTER TABLE orders RENAME status TO s")
    assert "the condition failed with SQLSTATE 42703 (column new.status does not exist)" in warning(
        "INSERT INTO orders VALUES (5, 1, 'x')"
    )


def test_missing_objects_do_not_fail_the_statement(orders: WatchDatabase) -> None:
    """An operator may have dropped them by hand."""
    orders.watch("orders")
    [(counter,)] = orders.sql("SELECT DISTINCT spec ->> 'counter' FROM socketio_pg.watch_triggers")
    orders.sql(f"DROP SEQUENCE socketio_pg.{counter}; ALTER FUNCTION socketio_pg.watch_send_row RENAME TO away")
    try:
        assert orders.sent("INSERT INTO orders VALUES (1)") == []
        assert len(orders.warnings) == 1
        assert orders.failures("public.orders") == [1]
    finally:
        orders.sql("ALTER FUNCTION socketio_pg.away RENAME TO watch_send_row")
    # The outbox refuses the message.
    orders.sql("ALTER TABLE socketio_pg.outbox ADD CONSTRAINT never CHECK (channel <> 'table:public.orders')")
    try:
        assert orders.sent("BEGIN; INSERT INTO orders VALUES (2); COMMIT") == []
    finally:
        orders.sql("ALTER TABLE socketio_pg.outbox DROP CONSTRAINT never")
    assert orders.sql("SELECT count(*) FROM orders") == [(2,)]


def test_cancelled_statement_is_cancelled(orders: WatchDatabase) -> None:
    """A statement timeout cancels the statement; it is not taken for a failure of the watch."""
    orders.watch("orders", when="pg_sleep(60) IS NULL")
    with pytest.raises(psycopg2.errors.QueryCanceled):
        orders.sql("SET statement_timeout = '200ms'; INSERT INTO orders VALUES (1)")
    orders.sql("RESET statement_timeout")
    assert orders.sql("SELECT count(*) FROM orders") == [(0,)]


def test_concurrent_transactions_do_not_wait_for_each_other(orders: WatchDatabase) -> None:
    """Both transactions fail, count, send and stay open; neither holds a lock that the other needs."""
    orders.watch("orders", "o{status}")
    orders.watch("orders", "broken", when="1 / (coalesce(new.id, old.id) - coalesce(new.id, old.id)) = 1")
    with contextlib.closing(orders.connect()) as first, contextlib.closing(orders.connect()) as second:
        for connection, numbers in ((first, (1, 2)), (second, (3, 4))):
            cursor = connection.cursor()
            cursor.execute("SET lock_timeout = '1s'; BEGIN")
            for number in numbers:
                cursor.execute("INSERT INTO orders VALUES (%s, 1, 'a'), (%s, 1, NULL)", (number, -number))
        for connection, number in ((first, 1), (second, 3), (first, 2), (second, 4)):
            connection.cursor().execute("UPDATE orders SET customer_id = 2 WHERE id = %s", (number,))
        [(kinds,)] = orders.sql(
            "SELECT array_agg(DISTINCT mode) FROM pg_locks AS l WHERE relation IN (SELECT oid FROM pg_class"
            " WHERE relnamespace = 'socketio_pg'::regnamespace) AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database()) AND pid <> pg_backend_pid()"
        )
        assert set(kinds) <= {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}
        first.cursor().execute("COMMIT")
        second.cursor().execute("COMMIT")
    assert len(orders.taken()) == 8
    assert orders.failures("public.orders") == [8, 4]


def test_concurrent_writers_send_all_messages_in_order(orders: WatchDatabase) -> None:
    orders.watch("orders", "o{customer_id}")
    orders.sql("INSERT INTO orders SELECT n, n FROM generate_series(1, 8) AS n")
    orders.taken()
    errors: list[Exception] = []

    def write(number: int) -> None:
        with contextlib.closing(orders.connect()) as connection, connection.cursor() as cursor:
            try:
                for turn in range(50):
                    cursor.execute("UPDATE orders SET status = %s WHERE id = %s", (str(turn), number))
            except psycopg2.Error as error:
                errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    sent = orders.taken()
    for number in range(1, 9):
        assert [payload["new"]["status"] for channel, payload in sent if channel == f"o{number}"] == [
            str(n) for n in range(50)
        ]


# -- privileges --------------------------------------------------------------------------------------------------------


@pytest.fixture
def roles(orders: WatchDatabase, postgres: Cluster) -> Iterator[dict[str, Any]]:
    """Role → connection. ``keeper`` can watch and owns a table, ``writer`` writes to it, ``owner`` owns another."""
    names = ("watch_keeper", "watch_writer", "watch_owner")
    for name in names:
        postgres.sql(f"DROP ROLE IF EXISTS {name}")
        postgres.sql(f"CREATE ROLE {name} LOGIN")
    orders.sql(schema.statements(MAX_PAYLOAD, watcher_role="watch_keeper"))
    made = {name[6:]: orders.connect(orders.url.replace("postgres@", f"{name}@")) for name in names}
    for name in ("keeper", "owner"):
        made[name].cursor().execute(
            f"CREATE TABLE {name}_table (id int PRIMARY KEY, v text); GRANT INSERT ON {name}_table TO watch_writer"
        )
    yield made
    for connection in made.values():
        connection.close()
    for name in names:
        orders.sql(f"DROP OWNED BY {name}; DROP ROLE {name}")


def outcome(connection: Any, statement: str) -> str:
    """Return "ok", or the SQLSTATE of the error."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(statement)
        except psycopg2.Error as error:
            return error.pgcode or "?"
        return "ok"


def test_roles_have_no_more_privileges_than_they_need(orders: WatchDatabase, roles: dict[str, Any]) -> None:
    denied = "42501"
    assert outcome(roles["keeper"], "SELECT socketio_pg.watch('keeper_table', 'k', \"when\" => 'new.id > 0')") == "ok"
    assert outcome(roles["keeper"], "SELECT * FROM socketio_pg.watches") == "ok"
    # A role that writes to the table needs no privileges on the schema, and has none.
    assert outcome(roles["writer"], "INSERT INTO keeper_table VALUES (1, 'x')") == "ok"
    [(channel, payload)] = orders.taken()
    assert (channel, payload["new"]) == ("k", {"id": 1, "v": "x"})
    assert not roles["writer"].notices
    for who in ("writer", "owner"):
        for statement in (
            "SELECT socketio_pg.watch('owner_table')",
            "SELECT socketio_pg.unwatch('owner_table')",
            "SELECT * FROM socketio_pg.watches",
            "CREATE TRIGGER t AFTER INSERT ON owner_table EXECUTE FUNCTION socketio_pg.watch_changed('{}')",
        ):
            assert outcome(roles[who], statement) == denied, (who, statement)
    # A watcher cannot watch tables of other owners, nor use the schema's internal objects.
    for statement in (
        "SELECT socketio_pg.watch('owner_table')",
        "SELECT socketio_pg.unwatch('orders')",
        "SELECT socketio_pg.watch_tell('{\"tier\": \"log\"}', 'a', '1', 1)",
        "SELECT socketio_pg.channel_problem('a')",
        "SELECT socketio_pg.publish('a', '1')",
        "SELECT * FROM socketio_pg.outbox",
        "CREATE TABLE socketio_pg.mine ()",
    ):
        expected = "ok" if "unwatch" in statement else denied
        assert outcome(roles["keeper"], statement) == expected, statement
    assert outcome(roles["keeper"], "SELECT socketio_pg.unwatch('keeper_table')") == "ok"
    assert orders.sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'watch\\_%' AND relkind = 'S'") == [(0,)]


def test_public_has_no_privileges_on_functions(orders: WatchDatabase) -> None:
    names = orders.sql(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'socketio_pg'::regnamespace AND (proacl IS NULL OR"
        " EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0)) ORDER BY 1"
    )
    # Except for the policies' helper and the functions that recheck permissions.
    assert {name for (name,) in names} == {"channel", "recheck", "recheck_on_change"}


def test_writer_cannot_redirect_function_calls(orders: WatchDatabase, roles: dict[str, Any]) -> None:
    """A search_path with the writer's own objects or temporary tables has no effect."""
    outcome(roles["keeper"], "SELECT socketio_pg.watch('keeper_table', 'k', \"when\" => 'lower(new.v) = ''x''')")
    cursor = roles["writer"].cursor()
    cursor.execute(
        """CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
        CREATE FUNCTION public.to_jsonb(record) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN '1'; END $$;
        CREATE TEMPORARY TABLE pg_class (oid oid); CREATE TEMPORARY TABLE outbox (id int);
        SET search_path = pg_temp, public, pg_catalog; INSERT INTO public.keeper_table VALUES (1, 'X')"""
    )
    assert roles["writer"].notices == []
    [(_, payload)] = orders.taken()
    assert payload["new"] == {"id": 1, "v": "X"}
    assert re.fullmatch("INSERT", payload["op"])
