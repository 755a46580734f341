"""The WebSocket transport under load and with misbehaving clients: order, partial writes, limits, handshakes."""

import contextlib
import json
import random
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.metrics import TOKEN, scrape
from tests.support.nightly import sampled
from tests.support.postgres import Cluster
from tests.support.raw_http import GOOD, WEBSOCKET, http
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import RawClient, Swarm

pytestmark = pytest.mark.green


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(
        newest_pg.url(), DRAIN_SECONDS="0.2", PING_INTERVAL="1", PING_TIMEOUT="8", SEND_BUFFER_BYTES="200000"
    )
    yield made
    made.close()


def subscribe(swarm: Swarm, clients: list[RawClient], channel: str) -> None:
    for client in clients:
        client.emit("subscribe", {"channel": channel})
    swarm.run_until(
        lambda: all(channel in [event["channel"] for event in client.events("subscribed")] for client in clients)
    )


def test_broadcasts_and_replies_arrive_in_order(server: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    with Swarm("127.0.0.1", server.port) as swarm:
        (one,) = swarm.connect(1)
        subscribe(swarm, [one], channel)
        subscribe(swarm, [one], f"{channel}-2")
        one.packets.clear()
        for round in range(20):
            # Two channels within one transaction, and requests of the client itself in between.
            newest_pg.sql(
                "SELECT pg_notify(%s || CASE n %% 3 WHEN 0 THEN '-2' ELSE '' END, n::text)"
                " FROM generate_series(%s, %s) AS n",
                channel,
                round * 50,
                round * 50 + 49,
            )
            one.emit("unsubscribe", {"channel": f"{channel}-none"}, id=round)
        swarm.run_until(lambda: len(one.events("event")) == 1000 and len(one.events("unsubscribed")) == 20)
        assert [event["payload"] for event in one.events("event")] == list(range(1000))
        texts = list(one.packets)
        for round in range(20):
            acknowledgement = next(i for i, text in enumerate(texts) if text.startswith(f"3{round}["))
            assert texts[acknowledgement - 1].startswith('2["unsubscribed"'), "the event precedes its acknowledgement"


def test_slow_reader_gets_every_frame_intact(newest_pg: Cluster, channel: str) -> None:
    server = ServerProcess(newest_pg.url(), DRAIN_SECONDS="0.2", SEND_BUFFER_BYTES="20000000", **PATIENT)
    try:
        with Swarm("127.0.0.1", server.port) as swarm:
            (one,) = swarm.connect(1, receive_buffer=4096)
            subscribe(swarm, [one], channel)
            one.packets.clear()
            swarm.pause(one)
            newest_pg.sql(
                "SELECT pg_notify(%s, n || repeat(' ', 7000)) FROM generate_series(1, 1000) AS n", channel
            )  # 7 MB: more than the kernel buffers
            with SocketClient(server.url) as witness:  # once it has the last message, all were sent
                witness.subscribe(channel)
                newest_pg.notify(channel, "1001")
                while witness.next("event")["payload"] != 1001:
                    pass
            swarm.resume(one)
            swarm.run_until(lambda: len(one.packets) == 1001)
            assert [event["payload"] for event in one.events("event")] == list(range(1, 1002))
    finally:
        server.close()


@pytest.mark.parametrize("number", sampled([50, 200, 1000], lambda number: number == 50))
def test_clients_that_stop_reading_are_disconnected_and_others_are_not_affected(
    newest_pg: Cluster, channel: str, number: int
) -> None:
    server = ServerProcess(
        newest_pg.url(), DRAIN_SECONDS="0.2", SEND_BUFFER_BYTES="100000", METRICS_TOKEN=TOKEN, **PATIENT
    )

    def cut_off() -> float:
        return scrape(server)['cut_off_total{reason="slow_consumer"}']

    try:
        with Swarm("127.0.0.1", server.port) as swarm, SocketClient(server.url) as other:
            slow = swarm.connect(number, receive_buffer=4096)
            fast = swarm.connect(number)
            subscribe(swarm, slow + fast, channel)
            other.subscribe(f"{channel}-other")
            for one in fast:
                one.packets.clear()
            for one in slow:
                swarm.pause(one)
            before, sent = server.resident_bytes(), 0
            peak = before
            while cut_off() < number:
                assert sent < 1000, f"{cut_off()} of {number} were disconnected"
                newest_pg.sql(
                    "SELECT pg_notify(%s, n || repeat(' ', 7900)) FROM generate_series(%s, %s) AS n",
                    channel,
                    sent,
                    sent + 19,
                )
                sent += 20
                swarm.run_until(lambda sent=sent: all(len(one.packets) >= sent for one in fast))  # type: ignore[misc]
                peak = max(peak, server.resident_bytes())
            # A buffer of 100 KB for each, with one more batch of messages that overflowed it.
            assert peak - before < 400_000 * number
            for one in fast:
                assert [event["payload"] for event in one.events("event")] == list(range(sent))
            newest_pg.notify(f"{channel}-other", "1")
            assert other.next("event")["payload"] == 1
            assert not any(one.closed for one in fast)
            for one in slow:
                swarm.resume(one)
            swarm.run_until(lambda: all(one.closed for one in slow))
            assert server.resident_bytes() - before < 100_000 * number, "the buffers must be freed"
    finally:
        server.close()


def test_clients_may_disconnect_during_a_broadcast(server: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    chance = random.Random(5)
    with Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.connect(400)
        subscribe(swarm, clients, channel)
        stay, go = clients[::2], clients[1::2]
        for one in stay:
            one.packets.clear()
        chance.shuffle(go)
        # On one connection: meanwhile nobody answers pings.
        with contextlib.closing(newest_pg.connect()) as connection, connection.cursor() as cursor:
            for number in range(50):
                cursor.execute("SELECT pg_notify(%s, %s)", (channel, str(number)))
                for one in go[number * 4 : number * 4 + 4]:
                    swarm.leave(one, reset=chance.random() < 0.5)
        swarm.run_until(lambda: all(len(one.packets) >= 50 for one in stay))
        for one in stay:
            assert [event["payload"] for event in one.events("event")] == list(range(50))


def test_only_clients_that_do_not_answer_pings_are_disconnected(server: ServerProcess) -> None:
    with Swarm("127.0.0.1", server.port) as swarm:
        unresponsive, responsive = swarm.connect(2)
        unresponsive.answers_pings = False
        swarm.run_until(lambda: unresponsive.closed)
        # The other client got as many pings and is still connected.
        responsive.emit("subscribe", {"channel": "anything"}, 1)
        swarm.run_until(lambda: any(packet.startswith("31[") for packet in responsive.packets))
        assert not responsive.closed


def test_invalid_frames_close_the_connection_with_their_code(server: ServerProcess) -> None:
    with Swarm("127.0.0.1", server.port) as swarm, SocketClient(server.url) as other:
        for frame, code in [
            (b"\x81\x01x", 1002),  # not masked
            (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
            (b"\x81\x81\0\0\0\0\xff", 1007),  # not UTF-8
            (b"\x81\xff" + (2**40).to_bytes(8, "big"), 1009),
        ]:
            (one,) = swarm.connect(1)
            one.socket.sendall(frame)
            swarm.run_until(lambda one=one: one.closed)  # type: ignore[misc]
            assert one.close_code == code
        assert other.call("unsubscribe", {"channel": "x"})["ok"] is True
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 101),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Connection": "close"}, 400),
        ({"Origin": "https://evil.example"}, 400),
    ],
)
def test_handshake_headers_are_checked(server: ServerProcess, change: dict[str, str], status: int) -> None:
    assert http(server, path=WEBSOCKET, headers=GOOD | change).status == status


