"""Subscribing to many channels with one request: `subscribe` and `unsubscribe` with `channels`."""

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from socketio_pg.gateway.limits import BURST_SECONDS, CHANNELS_PER_EVENT
from socketio_pg.gateway.subscribing import MAX_CHANNELS
from socketio_pg.subscriber.connection import Connection
from socketio_pg.subscriber.subscriber import Message, Subscriber
from tests.support import asyncapi
from tests.support.clients import SocketClient, code
from tests.support.log import Log, wait_installed
from tests.support.metrics import TOKEN, scrape
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE, until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.replay_clients import CLIENTS, Client, ProxiedLog, numbers
from tests.support.server import ServerProcess
from tests.support.tokens import mint


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    """A server with a log, whose limits and send buffers are small."""
    settings = {"MAX_SUBSCRIPTIONS": "1000", "MAX_EVENTS_PER_SECOND": "50", "SEND_BUFFER_BYTES": "10000"}
    made = Log(newest_pg, "many_channels", AUTO_INIT="1", **settings)
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def client(log: Log) -> Iterator[SocketClient]:
    with SocketClient(log.server.url) as made:
        yield made


def codes(answer: dict[str, Any]) -> list[str | None]:
    assert answer["ok"] is True, answer
    return [code(result) for result in answer["channels"]]


def test_each_channel_has_its_own_result(log: Log, client: SocketClient, channel: str) -> None:
    first = client.call("subscribe", {"channel": f"{channel}-0"})
    where = {"epoch": first["epoch"], "position": first["position"]}
    names = [f"{channel}-{number}" for number in range(6)]
    log.publish(names[1], 1, 3)
    log.publish(names[2], 1, 3)
    log.settle()
    request = {
        "channels": [
            names[0],
            {"channel": names[1], "since": where},
            {"channel": names[2], "history": 1},
            {"channel": names[3], "since": {"epoch": "another", "position": 1}, "filter": None},
            {"channel": names[4], "since": 5},
            names[5], names[5], "", "*", 7, None, first["channel"] * 20, client.io.get_sid(),
        ],
        "filter": {"0": {"gte": 2}},
    }  # fmt: skip
    answer = client.call("subscribe", request)
    asyncapi.check("subscribe_acknowledgement", answer)
    assert codes(answer) == [
        None, None, None, None, "invalid_request", None, "invalid_request", "invalid_channel", "invalid_channel",
        "invalid_channel", "invalid_channel", "invalid_channel", "invalid_channel",
    ]  # fmt: skip
    results = answer["channels"]
    assert [result.get("channel") for result in results[:7]] == [*names, names[5]]
    assert results[1] == {"ok": True, "channel": names[1], **where, "recovered": True, "filter": request["filter"]}
    assert "recovered" not in results[0] | results[2]
    assert (results[3]["recovered"], results[3]["reason"]) == (False, "epoch_changed")
    assert "filter" not in results[3]
    # The common filter applies to the replays, and to what follows.
    replayed = [client.next("event") for _ in range(3)]
    assert sorted((message["channel"], message["payload"][0]) for message in replayed) == [
        (names[1], 2), (names[1], 3), (names[2], 3)
    ]  # fmt: skip
    log.publish(names[0], 1, 2)
    assert client.next("event")["payload"][0] == 2
    log.publish(names[3], 1, 1)
    assert client.next("event")["payload"][0] == 1
    # The event `subscribed` came for the first request only: this one asked for an acknowledgement.
    assert client.next("subscribed")["channel"] == names[0]
    assert client.pending("subscribed") == 0

    answer = client.call("unsubscribe", {"channels": [*names[:4], "", "never"]})
    asyncapi.check("unsubscribe_acknowledgement", answer)
    assert codes(answer) == [None, None, None, None, "invalid_channel", None]
    client.io.emit("subscribe", {"channels": [names[0]]})
    event = client.next("subscribed")
    asyncapi.check("subscribed", event)
    assert event["channels"][0]["channel"] == names[0]
    client.io.emit("unsubscribe", {"channels": [names[0]]})
    event = client.next("unsubscribed")
    asyncapi.check("unsubscribed", event)
    assert event == {"channels": [{"ok": True, "channel": names[0]}]}
    log.publish(names[0], 9, 9)
    log.settle()
    assert client.pending("event") == 0


@pytest.mark.parametrize(
    "request_",
    [
        {"channels": []}, {"channels": "foo"}, {"channels": None}, {"channels": {"foo": 1}},
        {"channels": ["foo"] * (MAX_CHANNELS + 1)}, {"channels": ["foo"], "channel": "foo"},
    ],
    ids=["empty", "text", "null", "object", "too-many", "both"],
)  # fmt: skip
def test_invalid_lists_are_refused(client: SocketClient, request_: dict[str, Any]) -> None:
    for event in ("subscribe", "unsubscribe"):
        assert code(client.call(event, request_)) == "invalid_request"


def test_no_message_is_lost_or_precedes_the_answer(log: Log, client: SocketClient, channel: str) -> None:
    """Messages are published all the time while the client subscribes."""
    names = [f"{channel}-{number}" for number in range(60)]
    done = threading.Event()

    def publish() -> None:
        while not done.is_set():
            log.sql("SELECT socketio_pg.publish(name, '1') FROM unnest(%s) AS name", names)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        starts: dict[str, int] = {}
        for first in range(0, 60, 20):
            for result in client.call("subscribe", {"channels": names[first : first + 20]})["channels"]:
                starts[result["channel"]] = result["position"]
        client.next("event")
    finally:
        done.set()
        thread.join()
    rows = log.sql("SELECT channel, position FROM socketio_pg.log WHERE channel = ANY(%s) ORDER BY position", names)
    expected = [(name, position) for name, position in rows if position > starts[name]]
    found = [(message["channel"], message["position"]) for message in (client.next("event") for _ in expected[1:])]
    assert found == expected[1:]


