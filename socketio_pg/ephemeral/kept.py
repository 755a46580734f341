"""The newest messages for clients that read too slowly, until they have caught up. Pure, no I/O."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from socketio_pg.protocol.encoded import EncodedPacket

#: Bytes that are kept for a client; beyond that the oldest are dropped.
MAX_KEPT = 65_536

#: A room, the sender of a message, and its key.
Source: TypeAlias = tuple[str, str, str | None]


class Kept:
    """The newest message of each source, for each client that has any."""

    def __init__(self) -> None:
        self._clients: dict[str, dict[Source, EncodedPacket]] = {}
        self._sizes: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._clients)

    def __contains__(self, sid: str) -> bool:
        return sid in self._clients

    def __iter__(self) -> Iterator[str]:
        """Iterate over the clients, of which some may be dropped meanwhile."""
        return iter(list(self._clients))

    def add(self, sid: str, packets: Iterable[tuple[Source, EncodedPacket]]) -> int:
        """Keep ``packets`` for a client. Return the number of older messages that are dropped for them."""
        kept = self._clients.setdefault(sid, {})
        size = self._sizes.get(sid, 0)
        dropped = 0
        for source, packet in packets:
            older = kept.pop(source, None)
            if older is not None:
                size -= len(older.frame)
                dropped += 1
            kept[source] = packet
            size += len(packet.frame)
        while size > MAX_KEPT and len(kept) > 1:
            size -= len(kept.pop(next(iter(kept))).frame)
            dropped += 1
        self._sizes[sid] = size
        return dropped

    def take(self, sid: str) -> dict[Source, EncodedPacket]:
        """Return what is kept for a client, the oldest first, and forget it."""
        self._sizes.pop(sid, None)
        return self._clients.pop(sid, {})
