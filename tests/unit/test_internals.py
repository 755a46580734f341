"""The internals of python-socketio, python-engineio, Flask-SocketIO, the green-thread libraries and gunicorn exist.

The table of overridden methods in docs/architecture.md agrees with the code and with the installed libraries.
"""

from pathlib import Path
from typing import Any

import engineio
import flask_socketio
import pytest
import socketio
from bidict import ValueDuplicationError
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import RequestParser
from gunicorn.http.message import _ip_in_allow_list
from gunicorn.workers.base_async import AsyncWorker

from socketio_pg.engine import handover
from socketio_pg.engine import server as engine
from socketio_pg.engine import socket as engine_socket
from socketio_pg.protocol import packets
from socketio_pg.protocol.server import Server
from tests.support import overrides
from tests.support.overrides import Override, signature

#: Base class → method → its parameters, of methods that are called, or replaced in tests, but not overridden there.
USED: dict[type, dict[str, str]] = {
    socketio.Server: {
        "_send_packet": "(eio_sid, pkt)",
        "_handle_disconnect": "(eio_sid, namespace, reason)",
        "_handle_eio_connect": "(eio_sid, environ)",
        "_handle_eio_disconnect": "(eio_sid, reason)",
        "on": "(event, handler, namespace)",
        "start_background_task": "(target, *args, **kwargs)",
        "register_namespace": "(namespace_handler)",
    },
    socketio.Manager: {
        "sid_from_eio_sid": "(eio_sid, namespace)",
        "is_sid_room": "(namespace, room)",
        "get_participants": "(namespace, room)",
        "disconnect": "(sid, namespace, **kwargs)",
        "pre_connect": "(eio_sid, namespace)",
        "connect": "(sid, namespace)",
        "is_pre_connected": "(sid, namespace)",
        "is_connected": "(sid, namespace)",
        "trigger_callback": "(sid, id, data)",
    },
    socketio.PubSubManager: {
        "is_pre_connected": "(sid, namespace)",
        "_get_logger": "()",
        "_handle_emit": "(message)",
        "_handle_close_room": "(message)",
        "can_disconnect": "(sid, namespace)",
    },
    socketio.RedisManager: {
        "__init__": "(url, channel, write_only, logger, json, redis_options)",
        "_publish": "(data)",
        "_listen": "()",
        "_get_redis_module": "()",
        "_redis_connect": "()",
        "_redis_listen_with_retries": "()",
    },
    engineio.Server: {
        "send_packet": "(sid, pkt)",
        "disconnect": "(sid)",
        "create_queue": "(*args, **kwargs)",
        "generate_id": "()",
        "_upgrades": "(sid, transport)",
        "_trigger_event": "(event, *args, **kwargs)",
        "_cors_allowed_origins": "(environ)",
        "_cors_headers": "(environ)",
        "_unauthorized": "(message)",
    },
    flask_socketio.SocketIO: {
        "__init__": "(app, **kwargs)",
        "_handle_event": "(handler, message, namespace, sid, *args)",
    },
}


def row_name(override: Override) -> str:
    return f"{override.ours}.{override.method}"


ROWS = overrides.documented(Path(__file__).parents[2])


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_overridden_methods_have_the_documented_signature_upstream(row: Override) -> None:
    method = overrides.upstream_method(row)
    assert method is not None, f"{row.upstream}.{row.method} no longer exists: look at {row.ours}"
    assert overrides.signature(method) == row.signature, f"{row.upstream}.{row.method} has changed: look at {row.ours}"


def test_the_table_of_overridden_methods_is_complete() -> None:
    # A surplus override may be a method that we added, and that a new version has too with another meaning.
    in_code = set(overrides.found())
    missing = [override.row() for override in sorted(in_code - set(ROWS))]
    assert not missing, "\n".join(["add to docs/architecture.md:", *missing])
    surplus = [row_name(row) for row in ROWS if row not in in_code]
    assert not surplus, f"in docs/architecture.md, but not overridden in the code: {', '.join(surplus)}"
    assert len(ROWS) == len(set(ROWS)), "a row is there twice"


def test_all_base_classes_are_covered() -> None:
    upstream = {row.upstream for row in ROWS}
    assert {"socketio.Server", "socketio.Manager", "socketio.PubSubManager", "socketio.RedisManager"} <= upstream
    assert {"engineio.Server", "engineio.socket.Socket", "engineio.Client", "socketio.Client"} <= upstream
    assert {"socketio.packet.Packet", "socketio.WSGIApp", "flask_socketio.SocketIO"} <= upstream


@pytest.mark.parametrize(
    ("base", "method", "expected"),
    [(base, method, expected) for base, methods in USED.items() for method, expected in methods.items()],
    ids=[f"{base.__name__}.{method}" for base, methods in USED.items() for method in methods],
)
def test_called_methods_have_the_same_signature_upstream(base: type, method: str, expected: str) -> None:
    function = getattr(base, method, None)
    assert function is not None, f"{base.__module__}.{base.__name__}.{method} no longer exists"
    assert overrides.signature(function) == expected


