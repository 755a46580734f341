"""The Subscriber's use of the stock client libraries."""

import socket
import threading
import types
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import engineio
import pytest
import socketio
import websocket

from socketio_pg.core.messages import EncodedMessage, WireJSON
from socketio_pg.subscriber.connection import Connection, EngineClient
from socketio_pg.subscriber.subscriber import Subscriber

UTF8 = "ünïcödé 🐘".encode()


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options for the WebSocket of a connection with the ``given`` options."""
    connection = Connection(given, threading.RLock(), lambda *_: None)
    found: dict[str, Any] = connection._client.eio.websocket_extra_options
    return found


def test_slow_utf8_check_of_the_library_is_disabled() -> None:
    assert options({})["skip_utf8_validation"] is True
    assert options({"websocket_extra_options": None})["skip_utf8_validation"] is True


def test_application_options_take_precedence_and_are_not_modified() -> None:
    given = {"websocket_extra_options": {"skip_utf8_validation": False, "header": {"X-A": "1"}}}
    options(given).pop("header")  # as python-engineio does when it connects
    assert options(given) == {"skip_utf8_validation": False, "header": {"X-A": "1"}}


@pytest.mark.parametrize(("given", "seconds"), [({}, 15.0), ({"timeout": 60.0}, 60.0), ({"request_timeout": 1}, 1)])
def test_the_library_waits_for_the_server_as_long_as_the_subscriber(given: dict[str, Any], seconds: float) -> None:
    """Its own default is 5 s, which a busy server exceeds."""
    with Subscriber("http://127.0.0.1:9", retry=True, **given) as subscriber:
        link = subscriber._link
        connection = Connection(link._client_options, threading.RLock(), lambda *_: None)
    assert connection._client.eio.request_timeout == seconds


def read(frame: bytes, **given: Any) -> str | bytes:
    """Return ``frame`` as decoded by websocket-client."""
    ours, servers = socket.socketpair()
    with ours, servers:
        one = websocket.WebSocket(**given)
        one.sock = ours
        servers.sendall(frame)
        return one.recv()


@pytest.mark.parametrize("parts", [[UTF8], [UTF8[:2], UTF8[2:]]])
def test_text_is_still_decoded_strictly(parts: list[bytes]) -> None:
    def frames(parts: list[bytes]) -> bytes:
        heads = [(0x80 if part is parts[-1] else 0) | (part is parts[0]) for part in parts]
        return b"".join(bytes((head, len(part))) + part for head, part in zip(heads, parts, strict=True))

    skip = options({})
    assert read(frames(parts), **skip) == UTF8.decode()
    bad = [*parts[:-1], parts[-1][:-1] + b"\xff"]
    with pytest.raises(UnicodeDecodeError):  # the reading thread ends the connection, whatever recv() raises
        read(frames(bad), **skip)
    with pytest.raises(websocket.WebSocketPayloadException):  # websocket-client's own, slow check
        read(frames(bad))


@pytest.mark.parametrize("parse_float", [float, Decimal])
def test_numbers_of_any_size_are_decoded(parse_float: Callable[[str], Any]) -> None:
    received: list[Any] = []
    connection = Connection({}, threading.RLock(), lambda _, *event: received.append(event), parse_float)
    deliver(connection, EncodedMessage("foo", f"[{'7' * 5_000}, {10**150}, 1.1]"))
    assert received == [("event", {"channel": "foo", "payload": [Decimal("7" * 5_000), 10**150, parse_float("1.1")]})]


@pytest.mark.parametrize(
    "extra", [{}, {"replayed": True}, {"matches": ["a", "b*"], "from": {"sub": '"]},', "roles": [{"a": 1}]}}]
)
@pytest.mark.parametrize("position", [None, 7])
def test_message_that_cannot_be_decoded_is_reported(position: int | None, extra: dict[str, Any]) -> None:
    received: list[Any] = []
    connection = Connection({}, threading.RLock(), lambda _, *event: received.append(event))
    deep = '["\\"position\\":5]", ' + "[" * 2_000 + "]" * 2_000 + ', {"position":5,"published_at":""}]'
    published_at = None if position is None else "2026-01-01T00:00:00Z"
    deliver(connection, EncodedMessage('say "hi"', deep, position, published_at), **extra)
    place = {} if position is None else {"position": position, "published_at": published_at}
    assert received == [("undecodable", {"channel": 'say "hi"', **place, **extra})]


def test_other_packets_that_cannot_be_decoded_are_errors() -> None:
    connection = Connection({}, threading.RLock(), lambda *_: None)
    with pytest.raises(ValueError, match="Expecting"):
        connection._client._handle_eio_message('2["gap",{"channel":}]')


def test_application_may_choose_another_json_module() -> None:
    chosen = types.SimpleNamespace(loads=lambda text: ["event", text], dumps=str)
    received: list[Any] = []
    before = socketio.packet.Packet.json
    connection = Connection({"json": chosen}, threading.RLock(), lambda _, *event: received.append(event))
    try:
        deliver(connection, EncodedMessage("foo", "1"))
    finally:
        engineio.packet.Packet.json = engineio.json  # python-engineio keeps it for the whole process
    assert received == [("event", '["event",{"channel":"foo","payload":1}]')]
    assert socketio.packet.Packet.json is before


def deliver(connection: Connection, message: EncodedMessage, **extra: Any) -> None:
    """Pass ``message`` to ``connection`` as the server sends it."""
    client = connection._client
    client.namespaces = {"/": "sid"}
    client._handle_eio_message("2" + WireJSON.dumps(["event", message.to_wire() | extra]))


def test_the_server_may_disconnect_the_client_while_it_closes_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection({}, threading.RLock(), lambda *_: None)
    client = connection._client
    client.namespaces = {"/": "a sid"}
    sent: list[int] = []

    def send(packet: socketio.packet.Packet) -> None:
        sent.append(packet.packet_type)
        client.namespaces.clear()

    monkeypatch.setattr(client, "_send_packet", send)
    connection.close()
    assert sent == [socketio.packet.DISCONNECT]


def test_connection_is_closed_before_its_reading_thread_has_started() -> None:
    """close() may come from another thread than the one that connects."""
    client = EngineClient()
    client.on_disconnect = lambda: None
    client.state, client.current_transport, client.queue = "connected", "websocket", client.create_queue()
    client.ws = types.SimpleNamespace(close=lambda: None)
    client.disconnect()
    assert client.state == "disconnected"
