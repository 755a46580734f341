"""Packets of replayed messages: one encoding for many clients, within bounds."""

from dataclasses import replace

import pytest
import socketio

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.engine.frames import encode_text
from socketio_pg.gateway.replay_packets import ReplayPackets
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.packets import Packet

TIME = "2026-01-01T00:00:00.000000Z"


def _message(position: int, payload: str = "1") -> EncodedMessage:
    return EncodedMessage("foo", payload, position, TIME)


def _manager() -> Manager:
    manager = Manager()
    manager.set_server(socketio.Server(client_manager=manager))
    manager.server.packet_class = Packet
    return manager


def _packets(max_bytes: int = 100_000) -> ReplayPackets:
    return ReplayPackets(_manager(), max_bytes)


def test_a_packet_is_what_the_stock_encoder_makes_and_is_made_once() -> None:
    message = _message(7, '{"big":1e400,"a":[1,2]}')
    packets = _packets()
    packet = packets.of(message)
    stock = Packet(data=["event", message.to_wire() | {"replayed": True}], namespace="/").encode()
    assert packet.text == stock
    assert packet.frame == encode_text("4" + stock)
    assert packets.of(message) is packet


def test_an_equal_position_is_not_the_same_message() -> None:
    packets = _packets()
    before = _message(7, '"before"')
    packet = packets.of(before)
    for _ in range(100):
        # Made and dropped: later objects get the memory, and so the id, of earlier ones.
        assert '"payload":"after"' in packets.of(_message(7, '"after"')).text
    # Equal, and made again: the cost of a message that was read from the database again.
    assert packets.of(replace(before)).text == packet.text
    assert packets.of(before) is packet


def test_the_oldest_packets_are_dropped_first_and_a_packet_larger_than_the_limit_is_not_kept() -> None:
    packets = _packets(max_bytes=10_000)
    messages = [_message(position) for position in range(100)]
    first = [packets.of(message) for message in messages]
    again = [packets.of(message) for message in reversed(messages)]
    same = [one is other for one, other in zip(first, reversed(again), strict=True)]
    kept = sum(same)
    assert 10 < kept < 20
    assert same == [False] * (100 - kept) + [True] * kept
    large = _message(1000, '"' + "x" * 20_000 + '"')
    assert packets.of(large) is not packets.of(large)
    assert packets.of(large).text == packets.of(large).text


@pytest.mark.parametrize("namespace", ["/", "/admin"])
def test_messages_have_the_stock_encoding_in_each_namespace(namespace: str) -> None:
    manager = _manager()
    for argument in ({"ö": [1, None, "\u2028"]}, {"n": 2**70}, "text"):
        stock = Packet(data=["event", argument], namespace=namespace).encode()
        assert manager.encode_message("event", argument, namespace).text == stock
