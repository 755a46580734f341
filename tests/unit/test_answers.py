"""Acknowledgements and error events: every request gets an answer, including invalid and failing ones."""

import logging
import threading
from typing import Any

import pytest
import socketio
from socketio.packet import ACK, EVENT

from socketio_pg.core.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
    SocketIOPGError,
)
from socketio_pg.protocol.server import RESERVED_EVENTS, Server
from tests.support.patience import PATIENCE
from tests.support.wire import FAILED, Wire, assert_no_client_state, echo, follow


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("", []),
        (",1", [1]),
        (",null", []),
        (",false", [False]),
        (",[1,2]", [[1, 2]]),
        (",1,2", [1, 2]),
        (',{"a":"é😀"}', [{"a": "é😀"}]),
        (",1180591620717411303424", [2**70]),
    ],
)
def test_acknowledgement_contains_the_result(wire: Wire, arguments: str, answer: list[Any]) -> None:
    wire.connect()
    wire.receive(f'23["echo"{arguments}]')
    assert wire.answers() == [(ACK, 3, answer)]


def test_no_acknowledgement_without_an_id(wire: Wire) -> None:
    wire.connect()
    wire.receive('2["echo",1]')
    assert wire.answers() == []


def test_acknowledgement_id_can_be_zero(wire: Wire) -> None:
    wire.connect()
    wire.receive('20["echo",1]')
    assert wire.answers() == [(ACK, 0, [1])]
    for bad in ('20["nothing"]', "20[1]"):
        wire.receive(bad)
        [(packet_type, id, [answer])] = wire.answers()
        assert (packet_type, id, answer["ok"]) == (ACK, 0, False)


def test_handlers_run_in_the_background_by_default() -> None:
    answered = threading.Event()
    server = Server(async_mode="threading")
    server.on("echo", lambda sid, value: [threading.current_thread() is threading.main_thread(), value])
    wire = Wire(server)
    wire.connect()

    def record(eio_sid: str, packet: Any) -> None:
        wire.sent.append((eio_sid, packet.data))
        answered.set()

    server.eio.send_packet = record
    wire.receive('25["echo",1]')
    assert answered.wait(PATIENCE)
    assert wire.answers() == [(ACK, 5, [[False, 1]])]


