"""Row changes end to end: a statement in psql, a real server, a Socket.IO client."""

from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_watch", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


def test_row_changes_arrive(log: Log) -> None:
    log.sql("CREATE TABLE orders (id int PRIMARY KEY, customer_id int, secret text)")
    log.sql(
        "SELECT socketio_pg.watch('orders', exclude => '{secret}'), socketio_pg.watch('orders', 'orders:{customer_id}')"
    )
    log.sql("SELECT socketio_pg.watch('orders', 'orders-now', tier => 'notify')")
    with SocketClient(log.server.url) as staff, SocketClient(log.server.url) as customer:
        position = staff.call("subscribe", {"channel": "table:public.orders"})["position"]
        staff.call("subscribe", {"channel": "orders-now"})
        customer.call("subscribe", {"channel": "orders:5"})
        log.sql("BEGIN; INSERT INTO orders VALUES (0, 5, 's'); ROLLBACK")
        log.sql(
            "INSERT INTO orders VALUES (1, 5, 's'), (2, 6, 's'); UPDATE orders SET customer_id = 6; TRUNCATE orders"
        )

        events = [staff.next("event") for _ in range(8)]
        logged = [event for event in events if event["channel"] == "table:public.orders"]
        assert [event["position"] for event in logged] == sorted(event["position"] for event in logged)
        assert logged[0]["position"] > position
        assert [(event["payload"]["op"], event["payload"]["new"]) for event in logged] == [
            ("INSERT", {"id": 1, "customer_id": 5}),
            ("INSERT", {"id": 2, "customer_id": 6}),
            ("UPDATE", {"id": 1, "customer_id": 6}),
            ("TRUNCATE", None),
        ]
        notified = [event["payload"] for event in events if event["channel"] == "orders-now"]
        assert [payload["op"] for payload in notified] == ["INSERT", "INSERT", "UPDATE", "TRUNCATE"]
        assert notified[2]["old"] == {"id": 1, "customer_id": 5, "secret": "s"}

        mine = [customer.next("event")["payload"] for _ in range(2)]
        assert [(payload["op"], payload.get("moved")) for payload in mine] == [("INSERT", None), ("DELETE", True)]
        assert mine[1]["new"] is None
        # No message about later states of the row.
        log.sql("SELECT socketio_pg.publish('orders:5', '\"last\"')")
        assert customer.next("event")["payload"] == "last"
