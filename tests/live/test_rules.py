"""Rules for channels on two nodes: changes of the table take effect, and clients see what docs/protocol.md says."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.clients import SocketClient, code
from tests.support.log import Log, wait_installed
from tests.support.node import NodeClient
from tests.support.nodes import Nodes
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    rules = '{"configured:*": {"max_bytes": 10}, "both": {"max_bytes": 10, "history": false}}'
    with contextlib.closing(Nodes(newest_pg, "live_rules", 2, balanced=False, CHANNEL_RULES=rules)) as made:
        wait_installed(made)
        yield made


@pytest.fixture
def clients(nodes: Nodes) -> Iterator[list[SocketClient]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(SocketClient(node.url)) for node in nodes.nodes]


def set_rule(log: Log, pattern: str, **columns: Any) -> None:
    names, values = ", ".join(columns), ", ".join("%s" for _ in columns)
    updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
    log.sql(
        f"INSERT INTO socketio_pg.rule (pattern, {names}) VALUES (%s, {values}) "
        f"ON CONFLICT (pattern) DO UPDATE SET {updates}",
        pattern, *columns.values(),
    )  # fmt: skip


def test_changes_of_the_table_take_effect_on_all_nodes(nodes: Nodes, clients: list[SocketClient], channel: str) -> None:
    def answers(payload: str) -> list[str | None]:
        return [code(client.call("publish", {"channel": channel, "payload": payload})) for client in clients]

    assert answers("x" * 100) == [None, None]
    set_rule(nodes, channel, max_bytes=50)
    until(lambda: answers("x" * 100) == ["payload_too_large"] * 2, "the rule applies on both nodes")
    assert answers("x") == [None, None]
    refused = clients[0].call("publish", {"channel": channel, "payload": "x" * 49})
    assert refused["error"]["message"].endswith("at most 50 are allowed in this channel")
    nodes.sql("DELETE FROM socketio_pg.rule WHERE pattern = %s", channel)
    until(lambda: answers("x" * 100) == [None, None], "the rule is gone on both nodes")


def test_the_setting_has_rules_too_and_the_table_counts_first(nodes: Nodes, clients: list[SocketClient]) -> None:
    one, _ = clients
    assert code(one.call("publish", {"channel": "configured:5", "payload": "x" * 20})) == "payload_too_large"
    assert code(one.call("publish", {"channel": "both", "payload": "x" * 20})) == "payload_too_large"
    set_rule(nodes, "both", max_bytes=30)
    until(lambda: one.call("publish", {"channel": "both", "payload": "x" * 20})["ok"], "the table's rule applies")
    assert code(one.call("subscribe", {"channel": "both", "history": 1})) == "forbidden", "the setting's other column"


def test_a_channel_without_history(nodes: Nodes, clients: list[SocketClient], channel: str) -> None:
    one, two = clients
    set_rule(nodes, channel, history=False)

    def answers() -> set[str | None]:
        return {code(client.call("subscribe", {"channel": channel, "history": 1})) for client in clients}

    until(lambda: answers() == {"forbidden"}, "no history on both nodes")
    for client in clients:
        client.call("unsubscribe", {"channel": channel})
    first = one.call("subscribe", {"channel": channel})
    nodes.publish(channel, 1, 2)
    assert [one.next("event")["payload"][0] for _ in range(2)] == [1, 2], "live messages arrive"
    place = {"epoch": first["epoch"], "position": first["position"]}
    answer = two.call("subscribe", {"channel": channel, "since": place})
    assert (answer["recovered"], answer["reason"]) == (False, "history_off")
    assert two.next("live")["channel"] == channel
    nodes.publish(channel, 3, 3)
    # Its node may have been behind by the others.
    events = [two.next("event")]
    while events[-1]["payload"][0] != 3:
        events.append(two.next("event"))
    assert not any("replayed" in event for event in events)
    url = f"{nodes.nodes[0].url}/api/channels/{channel}"
    cursor = f"{place['epoch']}:{place['position']}"
    refused = requests.get(f"{url}/messages", params={"since": cursor}, timeout=90)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert requests.get(f"{url}/messages", timeout=90).json()["messages"] == []
    with requests.get(f"{url}/stream", params={"since": cursor}, stream=True, timeout=90) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        told = next(line for line in lines if "recovered" in line)
        assert '"reason":"history_off"' in told


def test_each_client_has_its_own_rate_in_each_channel(nodes: Nodes, clients: list[SocketClient], channel: str) -> None:
    one, two = clients
    set_rule(nodes, f"{channel}:*", rate=1)
    published: list[Any] = []

    def limited() -> bool:
        published.append(one.call("publish", {"channel": f"{channel}:a", "payload": 1, "durable": False}))
        return code(published[-1]) == "rate_limited"

    until(limited, "the rule applies")
    assert published[-1]["error"]["message"] == "too many messages: 1 a second are allowed in this channel"
    assert one.call("publish", {"channel": f"{channel}:b", "payload": 1})["ok"], "another channel"
    assert one.call("publish", {"channel": channel, "payload": 1})["ok"], "a channel without a rule"
    for client in clients:
        assert client.pending("disconnect") == 0
    assert two.call("publish", {"channel": f"{channel}:a", "payload": 1})["ok"], "another client"


def test_the_retained_message_comes_first(nodes: Nodes, clients: list[SocketClient], channel: str) -> None:
    one, two = clients
    set_rule(nodes, channel, retained=True)
    nodes.publish(channel, 1, 2)
    until(lambda: all(retained(node, channel) for node in nodes.nodes), "the rule applies, the message has a position")
    place = one.call("subscribe", {"channel": channel})
    first = one.next("event")
    assert (first["payload"][0], first["retained"], "replayed" in first) == (2, True, False)
    assert first["position"] == place["position"] + 1
    nodes.publish(channel, 3, 3)
    assert "retained" not in one.next("event"), "a live message"
    # Not twice: with what the client has, or gets anyway.
    answer = two.call(
        "subscribe", {"channel": channel, "since": {"epoch": place["epoch"], "position": first["position"]}}
    )
    assert answer["recovered"] is True
    following = two.next("event")  # in the replay, or live if its node is behind by the other one
    assert (following["payload"][0], "retained" in following) == (3, False)
    two.call("unsubscribe", {"channel": channel})
    two.call("subscribe", {"channel": channel, "history": 2})
    assert [two.next("event")["payload"][0] for _ in range(2)] == [2, 3]
    assert two.next("live")["channel"] == channel
    two.call("unsubscribe", {"channel": channel})
    assert retained(nodes.nodes[1], channel, {"0": 3}) == [3]
    assert retained(nodes.nodes[1], channel, {"0": 4}) == []
    assert retained(nodes.nodes[1], channel, numbers="string") == ["3"]
    assert two.call("publish", {"channel": channel, "payload": None})["ok"]
    assert one.next("event")["payload"] is None
    until(lambda: not retained(nodes.nodes[1], channel), "null clears it")


def retained(node: ServerProcess, channel: str, filter: Any = None, **options: Any) -> list[Any]:
    """Return the number of the retained message that a new subscriber gets, or none."""
    with SocketClient(node.url) as client:
        request = {"channel": channel, "filter": filter, **options}
        assert client.call("subscribe", request)["ok"]
        # Its answer comes after all that has been sent before.
        client.call("subscribe", {"channel": f"{channel}-other", "history": 0})
        client.next("live")
        return [client.next("event")["payload"][0] for _ in range(client.pending("event"))]


@pytest.mark.nightly
def test_the_retained_message_survives_trims_restarts_and_kills(newest_pg: Cluster) -> None:
    settings = {"LOG_RETENTION": "1", "AUTO_INIT": "1"}
    with contextlib.closing(Nodes(newest_pg, "live_retained", 2, balanced=False, **settings)) as nodes:
        wait_installed(nodes)
        set_rule(nodes, "kept:*", retained=True, max_messages=1)
        for number in range(3):
            nodes.publish("kept:a", number * 10, number * 10 + 9)
            nodes.publish("other", 1, 100)
            nodes.wait_leader().kill()
            until(lambda: left(nodes, "kept:a") == 1 and left(nodes, "other") <= 1, "trimmed by the other node")
            for node in nodes.nodes:
                if node.process.poll() is not None:
                    node.start()
            for node in nodes.nodes:
                node.wait_ready()
                assert retained(node, "kept:a") == [number * 10 + 9]


@pytest.mark.nightly
def test_a_node_that_was_behind_tells_the_channels_that_rules_have_trimmed(newest_pg: Cluster) -> None:
    """Messages that are too large for NOTIFY are read from the log, which has holes by then."""
    with contextlib.closing(Nodes(newest_pg, "live_behind", 2, balanced=False)) as nodes:
        wait_installed(nodes)
        set_rule(nodes, "short:*", max_messages=1)
        leader = nodes.wait_leader()
        behind = next(node for node in nodes.nodes if node is not leader)
        with SocketClient(behind.url) as client:
            before = client.call("subscribe", {"channel": "short:a"})
            client.call("subscribe", {"channel": "other"})
            until(lambda: nodes.sql("SELECT count(*) FROM socketio_pg.retention") == [(1,)], "the leader has the rule")
            pids = behind.worker_pids()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                nodes.publish("short:a", 1, 5, pad=20_000)
                nodes.publish("other", 1, 5, pad=20_000)
                until(lambda: left(nodes, "short:a") == 1, "trimmed")
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            gap = client.next("gap")
            [(mark,)] = nodes.sql("SELECT position FROM socketio_pg.channel_trim WHERE channel = 'short:a'")
            assert gap == {"channel": "short:a", "reason": "trimmed", "epoch": before["epoch"], "position": mark}
            events = [client.next("event") for _ in range(6)]
            of_channel = [(event["channel"], event["payload"][0]) for event in events]
            assert of_channel == [("short:a", 5), *(("other", number) for number in range(1, 6))]
            assert client.pending("gap") == 0, "the other channel lacks nothing"


@pytest.mark.nightly
def test_what_is_left_is_complete_after_the_mark_when_relays_die_while_they_trim(newest_pg: Cluster) -> None:
    channels = [f"many:{number}" for number in range(10)]
    with contextlib.closing(Nodes(newest_pg, "live_trims", 2, balanced=False)) as nodes:
        wait_installed(nodes)
        set_rule(nodes, "many:*", max_messages=3)
        published = 0
        for _ in range(5):
            published += 500
            nodes.sql(
                "SELECT socketio_pg.publish(c, to_jsonb(n)) FROM generate_series(%s, %s) AS n, unnest(%s) AS c",
                published - 499, published, channels,
            )  # fmt: skip
            wait_trim(nodes)
            nodes.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'socketio_pg relay'"
            )
        until(lambda: nodes.sql("SELECT count(*) FROM socketio_pg.outbox") == [(0,)], "relayed")
        until(
            lambda: nodes.sql("SELECT count(*) FROM socketio_pg.log WHERE channel LIKE 'many:%%'") <= [(30,)],
            "trimmed",
        )
        rows = nodes.sql(
            "SELECT l.channel, array_agg(l.payload::text::int ORDER BY l.position), bool_and(l.position > t.position)"
            " FROM socketio_pg.log AS l JOIN socketio_pg.channel_trim AS t USING (channel) GROUP BY 1"
        )
        assert len(rows) == len(channels)
        for _, numbers, after_mark in rows:
            assert after_mark
            assert numbers == list(range(numbers[0], published + 1)), "each mark is that of what was removed"


def wait_trim(log: Log) -> None:
    """Wait until the relay has trimmed channels by their rules once more."""

    def trims() -> int:
        [(number,)] = log.sql("SELECT last_value FROM socketio_pg.trim_number")
        return int(number)

    before = trims()
    until(lambda: trims() > before, "the relay trims")


def left(log: Log, channel: str) -> int:
    [(count,)] = log.sql("SELECT count(*) FROM socketio_pg.log WHERE channel = %s", channel)
    return int(count)


# -- conflation --------------------------------------------------------------------------------------------------------


def test_a_conflated_channel_has_the_newest_of_each_key_with_the_stock_client(nodes: Nodes, channel: str) -> None:
    set_rule(nodes, channel, max_rate=4, conflate_key="k")
    with contextlib.closing(NodeClient(nodes.nodes[1].url, "websocket")) as client:
        client.next(event="connect")

        def limited() -> bool:
            client.call("unsubscribe", {"channel": channel})
            return bool(client.call("subscribe", {"channel": channel}).get("max_rate") == 4)

        until(limited, "the rule applies")
        began = time.monotonic()
        nodes.sql(
            "SELECT socketio_pg.publish(%s, jsonb_build_object('k', n %% 2, 'n', n)) FROM generate_series(1, 200) AS n",
            channel,
        )
        nodes.sql('SELECT socketio_pg.publish(%s, \'{"k": 0, "n": 201}\')', channel)
        found: list[Any] = []
        while not found or found[-1]["payload"]["n"] != 201:
            found.append(client.next(event="event")["argument"])
    numbers = [one["payload"]["n"] for one in found]
    assert numbers == sorted(numbers)
    assert 199 in numbers, "the newest of the other key"
    assert len(numbers) < 50 + 2 * 4 * (time.monotonic() - began)
    assert [one["position"] for one in found] == sorted(one["position"] for one in found)


def test_a_client_of_a_conflated_channel_that_returns_misses_nothing(
    nodes: Nodes, clients: list[SocketClient], channel: str
) -> None:
    """Subscribes again and again while messages wait: each message comes once, in order, and the newest one at last."""
    one, _ = clients
    set_rule(nodes, channel, max_rate=10)
    until(lambda: one.call("subscribe", {"channel": channel}).get("max_rate"), "the rule applies")
    one.call("unsubscribe", {"channel": channel})
    nodes.publish(channel, 0, 0)
    nodes.settle()
    place = one.call("subscribe", {"channel": channel, "history": 0})
    last = place["position"]
    numbers: list[int] = []

    def take(event: dict[str, Any]) -> None:
        nonlocal last
        assert event["position"] > last, "each message once, in order"
        last = event["position"]
        numbers.append(event["payload"][0])

    for round in range(12):
        nodes.publish(channel, round * 5 + 1, round * 5 + 3)
        for _ in range(one.pending("event")):
            take(one.next("event"))
        answer = one.call("unsubscribe", {"channel": channel})
        assert answer["ok"]
        # What was sent before the answer is here by now.
        for _ in range(one.pending("event")):
            take(one.next("event"))
        nodes.publish(channel, round * 5 + 4, round * 5 + 5)
        answer = one.call("subscribe", {"channel": channel, "since": {"epoch": place["epoch"], "position": last}})
        assert answer["recovered"] is True
        take(one.next("event"))
    while numbers[-1] != 60:
        take(one.next("event"))
