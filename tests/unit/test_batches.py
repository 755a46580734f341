"""Batches: several messages in one event, for clients that take them, and single ones for the others."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.protocol.encoded import BATCH_MESSAGES, BATCH_SIZE, EncodedPacket, batches, framed
from socketio_pg.protocol.overlapping import Part
from socketio_pg.protocol.server import Server
from tests.support.wire import Wire

ROOMS = ["a", "b", "c"]
#: The rooms of the clients, and of each message, with whether one of them is left out.
MEMBER_OF = st.sets(st.sampled_from(ROOMS))
MESSAGES = st.lists(st.tuples(st.sets(st.sampled_from(ROOMS), min_size=1), st.booleans()), max_size=6)


def message(body: object) -> EncodedPacket:
    packet = framed(f'2["event",{json.dumps(body)}]')
    packet.batchable = True
    return packet


def events_of(texts: Sequence[str | bytes]) -> list[list[Any]]:
    """Return the events of packets, the messages of a batch one by one."""
    found: list[list[Any]] = []
    for text in texts:
        assert isinstance(text, str)
        event, body = json.loads(text[1:])
        found += [["event", one] for one in body] if event == "events" else [[event, body]]
    return found


@given(st.lists(st.tuples(st.booleans(), st.integers(0, BATCH_SIZE // 2)), max_size=12), st.integers(0, 250))
def test_batches_have_all_messages_in_their_order(some: list[tuple[bool, int]], small: int) -> None:
    packets = [message(["x" * size]) if batchable else framed(f'2["gap","{size}"]') for batchable, size in some]
    packets[1:1] = [message(number) for number in range(small)]
    found = batches(packets)
    assert events_of([packet.text for packet in found]) == events_of([packet.text for packet in packets])
    for before, after in itertools.pairwise(found):
        kinds = [json.loads(one.text[1:])[0] for one in (before, after)]
        if "gap" not in kinds:  # the second one did not fit into the first one
            first = json.loads(after.text[1:])[1]
            size = len(json.dumps(first[0] if kinds[1] == "events" else first))
            assert len(before.text) + size > BATCH_SIZE - 20 * BATCH_MESSAGES or before.text.count(",") >= 99
    for one in found:
        assert one.frame.endswith(("4" + one.text).encode())
        if one.text.startswith('2["events"'):
            assert 2 <= len(json.loads(one.text[1:])[1]) <= BATCH_MESSAGES
            assert len(one.text) <= BATCH_SIZE


@given(MEMBER_OF, MESSAGES, st.sampled_from(["apart", "overlapping", "parts"]))
def test_a_client_gets_the_same_with_and_without_batches(
    rooms: set[str], messages: list[tuple[set[str], bool]], how: str
) -> None:
    server = Server(namespaces="*")
    wire = Wire(server)
    plain, batching = wire.connect("plain"), wire.connect("batching")
    manager = server.manager
    manager.set_batching(batching, True)
    if how == "apart":
        rooms = set(sorted(rooms)[:1])
    for sid in (plain, batching):
        for room in rooms:
            server.enter_room(sid, room, "/")
    for left_out, kept in (("plain", "batching"), ("batching", "plain")):
        wire.sent.clear()
        sid = plain if left_out == "plain" else batching
        if how == "parts":
            parts = [
                Part(
                    {room: room for room in sorted(places)},
                    lambda names, number=number: manager.encode_message("event", {"number": number, "names": names}),  # type: ignore[misc]
                    {room: {sid} for room in places} if without else {},
                )
                for number, (places, without) in enumerate(messages)
            ]
            manager.emit_parts(parts)
        else:
            manager.emit_in_order(
                "event",
                [(sorted(places), {"number": number}) for number, (places, _) in enumerate(messages)],
                apart=how == "apart",
            )
        got = {client: [text for to, text in wire.sent if to == client] for client in ("plain", "batching")}
        assert not any(str(text).startswith('2["events"') for text in got["plain"])
        bodies = {client: [body for _, body in events_of(texts)] for client, texts in got.items()}
        expected = [body for body in bodies[kept] if how != "parts" or not messages[body["number"]][1]]
        assert bodies[left_out] == expected
        if len(bodies["batching"]) > 1 and how != "overlapping":
            assert len(got["batching"]) == 1


def test_other_events_are_not_put_into_batches() -> None:
    server = Server(namespaces="*")
    wire = Wire(server)
    sid = wire.connect()
    server.manager.set_batching(sid, True)
    server.enter_room(sid, "room", "/")
    bodies = [(["room"], {"n": number}) for number in range(2)]
    server.manager.emit_in_order("gap", bodies)
    assert [data for _, _, data in wire.answers()] == [["gap", {"n": 0}], ["gap", {"n": 1}]]
    server.manager.emit_in_order("event", bodies)
    assert [data for _, _, data in wire.answers()] == [["events", [{"n": 0}, {"n": 1}]]]
    server.manager.set_batching(sid, False)
    server.manager.emit_in_order("event", bodies)
    assert [data for _, _, data in wire.answers()] == [["event", {"n": 0}], ["event", {"n": 1}]]


def test_another_namespace_and_a_new_client_get_no_batches() -> None:
    server = Server(namespaces="*")
    wire = Wire(server)
    server.manager.set_batching(wire.connect(), True)
    wire.receive("1")
    for namespace in ("/", "/other"):
        prefix = "" if namespace == "/" else f"{namespace},"
        wire.receive(f"0{prefix}")
        sid = server.manager.sid_from_eio_sid("eio1", namespace)
        server.enter_room(sid, "room", namespace)
        wire.sent.clear()
        server.manager.emit_in_order("event", [(["room"], {"n": number}) for number in range(2)], namespace)
        assert [data for _, _, data in wire.answers()] == [["event", {"n": 0}], ["event", {"n": 1}]]


@pytest.mark.parametrize("count", [BATCH_MESSAGES, BATCH_MESSAGES + 1])
def test_number_of_messages_in_a_batch(count: int) -> None:
    sizes = [len(json.loads(one.text[1:])[1]) for one in batches([message([n]) for n in range(count)])]
    assert sizes == ([count] if count == BATCH_MESSAGES else [BATCH_MESSAGES, 1])
