"""Sends messages to rooms that may have members in common: each member gets each message once.

A member of one of the rooms gets the frame that all of that room get. One that is in several of them gets packets that
say through which of its subscriptions a message came. Members of the same rooms share these.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from socketio_pg.core import green
from socketio_pg.core.metrics import fan_out
from socketio_pg.protocol.encoded import EncodedPacket, batches, joined, with_offsets
from socketio_pg.protocol.sending import Broadcast, Clients, Sending

#: The rooms of members that are in several: sid → Engine.IO's sid and the rooms.
Shared: TypeAlias = Mapping[str, tuple[str, tuple[str, ...]]]


@dataclass(eq=False, slots=True)
class Part:
    """A message in one form. ``rooms``: each room that gets it → the name under which its members have subscribed.

    ``encode(names)`` returns the packet for a member that gets it under these names. ``without``: members of a room
    that do not get it there.
    """

    rooms: Mapping[str, str]
    encode: Callable[[tuple[str, ...]], EncodedPacket]
    without: Mapping[str, Collection[str]] = field(default_factory=dict)
    _packets: dict[tuple[str, ...], EncodedPacket] = field(default_factory=dict)

    def packet(self, names: tuple[str, ...]) -> EncodedPacket:
        """Return the packet for these names, encoded once."""
        found = self._packets.get(names)
        if found is None:
            found = self._packets[names] = self.encode(names)
        return found

    def names_of(self, sid: str, rooms: Collection[str]) -> tuple[str, ...]:
        """Return the names under which a member of ``rooms`` gets the message; none if it does not get it."""
        return tuple(
            name for room, name in self.rooms.items() if room in rooms and sid not in self.without.get(room, ())
        )


def packets_of_rooms(parts: Sequence[Part]) -> dict[str, list[EncodedPacket]]:
    """Return what the members of each room get that are in no other room."""
    found: dict[str, list[EncodedPacket]] = {}
    for part in parts:
        for room, name in part.rooms.items():
            found.setdefault(room, []).append(part.packet((name,)))
    return found


def shared_members(members_of: Mapping[str, Mapping[str, str]], parts: Sequence[Part]) -> Shared:
    """Return the members that are in several rooms, or do not get all that their room gets. ``members_of``: by room.

    Takes about 50 ns for each member of a room, apart from those of the largest one.
    """
    by_size = sorted(members_of.values(), key=len)
    several = {sid for part in parts for sids in part.without.values() for sid in sids}
    seen: set[str] = set()
    for members in by_size[:-1]:
        several |= seen & members.keys()
        seen |= members.keys()
    if by_size:
        several |= seen & by_size[-1].keys()
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for room, members in members_of.items():
        alone = (room,)  # one object for all: most members are in the same rooms as others
        for sid in several & members.keys():
            before = found.get(sid)
            found[sid] = (members[sid], alone if before is None else before[1] + alone)
    return found


def send_shared(
    sending: Sending, shared: Shared, parts: Sequence[Part], broadcast: Broadcast, clients: Clients
) -> None:
    """Send ``parts`` to members that are in several rooms, each in one send. Yields in between.

    Nothing through a room that the member has left meanwhile, or that ``broadcast`` passes by for it.
    """
    special = {sid for part in parts for sids in part.without.values() for sid in sids}
    #: By the rooms that the members are in, and by whether they take batches.
    prepared: dict[tuple[tuple[str, ...], bool], tuple[list[EncodedPacket], bytes]] = {}
    sent_frames = sent_bytes = 0
    turn_ends = time.monotonic() + sending.slice_seconds
    for number, (sid, (eio_sid, rooms)) in enumerate(shared.items(), 1):
        left = rooms
        if broadcast.gone:
            left = tuple(room for room in rooms if sid not in broadcast.gone_from(room))
        batching = sid in clients.batching
        found = prepared.get((left, batching))
        if found is None or sid in special:
            packets = [part.packet(names) for part in parts if (names := part.names_of(sid, left))]
            found = packets, joined(batches(packets) if batching else packets)
            if sid not in special:
                prepared[left, batching] = found
        packets, frame = found
        if packets:
            socket = clients.sockets.get(eio_sid)
            cursor = clients.cursors.get(sid) if clients.cursors else None
            if cursor is not None:
                if socket is not None:
                    sending.send_to(with_offsets(packets, cursor), socket)
            elif socket is not None and socket.connection is not None:
                socket.connection.send(frame)
                sent_frames += len(packets)
                sent_bytes += len(frame)
            else:
                sending.send_polled(packets, eio_sid, batching)
        if number % sending.slice_sends == 0 and time.monotonic() > turn_ends:
            green.sleep()
            turn_ends = time.monotonic() + sending.slice_seconds
    fan_out.frames += sent_frames
    fan_out.frame_bytes += sent_bytes
