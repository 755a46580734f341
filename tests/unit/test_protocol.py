"""The Socket.IO server: how clients connect."""

from collections.abc import Callable
from typing import Any

import greenlet  # type: ignore[import-untyped]
import pytest
import socketio
from socketio.packet import CONNECT, CONNECT_ERROR, EVENT

from socketio_pg.core import green
from socketio_pg.core.errors import SocketIOPGError, UnauthorizedError
from socketio_pg.protocol.server import Server
from tests.support.wire import FAILED, Wire, assert_no_client_state, echo, follow


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
    assert wire.closed == ["eio1"]


@pytest.mark.parametrize(
    "refusal",
    [lambda *arguments: False, ConnectionRefusedError("no"), socketio.exceptions.ConnectionRefusedError("no")],
    ids=["False", "Python's error", "the library's error"],
)
def test_on_connected_is_not_called_for_a_refused_client(server: Server, wire: Wire, refusal: Any) -> None:
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
    # The identity is removed again.
    [(_, sid), _] = calls
    assert calls == [("identified", sid), ("disconnected", sid)]
    assert_no_client_state(server)


@pytest.mark.parametrize("error", [ValueError("s3cret"), TypeError("s3cret"), SocketIOPGError("s3cret")], ids=repr)
def test_failing_connect_handler_refuses_the_client(
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
    # The transport stays open, and the client may retry.
    failing = False
    wire.receive("0")
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT]
    assert calls == ["connected"]
    wire.assert_alive()
    wire.close()
    assert calls == ["connected", "disconnected"]
    assert_no_client_state(server)


def test_clients_of_other_namespaces_are_identified_but_not_connected(server: Server, wire: Wire) -> None:
    calls: list[tuple[str, ...]] = []
    server.on("echo", echo, namespace="/chat")
    follow(server, identify=lambda environ, auth, namespace: auth)
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
def test_client_that_cannot_be_identified_is_refused(
    server: Server, wire: Wire, error: Exception, namespace: str
) -> None:
    def identify(environ: dict[str, Any], auth: object, namespace: str) -> object:
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
    assert_no_client_state(server)


def test_second_connect_does_not_change_the_identity(server: Server, wire: Wire) -> None:
    identities: list[object] = []
    follow(server, identify=lambda environ, auth, namespace: auth)
    follow(server, identified=lambda sid, namespace, identity: identities.append(identity))
    wire.open()
    wire.receive('0"me"')
    wire.receive('0"another"')
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT, EVENT]
    assert wire.closed == ["eio1"]
    assert identities == ["me"]


def test_connect_that_overtakes_another_wins(server: Server, wire: Wire) -> None:
    """A CONNECT over the new transport is handled while one over the old transport is still identified."""

    def identify(environ: dict[str, Any], auth: object, namespace: str) -> object:
        if auth == "slow":
            wire.receive('0"fast"')
        return auth

    calls: list[tuple[str, object]] = []
    follow(server, identify=identify)
    follow(server, identified=lambda sid, namespace, identity: calls.append(("identified", identity)))
    follow(server, connected=lambda sid: calls.append(("connected", sid)))
    follow(server, disconnected=lambda sid: calls.append(("disconnected", sid)))
    wire.open()
    wire.receive('0"slow"')
    sid = server.manager.sid_from_eio_sid("eio1", "/")
    [first, second] = wire.answers()
    assert first == (CONNECT, None, {"sid": sid})
    assert second == (CONNECT_ERROR, None, {"message": "Unable to connect"})
    assert calls == [("identified", "fast"), ("connected", sid)]
    server.on("echo", echo)
    wire.assert_alive()
    wire.close()
    assert calls[2:] == [("disconnected", sid)]
    assert_no_client_state(server)


#: A lone surrogate, which a client can send and no server can send back.
UNENCODABLE = "\ud800"


def emit_unencodable(server: Server, sid: str, namespace: str) -> None:
    server.emit("early", {"token": UNENCODABLE}, to=sid, namespace=namespace)


def emit_unencodable_with_callback(server: Server, sid: str, namespace: str) -> None:
    server.emit("early", {"token": UNENCODABLE}, to=sid, namespace=namespace, callback=lambda: None)


