"""socketio_pg.protocol: every request is answered, whatever was sent, and nobody leaves anything behind.

The server is driven at its border with Engine.IO: strings go in as the transport would hand them over, and what would
go to the transport is recorded.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import flask_socketio
import pytest
import socketio
from flask import Flask, request
from socketio.packet import ACK, BINARY_ACK, CONNECT, CONNECT_ERROR, DISCONNECT, EVENT

from socketio_pg.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
    SocketIOPGError,
    UnauthorizedError,
)
from socketio_pg.extension import SocketIO
from socketio_pg.protocol import RESERVED_EVENTS, Server

#: What a client hears when the fault is ours: nothing about the inside.
FAILED = {"code": "internal", "message": "the server failed to handle this"}


class Wire:
    """The transport's side of a server, with any number of clients, each known by its Engine.IO id."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sent: list[tuple[str, str | bytes]] = []
        #: The clients whose connections the server has closed.
        self.hung_up: list[str] = []
        server.eio.send_packet = self._record
        server.eio.disconnect = self._hang_up

    def _record(self, eio_sid: str, packet: Any) -> None:
        if isinstance(packet.data, str):
            packet.data.encode()  # what is no UTF-8 would cost the client its connection
        self.sent.append((eio_sid, packet.data))

    def _hang_up(self, eio_sid: str) -> None:
        self.hung_up.append(eio_sid)
        self.close(eio_sid)

    def open(self, client: str = "eio1") -> None:
        self.server._handle_eio_connect(client, {"REMOTE_ADDR": "192.0.2.1"})

    def connect(self, client: str = "eio1", namespace: str = "/") -> str:
        """A client that is connected; returns its sid. What it was sent so far is forgotten."""
        self.open(client)
        self.receive("0" if namespace == "/" else f"0{namespace},", client)
        sid = self.server.manager.sid_from_eio_sid(client, namespace)
        assert isinstance(sid, str)
        self.sent.clear()
        return sid

    def receive(self, data: str | bytes, client: str = "eio1") -> None:
        """The client sent ``data``."""
        self.server._handle_eio_message(client, data)

    def close(self, client: str = "eio1") -> None:
        """The client's transport has gone."""
        self.server._handle_eio_disconnect(client, "transport close")

    def answers(self, client: str = "eio1") -> list[tuple[int, int | None, Any]]:
        """What was sent to the client since the last call: (packet type, id, data)."""
        # Decoded by the stock class: clients are no different.
        packets = [socketio.packet.Packet(encoded_packet=data) for to, data in self.sent if to == client]
        self.sent.clear()
        return [(packet.packet_type, packet.id, packet.data) for packet in packets]

    def assert_hung_up(self, client: str = "eio1") -> None:
        """The client was told why in an event `error`, and its connection closed; nothing of it is left."""
        [(packet_type, id, [event, error])] = self.answers(client)
        assert (packet_type, id, event, error["code"]) == (EVENT, None, "error", "invalid_request")
        assert error.keys() == {"code", "message"}
        assert self.hung_up == [client]
        self.receive('2777["echo","dead"]', client)
        self.receive("0", client)
        assert self.answers(client) == []
        assert_nobody(self.server)

    def assert_alive(self, client: str = "eio1") -> None:
        """The connection goes on: the next request is answered, and nothing else comes."""
        self.receive('2777["echo","alive"]', client)
        assert self.answers(client) == [(ACK, 777, ["alive"])]


def echo(sid: str, *arguments: Any) -> Any:
    return arguments[0] if len(arguments) == 1 else arguments


@pytest.fixture
def server() -> Server:
    server = Server(async_mode="threading", async_handlers=False)
    server.on("echo", echo)
    return server


@pytest.fixture
def wire(server: Server) -> Wire:
    return Wire(server)


# -- requests and their answers ----------------------------------------------------------------------------------------


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
def test_the_result_is_the_acknowledgement(wire: Wire, arguments: str, answer: list[Any]) -> None:
    wire.connect()
    wire.receive(f'23["echo"{arguments}]')
    assert wire.answers() == [(ACK, 3, answer)]


def test_no_acknowledgement_unless_asked_for(wire: Wire) -> None:
    wire.connect()
    wire.receive('2["echo",1]')
    assert wire.answers() == []


