"""The Socket.IO server: how clients leave, and what is left of them."""

from collections.abc import Callable
from typing import Any

import pytest
from socketio.packet import CONNECT_ERROR, DISCONNECT

from socketio_pg.core import green
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.protocol.server import Server
from tests.support.wire import Wire, assert_no_client_state, echo, follow

DISCONNECTS: dict[str, Callable[[Wire, str], None]] = {
    "client disconnects": lambda wire, sid: wire.receive("1"),
    "transport closes": lambda wire, sid: wire.close(),
    "server disconnects": lambda wire, sid: wire.server.disconnect(sid),
}


@pytest.fixture(params=DISCONNECTS)
def leave(request: pytest.FixtureRequest) -> Callable[[Wire, str], None]:
    return DISCONNECTS[request.param]


def test_on_disconnected_is_called_once_for_every_disconnect(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None]
) -> None:
    gone: list[str] = []
    follow(server, disconnected=gone.append)
    sid = wire.connect()
    server.enter_room(sid, "foo")
    leave(wire, sid)
    assert gone == [sid]
    wire.close()
    assert gone == [sid]
    assert_no_client_state(server)


@pytest.mark.parametrize("namespace", [None, "/", "/chat"])
@pytest.mark.parametrize("ignore_queue", [False, True])
def test_client_that_the_server_disconnects_during_its_connect_handler_is_refused(
    server: Server, wire: Wire, namespace: str | None, ignore_queue: bool
) -> None:
    @server.on("connect", namespace=namespace)
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        server.emit("early", to=sid, namespace=namespace)
        server.disconnect(sid, namespace, ignore_queue=ignore_queue)

    calls: list[str] = []
    server.on("disconnect", lambda sid, reason: calls.append("handler"), namespace=namespace)
    follow(server, connected=lambda sid: calls.append("connected"))
    follow(server, disconnected=lambda sid: calls.append("disconnected"))
    wire.open()
    wire.receive("0/chat," if namespace == "/chat" else "0")
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT_ERROR]
    assert calls == ["disconnected"]
    wire.close()
    assert calls == ["disconnected"]
    assert_no_client_state(server)


@pytest.mark.parametrize("answer", [True, False, ValueError("failed")], ids=repr)
def test_on_disconnected_is_called_for_a_client_that_leaves_during_its_connect_handler(
    server: Server, wire: Wire, answer: object
) -> None:
    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> object:
        wire.close()
        if isinstance(answer, Exception):
            raise answer
        return answer

    calls: list[tuple[str, str]] = []
    follow(server, identified=lambda sid, namespace, identity: calls.append(("identified", sid)))
    follow(server, connected=lambda sid: calls.append(("connected", sid)))
    follow(server, disconnected=lambda sid: calls.append(("disconnected", sid)))
    wire.open()
    wire.receive("0")
    [(_, sid), *rest] = calls
    assert rest == [("disconnected", sid)]
    assert_no_client_state(server)


def test_on_disconnected_is_called_besides_the_applications_handler(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None]
) -> None:
    gone: list[tuple[str, str]] = []
    server.on("disconnect", lambda sid, reason: gone.append(("theirs", sid)))
    follow(server, disconnected=lambda sid: gone.append(("ours", sid)))
    sid = wire.connect()
    leave(wire, sid)
    assert sorted(gone) == [("ours", sid), ("theirs", sid)]


def test_legacy_disconnect_handler_causes_no_second_call(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None]
) -> None:
    # python-socketio calls a handler that raised TypeError again, without the reason.
    gone: list[str] = []
    server.on("disconnect", lambda sid: None)
    follow(server, disconnected=gone.append)
    sid = wire.connect()
    leave(wire, sid)
    assert gone == [sid]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("failed"), ValueError("failed"), TypeError("failed"), green.Timeout()],
    ids=lambda error: type(error).__name__,
)
def test_failing_disconnect_handler_leaves_no_state(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None], error: BaseException
) -> None:
    @server.on("disconnect")
    def disconnect(sid: str, reason: str) -> None:
        raise error

    gone: list[str] = []
    follow(server, disconnected=gone.append)
    sid = wire.connect()
    server.enter_room(sid, "foo")
    try:
        leave(wire, sid)
        wire.close()
    except type(error):
        wire.close()  # Engine.IO logs the exception and continues
    assert gone == [sid]
    assert_no_client_state(server)


