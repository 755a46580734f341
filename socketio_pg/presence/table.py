"""Reads and writes the members in the database, on a connection of its own in a green thread. Gathers what it writes.

It has no connection while this process has nothing to do with presence.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from socketio_pg.cluster.processes import Process, ProcessId
from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import LogNotInstalledError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.postgres.database import Database, fetch
from socketio_pg.postgres.trust import verify
from socketio_pg.presence.roster import Link, Meta

logger = logging.getLogger("socketio_pg.presence")
_limited_log = RateLimitedLog(logger, seconds=60.0)

_BEAT = "SELECT unknown, expired, processes::text[] FROM socketio_pg.presence_beat(%s::uuid, %s, %s)"
_WRITE = """
SELECT name, previous, version, before, after, joined_keys, gone_keys FROM socketio_pg.presence_write(
    %s::uuid, %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s, %s)
"""
_SWEEP = """
SELECT name, previous, version, before, after, joined, gone, processes::text[] FROM socketio_pg.presence_sweep(%s, %s)
"""
#: One row for each channel, also for one without members: its version belongs to these members.
_READ = """
SELECT f.channel, coalesce(c.version, 0), m.ref, m.key, m.client, m.state,
    round(extract(epoch FROM m.joined_at) * 1000)::bigint, replace(m.process::text, '-', '')
