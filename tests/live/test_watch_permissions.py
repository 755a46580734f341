"""Row changes and permissions: the policies of channels decide who gets a row's message, the table's own do not."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.live.test_permissions import POLICIES, connect, subscribe
from tests.support.policies import PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

MODEL = """
CREATE TABLE orders (id int PRIMARY KEY, owner text NOT NULL, total int NOT NULL);
ALTER TABLE orders ENABLE ROW LEVEL SECURITY; -- nobody may read anything of it
SELECT socketio_pg.watch('orders', 'user:{owner}'), socketio_pg.watch('orders', 'all-orders');
"""


@pytest.fixture(scope="module")
def database(postgres18: Cluster) -> PolicyDatabase:
    made = PolicyDatabase(postgres18, "live_watch_policies")
    made.sql(MODEL)
    made.join("alice", "all-orders")
    return made


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(database.server_url, **POLICIES)) as made:
        yield made


def test_a_row_goes_to_those_whom_the_channels_policy_lets(server: ServerProcess, database: PolicyDatabase) -> None:
    with connect(server, "alice") as alice, connect(server, "bob") as bob:
        assert subscribe(alice, "user:alice") is None
        assert subscribe(alice, "all-orders", filter={"new.total": {"gt": 50}}) is None
        assert subscribe(bob, "user:bob") is None
        # With a filter, too: it asks for less, and allows nothing.
        assert subscribe(bob, "user:alice", filter={"new.owner": "bob"}) == "forbidden"
        assert subscribe(bob, "all-orders", filter={"new.owner": "bob"}) == "forbidden"
        database.sql("INSERT INTO orders VALUES (1, 'alice', 10), (2, 'bob', 20), (3, 'bob', 90)")
        database.sql("UPDATE orders SET owner = 'alice' WHERE id = 2")

        def told(client: object, count: int) -> list[tuple[str, str, int]]:
            events = [client.next("event", 30) for _ in range(count)]  # type: ignore[attr-defined]
            return sorted((event["channel"], event["payload"]["op"], event["payload"]["pk"]["id"]) for event in events)

        assert told(alice, 3) == [("all-orders", "INSERT", 3), ("user:alice", "INSERT", 1), ("user:alice", "INSERT", 2)]
        assert told(bob, 3) == [("user:bob", "DELETE", 2), ("user:bob", "INSERT", 2), ("user:bob", "INSERT", 3)]
        # Permission taken away: the next row does not come.
        database.part("alice", "all-orders")
        database.sql("SELECT socketio_pg.recheck()")
        assert alice.next("unsubscribed", 30) == {"channel": "all-orders", "reason": "forbidden"}
        database.sql("INSERT INTO orders VALUES (4, 'alice', 100)")
        assert told(alice, 1) == [("user:alice", "INSERT", 4)]
