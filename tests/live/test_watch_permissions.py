"""Row changes and permissions: channel policies decide who receives a row's message; table policies do not."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.live.test_permissions import POLICIES, connect, subscribe
from tests.support.policies import PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

MODEL = """
CREATE TABLE orders (id int PRIMARY KEY, owner text NOT NULL, total int NOT NULL);
ALTER TABLE orders ENABLE ROW LEVEL SECURITY; -- no role may read it
SELECT socketio_pg.watch('orders', 'user:{owner}'), socketio_pg.watch('orders', 'all-orders');
"""


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    made = PolicyDatabase(newest_pg, "live_watch_policies")
    made.sql(MODEL)
    made.join("alice", "all-orders")
    return made


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(database.server_url, **POLICIES)) as made:
        yield made


def test_channel_policies_decide_who_receives_a_row(server: ServerProcess, database: PolicyDatabase) -> None:
    with connect(server, "alice") as alice, connect(server, "bob") as bob:
        assert subscribe(alice, "user:alice") is None
        assert subscribe(alice, "all-orders", filter={"new.total": {"gt": 50}}) is None
        assert subscribe(bob, "user:bob") is None
        # A filter does not extend permissions.
        assert subscribe(bob, "user:alice", filter={"new.owner": "bob"}) == "forbidden"
        assert subscribe(bob, "all-orders", filter={"new.owner": "bob"}) == "forbidden"
        database.sql("INSERT INTO orders VALUES (1, 'alice', 10), (2, 'bob', 20), (3, 'bob', 90)")
        database.sql("UPDATE orders SET owner = 'alice' WHERE id = 2")

        def received(client: object, count: int) -> list[tuple[str, str, int]]:
            events = [client.next("event") for _ in range(count)]  # type: ignore[attr-defined]
            return sorted((event["channel"], event["payload"]["op"], event["payload"]["pk"]["id"]) for event in events)

        assert received(alice, 3) == [
            ("all-orders", "INSERT", 3),
            ("user:alice", "INSERT", 1),
            ("user:alice", "INSERT", 2),
        ]
        assert received(bob, 3) == [("user:bob", "DELETE", 2), ("user:bob", "INSERT", 2), ("user:bob", "INSERT", 3)]
        # After the permission is revoked, the next row does not arrive.
        database.part("alice", "all-orders")
        database.sql("SELECT socketio_pg.recheck()")
        assert alice.next("unsubscribed") == {"channel": "all-orders", "reason": "forbidden"}
        database.sql("INSERT INTO orders VALUES (4, 'alice', 100)")
        assert received(alice, 1) == [("user:alice", "INSERT", 4)]
