"""Encoding of events for rooms: the same text as the packet class of the server makes."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.messages import encode_payload
from socketio_pg.protocol.packets import EVENT, Packet
from socketio_pg.protocol.server import Server
from tests.support.wire import Wire

NAMESPACES = ["/", "/other"]
PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé\n"\\😀'),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=4), values, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module", params=NAMESPACES)
def room(request: pytest.FixtureRequest) -> tuple[Wire, str]:
    """A server with one client in the room ``room`` of a namespace."""
    server = Server(namespaces="*")
    wire = Wire(server)
    sid = wire.connect(namespace=request.param)
    server.enter_room(sid, "room", request.param)
    wire.sent.clear()
    return wire, request.param


@given(payload=PAYLOADS, position=st.none() | st.integers(1, 2**63 - 1))
def test_event_for_rooms_is_encoded_like_a_packet(room: tuple[Wire, str], payload: Any, position: int | None) -> None:
    wire, namespace = room
    data = {"channel": "a", "payload": orjson.Fragment(encode_payload(payload)), "position": position}
    wire.server.manager.emit_in_order("event", [(["room"], data)], namespace)
    packet = Packet(EVENT, namespace=namespace, data=["event", data])
    assert wire.sent == [("eio1", packet.encode())]
    wire.sent.clear()


def test_value_that_only_the_slower_encoder_writes(room: tuple[Wire, str]) -> None:
    wire, namespace = room
    wire.server.manager.emit_in_order("event", [(["room"], {"n": 2**70})], namespace)
    assert wire.answers() == [(EVENT, None, ["event", {"n": 2**70}])]


def test_binary_data_in_an_event_for_rooms_is_an_error(room: tuple[Wire, str]) -> None:
    wire, namespace = room
    with pytest.raises(TypeError):
        wire.server.manager.emit_in_order("event", [(["room"], {"b": b"x"})], namespace)
    assert wire.sent == []
