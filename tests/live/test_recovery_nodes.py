"""Sessions that are recovered between two nodes with LISTEN=leader and a queue, and those that the application ends."""

import contextlib
from collections.abc import Iterator

import pytest
import requests

from tests.support.cluster import APP, CLUSTER_KEY
from tests.support.nodes import Nodes
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.redis import Redis
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    with contextlib.closing(Redis()) as redis:
        settings = {"LISTEN": "leader", "MESSAGE_QUEUE": redis.url, "CLUSTER_KEY": CLUSTER_KEY, "app": APP}
        made = Nodes(newest_pg, "recovery_nodes", 2, balanced=False, **settings)
        with contextlib.closing(made):
            for node in made.nodes:
                node.wait_ready()
            made.wait_leader()
            yield made


@pytest.fixture
def client(nodes: Nodes, channel: str) -> Iterator[RecoveringClient]:
    """A client of the first node, subscribed to the channel."""
    with contextlib.closing(RecoveringClient(nodes.nodes[0].url)) as made:
        made.subscribe(channel)
        yield made


def _disconnect(node: ServerProcess, client: RecoveringClient) -> None:
    url = f"{node.url}/disconnect/{client.hello['sid']}"
    assert requests.post(url, timeout=PATIENCE).text == "done"


def _is_stored(nodes: Nodes, client: RecoveringClient) -> bool:
    return bool(nodes.sql("SELECT sid FROM socketio_pg.session WHERE sid = %s", client.hello["sid"]))


def test_a_session_moves_between_nodes_of_which_one_listens(
    nodes: Nodes, client: RecoveringClient, channel: str
) -> None:
    for number in range(4):
        client.cut(nodes.nodes[(number + 1) % 2].url)
        nodes.publish(channel, 10 * number, 10 * number + 9)
        assert client.connected()["recovered"]
    nodes.publish(channel, 40, 49)
    assert client.numbers(50) == list(range(50))


def test_a_polling_client_recovers_its_session(nodes: Nodes, channel: str) -> None:
    with contextlib.closing(RecoveringClient(nodes.nodes[0].url, "polling")) as client:
        client.subscribe(channel)
        for number in range(3):
            client.send({"desert": True, "url": nodes.nodes[(number + 1) % 2].url})
            nodes.publish(channel, 10 * number, 10 * number + 9)
            assert client.connected()["recovered"]
            assert client.numbers(10) == list(range(10 * number, 10 * number + 10))


@pytest.mark.parametrize("by", [0, pytest.param(1, marks=pytest.mark.nightly)], ids=["its own node", "the other node"])
def test_a_client_that_the_application_disconnects_gets_a_new_session(
    nodes: Nodes, client: RecoveringClient, by: int
) -> None:
    _disconnect(nodes.nodes[by], client)
    client.next(event="disconnect")
    client.send({"connect": True})
    assert client.connected()["recovery"] == {"recovered": False, "reason": "unknown_session"}


@pytest.mark.parametrize("by", [pytest.param(0, marks=pytest.mark.nightly), 1], ids=["its own node", "the other node"])
def test_a_client_that_is_away_can_be_disconnected(nodes: Nodes, client: RecoveringClient, by: int) -> None:
    client.cut("http://127.0.0.1:9")
    client.next(event="disconnect")
    assert _is_stored(nodes, client)
    _disconnect(nodes.nodes[by], client)
    until(lambda: not _is_stored(nodes, client), "the session is deleted")
    client.send({"url": nodes.nodes[1].url})
    assert client.connected()["recovery"] == {"recovered": False, "reason": "unknown_session"}


def test_a_session_that_the_database_has_lost_is_asked_for(
    nodes: Nodes, client: RecoveringClient, channel: str
) -> None:
    """A crash of PostgreSQL empties the tables; the client's node has not stored its sessions again."""
    nodes.sql("TRUNCATE socketio_pg.session, socketio_pg.session_owner")
    nodes.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'socketio_pg sessions'"
    )
    client.cut(nodes.nodes[1].url)
    nodes.publish(channel, 1, 1)
    assert client.connected()["recovered"]
    assert client.numbers(1) == [1]