ERRORS = [
    SocketIOPGError("something"),
    InvalidRequestError("no"),
    InvalidChannelError("bad name"),
    PayloadTooLargeError("too much"),
    DatabaseUnavailableError("not there"),
    DatabaseTimeoutError("too slow"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_is_answered_with_its_code(server: Server, wire: Wire, error: SocketIOPGError) -> None:
    @server.on("fail")
    def fail(sid: str) -> None:
        raise error

    wire.connect()
    wire.receive('29["fail"]')
    assert wire.answers() == [(ACK, 9, [{"ok": False, "error": {"code": error.code, "message": error.message}}])]
    wire.receive('2["fail"]')
    assert wire.answers() == [(EVENT, None, ["error", {"code": error.code, "message": error.message}])]
    wire.assert_alive()


def test_error_event_contains_the_channel(server: Server, wire: Wire) -> None:
    @server.on("fail")
    def fail(sid: str) -> None:
        raise DatabaseUnavailableError("not there", channel="foo")

    wire.connect()
    wire.receive('2["fail"]')
    wire.receive('21["fail"]')
    wire_form = {"code": "database_unavailable", "message": "not there"}
    assert wire.answers() == [
        (EVENT, None, ["error", {**wire_form, "channel": "foo"}]),
        (ACK, 1, [{"ok": False, "error": wire_form}]),
    ]


@pytest.mark.parametrize(
    "error",
    [ValueError("s3cret"), KeyError("s3cret"), TypeError("s3cret"), OSError(5, "s3cret"), RecursionError("s3cret"),
     UnicodeDecodeError("utf-8", b"s3cret", 0, 1, "s3cret"), StopIteration("s3cret"), AssertionError("s3cret")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_handler_exception_is_logged_and_not_disclosed_to_the_client(
    server: Server, wire: Wire, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    @server.on("fail")
    def fail(sid: str) -> None:
        raise error

    wire.connect()
    wire.receive('21["fail"]')
    wire.receive('2["fail"]')
    assert wire.answers() == [(ACK, 1, [{"ok": False, "error": FAILED}]), (EVENT, None, ["error", FAILED])]
    [logged] = [record for record in caplog.records if record.name == "socketio_pg.protocol"]
    assert logged.levelno == logging.ERROR, "one line: the second error within a second is only counted"
    assert logged.exc_info
    assert logged.exc_info[1] is error
    wire.assert_alive()


@pytest.mark.parametrize("arguments", ["", ",1,2,3"])
def test_wrong_number_of_arguments_is_an_invalid_request(
    server: Server, wire: Wire, caplog: pytest.LogCaptureFixture, arguments: str
) -> None:
    server.on("ping", lambda sid, one: "pong")
    wire.connect()
    wire.receive(f'21["ping"{arguments}]')
    error = {"code": "invalid_request", "message": "this event takes other arguments"}
    assert wire.answers() == [(ACK, 1, [{"ok": False, "error": error}])]
    [logged] = caplog.records
    assert not logged.exc_info, "an error of the client is logged without a traceback"
    wire.assert_alive()


RETURNED = {"lone surrogate": "\ud800", "nested": [], "bytes in a set": {b"x"}, "integer": 10**5000}


for _ in range(2_000):
    RETURNED["nested"] = [RETURNED["nested"]]


@pytest.mark.parametrize("value", RETURNED.values(), ids=RETURNED.keys())
def test_result_that_is_not_json_is_answered_with_an_error(server: Server, wire: Wire, value: object) -> None:
    server.on("give", lambda sid: value)
    wire.connect()
    wire.receive('21["give"]')
    assert wire.answers() == [(ACK, 1, [{"ok": False, "error": FAILED}])]
    wire.assert_alive()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_outside_json_are_answered_with_null(wire: Wire, number: str) -> None:
    wire.connect()
    wire.receive(f'21["echo",{number}]')
    assert wire.answers() == [(ACK, 1, [None])]


@pytest.mark.parametrize(
    "name", ["nothing", "", "Echo", "message", "__class__", "on", "😀", "\\u0000", "**", "\\ud800"]
)
def test_unknown_event_is_an_invalid_request(wire: Wire, name: str) -> None:
    wire.connect()
    wire.receive(f'24["{name}",{{}}]')
    [(packet_type, id, [answer])] = wire.answers()
    assert (packet_type, id, answer["ok"], answer["error"]["code"]) == (ACK, 4, False, "invalid_request")
    wire.receive(f'2["{name}",{{}}]')
    [(packet_type, id, [event, error])] = wire.answers()
    assert (packet_type, id, event, error["code"]) == (EVENT, None, "error", "invalid_request")
    assert error["message"].startswith("there is no event '")
    wire.assert_alive()


def test_long_unknown_event_name_is_truncated_in_the_answer(wire: Wire) -> None:
    wire.connect()
    wire.receive(f'2["{"a" * 100_000}"]')
    assert len(str(wire.sent)) < 500
    assert wire.answers()


@pytest.mark.parametrize("name", sorted(RESERVED_EVENTS))
def test_client_cannot_trigger_reserved_events(server: Server, wire: Wire, name: str) -> None:
    calls: list[str] = []
    wire.connect()
    server.on(name, lambda *arguments: calls.append(name))
    follow(server, disconnected=calls.append)
    wire.receive(f'26["{name}",{{}}]')
    wire.receive(f'2["{name}",{{}}]')
    error = {"code": "invalid_request", "message": f"the event name '{name}' is reserved"}
    assert wire.answers() == [(ACK, 6, [{"ok": False, "error": error}]), (EVENT, None, ["error", error])]
    assert calls == []
    wire.assert_alive()


def test_client_cannot_forge_its_sid_for_a_catch_all_handler(server: Server, wire: Wire) -> None:
    calls: list[tuple[object, ...]] = []
    server.on("*", lambda *arguments: calls.append(arguments))
    sid = wire.connect()
    wire.receive('2["*","the sid of another one",5]')
    [(_, _, [event, error])] = wire.answers()
    assert (event, error["code"]) == ("error", "invalid_request")
    wire.receive('2["anything",5]')
    assert calls == [("anything", sid, 5)]


def test_reserved_events_of_the_library_are_reserved() -> None:
    assert set(socketio.Server.reserved_events) <= RESERVED_EVENTS


def test_answer_has_the_namespace_of_the_request(server: Server, wire: Wire) -> None:
    server.on("echo", echo, namespace="/chat")
    wire.connect(namespace="/chat")
    for request_text in ('2/chat,1["echo",5]', '2/chat,2["nothing"]', '2/chat,["nothing"]', "2/chat,[1]"):
        wire.receive(request_text)
    assert [str(data).split(",")[0] for _, data in wire.sent] == ["3/chat", "3/chat", "2/chat", "2/chat"]


@pytest.mark.parametrize(
    "data",
    [
        '2["note"]',
        '21["note"]',
        "2{}",
        "2abc",
        '51-["note",{"_placeholder":true,"num":0}]',
        b"x",
        "1",
        '31["x"]',
        '4"x"',
    ],
)
def test_any_packet_before_connect_closes_the_connection(server: Server, wire: Wire, data: str | bytes) -> None:
    calls: list[str] = []
    server.on("note", lambda sid: calls.append(sid))
    wire.open()
    wire.receive(data)
    assert calls == []
    assert wire.answers() == []
    assert wire.closed == ["eio1"]
    wire.receive("0")
    assert wire.answers() == []
    assert_no_client_state(server)
