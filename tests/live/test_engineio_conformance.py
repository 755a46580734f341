"""Conformance to the Engine.IO protocol, version 4, of a real server that echoes every message."""

from collections.abc import Iterator

import pytest

from tests.support.frames import BINARY
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.raw_http import (
    GOOD,
    POLLING,
    WEBSOCKET,
    Connection,
    WebSocket,
    assert_refused,
    connect_to_session,
    http,
    open_packet,
    open_session,
    websocket_path,
)
from tests.support.server import ServerProcess

pytestmark = pytest.mark.green


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(newest_pg.url(), app="tests.support.watched_app:app", DRAIN_SECONDS="0.2", ECHO="1")
    yield made
    made.close()


# -- handshake ---------------------------------------------------------------------------------------------------------


def test_polling_handshake_is_accepted(server: ServerProcess) -> None:
    reply = http(server)
    assert reply.status == 200
    assert reply.headers["content-type"].lower() == "text/plain; charset=utf-8"
    assert open_packet(reply.body.decode())["upgrades"] == ["websocket"]


def test_websocket_handshake_is_accepted(server: ServerProcess) -> None:
    with WebSocket(server) as one:
        assert open_packet(one.read_text())["upgrades"] == []


@pytest.mark.parametrize(
    ("method", "query", "code"),
    [
        ("GET", "transport=polling", 5),
        ("GET", "EIO=abc&transport=polling", 5),
        ("GET", "EIO=3&transport=polling", 5),
        ("GET", "EIO=&transport=polling", 5),
        ("GET", "EIO=4", 0),
        ("GET", "EIO=4&transport=abc", 0),
        ("GET", "EIO=4&transport=polling&sid=abc", 1),
        ("GET", "EIO=4&transport=polling&sid=", 1),
        ("POST", "EIO=4&transport=polling&sid=abc", 1),
        ("POST", "EIO=4&transport=polling", 2),
        ("PUT", "EIO=4&transport=polling", 2),
        ("DELETE", "EIO=4&transport=polling", 2),
        ("GET", "EIO=4&transport=websocket", 3),
        ("GET", "EIO=4&transport=polling&j=0", 3),
        ("GET", "", 0),
        ("GET", "&".join(["EIO=4", "transport=polling"] * 100), 0),
    ],
)
def test_invalid_handshakes_are_refused(server: ServerProcess, method: str, query: str, code: int) -> None:
    body = None if method == "GET" else b""
    assert_refused(http(server, method, f"/socket.io/?{query}", body=body), code)


@pytest.mark.parametrize("query", ["transport=websocket", "EIO=abc&transport=websocket", "EIO=4&transport=abc"])
def test_invalid_websocket_handshakes_are_refused(server: ServerProcess, query: str) -> None:
    assert http(server, path=f"/socket.io/?{query}", headers=GOOD).status == 400


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused_and_keep_the_session(server: ServerProcess, method: str) -> None:
    path = open_session(server)
    assert_refused(http(server, method, path, body=b""), 3)
    assert http(server, "POST", path, body=b"4still there").status == 200


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        "4hello",
        "4test1\x1e4test2\x1e4test3",
        "4hello\x1ebAQIDBA==",
        "4",
        "4{}",
        "4€ünïcödé🐘\x1eb",
        "\x1e".join(f"4{n}" for n in range(16)),
    ],
)
def test_polling_echoes_messages(server: ServerProcess, payload: str) -> None:
    path = open_session(server)
    answer = http(server, "POST", path, body=payload.encode())
    assert (answer.status, answer.body) == (200, b"ok")
    assert answer.headers["content-type"].split(";")[0] in ("text/html", "text/plain")
    assert http(server, path=path).body.decode() == payload


def test_one_post_can_carry_200_packets(server: ServerProcess) -> None:
    # Stock clients put everything they emit together into one POST; python-engineio would end the session at the
    # 17th packet.
    path = open_session(server)
    assert http(server, "POST", path, body=b"\x1e".join(b"4%d" % n for n in range(200))).status == 200
    found: list[str] = []
    while len(found) < 200:
        found += [packet for packet in http(server, path=path).body.decode().split("\x1e") if packet != "2"]
    assert found == [f"4{n}" for n in range(200)]