def test_an_acknowledgement_may_have_the_id_zero(wire: Wire) -> None:
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
    assert answered.wait(10)
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
def test_an_error_of_ours_is_answered_with_its_code(server: Server, wire: Wire, error: SocketIOPGError) -> None:
    @server.on("fail")
    def fail(sid: str) -> None:
        raise error

    wire.connect()
    wire.receive('29["fail"]')
    assert wire.answers() == [(ACK, 9, [{"ok": False, "error": {"code": error.code, "message": error.message}}])]
    wire.receive('2["fail"]')
    assert wire.answers() == [(EVENT, None, ["error", {"code": error.code, "message": error.message}])]
    wire.assert_alive()


def test_the_error_event_names_the_channel(server: Server, wire: Wire) -> None:
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
def test_a_handler_that_fails_is_logged_and_answered_without_the_inside(
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
    assert logged.levelno == logging.ERROR, "once; the second one within a second is counted"
    assert logged.exc_info
    assert logged.exc_info[1] is error
    wire.assert_alive()


@pytest.mark.parametrize("arguments", ["", ",1,2,3"])
def test_a_handler_called_with_other_arguments_is_answered(
    server: Server, wire: Wire, caplog: pytest.LogCaptureFixture, arguments: str
) -> None:
    server.on("ping", lambda sid, one: "pong")
    wire.connect()
    wire.receive(f'21["ping"{arguments}]')
    error = {"code": "invalid_request", "message": "this event takes other arguments"}
    assert wire.answers() == [(ACK, 1, [{"ok": False, "error": error}])]
    [logged] = caplog.records
    assert not logged.exc_info, "the client's fault: a line and no traceback"
    wire.assert_alive()


RETURNED = {"lone surrogate": "\ud800", "nested": [], "bytes in a set": {b"x"}, "integer": 10**5000}
for _ in range(2_000):
    RETURNED["nested"] = [RETURNED["nested"]]


@pytest.mark.parametrize("value", RETURNED.values(), ids=RETURNED.keys())
def test_a_result_that_json_cannot_carry_is_answered(server: Server, wire: Wire, value: object) -> None:
    server.on("give", lambda sid: value)
    wire.connect()
    wire.receive('21["give"]')
    assert wire.answers() == [(ACK, 1, [{"ok": False, "error": FAILED}])]
    wire.assert_alive()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_has_not_are_not_sent_back(wire: Wire, number: str) -> None:
    wire.connect()
    wire.receive(f'21["echo",{number}]')
    assert wire.answers() == [(ACK, 1, [None])]


@pytest.mark.parametrize(
    "name", ["nothing", "", "Echo", "message", "__class__", "on", "😀", "\\u0000", "**", "\\ud800"]
)
def test_an_unknown_event_is_answered(wire: Wire, name: str) -> None:
    wire.connect()
    wire.receive(f'24["{name}",{{}}]')
    [(packet_type, id, [answer])] = wire.answers()
    assert (packet_type, id, answer["ok"], answer["error"]["code"]) == (ACK, 4, False, "invalid_request")
    wire.receive(f'2["{name}",{{}}]')
    [(packet_type, id, [event, error])] = wire.answers()
    assert (packet_type, id, event, error["code"]) == (EVENT, None, "error", "invalid_request")
    assert error["message"].startswith("there is no event '")
    wire.assert_alive()


def test_an_unknown_event_with_a_long_name_is_not_sent_back_in_full(wire: Wire) -> None:
    wire.connect()
    wire.receive(f'2["{"a" * 100_000}"]')
    assert len(str(wire.sent)) < 500
    assert wire.answers()


@pytest.mark.parametrize("name", sorted(RESERVED_EVENTS))
def test_a_client_cannot_raise_the_events_of_the_library(server: Server, wire: Wire, name: str) -> None:
    calls: list[str] = []
    wire.connect()
    server.on(name, lambda *arguments: calls.append(name))
    server.on_disconnected = calls.append
    wire.receive(f'26["{name}",{{}}]')
    wire.receive(f'2["{name}",{{}}]')
    error = {"code": "invalid_request", "message": f"the event name '{name}' is reserved"}
    assert wire.answers() == [(ACK, 6, [{"ok": False, "error": error}]), (EVENT, None, ["error", error])]
    assert calls == []
    wire.assert_alive()


def test_a_client_cannot_say_that_it_is_another_one_to_a_handler_of_all_events(server: Server, wire: Wire) -> None:
    calls: list[tuple[object, ...]] = []
    server.on("*", lambda *arguments: calls.append(arguments))
    sid = wire.connect()
    wire.receive('2["*","the sid of another one",5]')
    [(_, _, [event, error])] = wire.answers()
    assert (event, error["code"]) == ("error", "invalid_request")
    wire.receive('2["anything",5]')
    assert calls == [("anything", sid, 5)]


def test_the_libraries_own_events_are_reserved() -> None:
    assert set(socketio.Server.reserved_events) <= RESERVED_EVENTS


def test_answers_come_in_the_namespace_of_the_request(server: Server, wire: Wire) -> None:
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
def test_before_connect_everything_else_hangs_up(server: Server, wire: Wire, data: str | bytes) -> None:
    calls: list[str] = []
    server.on("note", lambda sid: calls.append(sid))
    wire.open()
    wire.receive(data)
    assert calls == []
    assert wire.answers() == []
    assert wire.hung_up == ["eio1"]
    wire.receive("0")
    assert wire.answers() == []
    assert_nobody(server)


# -- packets that are none ---------------------------------------------------------------------------------------------

BAD_PACKETS: dict[str, str | bytes] = {
    "no data": "2",
    "no data, an id": "212",
    "an object": "2{}",
    "an object, an id": "212{}",
    "an object with an event": '2{"event":"echo"}',
    "an empty list": "2[]",
    "an empty list, an id": "212[]",
    "a number": "2-5",
    "null": "2null",
    "a string": '2"echo"',
    "no JSON": "2abc",
    "open list": '2["echo"',
    "open string": '2["echo',
    "two values": '2["echo"]["echo"]',
    "endless nesting": "2" + "[" * 50_000,
    "endless nesting, closed": "2" + "[" * 30_000 + "]" * 30_000,
    "a digit that is no ASCII": '2²["echo"]',
    "an id of letters": '2abc["echo"]',
    "a negative id": '2-1["echo"]',
    "an id that is a fraction": '21.5["echo"]',
    "an id of 17 digits": '210000000000000000["echo"]',
    "an id beyond the integers of JavaScript": '29007199254740992["echo"]',
    "an id of 200 digits": "2" + "9" * 200 + '["echo"]',
    "a number of 5,000 digits": '2["echo",' + "9" * 5_000 + "]",
    "an acknowledgement without data": "31",
    "an acknowledgement of nothing": "3",
    "an acknowledgement that is an object": "31{}",
    "an acknowledgement that is no JSON": "31abc",
    "a goodbye with data": '1"x"',
    "empty": "",
    "letters": "hello",
    "HTTP": "GET / HTTP/1.1",
    "minus": "-1",
    "an unknown type": "7",
    "type 9": '9["echo"]',
    "CONNECT_ERROR": '4{"message":"no"}',
    "a second CONNECT": "0",
    "a namespace with a line break": '2/a\r\nERROR forged,["echo"]',
    "a namespace of 256 characters": "2/" + "a" * 255 + ',["echo"]',
    "a namespace without end": "2/" + "a" * 100_000,
    "attachments of an event": '21-["echo"]',
    "too many attachments": '5999999999999-["echo"]',
    "binary": b"\x00\x01",
    "binary that looks like a packet": b'2["echo"]',
    "no binary at all": b"",
}


@pytest.mark.parametrize("packet", BAD_PACKETS.values(), ids=BAD_PACKETS.keys())
def test_a_bad_packet_is_told_and_hung_up_on(wire: Wire, packet: str | bytes) -> None:
    wire.connect()
    wire.receive(packet)
    wire.assert_hung_up()


def test_while_the_connection_is_being_closed_nothing_more_is_taken(server: Server, wire: Wire) -> None:
    calls: list[str] = []
    server.on("note", lambda sid: calls.append("note"))

    @server.on("disconnect")
    def disconnect(sid: str, reason: str) -> None:  # may wait, and what has arrived is handled meanwhile
        for data in ("2{}", '2["note"]', "0", b"x"):
            wire.receive(data)

    wire.connect()
    wire.receive("2{}")
    assert calls == []
    wire.assert_hung_up()


@pytest.mark.parametrize("id", ["", "12"])
@pytest.mark.parametrize("data", ["[1]", "[null]", '[{"echo":1}]', '[["echo"]]', "[NaN]"])
def test_a_packet_whose_event_has_no_name_is_answered(wire: Wire, data: str, id: str) -> None:
    wire.connect()
    wire.receive(f"2{id}{data}")
    [(packet_type, _, [*_, answer])] = wire.answers()
    error = answer["error"] if id else answer
    assert (packet_type, error["code"]) == (ACK if id else EVENT, "invalid_request")
    wire.assert_alive()


@pytest.mark.parametrize(
    "argument", ["[" * 100_000, "NaN," * 20_000 + "1", '"\\ud800' + "x" * 70_000 + '"', "[]," * 100_001 + "[]"],
    ids=["nesting", "NaN", "lone surrogate", "many lists"],
)  # fmt: skip
def test_json_that_is_too_large_to_find_out_what_is_wrong_is_answered(wire: Wire, argument: str) -> None:
    wire.connect()
    wire.receive(f'23["echo",{argument}]')
    [(packet_type, id, [answer])] = wire.answers()
    assert (packet_type, id, answer["error"]["code"]) == (ACK, 3, "invalid_request")
    wire.assert_alive()


def test_thousands_of_bad_packets_are_two_lines_in_the_log(
    server: Server, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "socketio_pg")
    for number in range(3_000):
        wire.connect(f"eio{number}")
        wire.receive("2abc", f"eio{number}")
    assert len(wire.hung_up) == 3_000
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 10, "one a second at most"
    assert lines[0] == "hanging up on a client: this is not JSON, or nested too deeply"
    assert_nobody(server)


@pytest.mark.parametrize("packet", ["30[]", "31[]", '31["x"]', "3[]", '3/other,1["x"]', '39007199254740991["x"]'])
def test_acknowledgements_that_nobody_asked_for_are_ignored(wire: Wire, packet: str) -> None:
    wire.connect()
    wire.receive(packet)
    assert wire.answers() == []
    wire.assert_alive()


@pytest.mark.parametrize("packet", ['2/other,["echo",1]', '2/other,1["echo",1]', "1/other,"])
def test_what_comes_in_a_namespace_that_was_not_joined_is_not_run(wire: Wire, packet: str) -> None:
    # The server may have disconnected it from there while this was on its way.
    wire.connect()
    wire.receive(packet)
    assert wire.answers() == []
    wire.assert_alive()


@pytest.mark.parametrize("packet", ["0/other,", "0/other,{}", "0/other", "0/other?query=1,"])
def test_connecting_to_an_unknown_namespace_is_refused(server: Server, wire: Wire, packet: str) -> None:
    asked: list[object] = []
    wire.connect()
    server.identify = lambda environ, auth: asked.append(auth)
    wire.receive(packet)
    assert wire.sent == [("eio1", '4/other,{"message":"Invalid namespace"}')]
    assert asked == []
    wire.sent.clear()
    wire.assert_alive()


# -- binary ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def takes_binary(server: Server) -> Server:
    server.binary = True
    return server


def test_binary_arguments_and_answers(takes_binary: Server, wire: Wire) -> None:
    wire.connect()
    wire.receive('51-8["echo",{"_placeholder":true,"num":0}]')
    assert wire.answers() == []
    wire.receive(b"\x00\xff")
    header, attachment = [data for _, data in wire.sent]
    assert isinstance(header, str)
    packet = socketio.packet.Packet(encoded_packet=header)
    packet.add_attachment(attachment)
    assert (packet.packet_type, packet.id, packet.data) == (BINARY_ACK, 8, [b"\x00\xff"])
    wire.sent.clear()
    wire.assert_alive()


@pytest.mark.parametrize(
    "packet", ['51-["echo",{"_placeholder":true,"num":0}]', '61-1[{"_placeholder":true,"num":0}]', b"x"]
)
def test_without_an_event_that_wants_it_binary_data_hangs_up(wire: Wire, packet: str | bytes) -> None:
    wire.connect()
    wire.receive(packet)
    wire.assert_hung_up()


@pytest.mark.parametrize("number", ["1", "-1", "-2", "1.5", "0.0", '"0"', "null", "{}", "true", "false", "1e400"])
def test_a_placeholder_that_points_nowhere_hangs_up(takes_binary: Server, wire: Wire, number: str) -> None:
    wire.connect()
    wire.receive(f'51-["echo",{{"_placeholder":true,"num":{number}}}]')
    wire.receive(b"x")
    wire.assert_hung_up()


PLACEHOLDER = '{"_placeholder":true,"num":0}'


@pytest.mark.parametrize(
    "data", [f'["echo",{PLACEHOLDER},{PLACEHOLDER}]', '["echo",1]', '["echo",{"_placeholder":false,"num":0}]',
             f'["echo",{{"_placeholder":true,"num":{PLACEHOLDER}}}]'],
    ids=["twice", "nowhere", "not one", "nested"],
)  # fmt: skip
def test_each_attachment_has_one_place(takes_binary: Server, wire: Wire, data: str) -> None:
    wire.connect()
    wire.receive(f"51-{data}")
    wire.receive(b"x")
    wire.assert_hung_up()


def test_attachments_may_be_nested_as_deep_as_json(takes_binary: Server, wire: Wire) -> None:
    takes_binary.on("size", lambda sid, value: str(value).count("["))
    wire.connect()
    wire.receive('51-1["size",' + "[" * 900 + PLACEHOLDER + "]" * 900 + "]")
    wire.receive(b"x")
    assert wire.answers() == [(ACK, 1, [900])]


@pytest.mark.parametrize("packet", ["5", '5["echo",1]', '50-["echo",1]', '50-4["echo",1]', "6", '60-1["x"]', "5-1[]",
                                    '517-["echo"]', '59999999999-["echo"]', "51-{}", "51-", "61-1{}"])  # fmt: skip
def test_a_binary_packet_that_is_none_hangs_up(takes_binary: Server, wire: Wire, packet: str) -> None:
    wire.connect()
    wire.receive(packet)
    wire.assert_hung_up()


@pytest.mark.parametrize("packet", ['2["echo",1]', "0", "1", "x", ""])
def test_text_in_place_of_an_attachment_hangs_up(takes_binary: Server, wire: Wire, packet: str) -> None:
    wire.connect()
    wire.receive(f'51-["echo",{PLACEHOLDER}]')
    wire.receive(packet)
    wire.assert_hung_up()


def test_attachments_have_no_more_bytes_together_than_one_packet(takes_binary: Server, wire: Wire) -> None:
    wire.connect()
    half = b"x" * (takes_binary.eio.max_http_buffer_size // 2)
    for _ in range(2):
        wire.receive('52-["nothing",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
        wire.receive(half)
        wire.receive(half)
        assert [data[0] for _, _, data in wire.answers()] == ["error"]
    wire.receive('52-["nothing",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
    wire.receive(half)
    wire.receive(half + b"x")
    wire.assert_hung_up()


def test_a_client_that_leaves_in_the_middle_of_a_binary_packet_leaves_nothing_behind(
    takes_binary: Server, wire: Wire
) -> None:
    wire.connect()
    wire.receive('52-["echo",{"_placeholder":true,"num":0}]')
    wire.receive(b"x")
    wire.close()
    wire.connect()
    wire.assert_alive()


# -- connecting --------------------------------------------------------------------------------------------------------


def assert_nobody(server: Server) -> None:
    """Nothing is kept for any client."""
    for kept in (server.manager.rooms, server.environ, server._binary_packet):
        assert kept == {}
    for kept in (server.manager.pending_connect, server.manager.pending_disconnect, server.manager.callbacks):
        assert not any(kept.values())


def test_on_connected_is_called_once_after_the_connect_packet(server: Server, wire: Wire) -> None:
    seen: list[tuple[str, list[int]]] = []

    def connected(sid: str) -> None:
        seen.append((sid, [packet_type for packet_type, _, _ in wire.answers()]))
        server.emit("hello", {"sid": sid}, to=sid)

    server.on_connected = connected
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
    server.on_identified = lambda sid, namespace, identity: calls.append(("identified", sid))
    server.on_connected = lambda sid: calls.append(("connected", sid))
    server.on_disconnected = lambda sid: calls.append(("disconnected", sid))
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

    server.on_connected = lambda sid: calls.append("connected")
    server.on_disconnected = lambda sid: calls.append("disconnected")
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
    server.identify = lambda environ, auth: auth
    server.on_identified = lambda sid, namespace, identity: calls.append(("identified", sid, namespace, identity))
    server.on_connected = lambda sid: calls.append(("connected", sid))
    server.on_disconnected = lambda sid: calls.append(("disconnected", sid))
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
    server.identify = identify
    server.on_identified = lambda *arguments: calls.append("identified")
    server.on_connected = server.on_disconnected = lambda sid: calls.append("connected or disconnected")
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
    server.identify = lambda environ, auth: auth
    server.on_identified = lambda sid, namespace, identity: identities.append(identity)
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
    server.on_disconnected = gone.append
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
    server.on_disconnected = lambda sid: gone.append(("ours", sid))
    sid = wire.connect()
    leave(wire, sid)
    assert sorted(gone) == [("ours", sid), ("theirs", sid)]


def test_a_legacy_disconnect_handler_does_not_make_it_twice(
    server: Server, wire: Wire, leave: Callable[[Wire, str], None]
) -> None:
    # python-socketio calls a handler again, without the reason, when it raised TypeError.
    gone: list[str] = []
    server.on("disconnect", lambda sid: None)
    server.on_disconnected = gone.append
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
    server.on_disconnected = gone.append
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
    server.on_connected = lambda sid: calls.append("connected")
    server.on_disconnected = lambda sid: calls.append("disconnected")
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


# -- Flask-SocketIO ----------------------------------------------------------------------------------------------------


@pytest.fixture
def app() -> Flask:
    app = Flask("test")
    app.secret_key = "test"

    @app.get("/page")
    def page() -> str:
        return "a page"

    return app


def test_handlers_of_flask_socketio_work_and_are_answered(app: Flask) -> None:
    extension = SocketIO(app, async_mode="threading")
    assert app.extensions["socketio"] is extension

    @extension.on("add")
    def add(left: int, right: int) -> int:
        assert request.event["message"] == "add"  # type: ignore[attr-defined]
        return left + right

    @extension.on("fail")
    def fail() -> None:
        raise PayloadTooLargeError("too much", channel="foo")

    client = extension.test_client(app)
    error = {"code": "payload_too_large", "message": "too much"}
    assert client.emit("add", 1, 2, callback=True) == 3
    assert client.emit("fail", callback=True) == {"ok": False, "error": error}
    client.emit("fail")
    assert client.get_received() == [{"name": "error", "args": [{**error, "channel": "foo"}], "namespace": "/"}]
    assert client.emit("nothing", callback=True)["error"]["code"] == "invalid_request"
    assert client.emit("add", 1, 2, callback=True) == 3


def test_handlers_may_be_registered_before_the_application_is_there(app: Flask) -> None:
    extension = SocketIO(async_mode="threading")
    extension.on_event("early", lambda: "early", namespace="/chat")

    class Room(flask_socketio.Namespace):  # type: ignore[misc]
        def on_early(self) -> str:
            return "room"

    extension.on_namespace(Room("/room"))
    extension.init_app(app)
    for namespace, answer in (("/chat", "early"), ("/room", "room")):
        client = extension.test_client(app, namespace=namespace)
        assert client.emit("early", callback=True, namespace=namespace) == answer


def test_emitting_from_outside_a_request_reaches_the_room(app: Flask) -> None:
    extension = SocketIO(app, async_mode="threading")
    extension.on_event("join", lambda: flask_socketio.join_room("foo"))
    inside, outside = extension.test_client(app), extension.test_client(app)
    inside.emit("join")
    extension.emit("event", {"payload": 1}, to="foo")
    assert inside.get_received() == [{"name": "event", "args": [{"payload": 1}], "namespace": "/"}]
    assert outside.get_received() == []


@pytest.mark.parametrize(
    ("options", "path"), [({}, "/socket.io/"), ({"path": "/live"}, "/live/"), ({"path": "a/b"}, "/a/b/")]
)
def test_http_goes_to_engineio_below_the_path_and_to_flask_elsewhere(
    app: Flask, options: dict[str, str], path: str
) -> None:
    SocketIO(app, async_mode="threading", **options)
    client = app.test_client()
    assert client.get("/page").text == "a page"
    assert client.get("/nothing").status_code == 404
    # An Engine.IO request without a version is refused, by Engine.IO.
    assert client.get(path).status_code == 400


def test_before_request_may_answer_in_place_of_both(app: Flask) -> None:
    extension = SocketIO(app, async_mode="threading")

    def refuse(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("503 SERVICE UNAVAILABLE", [("Retry-After", "1")])
        return [b"not now"]

    client = app.test_client()
    assert client.get("/page").status_code == 200
    extension.before_request = refuse
    for path in ("/page", "/socket.io/?EIO=4&transport=polling"):
        response = client.get(path)
        assert (response.status_code, response.text, response.headers["Retry-After"]) == (503, "not now", "1")


def test_a_disconnect_packet_is_what_the_server_sends(server: Server, wire: Wire) -> None:
    # The stock way out, by which clients are told not to come back; drain() goes another way for that reason.
    server.disconnect(wire.connect())
    assert [packet_type for packet_type, _, _ in wire.answers()] == [DISCONNECT]
