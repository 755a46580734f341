"""LISTEN=leader: one of three nodes listens to PostgreSQL and forwards to the others over a real Redis."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.cluster import CLUSTER_KEY
from tests.support.nodes import Nodes, assert_no_traceback, under_load
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.redis import Redis
from tests.support.replay_clients import Client, JavaScript
from tests.support.server import ServerProcess

NODES = 3


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with contextlib.closing(Redis()) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster, redis: Redis) -> Iterator[Nodes]:
    made = Nodes(
        newest_pg,
        "listen_leader",
        NODES,
        balanced=False,
        LISTEN="leader",
        MESSAGE_QUEUE=redis.url,
        TRUSTED_PROXIES="0",
    )
    with contextlib.closing(made):
        yield made


@pytest.fixture
def clients(nodes: Nodes) -> Iterator[list[SocketClient]]:
    """One client on each node."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(SocketClient(node.url)) for node in nodes.nodes]


def listening_sessions(nodes: Nodes) -> int:
    """Return the number of sessions that listen to channels of clients."""
    [(count,)] = nodes.sql(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'socketio_pg listen%'"
    )
    return int(count)


def notify(nodes: Nodes, channel: str, payload: str) -> None:
    nodes.sql("SELECT pg_notify(%s, %s)", channel, payload)


def test_one_node_listens_and_all_nodes_receive(nodes: Nodes, clients: list[SocketClient], channel: str) -> None:
    for number, client in enumerate(clients):
        # Messages published after the confirmation arrive: each of these immediately.
        assert client.call("subscribe", {"channel": f"{channel}-{number}"})["ok"] is True
        notify(nodes, f"{channel}-{number}", "1")
        assert client.next("event")["payload"] == 1
    until(lambda: listening_sessions(nodes) == 1, "one session listens")
    for client in clients:
        assert client.call("subscribe", {"channel": channel})["ok"] is True
    for number, client in enumerate(clients):
        assert client.call("publish", {"channel": channel, "payload": number, "durable": False})["ok"] is True
    nodes.publish(channel, 10, 15)
    for client in clients:
        events = [client.next("event") for _ in range(NODES + 6)]
        assert [event["payload"] for event in events if "position" not in event] == [0, 1, 2]
        assert [event["payload"][0] for event in events if "position" in event] == [*range(10, 16)]
        assert client.pending("event") == 0


def test_many_channels_are_subscribed_and_unsubscribed(nodes: Nodes, clients: list[SocketClient], channel: str) -> None:
    names = [f"{channel}:{number}" for number in range(500)]
    first, second = clients[:2]
    for name in names:
        first.io.emit("subscribe", {"channel": name})
        second.io.emit("subscribe", {"channel": name})
    for _ in names:
        first.next("subscribed")
        second.next("subscribed")
    for name in names:
        first.io.emit("unsubscribe", {"channel": name})
    for _ in names:
        first.next("unsubscribed")
    nodes.sql("SELECT pg_notify(name, '1') FROM unnest(%s) AS name", names)
    assert sorted(second.next("event")["channel"] for _ in names) == sorted(names)
    assert first.pending("event") == 0
    # Subscribes again immediately, before the leader has released the channel.
    assert first.call("subscribe", {"channel": names[0]})["ok"] is True
    notify(nodes, names[0], "2")
    assert first.next("event")["payload"] == 2


def test_nodes_of_another_database_on_the_same_redis_are_ignored(
    nodes: Nodes, newest_pg: Cluster, redis: Redis, clients: list[SocketClient], channel: str
) -> None:
    """With the same MESSAGE_QUEUE_CHANNEL by mistake, nodes ignore messages of the other database and log a warning."""
    settings = {"LISTEN": "leader", "MESSAGE_QUEUE": redis.url}
    with contextlib.closing(Nodes(newest_pg, "listen_leader_two", 2, balanced=False, **settings)) as others:
        with SocketClient(others.nodes[1].url) as other:
            for client in (other, clients[0]):
                assert client.call("subscribe", {"channel": channel})["ok"] is True
            notify(nodes, channel, "1")
            notify(others, channel, "2")
            assert clients[0].next("event")["payload"] == 1
            assert other.next("event")["payload"] == 2
        for node in (*nodes.nodes, *others.nodes):
            until(lambda node=node: "of another installation: " in node.log, "the node logs it")  # type: ignore[misc]
    assert all(client.pending("event") == client.pending("gap") == 0 for client in clients)


def recovering_clients(nodes: list[ServerProcess]) -> list[Client]:
    """Return a client per node that remembers its position and replays missed messages."""
    return [JavaScript(node.url) for node in nodes]


