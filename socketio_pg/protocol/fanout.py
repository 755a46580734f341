"""Socket.IO's client manager: encodes a message once, builds its frame once, and sends it to all sockets of the room.

Long-polling, Flask-SocketIO's test client, binary data and emits with a callback take python-socketio's own path.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import socketio
from bidict import ValueDuplicationError

from socketio_pg.core import green
from socketio_pg.core.metrics import fan_out
from socketio_pg.engine.socket import Socket
from socketio_pg.protocol.encoded import MESSAGE, EncodedPacket, batches, framed, joined, with_offsets
from socketio_pg.protocol.offsets import Cursor
from socketio_pg.protocol.overlapping import Part, packets_of_rooms, send_shared, shared_members
from socketio_pg.protocol.packets import EVENT, quick_packet
from socketio_pg.protocol.sending import Broadcast, Clients, Group, Line, Sending, Share


class Manager(socketio.Manager):  # type: ignore[misc]
    """The rooms of one process."""

    def __init__(self) -> None:
        super().__init__()
        self.sending = Sending(lambda eio_sid, packet: self.server._send_eio_packet(eio_sid, packet))
        self._lines: dict[tuple[str, str | None], Line] = {}
        self._under_way: list[Broadcast] = []
        #: The rooms of each member, apart from the room of all and its own. The stock manager searches all rooms when a
        #: member leaves, which is quadratic when all leave together.
        self._rooms_of: dict[tuple[str, str], set[Any]] = {}
        #: Member whose CONNECT is not answered yet → functions that send it what was emitted meanwhile.
        self._early: dict[str, list[Callable[[], None]]] = {}
        #: Members of the namespace ``/`` whose events have an offset.
        self._cursors: dict[str, Cursor] = {}
        #: Members of the namespace ``/`` that take several messages in one event.
        self._batching: set[str] = set()
        #: Members of the namespace ``/``: set when they have left.
        self._left: dict[str, green.Event] = {}

    def left(self, sid: str) -> green.Event:
        """Return an event that is set when a member of the namespace ``/`` has left."""
        return self._left.setdefault(sid, green.Event())

    def is_open(self, eio_sid: str) -> bool:
        """Return whether a connection is open."""
        socket = self.server.eio.sockets.get(eio_sid)
        return socket is not None and not socket.closed and not socket.closing

    def close(self, eio_sid: str) -> green.Event:
        """Close a connection as if it was lost. Return an event that is set afterwards.

        Uses a green thread: the application's disconnect handlers may wait. The connection counts as closed, unless it
        was being closed already, from when the event is set.
        """
        closed = green.Event()

        def close() -> None:
            try:
                socket = self.server.eio.sockets.get(eio_sid)
                if socket is not None:
                    socket.close(False, True, self.server.reason.TRANSPORT_CLOSE)
            finally:
                closed.send()

        green.run_soon(close)
        return closed

    def follow(self, sid: str, cursor: Cursor) -> None:
        """Add the offset of ``cursor`` to each event of this client of the namespace ``/``, until it has left."""
        self._cursors[sid] = cursor
        self._forget_lines(sid)

    def set_batching(self, sid: str, batching: bool) -> None:
        """Send several messages to this client of the namespace ``/`` in one event, until it has left.

        Not if its events have an offset.
        """
        if batching != (sid in self._batching):
            (self._batching.add if batching else self._batching.discard)(sid)
            self._forget_lines(sid)

    def _forget_lines(self, sid: str) -> None:
        for room in (None, *self.get_rooms(sid, "/")):
            self._lines.pop(("/", room), None)

    def cursor_of(self, sid: str) -> Cursor | None:
        """Return the cursor of a client whose events have an offset; None for others."""
        return self._cursors.get(sid)

    def resume(self, sid: str, eio_sid: str) -> bool:
        """Do what :meth:`pre_connect` does, with a ``sid`` that the client had before. Return False if it is in use."""
        if self.is_sid_room("/", sid) or self.sid_from_eio_sid(eio_sid, "/") is not None:
            return False
        self.basic_enter_room(sid, "/", None, eio_sid=eio_sid)
        self.basic_enter_room(sid, "/", sid, eio_sid=eio_sid)
        self.pending_connect.setdefault("/", []).append(sid)
        return True

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str,
        room: Any = None,
        skip_sid: Any = None,
        callback: Any = None,
        to: Any = None,
        **options: Any,
    ) -> None:
        """Emit like the stock manager. Yields to other green threads in large rooms."""
        # Also with a callback while events are kept: one that cannot be encoded raises here and is not kept.
        encoded = self._encode(event, data, namespace) if self._early or not callback else None
        packet = None if encoded is None or callback else framed(encoded)
        if self._early:
            again = functools.partial(self.emit, event, data, namespace, callback=callback, ignore_queue=True)
            skip_sid = self._keep_early(again, packet, namespace, to or room, skip_sid)
        if packet is None:
            if self._cursors and not callback and namespace == "/":
                skip_sid = self._emit_followed(event, data, to or room, skip_sid)
            super().emit(event, data, namespace, room=room, skip_sid=skip_sid, callback=callback, to=to, **options)
        elif namespace in self.rooms:
            skipped = skip_sid if isinstance(skip_sid, list) else [] if skip_sid is None else [skip_sid]
            self._send(packet, namespace, to or room, skipped)

    def _emit_followed(self, event: str, data: Any, room: Any, skip_sid: Any) -> list[Any]:
        """Emit binary data to members of ``room`` whose events have an offset. Return the members to skip, with these.

        A client takes any string that is the last argument for an offset.
        """
        skipped = list(skip_sid) if isinstance(skip_sid, list) else [skip_sid]
        arguments = data if isinstance(data, tuple) else (data,)
        for sid, _ in list(self.get_participants("/", room)):
            cursor = self._cursors.get(sid)
            if cursor is not None and sid not in skipped:
                super().emit(event, (*arguments, cursor.offset()), "/", to=sid)
                skipped.append(sid)
        return skipped

    def hold_early(self, sid: str) -> None:
        """Keep events for ``sid`` until :meth:`take_early`: nothing precedes the answer to its CONNECT."""
        self._early[sid] = []

    def take_early(self, sid: str) -> list[Callable[[], None]]:
        """Keep no more events for ``sid``. Return functions that send those that were kept, each of which may fail."""
        return self._early.pop(sid, [])

    def _keep_early(
        self, again: Callable[..., None], packet: EncodedPacket | None, namespace: str, room: Any, skip_sid: Any
    ) -> list[str]:
        """Keep an event for held members of ``room``. Return the members to skip, these included.

        ``again(to=...)`` emits the event, if it is not a ``packet`` already.
        """
        skipped = list(skip_sid) if isinstance(skip_sid, list) else [] if skip_sid is None else [skip_sid]
        rooms = room if isinstance(room, (list, tuple)) else (room,)
        for sid, kept in self._early.items():
            if sid not in skipped and self._is_in(sid, namespace, rooms):
                if packet is None:
                    kept.append(functools.partial(again, to=sid))
                else:
                    kept.append(functools.partial(self._send, packet, namespace, sid, ()))
                skipped.append(sid)
        return skipped

    def emit_in_order(
        self,
        event: str,
        rooms_and_data: Iterable[tuple[Sequence[str], Any]],
        namespace: str = "/",
        skipped: Mapping[str, Collection[Any]] | None = None,
        *,
        apart: bool = False,
        excluded: Sequence[str | None] | None = None,
    ) -> None:
        """Emit ``event`` for each (rooms, data), in order; each client gets all its messages in one send.

        ``skipped`` has the members of each room that get nothing; :meth:`pass_by` adds members during the broadcast.
        ``apart``: no client is in two of these rooms. ``excluded`` has for each (rooms, data) the client that does not
        get it.
        """
        there = self.rooms.get(namespace, {})
        runs: list[tuple[str, list[EncodedPacket]]] = []
        of_room: dict[str, list[EncodedPacket]] = {}
        for (rooms, data), exclude in zip(rooms_and_data, excluded or itertools.repeat(None), strict=False):
            rooms = [room for room in rooms if room in there]
            if not rooms:
                fan_out.unheard += 1
                continue
            packet = self.encode_message(event, data, namespace)
            packet.exclude = exclude
            for room in rooms:
                if apart:
                    of_room.setdefault(room, []).append(packet)
                elif runs and runs[-1][0] == room:
                    runs[-1][1].append(packet)
                else:
                    runs.append((room, [packet]))
        left_out = set(excluded) - {None} if excluded else ()
        if len(runs) > 1:
            self._send_runs(runs, namespace, skipped, left_out)
        else:
            self._send_rooms(of_room or dict(runs), namespace, skipped, left_out)

    def emit_parts(
        self, parts: Sequence[Part], namespace: str = "/", skipped: Mapping[str, Collection[Any]] | None = None
    ) -> None:
        """Send messages to rooms that may have members in common, in order: each member gets each once, in one send.

        ``skipped``: see :meth:`emit_in_order`.
        """
        packets_of = packets_of_rooms(parts)
        there = self.rooms.get(namespace, {})
        members_of = {room: there[room]._fwdm for room in packets_of if room in there}
        shared = shared_members(members_of, parts)
        # Collects all members first: clients that join during the broadcast get nothing of it.
        lines = [
            (room, packets_of[room], self._line(namespace, room))
            for room, members in members_of.items()
            if not members.keys() <= shared.keys()
        ]
        skips = skipped is not None
        with (
            self._broadcast(namespace, packets_of, skips=skips, apart=True) as alone,
            self._broadcast(namespace, packets_of, skips=skips, apart=True) as together,
        ):
            for room, sids in (skipped or {}).items():
                for sid in sids:
                    alone.end(sid, room)
                    together.end(sid, room)
            for sid, (_, rooms) in shared.items():
                for room in rooms:
                    alone.end(sid, room)
            turn_ends = time.monotonic() + self.sending.slice_seconds
            for room, packets, line in lines:
                turn_ends = self.sending.send_line(packets, line, alone, room, turn_ends)
            send_shared(self.sending, shared, parts, together, self._clients())

    def encode_message(self, event: str, argument: Any, namespace: str = "/") -> EncodedPacket:
        """Return ``event`` with one argument that has no binary data, which the stock encoder would look for."""
        text = self.server.packet_class.json.dumps([event, argument], separators=(",", ":"))
        text = f"{socketio.packet.EVENT}{'' if namespace == '/' else namespace + ','}{text}"
        packet = framed(text, argument.get("position") if isinstance(argument, dict) else None)
        packet.batchable = event == MESSAGE and namespace == "/"
        return packet

    def emit_page(self, packets: Sequence[EncodedPacket], sid: str, socket: Socket) -> None:
        """Send ``packets`` to the client ``sid``, in one send that does not count towards its send buffer.

        Does not wait; the caller waits for :meth:`Socket.wait_room` between two pages.
        """
        if socket.connection is not None:
            frame = joined(batches(packets) if sid in self._batching else packets)
            socket.connection.send_page(frame)
            fan_out.frames += len(packets)
            fan_out.frame_bytes += len(frame)
        else:
            with socket.sending_page():
                self.sending.send_polled(packets, socket.sid, sid in self._batching)

    def lagging(self, room: str, buffered: int, namespace: str = "/") -> list[str]:
        """Return the members of ``room`` whose send buffers have more than ``buffered`` bytes."""
        if room not in self.rooms.get(namespace, {}):
            return []
        line = self._line(namespace, room)
        lagging = [sid for sid, socket, _ in line.followed if socket.buffered > buffered]
        for group in line.groups():
            lagging += [sid for sid, one in zip(group.sids, group.transports, strict=True) if one.buffered > buffered]
            for sid, eio_sid in group.polling:
                socket = self.server.eio.sockets.get(eio_sid)
                if socket is not None and socket.buffered > buffered:
                    lagging.append(sid)
        return lagging

    def socket_of(self, sid: str, namespace: str = "/") -> Socket | None:
        """Return the Engine.IO socket of the client ``sid``; None when it has left."""
        socket: Socket | None = self.server.eio.sockets.get(self.eio_sid_from_sid(sid, namespace))
        return socket

    def pass_by(self, sid: str, room: str, namespace: str = "/") -> None:
        """Send ``sid`` nothing more of the broadcasts in progress to ``room`` that skip members."""
        for broadcast in self._under_way:
            then = broadcast.room_then(sid, room)
            if broadcast.skips and broadcast.namespace == namespace and then in broadcast.rooms:
                broadcast.end(sid, then)

    def move(self, sid: str, room: str, to: str, namespace: str = "/") -> None:
        """Move a member from ``room`` to the room ``to``. Broadcasts in progress to ``room`` still reach it."""
        eio_sid = self.eio_sid_from_sid(sid, namespace)
        self._leave(sid, namespace, room)
        self.basic_enter_room(sid, namespace, to, eio_sid)
        for broadcast in self._under_way:
            then = broadcast.room_then(sid, room)
            broadcast.moved.pop((sid, room), None)
            if broadcast.namespace == namespace and then in broadcast.rooms:
                broadcast.moved[sid, to] = then

    def _encode(self, event: str, data: Any, namespace: str) -> str | None:
        """Return the encoded Socket.IO packet; None for a binary one."""
        arguments = list(data) if isinstance(data, tuple) else [] if data is None else [data]
        text = quick_packet(EVENT, namespace, [event, *arguments])
        if text is not None:
            return text
        packet = self.server.packet_class(EVENT, namespace=namespace, data=[event, *arguments])
        encoded = packet.encode()
        return encoded if isinstance(encoded, str) else None

    def _send(self, packet: EncodedPacket, namespace: str, room: Any, skipped: Collection[Any]) -> None:
        """Send a packet to the members of a room, or once to each member of several rooms."""
        if not skipped and isinstance(room, str) and self._send_single(packet, namespace, room):
            return
        line = self._line(namespace, room)
        with self._broadcast(namespace, room if isinstance(room, (list, tuple)) else (room,)) as broadcast:
            for sid in skipped:
                broadcast.end(sid, None)
            self.sending.send_line([packet], line, broadcast, None, time.monotonic() + self.sending.slice_seconds)

    def _send_single(self, packet: EncodedPacket, namespace: str, room: str) -> bool:
        """Send a packet to the only member of a room, such as its own. Return False if there are more, or it polls."""
        members = self.rooms[namespace].get(room, ())
        if len(members) != 1:
            return False
        ((sid, eio_sid),) = members.items()
        if sid in self._cursors:
            return False
        socket = self.server.eio.sockets.get(eio_sid)
        if socket is None or socket.connection is None:
            return False
        socket.connection.send(packet.frame)
        fan_out.frames += 1
        fan_out.frame_bytes += len(packet.frame)
        return True

    def _send_rooms(
        self,
        packets_of: Mapping[str, Sequence[EncodedPacket]],
        namespace: str,
        skipped: Mapping[str, Collection[Any]] | None,
        left_out: Collection[Any],
    ) -> None:
        """Send each room its own packets. The rooms have no member in common.

        ``left_out``: the members that do not get all packets.
        """
        # Collects all members first: clients that join during the broadcast get nothing of it.
        lines = [(room, packets, self._line(namespace, room)) for room, packets in packets_of.items()]
        turn_ends = time.monotonic() + self.sending.slice_seconds
        with self._broadcast(namespace, packets_of, skips=skipped is not None, apart=True) as broadcast:
            for room, sids in (skipped or {}).items():
                for sid in sids:
                    broadcast.end(sid, room)
            for sid in left_out:
                self._send_part(packets_of, namespace, sid, broadcast)
            for room, packets, line in lines:
                turn_ends = self.sending.send_line(packets, line, broadcast, room, turn_ends)

    def _send_part(
        self, packets_of: Mapping[str, Sequence[EncodedPacket]], namespace: str, sid: str, broadcast: Broadcast
    ) -> None:
        """Send a member the packets that do not exclude it, before the others get theirs. Does not yield."""
        for room, packets in packets_of.items():
            eio_sid = self.rooms.get(namespace, {}).get(room, {}).get(sid)
            if eio_sid is None or sid in broadcast.gone_from(room):
                continue
            broadcast.end(sid, room)
            part = [packet for packet in packets if packet.exclude != sid]
            socket = self.server.eio.sockets.get(eio_sid)
            if part and socket is not None:
                cursor = self._cursors.get(sid) if namespace == "/" else None
                its = part if cursor is None else with_offsets(part, cursor)
                self.sending.send_to(its, socket, sid in self._batching)

    def _send_runs(
        self,
        runs: Sequence[tuple[str, Sequence[EncodedPacket]]],
        namespace: str,
        skipped: Mapping[str, Collection[Any]] | None,
        left_out: Collection[Any],
    ) -> None:
        """Send to overlapping rooms: a client in several of them gets all messages in the order of publication."""
        shares: dict[str, list[Share]] = {}
        for room, packets in runs:
            frame = joined(packets)
            batch = b""
            passed_by = set((skipped or {}).get(room, ()))
            for sid, eio_sid in self.get_participants(namespace, room):
                if sid in passed_by:
                    continue
                if sid in left_out:
                    part = [packet for packet in packets if packet.exclude != sid]
                    if part:
                        piece = joined(batches(part) if sid in self._batching else part)
                        shares.setdefault(eio_sid, []).append((sid, room, part, piece))
                elif sid in self._batching:
                    batch = batch or joined(batches(packets))
                    shares.setdefault(eio_sid, []).append((sid, room, packets, batch))
                else:
                    shares.setdefault(eio_sid, []).append((sid, room, packets, frame))
        rooms = {room for room, _ in runs}
        with self._broadcast(namespace, rooms, skips=skipped is not None, apart=True) as broadcast:
            self.sending.send_shares(shares, self._clients(), broadcast)

    def _clients(self) -> Clients:
        return Clients(self.server.eio.sockets, self._cursors, self._batching)

    @contextlib.contextmanager
    def _broadcast(
        self, namespace: str, rooms: Collection[Any], *, skips: bool = False, apart: bool = False
    ) -> Iterator[Broadcast]:
        """Record members that leave while the body runs. A member that returns is a new subscriber."""
        broadcast = Broadcast(namespace, rooms, skips, apart, {}, {})
        self._under_way.append(broadcast)
        try:
            yield broadcast
        finally:
            self._under_way.remove(broadcast)

    def _is_in(self, sid: str, namespace: str, rooms: Collection[Any]) -> bool:
        return any(sid in self.rooms.get(namespace, {}).get(one, ()) for one in rooms)

    def _line(self, namespace: str, room: Any) -> Line:
        """Return the room's members, grouped for sending; cached until one joins or leaves."""
        key = (namespace, room) if isinstance(room, str) or room is None else None
        line = self._lines.get(key) if key else None
        if line is None:
            line = Line()
            sockets = self.server.eio.sockets
            cursors = self._cursors if namespace == "/" else {}
            batching = self._batching if namespace == "/" else ()
            for sid, eio_sid in self.get_participants(namespace, room):
                socket = sockets.get(eio_sid)
                if cursors and sid in cursors:
                    if socket is not None:
                        line.followed.append((sid, socket, cursors[sid]))
                else:
                    group: Group = line
                    if batching and sid in batching:
                        if line.batching is None:
                            line.batching = Group()
                        group = line.batching
                    group.add(sid, eio_sid, None if socket is None else socket.connection)
            if key and line.can_be_kept():
                self._lines[key] = line
        return line

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        self._lines.pop((namespace, room), None)
        members = self.rooms.get(namespace, {}).get(room)
        if members is None or eio_sid is None:
            super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        elif members._invm.setdefault(eio_sid, sid) != sid:
            raise ValueDuplicationError(eio_sid)
        else:
            members._fwdm[sid] = eio_sid  # as the stock method, without its checks of the other direction
        if room is not None and room != sid:
            self._rooms_of.setdefault((namespace, sid), set()).add(room)

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        self._leave(sid, namespace, room)
        for broadcast in self._under_way:
            then = broadcast.room_then(sid, room)
            concerned = broadcast.namespace == namespace and then in broadcast.rooms
            if concerned and (broadcast.apart or not self._is_in(sid, namespace, broadcast.rooms)):
                broadcast.end(sid, then)

    def _leave(self, sid: str, namespace: str, room: Any) -> None:
        self._lines.pop((namespace, room), None)
        super().basic_leave_room(sid, namespace, room)
        rooms = self._rooms_of.get((namespace, sid))
        if rooms is not None:
            rooms.discard(room)
            if not rooms:
                del self._rooms_of[namespace, sid]

    def get_rooms(self, sid: str, namespace: str) -> list[Any]:
        own = [sid] if self.is_sid_room(namespace, sid) else []
        return [*own, *self._rooms_of.get((namespace, sid), ())]

    def basic_disconnect(self, sid: str, namespace: str, **_: Any) -> None:
        for room in self.get_rooms(sid, namespace):
            self.basic_leave_room(sid, namespace, room)
        self.basic_leave_room(sid, namespace, None)
        self.callbacks.pop(sid, None)
        if namespace == "/":
            self._cursors.pop(sid, None)
            self._batching.discard(sid)
            if sid in self._left:
                self._left.pop(sid).send()
        for pending in (self.pending_connect, self.pending_disconnect):
            sids = pending.get(namespace, [])
            if sid in sids:
                sids.remove(sid)
                if not sids:
                    del pending[namespace]
