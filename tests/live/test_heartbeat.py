"""Pings of Engine.IO: they keep a session as long as its client answers, whatever happens to the server's clock."""

import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.clock import set_clock
from tests.support.nightly import sampled
from tests.support.postgres import Cluster
from tests.support.raw_http import WebSocket, assert_refused, http, open_packet, open_session
from tests.support.server import ServerProcess

pytestmark = pytest.mark.green


@pytest.fixture(scope="module")
def pinging(newest_pg: Cluster) -> Iterator[ServerProcess]:
    """A server with a short ping interval; its ping timeout is long enough for a busy machine."""
    made = ServerProcess(
        newest_pg.url(), app="tests.support.watched_app:app", DRAIN_SECONDS="0.2", PING_INTERVAL="1.5",
        PING_TIMEOUT="6", ECHO="1",
    )  # fmt: skip
    yield made
    made.close()


def test_heartbeat_keeps_the_sessions(pinging: ServerProcess) -> None:
    path = open_session(pinging)
    with WebSocket(pinging) as one:
        open_packet(one.read_text(), 1500, 6000)
        for _ in range(3):
            assert http(pinging, path=path).body == b"2"
            assert http(pinging, "POST", path, body=b"3").body == b"ok"
            assert one.read_text() == "2"
            one.text("3")


def test_clients_without_pong_are_closed(pinging: ServerProcess) -> None:
    path = open_session(pinging)
    with WebSocket(pinging) as one:
        open_packet(one.read_text(), 1500, 6000)
        assert http(pinging, path=path).body == b"2"
        reply = http(pinging, path=path)
        assert (reply.status, reply.body) == (200, b"1")
        assert_refused(http(pinging, path=path), 1)
        assert [one.read_text() for _ in range(2)] == ["2", "1"]
        assert one.close_code() == 1001


@pytest.mark.parametrize(
    ("offset", "transport"),
    sampled(
        itertools.product([3600, -3600], ["polling", "websocket"]),
        lambda case: case in ((3600, "polling"), (-3600, "websocket")),
    ),
)
def test_clock_change_ends_no_session(pinging: ServerProcess, offset: int, transport: str) -> None:
    try:
        if transport == "polling":
            path = open_session(pinging)
            packets: list[bytes] = []
            for body in (b"4before", b"4after"):
                while b"2" not in packets:
                    packets += http(pinging, path=path).body.split(b"\x1e")
                set_clock(pinging, offset)  # while a ping is unanswered
                packets.remove(b"2")
                assert http(pinging, "POST", path, body=b"3\x1e" + body).status == 200
                while body not in packets:  # the next ping may come before it
                    packets += http(pinging, path=path).body.split(b"\x1e")
                assert set(packets) <= {b"4before", body, b"2"}
        else:
            with WebSocket(pinging) as one:
                open_packet(one.read_text(), 1500, 6000)
                texts: list[str] = []
                for text in ("4before", "4after"):
                    while "2" not in texts:
                        texts.append(one.read_text())
                    set_clock(pinging, offset)
                    texts.remove("2")
                    one.text("3")
                    one.text(text)
                    while text not in texts:  # the next ping may come before it
                        texts.append(one.read_text())
                    assert set(texts) <= {"4before", text, "2"}
    finally:
        set_clock(pinging)


def test_frozen_server_reads_buffered_pongs_before_it_times_out(newest_pg: Cluster) -> None:
    server = ServerProcess(
        newest_pg.url(), app="tests.support.watched_app:app", PING_INTERVAL="1", PING_TIMEOUT="5", ECHO="1"
    )
    try:
        with WebSocket(server) as one, WebSocket(server) as silent:
            for client in (one, silent):
                open_packet(client.read_text(), 1000, 5000)
                assert client.read_text() == "2"
            workers = server.worker_pids()
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            one.text("3")
            time.sleep(6)  # longer than the ping timeout: the server's clock goes on
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            one.text("4hello")
            while (text := one.read_text()) == "2":
                one.text("3")
            assert text == "4hello"
            assert silent.read_text() == "1"
    finally:
        server.close()
