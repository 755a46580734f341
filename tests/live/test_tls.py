"""TLS terminated by the server process: the same WebSocket, with the same limits."""

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator

import pytest
import requests

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.raw_http import WebSocket
from tests.support.server import PATIENT, ServerProcess

pytestmark = pytest.mark.green


class TLSServer(ServerProcess):
    """gunicorn that terminates TLS itself."""

    def __init__(self, cluster: Cluster, certificate: tuple[str, str], **settings: str) -> None:
        key, self.certificate = certificate
        options = ("--keyfile", key, "--certfile", self.certificate)
        super().__init__(cluster.url(), *options, wait="nothing", DRAIN_SECONDS="0.2", **settings)
        with self.client(wait=True) as client:
            client.subscribe("ready")

    def client(self, *transports: str, wait: bool = False) -> SocketClient:
        session = requests.Session()
        # Otherwise a certificate bundle named in the environment would take precedence over `verify`.
        session.trust_env, session.verify = False, self.certificate
        return SocketClient(
            f"https://127.0.0.1:{self.port}", transports or ("websocket",), wait=wait, reconnection=wait,
            http_session=session,
        )  # fmt: skip


@pytest.fixture(scope="module")
def server(newest_pg: Cluster, certificate: tuple[str, str]) -> Iterator[TLSServer]:
    with contextlib.closing(
        TLSServer(newest_pg, certificate, SEND_BUFFER_BYTES="100000", CONNECT_TIMEOUT="8", **PATIENT)
    ) as made:
        yield made


class TLSWebSocket(WebSocket):
    """Sends and receives single frames over TLS."""

    def connected(self, made: socket.socket) -> socket.socket:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(made)


@pytest.mark.parametrize("transports", [("websocket",), ("polling",), ("polling", "websocket")], ids="+".join)
def test_messages_arrive_over_every_transport(
    server: TLSServer, newest_pg: Cluster, channel: str, transports: tuple[str, ...]
) -> None:
    with server.client(*transports) as client:
        client.subscribe(channel)
        newest_pg.notify(channel, '"' + "x" * 5000 + '"')
        assert client.next("event")["payload"] == "x" * 5000
        assert client.call("publish", {"channel": channel, "payload": [2]})["ok"] is True
        assert client.next("event")["payload"] == [2]


def test_invalid_packet_closes_the_websocket(server: TLSServer) -> None:
    with TLSWebSocket(server) as one:
        assert one.read_text().startswith("0{")
        one.text("abc")
        assert one.close_code() == 1008


def test_unauthenticated_client_may_send_little(server: TLSServer) -> None:
    with TLSWebSocket(server) as one:
        assert one.read_text().startswith("0{")
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            one.text("40" + "x" * 100_000)
        assert one.close_code() in (1009, None)


def test_connection_without_a_client_times_out(server: TLSServer) -> None:
    with TLSWebSocket(server) as one:
        assert one.read_text().startswith("0{")
        assert one.close_code() == 1001


def test_slow_client_is_disconnected_and_others_are_not_affected(
    server: TLSServer, newest_pg: Cluster, channel: str
) -> None:
    with TLSWebSocket(server, receive_buffer=4096) as slow, server.client() as other:
        slow.connect()
        slow.text(f'421["subscribe",{{"channel":"{channel}"}}]')
        while not slow.read_text().startswith("431"):
            pass
        other.subscribe(f"{channel}-other")
        deadline = time.monotonic() + 2 * PATIENCE
        while "slow consumer" not in server.log:
            newest_pg.sql("SELECT pg_notify(%s, repeat('x', 7000) || n) FROM generate_series(1, 50) AS n", channel)
            assert time.monotonic() < deadline
        newest_pg.notify(f"{channel}-other", "1")
        assert other.next("event")["payload"] == 1


def test_connection_without_a_tls_handshake_times_out(server: TLSServer) -> None:
    """The client does not even send ClientHello."""
    with socket.create_connection(("127.0.0.1", server.port), 2 * PATIENCE) as silent:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""
        assert time.monotonic() - began < PATIENCE


def test_failed_tls_handshakes_leave_no_traceback(server: TLSServer) -> None:
    """Otherwise any client could fill the disk."""
    for data in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as one:
            one.sendall(data)
            with contextlib.suppress(OSError):  # the server may have closed it already
                one.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while one.recv(1000):
                    pass
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", server.port), PATIENCE) as one:
        ssl.create_default_context().wrap_socket(one, server_hostname="localhost")
    with server.client() as client:
        client.subscribe("anything")
    assert "Traceback" not in server.log, server.log


def test_server_stops_with_connected_clients(newest_pg: Cluster, certificate: tuple[str, str]) -> None:
    with contextlib.closing(TLSServer(newest_pg, certificate)) as server:
        clients = [server.client(transport) for transport in ("websocket", "polling") for _ in range(5)]
        assert server.stop() < 30, "10 s on a machine that is not busy"
        for client in clients:
            client.next("disconnect")
            client.close()
        assert "Traceback" not in server.log, server.log


@pytest.mark.nightly
def test_a_stream_ends_cleanly(newest_pg: Cluster, certificate: tuple[str, str], channel: str) -> None:
    """With TLS's own end: curl reports any other as an error, and browsers as a lost connection."""
    with contextlib.closing(TLSServer(newest_pg, certificate)) as server:
        url = f"https://127.0.0.1:{server.port}/api/channels/{channel}/stream"
        command = ["curl", "-sSN", "--cacert", server.certificate, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as curl:
            assert curl.stdout is not None
            lines = iter(curl.stdout.readline, "")
            next(line for line in lines if line.startswith("event: subscribed"))
            newest_pg.notify(channel, "7")
            next(line for line in lines if '"payload":7' in line)
            server.stop()
            _, errors = curl.communicate(timeout=PATIENCE)
        assert (curl.returncode, errors) == (0, "")
