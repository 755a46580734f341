"""Replays that a client makes expensive: forged positions, more backlog than its send buffer holds, and no reading."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import small_buffers
from tests.support.clients import SocketClient
from tests.support.log import Log, numbers, since, wait_installed
from tests.support.metrics import TOKEN, Moved, scrape, wait_for
from tests.support.postgres import Cluster
from tests.support.raw_http import http, open_session
from tests.support.server import PATIENT
from tests.support.swarm import RawClient, Swarm

PUBLISHED = 30


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_hostile_log", AUTO_INIT="1", **PATIENT)
    wait_installed(made)
    # Messages of another channel, which no replay may return.
    made.publish("somebody-else's", 1, PUBLISHED)
    made.settle()
    yield made
    made.server.close()


def head(log: Log) -> dict[str, Any]:
    [(epoch, position)] = log.sql(
        "SELECT epoch::text, coalesce((SELECT max(position) FROM socketio_pg.log), 0) FROM socketio_pg.head"
    )
    return {"epoch": epoch, "position": position}


def receives_next(log: Log, client: SocketClient, channel: str) -> bool:
    """Return whether the next message that ``client`` receives is one that is now published to ``channel``."""
    log.publish(channel, 7, 7)
    event = client.next("event")
    return event["channel"] == channel and event["payload"][0] == 7 and client.pending("event") == 0


@pytest.mark.parametrize(
    "start",
    ['"since":{"epoch":EPOCH,"position":-1}', '"since":{"epoch":EPOCH,"position":-9223372036854775808}',
     '"since":{"epoch":EPOCH,"position":9223372036854775808}', '"since":{"epoch":EPOCH,"position":1e3}',
     '"since":{"epoch":EPOCH,"position":"1"}', '"since":{"epoch":EPOCH,"position":[1]}',
     '"since":{"epoch":EPOCH,"position":NaN}', '"since":{"epoch":EPOCH,"position":1e400}',
     '"since":{"epoch":[EPOCH],"position":1}', '"since":{"epoch":EPOCH,"position":null}',
     '"since":EPOCH', '"since":1', '"history":-1', '"history":1001', '"history":9223372036854775808',
     '"history":1e400', '"history":"1"', '"history":1,"since":{"epoch":EPOCH,"position":1}'],
)  # fmt: skip
def test_invalid_position_is_refused(log: Log, channel: str, start: str) -> None:
    body = f'{{"channel":"{channel}",{start.replace("EPOCH", json.dumps(head(log)["epoch"]))}}}'
    with Swarm("127.0.0.1", log.server.port) as swarm, SocketClient(log.server.url) as witness:
        witness.call("subscribe", {"channel": channel})
        [raw] = swarm.connect(1)
        raw.send(f'421["subscribe",{body}]')
        swarm.run_until(lambda: any(packet.startswith("31[") for packet in raw.packets))
        [answer] = [json.loads(packet[2:]) for packet in raw.packets if packet.startswith("31[")]
        assert answer[0]["error"]["code"] == "invalid_request"
        assert receives_next(log, witness, channel)
        raw.send('422["unsubscribe",{"channel":"another"}]')
        swarm.run_until(lambda: any(packet.startswith("32[") for packet in raw.packets))
        assert raw.events("event") == []


@pytest.mark.parametrize("position", [10**9, 2**62, 2**63 - 1])
def test_future_position_is_reported_as_unknown(log: Log, channel: str, position: int) -> None:
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": channel, "since": head(log) | {"position": position}})
        assert (answer["ok"], answer["recovered"], answer["reason"]) == (True, False, "position_unknown")
        assert answer["position"] <= head(log)["position"]
        assert receives_next(log, client, channel)


@pytest.mark.parametrize("position", [0, 1, PUBLISHED // 2])
def test_position_of_another_channel_replays_only_the_requested_channel(log: Log, channel: str, position: int) -> None:
    """Positions count the whole log: any one is valid, and none reveals messages of other channels."""
    log.publish(channel, 1, 3)
    log.settle()
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": channel, "since": head(log) | {"position": position}})
        assert (answer["ok"], answer["recovered"]) == (True, True)
        assert numbers(client, 3) == [1, 2, 3]
        assert receives_next(log, client, channel)


@pytest.mark.parametrize(
    "epoch", ["", "00000000-0000-0000-0000-000000000000", "x" * 100_000, "'; DROP SCHEMA socketio_pg CASCADE; --", "\0",
              "a\r\nb", "%s", "\u202e"],
)  # fmt: skip
@pytest.mark.parametrize("position", [0, 1, 2**63 - 1])
def test_unknown_epoch_is_reported_as_changed(log: Log, channel: str, epoch: str, position: int) -> None:
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": channel, "since": {"epoch": epoch, "position": position}})
        assert (answer["ok"], answer["recovered"], answer["reason"]) == (True, False, "epoch_changed")
        assert receives_next(log, client, channel)


def test_epoch_is_case_sensitive(log: Log, channel: str) -> None:
    with SocketClient(log.server.url) as client:
        start = {"epoch": head(log)["epoch"].upper(), "position": 1}
        assert client.call("subscribe", {"channel": channel, "since": start})["reason"] == "epoch_changed"


def test_maximum_history_returns_all_messages(log: Log, channel: str) -> None:
    log.publish(channel, 1, 5)
    log.settle()
    with SocketClient(log.server.url) as client:
        assert client.call("subscribe", {"channel": channel, "history": 1000})["ok"]
        assert numbers(client, 5) == [1, 2, 3, 4, 5]
        assert receives_next(log, client, channel)


def test_hundreds_of_concurrent_replay_requests_lose_nothing(log: Log, channel: str) -> None:
    """One client requests the whole channel 300 times: the last request completes, and other clients are served."""
    log.publish(channel, 1, 20)
    log.settle()
    begin = head(log) | {"position": 0}
    with SocketClient(log.server.url) as witness, Swarm("127.0.0.1", log.server.port) as swarm:
        answer = witness.call("subscribe", {"channel": channel})
        [raw] = swarm.connect(1)
        raw.send_all(*[f'42{n}["subscribe",{json.dumps({"channel": channel, "since": begin})}]' for n in range(300)])
        swarm.run_until(lambda: sum(packet.startswith("3") for packet in raw.packets) == 300)
        assert all('"ok":true' in packet for packet in raw.packets if packet.startswith("3"))
        # Later requests cancel earlier ones; the last one must replay everything.
        swarm.run_until(lambda: [event["payload"][0] for event in raw.events("event")][-20:] == list(range(1, 21)))
        assert since(answer)["epoch"] == begin["epoch"]
        assert receives_next(log, witness, channel)


# -- more backlog than the send buffer holds ---------------------------------------------------------------------------

CHANNELS = 30
#: Messages of each channel's backlog, and the bytes of one: a page of each channel together are two send buffers.
BACKLOG, SIZE = 25, 10_000


@pytest.fixture(scope="module")
def paced(newest_pg: Cluster) -> Iterator[Log]:
    """A server whose kernel buffers little, so that nearly all that waits for a client is in its send buffer."""
    made = Log(newest_pg, "live_hostile_paced", *small_buffers.OPTIONS, AUTO_INIT="1", METRICS_TOKEN=TOKEN, **PATIENT)
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def backlog(paced: Log) -> dict[str, Any]:
    """The position before the backlog of the channels ``c1``, ``c2`` …"""
    start = head(paced)
    for number in range(1, CHANNELS + 1):
        paced.publish(f"c{number}", 1, BACKLOG, SIZE)
    paced.settle()
    return start


def subscribe_all(client: RawClient, start: dict[str, Any]) -> None:
    client.send_all(
        *[f'42{n}["subscribe",{json.dumps({"channel": f"c{n}", "since": start})}]' for n in range(1, CHANNELS + 1)]
    )


def received(client: RawClient) -> dict[str, list[int]]:
    """Return the numbers in the messages of each channel."""
    of: dict[str, list[int]] = {}
    for event in client.events("event"):
        of.setdefault(event["channel"], []).append(event["payload"][0])
    return of


def count_events(client: RawClient) -> int:
    return sum(packet.startswith('2["event",') for packet in client.packets)


def test_backlog_of_many_channels_is_sent_as_the_client_reads(paced: Log, backlog: dict[str, Any]) -> None:
    """The client stops reading in the middle, and continues; meanwhile messages arrive in all of its channels."""
    moved = Moved(paced.server)
    with Swarm("127.0.0.1", paced.server.port) as swarm, SocketClient(paced.server.url) as witness:
        witness.call("subscribe", {"channel": "other"})
        [client] = swarm.connect(1, receive_buffer=4096)
        client.emit("subscribe", {"channel": "other"}, 99)
        subscribe_all(client, backlog)
        swarm.run_until(lambda: client.closed or len(client.packets) > 2 * CHANNELS + 100)
        assert not client.closed, "disconnected as a slow consumer"
        swarm.pause(client)
        wait_for(paced.server, lambda now: now["send_buffer_bytes"] > 0)
        # More than a quarter of the send buffer, and with the replays less than all of it.
        for number in range(100):
            paced.sql("SELECT pg_notify('other', jsonb_build_array(%s::int, repeat('x', 6000))::text)", number)
        for number in range(1, CHANNELS + 1):
            paced.publish(f"c{number}", BACKLOG + 1, BACKLOG + 1)
        assert [witness.next("event")["payload"][0] for _ in range(100)] == list(range(100))
        assert scrape(paced.server)["send_buffer_bytes"] < 1_000_000
        swarm.resume(client)
        everything = {f"c{n}": list(range(1, BACKLOG + 2)) for n in range(1, CHANNELS + 1)} | {"other": [*range(100)]}
        count = sum(map(len, everything.values()))
        swarm.run_until(lambda: client.closed or count_events(client) >= count)
        assert received(client) == everything
        assert client.events("gap") == []
        wait_for(paced.server, lambda now: now["held_subscriptions"] == 0)
    assert moved.by('cut_off_total{reason="slow_consumer"}') == [0]


def test_backlog_waits_until_a_polling_client_fetches_it(paced: Log, backlog: dict[str, Any]) -> None:
    moved = Moved(paced.server)
    with SocketClient(paced.server.url, ("polling",), reconnection=False) as client:
        for number in range(1, CHANNELS + 1):
            client.call("subscribe", {"channel": f"c{number}", "since": backlog})
        of: dict[str, list[int]] = {f"c{n}": [] for n in range(1, CHANNELS + 1)}
        while any(len(numbers) < BACKLOG for numbers in of.values()):
            event = client.next("event")
            of[event["channel"]].append(event["payload"][0])
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in of.values())
        wait_for(paced.server, lambda now: now["held_subscriptions"] == 0)
    assert moved.by('cut_off_total{reason="slow_consumer"}') == [0]


def test_live_messages_wait_until_a_polling_client_fetches_them(log: Log, channel: str) -> None:
    """Like a client with a WebSocket, one that falls behind with messages of the log gets them at its own speed."""
    session = open_session(log.server)

    def fetch() -> list[Any]:
        """Return name and argument of each event that the client polls."""
        reply = http(log.server, path=session)
        assert reply.status == 200, reply.body
        packets = reply.body.decode().split("\x1e")
        return [json.loads(packet[2:]) for packet in packets if packet.startswith("42[")]

    subscribe = f'40\x1e42["subscribe",{{"channel":"{channel}"}}]'
    assert http(log.server, "POST", session, body=subscribe.encode()).status == 200
    while "subscribed" not in [event for event, _ in fetch()]:
        pass
    # Three times the send buffer. The client reads nothing in the meantime.
    for first in range(1, 301, 20):
        log.publish(channel, first, first + 19, 10_000)
    log.settle()
    received: list[int] = []
    while len(received) < 300:
        received += [argument["payload"][0] for event, argument in fetch() if event == "event"]
    assert received == list(range(1, 301))


def test_payload_of_the_maximum_size_leaves_room_for_other_messages(paced: Log, channel: str) -> None:
    """A replayed payload as large as the send buffer does not disconnect the client with the next live message."""
    start = head(paced)
    paced.publish(channel, 1, 3, 999_000)
    paced.settle()
    moved = Moved(paced.server)
    with Swarm("127.0.0.1", paced.server.port) as swarm:
        [client] = swarm.connect(1, receive_buffer=4096)
        client.emit("subscribe", {"channel": "other"}, 1)
        swarm.run_until(lambda: bool(client.events("subscribed")))
        swarm.pause(client)
        client.emit("subscribe", {"channel": channel, "since": start}, 2)
        wait_for(paced.server, lambda now: now["send_buffer_bytes"] > 900_000)
        for number in range(100):
            paced.sql("SELECT pg_notify('other', jsonb_build_array(%s::int, repeat('x', 6000))::text)", number)
        swarm.resume(client)
        swarm.run_until(lambda: client.closed or count_events(client) == 103)
        assert received(client) == {channel: [1, 2, 3], "other": list(range(100))}
    assert moved.by('cut_off_total{reason="slow_consumer"}') == [0]


def test_replays_end_with_their_subscriptions(paced: Log, backlog: dict[str, Any]) -> None:
    """While a client does not read, it unsubscribes from some channels, repeats others, and disconnects."""
    with Swarm("127.0.0.1", paced.server.port) as swarm:
        [client, other] = swarm.connect(2, receive_buffer=4096)
        for one in (client, other):
            subscribe_all(one, backlog)
            swarm.pause(one)
        held = 2 * CHANNELS
        wait_for(paced.server, lambda now: now["held_subscriptions"] == held)
        # The first channels are being sent, and so may not be waiting.
        for number in range(CHANNELS - 9, CHANNELS + 1):
            client.emit("unsubscribe", {"channel": f"c{number}"})
        wait_for(paced.server, lambda now: now["held_subscriptions"] == held - 10)
        subscribe_all(client, backlog)
        wait_for(paced.server, lambda now: now["held_subscriptions"] == held)
        swarm.resume(other)
        swarm.leave(other, reset=True)
        wait_for(paced.server, lambda now: now["held_subscriptions"] == CHANNELS)
        swarm.resume(client)
        # The replays that others replaced have not come that far.
        last = f'"payload":[{BACKLOG},'
        swarm.run_until(lambda: client.closed or sum(last in packet[:200] for packet in client.packets) == CHANNELS)
        of = received(client)
        assert len(of) == CHANNELS
        assert all(numbers[-numbers[-1] :] == list(range(1, numbers[-1] + 1)) for numbers in of.values())
        wait_for(paced.server, lambda now: now["held_subscriptions"] == 0)


def test_new_epoch_ends_waiting_replays_and_loses_no_live_message(paced: Log, backlog: dict[str, Any]) -> None:
    """The log is replaced while the replays wait for a client that does not read: a gap, then all that follows."""
    moved = Moved(paced.server)
    with Swarm("127.0.0.1", paced.server.port) as swarm:
        [client] = swarm.connect(1, receive_buffer=4096)
        swarm.pause(client)
        subscribe_all(client, backlog)
        wait_for(paced.server, lambda now: now["held_subscriptions"] == CHANNELS)
        paced.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
        paced.sql("NOTIFY socketio_pg, 'epoch'")
        wait_for(paced.server, lambda _: moved.by('gaps_total{reason="epoch_changed"}') != [0])
        for number in range(1, CHANNELS + 1):
            paced.publish(f"c{number}", 900, 900)
        swarm.resume(client)
        live = '"payload":[900,'
        swarm.run_until(lambda: client.closed or sum(live in packet[:200] for packet in client.packets) == CHANNELS)
        assert {gap["channel"] for gap in client.events("gap")} == {f"c{n}" for n in range(1, CHANNELS + 1)}
        assert {gap["reason"] for gap in client.events("gap")} == {"epoch_changed"}
        order = [packet[:9] for packet in client.packets if live in packet[:200] or packet.startswith('2["gap"')]
        assert order.index('2["event"') == CHANNELS, "the gaps come first"
        assert not any("replayed" in event for event in client.events("event") if event["payload"][0] == 900)
        wait_for(paced.server, lambda now: now["held_subscriptions"] == 0)


def test_client_that_answers_pings_unread_is_disconnected(newest_pg: Cluster, channel: str) -> None:
    """A client that does not read and yet sends pongs would otherwise keep its buffers for ever; so one that polls."""
    log = Log(
        newest_pg, "live_hostile_stuck", *small_buffers.OPTIONS,
        AUTO_INIT="1", METRICS_TOKEN=TOKEN, PING_INTERVAL="1", PING_TIMEOUT="5",
    )  # fmt: skip
    try:
        wait_installed(log)
        start = head(log)
        log.publish(channel, 1, 50, SIZE)
        log.settle()
        with Swarm("127.0.0.1", log.server.port) as swarm:
            [client, slow] = swarm.connect(2, receive_buffer=4096)
            for one in (client, slow):
                one.emit("subscribe", {"channel": channel, "since": start}, 1)
            swarm.pause(client)
            polling = open_session(log.server)
            http(log.server, "POST", polling, body=b"40")
            assert http(log.server, "GET", polling).body.startswith(b"40")
            subscribe = json.dumps(["subscribe", {"channel": channel, "since": start}])
            http(log.server, "POST", polling, body=f"42{subscribe}".encode())

            def disconnected(now: dict[str, float]) -> bool:
                with contextlib.suppress(ConnectionError):
                    client.send("3")
                http(log.server, "POST", polling, body=b"3")
                slow.send("3")
                slow.feed()  # reads a little, and stays connected
                return now["clients"] == 1

            wait_for(log.server, disconnected)
            assert scrape(log.server)['cut_off_total{reason="slow_consumer"}'] == 2
            swarm.run_until(lambda: slow.closed or count_events(slow) == 50)
            assert received(slow) == {channel: list(range(1, 51))}
    finally:
        log.server.close()
