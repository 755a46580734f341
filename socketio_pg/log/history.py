"""Reads the log for replays and for nodes that are behind, unless `recent` has the messages in memory.

One green thread owns the connection, and combines the requests that wait into one query.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeAlias

from socketio_pg.core import green, metrics
from socketio_pg.core.errors import DatabaseUnavailableError, LogNotInstalledError, SocketIOPGError
from socketio_pg.core.messages import EncodedMessage, Position, from_log
from socketio_pg.core.patterns import is_pattern, to_like
from socketio_pg.log.pattern_pages import PatternPages
from socketio_pg.log.positions import Head
from socketio_pg.log.recent import Page, Recent
from socketio_pg.log.rule_rows import RULES
from socketio_pg.log.starts import Snapshot
from socketio_pg.postgres.database import FIXED_PATH, Database, translated_errors
from socketio_pg.postgres.trust import verify

logger = logging.getLogger("socketio_pg.history")

_TIME = """to_char(published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

#: The newest position is that of the newest row, which is never trimmed.
HEAD = """
SELECT epoch::text,
    greatest(trimmed, (SELECT position FROM socketio_pg.log ORDER BY position DESC LIMIT 1)) AS position, trimmed
FROM socketio_pg.head
"""

# `trimmed` comes from the same snapshot as the messages: read earlier it could hide a hole, read later invent one.
# Pages are also limited in bytes, but have at least one message. Payloads that are not part of the page are not read.
_PAGE = f"""
SELECT head.trimmed, position, channel, {_TIME}, payload::text, id, meta::text, size
FROM socketio_pg.head LEFT JOIN LATERAL (
    SELECT *, sum(size) OVER (ORDER BY position) - size AS size_before FROM (
        SELECT position, channel, published_at, payload, id, meta, size
        FROM socketio_pg.log WHERE position > greatest(%(after)s, head.trimmed) AND position <= %(upto)s
        ORDER BY position LIMIT %(messages)s) AS found
) AS page ON size_before < %(bytes)s
ORDER BY position
"""

# The channels of which rules have removed messages after a position, and up to which position. Read after the page, so
# that none is missing.
_CHANNEL_TRIMS = """
SELECT channel, position, (SELECT last_value FROM socketio_pg.removed_position)
FROM socketio_pg.channel_trim WHERE position > %s
"""

# How far the messages of the channel {channel} were removed: by rules, and together with those of other channels.
_TRIMMED = """
greatest((SELECT mark.position FROM socketio_pg.channel_trim AS mark WHERE mark.channel = {channel}),
    CASE WHEN EXISTS (SELECT FROM socketio_pg.retention)
        THEN socketio_pg.trimmed_together({channel}, head.trimmed) ELSE head.trimmed END)
"""

# Compares pairs: with `channel = …` the planner may scan the primary key through the messages of all channels.
_CHANNEL_PAGES = f"""
SELECT wanted.trimmed, removed.last_value, ordinality, position, channel, {_TIME}, payload::text, id, meta::text, size
FROM (
    SELECT one.*, {_TRIMMED.format(channel="one.channel")} AS trimmed
    FROM socketio_pg.head CROSS JOIN unnest(%s::text[], %s::bigint[], %s::bigint[])
        WITH ORDINALITY AS one(channel, after, upto, ordinality) OFFSET 0
) AS wanted (wanted_channel, after, upto, ordinality, trimmed) CROSS JOIN socketio_pg.removed_position AS removed
LEFT JOIN LATERAL (
    SELECT *, sum(size) OVER (ORDER BY position) - size AS size_before FROM (
        SELECT position, channel, published_at, payload, id, meta, size
        FROM socketio_pg.log WHERE (channel, position) > (wanted_channel, greatest(wanted.after, wanted.trimmed))
            AND (channel, position) <= (wanted_channel, wanted.upto)
        ORDER BY channel, position LIMIT %s) AS found
) AS page ON size_before < %s
ORDER BY ordinality, position
"""

# If the channel has fewer messages than requested, returns the position before the log's first message.
_BEFORE_NEWEST = f"""
SELECT ordinality, CASE WHEN count = wanted THEN oldest - 1 ELSE least(trimmed, upto) END
FROM (
    SELECT one.*, {_TRIMMED.format(channel="one.channel")} AS trimmed
    FROM socketio_pg.head CROSS JOIN unnest(%s::text[], %s::int[], %s::bigint[])
        WITH ORDINALITY AS one(channel, wanted, upto, ordinality) OFFSET 0
) AS request
CROSS JOIN LATERAL (
    SELECT count(*), min(position) AS oldest FROM (
        SELECT position FROM socketio_pg.log
        WHERE (channel, position) > (request.channel, request.trimmed)
            AND (channel, position) <= (request.channel, upto)
        ORDER BY channel DESC, position DESC LIMIT wanted) AS newest
) AS found
"""

# Positions have no holes, and the log's times increase with them: a binary search of some twenty rows. All rows before
# `low` were logged before the time, all from `high` on at it or later.
_BEFORE_TIME = """
WITH RECURSIVE oldest AS (SELECT position FROM socketio_pg.log ORDER BY position LIMIT 1), search (low, high) AS (
    SELECT oldest.position, (SELECT position FROM socketio_pg.log ORDER BY position DESC LIMIT 1) + 1 FROM oldest
    UNION ALL
    SELECT CASE WHEN probe.logged_at < %s THEN probe.position + 1 ELSE low END,
        CASE WHEN probe.logged_at < %s THEN high ELSE middle END
    FROM search CROSS JOIN LATERAL (SELECT low + (high - low) / 2 AS middle) AS half CROSS JOIN LATERAL (
        SELECT position, logged_at FROM socketio_pg.log WHERE position >= middle ORDER BY position LIMIT 1) AS probe
    WHERE low < high
)
SELECT epoch::text, CASE WHEN found.low > oldest.position THEN found.low - 1 ELSE 0 END
FROM socketio_pg.head LEFT JOIN oldest ON true
    LEFT JOIN (SELECT low FROM search WHERE low >= high LIMIT 1) AS found ON true
"""

# The messages with the ids of a snapshot, in the order of their positions. They come soon after the snapshot's own one,
# since the relay takes the ids in order: the scan ends early. It does not begin while some of them wait in the outbox.
#
# An open transaction holds a lock. A client may make up a transaction of the future, which is not visible either.
_SNAPSHOT = """
WITH ids AS MATERIALIZED (
    SELECT first, last FROM unnest(%(firsts)s::bigint[], %(lasts)s::bigint[]) AS range (first, last)
), waiting AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM ids WHERE EXISTS (
        SELECT FROM socketio_pg.outbox AS o WHERE o.id >= ids.first AND o.id <= ids.last)) AS yes
), found AS (
    SELECT id, position, channel FROM (
        SELECT id, position, channel FROM socketio_pg.log
        WHERE position > %(position)s AND NOT (SELECT yes FROM waiting) ORDER BY position LIMIT %(most)s) AS later
    WHERE id IN (SELECT generate_series(first, last) FROM ids) ORDER BY position LIMIT %(count)s
)
SELECT head.epoch::text, (SELECT yes FROM waiting),
    coalesce(NOT pg_visible_in_snapshot(%(transaction)s::text::xid8, pg_current_snapshot()), false) AND EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'transactionid' AND transactionid = %(transaction)s::text::xid8::xid),
    (SELECT count(*) FROM found),
    (SELECT array_agg(position ORDER BY position) FROM found WHERE channel LIKE ANY (%(channels)s)),
    (SELECT array_agg(id ORDER BY position) FROM found WHERE channel LIKE ANY (%(channels)s)),
    %(transaction)s::text IS NULL AND EXISTS (SELECT FROM socketio_pg.channel_trim WHERE position > %(position)s)
FROM socketio_pg.head
"""


@dataclass(frozen=True, slots=True)
class Contained:
    """The messages of some channels that are in a snapshot but come after its position, as far as they are known.

    ``complete``: the log has all ids of the snapshot. Otherwise some may follow: ``waiting`` if the outbox has some,
    ``open`` if the snapshot's own transaction has not ended. ``ids``: position → id in the outbox.
    """

    epoch: str
    waiting: bool
    open: bool
    complete: bool
    ids: Mapping[int, int]


@dataclass(eq=False, slots=True)
class _Request:
    arguments: tuple[Any, ...]
    done: green.Event = field(default_factory=green.Event)
    #: A page of its channel was read that does not include the position at which this request begins.
    again: bool = False


#: Answers requests of one kind, and returns those that need another query.
_Reader: TypeAlias = Callable[[list[_Request]], list[_Request]]


@dataclass(frozen=True, slots=True)
class Read:
    """A page, and the position up to which the log was trimmed: the page has no messages up to there.

    Messages up to ``removed`` may have been deleted by hand; the page has those that are left. ``channels``, for a page
    of all channels with holes: those of which rules have removed messages after its beginning, and how far.
    """

    page: Page
    trimmed: int
    removed: int = 0
    channels: Mapping[str, int] = field(default_factory=dict)
    #: Messages are missing that are to be reported, whatever ``trimmed`` is.
    missing: bool = False

    def incomplete(self, after: int) -> bool:
        """Return True if messages after a position may be missing."""
        return max(self.trimmed, self.removed) > after


class History:
    """The log in the database, cached by ``recent``.

    All reading methods wait, and raise :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
    """

    #: Timeout of a query, in seconds.
    timeout = 10.0
    #: Maximum channels in one query. Each may return a page as large as `Recent` allows.
    max_channels = 20
    #: Maximum messages that may have come between those of a snapshot, of transactions that committed after it.
    max_overtaking = 100_000
    #: A read of a channel starts up to this many positions earlier, to answer other waiting requests as well.
    near = 200

    def __init__(self, database: Database, recent: Recent, name: str = "history") -> None:
        self._database = database
        #: The label in the metrics.
        self._name = name
        self._lost = False
        self._recent = recent
        self._pattern_pages = PatternPages(self._fetch, recent.page_messages, recent.page_bytes)
        self._waiting: deque[tuple[_Reader, _Request]] = deque()
        self._worker = green.Worker()
        self._connection: Any = None

    def head(self) -> Head:
        """Return the current head of the log. Comes before the requests that wait, as live messages depend on it."""
        head: Head = self._ask(self._read_head, urgent=True)
        return head

    def page(self, after: int, upto: int) -> Read:
        """Return the next page of all channels after a position, at most ``upto``. Comes before those that wait."""
        read: Read = self._ask(self._read_page, after, upto, urgent=True)
        return read

    def channel_page(self, channel: str, after: int, upto: int) -> Read:
        """Return the next page of a channel or pattern after a position, at most ``upto``; from memory if possible."""
        page = self._recent.page(channel, after, upto)
        if page is not None:
            return Read(page, trimmed=0)
        # Up to the messages in memory, whatever `upto` is: then one query can answer many requests.
        reader = self._read_pattern_pages if is_pattern(channel) else self._read_channel_pages
        read: Read = self._ask(reader, channel, after, self._recent.start)
        return read

    def before_newest(self, channel: str, count: int, upto: int) -> int:
        """Return the position after which ``channel`` has ``count`` messages up to ``upto``, or all if it has fewer.

        For a pattern: the position after which all channels that match have so many together.
        """
        known = self._recent.before_newest(channel, count, upto)
        if known is not None:
            return known
        reader = self._read_newest_of_patterns if is_pattern(channel) else self._read_before_newest
        position: int = self._ask(reader, channel, count, upto)
        return position

    def before_time(self, at: datetime) -> Position:
        """Return the position before the first message of the log, of any channel, that was logged at ``at`` or later.

        The newest position if there is none. 0 if the log has no earlier message: others may have been trimmed.
        """
        found: Position = self._ask(self._read_before_time, at)
        return found

    def contained(self, channels: Collection[str], snapshot: Snapshot) -> Contained:
        """Return the messages of ``channels`` that are in a snapshot and have positions after its own one."""
        found: Contained = self._ask(self._read_contained, list(channels), snapshot)
        return found

    def rules(self) -> list[tuple[Any, ...]]:
        """Return the rows of the table of rules, for :func:`parse_rows`."""
        rows: list[tuple[Any, ...]] = self._ask(self._read_rules)
        return rows

    def stop(self) -> None:
        """Refuse waiting requests and close the connection."""
        self._worker.stop()
        self._refuse(DatabaseUnavailableError("the server is shutting down"))
        self._hang_up()

    def _ask(self, read: _Reader, *arguments: Any, urgent: bool = False) -> Any:
        request = _Request(arguments)
        if urgent:
            self._waiting.appendleft((read, request))
        else:
            self._waiting.append((read, request))
        self._worker.start(self._run)
        result = request.done.wait()
        if isinstance(result, SocketIOPGError):
            raise result
        return result

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._waiting:
                read = self._waiting[0][0]
                requests = [request for other, request in self._waiting if other == read]
                self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != read)
                self._read(read, requests)
        finally:
            self._refuse(DatabaseUnavailableError("the log could not be read"))

    def _read(self, read: _Reader, requests: list[_Request]) -> None:
        """Answer ``requests``; those that ``read`` returns wait for another query."""
        error: SocketIOPGError = DatabaseUnavailableError("the log could not be read")
        again: list[_Request] = []
        try:
            for attempt in (1, 2):
                reused = self._connection is not None
                try:
                    if not reused:
                        self._connect()
                    verify(self._database, self._connection, self.timeout)
                    again = read(requests)
                    self._waiting.extend((read, request) for request in again)
                    return
                except DatabaseUnavailableError:
                    self._lost = self._lost or reused
                    self._hang_up()
                    # An idle connection may have been lost long ago: retry once on a new one.
                    if attempt == 2 or not reused:
                        raise
        except SocketIOPGError as raised:
            error = raised
            if isinstance(raised, LogNotInstalledError):
                self._database.verified.clear()
        finally:
            for request in requests:
                if request not in again:
                    request.done.send(error)  # no effect on requests that have their answer

    def _read_head(self, requests: list[_Request]) -> list[_Request]:
        rows = self._execute(HEAD)
        if not rows:
            raise LogNotInstalledError("the log's head is missing: run 'socketio-pg init'")
        row = rows[0]
        for request in requests:
            request.done.send(Head(*row))
        return []

    def _read_page(self, requests: list[_Request]) -> list[_Request]:
        recent = self._recent
        for request in requests:
            after, upto = request.arguments
            values = {"after": after, "upto": upto, "messages": recent.page_messages, "bytes": recent.page_bytes}
            read = _as_read(self._fetch(_PAGE, values), after, upto, recent)
            if len(read.page.messages) < read.page.end - read.page.after:
                trims = self._execute(_CHANNEL_TRIMS, read.page.after)
                trimmed = {channel: position for channel, position, _ in trims}
                read = replace(read, channels=trimmed, removed=trims[0][2] if trims else 0)
            request.done.send(read)
        return []

    def _read_channel_pages(self, requests: list[_Request]) -> list[_Request]:
        return self._read_pages(requests, self._pages_of_channels, self.max_channels)

    def _read_pattern_pages(self, requests: list[_Request]) -> list[_Request]:
        return self._read_pages(requests, self._page_of_pattern, 1)

    def _read_pages(
        self,
        requests: list[_Request],
        read: Callable[[dict[str, tuple[int, int]]], dict[str, Read]],
        most: int,
    ) -> list[_Request]:
        """Read one page of each of ``most`` channels or patterns: ``read`` gets name → (after, upto).

        Requests for adjacent ranges share it; later ranges need another query.
        """
        begins: dict[str, tuple[int, int]] = {}
        strict: set[str] = set()
        for request in requests:
            channel, after, upto = request.arguments
            if channel not in begins:
                if len(begins) == most:
                    continue
                # The oldest request decides where to begin, so that each request is answered eventually.
                begins[channel] = (after, upto)
                if request.again:
                    strict.add(channel)
                continue
            begin, end = begins[channel]
            if begin - self.near <= after < begin and channel not in strict:
                begin = after
            begins[channel] = (begin, max(end, upto))
        resets = self._recent.resets
        reads = read(begins)
        for channel, found in reads.items():
            # Clients that return rely on pages in memory: these must be complete, and of the log as it is now.
            if not found.incomplete(found.page.after) and self._recent.resets == resets:
                self._recent.keep(channel, found.page)
        return self._answer(requests, reads)

    def _pages_of_channels(self, begins: dict[str, tuple[int, int]]) -> dict[str, Read]:
        rows = self._execute(
            _CHANNEL_PAGES,
            list(begins),
            [begin for begin, _ in begins.values()],
            [end for _, end in begins.values()],
            self._recent.page_messages,
            self._recent.page_bytes,
        )
        if not rows:
            raise LogNotInstalledError("the log's head is missing: run 'socketio-pg init'")
        removed = rows[0][1]
        reads: dict[str, Read] = {}
        for number, (channel, (begin, end)) in enumerate(begins.items(), 1):
            of_channel = [(row[0], *row[3:]) for row in rows if row[2] == number]
            reads[channel] = replace(_as_read(of_channel, begin, end, self._recent), removed=removed)
        return reads

    def _page_of_pattern(self, begins: dict[str, tuple[int, int]]) -> dict[str, Read]:
        [(pattern, (begin, end))] = begins.items()
        rows, end = self._pattern_pages.read(pattern, begin, end)
        if not rows:
            raise LogNotInstalledError("the log's head is missing: run 'socketio-pg init'")
        read = _as_read([(row[0], *row[2:]) for row in rows], begin, end, self._recent)
        return {pattern: replace(read, removed=rows[0][1])}

    def _answer(self, requests: list[_Request], reads: Mapping[str, Read]) -> list[_Request]:
        """Answer the requests for pages with those that were read. Return the requests that need others."""
        again = []
        for request in requests:
            channel, after, upto = request.arguments
            found = reads.get(channel)
            if found is not None and after < found.trimmed:
                request.done.send(replace(found, page=Page(after, after, ())))
            elif found is not None and (found.page.after <= after < found.page.end or after == upto):
                request.done.send(replace(found, page=found.page.part(after, upto)))
            else:
                request.again = found is not None
                again.append(request)
        return again

    def _read_before_newest(self, requests: list[_Request]) -> list[_Request]:
        channels, counts, uptos = zip(*(request.arguments for request in requests), strict=True)
        for number, position in self._execute(_BEFORE_NEWEST, list(channels), list(counts), list(uptos)):
            requests[number - 1].done.send(position)
        return []

    def _read_newest_of_patterns(self, requests: list[_Request]) -> list[_Request]:
        # One may take several queries: then other requests come first.
        request, *again = requests
        request.done.send(self._pattern_pages.before_newest(*request.arguments))
        return again

    def _read_before_time(self, requests: list[_Request]) -> list[_Request]:
        for request in requests:
            (at,) = request.arguments
            rows = self._execute(_BEFORE_TIME, at, at)
            if not rows:
                raise LogNotInstalledError("the log's head is missing: run 'socketio-pg init'")
            request.done.send(Position(epoch=rows[0][0], position=rows[0][1]))
        return []

    def _read_rules(self, requests: list[_Request]) -> list[_Request]:
        rows = self._execute(RULES)
        for request in requests:
            request.done.send(rows)
        return []

    def _read_contained(self, requests: list[_Request]) -> list[_Request]:
        for request in requests:
            channels, snapshot = request.arguments
            values = {
                "firsts": [first for first, _ in snapshot.ids],
                "lasts": [last for _, last in snapshot.ids],
                "position": snapshot.position,
                "transaction": snapshot.transaction,
                "channels": [to_like(channel) for channel in channels],
                "count": snapshot.count,
                "most": snapshot.count + self.max_overtaking,
            }
            rows = self._fetch(_SNAPSHOT, values)
            if not rows:
                raise LogNotInstalledError("the log's head is missing: run 'socketio-pg init'")
            epoch, waiting, open, count, positions, ids, trimmed = rows[0]
            found = dict(zip(positions or (), ids or (), strict=True))
            # Rules may have removed some of other channels; if they have of these, the replay does not begin.
            complete = count == snapshot.count or (trimmed and not waiting)
            request.done.send(Contained(epoch, waiting, open, complete, found))
        return []

    def _connect(self) -> None:
        # Also limited in PostgreSQL, which would otherwise go on with a query that timed out here.
        limit = str(int(self.timeout * 1000))
        self._connection = self._database.connect(self._name, settings={"jit": "off", "statement_timeout": limit})
        if self._lost:
            metrics.reconnects.labels(self._name).inc()
            self._lost = False

    def _execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._fetch(sql, parameters or None)

    def _fetch(self, sql: str, parameters: Sequence[object] | Mapping[str, object] | None) -> list[tuple[Any, ...]]:
        with translated_errors(self.timeout), self._connection.cursor() as cursor:
            cursor.execute(f"{FIXED_PATH}; {sql}", parameters)
            return list(cursor.fetchall())

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _refuse(self, error: SocketIOPGError) -> None:
        while self._waiting:
            self._waiting.popleft()[1].done.send(error)


def _as_read(rows: Sequence[tuple[Any, ...]], after: int, upto: int, recent: Recent) -> Read:
    """Convert rows of (trimmed, position, channel, time, text, id, meta, size). An empty page has a row without one."""
    found = [row for row in rows if row[1] is not None]
    messages: list[EncodedMessage] = [from_log(*row[1:7]) for row in found]
    size = sum(row[7] for row in found)
    trimmed, end = rows[0][0], upto
    if len(messages) >= recent.page_messages or size >= recent.page_bytes:
        assert messages[-1].position is not None
        end = messages[-1].position
    return Read(Page(max(after, trimmed), end, messages), trimmed)
