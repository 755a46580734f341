"""Requests on the connections of gunicorn's worker: their heads are read first, and a hook may move a connection."""

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.raw_http import GOOD, POLLING, WEBSOCKET, Connection, WebSocket
from tests.support.server import PATIENT, ServerProcess

pytestmark = pytest.mark.green

MOVE = {"X-Test": "move"}
WHERE = b"GET /where HTTP/1.1\r\nHost: a\r\n"
MOVING = WHERE + b"X-Test: move\r\n\r\n"


@contextlib.contextmanager
def _moving(cluster: Cluster, *options: str, wait: str = "ready") -> Iterator[ServerProcess]:
    with contextlib.closing(
        ServerProcess(cluster.url(), *options, wait=wait, app="tests.support.moving_app:app", **PATIENT)
    ) as made:
        yield made


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with _moving(newest_pg) as made:
        yield made


def _name(connection: Connection) -> str:
    """Return the server's name in the answer of ``/where``."""
    reply = connection.reply()
    assert reply.status == 200
    assert reply.json["REMOTE_ADDR"] == "127.0.0.1"
    return str(reply.json["SERVER_NAME"])


def test_connection_moves_with_its_first_request(server: ServerProcess) -> None:
    with Connection(server) as one:
        one.request("POST", "/where", MOVE, b"the body")
        reply = one.reply()
        assert (reply.json["SERVER_NAME"], reply.json["body"]) == ("moved", "the body")
        one.request("GET", "/where")
        assert _name(one) == "moved", "and stays there"


def test_connection_moves_with_a_later_request(server: ServerProcess) -> None:
    with Connection(server) as one:
        one.request("POST", "/where", body=b"x" * 70_000)
        assert one.reply().json["SERVER_NAME"] == "127.0.0.1"
        one.request("POST", "/where", MOVE, b"y" * 70_000)
        reply = one.reply()
        assert (reply.json["SERVER_NAME"], len(reply.json["body"])) == ("moved", 70_000)


def test_pipelined_requests_move_together(server: ServerProcess) -> None:
    with Connection(server) as one:
        one.send((WHERE + b"\r\n") * 2 + MOVING + WHERE + b"\r\n")
        assert [_name(one) for _ in range(4)] == ["127.0.0.1", "127.0.0.1", "moved", "moved"]


def test_head_that_arrives_in_pieces(server: ServerProcess) -> None:
    with Connection(server) as one:
        one.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in MOVING:
            one.send(bytes((byte,)))
        assert _name(one) == "moved"


def test_unread_body_does_not_become_a_request(server: ServerProcess) -> None:
    with Connection(server) as one:
        one.request("POST", "/healthz", MOVE, body=MOVING)
        assert one.reply().status == 405
        one.request("GET", "/where")
        assert _name(one) == "moved"


def test_websocket_of_a_moved_connection(server: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    with WebSocket(server, headers=MOVE).connect() as one:
        one.text(f'421["subscribe",{json.dumps({"channel": channel})}]')
        while not (text := one.read_text()).startswith("431"):
            pass
        assert json.loads(text[3:])[0]["ok"] is True
        newest_pg.notify(channel, "1")
        while "event" not in (text := one.read_text()):
            pass
        assert json.loads(text[2:])[1]["payload"] == 1


def test_polling_on_a_moved_connection(server: ServerProcess) -> None:
    with Connection(server) as one:
        one.request("GET", POLLING, MOVE)
        session = f"{POLLING}&sid={json.loads(one.reply().body[1:])['sid']}"
        one.request("POST", session, body=b"40")
        assert one.reply().body == b"ok"
        one.request("GET", session)
        assert one.reply().body.startswith(b"40{")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n", 400), (b"GET http://[ HTTP/1.1\r\n", 400), (b"GET / HTTP/3.0\r\n", 400),
        (b"get / HTTP/1.1\r\n", 400), (b"GET /" + b"a" * 9000, 400), (b"\x16\x03\x01\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 7000, 431),
    ],
)  # fmt: skip
def test_refused_as_soon_as_gunicorn_can_tell(server: ServerProcess, sent: bytes, status: int) -> None:
    with Connection(server) as one:
        one.send(sent)
        assert one.reply().status == status
        assert one.closed()