def refuse_with_unencodable(server: Server, sid: str, namespace: str) -> None:
    raise socketio.exceptions.ConnectionRefusedError("no", {"token": UNENCODABLE})


def emit_and_refuse(server: Server, sid: str, namespace: str) -> None:
    server.emit("early", "x", to=sid, namespace=namespace)
    raise ConnectionRefusedError


def time_out(server: Server, sid: str, namespace: str) -> None:
    server.emit("early", "x", to=sid, namespace=namespace)
    raise green.Timeout


@pytest.mark.parametrize(
    "decide",
    [emit_unencodable, emit_unencodable_with_callback, refuse_with_unencodable, emit_and_refuse, time_out],
    ids=lambda decide: decide.__name__,
)
@pytest.mark.parametrize("namespace", ["/", "/chat"])
def test_client_whose_connect_handler_fails_in_any_way_leaves_no_state(
    server: Server, wire: Wire, namespace: str, decide: Callable[[Server, str, str], None]
) -> None:
    calls: list[tuple[str, str]] = []
    server.on("connect", lambda sid, environ, auth: decide(server, sid, namespace), namespace=namespace)
    follow(server, identified=lambda sid, namespace, identity: calls.append(("identified", sid)))
    follow(server, connected=lambda sid: calls.append(("connected", sid)))
    follow(server, disconnected=lambda sid: calls.append(("disconnected", sid)))
    wire.open()
    wire.receive("0" if namespace == "/" else f"0{namespace},")
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT_ERROR]
    [(_, sid), *rest] = calls
    assert rest == [("disconnected", sid)]
    wire.close()
    assert rest == [("disconnected", sid)]
    assert_no_client_state(server)


def test_connect_handler_that_is_killed_leaves_no_state(server: Server, wire: Wire) -> None:
    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        raise greenlet.GreenletExit

    gone: list[str] = []
    follow(server, disconnected=gone.append)
    wire.open()
    with pytest.raises(greenlet.GreenletExit):
        wire.receive("0")
    assert len(gone) == 1
    wire.close()
    assert len(gone) == 1
    assert_no_client_state(server)


def test_events_of_a_connect_handler_are_those_at_the_time_of_the_emit(server: Server, wire: Wire) -> None:
    changed: dict[str, Any] = {"x": 1}

    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        server.emit("early", changed, to=sid)
        changed["x"] = UNENCODABLE
        server.emit("early", "next", to=sid)

    joined: list[str] = []
    follow(server, connected=joined.append)
    wire.open()
    wire.receive("0")
    assert [data for _, _, data in wire.answers()][1:] == [["early", {"x": 1}], ["early", "next"]]
    assert len(joined) == 1


@pytest.mark.parametrize("answer", [None, False], ids=["admitted", "refused"])
def test_client_in_its_connect_handler_gets_broadcasts_after_the_answer(
    server: Server, wire: Wire, answer: object
) -> None:
    """It is in its rooms already, but not connected. A refused client gets none of them."""

    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> object:
        manager = server.manager
        assert manager.is_pre_connected(sid, "/")
        assert not manager.is_connected(sid, "/")
        server.enter_room(sid, "room")
        server.emit("all")
        server.emit("room", to="room")
        server.emit("other", to="other")
        server.emit("skipped", skip_sid=sid)
        assert wire.answers() == []
        return answer

    wire.open()
    wire.receive("0")
    (packet_type, _, _), *events = wire.answers()
    assert packet_type == (CONNECT if answer is None else CONNECT_ERROR)
    assert [data for _, _, data in events] == ([["all"], ["room"]] if answer is None else [])
    server.emit("later", to="room")
    assert [data for _, _, data in wire.answers()] == ([["later"]] if answer is None else [])
    wire.close()
    assert_no_client_state(server)


def test_early_event_that_can_no_longer_be_encoded_is_lost_alone(server: Server, wire: Wire) -> None:
    changed: dict[str, Any] = {"x": b"1"}
    joined: list[str] = []

    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        server.emit("early", changed, to=sid)
        changed["x"] = UNENCODABLE
        server.emit("early", "next", to=sid)

    follow(server, connected=joined.append)
    wire.open()
    wire.receive("0")
    assert [data for _, _, data in wire.answers()][1:] == [["early", "next"]]
    assert len(joined) == 1
    wire.close()
    assert_no_client_state(server)
