"""Ends the epoch of the log when its past has changed: positions would begin again, or name other messages.

The leader compares what it finds with the evidence of earlier batches, before it numbers anything:

- the database cluster and its timeline: a restored copy, a promoted replica, another cluster at the same address,
- the table of the log, and the transaction that wrote the row of ``head``: a dump was restored,
- the newest position: rows of the log were removed,
- the ids that the outbox draws: its sequence was set back, or the table was created again.

The evidence is in memory while a node leads, and in the database (``head``, and sequences) for the next leader.
Retention does not change the newest position.
"""

import logging
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import metrics
from socketio_pg.core.errors import DatabaseError, DatabaseRefusedError, DatabaseUnavailableError
from socketio_pg.log.history import HEAD
from socketio_pg.postgres.database import fetch_as_is

logger = logging.getLogger("socketio_pg.relay")

#: The newest id that any transaction has drawn for the outbox; 0 at first.
ISSUED = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM socketio_pg.outbox_id_seq"

#: Whether the row of `head` and the table of the log are those of this epoch: a condition on `head`.
SAME_TABLES = "head.log_oid = 'socketio_pg.log'::regclass::oid AND head.written_by::xid = head.xmin"

# Some hosted databases do not permit these functions.
_CLUSTER = """
SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer AS timeline
FROM pg_control_system()
"""

# A dump is restored in several transactions: first the tables, then the rows, then the keys.
_FOUND = f"""
SELECT (
        SELECT count(*) FROM pg_catalog.pg_index
        WHERE indisprimary AND indrelid IN ('socketio_pg.log'::regclass, 'socketio_pg.outbox'::regclass)
    ) = 2 AS complete, system_identifier, timeline, log_oid IS NULL OR written_by IS NULL AS unsigned,
    log_oid IS NULL OR coalesce({SAME_TABLES}, log_oid = 'socketio_pg.log'::regclass::oid) AS same_tables,
    of_log.position,
    greatest(newest_position.last_value, removed_position.last_value) AS newest_position,
    newest_id.last_value AS newest_id, ({ISSUED}) AS issued
FROM socketio_pg.head CROSS JOIN ({HEAD}) AS of_log (of_epoch, position, trimmed_upto)
    CROSS JOIN socketio_pg.newest_position CROSS JOIN socketio_pg.removed_position CROSS JOIN socketio_pg.newest_id
"""

# Positions of the new epoch may begin again: the marks of trims, which are positions too, would be ahead of them.
_SIGN = """
WITH signed AS (
    UPDATE socketio_pg.head SET system_identifier = coalesce(%(system)s, system_identifier),
        timeline = coalesce(%(timeline)s, timeline), log_oid = 'socketio_pg.log'::regclass,
        epoch = CASE WHEN %(reason)s::text IS NULL THEN epoch ELSE gen_random_uuid() END,
        began_at = CASE WHEN %(reason)s::text IS NULL THEN began_at ELSE now() END,
        reason = coalesce(%(reason)s, reason)
    WHERE term = %(term)s
    RETURNING epoch::text, trimmed
), forgotten AS (
    DELETE FROM socketio_pg.channel_trim WHERE %(reason)s::text IS NOT NULL AND EXISTS (SELECT FROM signed)
), lowered AS (
    UPDATE socketio_pg.retention SET since = (SELECT trimmed FROM signed)
    WHERE %(reason)s::text IS NOT NULL AND EXISTS (SELECT FROM signed)
)
SELECT epoch FROM signed
"""

# Not in the transaction that changes the epoch or the log: a rollback does not undo it.
_RESET = """
SELECT setval('socketio_pg.newest_position', %s), setval('socketio_pg.newest_id', %s),
    setval('socketio_pg.removed_position', least(last_value, %s)) FROM socketio_pg.removed_position
"""

# With an older id publishers could fail, and their messages would overtake those that wait.
_REPAIR = """
SELECT setval('socketio_pg.outbox_id_seq', greatest(outbox_id_seq.last_value, newest_id.last_value,
    (SELECT max(id) FROM socketio_pg.outbox)))
FROM socketio_pg.outbox_id_seq CROSS JOIN socketio_pg.newest_id
"""

# If a crash of the database loses it, older evidence remains.
_REMEMBER = """
SELECT set_config('synchronous_commit', 'off', true), setval('socketio_pg.newest_position', %s),
    setval('socketio_pg.newest_id', %s)
"""


