"""Encoded Socket.IO packets with their WebSocket frames: encoded once for all clients that get them."""

from collections.abc import Sequence
from dataclasses import dataclass

from socketio_pg.engine import frames
from socketio_pg.protocol.offsets import Cursor

#: The event of one message, and that of several for clients that take batches.
MESSAGE, BATCH = "event", "events"
#: The most messages of a batch, and the most characters. A larger message is sent alone. Clients handle all messages of
#: a batch at once: it must not fill the buffer of a loop that keeps up.
BATCH_MESSAGES, BATCH_SIZE = 100, 65_536


@dataclass(eq=False, slots=True)
class EncodedPacket:
    """An encoded Socket.IO packet, and its WebSocket frame. ``position`` is that of a message of the log.

    ``exclude``: the id of a client that does not get it. ``batchable``: it is an event :data:`MESSAGE` of the namespace
    ``/`` with one argument.
    """

    text: str
    frame: bytes
    position: int | None = None
    exclude: str | None = None
    batchable: bool = False
    #: The last offset that was added, and the packet with it.
    _added: "tuple[str, EncodedPacket] | None" = None

    def with_offset(self, offset: str) -> "EncodedPacket":
        """Return this event with one more argument. Clients that get the same offset share the result."""
        if self._added is None or self._added[0] != offset:
            self._added = offset, framed(f'{self.text[:-1]},"{offset}"]')
        return self._added[1]


#: How the text of a packet that is batchable begins; its message and a bracket follow.
_HEAD = f'2["{MESSAGE}",'


def framed(text: str, position: int | None = None) -> EncodedPacket:
    """Return an encoded packet with its frame."""
    return EncodedPacket(text, frames.encode_text("4" + text), position)


def batches(packets: Sequence[EncodedPacket]) -> Sequence[EncodedPacket]:
    """Return ``packets`` with each run of messages put into as few events :data:`BATCH` as possible."""
    if len(packets) < 2:
        return packets
    found: list[EncodedPacket] = []
    run: list[EncodedPacket] = []
    size = 0
    for packet in packets:
        full = len(run) == BATCH_MESSAGES or size + len(packet.text) > BATCH_SIZE
        if run and (full or not packet.batchable):
            found.append(_batch(run))
            run, size = [], 0
        if packet.batchable:
            run.append(packet)
            size += len(packet.text)
        else:
            found.append(packet)
    if run:
        found.append(_batch(run))
    return found


def _batch(run: Sequence[EncodedPacket]) -> EncodedPacket:
    if len(run) == 1:
        return run[0]
    bodies = ",".join([packet.text[len(_HEAD) : -1] for packet in run])
    return framed(f'2["{BATCH}",[{bodies}]]')


def joined(packets: Sequence[EncodedPacket]) -> bytes:
    """Return the frames of ``packets`` in one piece."""
    return b"".join([packet.frame for packet in packets])


def with_offsets(packets: Sequence[EncodedPacket], cursor: Cursor) -> list[EncodedPacket]:
    """Return ``packets`` with the offsets that they have for the client of ``cursor``, which they move on."""
    found = []
    for packet in packets:
        if packet.position is not None:
            cursor.sent = packet.position
        found.append(packet.with_offset(cursor.offset()))
    return found
