"""Several messages in one event, for clients that ask for it, over real connections."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.test_javascript_package import Package
from tests.support.clients import SocketClient, code
from tests.support.log import Log, since, wait_installed
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import ROOT
from tests.support.swarm import RawClient, Swarm

#: Messages in one transaction.
MANY = 250


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    newest_pg.sql("DO $$ BEGIN CREATE ROLE batch_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    settings = {"LIVE_TABLES": "public.*", "LIVE_TABLE_ROLE": "batch_reader"}
    made = Log(newest_pg, "batches", AUTO_INIT="1", DURABLE_CHANNELS="durable:*", **settings)
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def swarm(log: Log) -> Iterator[Swarm]:
    with Swarm("127.0.0.1", log.server.port) as made:
        yield made


def subscribe(swarm: Swarm, client: RawClient, **request: Any) -> dict[str, Any]:
    client.packets.clear()
    client.emit("subscribe", request, 1)
    swarm.run_until(lambda: any(packet.startswith("31[") for packet in client.packets))
    [answer] = [json.loads(packet[2:])[0] for packet in client.packets if packet.startswith("31[")]
    return answer  # type: ignore[no-any-return]


def messages(client: RawClient) -> list[dict[str, Any]]:
    """Return all messages so far, those of batches included, in the order of their arrival."""
    found: list[dict[str, Any]] = []
    for packet in client.packets:
        if packet.startswith('2["events",'):
            batch = json.loads(packet[1:])[1]
            assert len(batch) > 1
            found += batch
        elif packet.startswith('2["event",'):
            found.append(json.loads(packet[1:])[1])
    return found


def as_strings(value: Any) -> Any:
    """Return a payload with its numbers as strings."""
    if isinstance(value, dict):
        return {name: as_strings(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_strings(inner) for inner in value]
    return str(value) if isinstance(value, int) else value


def notify(log: Log, channel: str, count: int = MANY) -> None:
    payload = "json_build_object('n', n, 'big', 9007199254740992 + n)"
    log.sql(f"SELECT pg_notify(%s, {payload}::text) FROM generate_series(1, %s) AS n", channel, count)


def test_messages_that_come_together_are_sent_together(log: Log, swarm: Swarm, channel: str) -> None:
    plain, batching, filtering, exact = clients = swarm.connect(4)
    subscribe(swarm, plain, channel=channel)
    assert subscribe(swarm, batching, channel=channel, batch=True)["ok"]
    subscribe(swarm, filtering, channel=channel, batch=True, filter={"n": {"gt": MANY - 50}})
    subscribe(swarm, exact, channel=channel, batch=True, numbers="string")
    for publish in (notify, lambda log, channel: log.publish(channel, 1, MANY)):
        publish(log, channel)
        swarm.run_until(lambda: len(messages(plain)) == len(messages(batching)) == len(messages(exact)) == MANY)
        assert plain.events("events") == []
        assert messages(batching) == messages(plain)
        assert len(batching.packets) < MANY / 2
        assert [one["payload"] for one in messages(exact)] == [as_strings(one["payload"]) for one in messages(plain)]
        for client in clients:
            client.packets.clear()
    notify(log, channel)
    swarm.run_until(lambda: len(messages(filtering)) == 50)
    assert [one["payload"]["n"] for one in messages(filtering)] == list(range(MANY - 49, MANY + 1))


def test_replays_come_in_batches(log: Log, swarm: Swarm, channel: str) -> None:
    first, plain, batching = swarm.connect(3)
    start = subscribe(swarm, first, channel=channel)
    log.publish(channel, 1, MANY)
    log.settle()
    for client, batch in ((plain, False), (batching, True)):
        subscribe(swarm, client, channel=channel, since=since(start), batch=batch)
        swarm.run_until(lambda client=client: bool(client.events("live")))  # type: ignore[misc]
    assert [one["payload"][0] for one in messages(batching)] == list(range(1, MANY + 1))
    assert messages(batching) == messages(plain)
    assert len(batching.packets) < MANY / 2
    assert batching.packets[-1].startswith('2["live",'), "after all messages"


def test_patterns_and_channels_together(log: Log, swarm: Swarm, channel: str) -> None:
    """The members of the channel's room, of the pattern's, and of both."""
    plain, batching, only = swarm.connect(3)
    for client, batch in ((plain, False), (batching, True)):
        subscribe(swarm, client, channel=f"{channel}:1", batch=batch)
        subscribe(swarm, client, pattern=f"{channel}:*")
    subscribe(swarm, only, pattern=f"{channel}:*", batch=True)
    log.sql(
        "SELECT socketio_pg.publish(%s || ':' || n %% 2, to_jsonb(n)) FROM generate_series(1, %s) AS n", channel, MANY
    )
    swarm.run_until(lambda: all(len(messages(client)) == MANY for client in (plain, batching, only)))
    assert messages(batching) == messages(plain)
    assert [len(one.get("matches", [1])) for one in messages(batching)] == [2, 1] * (MANY // 2)
    assert {one["pattern"] for one in messages(only)} == {f"{channel}:*"}
    assert len(batching.packets) < MANY / 2
    assert len(only.packets) < MANY / 2


def test_changes_of_live_tables(log: Log, swarm: Swarm) -> None:
    log.sql(
        "CREATE TABLE many (id int PRIMARY KEY, n int); SELECT socketio_pg.watch('many', bulk_limit => 1000); "
        "GRANT SELECT ON many TO batch_reader"
    )
    plain, batching = swarm.connect(2)
    for client, batch in ((plain, None), (batching, True)):
        assert subscribe(swarm, client, table="public.many", batch=batch)["ok"]
        swarm.run_until(lambda client=client: bool(client.events("live")))  # type: ignore[misc]
    assert code(subscribe(swarm, plain, table="public.many", id="wrong", batch=1)) == "invalid_request"
    for client in (plain, batching):
        client.packets.clear()
    log.sql("INSERT INTO many SELECT n, n FROM generate_series(1, %s) AS n", MANY)
    swarm.run_until(lambda: len(messages(plain)) == len(messages(batching)) == MANY)
    assert [one["payload"]["new"]["id"] for one in messages(plain)] == list(range(1, MANY + 1))
    assert messages(batching) == messages(plain)
    assert plain.events("events") == []
    assert len(batching.packets) < MANY / 2


def test_senders_that_want_no_echo(log: Log, swarm: Swarm, channel: str) -> None:
    one, two = swarm.connect(2)
    for client in (one, two):
        subscribe(swarm, client, channel=channel, batch=True)
    # In one segment, so that the server publishes them in one transaction.
    texts = [
        json.dumps(["publish", {"channel": channel, "payload": number, "echo": number % 2 == 0}])
        for number in range(50)
    ]
    one.send_all(*[f"42{text}" for text in texts])
    swarm.run_until(lambda: len(messages(two)) == 50)
    assert [message["payload"] for message in messages(two)] == list(range(50))
    swarm.run_until(lambda: len(messages(one)) == 25)
    assert [message["payload"] for message in messages(one)] == list(range(0, 50, 2))


def test_a_client_that_polls(log: Log, channel: str) -> None:
    with SocketClient(log.server.url, transports=("polling",)) as client:
        client.call("subscribe", {"channels": [channel, f"{channel}-other"], "batch": True})
        notify(log, channel)
        until(lambda: client.pending("events") * 100 + client.pending("event") >= MANY, "all batches")
        found = [one for _ in range(client.pending("events")) for one in client.next("events")]
        assert [one["payload"]["n"] for one in found] == list(range(1, MANY + 1))


def test_the_last_request_counts_and_wrong_values_are_refused(log: Log, swarm: Swarm, channel: str) -> None:
    [client] = swarm.connect(1)
    subscribe(swarm, client, channel=channel, batch=True)
    wrong: Any
    for wrong in (1, "yes", [], {}):
        answer = subscribe(swarm, client, channel=channel, batch=wrong)
        assert code(answer) == "invalid_request"
        assert answer["error"]["message"] == "batch must be true, false or null"
    for request, batches in (({}, True), ({"batch": None}, True), ({"batch": False}, False), ({}, False)):
        subscribe(swarm, client, channel=channel, **request)
        notify(log, channel)
        swarm.run_until(lambda: len(messages(client)) == MANY)
        assert bool(client.events("events")) is batches, request
        client.packets.clear()


def test_the_last_channel_of_a_request_counts(log: Log, swarm: Swarm, channel: str) -> None:
    """Those that say nothing, or fail, do not."""
    [client] = swarm.connect(1)
    names = [f"{channel}:{number}" for number in range(4)]
    for values, batches in (([True, False, None], False), ([False, True, None], True), ([None, False, "bad"], False)):
        entries = [
            {"channel": name} if value is None else {"channel": name, "batch": value}
            for name, value in zip(names, values, strict=False)
        ]
        answer = subscribe(swarm, client, channels=entries)
        assert [one["ok"] for one in answer["channels"]] == [value != "bad" for value in values]
        notify(log, names[0])
        swarm.run_until(lambda: len(messages(client)) == MANY)
        assert bool(client.events("events")) is batches, values


def test_a_client_that_can_recover_gets_single_messages(log: Log, channel: str) -> None:
    """Each of its messages has an offset."""
    with contextlib.closing(RecoveringClient(log.server.url)) as client:
        client.subscribe(f"durable:{channel}", batch=True)
        log.publish(f"durable:{channel}", 1, 20)
        assert client.numbers(20) == list(range(1, 21))
        client.cut()
        log.publish(f"durable:{channel}", 21, 40)
        assert client.connected()["recovered"]
        assert client.numbers(20) == list(range(21, 41))


def test_the_package_takes_batches(log: Log, channel: str) -> None:
    with contextlib.closing(Package(log.server.url)) as client:
        client.listen("one", channel)
        client.listen("two", f"{channel}-other")
        notify(log, channel)
        assert [client.payload("one")["n"] for _ in range(MANY)] == list(range(1, MANY + 1))
        log.publish(f"{channel}-other", 1, MANY)
        assert [client.payload("two")[0] for _ in range(MANY)] == list(range(1, MANY + 1))


def test_sockets_of_the_application(log: Log, channel: str) -> None:
    """Everyone who listens to the socket gets each message once, as if it had come alone, until he stops to listen."""
    script = ROOT / "tests" / "live" / "batches.mjs"
    command = ["node", str(script), log.server.url, channel, str(MANY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            notify(log, channel)
            found = json.loads(process.stdout.readline())
        finally:
            process.kill()
    assert found == {
        "twoUsers": [MANY] * 3,
        "listenerRemovesItself": [3, MANY],
        "once": [1, MANY],
        "clientIsClosed": MANY,
        "ownEventOfThatName": MANY,
        "closesInTheMiddle": [MANY, 5],
        "unsubscribesInTheMiddle": [5, MANY],
        "largeIntegers": ["9007199254740992"],
        "disconnectsInTheMiddle": 5,
        "uncaught": [],
    }
