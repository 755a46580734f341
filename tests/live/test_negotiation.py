"""What clients negotiate beyond the protocol: subprotocols of WebSockets, and parsers of Socket.IO."""

import json

import pytest
import socketio
from playwright.sync_api import Browser

from tests.support.frames import BINARY, TEXT
from tests.support.node import NodeClient
from tests.support.patience import until
from tests.support.raw_http import GOOD, WEBSOCKET, WebSocket, http
from tests.support.server import ServerProcess

# -- subprotocols (RFC 6455, section 4.2.2) ----------------------------------------------------------------------------


def test_browser_with_subprotocols_connects(live_server: ServerProcess, chromium: Browser) -> None:
    page = chromium.new_page()
    try:
        page.goto(f"{live_server.url}/healthz")
        opened = page.evaluate(
            """path => new Promise((resolve) => {
                const socket = new WebSocket(path, ["v1.example", "v2.example"]);
                socket.onopen = () => resolve(socket.protocol);
                socket.onerror = () => resolve("refused");
            })""",
            f"ws://127.0.0.1:{live_server.port}{WEBSOCKET}",
        )
        assert opened == "v1.example"
    finally:
        page.close()


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (None, None),
        (" ", None),
        ("v1.example", "v1.example"),
        ("v1.example, v2.example", "v1.example"),
        ("a,b", "a"),
        (",a,,b,", "a"),
    ],
)
def test_first_offered_subprotocol_is_selected(
    live_server: ServerProcess, offered: str | None, expected: str | None
) -> None:
    headers = {} if offered is None else {"Sec-WebSocket-Protocol": offered}
    with WebSocket(live_server, headers=headers) as one:
        assert one.answer.headers.get("sec-websocket-protocol") == expected
        one.connect()


@pytest.mark.parametrize("offered", ["a, a", "a b", "a\tb", "(a)", "a;b", '"a"', "\xe4"])
def test_invalid_lists_of_subprotocols_are_refused(live_server: ServerProcess, offered: str) -> None:
    reply = http(live_server, path=WEBSOCKET, headers=GOOD | {"Sec-WebSocket-Protocol": offered})
    assert (reply.status, b"Sec-WebSocket-Protocol" in reply.body) == (400, True)


@pytest.mark.parametrize("transports", ["websocket", "polling,websocket"])
def test_stock_client_with_subprotocols_connects(live_server: ServerProcess, transports: str) -> None:
    """Node's WebSocket, like a browser's, ends a connection whose server selects none of its subprotocols."""
    client = NodeClient(live_server.url, transports, "client.mjs", '{"protocols": ["v1.example", "v2.example"]}')
    try:
        client.next(event="connect")
        if transports != "websocket":
            assert client.next(event="upgrade")["transport"] == "websocket"
        assert client.call("unsubscribe", {"channel": "a"})["ok"] is True
    finally:
        client.close()


# -- parsers -----------------------------------------------------------------------------------------------------------

NAMED = "and this server has Socket.IO's default parser only"


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_msgpack_client_is_named_in_the_log(live_server: ServerProcess, transport: str) -> None:
    before = len(live_server.log)

    def named() -> bool:
        client = socketio.Client(serializer="msgpack", reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            client.connect(live_server.url, transports=[transport], wait_timeout=0.5)
        client.eio.disconnect(abort=True)  # otherwise it goes on until the next ping is late
        return f"it uses a msgpack parser, {NAMED}" in live_server.log[before:]

    until(named, "the log names the parser")  # another line of the same second may suppress it


@pytest.mark.parametrize(
    ("opcode", "packet", "name"),
    [
        (TEXT, b'4{"type":0,"nsp":"/"}', "JSON"),  # socket.io-json-parser
        (BINARY, b"\x83\xa3nsp\xa1/\xa4type\x00\xa4data\xc0", "msgpack"),
        (BINARY, b"\x83\xa4name\x00", None),
        (TEXT, b"4abc", None),
    ],
)
def test_only_packets_of_another_parser_are_named(
    live_server: ServerProcess, opcode: int, packet: bytes, name: str | None
) -> None:
    with WebSocket(live_server) as one:
        sid = json.loads(one.read_text()[1:])["sid"]
        one.frame(opcode, packet)
        one.close_code()
    # Other lines of the same second may suppress this one.
    lines = [line for line in live_server.log.splitlines() if f"connection={sid}" in line]
    assert all((f"uses a {name} parser" in line) is (name is not None) for line in lines)