def test_websocket_echoes_messages(server: ServerProcess) -> None:
    with WebSocket(server) as one:
        open_packet(one.read_text())
        one.text("4hello")
        assert one.read_text() == "4hello"
        one.frame(BINARY, b"\1\2\3\4")
        assert one.read_frame() == (BINARY, b"\1\2\3\4")


@pytest.mark.parametrize(
    "body",
    [b"abc", b"", b"\xff", b"4\xed\xa0\x80", b"2", b"0", b"5", b"6", b"7", b"9", b"\x1e", b"4a\x1e", b"b!", b"bA",
     b"\x1e".join([b"4"] * 1001)],
)  # fmt: skip
def test_invalid_payload_ends_the_session(server: ServerProcess, body: bytes) -> None:
    path = open_session(server)
    assert_refused(http(server, "POST", path, body=body), 3)
    assert_refused(http(server, path=path), 1)


@pytest.mark.parametrize("packet", ["abc", "", "2", "0", "5", "6", "7", "-1", " 4", "é"])
def test_invalid_packet_closes_the_websocket(server: ServerProcess, packet: str) -> None:
    with WebSocket(server) as one:
        open_packet(one.read_text())
        one.text(packet)
        assert one.close_code() == 1008


# -- closing -----------------------------------------------------------------------------------------------------------


def test_polling_client_can_close(server: ServerProcess) -> None:
    path = open_session(server)
    with connect_to_session(server, path) as poll:
        poll.request("GET", path)
        http(server, "OPTIONS", path)  # the poll has been read by then
        assert http(server, "POST", path, body=b"1").body == b"ok"
        reply = poll.reply()
        assert (reply.status, reply.body) == (200, b"6")
    assert_refused(http(server, path=path), 1)


def test_websocket_can_close(server: ServerProcess) -> None:
    with WebSocket(server) as one:
        open_packet(one.read_text())
        one.text("1")
        assert one.close_code() is not None


def test_concurrent_polls_end_the_session(server: ServerProcess) -> None:
    path = open_session(server)
    with connect_to_session(server, path) as first:
        first.request("GET", path)
        http(server, "OPTIONS", path)
        assert_refused(http(server, path=path), 3)
        assert first.reply().body == b"1"
    assert_refused(http(server, path=path), 1)


def test_concurrent_posts_end_the_session(server: ServerProcess) -> None:
    path = open_session(server)
    with connect_to_session(server, path) as first:
        first.request("POST", path, {"Content-Length": "6"}, b"4he")
        http(server, "OPTIONS", path)
        assert_refused(http(server, "POST", path, body=b"4other"), 3)
        first.send(b"llo")
        assert_refused(first.reply(), 1)
    assert_refused(http(server, path=path), 1)


def test_cancelled_poll_ends_the_session(server: ServerProcess) -> None:
    path = open_session(server)
    with connect_to_session(server, path) as poll:
        poll.request("GET", path)
        http(server, "OPTIONS", path)
    until(lambda: http(server, "POST", path, body=b"4x").status == 400, "the session's end")
    assert_refused(http(server, path=path), 1)


# -- upgrade -----------------------------------------------------------------------------------------------------------


def upgraded(server: ServerProcess, path: str) -> WebSocket:
    one = WebSocket(server, websocket_path(path))
    one.text("2probe")
    assert one.read_text() == "3probe"
    one.text("5")
    return one


def test_upgraded_websocket_echoes_messages(server: ServerProcess) -> None:
    path = open_session(server)
    with upgraded(server, path) as one:
        one.text("4hello")
        assert one.read_text() == "4hello"


def test_probe_ends_the_pending_poll_and_loses_nothing(server: ServerProcess) -> None:
    path = open_session(server)
    with Connection(server) as poll:
        poll.request("GET", path)
        with WebSocket(server, websocket_path(path)) as one:
            one.text("2probe")
            assert one.read_text() == "3probe"
            assert poll.reply().body == b"6"
            assert http(server, "POST", path, body=b"4between").body == b"ok"
            one.text("5")
            assert one.read_text() == "4between"


