"""Ephemeral messages at real servers: delivery, permissions, limits, slow readers, several nodes."""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from socketio_pg.core.channels import NODES_CHANNEL
from tests.support import asyncapi, small_buffers
from tests.support.clients import SocketClient, code
from tests.support.cluster import CLUSTER_KEY
from tests.support.http_api import HttpApi, refusal
from tests.support.node import NodeClient
from tests.support.patience import until
from tests.support.postgres import Cluster, in_thread
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import Swarm
from tests.support.tokens import SECRET, mint

TOKENS = {
    "JWT_SECRET": SECRET,
    "AUTH": "optional",
    "AUTHORIZATION": "claims",
    "PUBLIC_CHANNELS": "*",
    "EPHEMERAL_MAX_BYTES": "100",
    "DRAIN_SECONDS": "0.2",
    "CHANNEL_RULES": '{"mine:quiet": {"ephemeral": false}, "mine:small": {"max_bytes": 10}}',
}


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(newest_pg.url(), **TOKENS)) as made:
        yield made


def ephemeral(channel: str, payload: Any, **more: Any) -> dict[str, Any]:
    return {"channel": channel, "payload": payload, "ephemeral": True, **more}


def test_cursors_reach_the_others(server: ServerProcess, channel: str) -> None:
    """Over both transports, from Python and from the stock JavaScript client, with filters and numbers as strings."""
    token = mint(sub="alice", ephemeral=[channel])
    with contextlib.ExitStack() as stack:
        alice = stack.enter_context(SocketClient(server.url, auth={"token": token}))
        polling = stack.enter_context(SocketClient(server.url, ("polling",), auth={"token": token}))
        other = stack.enter_context(SocketClient(server.url))
        stock = NodeClient(server.url, "websocket")
        stack.callback(stock.close)
        stock.next(event="connect")
        hello = alice.next("server_hello")
        sid = hello["sid"]
        assert "ephemeral" in hello["features"]
        # Without a subscription of its own.
        assert alice.call("publish", ephemeral(channel, 0)) == {"ok": True, "channel": channel}
        alice.subscribe(channel)
        polling.subscribe(channel)
        wanted = {"channel": channel, "filter": {"x": {"gt": 1}}, "numbers": "string"}
        assert other.call("subscribe", wanted)["ok"]
        assert stock.call("subscribe", {"channel": channel})["ok"]

        for x in (1, 2):
            answer = alice.call("publish", ephemeral(channel, {"x": x}, key="cursor"))
            assert answer == {"ok": True, "channel": channel}
            asyncapi.check("publish_acknowledgement", answer)
            event = polling.next("event")
            assert event == {
                "channel": channel, "payload": {"x": x}, "ephemeral": True, "key": "cursor",
                "from": {"client": sid, "sub": "alice"},
            }  # fmt: skip
            asyncapi.check("event", event)
            assert stock.next(event="event")["argument"] == event
        assert other.next("event") == event | {"payload": {"x": "2"}}
        # Without an acknowledgement, from the other transport, and to the sender itself.
        polling.io.emit("publish", ephemeral(channel, {"x": 3}, echo=True))
        assert [client.next("event")["payload"] for client in (alice, polling)] == [{"x": 3}] * 2
        assert other.next("event")["payload"] == {"x": "3"}
        assert [client.pending("event") for client in (alice, polling, other)] == [0, 0, 0]
        assert alice.pending("published") == 0


def test_who_may_not_send_gets_one_error_a_second(server: ServerProcess, channel: str) -> None:
    with SocketClient(server.url, auth={"token": mint(sub="bob", publish=["*"], ephemeral=["mine*"])}) as bob:
        assert code(bob.call("publish", ephemeral(channel, 1))) == "forbidden"
        for request, expected in (
            (ephemeral("mine", "x" * 99), "payload_too_large"),
            (ephemeral("mine", "x" * 9_999), "payload_too_large"),
            (ephemeral("mine:small", "x" * 9), "payload_too_large"),
            (ephemeral("mine:quiet", 1), "forbidden"),
            (ephemeral("mine", 1, id="once"), "invalid_request"),
            (ephemeral("mine ", 1), "invalid_channel"),
            ({"channel": "mine", "ephemeral": True}, "invalid_request"),
            ({"channel": "mine", "payload": 1, "ephemeral": "yes"}, "invalid_request"),
        ):
            assert code(bob.call("publish", request)) == expected
        began = time.monotonic()
        for _ in range(20):
            bob.io.emit("publish", ephemeral(channel, 1))
        assert bob.next("error") | {"message": ""} == {"code": "forbidden", "message": "", "channel": channel}
        assert code(bob.call("publish", ephemeral("mine", 1))) is None
        assert bob.pending("error") < 3 + time.monotonic() - began
        api = HttpApi(server, mint(sub="bob", publish=["*"], ephemeral=["*"]))
        assert refusal(api.publish("mine", 1, ephemeral=True)) == (400, "invalid_request")
        # A token without the list, of which the old one's decisions do not hold.
        assert bob.call("authenticate", {"token": mint(sub="bob")})["ok"]
        assert code(bob.call("publish", ephemeral("mine", 1))) == "forbidden"


