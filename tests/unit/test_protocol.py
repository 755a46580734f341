"""socketio_pg.protocol: clients come in and leave, and nobody leaves anything behind."""

from collections.abc import Callable
from typing import Any

import pytest
import socketio
from socketio.packet import CONNECT, CONNECT_ERROR, DISCONNECT, EVENT

from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError, UnauthorizedError
from socketio_pg.protocol.server import Server
from tests.support.wire import FAILED, Wire, assert_nobody, echo, follow

# -- connecting --------------------------------------------------------------------------------------------------------


def test_on_connected_is_called_once_after_the_connect_packet(server: Server, wire: Wire) -> None:
    seen: list[tuple[str, list[int]]] = []

    def connected(sid: str) -> None:
        seen.append((sid, [packet_type for packet_type, _, _ in wire.answers()]))
        server.emit("hello", {"sid": sid}, to=sid)

    follow(server, connected=connected)
    wire.open()
    wire.receive('0{"token":"x"}')
    [(sid, before)] = seen
    assert before == [CONNECT]
    assert wire.answers() == [(EVENT, None, ["hello", {"sid": sid}])]
    wire.receive("0")
    assert len(seen) == 1
    assert wire.hung_up == ["eio1"]


@pytest.mark.parametrize(
    "refusal",
    [lambda *arguments: False, ConnectionRefusedError("no"), socketio.exceptions.ConnectionRefusedError("no")],
    ids=["False", "Python's error", "the library's error"],
)
def test_on_connected_is_not_called_for_one_who_is_refused(server: Server, wire: Wire, refusal: Any) -> None:
    def refuse(sid: str, environ: dict[str, Any], auth: Any) -> Any:
        if isinstance(refusal, Exception):
            raise refusal
        return refusal()

    calls: list[tuple[str, str]] = []
    server.on("connect", refuse)
    follow(server, identified=lambda sid, namespace, identity: calls.append(("identified", sid)))
    follow(server, connected=lambda sid: calls.append(("connected", sid)))
    follow(server, disconnected=lambda sid: calls.append(("disconnected", sid)))
    wire.open()
    wire.receive("0")
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT_ERROR]
    wire.close()
    # Who was identified is forgotten again.
    [(_, sid), _] = calls
    assert calls == [("identified", sid), ("disconnected", sid)]
    assert_nobody(server)


@pytest.mark.parametrize("error", [ValueError("s3cret"), TypeError("s3cret"), SocketIOPGError("s3cret")], ids=repr)
def test_a_connect_handler_that_fails_refuses_the_client(
    server: Server, wire: Wire, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    failing = True
    calls: list[str] = []

    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        if failing:
            raise error

    follow(server, connected=lambda sid: calls.append("connected"))
    follow(server, disconnected=lambda sid: calls.append("disconnected"))
    wire.open()
    wire.receive("0")
    assert wire.answers() == [(CONNECT_ERROR, None, {"message": FAILED["message"], "data": FAILED})]
    assert "connected" not in calls
    calls.clear()
    assert any(record.exc_info and record.exc_info[1] is error for record in caplog.records)
    # The transport is still there, and the client may try again.
    failing = False
    wire.receive("0")
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT]
    assert calls == ["connected"]
    wire.assert_alive()
    wire.close()
    assert calls == ["connected", "disconnected"]
    assert_nobody(server)


def test_clients_of_other_namespaces_are_identified_and_are_no_subscribers(server: Server, wire: Wire) -> None:
    calls: list[tuple[str, ...]] = []
    server.on("echo", echo, namespace="/chat")
    follow(server, identify=lambda environ, auth: auth)
    follow(server, identified=lambda sid, namespace, identity: calls.append(("identified", sid, namespace, identity)))
    follow(server, connected=lambda sid: calls.append(("connected", sid)))
    follow(server, disconnected=lambda sid: calls.append(("disconnected", sid)))
    wire.open()
    wire.receive('0/chat,"me"')
    of_chat = server.manager.sid_from_eio_sid("eio1", "/chat")
    wire.receive("1/chat,")
    assert calls == [("identified", of_chat, "/chat", "me"), ("disconnected", of_chat)]
    calls.clear()
    wire.receive('0"you"')
    sid = server.manager.sid_from_eio_sid("eio1", "/")
    assert calls == [("identified", sid, "/", "you"), ("connected", sid)]


