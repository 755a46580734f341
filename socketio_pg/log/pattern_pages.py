"""Reads the messages of all channels that match a pattern from the log: the SQL, and in which of two ways.

Where the pattern matches many of the messages, a page is a part of the log in the order of positions, without the
others. Where it matches few, this would read the log for nothing. Then the channels are found in the index of channels
and positions, one after the other (a "loose index scan": PostgreSQL wiki), and the next messages of each.
"""

from collections.abc import Callable, Sequence
from typing import Any

from socketio_pg.core.channels import RESERVED_PREFIX
from socketio_pg.core.patterns import prefix_of, to_like

#: Positions that are read before it is decided that a pattern matches few messages: a page of those that match is found
#: by then if at least one in ten does.
DENSE = 5_000
#: Positions that one query reads at most.
WINDOW = 50_000
#: The maximum number of channels with the pattern's prefix that are read one after the other.
MAX_CHANNELS = 1_000
#: Windows that are read backwards for the newest messages: a million positions.
MAX_WINDOWS = 20

_TIME = """to_char(published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

# Not a condition that the index of channels and positions could be used for: the window has few positions, but the
# index may have millions of messages with the pattern's prefix, and the planner's guess may be wrong.
_MATCHES = f"channel || '' LIKE %(like)s AND NOT starts_with(channel, '{RESERVED_PREFIX}')"

# The position up to which messages may be missing: removed by hand, or by rules of single channels.
_REMOVED = """greatest(removed.last_value, (SELECT max(position) FROM socketio_pg.channel_trim
    WHERE position > %(after)s AND channel LIKE %(like)s))"""

_WINDOW = f"""
SELECT head.trimmed, {_REMOVED}, position, channel, {_TIME}, payload::text, id, meta::text, size
FROM socketio_pg.head CROSS JOIN socketio_pg.removed_position AS removed LEFT JOIN (
    SELECT *, sum(size) OVER (ORDER BY position) - size AS size_before FROM (
        SELECT position, channel, published_at, payload, id, meta, size FROM socketio_pg.log
        WHERE position > %(after)s AND position <= %(upto)s AND {_MATCHES} ORDER BY position LIMIT %(most)s) AS found
) AS page ON size_before < %(bytes)s
ORDER BY position
"""

# One more channel than may be read, to find out that there are too many.
_NAMES = """
WITH RECURSIVE name (channel) AS (
    (SELECT channel FROM socketio_pg.log WHERE channel >= %(prefix)s ORDER BY channel LIMIT 1)
    UNION ALL
    SELECT (SELECT channel FROM socketio_pg.log AS l WHERE l.channel > name.channel ORDER BY l.channel LIMIT 1)
    FROM name WHERE starts_with(name.channel, %(prefix)s)
), names AS MATERIALIZED (
    SELECT channel FROM name WHERE starts_with(channel, %(prefix)s) LIMIT %(channels)s + 1
)"""

_SPARSE = f"""
{_NAMES}, found AS MATERIALIZED (
    SELECT next.position FROM names CROSS JOIN LATERAL (
        SELECT position FROM socketio_pg.log AS l
        WHERE (l.channel, l.position) > (names.channel, %(after)s)
            AND (l.channel, l.position) <= (names.channel, %(upto)s)
        ORDER BY l.channel, l.position LIMIT %(most)s) AS next
    WHERE {_MATCHES} AND (SELECT count(*) FROM names) <= %(channels)s
    ORDER BY next.position LIMIT %(most)s
)
SELECT head.trimmed, {_REMOVED}, (SELECT count(*) FROM names) <= %(channels)s,
    position, channel, {_TIME}, payload::text, id, meta::text, size
FROM socketio_pg.head CROSS JOIN socketio_pg.removed_position AS removed LEFT JOIN (
    SELECT *, sum(size) OVER (ORDER BY position) - size AS size_before FROM socketio_pg.log
    WHERE position = ANY (ARRAY(SELECT position FROM found))
) AS page ON size_before < %(bytes)s
ORDER BY position
"""

_NEWEST_IN_WINDOW = f"""
SELECT trimmed, count(position), min(position) FROM socketio_pg.head LEFT JOIN (
    SELECT position FROM socketio_pg.log WHERE position > %(after)s AND position <= %(upto)s AND {_MATCHES}
    ORDER BY position DESC LIMIT %(most)s) AS newest ON true
