"""The Socket.IO server: invalid packets and binary packets."""

import logging
import time

import pytest
import socketio
from socketio.packet import ACK, BINARY_ACK, EVENT

from socketio_pg.protocol.server import Server
from tests.support.wire import Wire, assert_no_client_state, follow

# -- invalid packets ---------------------------------------------------------------------------------------------------
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
    "a digit that is not ASCII": '2²["echo"]',
    "an id of letters": '2abc["echo"]',
    "a negative id": '2-1["echo"]',
    "an id that is a fraction": '21.5["echo"]',
    "an id of 17 digits": '210000000000000000["echo"]',
    "an id beyond the integers of JavaScript": '29007199254740992["echo"]',
    "an id of 200 digits": "2" + "9" * 200 + '["echo"]',
    "a number of 5,000 digits": '2["echo",' + "9" * 5_000 + "]",
    "an acknowledgement without data": "31",
    "an acknowledgement without id": "3",
    "an acknowledgement that is an object": "31{}",
    "an acknowledgement that is no JSON": "31abc",
    "a DISCONNECT with data": '1"x"',
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
    "empty binary": b"",
}


@pytest.mark.parametrize("packet", BAD_PACKETS.values(), ids=BAD_PACKETS.keys())
def test_invalid_packet_is_reported_and_closes_the_connection(wire: Wire, packet: str | bytes) -> None:
    wire.connect()
    wire.receive(packet)
    wire.assert_closed()


def test_packets_are_ignored_while_the_connection_closes(server: Server, wire: Wire) -> None:
    calls: list[str] = []
    server.on("note", lambda sid: calls.append("note"))

    @server.on("disconnect")
    def disconnect(sid: str, reason: str) -> None:  # it may wait while received packets are handled
        for data in ("2{}", '2["note"]', "0", b"x"):
            wire.receive(data)

    wire.connect()
    wire.receive("2{}")
    assert calls == []
    wire.assert_closed()


@pytest.mark.parametrize("id", ["", "12"])
@pytest.mark.parametrize("data", ["[1]", "[null]", '[{"echo":1}]', '[["echo"]]', "[NaN]"])
def test_event_without_a_name_is_an_invalid_request(wire: Wire, data: str, id: str) -> None:
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
def test_large_invalid_json_is_an_invalid_request(wire: Wire, argument: str) -> None:
    wire.connect()
    wire.receive(f'23["echo",{argument}]')
    [(packet_type, id, [answer])] = wire.answers()
    assert (packet_type, id, answer["error"]["code"]) == (ACK, 3, "invalid_request")
    wire.assert_alive()


def test_log_lines_about_invalid_packets_are_rate_limited(
    server: Server, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "socketio_pg")
    began = time.monotonic()
    for number in range(3_000):
        wire.connect(f"eio{number}")
        wire.receive("2abc", f"eio{number}")
    assert len(wire.closed) == 3_000
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= time.monotonic() - began + 1, "at most one line per second"
    assert lines[0] == "closing the connection of a client: this is not JSON, or nested too deeply"
    assert_no_client_state(server)


@pytest.mark.parametrize("packet", ["30[]", "31[]", '31["x"]', "3[]", '3/other,1["x"]', '39007199254740991["x"]'])
def test_unexpected_acknowledgement_is_ignored(wire: Wire, packet: str) -> None:
    wire.connect()
    wire.receive(packet)
    assert wire.answers() == []
    wire.assert_alive()


@pytest.mark.parametrize("packet", ['2/other,["echo",1]', '2/other,1["echo",1]', "1/other,"])
def test_packet_for_an_unconnected_namespace_is_ignored(wire: Wire, packet: str) -> None:
    # The server may have disconnected the client from it while the packet was in transit.
    wire.connect()
    wire.receive(packet)
    assert wire.answers() == []
    wire.assert_alive()


