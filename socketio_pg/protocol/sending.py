"""Sends packets to the members of rooms, with and without offsets, in slices between which other green threads run."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from engineio import packet as eio_packet

from socketio_pg.core import green
from socketio_pg.core.metrics import fan_out
from socketio_pg.engine.socket import Socket
from socketio_pg.engine.transport import WebSocketTransport
from socketio_pg.protocol.encoded import EncodedPacket, batches, joined, with_offsets
from socketio_pg.protocol.offsets import Cursor

#: What a client gets as a member of one room: its sid, the room, the packets, and their frames in one piece.
Share: TypeAlias = tuple[str, str, Sequence[EncodedPacket], bytes]


class Group:
    """Members of a room that get the same frames.

    sid and transport of those with a WebSocket, both ids of those that poll.
    """

    __slots__ = ("polling", "sends", "sids", "transports")

    def __init__(self) -> None:
        self.sids: list[str] = []
        self.transports: list[WebSocketTransport] = []
        #: The ``send`` of each transport, bound once and not for each message.
        self.sends: list[Callable[[bytes], None]] = []
        self.polling: list[tuple[str, str]] = []

    def add(self, sid: str, eio_sid: str, transport: WebSocketTransport | None) -> None:
        if transport is None:
            self.polling.append((sid, eio_sid))
        else:
            self.sids.append(sid)
            self.transports.append(transport)
            self.sends.append(transport.send)


class Line(Group):
    """The members of a room: those that get single messages, ``batching`` those that take batches, if there are any.

    Those whose events have an offset are in ``followed`` only.
    """

    __slots__ = ("batching", "followed")

    def __init__(self) -> None:
        super().__init__()
        self.batching: Group | None = None
        self.followed: list[tuple[str, Socket, Cursor]] = []

    def groups(self) -> list[Group]:
        """Return the members without those that are followed."""
        return [self] if self.batching is None else [self, self.batching]

    def can_be_kept(self) -> bool:
        """Return whether it may be used for several broadcasts, as long as nobody joins or leaves.

        Polling members may upgrade at any time. To keep rooms of one member would only use memory.
        """
        if self.batching is None:
            return not self.polling and len(self.sids) + len(self.followed) > 1
        several = len(self.sids) + len(self.followed) + len(self.batching.sids) > 1
        return several and not self.polling and not self.batching.polling


@dataclass(frozen=True, slots=True)
class Clients:
    """The sockets by Engine.IO's id, and by ``sid`` the cursors of those whose events have an offset.

    ``batching``: those that take batches.
    """

    sockets: Mapping[str, Socket]
    cursors: Mapping[str, Cursor]
    batching: Collection[str]


@dataclass(eq=False, slots=True)
class Broadcast:
    """A broadcast in progress, and the members that have ``gone`` and get nothing more of it.

    ``apart``: each room gets its own messages, and a member has gone when it has left that room. Otherwise all
    ``rooms`` get the same, and it has gone when it has left all of them. ``skips``: the broadcast skips some members.
    """

    namespace: str
    rooms: Collection[Any]
    skips: bool
    apart: bool
    gone: dict[Any, set[Any]]
    #: (sid, room) → the room in which a member was at the start, for members that have moved since.
    moved: dict[tuple[Any, Any], Any]

    def gone_from(self, room: Any) -> Collection[Any]:
        return self.gone.get(room if self.apart else None, ())

    def end(self, sid: Any, room: Any) -> None:
        self.gone.setdefault(room if self.apart else None, set()).add(sid)

    def room_then(self, sid: Any, room: Any) -> Any:
        """Return the room in which a member was when the broadcast began."""
        return self.moved.get((sid, room), room)


class Sending:
    """Sends packets to clients. ``send_packet(eio_sid, packet)`` sends an Engine.IO packet to one that polls."""

    #: Seconds of sending before other green threads run, and sends between two readings of the clock. Reading, handling
    #: and answering a request takes two or three such slices.
    slice_seconds = 0.002
    slice_sends = 50

    def __init__(self, send_packet: Callable[[str, eio_packet.Packet], None]) -> None:
        self._send_packet = send_packet

    def send_line(
        self, packets: Sequence[EncodedPacket], line: Line, broadcast: Broadcast, room: Any, turn_ends: float
    ) -> float:
        """Send ``packets`` in one piece to all of ``line``. ``turn_ends`` ends the slice; returns its new end."""
        if line.sids or line.polling:
            turn_ends = self._send_group(packets, packets, line, broadcast, room, turn_ends)
        if line.batching is not None:
            turn_ends = self._send_group(packets, batches(packets), line.batching, broadcast, room, turn_ends)
        return self._send_followed(packets, line, broadcast, room, turn_ends) if line.followed else turn_ends

    def _send_group(
        self,
        messages: Sequence[EncodedPacket],
        packets: Sequence[EncodedPacket],
        group: Group,
        broadcast: Broadcast,
        room: Any,
        turn_ends: float,
    ) -> float:
        """Send ``messages``, which are in ``packets``, to a group, otherwise as :meth:`send_line`."""
        frame = joined(packets)
        sends = group.sends
        sent = len(sends)
        for start in range(0, len(sends), self.slice_sends):
            end = start + self.slice_sends
            gone = broadcast.gone_from(room)
            if not gone:
                for send in sends[start:end]:
                    send(frame)
            else:
                for sid, send in zip(group.sids[start:end], sends[start:end], strict=True):
                    if sid not in gone:
                        send(frame)
                    else:
                        sent -= 1
            if time.monotonic() > turn_ends:
                green.sleep()
                turn_ends = time.monotonic() + self.slice_seconds
        fan_out.frames += sent * len(messages)
        fan_out.frame_bytes += sent * len(frame)
        for sid, eio_sid in group.polling:
            if sid not in broadcast.gone_from(room):
                self._poll(messages, packets, eio_sid)
        return turn_ends

    def _send_followed(
        self, packets: Sequence[EncodedPacket], line: Line, broadcast: Broadcast, room: Any, turn_ends: float
    ) -> float:
        """Send ``packets`` with offsets to the members that get them; otherwise as :meth:`send_line`."""
        last = packets[-1].position
        shared: str | None = None
        frame = b""
        for number, (sid, socket, cursor) in enumerate(line.followed, 1):
            if sid not in broadcast.gone_from(room):
                if cursor.alone or socket.connection is None:
                    self.send_to(with_offsets(packets, cursor), socket)
                else:
                    # All that are up to date have the same offset: that of the message, or without one the last of the
                    # log, which may increase between two slices.
                    if last is not None:
                        cursor.sent, offset = last, ""
                    else:
                        offset = cursor.offset()
                    if offset != shared:
                        shared = offset
                        frame = joined(with_offsets(packets, cursor))
                    socket.connection.send(frame)
                    fan_out.frames += len(packets)
                    fan_out.frame_bytes += len(frame)
            if number % self.slice_sends == 0 and time.monotonic() > turn_ends:
                green.sleep()
                turn_ends = time.monotonic() + self.slice_seconds
        return turn_ends

    def send_to(self, packets: Sequence[EncodedPacket], socket: Socket, batching: bool = False) -> None:
        """Send ``packets`` to one client. ``batching``: it takes batches."""
        if socket.connection is None:
            self.send_polled(packets, socket.sid, batching)
            return
        frame = joined(batches(packets) if batching else packets)
        socket.connection.send(frame)
        fan_out.frames += len(packets)
        fan_out.frame_bytes += len(frame)

    def send_polled(self, packets: Sequence[EncodedPacket], eio_sid: str, batching: bool = False) -> None:
        """Send ``packets`` to one client that polls, or has left. ``batching``: it takes batches."""
        self._poll(packets, batches(packets) if batching else packets, eio_sid)

    def _poll(self, messages: Sequence[EncodedPacket], packets: Sequence[EncodedPacket], eio_sid: str) -> None:
        fan_out.polled += len(messages)
        for packet in packets:
            fan_out.polled_bytes += len(packet.frame)
            self._send_packet(eio_sid, eio_packet.Packet(eio_packet.MESSAGE, packet.text))

    def send_shares(
        self,
        shares: Mapping[str, Sequence[Share]],
        clients: Clients,
        broadcast: Broadcast,
    ) -> None:
        """Send all shares of a connection in one send. The keys of ``shares`` are Engine.IO ids."""
        sent_frames = sent_bytes = 0
        turn_ends = time.monotonic() + self.slice_seconds
        for eio_sid, all_of_it in shares.items():
            share = [one for one in all_of_it if one[0] not in broadcast.gone_from(one[1])]
            socket = clients.sockets.get(eio_sid)
            connection = None if socket is None else socket.connection
            cursor = clients.cursors.get(all_of_it[0][0]) if clients.cursors else None
            if cursor is not None:
                if share and socket is not None:
                    together = [packet for _, _, packets, _ in share for packet in packets]
                    self.send_to(with_offsets(together, cursor), socket)
            elif connection is not None:
                frame = b"".join([frame for _, _, _, frame in share])
                connection.send(frame)
                sent_frames += sum([len(packets) for _, _, packets, _ in share])
                sent_bytes += len(frame)
            else:
                for sid, _, packets, _ in share:
                    self.send_polled(packets, eio_sid, sid in clients.batching)
            if time.monotonic() > turn_ends:
                green.sleep()
                turn_ends = time.monotonic() + self.slice_seconds
        fan_out.frames += sent_frames
        fan_out.frame_bytes += sent_bytes
