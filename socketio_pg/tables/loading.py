"""Loads live tables for clients: definitions and rights, which are remembered for a while, and the rows."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from socketio_pg.core import green, metrics
from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.pubsub.filters import Filter
from socketio_pg.tables.checks import Seer
from socketio_pg.tables.definition import Definition, Rights, check_columns
from socketio_pg.tables.feed import Feed
from socketio_pg.tables.reading import Identity, Query, TableReader
from socketio_pg.tables.requests import Place
from socketio_pg.tables.sequence import RowsSequence
from socketio_pg.tables.views import Form, ViewKey

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The subscription of a client."""

    form: Form
    query: Query

    @property
    def place(self) -> Place:
        return self.form.place


@dataclass(frozen=True, slots=True)
class Shown:
    """A table as a client sees it: its definition, the rights of its role, and the view that it belongs to."""

    table: Definition
    rights: Rights
    identity: Identity
    key: ViewKey


class _Shared(Generic[T]):
    """Results of a function by their keys: those of calls in progress are shared, and kept for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: dict[Hashable, tuple[float, T]] = {}
        self._flights: dict[Hashable, green.Event] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() < kept[0]:
            return kept[1]
        flight = self._flights.get(key)
        if flight is not None:
            result = flight.wait()
            if isinstance(result, BaseException):
                raise result
            return result  # type: ignore[no-any-return]
        flight = self._flights[key] = green.Event()
        answer: T | BaseException = DatabaseUnavailableError("rows cannot be read at the moment")
        try:
            answer = found = make()
            if self._flights.get(key) is flight and self._seconds:
                if len(self._kept) > 1000:
                    self._kept.clear()
                self._kept[key] = time.monotonic() + self._seconds, found
            return found
        except Exception as error:
            answer = error
            raise
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            flight.send(answer)

    def clear(self) -> None:
        """Forget results, also of calls in progress."""
        self._kept.clear()
        self._flights.clear()


class Loader:
    """Loads tables for all clients of this node.

    ``feed_of(table, checked)`` returns the feed of a table. ``page_bytes`` is the size of a page of rows.
    """

    #: Seconds for which definitions and rights are remembered.
    remembered = 5.0
    #: Bytes of rows in memory, of all clients that are reading them.
    most_bytes = 64_000_000

    def __init__(self, reader: TableReader, feed_of: Callable[[Definition, bool], Feed], page_bytes: int) -> None:
        self._reader = reader
        self._feed_of = feed_of
        self._page_bytes = page_bytes
        self._definitions: _Shared[Definition] = _Shared(self.remembered)
        self._rights: _Shared[Rights] = _Shared(self.remembered)
        self._loads: _Shared[RowsSequence | None] = _Shared(0.0)
        self._size = 0

    def forget(self) -> None:
        """Read definitions and rights again when they are needed next."""
        self._definitions.clear()
        self._rights.clear()
        self._loads.clear()

    def define(self, name: str) -> Definition:
        """Return the definition of a table. Waits; raises as :meth:`TableReader.define`."""
        return self._definitions.get(name, lambda: self._reader.define(name))

    def show(self, wanted: Wanted, table: Definition, identity: Identity) -> Shown:
        """Return what a client sees. Waits; raises :class:`ForbiddenError` or :class:`InvalidRequestError`."""
        rights = self._rights.get((table.version, identity.role), lambda: self._reader.rights(table, identity))
        query = wanted.query
        paths = [] if query.filter is None else [one.keys[0] for one in query.filter.conditions]
        check_columns(rights.columns, query.order, paths)
        seer = Seer(identity, rights.columns) if rights.checked else None
        columns = None if rights.whole and seer is None else rights.columns
        return Shown(table, rights, identity, ViewKey(seer, columns, query.filter))

    def load(self, wanted: Wanted, shown: Shown, charge: Callable[[Filter, int], None]) -> RowsSequence | None:
        """Read the rows, together with other clients that want the same; None if the rights have just changed.

        Waits; raises as :meth:`TableReader.rows`.
        """
        query = wanted.query
        # Without row-level security, the claims do not matter: the first client's are used.
        key = (shown.table.version, shown.identity.role, shown.key, query.order, query.limit)
        return self._loads.get(key, lambda: self._load(query, shown, charge))

    def resume(
        self, shown: Shown, epoch: str | None, after: int, charge: Callable[[Filter, int], None]
    ) -> RowsSequence:
        """Return the changes after a position, for a client that has the rows as of there."""
        feed = self._feed_of(shown.table, False)
        return RowsSequence(feed, shown.key, self._reader, epoch, after, None, self._page_bytes, charge)

    def _load(self, query: Query, shown: Shown, charge: Callable[[Filter, int], None]) -> RowsSequence | None:
        if self._size > self.most_bytes:
            raise DatabaseUnavailableError("too many rows are being sent at the moment: retry")
        # Before the rows are read, so that its position is not far behind them.
        feed = self._feed_of(shown.table, shown.rights.checked)
        feed.loading += 1
        try:
            rows = self._reader.rows(shown.table, shown.identity, query, shown.rights)
        finally:
            feed.loading -= 1
        metrics.live_table_snapshots.inc()
        if rows.rights != shown.rights:
            self.forget()
            return None
        sequence = RowsSequence(
            feed, shown.key, self._reader, rows.epoch, rows.position, rows, self._page_bytes, charge, self._release
        )
        self._size += sequence.size
        return sequence

    def _release(self, size: int) -> None:
        self._size -= size
