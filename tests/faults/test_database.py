"""The database fails in every way; the server recovers automatically and reports gaps."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.postgres.database import Database
from tests.support.clients import SocketClient
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess


@pytest.fixture
def clients(server: ServerProcess, channel: str) -> Iterator[list[SocketClient]]:
    """Two subscribers of ``channel``, the second one of another channel too."""
    made = [SocketClient(server.url), SocketClient(server.url)]
    for client in made:
        client.subscribe(channel)
    made[1].subscribe(f"{channel}-2")
    yield made
    for client in made:
        client.close()


def assert_gap_then_all_messages(
    clients: list[SocketClient], breakable: Cluster, channel: str, began: datetime, seconds: float = PATIENCE
) -> None:
    """Assert that each subscriber gets one `gap` per channel and all later messages, without a disconnect."""
    first, second = clients
    gaps = [first.next("gap", seconds)] + [second.next("gap", seconds) for _ in range(2)]
    assert sorted(gap["channel"] for gap in gaps) == sorted([channel, channel, f"{channel}-2"])
    for gap in gaps:
        assert gap["reason"] == "database_connection_lost"
        since, until = datetime.fromisoformat(gap["since"]), datetime.fromisoformat(gap["until"])
        # `since` is the last time the database answered: at most one heartbeat (5 s) before the fault, plus 20 s for a
        # busy machine.
        assert began - timedelta(seconds=5 + 20) <= since <= until
    breakable.sql("SELECT pg_notify(%s, n::text) FROM generate_series(1, 100) AS n", channel)
    for client in clients:
        assert [client.next("event")["payload"] for _ in range(100)] == list(range(1, 101))
    breakable.notify(f"{channel}-2", "1")
    assert second.next("event") == {"channel": f"{channel}-2", "payload": 1}
    assert first.call("publish", {"channel": channel, "payload": "x"})["ok"] is True
    for client in clients:
        assert client.next("event")["payload"] == "x"
        assert client.pending("gap") == 0
        assert client.pending("disconnect") == 0


def now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.mark.green
def test_terminated_backends_cause_a_gap(clients: list[SocketClient], breakable: Cluster, channel: str) -> None:
    began = now()
    assert breakable.terminate_backends() >= 1
    assert_gap_then_all_messages(clients, breakable, channel, began)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restarted_database_causes_a_gap(
    clients: list[SocketClient], breakable: Cluster, channel: str, mode: str
) -> None:
    began = now()
    breakable.restart(mode)
    assert_gap_then_all_messages(clients, breakable, channel, began)


@pytest.mark.parametrize("seconds", sampled([3, 20], lambda seconds: seconds == 3))
def test_outage_causes_a_gap(
    clients: list[SocketClient], breakable: Cluster, server: ServerProcess, channel: str, seconds: int
) -> None:
    began = now()
    breakable.stop()
    stopped = time.monotonic()
    try:
        server.wait_not_ready()
        assert_publish_is_refused_quickly(clients[0], channel)
        answer = clients[0].call("subscribe", {"channel": f"{channel}-new"})
        assert answer["error"]["code"] == "database_unavailable"
        time.sleep(max(0.0, stopped + seconds - time.monotonic()))  # the test is about the length of the outage
    finally:
        breakable.start()
    server.wait_ready()
    assert_gap_then_all_messages(clients, breakable, channel, began)
    clients[0].subscribe(f"{channel}-new")
    breakable.notify(f"{channel}-new", "1")
    assert clients[0].next("event")["payload"] == 1


def test_cut_connections_cause_a_gap(
    clients: list[SocketClient], breakable: Cluster, proxy: Proxy, channel: str
) -> None:
    began = now()
    proxy.cut()
    assert_gap_then_all_messages(clients, breakable, channel, began)


def test_refused_connections_cause_a_gap(
    clients: list[SocketClient], breakable: Cluster, proxy: Proxy, server: ServerProcess, channel: str
) -> None:
    began = now()
    proxy.refuse()
    server.wait_not_ready()
    assert_publish_is_refused_quickly(clients[0], channel)
    proxy.restore()
    assert_gap_then_all_messages(clients, breakable, channel, began)


@pytest.mark.green
def test_black_hole_is_detected_and_causes_a_gap(
    clients: list[SocketClient], breakable: Cluster, proxy: Proxy, server: ServerProcess, channel: str
) -> None:
    began = now()
    proxy.black_hole()
    swallowed = time.monotonic()
    # Only the silence shows that the connection is dead.
    assert_publish_is_refused_quickly(clients[0], channel)
    server.wait_not_ready()
    # Documented are 15 s; the rest is for a busy machine. TCP itself would take many minutes.
    assert time.monotonic() - swallowed < 45, "half-open connections must be detected"
    assert_publish_is_refused_quickly(clients[1], channel)
    proxy.restore()
    assert_gap_then_all_messages(clients, breakable, channel, began)


@pytest.mark.green
def test_server_starts_without_a_database(breakable: Cluster, proxy: Proxy, channel: str) -> None:
    proxy.refuse()
    server = ServerProcess(proxy.url, wait="http", DRAIN_SECONDS="0.2")
    try:
        status, body = server.get("/readyz")
        assert status == 503
        assert "unavailable" in body
        with SocketClient(server.url) as client:
            assert client.next("server_hello")["sid"]
            assert client.call("subscribe", {"channel": channel})["error"]["code"] == "database_unavailable"
            assert_publish_is_refused_quickly(client, channel)
            proxy.restore()
            server.wait_ready()
            client.subscribe(channel)
            breakable.notify(channel, "1")
            assert client.next("event")["payload"] == 1
            assert client.pending("gap") == 0, "a client without subscriptions gets no gap"
    finally:
        server.close()


def test_unsubscribed_channels_get_no_gap(clients: list[SocketClient], breakable: Cluster, channel: str) -> None:
    clients[1].call("unsubscribe", {"channel": f"{channel}-2"})
    breakable.terminate_backends()
    assert clients[1].next("gap")["channel"] == channel
    breakable.notify(channel, "1")
    assert clients[1].next("event")["payload"] == 1
    assert clients[1].pending("gap") == 0


def test_publishing_succeeds_after_an_idle_connection_died(
    clients: list[SocketClient], breakable: Cluster, server: ServerProcess, channel: str
) -> None:
    assert clients[0].call("publish", {"channel": channel, "payload": 1})["ok"] is True
    breakable.terminate_backends()
    for client in clients:
        client.next("gap")
    assert clients[0].call("publish", {"channel": channel, "payload": 2})["ok"] is True


def assert_publish_is_refused_quickly(client: SocketClient, channel: str) -> None:
    began = time.monotonic()
    answer: dict[str, Any] = client.call("publish", {"channel": channel, "payload": 1})
    assert answer["error"]["code"] == "database_unavailable"
    assert time.monotonic() - began < 25, "one or two seconds, plus an allowance for a busy machine"


def test_passwords_are_not_logged(breakable: Cluster, proxy: Proxy) -> None:
    url = proxy.url.replace("postgres@", "postgres:s3cr3t-word@")
    proxy.refuse()
    server = ServerProcess(url, wait="http", LOG_LEVEL="DEBUG")
    try:
        server.wait_not_ready()
        proxy.restore()
        server.wait_ready()
        breakable.terminate_backends()
        assert "listening on" in server.log
        assert "s3cr3t-word" not in server.log
    finally:
        server.close()


def test_refusal_in_another_encoding_is_an_unavailable_database(undecodable_postgres: str) -> None:
    # Until the session has an encoding, psycopg2 decodes everything as UTF-8.
    with pytest.raises(DatabaseUnavailableError, match=r'\ufffd "orders" .*lc_messages'):
        Database(undecodable_postgres).connect("test")


@pytest.fixture
def undecodable_postgres() -> Iterator[str]:
    """The address of a server that refuses each session in Russian, encoded as CP1251."""
    message = "S" + "\u0412\0" + "C3D000\0" + 'Mdatabase \u043d\u0435\u0442 "orders"\0\0'
    encoded = message.encode("cp1251")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            with contextlib.suppress(OSError):  # closed at the end
                while True:
                    client, _ = listening.accept()
                    with client:
                        client.recv(65_536)
                        client.sendall(b"E" + struct.pack("!I", len(encoded) + 4) + encoded)

        refusing = threading.Thread(target=refuse)
        refusing.start()
        yield f"postgresql://web@127.0.0.1:{listening.getsockname()[1]}/orders?sslmode=disable&gssencmode=disable"
        listening.shutdown(socket.SHUT_RDWR)
        refusing.join()
