"""Moves one batch from the outbox to the log: numbers the messages, and notifies the nodes in the same transaction.

Two round trips: the first one moves and returns the messages, so that this process can seal the notifications; the
second one sends these and commits.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.channels import LOG_CHANNEL
from socketio_pg.core.errors import DatabaseError, DatabaseRefusedError, DatabaseTimeoutError, SocketIOPGError
from socketio_pg.core.seal import MAX_TEXT_BYTES
from socketio_pg.log.epochs import ISSUED, SAME_TABLES, Past
from socketio_pg.log.history import HEAD
from socketio_pg.log.low_water import LowWater
from socketio_pg.log.positions import encode_batches
from socketio_pg.postgres.database import fetch_as_is

logger = logging.getLogger("socketio_pg.relay")

#: The id after which to scan the outbox: see `low_water`.
BOUND = """
SELECT least({floor}, min(low)) FROM unnest({xids}, {lows}) AS open (xid, low)
WHERE pg_visible_in_snapshot(xid, pg_current_snapshot())
"""

#: Prepares the statement of :func:`move`. It moves up to $1 messages and about 2 MB, from the ids of `LowWater` ($2 to
#: $4), if its transaction has locked the row of `head` in the term $5: an xmax of its own means that; and if the newest
#: position ($6) and the ids of the outbox ($7) are still those that are known: see `epochs`. Messages that may be part
#: of a notification are returned as lines (see `decode_batch`), others as empty ones.
PREPARE = f"""
PREPARE socketio_pg_move (integer, bigint, xid8[], bigint[], bigint, bigint, bigint) AS
WITH head AS ({HEAD}), known AS (
    SELECT ({SAME_TABLES}) AND (SELECT position FROM head) >= $6 AND ({ISSUED}) >= $7 AS unchanged FROM socketio_pg.head
), oldest AS (
    SELECT id, size FROM socketio_pg.outbox
    WHERE id > ({BOUND.format(floor="$2", xids="$3", lows="$4")}) ORDER BY id LIMIT $1
), picked AS (
    SELECT id FROM (SELECT id, sum(size) OVER (ORDER BY id) - size AS size_before FROM oldest) AS sized
    WHERE size_before < 2000000 AND EXISTS (
        SELECT FROM socketio_pg.head WHERE term = $5 AND xmax = pg_current_xact_id_if_assigned()::xid)
        AND (SELECT unchanged FROM known)
), moved AS (
    -- Not a join: if planned while the outbox was empty, a join would read the whole outbox for each row.
    DELETE FROM socketio_pg.outbox WHERE id = ANY (ARRAY(SELECT id FROM picked))
    RETURNING id, channel, payload, size, published_at, meta
), logged AS (
    -- With the time when the row of `head` is locked, not of the transaction's start: it increases with the position.
    INSERT INTO socketio_pg.log (position, channel, payload, size, published_at, logged_at, id, meta)
    SELECT (SELECT head.position FROM head) + row_number() OVER (ORDER BY id), channel, payload, size, published_at,
        (SELECT clock_timestamp()), id, meta
    FROM moved
    RETURNING position, channel, payload, size, published_at, id, meta
), lines AS (
    -- concat_ws() leaves out what is NULL.
    SELECT position, CASE WHEN size < {MAX_TEXT_BYTES} THEN concat_ws(E'\\t', channel,
        to_char(published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), id, meta::text,
        payload::text) ELSE '' END AS line, meta ->> 'traceparent' AS traceparent, meta IS NOT NULL AS has_meta
    FROM logged
)
SELECT (SELECT count(*) FROM moved) AS moved,
    (SELECT count(*) FROM oldest) = $1 OR (SELECT count(*) FROM oldest) > (SELECT count(*) FROM moved) AS more,
    pg_current_snapshot()::text AS snapshot, pg_current_xact_id_if_assigned()::text::bigint AS own,
    ({ISSUED}) AS issued, (SELECT term FROM socketio_pg.head) AS term,
    coalesce((SELECT unchanged FROM known), false) AS unchanged, (SELECT max(id) FROM moved) AS newest, head.position,
    head.epoch,
    (SELECT array_agg(traceparent) FROM lines WHERE traceparent IS NOT NULL) AS traces,
    (SELECT bool_or(has_meta) FROM lines) AS with_meta,
    (SELECT string_agg(line, E'\\n' ORDER BY position) FROM lines) AS lines
