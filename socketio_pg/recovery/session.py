"""A session that its client can recover: its contents, and their form in the database. No I/O."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from socketio_pg.access.tokens import Claims
from socketio_pg.protocol.offsets import Cursor


class NotRecoveredError(Exception):
    """A session cannot be given back. ``reason``: see docs/recovery.md; ``channels``: those that are the reason."""

    def __init__(self, reason: str, channels: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.channels = channels


@dataclass(frozen=True, slots=True)
class Ticket:
    """The contents of a pid. ``who`` stands for the client's identity; the session began after ``position``."""

    sid: str
    who: str
    epoch: str
    position: int
    #: Seconds since 1970.
    began: float


@dataclass(slots=True)
class Entry:
    """A subscription of a session: what the client asked for, and where it began.

    ``replaying``: the replay that the client asked for is not over; a number: it ended at this position of the log.
    Offsets name it by its ``number``. Positions do not tell how far one of a ``snapshot`` has got.
    """

    number: int
    after: int
    filter: Any = None
    strings: bool = False
    replaying: bool | int | Literal["snapshot"] = False
    #: What the client is in the channel: gateway/presence_rooms.
    presence: dict[str, Any] | None = None


@dataclass(eq=False, slots=True)
class Session:
    """A session that this node has. ``eio_sid`` is the connection that has it; None while its client is away."""

    ticket: Ticket
    pid: str
    cursor: Cursor
    eio_sid: str | None
    entries: dict[str, Entry] = field(default_factory=dict)
    #: Channels of which NOTIFY messages may have been missed.
    notified: set[str] = field(default_factory=set)
    numbers: int = 0
    #: When the client was lost (monotonic).
    left_at: float | None = None

    def to_text(self, notified: Collection[str]) -> str:
        """Return the subscriptions for the database. ``notified``: more channels than those of the session itself."""
        entries: dict[str, list[Any]] = {}
        for channel, one in self.entries.items():
            missed = channel in self.notified or channel in notified
            entries[channel] = [one.number, one.after, one.filter, one.strings, one.replaying, missed]
            if one.presence is not None:  # nodes of an older version cannot read it
                entries[channel].append(one.presence)
        return json.dumps(entries, separators=(",", ":"))

    def load(self, text: str) -> None:
        """Set the subscriptions to those of :meth:`to_text`."""
        self.entries, self.notified = {}, set()
        for channel, (number, after, filter, strings, replaying, notified, *further) in json.loads(text).items():
            self.entries[channel] = Entry(number, after, filter, strings, replaying, *further)
            if notified:
                self.notified.add(channel)
        self.numbers = max((entry.number for entry in self.entries.values()), default=0)
        self.cursor.numbers = {channel: entry.number for channel, entry in self.entries.items()}


def identity_of(claims: Claims | None) -> str:
    """Return a text that is equal for clients of the same ``sub``, and for anonymous ones."""
    subject = None if claims is None else claims.subject
    return "" if subject is None else hashlib.blake2b(subject.encode(), digest_size=16).hexdigest()