def test_slow_reader_gets_the_newest_and_a_flood_is_cut_off(newest_pg: Cluster, channel: str) -> None:
    """A client that reads nothing stays connected. A client that ignores the limit for long does not."""
    settings = {"MAX_EPHEMERAL_PER_SECOND_PER_CLIENT": "400", "EPHEMERAL_MAX_BYTES": "16000"} | PATIENT
    with contextlib.closing(ServerProcess(newest_pg.url(), *small_buffers.OPTIONS, **settings)) as server:
        swarm = Swarm("127.0.0.1", server.port)
        slow, quick, sender = swarm.connect(3, receive_buffer=4096)
        for client in (slow, quick):
            client.emit("subscribe", {"channel": channel}, 1)
        swarm.run_until(lambda: all(any(one.startswith("31[") for one in c.packets) for c in (slow, quick)))
        swarm.pause(slow)
        # Each is sent when the one before has been delivered, so that none replaces another.
        for number in range(60):
            sender.emit("publish", ephemeral(channel, [number, "x" * 10_000]))
            swarm.run_until(lambda: len(quick.events("event")) == number + 1)  # noqa: B023 - called at once
        sender.emit("publish", ephemeral(channel, ["other key"], key="other"))
        swarm.run_until(lambda: quick.events("event")[-1]["payload"] == ["other key"])
        swarm.resume(slow)
        swarm.run_until(lambda: ["other key"] in [one["payload"] for one in slow.events("event")])
        numbers = [one["payload"][0] for one in slow.events("event") if len(one["payload"]) == 2]
        assert len(numbers) < 20
        assert numbers[-1] == 59
        # It is a reader as before.
        sender.emit("publish", ephemeral(channel, ["again"]))
        swarm.run_until(lambda: slow.events("event")[-1]["payload"] == ["again"])

        text, began = json.dumps(["publish", ephemeral(channel, 1)]), time.monotonic()
        with contextlib.suppress(ConnectionError):
            for _ in range(30):
                sender.send_all(*[f"42{text}"] * 200)
        swarm.run_until(lambda: sender.closed)
        errors = sender.events("error")
        assert {error["code"] for error in errors} == {"rate_limited"}
        assert len(errors) < 20 + time.monotonic() - began, "one a second"
        assert not quick.closed
        assert not slow.closed
        swarm.close()
        until(lambda: server.process.poll() is None, "the server serves")


def test_other_nodes_and_workers(newest_pg: Cluster, channel: str) -> None:
    """One node has two workers. While it is alone nothing goes through the database. A node is killed and returns."""
    settings = {"CLUSTER_KEY": CLUSTER_KEY, "DRAIN_SECONDS": "0.2"}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(ServerProcess(newest_pg.url(), "-w", "2", **settings)))
        clients = [stack.enter_context(SocketClient(first.url)) for _ in range(6)]
        for client in clients:
            client.subscribe(channel)
        with listening(newest_pg, NODES_CHANNEL) as notified:

            def notified_meanwhile() -> int:
                before = notified()
                for number in range(12):
                    reach(clients[number % 6], [one for one in clients if one is not clients[number % 6]], channel)
                return notified() - before

            # In the first second a node does not know that it is alone. Later it sends a beat now and then.
            until(lambda: notified_meanwhile() < 3, "nothing but beats goes through the database")

        second = stack.enter_context(contextlib.closing(ServerProcess(newest_pg.url(), **settings)))
        away = stack.enter_context(SocketClient(second.url))
        away.subscribe(channel)
        reach(away, clients, channel)
        reach(clients[5], [*clients[:5], away], channel)
        second.kill()
        reach(clients[5], clients[:5], channel)
        second.start()
        until(lambda: away.io.connected, "the client is back")
        until(lambda: code(away.call("subscribe", {"channel": channel})) is None, "it is subscribed again")
        reach(away, clients, channel)
        reach(clients[0], [*clients[1:], away], channel)


@pytest.mark.nightly
def test_database_that_goes_and_returns(newest_pg: Cluster, channel: str) -> None:
    """Clients of one node do not notice. Those of another node get what is sent afterwards."""
    settings = {"CLUSTER_KEY": CLUSTER_KEY, "DRAIN_SECONDS": "0.2"}
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(contextlib.closing(ServerProcess(newest_pg.url(), **settings))) for _ in range(2)]
        here, near, away = (stack.enter_context(SocketClient(node.url)) for node in (nodes[0], *nodes))
        for client in (here, near, away):
            client.subscribe(channel)
        reach(here, [near, away], channel)
        for _ in range(3):
            newest_pg.terminate_backends()
            reach(here, [near], channel)
            reach(away, [here, near], channel)
            reach(here, [away], channel)


def reach(sender: SocketClient, receivers: list[SocketClient], channel: str) -> None:
    """Send a message until all of ``receivers`` have got it, each at least once."""
    text = uuid.uuid4().hex
    missing = set(receivers)

    def reached() -> bool:
        sender.io.emit("publish", ephemeral(channel, text))
        for receiver in list(missing):
            with contextlib.suppress(AssertionError):
                while receiver.next("event", 0.2)["payload"] != text:
                    pass
                missing.discard(receiver)
        return not missing

    until(reached, "all have got it")


@contextlib.contextmanager
def listening(cluster: Cluster, channel: str) -> Iterator[Callable[[], int]]:
    """Listen to a channel of PostgreSQL. Yield a function that returns the number of notifications so far."""
    connection = in_thread(psycopg2.connect, cluster.url())

    def execute(statement: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        return len(connection.notifies)

    try:
        connection.autocommit = True
        in_thread(execute, f"LISTEN {channel}")
        yield lambda: in_thread(execute, "SELECT 1")
    finally:
        in_thread(connection.close)
