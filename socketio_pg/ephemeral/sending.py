"""Sends the messages of a round to the rooms of their channel, and what was kept for slow clients."""

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from socketio_pg.core import green, metrics
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.metrics import fan_out
from socketio_pg.engine.socket import Socket
from socketio_pg.ephemeral.kept import Kept
from socketio_pg.ephemeral.messages import EphemeralMessage
from socketio_pg.protocol.encoded import EncodedPacket, framed, joined
from socketio_pg.protocol.fanout import Manager
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.matching import FilterCost, Matching

#: A client gets nothing while more than this waits in its send buffer.
MAX_WAITING = 16_384
#: Seconds of sending before other green threads run, and clients between two readings of the clock.
SLICE_SECONDS, SLICE_CLIENTS = 0.002, 50

#: A room of the channel, and the payload in the form that this room gets.
RoomAndPayload: TypeAlias = tuple[str, str]

_replaced = metrics.ephemeral_dropped.labels("slow_reader")


class Slices:
    """Lets other green threads run between slices of work, and adds up the time of the work."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._began = time.monotonic()

    def pause_if_due(self) -> bool:
        """Let others run if the slice is over. Return whether they have run."""
        if time.monotonic() - self._began < SLICE_SECONDS:
            return False
        self.end()
        green.sleep()
        self._began = time.monotonic()
        return True

    def end(self) -> None:
        """Add up the last slice."""
        self.spent += time.monotonic() - self._began


class EphemeralSending:
    """Sends to the clients of one process.

    ``rooms_of(message)`` returns the rooms that get a message; a client is in one of them. ``charge(costs)`` accounts
    for the filters that were tried.
    """

    def __init__(
        self,
        manager: Manager,
        hub: Hub,
        matching: Matching,
        rooms_of: Callable[[EncodedMessage], Sequence[RoomAndPayload]],
        charge: Callable[[Sequence[FilterCost]], None],
    ) -> None:
        self._manager = manager
        self._hub = hub
        self._matching = matching
        self._rooms_of = rooms_of
        self._charge = charge
        self.kept = Kept()

    def send(self, channel: str, messages: Sequence[EphemeralMessage], slices: Slices) -> None:
        """Send the messages of one round of ``channel``. Yields."""
        if self._hub.filters(channel) is None and not self._hub.has_strings(channel):
            packets = [(message, framed(message.packet())) for message in messages]
            self._send_room(channel, packets, slices)
            return
        of_room: dict[str, list[tuple[EphemeralMessage, EncodedPacket]]] = {}
        encoded = [EncodedMessage(channel, message.payload_json) for message in messages]
        self._matching.prepare(encoded)
        try:
            for message, one in zip(messages, encoded, strict=True):
                forms: dict[str, EncodedPacket] = {}
                for room, payload in self._rooms_of(one):
                    if payload not in forms:
                        forms[payload] = framed(message.packet(payload))
                    of_room.setdefault(room, []).append((message, forms[payload]))
            if self._matching.has_due:
                self._charge(self._matching.take_due())
        finally:
            self._matching.finish(encoded)
        for room, packets in of_room.items():
            self._send_room(room, packets, slices)

    def _send_room(self, room: str, messages: Sequence[tuple[EphemeralMessage, EncodedPacket]], slices: Slices) -> None:
        manager, kept = self._manager, self.kept
        sockets = manager.server.eio.sockets
        packets = [packet for _, packet in messages]
        frame = joined(packets)
        senders = {message.sender for message, _ in messages if not message.echo}
        # A client that is restored gets nothing before the answer to its CONNECT.
        early = set(manager.pending_connect.get("/", ()))
        frames = sent_bytes = 0
        paused = False
        for number, (sid, eio_sid) in enumerate(manager.get_participants("/", room), 1):
            if number % SLICE_CLIENTS == 0:
                paused |= slices.pause_if_due()
            if paused and not self._is_in(sid, room):
                continue  # it has left meanwhile
            socket = sockets.get(eio_sid)
            if socket is None or sid in early:
                continue
            its = messages
            if sid in senders:
                its = [one for one in messages if one[0].sender != sid or one[0].echo]
                if not its:
                    continue
            if sid in kept or socket.buffered > MAX_WAITING:
                _replaced.inc(kept.add(sid, [((room, one.sender, one.key), packet) for one, packet in its]))
            elif socket.connection is not None:
                data = frame if its is messages else joined([packet for _, packet in its])
                socket.connection.send(data)
                frames += len(its)
                sent_bytes += len(data)
            else:
                manager.sending.send_polled([packet for _, packet in its], eio_sid)
        fan_out.frames += frames
        fan_out.frame_bytes += sent_bytes

    def send_kept(self, slices: Slices) -> None:
        """Send what was kept for clients that have caught up. Yields."""
        for sid in self.kept:
            socket = self._manager.socket_of(sid)
            if socket is None or socket.closed:
                self.kept.take(sid)
            elif socket.buffered <= MAX_WAITING:
                self._send_to(sid, socket)
                slices.pause_if_due()

    def _send_to(self, sid: str, socket: Socket) -> None:
        # Not in rooms that it has left, or that its subscription has left for those of another filter.
        packets = [packet for source, packet in self.kept.take(sid).items() if self._is_in(sid, source[0])]
        if packets:
            self._manager.sending.send_to(packets, socket)

    def _is_in(self, sid: str, room: str) -> bool:
        return sid in self._manager.rooms.get("/", {}).get(room, ())
