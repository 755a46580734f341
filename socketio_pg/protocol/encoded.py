"""Encoded Socket.IO packets with their WebSocket frames: encoded once for all clients that get them."""

from collections.abc import Sequence
from dataclasses import dataclass

from socketio_pg.engine import frames
from socketio_pg.protocol.offsets import Cursor


@dataclass(eq=False, slots=True)
class EncodedPacket:
    """An encoded Socket.IO packet, and its WebSocket frame. ``position`` is that of a message of the log.

    ``exclude``: the id of a client that does not get it.
    """

    text: str
    frame: bytes
    position: int | None = None
    exclude: str | None = None
    #: The last offset that was added, and the packet with it.
    _added: "tuple[str, EncodedPacket] | None" = None

    def with_offset(self, offset: str) -> "EncodedPacket":
        """Return this event with one more argument. Clients that get the same offset share the result."""
        if self._added is None or self._added[0] != offset:
            self._added = offset, framed(f'{self.text[:-1]},"{offset}"]')
        return self._added[1]


def framed(text: str, position: int | None = None) -> EncodedPacket:
    """Return an encoded packet with its frame."""
    return EncodedPacket(text, frames.encode_text("4" + text), position)


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
