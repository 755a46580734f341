"""What a broadcast consists of: who is to get it, who gets no more of it, and its packets. Pure, no I/O."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from socketio_pg.engine import frames


class Line:
    """The members of a room: ids and ``Connection.send`` of those with a WebSocket of ours, and the others' two ids."""

    __slots__ = ("others", "sends", "sids")

    def __init__(self) -> None:
        self.sids: list[str] = []
        self.sends: list[Any] = []
        self.others: list[tuple[str, str]] = []


@dataclass(eq=False, slots=True)
class Broadcast:
    """One that is under way, and who has ``gone``: they get no more of it.

    Of one to ``rooms`` together, who has left all of them; of one that is ``apart``, where each room gets its own, by
    room. ``skips``: in this one members are passed by.
    """

    namespace: str
    rooms: Collection[Any]
    skips: bool
    apart: bool
    gone: dict[Any, set[Any]]
    #: (id, room) → the room in which a member was when it began, of those who have moved since.
    moved: dict[tuple[Any, Any], Any]

    def gone_from(self, room: Any) -> Collection[Any]:
        return self.gone.get(room if self.apart else None, ())

    def end(self, sid: Any, room: Any) -> None:
        self.gone.setdefault(room if self.apart else None, set()).add(sid)

    def room_then(self, sid: Any, room: Any) -> Any:
        """In which room a member was, as whose member it gets its share."""
        return self.moved.get((sid, room), room)


@dataclass(frozen=True, eq=False, slots=True)
class Packet:
    """An encoded Socket.IO packet, and its WebSocket frame."""

    text: str
    frame: bytes


def framed(text: str) -> Packet:
    return Packet(text, frames.encode_text("4" + text))
