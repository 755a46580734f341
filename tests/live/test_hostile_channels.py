"""Clients that subscribe to very many channels: LISTEN costs O(channels), so their number is bounded on each node."""

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient, code
from tests.support.metrics import TOKEN, scrape, wait_for
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.swarm import RawClient, Swarm

MOST = 200


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    # Each worker counts the channels of its own clients.
    made = ServerProcess(
        newest_pg.url(),
        "-w",
        "1",
        MAX_CHANNELS=str(MOST),
        MAX_EVENTS_PER_SECOND="0",
        METRICS_TOKEN=TOKEN,
        DRAIN_SECONDS="0.2",
    )
    with contextlib.closing(made):
        yield made


def test_channels_of_all_clients_together_are_limited(server: ServerProcess, newest_pg: Cluster) -> None:
    with SocketClient(server.url) as one, SocketClient(server.url) as two:
        answers = [code(one.call("subscribe", {"channel": f"c{number}"})) for number in range(MOST + 1)]
        assert answers == [None] * MOST + ["too_many_subscriptions"]
        refused = two.call("subscribe", {"channel": "another"})
        assert refused["error"]["code"] == "too_many_subscriptions"
        assert f"at most {MOST} channels (MAX_CHANNELS)" in refused["error"]["message"]
        # Channels that have a subscriber cost nothing more.
        assert two.call("subscribe", {"channel": "c1"})["ok"]
        newest_pg.notify("c1", "1")
        assert (one.next("event"), two.next("event")) == ({"channel": "c1", "payload": 1},) * 2
        one.call("unsubscribe", {"channel": "c2"})
        assert two.call("subscribe", {"channel": "another"})["ok"]
    wait_for(server, lambda now: now["channels"] == 0)


def test_ever_new_channels_do_not_fill_the_node(server: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    """Each channel that was left keeps its LISTEN for a grace time; clients change theirs thousands of times in it."""
    names = itertools.count()
    changes = 4_000
    most = 0.0

    def send(client: RawClient, event: str, channels: list[str]) -> None:
        client.send_all(*[f'42["{event}",{{"channel":"{channel}"}}]' for channel in channels])

    with SocketClient(server.url) as witness, Swarm("127.0.0.1", server.port) as swarm:
        assert witness.call("subscribe", {"channel": channel})["ok"]
        clients = swarm.connect(20)
        each = MOST // len(clients) - 1
        while next(names) < changes:
            own = [[f"new-{next(names)}" for _ in range(each)] for _ in clients]
            for event in ("subscribe", "unsubscribe"):
                for client, channels in zip(clients, own, strict=True):
                    send(client, event, channels)
                answer = f"{event}d"
                swarm.run_until(lambda answer=answer: all(len(one.events(answer)) == each for one in clients))  # type: ignore[misc]
            for client in clients:
                client.packets.clear()
            most = max(most, scrape(server)["listened_channels"])
        assert witness.call("subscribe", {"channel": f"{channel}-2"})["ok"]
        newest_pg.notify(channel, "1")
        assert witness.next("event")["payload"] == 1
        # 1,000 in their grace time, one batch of UNLISTEN, and those that have a subscriber.
        assert MOST < most < 1_000 + 500 + 2 * MOST
        now = scrape(server)
        assert (now["channels"], now["listen_connections"]) == (2, 1)
        assert witness.pending("gap") == 0
