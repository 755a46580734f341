"""The Subscriber's use of the stock client libraries."""

import socket
import threading
from typing import Any

import pytest
import websocket

from socketio_pg.subscriber.connection import Connection

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
