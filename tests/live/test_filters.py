"""Filters end to end: NOTIFY and the log, replays, changing filters. Nothing is lost or duplicated."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import SocketClient
from tests.support.log import Log, numbers, since, wait_installed
from tests.support.node import NodeClient
from tests.support.postgres import Cluster
from tests.support.server import PATIENT
from tests.support.swarm import RawClient, Swarm


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_filters", AUTO_INIT="1", SEND_BUFFER_BYTES="200000", **PATIENT)
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def client(log: Log) -> Iterator[SocketClient]:
    with SocketClient(log.server.url) as made:
        yield made


def subscribe(client: SocketClient, channel: str, filter: Any, **more: Any) -> Any:
    answer = client.call("subscribe", {"channel": channel, "filter": filter} | more)
    assert answer["ok"], answer
    return answer


def test_each_subscriber_receives_the_matches_of_its_filter(log: Log, channel: str) -> None:
    with (
        SocketClient(log.server.url) as every,
        SocketClient(log.server.url) as fives,
        SocketClient(log.server.url) as big,
    ):
        every.call("subscribe", {"channel": channel})
        answer = subscribe(fives, channel, {"row.id": 5})
        assert answer["filter"] == {"row.id": 5}
        assert fives.next("subscribed") == {name: value for name, value in answer.items() if name != "ok"}
        subscribe(big, channel, {"row.total": {"gt": 100}, "row.status": ["open", "paid"]})
        rows = [
            {"id": 5, "total": 1, "status": "open"},
            {"id": 6, "total": 101, "status": "open"},
            {"id": 5, "total": 200, "status": "paid"},
            {"id": 7, "total": 300, "status": "void"},
        ]
        for statement in ("SELECT pg_notify(%s, %s)", "SELECT socketio_pg.publish(%s, %s)"):
            for row in rows:
                log.sql(statement, channel, json.dumps({"row": row}))
            log.sql(statement, channel, '"the end"' if "publish" in statement else "null")
            assert [every.next("event")["payload"] for _ in range(5)][:4] == [{"row": row} for row in rows]
            assert [fives.next("event")["payload"]["row"] for _ in range(2)] == [rows[0], rows[2]]
            assert [big.next("event")["payload"]["row"] for _ in range(2)] == [rows[1], rows[2]]
        assert [one.pending("event") for one in (every, fives, big)] == [0, 0, 0]


def test_replay_and_history_are_filtered(log: Log, client: SocketClient, channel: str) -> None:
    begin = client.call("subscribe", {"channel": channel})
    client.call("unsubscribe", {"channel": channel})
    log.publish(channel, 1, 50)
    log.settle()
    assert subscribe(client, channel, {"0": {"gt": 47}}, since=since(begin))["recovered"] is True
    assert numbers(client, 3) == [48, 49, 50]
    log.publish(channel, 51, 51)
    assert numbers(client, 1) == [51]
    client.call("unsubscribe", {"channel": channel})
    # Of the last ten messages, the matching ones.
    subscribe(client, channel, {"0": [1, 45]}, history=10)
    log.publish(channel, 45, 45)
    events = [client.next("event") for _ in range(2)]
    assert [(event["payload"][0], event.get("replayed", False)) for event in events] == [(45, True), (45, False)]


def test_large_replay_uses_the_current_filter(log: Log, channel: str) -> None:
    total = 3000
    with SocketClient(log.server.url) as first:
        begin = first.call("subscribe", {"channel": channel})
    log.publish(channel, 1, total, pad=1000)
    log.settle()
    with SocketClient(log.server.url) as client:
        subscribe(client, channel, {"0": {"gt": total}}, since=since(begin))
        # Whether the first replay is still running or has ended, this one delivers every message once.
        subscribe(client, channel, {"0": {"gte": 0}}, since=since(begin))
        assert numbers(client, total) == list(range(1, total + 1))


def test_new_filter_replaces_the_previous_one(log: Log, client: SocketClient, channel: str) -> None:
    subscribe(client, channel, {"0": 1})
    log.publish(channel, 1, 3)
    assert numbers(client, 1) == [1]
    subscribe(client, channel, {"0": 2})
    log.publish(channel, 1, 3)
    assert numbers(client, 1) == [2]
    assert "filter" not in subscribe(client, channel, None)
    log.publish(channel, 1, 3)
    assert numbers(client, 3) == [1, 2, 3]
    subscribe(client, channel, {"0": 3})
    client.call("unsubscribe", {"channel": channel})
    log.publish(channel, 3, 3)
    log.settle()
    client.call("subscribe", {"channel": channel})
    log.publish(channel, 4, 4)
    assert numbers(client, 1) == [4]


@pytest.fixture(scope="module")
def yielding(newest_pg: Cluster) -> Iterator[Log]:
    """A server whose broadcasts yield to other green threads after every send."""
    made = Log(newest_pg, "live_filters_yielding", AUTO_INIT="1", app="tests.support.yielding_app:app")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.mark.parametrize("of", [pytest.param("log", marks=pytest.mark.nightly), "yielding"])
def test_changing_filters_lose_and_duplicate_nothing(request: pytest.FixtureRequest, of: str, channel: str) -> None:
    """Each of these filters matches every message; small and large batches arrive all the time."""
    log: Log = request.getfixturevalue(of)
    total, filters = 300, [None, {"0": {"gte": 0}}, {"0": {"lt": 10**6}}, {"1": {"ne": 5}}]
    with Swarm("127.0.0.1", log.server.port) as swarm:
        raws = swarm.connect(20)
        for raw in raws:
            raw.emit("subscribe", {"channel": channel}, 1)
        swarm.run_until(lambda: all(any(packet.startswith("31[") for packet in raw.packets) for raw in raws))

        def publish() -> None:
            for number in range(1, total + 1, 3):
                log.publish(channel, number, number + 2, pad=(number % 10 == 0) * 4000)

        thread = threading.Thread(target=publish)
        thread.start()
        rounds = 0

        def change() -> bool:
            nonlocal rounds
            rounds += 1
            for index, raw in enumerate(raws):
                raw.emit("subscribe", {"channel": channel, "filter": filters[(rounds + index) % len(filters)]}, 2)
            answers = [sum(packet.startswith("32[") for packet in raw.packets) for raw in raws]
            swarm.run_until(lambda: all(answered(raw) > before for raw, before in zip(raws, answers, strict=True)))
            return not thread.is_alive()

        while not change():
            pass
        thread.join()
        swarm.run_until(lambda: all(len(raw.packets) >= total and len(raw.events("event")) >= total for raw in raws))
        for raw in raws:
            assert [event["payload"][0] for event in raw.events("event")] == list(range(1, total + 1))
        assert rounds > 3


def answered(raw: RawClient) -> int:
    return sum(packet.startswith("32[") for packet in raw.packets)


def test_slow_client_with_a_filter_gets_a_replay(log: Log, channel: str) -> None:
    total = 2000
    with Swarm("127.0.0.1", log.server.port) as swarm, SocketClient(log.server.url) as witness:
        [slow] = swarm.connect(1, receive_buffer=4096)
        slow.emit("subscribe", {"channel": channel, "filter": {"0": {"gt": 500}}}, 1)
        swarm.run_until(lambda: any(packet.startswith("31[") for packet in slow.packets))
        subscribe(witness, channel, {"0": total})
        swarm.pause(slow)
        for first in range(1, total, 50):
            log.publish(channel, first, first + 49, pad=6000)
        assert numbers(witness, 1) == [total]
        swarm.resume(slow)
        swarm.run_until(lambda: len(slow.packets) >= total - 500 + len(("CONNECT", "hello", "subscribed", "answer")))
        events = slow.events("event")
        assert [event["payload"][0] for event in events] == list(range(501, total + 1))
        assert any(event.get("replayed") for event in events)


@pytest.mark.parametrize("filter", ["x", [1], {"a..b": 1}, {"a": {"near": 1}}, {"a": {"like": "x" * 101}}])
def test_invalid_filter_keeps_the_previous_one(log: Log, client: SocketClient, channel: str, filter: Any) -> None:
    subscribe(client, channel, {"0": 1})
    answer = client.call("subscribe", {"channel": channel, "filter": filter})
    assert answer["error"]["code"] == "invalid_request"
    assert "filter" in answer["error"]["message"]
    log.publish(channel, 1, 2)
    log.publish(channel, 1, 1)
    assert numbers(client, 2) == [1, 1]


def test_gap_is_sent_to_filtered_subscriptions(log: Log, channel: str) -> None:
    with SocketClient(log.server.url) as client, SocketClient(log.server.url) as other:
        subscribe(client, channel, {"0": 1})
        subscribe(other, channel, {"0": 2})
        log.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert [one.next("gap")["channel"] for one in (client, other)] == [channel, channel]
        log.publish(channel, 1, 2)
        assert [numbers(one, 1) for one in (client, other)] == [[1], [2]]


def test_filters_work_over_long_polling(log: Log, channel: str) -> None:
    with SocketClient(log.server.url, transports=("polling",)) as client:
        subscribe(client, channel, {"0": {"gt": 2}})
        log.publish(channel, 1, 4)
        log.sql("SELECT pg_notify(%s, '[5]')", channel)
        assert sorted(numbers(client, 3)) == [3, 4, 5]


def test_channel_name_like_a_filter_room_is_refused(log: Log, channel: str) -> None:
    """Rooms of filters have internal names that no client can subscribe to."""
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": f'{channel}\0[["0","in",[1]]]'})
        assert answer["error"]["code"] == "invalid_channel"


# -- the form of numbers -----------------------------------------------------------------------------------------------


def test_numbers_are_strings_for_those_who_want_that(log: Log, channel: str) -> None:
    """In rooms with and without a filter, live and in replays, in both tiers."""
    digits = "9007199254740993"
    text = f'{{"id": {digits}, "total": 1.50, "name": "7"}}'
    plain, strings = json.loads(text), {"id": digits, "total": "1.50", "name": "7"}
    with (
        SocketClient(log.server.url) as every,
        SocketClient(log.server.url) as exact,
        SocketClient(log.server.url) as filtered,
        SocketClient(log.server.url) as other,
    ):
        begin = every.call("subscribe", {"channel": channel})
        answer = exact.call("subscribe", {"channel": channel, "numbers": "string"})
        assert answer["numbers"] == "string"
        subscribe(filtered, channel, {"total": {"gt": 1}}, numbers="string")
        subscribe(other, channel, {"total": {"gt": 2}}, numbers="string")
        for statement in ("SELECT pg_notify(%s, %s)", "SELECT socketio_pg.publish(%s, %s)"):
            log.sql(statement, channel, text)
            assert every.next("event")["payload"] == plain
            assert exact.next("event")["payload"] == filtered.next("event")["payload"] == strings
        log.settle()
        # Subscribing again decides anew, and a replay has the form of its subscription.
        assert "numbers" not in exact.call("subscribe", {"channel": channel, "history": 1})
        assert exact.next("event")["payload"] == plain
        request = {"channels": [channel], "since": since(begin), "numbers": "string"}
        [result] = every.call("subscribe", request)["channels"]
        assert (result["ok"], result["numbers"]) == (True, "string")
        replayed = every.next("event")
        assert (replayed["payload"], replayed["replayed"]) == (strings, True)
        log.sql("SELECT socketio_pg.publish(%s, '1')", channel)
        assert (every.next("event")["payload"], exact.next("event")["payload"]) == ("1", 1)
        assert exact.call("subscribe", {"channel": channel, "numbers": "exact"})["error"]["code"] == "invalid_request"
        assert [one.pending("event") for one in (every, exact, filtered, other)] == [0, 0, 0, 0]


def test_browser_helper_gets_numbers_as_strings(log: Log, channel: str) -> None:
    node = NodeClient(log.server.url, "websocket", "replay.mjs", "none", "string")
    try:
        node.send({"command": "subscribe", "name": "a", "channel": channel})
        node.next(kind="done")
        log.sql("SELECT socketio_pg.publish(%s, '{\"id\": 9007199254740993}')", channel)
        message = node.next(kind="message")["message"]
        assert (message["payload"], type(message["position"])) == ({"id": "9007199254740993"}, int)
    finally:
        node.close()
