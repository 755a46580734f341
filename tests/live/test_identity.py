"""Who sent a message, a client that is left out, and traces: on two nodes, with the stock clients, streams and HTTP."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live.test_logs import parse_log
from tests.support.clients import SocketClient
from tests.support.cluster import CLUSTER_KEY
from tests.support.http_api import HttpApi, refusal
from tests.support.log import since
from tests.support.nodes import Nodes
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.redis import Redis
from tests.support.sse import Stream
from tests.support.tokens import SECRET, mint

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ALICE = {"sub": "alice", "name": "Alice"}
TOKEN = mint(sub="alice", name="Alice", private="secret")


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    settings = {
        "AUTH": "optional", "JWT_SECRET": SECRET, "FROM_CLAIMS": "sub,name", "PUBLISH": "all",
        "PUBLIC_CHANNELS": "*", "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "json",
    }  # fmt: skip
    with contextlib.closing(Nodes(newest_pg, "identity", 2, balanced=False, **settings)) as made:
        for node in made.nodes:
            node.wait_ready()
        made.wait_leader()
        yield made


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    with contextlib.ExitStack() as stack:
        yield lambda made: stack.enter_context(contextlib.closing(made))


def publish(client: RecoveringClient, channel: str, payload: Any, **more: Any) -> None:
    answer = client.call("publish", {"channel": channel, "payload": [payload], **more})
    assert answer["ok"] is True, answer


def described(event: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return the payload, the sender and the trace of a message."""
    return event["payload"], event.get("from"), event.get("traceparent")


@pytest.mark.parametrize("durable", [True, False], ids=["log", "notify"])
def test_messages_have_their_sender_who_may_be_left_out(
    nodes: Nodes, closing: Callable[[Any], Any], channel: str, durable: bool
) -> None:
    one, two = (node.url for node in nodes.nodes)
    alice = closing(RecoveringClient(one, auth={"token": TOKEN}))
    others = [
        closing(SocketClient(one, ("polling",), auth={"token": TOKEN})),
        closing(SocketClient(two)),
        closing(SocketClient(two)),
        closing(SocketClient(two)),
    ]
    name, pattern = {"channel": channel}, {"pattern": f"{channel}*"}
    forms: list[dict[str, Any]] = [
        name, name | {"filter": {"0": {"ne": "hidden"}}}, name | {"numbers": "string"}, pattern,
    ]  # fmt: skip
    stream = closing(Stream(two, channel))
    stream.until("subscribed")
    for form in (name, pattern):
        assert alice.call("subscribe", form)["ok"]
    for client, form in zip(others, forms, strict=True):
        assert client.call("subscribe", form)["ok"]
    publish(alice, channel, "hers", durable=durable, echo=False, traceparent=TRACE)
    publish(alice, channel, "echoed", durable=durable)
    expected: list[Any] = [(["hers"], ALICE, TRACE), (["echoed"], ALICE, None)]
    for client in others:
        assert [described(client.next("event")) for _ in expected] == expected
    assert [described(stream.until("message").json) for _ in expected] == expected
    assert described(alice.next(event="event")["argument"]) == expected[1]
    # Over HTTP and SQL, and from an anonymous client. A payload is only a payload.
    sid = alice.hello["sid"]
    HttpApi(nodes.nodes[1], TOKEN).publish(channel, ["http"], durable=durable, exclude=sid).raise_for_status()
    if durable:
        nodes.sql("SELECT socketio_pg.publish(%s, '[\"sql\"]', true, exclude => %s)", channel, sid)
    forged = {"from": ALICE, "traceparent": TRACE}
    others[1].call("publish", {"channel": channel, "payload": [forged], "durable": durable, "from": ALICE})
    expected = [(["http"], ALICE, None), *([(["sql"], None, None)] if durable else []), ([forged], None, None)]
    for client in others:
        assert [described(client.next("event")) for _ in expected] == expected
    assert described(alice.next(event="event")["argument"]) == ([forged], None, None)