@pytest.mark.parametrize("others", [False, True], ids=["", "others are in the namespace"])
def test_connect_while_the_connection_closes_is_ignored(server: Server, wire: Wire, others: bool) -> None:
    """The disconnect handler of another namespace may wait, while packets still arrive."""
    server.on("echo", echo, namespace="/chat")
    calls: list[str] = []
    if others:
        wire.connect("eio2", namespace="/chat")
    follow(server, identified=lambda sid, namespace, identity: calls.append(namespace))
    follow(server, disconnected=lambda sid: calls.append("disconnected"))

    @server.on("disconnect")
    def disconnect(sid: str, reason: str) -> None:
        wire.receive("0/chat,")
        wire.receive('2/chat,1["echo"]')

    wire.connect()
    wire.close()
    assert calls == ["/", "disconnected"]
    assert wire.answers() == []
    wire.close("eio2")
    assert_no_client_state(server)


def test_client_that_connects_while_the_connection_closes_leaves(server: Server, wire: Wire) -> None:
    """The connection closes while the connect handler of a second namespace waits, and is not closed at its end."""
    calls: list[str] = []
    follow(server, connected=lambda sid: calls.append("connected"))
    follow(server, disconnected=lambda sid: calls.append("disconnected"))

    @server.on("connect", namespace="/chat")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        server._connections["eio1"].closing = True

    wire.connect()
    wire.receive("0/chat,")
    assert calls == ["connected", "disconnected"]
    wire.close()
    assert calls == ["connected", "disconnected", "disconnected"]
    assert_no_client_state(server)


def test_client_that_disconnects_during_a_request_gets_no_answer(server: Server, wire: Wire) -> None:
    def leave_and_answer(sid: str) -> str:
        wire.close()
        return "too late"

    def leave_and_fail(sid: str) -> None:
        wire.close()
        raise InvalidRequestError("too late")

    server.on("leave and answer", leave_and_answer)
    server.on("leave and fail", leave_and_fail)
    for packet in ('21["leave and answer"]', '2["leave and fail"]', '21["leave and fail"]'):
        wire.connect()
        wire.receive(packet)
        assert_no_client_state(server)


def test_client_can_reconnect_on_the_same_transport(server: Server, wire: Wire) -> None:
    calls: list[str] = []
    follow(server, connected=lambda sid: calls.append("connected"))
    follow(server, disconnected=lambda sid: calls.append("disconnected"))
    first = wire.connect()
    wire.receive("1")
    wire.receive("0")
    second = server.manager.sid_from_eio_sid("eio1", "/")
    assert second not in (None, first)
    assert calls == ["connected", "disconnected", "connected"]


def test_errors_of_one_client_do_not_affect_another(server: Server, wire: Wire) -> None:
    wire.connect("eio1")
    wire.connect("eio2")
    for packet in ('2["nothing"]', "2[1]", "2{}", "2abc", "9", b"x", '51-["echo",{"_placeholder":true,"num":0}]'):
        wire.receive(packet, "eio1")
    assert not [to for to, _ in wire.sent if to == "eio2"]
    wire.sent.clear()
    wire.assert_alive("eio2")


def test_server_disconnect_sends_a_disconnect_packet(server: Server, wire: Wire) -> None:
    # Clients do not reconnect after a disconnect packet, so drain() does not use it.
    server.disconnect(wire.connect())
    assert [packet_type for packet_type, _, _ in wire.answers()] == [DISCONNECT]
