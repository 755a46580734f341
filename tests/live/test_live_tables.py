"""Live tables at a real server: rows as the subscriber may see them, then exactly the changes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import asyncapi
from tests.support.clients import code
from tests.support.live_tables import TableClient
from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, mint

ROLES = """
DO $$ BEGIN
    IF to_regrole('live_reader') IS NULL THEN CREATE ROLE live_reader; END IF;
    IF to_regrole('live_outsider') IS NULL THEN CREATE ROLE live_outsider; END IF;
END $$
"""
TABLE = """
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer_id int, status text NOT NULL DEFAULT 'new', total numeric, secret text);
SELECT socketio_pg.watch('orders', exclude => '{secret}', bulk_limit => 50);
GRANT SELECT (id, customer_id, status, total) ON orders TO live_reader
"""


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    newest_pg.sql(ROLES)
    made = Log(
        newest_pg,
        "live_tables",
        AUTO_INIT="1",
        LIVE_TABLES="public.*",
        LIVE_TABLE_ROLE="live_reader",
        LIVE_TABLE_ROWS="200",
    )
    with contextlib.closing(made.server):
        wait_installed(made)
        made.sql(TABLE)
        yield made


@pytest.fixture(autouse=True)
def _empty(log: Log) -> None:
    log.sql("TRUNCATE orders")


def row(id: int, customer: int | None = None, status: str = "new", total: Any = None) -> dict[str, Any]:
    return {"id": id, "customer_id": customer, "status": status, "total": total}


def test_rows_and_then_changes(log: Log) -> None:
    log.sql("INSERT INTO orders VALUES (1, 5, 'new', 1.50, 'x'), (2, 6, 'paid', NULL, 'x'), (3, 5, 'paid', 7, 'x')")
    with TableClient(log.server.url, strict=True) as client, TableClient(log.server.url, strict=True) as paid:
        answer = client.table(order={"column": "id", "desc": True})
        assert answer["ok"], answer
        assert answer["key"] == ["id"]
        assert answer["columns"] == ["id", "customer_id", "status", "total"]
        assert (answer["rows"], answer["complete"]) == (3, True)
        assert paid.table(where={"status": "paid"}, numbers="string", id="paid")["rows"] == 2
        client.next("live")
        assert paid.next("live")["id"] == "paid"
        assert [one["id"] for one in client.next("snapshot")["rows"]] == [3, 2, 1]
        log.sql(
            "UPDATE orders SET status = 'paid' WHERE id = 1; UPDATE orders SET status = 'new' WHERE id = 2;"
            "UPDATE orders SET id = 30 WHERE id = 3; DELETE FROM orders WHERE id = 2; UPDATE orders SET secret = 'y';"
            "INSERT INTO orders VALUES (4, 1, 'new')"
        )
        client.wait_rows([row(1, 5, "paid", 1.5), row(30, 5, "paid", 7), row(4, 1)])
        paid.wait_rows({
            '{"id": "1"}': {"id": "1", "customer_id": "5", "status": "paid", "total": "1.50"},
            '{"id": "30"}': {"id": "30", "customer_id": "5", "status": "paid", "total": "7"},
        })  # fmt: skip
        marks = [(body["payload"]["op"], body["payload"].get("entered"), body["payload"].get("left"))
                 for name, body in paid.log if name == "event"]  # fmt: skip
        assert marks == [("INSERT", True, None), ("DELETE", None, True), ("UPDATE", None, None)]
        for name, body in (*client.log, *paid.log):
            asyncapi.check(name, body)
        log.sql("TRUNCATE orders")
        client.wait_rows([])
        assert client.call("unsubscribe", {"table": "public.orders"})["ok"]
        log.sql("INSERT INTO orders VALUES (9, 1, 'paid')")
        paid.wait_rows({'{"id": "9"}': {"id": "9", "customer_id": "1", "status": "paid", "total": None}})
        assert not client.problems + paid.problems
        assert client.rows == {}


def test_statement_of_many_rows_and_return_with_since(log: Log) -> None:
    with TableClient(log.server.url, strict=True) as client:
        client.table()
        client.next("live")
        log.sql("INSERT INTO orders (id) SELECT n FROM generate_series(1, 60) AS n")
        client.wait_rows([row(n) for n in range(1, 61)])
        assert [body.get("reason") for name, body in client.log if name == "snapshot" and body["first"]] == [
            None, "many_rows",
        ]  # fmt: skip
        place = client.next("live")
    log.sql("UPDATE orders SET total = 1 WHERE id = 7; DELETE FROM orders WHERE id = 8")
    with TableClient(log.server.url) as client:
        client.rows = {f'{{"id": {n}}}': row(n) for n in range(1, 61)}
        answer = client.table(since={"epoch": place["epoch"], "position": place["position"]})
        assert answer["recovered"] is True
        assert "rows" not in answer
        client.wait_rows([row(n, total=1 if n == 7 else None) for n in range(1, 61) if n != 8])
        client.next("live")
        assert client.snapshots == 0
        answer = client.table(since=f"{place['epoch'][:-1]}x:1", limit=5, order="id")
        assert (answer.get("recovered"), answer.get("reason"), answer.get("rows"), answer.get("complete")) == (
            False, "epoch_changed", 5, False,
        )  # fmt: skip


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"table": "public.missing"}, "invalid_request"),
    ({"table": "other.orders"}, "forbidden"),
    ({"table": "pg_catalog.pg_class"}, "forbidden"),
    ({"table": 'public.orders"; DROP TABLE orders; --'}, "invalid_request"),
    ({"table": "orders"}, "invalid_request"),
    ({"table": "public.unwatched"}, "invalid_request"),
    ({"table": "public.no_key"}, "invalid_request"),
    ({"table": "public.conditional"}, "invalid_request"),
    ({"table": "public.closed"}, "forbidden"),
    ({"table": "public.untrusted"}, "forbidden"),
    ({"table": "public.orders", "where": {"secret": "x"}}, "invalid_request"),
    ({"table": "public.orders", "where": {"id) OR (true": 1}}, "invalid_request"),
    ({"table": "public.orders", "order": "secret"}, "invalid_request"),
    ({"table": "public.orders", "order": "id; DROP TABLE orders"}, "invalid_request"),
    ({"table": "public.orders", "order": ["id"] * 9}, "invalid_request"),
    ({"table": "public.orders", "limit": 201}, "invalid_request"),
    ({"table": "public.orders", "where": {f"c{n}": 1 for n in range(100)}}, "invalid_request"),
    ({"table": "public.orders", "channel": "foo"}, "invalid_request"),
    ({"table": "public.orders", "id": ""}, "invalid_request"),
    ({"table": "public.orders", "since": "nonsense"}, "invalid_request"),
]


def test_hostile_and_wrong_requests_are_refused(log: Log) -> None:
    log.sql(
        "CREATE TABLE untrusted (id int PRIMARY KEY); ALTER TABLE untrusted OWNER TO live_outsider;"
        "GRANT SELECT ON untrusted TO live_reader; SELECT socketio_pg.watch('untrusted');"
        "CREATE TABLE unwatched (id int PRIMARY KEY); CREATE TABLE no_key (id int);"
        "CREATE TABLE conditional (id int PRIMARY KEY); CREATE TABLE closed (id int PRIMARY KEY);"
        "SELECT socketio_pg.watch('no_key'), socketio_pg.watch('conditional', \"when\" => 'new.id > 5'),"
        " socketio_pg.watch('closed')"
    )
    with TableClient(log.server.url) as client:
        for request, expected in REFUSED:
            answer = client.call("subscribe", request)
            assert code(answer) == expected, (request, answer)
        assert "primary key" in client.table("public.no_key")["error"]["message"]
        assert "SELECT socketio_pg.watch('public.unwatched')" in client.table("public.unwatched")["error"]["message"]
        assert code(client.call("publish", {"channel": "table:public.orders", "payload": 1})) == "forbidden"
        for text in ("a' OR '1'='1", "%s %(x)s $1 {}", "\\", "€\x1f"):
            answer = client.table(where={"status": text, "customer_id": {"ne": text}, "total": {"lt": text}})
            assert (answer["ok"], answer["rows"]) == (True, 0)
        log.sql("INSERT INTO orders (id) SELECT n FROM generate_series(1, 201) AS n")
        assert code(client.table(id="too many")) == "too_many_rows"
        assert client.table(id="too many", where={"id": {"lte": 200}})["rows"] == 200


def test_changed_tables_and_watches(log: Log) -> None:
    log.sql(
        "CREATE TABLE shapes (id int PRIMARY KEY, name text); GRANT SELECT ON shapes TO live_reader;"
        "SELECT socketio_pg.watch('shapes', old => false); INSERT INTO shapes VALUES (1, 'a'), (2, 'b')"
    )
    with TableClient(log.server.url, transports=("polling",)) as client, TableClient(log.server.url) as named:
        client.table("public.shapes")
        named.table("public.shapes", where={"name": "a"})
        for one in (client, named):
            one.next("live")
        # Without old rows, and with a new column.
        log.sql("UPDATE shapes SET id = 3, name = 'c' WHERE id = 1; ALTER TABLE shapes ADD COLUMN size int DEFAULT 5")
        client.wait_rows([{"id": 2, "name": "b"}, {"id": 3, "name": "c"}])
        named.wait_rows([])
        log.sql("INSERT INTO shapes VALUES (4, 'a'); SELECT socketio_pg.recheck()")
        rows = [{"id": id, "name": name, "size": 5} for id, name in ((2, "b"), (3, "c"), (4, "a"))]
        client.wait_rows(rows)
        named.wait_rows(rows[2:])
        assert [body["reason"] for name, body in client.log if name == "snapshot" and "reason" in body] == [
            "definition_changed"
        ]
        # A watch that excludes a column by which one of them filters; and no watch.
        log.sql("SELECT socketio_pg.watch('shapes', exclude => '{name}'); SELECT socketio_pg.recheck()")
        client.wait_rows([{"id": id, "size": 5} for id in (2, 3, 4)])
        assert named.next("unsubscribed")["reason"] == "invalid_request"
        log.sql("SELECT socketio_pg.unwatch('shapes'); SELECT socketio_pg.recheck()")
        assert "SELECT socketio_pg.watch('public.shapes')" in client.next("unsubscribed")["message"]


@pytest.mark.nightly  # two starts of a server
def test_clients_without_a_role_of_their_own(log: Log) -> None:
    """They need LIVE_TABLE_ROLE, and with AUTHORIZATION=claims the permission for the table's channel."""
    settings = {"AUTHORIZATION": "claims", "JWT_SECRET": SECRET, "LIVE_TABLES": "public.orders", "DRAIN_SECONDS": "0"}
    with contextlib.closing(ServerProcess(log.url, **settings)) as server:
        with TableClient(server.url, auth={"token": mint(sub="a", subscribe=["*"])}) as client:
            assert "LIVE_TABLE_ROLE" in client.table()["error"]["message"]
        server.stop()
        server.start(LIVE_TABLE_ROLE="live_reader")
        with TableClient(server.url, auth={"token": mint(sub="a", subscribe=["table:*"])}) as client:
            assert client.table()["ok"]
            assert client.call("authenticate", {"token": mint(sub="a", subscribe=["other"])})["ok"]
            assert client.next("unsubscribed")["reason"] == "forbidden"
            assert code(client.table()) == "forbidden"
