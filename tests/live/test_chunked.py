"""POSTs with `Transfer-Encoding: chunked`, which Go's clients and some proxies send, on both WSGI servers."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.raw_http import POLLING, Connection, Listening, open_session
from tests.support.raw_http import http as send
from tests.support.server import ROOT, ServerProcess, clean_environment, free_port, listens

pytestmark = pytest.mark.green

#: The limit of a body of the HTTP API.
MAX_BYTES = 1_000_000 + 65_536
CHUNKED = {"Transfer-Encoding": "chunked", "Content-Length": ""}
JSON = {"Content-Type": "application/json"}


class Development:
    """The development server, on the WSGI server of the green-thread library."""

    def __init__(self, database_url: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "socketio_pg" / "server.py")],
            env=clean_environment(DATABASE_URL=database_url, PORT=str(self.port), DRAIN_SECONDS="0"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture(scope="module")
def development(newest_pg: Cluster) -> Iterator[Development]:
    made = Development(newest_pg.url())
    until(lambda: listens(made.port), "the development server listens")
    yield made
    made.process.terminate()
    assert made.process.wait(PATIENCE) == 0


@pytest.fixture(params=["gunicorn", "development server"])
def server(request: pytest.FixtureRequest, live_server: ServerProcess) -> Listening:
    found: Listening = live_server if request.param == "gunicorn" else request.getfixturevalue("development")
    return found


def test_client_that_sends_chunks_subscribes_and_publishes(server: Listening, channel: str) -> None:
    """As Go's client does: each packet in a POST without Content-Length."""
    path = open_session(server)
    received = ""
    for event, answer in (
        (None, '42["server_hello"'),
        (["subscribe", {"channel": channel}], '42["subscribed"'),
        (["publish", {"channel": channel, "payload": "x" * 7_000}], f'42["event",{{"channel":"{channel}"'),
    ):
        data = b"40" if event is None else f"42{json.dumps(event)}".encode()
        made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        made.request("POST", path, iter([data[:1], data[1:]]))
        reply = made.getresponse()
        assert (reply.status, reply.read()) == (200, b"ok")
        made.close()
        while answer not in received:
            received += send(server, path=path).body.decode()
            assert '42["error"' not in received


@pytest.mark.parametrize(
    "body", [b"2;a=b\r\n40\r\n0\r\n\r\n", b"1\r\n4\r\n1\r\n0\r\n0\r\nX: 1\r\n\r\n"], ids=["extension", "trailer"]
)
def test_extensions_and_trailers_are_ignored(server: Listening, body: bytes) -> None:
    with Connection(server) as one:
        one.request("POST", open_session(server), CHUNKED, body)
        assert one.reply().body == b"ok"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"2\r\n40\r\n0x0\r\n\r\n", 400),
        ({}, b"2\n40\n0\n\n", 400),
        ({}, b"1\r\n40\r\n0\r\n\r\n", 400),
        ({}, b"2;" + b"a" * 2_000, 400),
        ({}, b"0\r\nX: " + b"a" * 20_000, 400),
        ({}, b"1\r\n4\r\n" * 10_001, 400),
        ({}, b"20000\r\n4", 413),
        ({}, b"f" * 16 + b"\r\n4", 413),
        ({"Content-Length": "10"}, b"2\r\n40\r\n0\r\n\r\n", 400),
    ],
    ids=["size", "line feeds", "short", "extension", "trailers", "many", "large", "huge", "both"],
)
def test_other_bodies_are_refused_and_the_connection_is_closed(
    server: Listening, headers: dict[str, str], body: bytes, status: int
) -> None:
    with Connection(server) as one:
        one.request("POST", open_session(server), CHUNKED | headers, body)
        assert one.reply().status == status
        assert one.closed(), "the rest must not be parsed as a request"


def test_refusal_arrives_although_the_body_is_not_read(server: Listening) -> None:
    """For instance after a restart, when the session is unknown."""
    with Connection(server) as one:
        one.request("POST", f"{POLLING}&sid=unknown", CHUNKED, b"20000\r\n" + b"4" * 0x20000 + b"\r\n0\r\n\r\n")
        assert one.reply().json["code"] == 1
        assert one.closed()


@pytest.mark.parametrize("size", ["2", '2;a="\r\n"', "002"])
def test_no_request_is_smuggled_after_a_body(server: Listening, size: str) -> None:
    """The server answers the POST and closes the connection; the bytes that follow are no request of their own."""
    with Connection(server) as one:
        body = f"{size}\r\n40\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        one.request("POST", open_session(server), CHUNKED, body)
        assert one.reply().status in (200, 400)
        assert one.closed()
        assert b"HTTP" not in one.rest


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("POST", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        ("POST", "Transfer-Encoding: \x0bchunked"),
        ("GET", "Transfer-Encoding: gzip, chunked"),
        ("GET", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
        ("GET", "Transfer-Encoding : chunked"),
        ("GET", "X: a\rTransfer-Encoding: chunked"),
        ("GET", "X\r\nContent-Length: 5"),
        ("GET", "X: a\r\n b\r\nContent-Length: 5"),
        ("GET", "Content-Length: 5\r\nContent-Length: 50"),
        ("GET", "Content-Length: +5"),
    ],
)
def test_no_request_follows_one_whose_end_is_doubtful(server: Listening, method: str, lines: str) -> None:
    """Otherwise a client might smuggle a request past a proxy that understands the first one differently."""
    with Connection(server) as one:
        path = open_session(server) if method == "POST" else "/healthz"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n"
        one.send(head.encode() + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert one.reply().status in ((400, 411) if method == "POST" else (200, 400))
        assert one.closed()
        assert b"HTTP" not in one.rest


def test_body_of_a_request_for_an_upgrade_is_no_request(server: Listening) -> None:
    with Connection(server) as one:
        for upgrade in ("Upgrade: x\r\nConnection: Upgrade", "Connection: upgrade", "Upgrade: websocket"):
            path = open_session(server)
            one.send(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\nContent-Length: 2\r\n\r\n40".encode())
            assert one.reply().body == b"ok"
            one.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.reply().json == {"status": "ok"}


def test_http_api_reads_chunks(server: Listening, channel: str) -> None:
    with SocketClient(f"http://127.0.0.1:{server.port}") as client:
        client.subscribe(channel)
        made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        body = json.dumps({"channel": channel, "payload": "y" * 1_000}).encode()
        made.request("POST", "/api/publish", iter([body[:100], body[100:]]), JSON)
        assert made.getresponse().status == 200
        made.close()
        assert client.next("event")["payload"] == "y" * 1_000
    for body, status in ((b"x\r\n", 400), (b"%x\r\n" % (MAX_BYTES + 1), 413)):
        with Connection(server) as one:
            one.request("POST", "/api/publish", CHUNKED | JSON, body)
            reply = one.reply()
            assert (reply.status, set(reply.json)) == (status, {"error"})
            assert one.closed()


def test_clients_wait_for_100_continue(server: Listening) -> None:
    with Connection(server) as one:
        one.request("POST", open_session(server), CHUNKED | {"Expect": "100-continue"})
        assert one.reply().status == 100
        one.send(b"2\r\n40\r\n0\r\n\r\n")
        assert one.reply().body == b"ok"