FROM head
"""

# One round trip with two statements, so that the second sees what the last holder of the row's lock has committed. With
# nothing to move it takes no lock, and PostgreSQL writes nothing to disk.
_MOVE = f"""
BEGIN;
SELECT FROM socketio_pg.head WHERE term = %(term)s AND EXISTS (
    SELECT FROM socketio_pg.outbox WHERE id > ({
    BOUND.format(floor="%(floor)s::bigint", xids="%(xids)s::text[]::xid8[]", lows="%(lows)s::bigint[]")
})) FOR UPDATE;
EXECUTE socketio_pg_move(
    %(limit)s, %(floor)s::bigint, %(xids)s::text[]::xid8[], %(lows)s::bigint[], %(term)s::bigint, %(position)s::bigint,
    %(issued)s::bigint)
"""

# NOTIFY needs no plan, unlike a query with pg_notify().
_NOTIFY = f"NOTIFY {LOG_CHANNEL}, %s"


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of one batch.

    ``count`` messages were moved, and there are ``more`` or not. ``term`` is the current one: if it is not the
    caller's, another node leads, and nothing was moved. Neither was it if the log's past is not ``unchanged``.
    ``newest`` is the greatest id of the messages, ``position`` the newest one before them. For `LowWater.scanned`:
    ``snapshot``, ``own``, ``issued``.
    """

    count: int
    more: bool
    snapshot: str
    own: int | None
    issued: int
    term: int
    unchanged: bool
    newest: int | None
    position: int


def move(
    connection: Any,
    term: int,
    limit: int,
    low: LowWater,
    past: Past,
    seal: Callable[[str, str], str],
    seconds: float,
    full: bool,
) -> tuple[Moved, Past]:
    """Move at most ``limit`` messages and note in ``low`` what was scanned. Return the new ``past``, too.

    When it raises, the messages were not moved, or their commit was not confirmed: then the past is not known.

    ``full``: scan the outbox from its beginning. ``seal(channel, text)`` returns the text to send. ``seconds`` is the
    time limit of a round trip.

    Raises as :func:`fetch`, and as ``seal``.
    """
    parameters = {
        "term": term,
        "limit": limit,
        "floor": 0 if full else low.floor,
        "xids": [str(xid) for xid in low.open],
        "lows": list(low.open.values()),
        "position": past.position,
        "issued": past.issued,
    }
    try:
        rows = fetch_as_is(connection, _MOVE, parameters, seconds=seconds)
        if not rows:
            raise DatabaseRefusedError("the log's head is missing: run 'socketio-pg init'")
        *found, epoch, traces, with_meta, lines = rows[0]
        moved = Moved(*found)
        if moved.unchanged:
            past = Past(moved.position + moved.count, max(past.id, moved.newest or 0), moved.issued)
        if moved.count:
            texts = encode_batches(epoch, moved.position + 1, lines, MAX_TEXT_BYTES, with_meta=bool(with_meta))
            sealed = [seal(LOG_CHANNEL, text) for text in texts]
            fetch_as_is(connection, "; ".join([_NOTIFY] * len(sealed) + ["COMMIT"]), *sealed, seconds=seconds)
            if traces:
                logger.debug(
                    "moved messages to the log",
                    extra={"traceparents": traces, "first": moved.position + 1, "last": moved.position + moved.count},
                )
        else:
            fetch_as_is(connection, "COMMIT", seconds=seconds)
    except SocketIOPGError as error:
        # After a time limit of this process, the connection cannot be used any more.
        if not isinstance(error, DatabaseTimeoutError) or error.sqlstate is not None:
            with contextlib.suppress(DatabaseError):
                fetch_as_is(connection, "ROLLBACK", seconds=seconds)
        raise
    low.scanned(moved.snapshot, moved.own, moved.issued, all_moved=not moved.more)
    return moved, past
