"""The packets of replayed messages: each message is encoded once for all clients that return at the same time."""

from collections.abc import Sequence
from typing import Any

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.protocol.encoded import EncodedPacket
from socketio_pg.protocol.fanout import Manager


class ReplayPackets:
    """Encodes messages as replays send them, and keeps the newest packets: about ``max_bytes`` in all."""

    #: Bytes counted for a packet in addition to its texts.
    overhead = 400

    def __init__(self, manager: Manager, max_bytes: int = 8_000_000) -> None:
        self._manager = manager
        self._max_bytes = max_bytes
        #: Message and packet by the id of the message object, which no other object has while this one is kept, and the
        #: names. Not by position: another epoch has it again, and a row of the log may be changed by hand.
        self._kept: dict[tuple[int, tuple[str, ...]], tuple[EncodedMessage, EncodedPacket]] = {}
        self._size = 0

    def of(self, message: EncodedMessage, names: Sequence[str] = ()) -> EncodedPacket:
        """Return the event of ``message``, marked as replayed, through the client's subscriptions ``names``."""
        key = id(message), tuple(names) or (message.channel,)
        found = self._kept.get(key)
        if found is not None:
            return found[1]
        packet = self._manager.encode_message(
            "event", message.to_wire() | {"replayed": True} | through(message.channel, names)
        )
        self._kept[key] = message, packet
        self._size += self._size_of(message, packet)
        while self._size > self._max_bytes:
            self._size -= self._size_of(*self._kept.pop(next(iter(self._kept))))
        return packet

    def _size_of(self, message: EncodedMessage, packet: EncodedPacket) -> int:
        return len(message.payload_json) + len(packet.text) + len(packet.frame) + self.overhead


def through(channel: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the field of an event that says through which subscriptions of its client the message came.

    None if only through the one to its channel.
    """
    if len(names) > 1:
        return {"matches": names}
    return {"pattern": names[0]} if names and names[0] != channel else {}