@pytest.mark.parametrize("name", ["eio", "manager", "environ", "handlers", "namespace_handlers", "not_handled",
                                  "packet_class", "_binary_packet", "async_mode", "async_handlers",
                                  "namespaces"])  # fmt: skip
def test_server_has_the_attributes_that_we_use(name: str) -> None:
    assert hasattr(socketio.Server(async_mode="threading"), name)


def test_queue_messages_have_the_stock_format() -> None:
    sent: list[dict[str, Any]] = []
    manager = socketio.PubSubManager(write_only=True)
    manager._publish = sent.append
    manager.emit("a", b"b", room="c", skip_sid=["d"])
    data = [[{"_placeholder": True, "num": 0}], "Yg=="]
    expected = {"method": "emit", "event": "a", "data": data, "binary": True, "namespace": "/", "room": "c"}
    expected |= {"skip_sid": ["d"], "callback": None, "host_id": manager.host_id}
    assert sent == [expected]


def test_client_has_the_attributes_that_we_use() -> None:
    stock = socketio.Client(websocket_extra_options={"skip_utf8_validation": True}).eio
    assert type(stock) is engineio.Client
    assert hasattr(stock, "read_loop_task")
    assert stock.websocket_extra_options == {"skip_utf8_validation": True}
    assert not [name for name in ("heard", "size", "on_disconnect") if hasattr(stock, name)], "our subclass adds those"
    assert engineio.packet.Packet(encoded_packet="4text").data == "text"


@pytest.mark.parametrize("name", ["server", "server_options", "handlers", "namespace_handlers", "manage_session"])
def test_flask_socketio_has_the_attributes_that_we_use(name: str) -> None:
    assert hasattr(flask_socketio.SocketIO(), name)


def test_packet_json_is_a_class_attribute_that_only_we_replace() -> None:
    server = Server(async_mode="threading")
    assert server.packet_class is packets.Packet
    assert "json" in vars(socketio.packet.Packet)
    assert socketio.packet.Packet.json is not packets.Packet.json
    assert server.packet_class(socketio.packet.EVENT, data=["a", {"b": "é"}]).encode() == '2["a",{"b":"é"}]'


def test_rooms_have_the_attributes_that_we_use() -> None:
    manager = socketio.Manager()
    manager.basic_enter_room("sid", "/", None, eio_sid="eio_sid")
    members = manager.rooms["/"][None]
    assert (members._fwdm, members._invm) == ({"sid": "eio_sid"}, {"eio_sid": "sid"})
    with pytest.raises(ValueDuplicationError):
        manager.basic_enter_room("other", "/", None, eio_sid="eio_sid")


def test_our_socket_has_all_attributes_of_the_stock_socket() -> None:
    # Ours does not call the stock constructor.
    stock = engineio.Server(async_mode="threading")
    ours = engine.Engine(async_mode="threading", handle_message=lambda *_: None, is_connected=lambda _: False)
    assert vars(engineio.socket.Socket(stock, "a")).keys() <= vars(engine_socket.Socket(ours, "a", polling=True)).keys()


# -- gunicorn, of each major version that is supported -----------------------------------------------------------------


def test_gunicorn_lets_us_read_a_chunked_body_from_the_connection() -> None:
    """`engine/handover` does so, and `gunicorn_config` closes the connection afterwards."""
    body = b"2\r\nab\r\n0\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    parser = RequestParser(Config(), iter([head + body[:5], body[5:]]), None)
    request = next(parser)
    reader = request.body.reader
    unread = handover.UnreadBytes(reader.req.unreader)
    assert [unread.readline(10), unread.read(4), unread.readline(10)] == [b"2\r\n", b"ab\r\n", b"0\r\n"]
    reader.parser = None
    assert request.body.read() == b"", "gunicorn does not look for chunks"
    assert not request.should_close()
    request.force_close()
    assert request.should_close()
    assert next(parser, None) is None


def test_gunicorn_has_the_attributes_that_we_use() -> None:
    [request] = RequestParser(Config(), iter([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]), None)
    # `gunicorn_config` replaces it by a property of the class.
    assert "max_buffer_headers" in vars(request)
    assert request.headers == [("HOST", "a")]
    # `engine/front` is in place of AsyncWorker.handle().
    assert signature(AsyncWorker.handle) == "(listener, client, addr)"
    assert signature(AsyncWorker.handle_request) == "(listener_name, req, sock, addr)"
    assert signature(AsyncWorker.handle_error) == "(req, client, addr, exc)"
    number: Any = Arbiter.num_workers
    assert "_num_workers" in number.fget.__code__.co_names
    settings = Config().settings
    # `engine/front` takes handshakes past gunicorn unless one of these is in use.
    assert isinstance(Logger.access_log_enabled, property)
    assert Config().post_request is settings["post_request"].default
    assert _ip_in_allow_list("::1", ["::1"], Config().forwarded_allow_networks())
    assert {"control_socket_disable", "http_protocols", "graceful_timeout", "worker_connections"} <= set(settings)