def test_dead_leader_is_replaced(nodes: Nodes, channel: str) -> None:
    """Clients of the other nodes lose nothing from the log and get a gap for NOTIFY."""
    leader = nodes.wait_leader()
    others = [node for node in nodes.nodes if node is not leader]
    clients = recovering_clients(others)
    with under_load(nodes, channel, clients), SocketClient(others[0].url) as listener:
        assert listener.call("subscribe", {"channel": f"{channel}-notify"})["ok"] is True
        leader.kill()
        until(lambda: nodes.leader() in others, "another node leads")
        for client in clients:
            gap = client.next("gap", "one")[0]
            assert gap["tier"] == "notify"
        assert listener.next("gap")["reason"] == "database_connection_lost"
        for node in others:
            node.wait_ready()
        notify(nodes, f"{channel}-notify", "1")
        assert listener.next("event")["payload"] == 1
    leader.start()
    until(lambda: listening_sessions(nodes) == 1, "one session listens")


def test_dead_redis_is_reported_and_recovered_from(nodes: Nodes, redis: Redis, channel: str) -> None:
    """Nodes report that they receive nothing, lose nothing from the log, and recover."""
    clients = recovering_clients(nodes.nodes)
    with under_load(nodes, channel, clients), SocketClient(nodes.nodes[0].url) as late:
        redis.kill()
        for node in nodes.nodes:
            node.wait_for("/readyz", 503, "messages from the leader no longer arrive over MESSAGE_QUEUE")
        answer = late.call("subscribe", {"channel": f"{channel}-late"})
        assert answer["error"]["code"] == "database_unavailable"
        redis.start()
        for client in clients:
            assert client.next("gap", "one")[0]["tier"] == "notify"
        for node in nodes.nodes:
            node.wait_ready()
        assert late.call("subscribe", {"channel": f"{channel}-late"})["ok"] is True


def test_frozen_redis_is_reported_and_does_not_block_publishing(nodes: Nodes, redis: Redis, channel: str) -> None:
    """Its connections stay open without traffic. Publishers are not blocked for long.

    Redis may or may not lose messages; the test does not check that.
    """
    with under_load(nodes, channel, recovering_clients(nodes.nodes)):
        redis.signal(signal.SIGSTOP)
        try:
            for node in nodes.nodes:
                node.wait_for("/readyz", 503, "messages from the leader no longer arrive over MESSAGE_QUEUE")
            until(lambda: any("no response within" in node.log for node in nodes.nodes), "the leader stops publishing")
        finally:
            redis.signal(signal.SIGCONT)
        for node in nodes.nodes:
            node.wait_ready()
    assert_no_traceback(nodes)


def test_lost_database_connections_are_restored(nodes: Nodes, newest_pg: Cluster, channel: str) -> None:
    clients = recovering_clients(nodes.nodes)
    with under_load(nodes, channel, clients):
        newest_pg.terminate_backends()
        for client in clients:
            assert client.next("gap", "one")[0]["tier"] == "notify"
    for node in nodes.nodes:
        node.wait_ready()


def test_listen_leader_can_be_enabled_node_by_node(newest_pg: Cluster, redis: Redis, channel: str) -> None:
    """An old leader without LISTEN=leader also listens for a new node that has it."""
    with contextlib.closing(
        Nodes(newest_pg, "listen_change", 1, balanced=False, MESSAGE_QUEUE=redis.url, MESSAGE_QUEUE_CHANNEL="change")
    ) as old:
        settings = {"LISTEN": "leader", "MESSAGE_QUEUE": redis.url, "MESSAGE_QUEUE_CHANNEL": "change"}
        with contextlib.closing(ServerProcess(old.url, **settings)) as new, SocketClient(new.url) as client:
            assert old.wait_leader() is old.nodes[0]
            assert client.call("subscribe", {"channel": channel})["ok"] is True
            notify(old, channel, "1")
            assert client.next("event")["payload"] == 1
            # After the last old node is gone, the new node listens itself.
            old.nodes[0].kill()
            assert client.next("gap")["reason"] == "database_connection_lost"
            new.wait_ready()
            notify(old, channel, "2")
            assert client.next("event")["payload"] == 2


def test_missing_log_is_reported_by_readyz(newest_pg: Cluster, redis: Redis) -> None:
    """The log is needed to elect the node that listens."""
    newest_pg.sql("DROP DATABASE IF EXISTS listen_no_log WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE listen_no_log")
    settings = {
        "LISTEN": "leader",
        "MESSAGE_QUEUE": redis.url,
        "MESSAGE_QUEUE_CHANNEL": "no log",
        "CLUSTER_KEY": CLUSTER_KEY,
    }
    with contextlib.closing(ServerProcess(newest_pg.url("listen_no_log"), wait="http", **settings)) as node:
        node.wait_for("/readyz", 503, "cannot listen for them: the log is not installed")
        assert node.get("/healthz")[0] == 200


def test_listen_leader_requires_a_message_queue(newest_pg: Cluster) -> None:
    with contextlib.closing(ServerProcess(newest_pg.url(), wait="nothing", LISTEN="leader")) as server:
        server.process.wait(PATIENCE)
        assert "LISTEN=leader needs MESSAGE_QUEUE with the URL of a Redis or Valkey server." in server.log
