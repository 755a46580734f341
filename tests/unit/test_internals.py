"""What we override and use of python-socketio, python-engineio and Flask-SocketIO is still what it was.

A new version that changes it fails here, and says where to look.
"""

import inspect
import itertools
from typing import Any

import engineio
import flask_socketio
import pytest
import socketio

from socketio_pg.cluster import postgres as cluster_postgres
from socketio_pg.engine import server as engine
from socketio_pg.engine import socket as engine_socket
from socketio_pg.protocol import extension, fanout, packets
from socketio_pg.protocol import server as protocol
from socketio_pg.protocol.server import Server
from socketio_pg.subscriber import connection as subscriber_connection

#: Base class → method → its parameters, of all methods that we override.
OVERRIDDEN: dict[type, dict[str, list[str]]] = {
    socketio.packet.Packet: {
        "decode": ["self", "encoded_packet"],
        "add_attachment": ["self", "attachment"],
    },
    socketio.Server: {
        "__init__": ["self", "client_manager", "logger", "serializer", "json", "async_handlers", "always_connect",
                     "namespaces", "**kwargs"],
        "_handle_connect": ["self", "eio_sid", "namespace", "data"],
        "_trigger_event": ["self", "event", "namespace", "*args"],
        "_handle_eio_connect": ["self", "eio_sid", "environ"],
        "_handle_eio_message": ["self", "eio_sid", "data"],
        "_handle_eio_disconnect": ["self", "eio_sid", "reason"],
        "_handle_event_internal": ["self", "server", "sid", "eio_sid", "data", "namespace", "id"],
        "_engineio_server_class": ["self"],
    },
    socketio.Manager: {
        "__init__": ["self"],
        "emit": ["self", "event", "data", "namespace", "room", "skip_sid", "callback", "to", "**kwargs"],
        "basic_enter_room": ["self", "sid", "namespace", "room", "eio_sid"],
        "basic_leave_room": ["self", "sid", "namespace", "room"],
        "basic_disconnect": ["self", "sid", "namespace", "**kwargs"],
        "get_rooms": ["self", "sid", "namespace"],
    },
    socketio.PubSubManager: {
        "__init__": ["self", "channel", "write_only", "logger", "json"],
        "initialize": ["self"],
        "emit": ["self", "event", "data", "namespace", "room", "skip_sid", "callback", "to", "**kwargs"],
        "trigger_callback": ["self", "sid", "id", "data"],
        "_generate_ack_id": ["self", "sid", "callback"],
        "_return_callback": ["self", "host_id", "sid", "namespace", "callback_id", "*args"],
        "_handle_callback": ["self", "message"],
        "_handle_disconnect": ["self", "message"],
        "_publish": ["self", "data"],
        "_listen": ["self"],
        "_thread": ["self"],
    },
    engineio.Server: {
        "__init__": ["self", "async_mode", "ping_interval", "ping_timeout", "max_http_buffer_size", "allow_upgrades",
                     "http_compression", "compression_threshold", "cookie", "cors_allowed_origins", "cors_credentials",
                     "logger", "json", "async_handlers", "monitor_clients", "transports", "**kwargs"],
        "_handle_connect": ["self", "environ", "start_response", "transport", "jsonp_index"],
        "handle_request": ["self", "environ", "start_response"],
    },
    engineio.socket.Socket: {
        "__init__": ["self", "server", "sid"],
        "send": ["self", "pkt"],
        "schedule_ping": ["self"],
        "poll": ["self"],
        "check_ping_timeout": ["self"],
        "close": ["self", "wait", "abort", "reason"],
    },
    socketio.WSGIApp: {
        "__init__": ["self", "socketio_app", "wsgi_app", "static_files", "socketio_path"],
        "__call__": ["self", "environ", "start_response"],
    },
    flask_socketio.SocketIO: {
        "init_app": ["self", "app", "**kwargs"],
    },
    engineio.Client: {
        "_receive_packet": ["self", "pkt"],
        "_trigger_event": ["self", "event", "*args", "**kwargs"],
        "disconnect": ["self", "abort", "reason"],
    },
    socketio.Client: {
        "_engineio_client_class": ["self"],
    },
}  # fmt: skip

#: The same for what is called, or replaced in these tests.
USED: dict[type, dict[str, list[str]]] = {
    socketio.Server: {
        "_send_packet": ["self", "eio_sid", "pkt"],
        "_handle_disconnect": ["self", "eio_sid", "namespace", "reason"],
        "_handle_eio_connect": ["self", "eio_sid", "environ"],
        "_handle_eio_disconnect": ["self", "eio_sid", "reason"],
        "disconnect": ["self", "sid", "namespace", "ignore_queue"],
        "on": ["self", "event", "handler", "namespace"],
        "start_background_task": ["self", "target", "*args", "**kwargs"],
        "register_namespace": ["self", "namespace_handler"],
    },
    socketio.Manager: {
        "sid_from_eio_sid": ["self", "eio_sid", "namespace"],
        "is_sid_room": ["self", "namespace", "room"],
        "get_participants": ["self", "namespace", "room"],
        "disconnect": ["self", "sid", "namespace", "**kwargs"],
        "is_connected": ["self", "sid", "namespace"],
        "trigger_callback": ["self", "sid", "id", "data"],
    },
    socketio.PubSubManager: {
        "is_pre_connected": ["self", "sid", "namespace"],
        "_get_logger": ["self"],
        "_handle_emit": ["self", "message"],
        "_handle_close_room": ["self", "message"],
        "can_disconnect": ["self", "sid", "namespace"],
    },
    socketio.RedisManager: {
        "__init__": ["self", "url", "channel", "write_only", "logger", "json", "redis_options"],
        "_publish": ["self", "data"],
        "_listen": ["self"],
        "_get_redis_module": ["self"],
        "_redis_connect": ["self"],
        "_redis_listen_with_retries": ["self"],
    },
    engineio.Server: {
        "send_packet": ["self", "sid", "pkt"],
        "disconnect": ["self", "sid"],
        "create_queue": ["self", "*args", "**kwargs"],
        "generate_id": ["self"],
        "_upgrades": ["self", "sid", "transport"],
        "_trigger_event": ["self", "event", "*args", "**kwargs"],
        "_cors_allowed_origins": ["self", "environ"],
        "_cors_headers": ["self", "environ"],
        "_unauthorized": ["self", "message"],
    },
    flask_socketio.SocketIO: {
        "__init__": ["self", "app", "**kwargs"],
        "_handle_event": ["self", "handler", "message", "namespace", "sid", "*args"],
    },
}