@dataclass(frozen=True, slots=True)
class Past:
    """The evidence that the leader has in memory.

    ``position`` is the newest one of the log, ``id`` the newest id of the outbox that was moved, ``issued`` the newest
    one that any transaction has drawn.
    """

    position: int
    id: int
    issued: int


@dataclass(frozen=True, slots=True)
class Found:
    """The state of the log, and the evidence in the database."""

    complete: bool
    system_identifier: int | None
    timeline: int | None
    #: True before the first leader of this version.
    unsigned: bool
    same_tables: bool
    position: int
    newest_position: int
    newest_id: int
    issued: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """The database cluster; None where PostgreSQL does not tell."""

    system_identifier: int | None
    timeline: int | None


def changed(found: Found, cluster: Cluster, past: Past | None) -> tuple[str, str] | None:
    """Return the label of the metric and the reason for which the epoch ends, or None. Pure, no I/O.

    ``past`` is None before the leader has moved anything.
    """
    for now, before in (
        (cluster.system_identifier, found.system_identifier), (cluster.timeline, found.timeline),
    ):  # fmt: skip
        if now is not None and before is not None and now != before:
            return "database", "the database was restored from a copy, or a replica was promoted"
    if not found.same_tables:
        return "tables", "the log's tables were restored from a dump, or created again"
    expected = found.newest_position if past is None else max(past.position, found.newest_position)
    if found.position < expected:
        return "log", f"the newest messages were removed from the log: {found.position} follows {expected}"
    drawn = found.newest_id if past is None else max(past.issued, found.newest_id)
    if found.issued < drawn:
        return "outbox", f"the ids of the outbox were set back from {drawn} to {found.issued}"
    return None


def read_cluster(connection: Any, seconds: float) -> Cluster:
    """Return the database cluster, which a connection cannot change. Raises :class:`DatabaseUnavailableError`."""
    try:
        return Cluster(*fetch_as_is(connection, _CLUSTER, seconds=seconds)[0])
    except DatabaseUnavailableError:
        raise
    except DatabaseError as error:
        logger.warning("cannot detect whether the database was restored from a copy: %s", error)
        return Cluster(None, None)


def remember(connection: Any, past: Past, seconds: float) -> None:
    """Write the evidence down for the next leader, after the commit of the batch. Raises as :func:`fetch`."""
    fetch_as_is(connection, _REMEMBER, past.position, past.id, seconds=seconds)


def check(connection: Any, term: int, cluster: Cluster, past: Past | None, seconds: float) -> tuple[Past, str | None]:
    """Compare the log with the evidence, and end its epoch if they differ. Return the new evidence, and the new epoch.

    ``connection`` is that of the leader of ``term``, outside a transaction. Raises as :func:`fetch`, and
    :class:`DatabaseRefusedError` while a dump is being restored.
    """
    rows = fetch_as_is(connection, _FOUND, seconds=seconds)
    if not rows:
        raise DatabaseRefusedError("the log's head is missing: run 'socketio-pg init'")
    found = Found(*rows[0])
    if not found.complete:
        raise DatabaseRefusedError(
            "the log's tables have no primary keys: they are being restored, or run 'socketio-pg init'"
        )
    known = Past(found.position, max(found.newest_id, 0 if past is None else past.id), found.issued)
    reason = changed(found, cluster, past)
    same_cluster = cluster in (Cluster(None, None), Cluster(found.system_identifier, found.timeline))
    if reason is None and same_cluster and not found.unsigned:
        return known, None
    text = None if reason is None else reason[1]
    values = {"system": cluster.system_identifier, "timeline": cluster.timeline, "term": term, "reason": text}
    signed = fetch_as_is(connection, _SIGN, values, seconds=seconds)
    if reason is None or not signed:
        return known, None
    issued = found.issued
    if reason[0] == "outbox":
        [(issued,)] = fetch_as_is(connection, _REPAIR, seconds=seconds)
    known = Past(found.position, issued, issued)
    fetch_as_is(connection, _RESET, known.position, known.id, known.position, seconds=seconds)
    metrics.epoch_changes.labels(reason[0]).inc()
    epoch = str(signed[0][0])
    logger.warning("the log has a new epoch, %s, and all subscribers get a gap: %s", epoch, text)
    return known, epoch
