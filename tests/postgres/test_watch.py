"""watch(): the messages that row changes send, and the options that select rows, columns and channels."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.postgres import Cluster
from tests.support.watching import WatchDatabase, watch_database

pytestmark = pytest.mark.majors


@pytest.fixture(scope="module")
def database(postgres: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(postgres, "watch") as made:
        yield made


@pytest.fixture
def orders(database: WatchDatabase) -> WatchDatabase:
    return database.with_orders()


def brief(payload: dict[str, Any]) -> tuple[Any, ...]:
    return payload["op"], payload["old"], payload["new"], payload["changed"]


PER = pytest.mark.parametrize("per", ["statement", "row"])


@PER
def test_each_operation_sends_a_message(orders: WatchDatabase, per: str) -> None:
    assert orders.watch("orders", per=per) == "table:public.orders"
    [(channel, payload)] = orders.sent("INSERT INTO orders VALUES (1, 5, 'open', 'x')")
    first = {"id": 1, "customer_id": 5, "status": "open", "secret": "x"}
    assert channel == "table:public.orders"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", payload.pop("at"))
    assert payload.pop("txid").isdecimal()
    assert payload == {
        "op": "INSERT", "schema": "public", "table": "orders", "pk": {"id": 1},
        "new": first, "old": None, "changed": [],
    }  # fmt: skip

    [payload] = orders.payloads("UPDATE orders SET status = 'paid', customer_id = 6")
    second = first | {"customer_id": 6, "status": "paid"}
    assert brief(payload) == ("UPDATE", first, second, ["customer_id", "status"])
    assert payload["pk"] == {"id": 1}

    [payload] = orders.payloads("DELETE FROM orders")
    assert brief(payload) == ("DELETE", second, None, [])
    assert payload["pk"] == {"id": 1}

    [payload] = orders.payloads("TRUNCATE orders")
    assert brief(payload) == ("TRUNCATE", None, None, [])
    assert payload["pk"] is None


@PER
def test_rows_are_sent_in_order_with_one_transaction_id(orders: WatchDatabase, per: str) -> None:
    orders.watch("orders", per=per)
    payloads = orders.payloads("INSERT INTO orders SELECT n FROM generate_series(900, 1, -1) AS n")
    assert [payload["pk"]["id"] for payload in payloads] == list(range(900, 0, -1))
    assert len({payload["txid"] for payload in payloads}) == 1
    payloads = orders.payloads("UPDATE orders SET id = 1000 + id, status = 'all'")
    assert [payload["new"]["id"] - payload["old"]["id"] for payload in payloads] == [1000] * 900
    assert len(orders.payloads("DELETE FROM orders")) == 900


@PER
def test_rollbacks_and_statements_without_rows_send_nothing(orders: WatchDatabase, per: str) -> None:
    orders.watch("orders", per=per)
    assert orders.sent("BEGIN; INSERT INTO orders VALUES (1); ROLLBACK") == []
    assert orders.sent("UPDATE orders SET status = 'x'; DELETE FROM orders") == []
    statement = (
        "BEGIN; INSERT INTO orders VALUES (1); SAVEPOINT a; INSERT INTO orders VALUES (2); ROLLBACK TO a; COMMIT"
    )
    assert [payload["pk"] for payload in orders.payloads(statement)] == [{"id": 1}]
    assert orders.warnings == []


@PER
def test_changed_primary_key_has_the_old_key_in_old(orders: WatchDatabase, per: str) -> None:
    orders.sql("INSERT INTO orders VALUES (1), (2), (3)")
    orders.watch("orders", per=per, old=False)
    payloads = orders.payloads("UPDATE orders SET id = id * 10 WHERE id > 1")
    assert [(payload["pk"], payload["old"], payload["changed"]) for payload in payloads] == [
        ({"id": 20}, {"id": 2}, ["id"]),
        ({"id": 30}, {"id": 3}, ["id"]),
    ]
    # With old => false, messages have no other columns of the old row.
    assert [payload["old"] for payload in orders.payloads("UPDATE orders SET status = 'x'; DELETE FROM orders")] == [
        None
    ] * 6


@pytest.mark.parametrize(
    ("definition", "key"),
    [
        ("a int, b text, c int", None),
        ("a int UNIQUE, b text, c int", None),
        ("a int, b text, c int, PRIMARY KEY (c, b)", {"b": "y", "c": 3}),
        ("a int, b text, c int, PRIMARY KEY (c) INCLUDE (b)", {"c": 3}),
        ('a int, b text, "C d" int GENERATED ALWAYS AS (a * 3) STORED PRIMARY KEY', {"C d": 3}),
    ],
    ids=["none", "unique", "composite", "including", "generated"],
)
def test_pk_has_the_primary_key_columns(orders: WatchDatabase, definition: str, key: dict[str, Any] | None) -> None:
    orders.sql(f"CREATE TABLE keys ({definition.replace('c int', 'c int DEFAULT 3')})")
    orders.watch("keys")
    for statement in ("INSERT INTO keys (a, b) VALUES (1, 'y')", "UPDATE keys SET a = a, b = 'y'", "DELETE FROM keys"):
        for payload in orders.payloads(statement):
            assert payload["pk"] == key
            assert (payload["new"] or payload["old"])["a"] == 1


@PER
def test_excluded_columns_are_never_sent(orders: WatchDatabase, per: str) -> None:
    orders.watch("orders", per=per, exclude=["secret", "id"])
    [payload] = orders.payloads("INSERT INTO orders VALUES (1, 5, 'open', 'private')")
    assert payload["new"] == {"customer_id": 5, "status": "open"}
    assert payload["pk"] is None
    # No visible column has changed.
    assert orders.sent("UPDATE orders SET secret = 'private2'; UPDATE orders SET status = status, id = 7") == []
    [payload] = orders.payloads("UPDATE orders SET secret = 'private3', status = 'paid'")
    assert payload["changed"] == ["status"]
    # A renamed column stays excluded; a new column with the old name is excluded, too.
    orders.sql("ALTER TABLE orders RENAME secret TO hash")
    orders.sql("ALTER TABLE orders ADD secret text DEFAULT 'private4'")
    payloads = orders.payloads("UPDATE orders SET hash = 'private5', status = 'sent'; DELETE FROM orders")
    assert len(payloads) == 2
    assert "private" not in str(payloads)
    assert payloads[1]["old"] == {"customer_id": 5, "status": "sent"}


@PER
def test_columns_option_selects_columns(orders: WatchDatabase, per: str) -> None:
    orders.watch("orders", per=per, columns=["status"])
    [payload] = orders.payloads("INSERT INTO orders VALUES (1, 5, 'open', 'private')")
    assert (payload["new"], payload["pk"]) == ({"status": "open"}, {"id": 1})
    assert orders.sent("UPDATE orders SET secret = 'x', customer_id = 1") == []
    # Messages always have the key, so its changes are sent.
    [payload] = orders.payloads("UPDATE orders SET id = 2")
    assert (payload["pk"], payload["changed"], payload["new"]) == ({"id": 2}, ["id"], {"status": "open"})
    # A renamed column is no longer selected.
    orders.sql("ALTER TABLE orders RENAME status TO state")
    [payload] = orders.payloads("INSERT INTO orders VALUES (3, 5, 'open', 'private')")
    assert payload["new"] == {}
    orders.watch("orders", per=per, columns=["state", "id"], exclude=["id"])
    [payload] = orders.payloads("INSERT INTO orders VALUES (4, 5, 'open', 'private')")
    assert (payload["new"], payload["pk"]) == ({"state": "open"}, None)


@PER
def test_when_selects_rows(orders: WatchDatabase, per: str) -> None:
    orders.watch(
        "orders", per=per, when="new.status IS DISTINCT FROM old.status AND coalesce(new.id, old.id) <> 2 -- really"
    )
    statement = "INSERT INTO orders VALUES (1, 1, 'open'), (2, 1, 'open'), (3, 1, NULL), (4, 1, 'open')"
    assert [payload["pk"]["id"] for payload in orders.payloads(statement)] == [1, 4]
    assert orders.sent("UPDATE orders SET customer_id = 2") == []
    assert [payload["pk"]["id"] for payload in orders.payloads("UPDATE orders SET status = 'paid'")] == [1, 3, 4]
    # NULL counts as false.
    orders.watch("orders", per=per, when="old.customer_id > 1 OR new.id IS NULL AND NULL")
    assert [payload["pk"]["id"] for payload in orders.payloads("DELETE FROM orders WHERE id < 4")] == [1, 2, 3]
    # A condition does not apply to TRUNCATE, which has no rows.
    assert [payload["op"] for payload in orders.payloads("TRUNCATE orders")] == ["TRUNCATE"]
    # A condition sees all rows that the statement has written.
    orders.watch("orders", per=per, when="(SELECT count(*) FROM public.orders) = 2")
    assert len(orders.sent("INSERT INTO orders VALUES (1), (2)")) == 2
    assert orders.sent("INSERT INTO orders VALUES (3)") == []


def test_operations_option_selects_operations(orders: WatchDatabase) -> None:
    orders.watch("orders", operations=["delete", "TRUNCATE"])
    statement = "INSERT INTO orders VALUES (1), (2); UPDATE orders SET status = ''; DELETE FROM orders; TRUNCATE orders"
    assert [payload["op"] for payload in orders.payloads(statement)] == ["DELETE", "DELETE", "TRUNCATE"]


@PER
def test_channel_can_have_placeholders(orders: WatchDatabase, per: str) -> None:
    assert orders.watch("orders", "c{customer_id}:{status}!", per=per) == "c{customer_id}:{status}!"
    sent = orders.sent("INSERT INTO orders VALUES (1, 5, 'a\"b'), (2, 6, 'ü'), (3, 5, 'x')")
    assert [channel for channel, _ in sent] == ['c5:a"b!', "c6:ü!", "c5:x!"]
    sent = orders.sent("UPDATE orders SET secret = 's' WHERE id = 3; DELETE FROM orders WHERE id = 3")
    assert [(channel, payload["op"]) for channel, payload in sent] == [("c5:x!", "UPDATE"), ("c5:x!", "DELETE")]
    assert orders.sent("TRUNCATE orders") == []


@PER
def test_moved_row_is_a_delete_and_an_insert(orders: WatchDatabase, per: str) -> None:
    orders.sql("INSERT INTO orders VALUES (1, 5, 'before', 's'), (2, 6, 'stays', 's'), (3, NULL, 'comes', 's')")
    orders.watch("orders", "orders:{customer_id}", per=per)
    sent = orders.sent("UPDATE orders SET customer_id = 6, status = 'after ' || status")
    assert [(channel, payload.get("moved"), *brief(payload)[:3]) for channel, payload in sent] == [
        ("orders:5", True, "DELETE", {"id": 1, "customer_id": 5, "status": "before", "secret": "s"}, None),
        ("orders:6", True, "INSERT", None, {"id": 1, "customer_id": 6, "status": "after before", "secret": "s"}),
        ("orders:6", None, "UPDATE", {"id": 2, "customer_id": 6, "status": "stays", "secret": "s"},
         {"id": 2, "customer_id": 6, "status": "after stays", "secret": "s"}),
        ("orders:6", True, "INSERT", None, {"id": 3, "customer_id": 6, "status": "after comes", "secret": "s"}),
    ]  # fmt: skip
    assert orders.warnings == []
    # Each channel gets the row's key as it was there. Moves are sent even if the column itself is not visible.
    orders.watch("orders", "orders:{customer_id}", per=per, old=False, columns=["status"])
    sent = orders.sent("UPDATE orders SET customer_id = 7, id = 10 WHERE id = 1")
    assert [(channel, payload["pk"], payload["old"], payload["new"]) for channel, payload in sent] == [
        ("orders:6", {"id": 1}, None, None),
        ("orders:7", {"id": 10}, None, {"status": "after before"}),
    ]


@PER
def test_rows_without_a_valid_channel_are_not_sent(orders: WatchDatabase, per: str) -> None:
    orders.watch("orders", "{status}", per=per)
    names = ["fine", None, "", "a*", " x", "socketio_pg", "x" * 63, "é" * 32]
    values = ", ".join(f"({number}, 1, %s, 'private')" for number in range(len(names)))
    sent = orders.sent(f"INSERT INTO orders VALUES {values}", *names)
    assert [channel for channel, _ in sent] == ["fine", "x" * 63]
    assert len(orders.warnings) == (1 if per == "statement" else 6)
    assert "private" not in str(orders.warnings)
    assert orders.failures("public.orders") == [1 if per == "statement" else 6]
    # A row that leaves its channel for none is a DELETE there.
    [(channel, payload)] = orders.sent("UPDATE orders SET status = NULL WHERE id = 0")
    assert (channel, payload["op"], payload["moved"]) == ("fine", "DELETE", True)
    assert len(orders.warnings) == 1


def test_many_rows_are_summarised_in_one_message(orders: WatchDatabase) -> None:
    orders.watch("orders", bulk_limit=3, exclude=["secret"])
    assert len(orders.sent("INSERT INTO orders SELECT n FROM generate_series(1, 3) AS n")) == 3
    [payload] = orders.payloads("INSERT INTO orders SELECT n FROM generate_series(4, 7) AS n")
    assert set(payload) == {"op", "schema", "table", "count", "truncated", "reason", "at", "txid"}
    assert (payload["op"], payload["count"], payload["truncated"]) == ("INSERT", 4, True)
    assert payload["reason"] == "many_rows"
    # Only rows with visible changes count.
    assert orders.sent("UPDATE orders SET secret = 's'") == []
    [payload] = orders.payloads("UPDATE orders SET status = CASE WHEN id > 2 THEN 'x' END")
    assert (payload["op"], payload["count"]) == ("UPDATE", 5)
    orders.watch("orders", bulk_limit=0, when="old.id > 5")
    assert orders.payloads("DELETE FROM orders")[0]["count"] == 2
    orders.watch("orders", bulk_limit=None)
    assert len(orders.sent("INSERT INTO orders SELECT n FROM generate_series(1, 12000) AS n")) == 12_000
    payloads = orders.payloads("UPDATE orders SET id = -id")
    assert [payload["old"]["id"] for payload in payloads] == [-payload["new"]["id"] for payload in payloads]


def test_many_rows_are_summarised_per_channel(orders: WatchDatabase) -> None:
    orders.watch("orders", "c{customer_id}", bulk_limit=3, exclude=["status"])

    def counts(statement: str) -> dict[str, int]:
        sent = orders.sent(statement)
        assert all(payload["truncated"] for _, payload in sent)
        assert len(sent) == len(dict(sent))
        return {channel: payload["count"] for channel, payload in sent}

    assert counts("INSERT INTO orders SELECT n, nullif(n % 3, 2) FROM generate_series(1, 10) AS n") == {
        "c0": 3,
        "c1": 4,
    }
    assert len(orders.warnings) == 1
    assert counts("UPDATE orders SET status = 'unseen'") == {}
    # A moved row counts in both channels.
    assert counts("UPDATE orders SET customer_id = 7 WHERE id IN (1, 3, 4, 6)") == {"c0": 2, "c1": 2, "c7": 4}
    assert counts("DELETE FROM orders") == {"c0": 1, "c1": 2, "c7": 4}


@pytest.mark.parametrize("tier", ["log", "notify"])
def test_large_rows_are_sent_without_their_columns(orders: WatchDatabase, tier: str) -> None:
    orders.sql('CREATE TABLE large (id text PRIMARY KEY, "text" text)')
    orders.watch("large", "large", tier=tier)
    listener = orders.connect()
    listener.cursor().execute("LISTEN large")
    limit = 7_999 if tier == "notify" else 100_000

    def payload(statement: str, *parameters: object) -> dict[str, Any]:
        sent = orders.payloads(statement, *parameters)
        if tier == "log":
            assert len(sent) == 1
            return sent[0]
        listener.cursor().execute("SELECT 1")
        assert sent == []
        return json.loads(listener.notifies.pop().payload)  # type: ignore[no-any-return]

    insert = "INSERT INTO large VALUES (%s, %s)"
    size = len(str(payload(insert, "a", "")).encode())
    assert payload(insert, "b", "x" * (limit - size - 100))["new"]["id"] == "b"
    found = payload(insert, "c", "é" * (limit // 2))
    assert set(found) == {"op", "schema", "table", "pk", "truncated", "reason", "at", "txid"}
    assert (found["pk"], found["truncated"], found["reason"]) == ({"id": "c"}, True, "too_large")
    # A key can be too large, too, since it is stored compressed. The message is sent without it.
    found = payload(insert, "k" * (limit + 1), "")
    assert (found["pk"], found["truncated"]) == (None, True)
    listener.close()


def test_tier_notify_sends_notifications(orders: WatchDatabase) -> None:
    orders.watch("orders", "told", tier="notify", bulk_limit=2)
    listener = orders.connect()
    listener.cursor().execute("LISTEN told")
    assert (
        orders.sent("INSERT INTO orders VALUES (2), (1); UPDATE orders SET id = 3 WHERE id = 1; TRUNCATE orders") == []
    )
    orders.sql("INSERT INTO orders VALUES (1), (2), (3)")
    listener.cursor().execute("SELECT 1")
    payloads = [json.loads(notice.payload) for notice in listener.notifies]
    assert [(p["op"], p.get("pk"), p.get("count")) for p in payloads] == [
        ("INSERT", {"id": 2}, None), ("INSERT", {"id": 1}, None), ("UPDATE", {"id": 3}, None),
        ("TRUNCATE", None, None), ("INSERT", None, 3),
    ]  # fmt: skip
    listener.close()