OURS: list[type] = [
    packets.Packet,
    protocol.Server,
    extension.Middleware,
    extension.SocketIO,
    fanout.Manager,
    cluster_postgres.PostgresCluster,
    engine.Engine,
    engine_socket.Socket,
    subscriber_connection.EngineClient,
    subscriber_connection.SocketClient,
]


def parameters(function: Any) -> list[str]:
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(found.kind, "") + name for name, found in inspect.signature(function).parameters.items()]


@pytest.mark.parametrize(
    ("base", "method", "expected"),
    [(base, method, expected) for table in (OVERRIDDEN, USED) for base, methods in table.items()
     for method, expected in methods.items()],
    ids=[f"{base.__name__}.{method}" for table in (OVERRIDDEN, USED) for base, methods in table.items()
         for method in methods],
)  # fmt: skip
def test_the_libraries_internals_are_what_we_build_on(base: type, method: str, expected: list[str]) -> None:
    function = getattr(base, method, None)
    assert function is not None, f"{base.__module__}.{base.__name__}.{method} has gone: look at OURS"
    assert parameters(function) == expected, f"{base.__name__}.{method} has changed: look at OURS"


@pytest.mark.parametrize("ours", OURS, ids=lambda ours: ours.__name__)
def test_the_table_of_overridden_methods_is_complete(ours: type) -> None:
    # Ours may come one upon the other.
    classes = list(itertools.takewhile(lambda found: found.__module__.startswith("socketio_pg."), ours.__mro__))
    base = ours.__mro__[len(classes)]
    functions = [name for one in classes for name, value in vars(one).items() if inspect.isfunction(value)]
    overridden = {name for name in functions if hasattr(base, name)}
    # One that is too many here may be a method that we added, and that a new version has too with another meaning.
    assert overridden == OVERRIDDEN[base].keys()


@pytest.mark.parametrize("name", ["eio", "manager", "environ", "handlers", "namespace_handlers", "not_handled",
                                  "packet_class", "_binary_packet", "async_mode", "async_handlers",
                                  "namespaces"])  # fmt: skip
def test_the_servers_attributes_are_what_we_build_on(name: str) -> None:
    assert hasattr(socketio.Server(async_mode="threading"), name)


def test_what_goes_by_the_queue_is_json_that_the_stock_managers_understand() -> None:
    sent: list[dict[str, Any]] = []
    manager = socketio.PubSubManager(write_only=True)
    manager._publish = sent.append
    manager.emit("a", b"b", room="c", skip_sid=["d"])
    data = [[{"_placeholder": True, "num": 0}], "Yg=="]
    expected = {"method": "emit", "event": "a", "data": data, "binary": True, "namespace": "/", "room": "c"}
    expected |= {"skip_sid": ["d"], "callback": None, "host_id": manager.host_id}
    assert sent == [expected]


def test_the_clients_attributes_are_what_we_build_on() -> None:
    stock = socketio.Client(websocket_extra_options={"skip_utf8_validation": True}).eio
    assert type(stock) is engineio.Client
    assert hasattr(stock, "read_loop_task")
    assert stock.websocket_extra_options == {"skip_utf8_validation": True}
    assert not [name for name in ("heard", "size", "on_disconnect") if hasattr(stock, name)], "those are ours"
    assert engineio.packet.Packet(encoded_packet="4text").data == "text"


@pytest.mark.parametrize("name", ["server", "server_options", "handlers", "namespace_handlers", "manage_session"])
def test_flask_socketios_attributes_are_what_we_build_on(name: str) -> None:
    assert hasattr(flask_socketio.SocketIO(), name)


def test_the_packets_json_is_a_class_attribute_that_only_we_replace() -> None:
    server = Server(async_mode="threading")
    assert server.packet_class is packets.Packet
    assert "json" in vars(socketio.packet.Packet)
    assert socketio.packet.Packet.json is not packets.Packet.json
    assert server.packet_class(socketio.packet.EVENT, data=["a", {"b": "é"}]).encode() == '2["a",{"b":"é"}]'


def test_a_stock_engineio_socket_has_no_attribute_that_ours_lacks() -> None:
    # Ours does not call the stock constructor.
    stock = engineio.Server(async_mode="threading")
    ours = engine.Engine(async_mode="threading")
    assert vars(engineio.socket.Socket(stock, "a")).keys() <= vars(engine_socket.Socket(ours, "a", polling=True)).keys()
