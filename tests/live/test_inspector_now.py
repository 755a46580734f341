"""The inspector's figures and live messages: on two nodes, one of them with two workers, and with the database down."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import socketio

from tests.support.clients import SocketClient
from tests.support.inspector import TOKEN, TOKENS, Inspector, InspectorClient
from tests.support.log import Log
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, ending_soon, mint

#: Of a process, beside what the test compares.
KEYS = {
    "messages_in", "bytes_in", "messages_out", "bytes_out", "published", "replayed", "cpu", "memory", "p50", "p99",
    "measured", "loop_lag", "outbox_messages", "outbox_age", "replays", "problems", "connections", "slow", "buffered",
}  # fmt: skip


class Nodes(Log):
    """Two nodes on one database: the first has two workers, the second reaches the database through a proxy."""

    def __init__(self, cluster: Cluster) -> None:
        settings = TOKENS | {"JWT_SECRET": SECRET, "AUTH": "optional", "INSPECTOR_ROLES": "operator"}
        super().__init__(cluster, "inspector_now", "-w", "2", AUTO_INIT="1", **settings)
        self.proxy = Proxy(cluster.socket_path)
        url = self.proxy.url.removesuffix("postgres") + "inspector_now"
        self.other = ServerProcess(url, "-w", "1", DRAIN_SECONDS="0.2", **settings)
        self.script = Inspector(self.other, TOKEN)

    def close(self) -> None:
        self.other.close()
        self.proxy.close()
        self.server.close()


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    made = Nodes(newest_pg)
    try:
        until(lambda: len(made.script.read("now?history=0")["processes"]) == 3, "all processes are heard")
        yield made
    finally:
        made.close()


def test_now_has_every_process_and_the_database(nodes: Nodes) -> None:
    with closing(SocketClient(nodes.other.url, auth={"token": mint(sub="ann")})) as client:
        answer = client.call("subscribe", {"channel": "orders"})
        assert answer["ok"], answer
        numbers = itertools.count()

        def measured() -> dict[str, Any]:
            nodes.publish("orders", next(numbers), 0)
            nodes.publish("orders", 1, 5, pad=1000)
            found = nodes.script.read("now")
            # PostgreSQL's figures are read every five seconds.
            there = found["total"]["p50"] is not None and (found["database"]["log"]["position"] or 0) >= 5
            return found if there and found["total"]["messages_out"] else {}

        until(measured, "messages were measured")
        found = measured()
    processes = found["processes"]
    assert found["unanswered"] == []
    assert [(one["worker"], one["clients"]) for one in processes if one["node"] == processes[0]["node"]] in (
        [(0, 0), (1, 0)], [(None, 1)],
    )  # fmt: skip
    assert sorted(str(one["worker"]) for one in processes) == ["0", "1", "None"]
    assert all(one.keys() >= KEYS for one in processes)
    assert sum(one["leader"] for one in processes) == 1
    [here] = [one for one in processes if one["worker"] is None]
    assert here["connections"]["websocket"] == 1
    assert here["bytes_in"] > here["messages_in"] > 0
    assert here["messages_out"] > 0
    # Of the same machine: less than the patience of tests, and more than nothing.
    assert 0 < here["p50"] <= here["p99"] < 60
    assert found["total"]["clients"] == 1
    assert found["total"]["subscriptions"] == 1
    series = found["series"]
    assert (series["interval"], series["count"]) == (5, 120)
    assert all(len(values) == 120 for one in processes for values in one["series"].values())
    assert set(found["total"]["series"]) == set(series["names"])
    database = found["database"]
    assert database["reachable"]
    assert database["log"]["position"] >= 5
    assert database["size"] > database["log"]["bytes"] > 0
    assert database["log"]["retention"] == 86_400
    assert abs(database["clock"]["offset"]) < 60
    parts = {one["part"]: one for one in database["sessions"]}
    assert {"listen", "relay", "backlog"} <= set(parts)
    assert parts["listen"]["channels"] is not None
    assert database["backends"]["ours"] >= 3
    assert database["listen_channels"] >= 2


def test_history_grows(nodes: Nodes) -> None:
    def last() -> list[Any]:
        values: list[Any] = nodes.script.read("now")["total"]["series"]["loop_lag"]
        return [value for value in values if value is not None]

    until(last, "a sample was taken")
    assert all(0 <= value < 60 for value in last())


def test_now_each_second_for_those_who_look(nodes: Nodes) -> None:
    ticket = nodes.script.do("ticket")["ticket"]
    # A ticket of one node is good on another one.
    with closing(InspectorClient(nodes.server.url, auth={"ticket": ticket})) as client:
        client.do("now", on=True)
        first, second = client.next("now"), client.next("now")
        assert second["at"] - first["at"] > 0.5
        assert len(second["processes"]) == 3
        assert "series" not in second
        # Its own events are not among those that it counts.
        assert second["total"]["clients"] == 0
        client.do("now", on=False)
        assert client.refusal("now") == "invalid_request"
        assert client.refusal("now", on=1) == "invalid_request"
        assert client.call("tail", "orders")["error"]["code"] == "invalid_request"


def test_namespace_is_for_readers_only(nodes: Nodes) -> None:
    for auth in (None, {}, {"token": "wrong, and long enough"}, {"ticket": "AAAA"}, {"token": mint(sub="ann")}, "x"):
        with pytest.raises(socketio.exceptions.ConnectionError):
            InspectorClient(nodes.other.url, auth=auth, reconnection=False)
    # A client of the namespace / has no tail.
    with closing(SocketClient(nodes.other.url, auth={"token": mint(sub="ann")})) as client:
        client.io.emit("tail", {"channel": "orders"})
        assert client.call("subscribe", {"channel": "orders"})["ok"]
        assert client.pending("event") == 0
    with closing(InspectorClient(nodes.other.url, auth={"token": mint(role="operator")})) as reader:
        assert reader.do("tail_stop") == {"ok": True}


def test_session_of_the_namespace_ends_with_the_sign_in(nodes: Nodes) -> None:
    def opened(exp: int) -> InspectorClient | None:
        with suppress(socketio.exceptions.ConnectionError):
            return InspectorClient(nodes.other.url, auth={"token": mint(role="operator", exp=exp)}, reconnection=False)
        return None

    with closing(ending_soon(opened)) as client:
        assert client.next("error")["code"] == "unauthorized"
        client.next("disconnect")


def _payloads(client: InspectorClient, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        found += [json.loads(message["text"]) for message in client.next("tail")["messages"]]
    return found


def test_tail_of_channel_and_pattern(nodes: Nodes) -> None:
    with closing(InspectorClient(nodes.other.url, auth={"token": TOKEN})) as client:
        started = client.do("tail", channel="tail:1")
        nodes.publish("tail:1", 1, 3)
        first = client.next("tail")
        assert first["tail"] == started["tail"]
        [message, *_] = first["messages"]
        assert message["channel"] == "tail:1"
        assert message["position"] > started["position"]
        assert message["epoch"] == started["epoch"]
        assert message["bytes"] == len('[1, ""]')
        nodes.sql("SELECT pg_notify('tail:1', '\"plain\"')")
        until(lambda: '"plain"' in str(client.next("tail")).replace("'", '"'), "the NOTIFY arrives")
        # Another one takes its place: those of the log from the beginning on, and then live ones.
        client.do("tail", pattern="tail:*", since={"epoch": started["epoch"], "position": 0})
        assert _payloads(client, 3) == [[1, ""], [2, ""], [3, ""]]
        assert client.next("tail_live")["channel"] == "tail:1"
        assert client.next("tail_live")["pattern"] == "tail:*"
        nodes.publish("tail:2", 4, 4)
        assert _payloads(client, 1) == [[4, ""]]
        client.do("tail", channel="tail:1", history=2, filter={"0": {"gt": 2}})
        assert _payloads(client, 1) == [[3, ""]]
        client.do("tail", channel="tail:1", history=1)
        nodes.publish("tail:1", 9, 9, pad=70_000)
        for message in iter(lambda: client.next("tail")["messages"][-1], None):
            if message.get("cut"):
                assert message["text"].startswith("[9, ")
                assert message["bytes"] > 70_000
                assert "payload" not in message
                break
        for wrong in (
            {}, {"channel": "a", "pattern": "b*"}, {"channel": "a*"}, {"pattern": "a"}, {"channel": 5},
            {"channel": "a", "filter": "x"}, {"channel": "a", "filter": {"x": {"nope": 1}}},
            {"channel": "a", "since": "nonsense"}, {"channel": "a", "history": -1},
        ):  # fmt: skip
            assert client.refusal("tail", **wrong) in ("invalid_request", "invalid_channel")
        assert client.refusal("tail_pause", paused=True) == "invalid_request"  # the wrong ones have ended the tail


def test_paused_tail_keeps_a_thousand_and_counts_the_others(nodes: Nodes) -> None:
    with closing(InspectorClient(nodes.other.url, auth={"token": TOKEN})) as client:
        started = client.do("tail", channel="busy")
        assert client.do("tail_pause", paused=True)["waiting"] == 0
        nodes.publish("busy", 1, 1500)
        until(lambda: client.next("tail_waiting")["dropped"] == 500, "1,500 messages have arrived")
        assert client.do("tail_pause", paused=False)["waiting"] == 1000
        batches = [client.next("tail")]
        while json.loads(batches[-1]["messages"][-1]["text"]) != [1500, ""]:
            batches.append(client.next("tail"))
        assert [batch["dropped"] for batch in batches] == [500] + [0] * (len(batches) - 1)
        assert [json.loads(message["text"])[0] for batch in batches for message in batch["messages"]] == [
            *range(501, 1501)
        ]
        # A replay is not dropped: it goes as fast as the client takes it.
        client.do("tail", channel="busy", since=f"{started['epoch']}:{started['position']}")
        assert [payload[0] for payload in _payloads(client, 1500)] == [*range(1, 1501)]


def test_filter_is_checked_as_it_is_typed(nodes: Nodes) -> None:
    def check(text: str) -> dict[str, Any]:
        return nodes.script.do("filter", {"text": text})

    assert check('{"new.id": {"gt": 5}}') == {"ok": True, "filter": {"new.id": {"gt": 5}}, "conditions": 1}
    assert check("  ") == {"ok": True, "filter": None, "conditions": 0}
    assert check('{"new.id": ')["at"] == 11
    found = check('{"new.id": {"above": 5}}')
    assert not found["ok"]
    assert "new.id" in found["message"]
    assert check("[" * 5000)["ok"] is False
    assert nodes.script.do("filter", {"filter": {"a": 1}})["conditions"] == 1
    assert nodes.script.post("filter", {}).status_code == 400


def test_without_the_database(nodes: Nodes) -> None:
    """Last, because the node reconnects after it."""
    page = Inspector(nodes.other)
    page.do("login", {"token": TOKEN})
    with closing(InspectorClient(nodes.other.url, auth={"token": TOKEN})) as client:
        client.do("now", on=True)
        client.do("tail", channel="outage")
        nodes.proxy.black_hole()
        until(lambda: not client.next("now")["database"]["reachable"], "the outage is seen")
        began = time.monotonic()
        found = page.read("now")
        assert time.monotonic() - began < 30  # and no hang: it takes two seconds on an idle machine
        assert [one["worker"] for one in found["processes"]] == [None]
        assert found["database"]["problem"]
        assert found["database"]["log"] is None
        assert page.read("session")["signed_in"]
        other = Inspector(nodes.other)
        assert other.do("login", {"token": TOKEN})["signed_in"]
        nodes.proxy.restore()
        assert client.next("tail_gap")["reason"] == "database_connection_lost"
        until(lambda: client.next("now")["database"]["reachable"], "the database is back")
        until(lambda: len(page.read("now?history=0")["processes"]) == 3, "the other node is back")
