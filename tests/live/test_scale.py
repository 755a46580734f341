"""Order and completeness with many subscribers, channels and messages."""

import pytest

from tests.support.clients import SocketClient
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.swarm import RawClient, Swarm


def subscribe_all(swarm: Swarm, clients: list[RawClient], channel: str) -> None:
    for client in clients:
        client.emit("subscribe", {"channel": channel})
    swarm.run_until(lambda: all(client.events("subscribed") for client in clients))
    for client in clients:
        client.packets.clear()


@pytest.mark.parametrize("one_transaction", [True, False], ids=["one-transaction", "one-each"])
def test_10000_notifications_reach_20_subscribers_in_order(
    live_server: ServerProcess, newest_pg: Cluster, channel: str, one_transaction: bool
) -> None:
    with Swarm("127.0.0.1", live_server.port) as swarm:
        clients = swarm.connect(20)
        subscribe_all(swarm, clients, channel)
        if one_transaction:
            newest_pg.sql("SELECT pg_notify(%s, n::text) FROM generate_series(1, 10000) AS n", channel)
        else:
            newest_pg.sql(
                f"DO $$ BEGIN FOR n IN 1..10000 LOOP PERFORM pg_notify('{channel}', n::text); COMMIT; END LOOP; END $$"
            )
        swarm.run_until(lambda: all(len(client.packets) >= 10_000 for client in clients))
        expected = [f'2["event",{{"channel":"{channel}","payload":{number}}}]' for number in range(1, 10_001)]
        for client in clients:
            assert list(client.packets) == expected


def test_5000_channels_are_delivered_to_200_clients(
    live_server: ServerProcess, newest_pg: Cluster, channel: str
) -> None:
    with Swarm("127.0.0.1", live_server.port) as swarm:
        clients = swarm.connect(200)
        for index, client in enumerate(clients):
            for number in range(25):
                client.emit("subscribe", {"channel": f"{channel}-{index * 25 + number}"})
        # Meanwhile a new client connects, subscribes and publishes without a long delay.
        with SocketClient(live_server.url) as newcomer:
            newcomer.call("subscribe", {"channel": channel})
            newcomer.call("publish", {"channel": channel, "payload": 1})
            assert newcomer.next("event")["payload"] == 1
        swarm.run_until(lambda: all(len(client.events("subscribed")) == 25 for client in clients))
        newest_pg.sql("SELECT pg_notify(%s || '-' || n, n::text) FROM generate_series(0, 4999) AS n", channel)
        swarm.run_until(lambda: all(len(client.events("event")) == 25 for client in clients))
        for index, client in enumerate(clients):
            received = [(event["channel"], event["payload"]) for event in client.events("event")]
            first = index * 25
            assert received == [(f"{channel}-{number}", number) for number in range(first, first + 25)]