def test_limits_count_each_channel(newest_pg: Cluster, channel: str) -> None:
    settings = {"MAX_SUBSCRIPTIONS": "10", "MAX_EVENTS_PER_SECOND": "1", "DRAIN_SECONDS": "0.2"}
    server = ServerProcess(newest_pg.url(), **settings)
    with contextlib.closing(server), SocketClient(server.url, reconnection=False) as client:
        names = [f"{channel}-{number}" for number in range(12)]
        # This costs six events, and a client has five at first: a full bucket allows it.
        answer = client.call("subscribe", {"channels": names})
        assert sorted(codes(answer), key=str) == [None] * 10 + ["too_many_subscriptions"] * 2
        assert len(names) / CHANNELS_PER_EVENT > BURST_SECONDS
        assert code(client.call("unsubscribe", {"channels": names})) == "rate_limited"
        # A client that ignores that is disconnected.
        for _ in range(20):
            client.io.emit("unsubscribe", {"channels": names})
        client.next("disconnect")


def test_permission_checks_are_batched(newest_pg: Cluster) -> None:
    database = PolicyDatabase(newest_pg, "many_permissions")
    allowed = [f"room-{number}" for number in range(200)]
    database.join("alice", *allowed)
    server = ServerProcess(database.server_url, **RLS)
    with contextlib.closing(server):
        with SocketClient(server.url, auth={"token": mint(sub="alice", role="authenticated")}) as client:
            before = rollbacks(database)
            answer = client.call("subscribe", {"channels": [*allowed[::-1], "room-of-bob"]})
            assert codes(answer) == [None] * 200 + ["forbidden"]
        # Each batch is one transaction that is rolled back; statistics arrive when the sessions end.
        server.stop()
    until(lambda: rollbacks(database) > before, "the statistics of the ended sessions")
    assert rollbacks(database) - before < 40


def rollbacks(database: PolicyDatabase) -> int:
    [(count,)] = database.sql("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()")
    return int(count)


# -- clients -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=sampled(CLIENTS, lambda name: name != "asyncio"))  # it shares its decisions with "python"
def kind(request: pytest.FixtureRequest) -> Callable[[str], Client]:
    return CLIENTS[request.param]


def test_1000_channels_survive_a_reconnect(newest_pg: Cluster, kind: Callable[[str], Client], channel: str) -> None:
    """The server allows 80 events a second, and 400 at once: a client that sent one for each channel was cut off."""
    names = [f"{channel}-{number}" for number in range(1000)]
    settings = {"MAX_EVENTS_PER_SECOND": "0", "METRICS_TOKEN": TOKEN}
    with contextlib.closing(ProxiedLog(newest_pg, "many_reconnect", **settings)) as log:
        log.install()
        with contextlib.closing(kind(log.address)) as client:
            client.subscribe_all(names)
            log.proxy.refuse()
            log.server.kill()
            log.sql("SELECT socketio_pg.publish(name, '[1]') FROM unnest(%s) AS name", names)
            settings["MAX_EVENTS_PER_SECOND"] = "80"
            log.server.start(**settings)
            log.proxy.restore()
            assert [numbers(client, name, 1) for name in names] == [[1]] * 1000
            log.sql("SELECT pg_notify(name, '[2]') FROM unnest(%s) AS name", names)
            assert [numbers(client, name, 1) for name in names] == [[2]] * 1000
        assert scrape(log.server)['cut_off_total{reason="rate_limited"}'] == 0


def test_clients_know_servers_that_take_one_channel_at_a_time(
    newest_pg: Cluster, kind: Callable[[str], Client], channel: str
) -> None:
    names = [f"{channel}-{number}" for number in range(3)]
    older = ServerProcess(newest_pg.url(), app="tests.support.older_app:app")
    with contextlib.closing(older), contextlib.closing(kind(older.url)) as client:
        client.subscribe_all(names)
        older.kill()
        older.start()
        assert [client.next("gap", name)[0]["reason"] for name in names] == ["client_disconnected"] * 3
        for name in names:
            newest_pg.notify(name, "[1]")
        assert [numbers(client, name, 1) for name in names] == [[1]] * 3


def test_interrupted_channels_share_requests(log: Log, channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Subscriber whose handlers are too slow leaves its channels one after the other, and returns to all of them."""
    names = [f"{channel}-{number}" for number in range(100)]
    going, received, sent = threading.Event(), queue.Queue[str](), Counter[str]()
    emit = Connection.emit

    def counted(connection: Connection, event: str, *arguments: Any) -> bool:
        sent[event] += 1
        return emit(connection, event, *arguments)

    def handle(message: Message) -> None:
        going.wait(PATIENCE)
        received.put(message["channel"])

    monkeypatch.setattr(Connection, "emit", counted)
    with Subscriber(log.server.url, most_waiting=50_000) as subscriber:
        for name in names:
            subscriber.subscribe(name, handle)
        for _ in range(2):
            log.sql("SELECT socketio_pg.publish(name, '1') FROM unnest(%s) AS name", names)
        until(lambda: sent["unsubscribe"], "the channels are interrupted")
        log.settle()
        going.set()
        assert sorted(received.get(timeout=PATIENCE) for _ in range(200)) == sorted(names * 2)
    assert sent["unsubscribe"] < len(names)
    assert sent["subscribe"] < 2 * len(names)