def test_too_many_clients_are_answered_503(newest_pg: Cluster) -> None:
    server = ServerProcess(newest_pg.url(), DRAIN_SECONDS="0.2", MAX_CONNECTIONS="20")
    try:
        with Swarm("127.0.0.1", server.port) as swarm:
            swarm.connect(20)
            assert server.get("/socket.io/?EIO=4&transport=polling") == (503, "too many connections")
    finally:
        server.close()


def test_clients_that_disconnect_while_connecting_leave_nothing_behind(newest_pg: Cluster) -> None:
    server = ServerProcess(newest_pg.url(), app="tests.support.slow_app:app", PING_INTERVAL="1", PING_TIMEOUT="5")
    try:
        assert json.loads(server.get("/state")[1])["sockets"] == 0
        with Swarm("127.0.0.1", server.port) as swarm:
            swarm.connect(3)  # checks that the handler works
            for delay in (0.0, 0.1, 0.5):
                leaving = swarm.open(20)
                swarm.run_until(lambda leaving=leaving: all(one.opened for one in leaving))  # type: ignore[misc]
                began = time.monotonic()
                swarm.run_until(lambda began=began, delay=delay: time.monotonic() - began >= delay)  # type: ignore[misc]
                for index, one in enumerate(leaving):
                    swarm.leave(one, reset=index % 2 == 0)
            # A client whose upgrade to a WebSocket stops halfway.
            polling = SocketClient(server.url, ("polling",))
            halfway = swarm.upgrade(polling.io.eio.sid)
            swarm.run_until(lambda: halfway.shaken)
            halfway.send("2probe")
            swarm.run_until(lambda: "3probe" in halfway.raw)
            swarm.leave(halfway)
            polling.close()
        clean = {"namespaces": 0, "pending": 0, "requests": 0, "sockets": 0, "subscribers": 0}
        server.wait_for("/state", 200, json.dumps(clean, separators=(",", ":")))
        assert "Traceback" not in server.log
    finally:
        server.close()
