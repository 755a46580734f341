"""The rows that new subscribers of a table get, and the changes after them, until they are live.

Clients that want the same rows at the same time share a sequence: one SELECT, and each change is prepared once.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from socketio_pg.core import green
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.pubsub.filters import Filter
from socketio_pg.tables.changes import Event
from socketio_pg.tables.feed import NOT_JSON, Feed
from socketio_pg.tables.reading import Rows, TableReader, pauses
from socketio_pg.tables.views import PlainViews, RestartError, Touched, View, ViewKey


@dataclass(frozen=True, slots=True)
class RowsPage:
    """Rows as JSON texts."""

    rows: Sequence[str]
    first: bool
    last: bool


#: A part of a sequence: rows, or changes.
Page: TypeAlias = RowsPage | list[Event]


class RowsSequence:
    """The rows of a view, and the changes after ``position`` in the log that were read so far.

    ``rows`` is None for a client that continues after a position. ``page_bytes`` is the size of a page of rows.
    ``charge(filter, steps)`` counts the cost of the view's filter. ``released(size)`` is called once the rows are gone.
    """

    #: Bytes of changes that are kept for clients that read more slowly than others; past it they get new rows.
    most_kept = 4_000_000

    def __init__(
        self,
        feed: Feed,
        key: ViewKey,
        reader: TableReader,
        epoch: str | None,
        position: int,
        rows: Rows | None,
        page_bytes: int,
        charge: Callable[[Filter, int], None],
        released: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.feed = feed
        self.key = key
        self.epoch = epoch
        self.position = position
        self.count = None if rows is None else len(rows.rows)
        self.complete = rows is None or rows.complete
        #: The position of the rows.
        self.start = position
        #: The keys of the rows that its members have at `position`, if they are checked.
        self.keys: set[str] = set() if rows is None else set(rows.keys)
        self._reader = reader
        self._charge = charge
        self._released = released
        self._pages: list[Page] = [] if rows is None else list(_pages(rows.rows, page_bytes))
        self._row_pages = len(self._pages)
        self.size = 0 if rows is None else sum(map(len, rows.rows))
        self._dropped = 0
        self._kept = 0
        self._at: dict[Hashable, int] = {}
        self._lagging: set[Hashable] = set()
        #: Messages that the rows include, although their positions follow: ids without a position, and positions.
        self._pending: set[int] = set() if rows is None else set(rows.pending)
        self._included: set[int] = set()
        self._extending = green.Lock()
        self._plain = PlainViews(charge)
        self._view = View(key)
        self._plain.add(self._view)

    def add(self, member: Hashable) -> bool:
        """Let ``member`` begin at the beginning. Return False if that is gone already."""
        if self._dropped:
            return False
        self._at[member] = 0
        return True

    def discard(self, member: Hashable) -> None:
        """Forget a member, which is live, or has left."""
        self._at.pop(member, None)
        self._lagging.discard(member)
        self._trim()

    def next(self, member: Hashable) -> Page | None:
        """Return the next page for a member; None if it has all that was read. Raises :class:`RestartError`."""
        if member in self._lagging:
            raise RestartError("lagging")
        if not self.has_more(member):
            return None
        index = self._at[member]
        page = self._pages[index - self._dropped]
        self._at[member] = index + 1
        self._trim()
        return page

    def has_more(self, member: Hashable) -> bool:
        """Return whether :meth:`next` returns a page."""
        return self._at.get(member, 0) - self._dropped < len(self._pages)

    @property
    def settled(self) -> bool:
        """Whether all further messages are changes that the rows do not include."""
        return not self._pending and all(position <= self.position for position in self._included)

    def extend(self, member: Hashable) -> None:
        """Read the next changes up to the feed's position, unless ``member`` has not got all yet. May wait.

        Raises :class:`RestartError`, :class:`DatabaseError`, or what has become of the view's clients.
        """
        with self._extending:
            if self.has_more(member):
                return
            upto = self.feed.position
            self.feed.check_epoch(self.epoch)
            if self._pending:
                self._settle()
            if self.position >= upto:
                return
            end, messages = self.feed.read(self.position, upto)
            messages = [message for message in messages if message.position not in self._included]
            events = self._events(messages) if messages else []
            self.feed.check_epoch(self.epoch)
            self.position = end
            if events:
                self._kept += sum(len(event.payload) for event in events)
                self._pages.append(events)
                self._drop_slow()

    def _settle(self) -> None:
        found = self._reader.positions(self.start, self._pending)
        self._included |= {position for position in found.values() if position is not None}
        # An id that is in neither table was deleted by hand.
        self._pending = {id for id, position in found.items() if position is None}

    def _events(self, messages: Sequence[EncodedMessage]) -> list[Event]:
        try:
            changes = self.feed.changes(messages)
            seer = self.key.seer
            if seer is None:
                return self._plain.events(changes, pauses()).get(self._view, [])
            touched = Touched(changes)
        except NOT_JSON:
            raise RestartError("no_json") from None
        seen = self.feed.check([seer], touched)[seer]
        if isinstance(seen, SocketIOPGError):
            raise seen
        return touched.events(seen, self.keys, self.key.filter, self._charge)

    def _drop_slow(self) -> None:
        """Keep no changes for members that are far behind."""
        while self._kept > self.most_kept and self._at:
            slowest = min(self._at.values())
            if slowest - self._dropped >= len(self._pages) - 1:
                return  # they have only the newest page left
            slow = [member for member, index in self._at.items() if index == slowest]
            self._lagging.update(slow)
            for member in slow:
                del self._at[member]
            self._trim()

    def _trim(self) -> None:
        least = min(self._at.values(), default=self._dropped + len(self._pages))
        count = least - self._dropped
        for page in self._pages[:count]:
            if isinstance(page, list):
                self._kept -= sum(len(event.payload) for event in page)
        del self._pages[:count]
        self._dropped = least
        if self.size and self._dropped >= self._row_pages:
            size, self.size = self.size, 0
            self._released(size)


def _pages(rows: Sequence[str], most: int) -> list[RowsPage]:
    """Return the rows in pages of about ``most`` bytes, at least one page."""
    parts: list[list[str]] = [[]]
    size = 0
    for row in rows:
        if size > most:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += len(row) if row.isascii() else len(row.encode())
    return [RowsPage(part, index == 0, index == len(parts) - 1) for index, part in enumerate(parts)]