def test_sender_stays_left_out_after_recovery(nodes: Nodes, closing: Callable[[Any], Any], channel: str) -> None:
    one, two = (node.url for node in nodes.nodes)
    alice = closing(RecoveringClient(one, auth={"token": TOKEN}))
    start = since(alice.subscribe(channel))
    sid = alice.hello["sid"]
    publish(alice, channel, "own", echo=False)
    alice.cut(two)
    for number in range(3):
        nodes.sql(
            "SELECT socketio_pg.publish(%s, to_jsonb(%s::int), true, exclude => %s)",
            channel, number, sid if number < 2 else None,
        )  # fmt: skip
    hello = alice.connected()
    assert (hello["recovered"], hello["sid"]) == (True, sid)
    publish(alice, channel, "later", echo=False)
    publish(alice, channel, "last")
    found = [alice.next(event="event")["argument"]["payload"] for _ in range(2)]
    assert found == [2, ["last"]]
    # A replay that the same client asks for, and the same for another one.
    alice.call("subscribe", {"channel": channel, "since": start})
    assert [alice.next(event="event")["argument"]["payload"] for _ in range(2)] == [2, ["last"]]
    other = closing(SocketClient(two))
    other.call("subscribe", {"channel": channel, "since": start})
    everything = [["own"], 0, 1, 2, ["later"], ["last"]]
    assert [other.next("event")["payload"] for _ in everything] == everything
    page = HttpApi(nodes.nodes[0]).page(channel, history=10)
    assert [described(message) for message in page["messages"]] == [
        (payload, ALICE if isinstance(payload, list) else None, None) for payload in everything
    ]


def test_requests_over_http_carry_a_trace_into_the_logs(nodes: Nodes, channel: str) -> None:
    trace = TRACE.replace("b7ad", "c7ad")
    api = HttpApi(nodes.nodes[0], TOKEN)
    own = {"channel": channel, "payload": 2, "traceparent": TRACE}
    body = {"messages": [{"channel": channel, "payload": 1}, own]}
    api.post(json.dumps(body).encode(), traceparent=trace).raise_for_status()
    api.post(json.dumps({"channel": channel, "payload": 3}).encode(), traceparent="invalid").raise_for_status()
    page = api.page(channel, history=10)
    assert [described(message) for message in page["messages"]] == [
        (1, ALICE, trace),
        (2, ALICE, TRACE),
        (3, ALICE, None),
    ]

    def lines() -> dict[str, int]:
        found = [line for node in nodes.nodes for line in parse_log(node.log)]
        traced = [line for line in found if trace in (line.get("traceparent"), *(line.get("traceparents") or ()))]
        return Counter(line["message"] for line in traced)

    processes = sum(len(node.worker_pids()) for node in nodes.nodes)
    expected = {"published": 1, "moved messages to the log": 1, "delivering": processes}
    until(lambda: lines() == expected, "the lines of the way")


def test_what_does_not_fit_is_refused(nodes: Nodes, closing: Callable[[Any], Any], channel: str) -> None:
    api = HttpApi(nodes.nodes[0], TOKEN)
    assert refusal(api.publish(channel, 1, echo=False)) == (400, "invalid_request")
    assert refusal(api.publish(channel, 1, traceparent="x")) == (400, "invalid_request")
    assert refusal(api.publish_together({"channel": channel, "payload": 1, "exclude": "a b"})) == (
        400,
        "invalid_request",
    )
    large = mint(sub="alice", name="x" * 1100)
    assert refusal(HttpApi(nodes.nodes[0], large).publish(channel, 1)) == (400, "invalid_request")
    client = closing(SocketClient(nodes.nodes[0].url, auth={"token": large}))
    for more, problem in (
        ({}, "bytes as JSON: a message has at most 1024"),
        ({"exclude": "abc"}, "exclude is for publishers without a connection"),
        ({"echo": "no"}, "echo must be true or false"),
        ({"traceparent": TRACE.upper()}, "W3C Trace Context"),
    ):
        answer = client.call("publish", {"channel": channel, "payload": 1, **more})
        assert answer["error"]["code"] == "invalid_request"
        assert problem in answer["error"]["message"]
    assert HttpApi(nodes.nodes[0]).page(channel, history=10)["messages"] == []


@pytest.mark.nightly
def test_metadata_of_notify_reaches_nodes_that_do_not_listen(
    newest_pg: Cluster, closing: Callable[[Any], Any], channel: str
) -> None:
    settings = {"AUTH": "optional", "JWT_SECRET": SECRET, "PUBLIC_CHANNELS": "*", "LISTEN": "leader"}
    redis = closing(Redis())
    settings |= {"MESSAGE_QUEUE": redis.url, "CLUSTER_KEY": CLUSTER_KEY}
    nodes = closing(Nodes(newest_pg, "identity_leader", 2, balanced=False, **settings))
    for node in nodes.nodes:
        node.wait_ready()
    token = mint(sub="alice")
    clients = [closing(SocketClient(node.url, auth={"token": token})) for node in nodes.nodes * 2]
    for client in clients:
        assert client.call("subscribe", {"channel": channel})["ok"]
    for number, client in enumerate(clients):
        assert client.call("publish", {"channel": channel, "payload": number, "durable": False, "echo": False})["ok"]
    for own, client in enumerate(clients):
        found = [client.next("event") for _ in clients[1:]]
        assert [event["payload"] for event in found] == [number for number in range(len(clients)) if number != own]
        assert all(event["from"] == {"sub": "alice"} for event in found)
