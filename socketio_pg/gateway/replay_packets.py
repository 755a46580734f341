"""The packets of replayed messages: each message is encoded once for all clients that return at the same time."""

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
        #: Message and packet by the id of the message object, which no other object has while this one is kept. Not by
        #: position: another epoch has it again, and a row of the log may be changed by hand.
        self._kept: dict[int, tuple[EncodedMessage, EncodedPacket]] = {}
        self._size = 0

    def of(self, message: EncodedMessage) -> EncodedPacket:
        """Return the event of ``message``, marked as replayed."""
        found = self._kept.get(id(message))
        if found is not None:
            return found[1]
        packet = self._manager.encode_message("event", message.to_wire() | {"replayed": True})
        self._kept[id(message)] = message, packet
        self._size += self._size_of(message, packet)
        while self._size > self._max_bytes:
            self._size -= self._size_of(*self._kept.pop(next(iter(self._kept))))
        return packet

    def _size_of(self, message: EncodedMessage, packet: EncodedPacket) -> int:
        return len(message.payload_json) + len(packet.text) + len(packet.frame) + self.overhead