GROUP BY trimmed
"""

_NEWEST_SPARSE = f"""
{_NAMES}
SELECT (SELECT count(*) FROM names) <= %(channels)s, count(position), min(position) FROM (
    SELECT newest.position FROM names CROSS JOIN LATERAL (
        SELECT position FROM socketio_pg.log AS l
        WHERE (l.channel, l.position) > (names.channel, 0) AND (l.channel, l.position) <= (names.channel, %(upto)s)
        ORDER BY l.channel DESC, l.position DESC LIMIT %(most)s) AS newest
    WHERE {_MATCHES} AND (SELECT count(*) FROM names) <= %(channels)s
    ORDER BY newest.position DESC LIMIT %(most)s
) AS found
"""

#: Runs a query and returns its rows.
Fetch = Callable[[str, dict[str, Any]], Sequence[tuple[Any, ...]]]


class PatternPages:
    """Reads pages of patterns with ``fetch``: at most ``most`` messages, and about ``size`` bytes of payload."""

    def __init__(self, fetch: Fetch, most: int, size: int) -> None:
        self._fetch = fetch
        self._most = most
        self._size = size
        #: Patterns that matched few messages when they were last read, and whether they have few channels.
        self._sparse: dict[str, bool] = {}

    def read(self, pattern: str, after: int, upto: int) -> tuple[list[tuple[Any, ...]], int]:
        """Return the rows of a page after a position, and the position at which it ends if they are not too many.

        A row has ``trimmed``, ``removed``, position, channel, time, text, id, meta and size; that of an empty page has
        no position. There are none without a head.
        """
        values = self._values(pattern) | {"after": after, "upto": upto, "bytes": self._size, "most": self._most}
        if pattern not in self._sparse:
            end = min(upto, after + DENSE)
            rows = list(self._fetch(_WINDOW, values | {"upto": end}))
            found, size = self._count(rows), sum(row[8] or 0 for row in rows)
            if found == self._most or size >= self._size:
                return rows, end
            if end < upto and rows and rows[0][0] < end and found * 10 < end - after:
                self._note_sparse(pattern)
            if found or end == upto or not rows or rows[0][0] >= end:
                return rows, end
        if self._sparse.get(pattern, True):
            rows = list(self._fetch(_SPARSE, values))
            if not rows or rows[0][2]:
                if self._count(rows, at=3) >= self._most:
                    self._sparse.pop(pattern, None)
                return [(*row[:2], *row[3:]) for row in rows], upto
            self._sparse[pattern] = False
        end = min(upto, after + WINDOW)
        return list(self._fetch(_WINDOW, values | {"upto": end})), end

    def before_newest(self, pattern: str, count: int, upto: int) -> int:
        """Return the position after which the channels have ``count`` messages up to ``upto``, or all if fewer.

        If more than :data:`MAX_CHANNELS` channels have the pattern's prefix, it looks at the newest million positions.
        """
        if not count:
            return upto
        values = self._values(pattern) | {"most": count, "upto": upto}
        found, after, oldest = 0, upto, upto
        for number in range(MAX_WINDOWS):
            after = max(0, upto - (DENSE if not number else WINDOW))
            rows = self._fetch(_NEWEST_IN_WINDOW, values | {"after": after, "upto": upto, "most": count - found})
            if not rows:
                return upto
            trimmed, here, first = rows[0]
            found, oldest = found + here, first or oldest
            if found >= count:
                return int(oldest) - 1
            if after <= trimmed:
                return min(int(trimmed), upto)
            if not number:
                complete, known, first = self._fetch(_NEWEST_SPARSE, values)[0]
                if complete:
                    return int(first) - 1 if known == count else min(int(trimmed), values["upto"])
            upto = after
        return after

    def _values(self, pattern: str) -> dict[str, Any]:
        return {"like": to_like(pattern), "prefix": prefix_of(pattern), "channels": MAX_CHANNELS}

    def _note_sparse(self, pattern: str) -> None:
        self._sparse[pattern] = True
        if len(self._sparse) > MAX_CHANNELS:
            del self._sparse[next(iter(self._sparse))]

    @staticmethod
    def _count(rows: Sequence[tuple[Any, ...]], at: int = 2) -> int:
        return sum(row[at] is not None for row in rows)
