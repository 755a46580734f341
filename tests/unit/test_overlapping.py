"""Rooms with common members: who gets which packet, against a model."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.protocol.encoded import EncodedPacket, framed
from socketio_pg.protocol.overlapping import Part, packets_of_rooms, send_shared, shared_members
from socketio_pg.protocol.sending import Broadcast, Clients, Sending

ROOMS = ["a", "b", "c"]
SIDS = [f"s{n}" for n in range(5)]
MEMBERS = st.dictionaries(st.sampled_from(ROOMS), st.sets(st.sampled_from(SIDS)), min_size=1)
#: The rooms of each message, and the members that do not get it in a room.
PLACES = st.tuples(st.sampled_from(ROOMS), st.sampled_from(SIDS))
MESSAGES = st.lists(
    st.tuples(st.sets(st.sampled_from(ROOMS), min_size=1), st.sets(PLACES, max_size=2)), min_size=1, max_size=4
)


@given(MEMBERS, MESSAGES, st.sets(PLACES, max_size=3))
def test_each_member_gets_each_message_once(
    members: dict[str, set[str]], messages: list[tuple[set[str], set[tuple[str, str]]]], gone: set[tuple[str, str]]
) -> None:
    encodings = itertools.count()

    def part(number: int, rooms: set[str], without: set[tuple[str, str]]) -> Part:
        def encode(names: tuple[str, ...]) -> EncodedPacket:
            next(encodings)
            return framed(f"{number}:{','.join(names)}")

        left_out = {room: {sid for at, sid in without if at == room} for room, _ in without if room in rooms}
        return Part({room: room.upper() for room in sorted(rooms & members.keys())}, encode, left_out)

    parts = [part(number, rooms, without) for number, (rooms, without) in enumerate(messages)]
    packets_of = packets_of_rooms(parts)
    members_of = {room: {sid: f"e-{sid}" for sid in members[room]} for room in packets_of}
    shared = shared_members(members_of, parts)
    got: dict[str, list[str]] = {sid: [] for sid in SIDS}
    for room, packets in packets_of.items():
        for sid in members[room] - shared.keys():
            if (room, sid) not in gone:
                got[sid] += [packet.text for packet in packets]
    broadcast = Broadcast("/", packets_of, True, True, {}, {})
    for room, sid in gone:
        broadcast.end(sid, room)
    sending = Sending(lambda eio_sid, packet: got[eio_sid[2:]].append(str(packet.data)))
    send_shared(sending, shared, parts, broadcast, Clients({}, {}, ()))
    for sid in SIDS:
        expected = []
        for number, (rooms, without) in enumerate(messages):
            through = [
                room.upper()
                for room in sorted(rooms & members.keys())
                if sid in members[room] and (room, sid) not in without and (room, sid) not in gone
            ]
            if through:
                expected.append(f"{number}:{','.join(through)}")
        assert got[sid] == expected, sid
    assert next(encodings) <= len(messages) * 7