@pytest.mark.parametrize("namespace", ["/", "/chat"])
@pytest.mark.parametrize("error", [UnauthorizedError("who are you?"), ValueError("s3cret")], ids=repr)
def test_who_is_not_identified_is_refused(server: Server, wire: Wire, error: Exception, namespace: str) -> None:
    def identify(environ: dict[str, Any], auth: object) -> object:
        assert environ["REMOTE_ADDR"] == "192.0.2.1"
        raise error

    calls: list[str] = []
    server.on("connect", lambda *arguments: calls.append("handler"), namespace=namespace)
    follow(server, identify=identify)
    follow(server, identified=lambda *arguments: calls.append("identified"))
    follow(
        server, connected=lambda sid: calls.append("connected"), disconnected=lambda sid: calls.append("disconnected")
    )
    wire.open()
    wire.receive("0" if namespace == "/" else f"0{namespace},")
    wanted = error.to_wire() if isinstance(error, UnauthorizedError) else FAILED
    [(packet_type, _, data)] = wire.answers()
    assert (packet_type, data) == (CONNECT_ERROR, {"message": wanted["message"], "data": wanted})
    wire.close()
    assert calls == []
    assert_nobody(server)


def test_a_second_connect_changes_nobodys_identity(server: Server, wire: Wire) -> None:
    identities: list[object] = []
    follow(server, identify=lambda environ, auth: auth)
    follow(server, identified=lambda sid, namespace, identity: identities.append(identity))
    wire.open()
    wire.receive('0"me"')
    wire.receive('0"somebody else"')
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT, EVENT]
    assert wire.hung_up == ["eio1"]
    assert identities == ["me"]


# -- leaving -----------------------------------------------------------------------------------------------------------
WAYS_OUT: dict[str, Callable[[Wire, str], None]] = {
    "the client says so": lambda wire, sid: wire.receive("1"),
    "the transport closes": lambda wire, sid: wire.close(),
    "the server says so": lambda wire, sid: wire.server.disconnect(sid),
}


@pytest.fixture(params=WAYS_OUT)
def leave(request: pytest.FixtureRequest) -> Callable[[Wire, str], None]:
    return WAYS_OUT[request.param]


def test_on_disconnected_is_called_once_on_every_way_out(
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
    assert_nobody(server)


def test_on_disconnected_comes_beside_the_applications_own_handler(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None]
) -> None:
    gone: list[tuple[str, str]] = []
    server.on("disconnect", lambda sid, reason: gone.append(("theirs", sid)))
    follow(server, disconnected=lambda sid: gone.append(("ours", sid)))
    sid = wire.connect()
    leave(wire, sid)
    assert sorted(gone) == [("ours", sid), ("theirs", sid)]


def test_a_legacy_disconnect_handler_does_not_make_it_twice(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None]
) -> None:
    # python-socketio calls a handler again, without the reason, when it raised TypeError.
    gone: list[str] = []
    server.on("disconnect", lambda sid: None)
    follow(server, disconnected=gone.append)
    sid = wire.connect()
    leave(wire, sid)
    assert gone == [sid]


@pytest.mark.parametrize("error", [RuntimeError("failed"), ValueError("failed"), TypeError("failed")], ids=repr)
def test_a_disconnect_handler_that_fails_leaves_nothing_behind(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None], error: Exception
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
        wire.close()  # Engine.IO logs what was raised, and goes on
    assert gone == [sid]
    assert_nobody(server)


def test_who_leaves_in_the_middle_of_a_request_is_not_answered(server: Server, wire: Wire) -> None:
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
        assert_nobody(server)


def test_after_saying_goodbye_a_client_can_come_back_on_the_same_transport(server: Server, wire: Wire) -> None:
    calls: list[str] = []
    follow(server, connected=lambda sid: calls.append("connected"))
    follow(server, disconnected=lambda sid: calls.append("disconnected"))
    first = wire.connect()
    wire.receive("1")
    wire.receive("0")
    second = server.manager.sid_from_eio_sid("eio1", "/")
    assert second not in (None, first)
    assert calls == ["connected", "disconnected", "connected"]


def test_one_clients_failures_do_not_touch_another(server: Server, wire: Wire) -> None:
    wire.connect("eio1")
    wire.connect("eio2")
    for packet in ('2["nothing"]', "2[1]", "2{}", "2abc", "9", b"x", '51-["echo",{"_placeholder":true,"num":0}]'):
        wire.receive(packet, "eio1")
    assert not [to for to, _ in wire.sent if to == "eio2"]
    wire.sent.clear()
    wire.assert_alive("eio2")


def test_a_disconnect_packet_is_what_the_server_sends(server: Server, wire: Wire) -> None:
    # The stock way out, by which clients are told not to come back; drain() goes another way for that reason.
    server.disconnect(wire.connect())
    assert [packet_type for packet_type, _, _ in wire.answers()] == [DISCONNECT]