@pytest.mark.parametrize("packet", ["0/other,", "0/other,{}", "0/other", "0/other?query=1,"])
def test_unknown_namespace_is_refused(server: Server, wire: Wire, packet: str) -> None:
    asked: list[object] = []
    wire.connect()
    follow(server, identify=lambda environ, auth, namespace: asked.append(auth))
    wire.receive(packet)
    assert wire.sent == [("eio1", '4/other,{"message":"Invalid namespace"}')]
    assert asked == []
    wire.sent.clear()
    wire.assert_alive()


# -- binary ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def binary_server(server: Server) -> Server:
    server.binary = True
    return server


def test_binary_argument_is_answered_with_binary(binary_server: Server, wire: Wire) -> None:
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
def test_unexpected_binary_data_closes_the_connection(wire: Wire, packet: str | bytes) -> None:
    wire.connect()
    wire.receive(packet)
    wire.assert_closed()


@pytest.mark.parametrize("number", ["1", "-1", "-2", "1.5", "0.0", '"0"', "null", "{}", "true", "false", "1e400"])
def test_invalid_placeholder_closes_the_connection(binary_server: Server, wire: Wire, number: str) -> None:
    wire.connect()
    wire.receive(f'51-["echo",{{"_placeholder":true,"num":{number}}}]')
    wire.receive(b"x")
    wire.assert_closed()


PLACEHOLDER = '{"_placeholder":true,"num":0}'


@pytest.mark.parametrize(
    "data", [f'["echo",{PLACEHOLDER},{PLACEHOLDER}]', '["echo",1]', '["echo",{"_placeholder":false,"num":0}]',
             f'["echo",{{"_placeholder":true,"num":{PLACEHOLDER}}}]'],
    ids=["twice", "missing", "false", "nested"],
)  # fmt: skip
def test_attachment_without_exactly_one_placeholder_closes_the_connection(
    binary_server: Server, wire: Wire, data: str
) -> None:
    wire.connect()
    wire.receive(f"51-{data}")
    wire.receive(b"x")
    wire.assert_closed()


def test_attachment_can_be_nested_as_deeply_as_json(binary_server: Server, wire: Wire) -> None:
    binary_server.on("size", lambda sid, value: str(value).count("["))
    wire.connect()
    wire.receive('51-1["size",' + "[" * 900 + PLACEHOLDER + "]" * 900 + "]")
    wire.receive(b"x")
    assert wire.answers() == [(ACK, 1, [900])]


@pytest.mark.parametrize("packet", ["5", '5["echo",1]', '50-["echo",1]', '50-4["echo",1]', "6", '60-1["x"]', "5-1[]",
                                    '517-["echo"]', '59999999999-["echo"]', "51-{}", "51-", "61-1{}"])  # fmt: skip
def test_invalid_binary_packet_closes_the_connection(binary_server: Server, wire: Wire, packet: str) -> None:
    wire.connect()
    wire.receive(packet)
    wire.assert_closed()


@pytest.mark.parametrize("packet", ['2["echo",1]', "0", "1", "x", ""])
def test_text_instead_of_an_attachment_closes_the_connection(binary_server: Server, wire: Wire, packet: str) -> None:
    wire.connect()
    wire.receive(f'51-["echo",{PLACEHOLDER}]')
    wire.receive(packet)
    wire.assert_closed()


def test_total_size_of_attachments_is_limited(binary_server: Server, wire: Wire) -> None:
    wire.connect()
    half = b"x" * (binary_server.eio.max_http_buffer_size // 2)
    for _ in range(2):
        wire.receive('52-["nothing",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
        wire.receive(half)
        wire.receive(half)
        assert [data[0] for _, _, data in wire.answers()] == ["error"]
    wire.receive('52-["nothing",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
    wire.receive(half)
    wire.receive(half + b"x")
    wire.assert_closed()


def test_incomplete_binary_packet_is_dropped_with_its_connection(binary_server: Server, wire: Wire) -> None:
    wire.connect()
    wire.receive('52-["echo",{"_placeholder":true,"num":0}]')
    wire.receive(b"x")
    wire.close()
    wire.connect()
    wire.assert_alive()