def test_silent_and_slow_clients_are_disconnected(server: ServerProcess) -> None:
    """After gunicorn's `keepalive`: 5 seconds."""
    with Connection(server) as silent, Connection(server) as half, Connection(server) as idle:
        half.send(b"GET /where HTTP/1.1\r\nHost:")
        idle.request("GET", "/where")
        assert _name(idle) == "127.0.0.1"
        assert [one.closed() for one in (silent, half, idle)] == [True] * 3
        assert (silent.rest, half.rest, idle.rest) == (b"", b"", b"")


def _proxy_v2(address: str) -> bytes:
    body = socket.inet_aton(address) + socket.inet_aton("10.0.0.1") + struct.pack(">HH", 4000, 80)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H", len(body)) + body


def test_address_of_the_proxy_protocol_moves_too(newest_pg: Cluster) -> None:
    with _moving(newest_pg, "--proxy-protocol", "auto") as server:
        for preface in (b"PROXY TCP4 192.0.2.7 10.0.0.1 4000 80\r\n", _proxy_v2("192.0.2.7"), b""):
            with Connection(server) as one:
                one.send(preface + WHERE + b"\r\n")
                here = one.reply().json
                one.send(MOVING)
                there = one.reply().json
                one.send(WHERE + b"\r\n")
                assert there == one.reply().json
                assert (here["SERVER_NAME"], there["SERVER_NAME"]) == ("127.0.0.1", "moved")
                wanted = "192.0.2.7" if preface else "127.0.0.1"
                assert (here["REMOTE_ADDR"], there["REMOTE_ADDR"]) == (wanted, wanted)
        with Connection(server) as one:
            one.send(b"PROXY TCP4 nonsense\r\n" + MOVING)
            assert one.reply().status == 400


def test_no_more_connections_move_than_gunicorn_accepts_at_once(newest_pg: Cluster) -> None:
    options = ("--worker-connections", "3", "--keep-alive", "60")
    with _moving(newest_pg, *options) as server, contextlib.ExitStack() as stack:
        moved = [stack.enter_context(Connection(server)) for _ in range(3)]
        for one in moved:
            one.request("POST", "/where", MOVE)
            assert _name(one) == "moved"
        with Connection(server) as further:
            further.request("POST", "/where", MOVE)
            assert further.closed()
            assert further.rest == b""
        moved.pop().socket.close()

        def moves() -> bool:
            with Connection(server) as one:
                one.request("POST", "/where", MOVE | {"Connection": "close"})
                return one.closed() and b'"moved"' in one.rest

        until(moves, "a place is free again")
        for one in moved:
            one.request("GET", "/where")
            assert _name(one) == "moved"


def test_a_bug_while_a_websocket_is_opened_does_not_end_the_acceptor(newest_pg: Cluster) -> None:
    options = ("-w", "1")
    with contextlib.closing(ServerProcess(newest_pg.url(), *options, app="tests.support.failing_app:app")) as server:
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)  # so that the handshake has arrived when the connection is accepted
        with Connection(server) as one:
            one.request("GET", WEBSOCKET, GOOD | {"X-Fail": "1"})
            os.kill(worker, signal.SIGCONT)
            assert one.closed()
            assert one.rest == b"", "the usual way is a 500"
        assert server.get("/healthz")[0] == 200
        with WebSocket(server):
            pass
        assert "a WebSocket could not be opened" in server.log


class _Secured(Connection):
    def connected(self, made: socket.socket) -> socket.socket:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(made)


def test_tls_stays_when_its_connection_moves(newest_pg: Cluster, certificate: tuple[str, str]) -> None:
    key, path = certificate
    with _moving(newest_pg, "--keyfile", key, "--certfile", path, wait="nothing") as server:
        with SocketClient(f"https://127.0.0.1:{server.port}", ("websocket",), wait=True, ssl_verify=False):
            pass  # it accepts connections
        with _Secured(server) as one:
            one.request("GET", "/where")
            assert one.reply().json["SERVER_NAME"] == "127.0.0.1"
            one.request("POST", "/where", MOVE, b"z" * 70_000)
            reply = one.reply()
            assert (reply.json["SERVER_NAME"], reply.json["wsgi.url_scheme"]) == ("moved", "https")
            assert len(reply.json["body"]) == 70_000
            one.request("GET", "/where", {"Connection": "close"})
            assert _name(one) == "moved"
            assert one.closed()