def test_polls_end_until_the_client_knows_of_the_probe(server: ServerProcess) -> None:
    """The answer to the probe may arrive later than that to the poll, over TLS or through a proxy."""
    path = open_session(server)
    with WebSocket(server, websocket_path(path)) as one:
        one.text("2probe")
        assert one.read_text() == "3probe"
        for _ in range(3):
            assert http(server, path=path).body == b"6"
        assert http(server, "POST", path, body=b"4hello").body == b"ok"
        assert http(server, path=path).body == b"4hello"
        one.text("5")
        one.text("4upgraded")
        assert one.read_text() == "4upgraded"


def test_polling_is_refused_after_the_upgrade(server: ServerProcess) -> None:
    path = open_session(server)
    with upgraded(server, path) as one:
        one.text("4hello")
        assert one.read_text() == "4hello"
        assert_refused(http(server, path=path), 3)
        assert_refused(http(server, "POST", path, body=b"4x"), 3)
        one.text("4still")
        assert one.read_text() == "4still"


def test_second_websocket_is_refused_and_the_first_continues(server: ServerProcess) -> None:
    path = open_session(server)
    with upgraded(server, path) as one:
        one.text("4hello")
        assert one.read_text() == "4hello"
        assert_refused(http(server, path=websocket_path(path), headers=GOOD), 3)
        one.text("4still")
        assert one.read_text() == "4still"


@pytest.mark.parametrize("packet", ["abc", "2", "5", "4hello", ""])
def test_invalid_probe_leaves_polling_working(server: ServerProcess, packet: str) -> None:
    path = open_session(server)
    with WebSocket(server, websocket_path(path)) as one:
        one.text(packet)
        assert one.close_code() == 1008
    assert http(server, "POST", path, body=b"4hello").body == b"ok"
    assert http(server, path=path).body == b"4hello"


# -- WebSocket handshake (RFC 6455) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Connection": "keep-alive, Upgrade"}, 101),
        ({"Connection": "UPGRADE", "Upgrade": "WebSocket"}, 101),
        ({"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}, 101),
        ({"Sec-WebSocket-Protocol": "chat, superchat"}, 101),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": ""}, 426),
        ({"Sec-WebSocket-Version": "13, 8"}, 426),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Key": "AAAA"}, 400),
        ({"Sec-WebSocket-Key": "!" * 22 + "=="}, 400),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZ2E="}, 400),
        ({"Connection": "close"}, 400),
        ({"Connection": ""}, 400),
        ({"Upgrade": "h2c"}, 400),
        ({"Host": ""}, 400),
    ],
)
def test_websocket_handshake_headers_are_checked(server: ServerProcess, change: dict[str, str], status: int) -> None:
    with Connection(server) as one:
        one.request("GET", WEBSOCKET, GOOD | change)
        reply = one.reply()
        assert reply.status == status
        if status == 101:
            assert reply.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            assert "sec-websocket-extensions" not in reply.headers
            offered = change.get("Sec-WebSocket-Protocol")
            assert reply.headers.get("sec-websocket-protocol") == (offered and offered.partition(",")[0])
        elif status == 426:
            assert reply.headers["sec-websocket-version"] == "13"


def test_websocket_requires_http_1_1(server: ServerProcess) -> None:
    with Connection(server) as one:
        headers = "".join(f"{name}: {value}\r\n" for name, value in GOOD.items())
        one.send(f"GET {WEBSOCKET} HTTP/1.0\r\nHost: x\r\n{headers}\r\n".encode())
        assert one.reply().status == 400


def test_polling_reply_is_compressed_on_request(server: ServerProcess) -> None:
    path = open_session(server)
    assert http(server, "POST", path, body=b"4" + b"x" * 5000).status == 200
    reply = http(server, path=path, headers={"Accept-Encoding": "gzip"})
    assert reply.headers["content-encoding"] == "gzip"
    assert len(reply.body) < 200
    assert POLLING in path