FROM unnest(%s::text[]) AS f (channel)
LEFT JOIN socketio_pg.presence_channel AS c ON c.channel = f.channel
LEFT JOIN socketio_pg.presence_member AS m ON m.channel = f.channel AND m.process <> %s::uuid
"""
_VERSIONS = """
SELECT f.channel, coalesce(c.version, 0) FROM unnest(%s::text[]) AS f (channel)
LEFT JOIN socketio_pg.presence_channel AS c ON c.channel = f.channel
"""
_END = "UPDATE socketio_pg.presence_process SET expires_at = now() + make_interval(secs => %s) WHERE id = %s::uuid"


class Written(NamedTuple):
    """The change of one channel by a statement, with its numbers of connections before and after.

    ``joined`` and ``left``: the keys of members, if they are wanted.
    """

    channel: str
    link: Link
    before: int
    after: int
    joined: Sequence[str] = ()
    left: Sequence[str] = ()


class Keeper(Protocol):
    """Gets what the table finds out. None of these may wait."""

    def written(
        self, put: Sequence[tuple[str, Meta]], gone: Sequence[tuple[str, str]], written: Sequence[Written]
    ) -> None:
        """Note that connections and refs of this process, each with its channel, are committed."""

    def reading(self, channels: Sequence[str]) -> None:
        """The database is about to be asked for the members of these channels."""

    def read(self, channel: str, version: int, metas: Sequence[Meta]) -> None:
        """A channel has these members of other processes."""

    def versions(self, versions: Mapping[str, int]) -> None:
        """The channels of :meth:`asked` have these versions in the database."""

    def asked(self) -> Sequence[str]:
        """Return the channels whose versions are to be compared with those in the database."""

    def processes(self, known: Collection[ProcessId]) -> None:
        """Note which processes the database knows; ones that were heard meanwhile may be missing."""

    def swept(self, dead: Sequence[ProcessId], written: Sequence[Written]) -> None:
        """This process has removed dead ones and their members."""

    def failed(self, error: SocketIOPGError) -> None:
        """The database cannot be used."""

    def lost(self) -> None:
        """The database does not have the members of this process any more: they must be put again."""


class PresenceTable:
    """The members in the database. ``own()`` is this process, after its start. ``announce``: see :class:`Presence`.

    ``wants_members()``: whether the keys of members that have joined and left are wanted, too.
    """

    #: Seconds for which a process is known, and between two signs of life: it must be found dead within 15 seconds.
    lease, beat = 11.0, 3.0
    #: Seconds after an outage, in which the other processes renew their rows: they are not dead.
    forbearance = 6.0
    #: Seconds between two writes, and of a statement; changes in a statement; channels in a read.
    pause, timeout = 0.2, 10.0
    batch, read_batch = 1000, 200
    #: Beats between two comparisons of versions.
    compare_beats = 5
    #: Seconds without anything to do until the connection is closed; and for the last changes.
    idle, stop_seconds = 30.0, 3.0

    def __init__(
        self,
        database: Database,
        own: Callable[[], Process],
        keeper: Keeper,
        announce: str | None,
        wants_members: Callable[[], bool],
    ) -> None:
        self._database = database
        self._own = own
        self._keeper = keeper
        self._announce = announce
        self._wants_members = wants_members
        self._connection: Any = None
        self._lost = False
        self._worker = green.Worker()
        self._wanted = green.Event()
        #: Channel and ref → the connection; None to remove it.
        self._changes: dict[tuple[str, str], Meta | None] = {}
        #: Those that a statement may have written.
        self._stored: set[tuple[str, str]] = set()
        self._reads: dict[str, None] = {}
        self._wrote_at = self._beat_at = float("-inf")
        self._used_at = time.monotonic()
        #: When its row was last renewed, and until when others are not found dead (monotonic).
        self._renewed_at = self._forbears_until = float("-inf")
        self._beats = 0
        self._compare = False
        self._registered = self._stopped = False
        #: Whether this process has members, or clients that see some.
        self.busy = False
        #: Since when the database cannot be used (monotonic), and why; None while it can.
        self.failed_at: float | None = None
        self.error: SocketIOPGError | None = None

    # -- for the other green threads: none of these waits --------------------------------------------------------------

    def put(self, channel: str, meta: Meta) -> None:
        """Store a connection of this process."""
        self._changes[channel, meta.ref] = meta
        self._wake()

    def remove(self, channel: str, ref: str) -> None:
        """Remove a connection of this process."""
        place = (channel, ref)
        if place in self._stored:
            self._changes[place] = None
            self._wake()
        else:
            self._changes.pop(place, None)

    def forget(self, channel: str, ref: str) -> None:
        """Note that another process has taken a connection over."""
        self._changes.pop((channel, ref), None)
        self._stored.discard((channel, ref))

    def read(self, channel: str) -> None:
        """Read a channel soon."""
        self._reads[channel] = None
        self._wake()

    def compare(self) -> None:
        """Compare the channels' versions soon."""
        self._compare = True
        self._wake()

    def stop(self, seconds: float) -> None:
        """Write the last changes; the members that are left have ``seconds``. Waits for the database. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._worker.stop()
        self._hang_up()  # it may be in a transaction
        if self._registered:
            with contextlib.suppress(SocketIOPGError, green.TimedOut), green.timeout(self.stop_seconds):
                self._write()
                fetch(self._connected(), _END, seconds, self._own().id, seconds=self.timeout)
        self._hang_up()

    def _wake(self) -> None:
        if not self._stopped:
            self._worker.start(self._run)
            self._wanted.send()

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(0.1, 3.0)
        failures = 0
        while self._wait():
            try:
                verify(self._database, self._connected(), self.timeout)
                self._beat_if_due()
                self._read()
                if self._changes and self._write_in() <= 0:
                    self._write()
                self._compare_if_due()
                backoff.reset()
                failures = 0
                self.failed_at = self.error = None
            except SocketIOPGError as error:
                failures += 1
                if isinstance(error, LogNotInstalledError):
                    self._database.verified.clear()
                _limited_log(logging.WARNING, "the members of channels cannot be stored: %s; retrying", error)
                lost = self._hang_up()
                # An idle connection may have been lost long ago, and a database that restarts is back soon.
                if failures > 1 or not lost:
                    self.error = error
                    self.failed_at = self.failed_at or time.monotonic()
                    self._keeper.failed(error)
                    green.sleep(backoff.next())
            except Exception:  # a bug: the next changes must still be stored
                logger.exception("storing the members of channels failed; retrying")
                self._hang_up()
                green.sleep(5.0)
        self._hang_up()

    def _write_in(self) -> float:
        return self._wrote_at + self.pause - time.monotonic()

    def _wait(self) -> bool:
        """Wait until there is something to do. Return False when there has been nothing for a while."""
        while True:
            due = float("inf")
            if self._reads or self._compare:
                due = 0.0
            elif self._changes:
                due = self._write_in()
            if self.busy:
                due = min(due, self._beat_at + self.beat - time.monotonic())
            if due < float("inf"):
                self._used_at = time.monotonic()
            if due <= 0:
                return True
            idle = self._used_at + self.idle - time.monotonic()
            if idle <= 0:
                return False
            with contextlib.suppress(green.TimedOut):
                self._wanted.wait(min(due, idle))
            self._wanted = green.Event()

    def _beat_if_due(self) -> None:
        if time.monotonic() - self._beat_at < self.beat:
            return
        began = time.monotonic()
        if began - self._renewed_at > self.lease:
            # New, or cut off for long: the others may have been, too.
            self._forbears_until = began + self.forbearance
        [(unknown, expired, processes)] = self._fetch(_BEAT, self._own().id, self._own().name, self.lease)
        self._beat_at = self._renewed_at = began
        self._beats += 1
        if unknown:
            lost, self._registered = self._registered, True
            if lost:
                # Others have found it dead, or the database has lost its unlogged tables.
                self._stored.clear()
                self._keeper.lost()
        if expired and began >= self._forbears_until:
            self._sweep()
        self._keeper.processes([_id(process) for process in processes])

    def _sweep(self) -> None:
        rows = self._fetch(_SWEEP, self._announce, self._wants_members())
        if rows:
            written = [_written(row) for row in rows if row[0] is not None]
            self._keeper.swept([_id(process) for process in rows[0][7]], written)

    def _read(self) -> None:
        while self._reads:
            channels = list(self._reads)[: self.read_batch]
            self._keeper.reading(channels)
            rows = self._fetch(_READ, channels, self._own().id)
            found: dict[str, tuple[int, list[Meta]]] = {}
            for channel, version, ref, key, client, state, joined_at, process in rows:
                _, metas = found.setdefault(channel, (version, []))
                if ref is not None:
                    metas.append(Meta(ref, key, client, state, joined_at, process))
            metrics.presence_reads.inc(len(channels))
            for channel in channels:
                self._reads.pop(channel, None)
            for number, (channel, (version, metas)) in enumerate(found.items()):
                self._keeper.read(channel, version, metas)
                if number % 20 == 19:
                    green.sleep()

    def _write(self) -> None:
        self._wrote_at = time.monotonic()
        left = len(self._changes)
        while left > 0:
            # The others stay where they can still be taken back.
            places = list(itertools.islice(self._changes, min(left, self.batch)))
            items = [(place, self._changes.pop(place)) for place in places]
            left -= self.batch
            try:
                if not self._write_part(items):
                    return
            except BaseException:
                # A newer change of the same connection takes precedence.
                self._changes = dict(items) | self._changes
                raise

    def _write_part(self, items: Sequence[tuple[tuple[str, str], Meta | None]]) -> bool:
        """Write changes. Return False if this process was not known: then all its members are put again."""
        put = [(channel, meta) for (channel, _), meta in items if meta is not None]
        gone = [place for place, meta in items if meta is None]
        self._stored.update((channel, meta.ref) for channel, meta in put)
        rows = self._fetch(_WRITE, self._own().id, *_columns(put), *_split(gone), self._announce, self._wants_members())
        if rows and rows[0][0] is None:
            self._beat_at = float("-inf")
            self._beat_if_due()
            return False
        self._stored.difference_update(gone)
        metrics.presence_writes.inc(len(items))
        self._keeper.written(put, gone, [_written(row) for row in rows])
        return True

    def _compare_if_due(self) -> None:
        if not self._compare and self._beats < self.compare_beats:
            return
        self._compare, self._beats = False, 0
        channels = list(self._keeper.asked())
        for start in range(0, len(channels), self.batch):
            self._keeper.versions(dict(self._fetch(_VERSIONS, channels[start : start + self.batch])))

    def _fetch(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return fetch(self._connected(), sql, *parameters, seconds=self.timeout)

    def _connected(self) -> Any:
        if self._connection is None:
            limit = str(int(self.timeout * 1000))
            self._connection = self._database.connect("presence", settings={"statement_timeout": limit})
            if self._lost:
                metrics.reconnects.labels("presence").inc()
                self._lost = False
                # Messages of other processes may have been missed, too, and a database that has crashed knows nobody.
                self._beat_at = float("-inf")
                self._compare = True
        return self._connection

    def _hang_up(self) -> bool:
        """Close the connection. Return whether there was one."""
        connection, self._connection = self._connection, None
        if connection is None:
            return False
        self._lost = not self._stopped and self.busy
        connection.close()
        return True


def _id(text: str) -> ProcessId:
    """Return the id of a process as the bus has it."""
    return text.replace("-", "")


def _written(row: tuple[Any, ...]) -> Written:
    channel, previous, version, before, after, joined, left = row[:7]
    return Written(channel, Link(previous, version), before, after, joined or (), left or ())


def _columns(put: Iterable[tuple[str, Meta]]) -> Iterable[list[Any]]:
    rows = [(channel, meta.ref, meta.key, meta.client, meta.state, meta.joined_at) for channel, meta in put]
    return [list(column) for column in zip(*rows, strict=True)] or [[]] * 6


def _split(places: Iterable[tuple[str, str]]) -> Iterable[list[str]]:
    return [list(column) for column in zip(*places, strict=True)] or [[]] * 2
