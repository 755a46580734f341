"""The relay: moves published messages from the outbox to the log, numbers them and notifies all nodes.

One node at a time is the leader:

    stand by (try the relay's lock) → lead: move batches while there are any → idle until the doorbell rings → trim

Everything happens on one connection, which also holds the locks: if the connection is lost, leadership and the
transaction in progress end together.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import BELL_CHANNEL, LOG_CHANNEL
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.log.history import HEAD
from socketio_pg.log.low_water import LowWater
from socketio_pg.log.positions import Head, trim_upto
from socketio_pg.postgres.database import Database, translated_errors
from socketio_pg.postgres.schema import BUSY_LOCK, LOCK_CLASS, RELAY_LOCK
from socketio_pg.version import __version__

logger = logging.getLogger("socketio_pg.relay")

# Overrides settings of the role or database that would disturb the relay. With the timeouts and keepalives PostgreSQL
# notices within about 10 s that the leader's machine is gone or stopped, and frees the lock.
_SESSION = """
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE;
SELECT set_config('idle_session_timeout', '10s', false) FROM pg_settings WHERE name = 'idle_session_timeout';
SET lock_timeout = '5s'; SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '10s';
SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = '10s'; SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
"""

# The id after which to scan the outbox: see `low_water`.
_BOUND = """
SELECT least({floor}, min(low)) FROM unnest({xids}, {lows}) AS open (xid, low)
WHERE pg_visible_in_snapshot(xid, pg_current_snapshot())
"""

#: Moves up to $1 messages and about 2 MB, from the ids of `LowWater` ($2 to $4), and notifies the nodes. Returns the
#: number of messages, whether there are more, and the arguments of `LowWater.scanned`. Small messages are part of the
#: notification: lines that begin within 4,000 bytes, each of up to 3,900 bytes, stay below NOTIFY's limit of 8,000.
MOVE = f"""
PREPARE socketio_pg_move (integer, bigint, xid8[], bigint[]) AS
WITH oldest AS (
    SELECT id, size FROM socketio_pg.outbox
    WHERE id > ({_BOUND.format(floor="$2", xids="$3", lows="$4")}) ORDER BY id LIMIT $1
), picked AS (
    SELECT id FROM (SELECT id, sum(size) OVER (ORDER BY id) - size AS size_before FROM oldest) AS sized
    WHERE size_before < 2000000
), moved AS (
    -- Not a join: if planned while the outbox was empty, a join would read the whole outbox for each row.
    DELETE FROM socketio_pg.outbox WHERE id = ANY (ARRAY(SELECT id FROM picked))
    RETURNING id, channel, payload, size, published_at
), head AS ({HEAD}), logged AS (
    INSERT INTO socketio_pg.log (position, channel, payload, size, published_at)
    SELECT (SELECT head.position FROM head) + row_number() OVER (ORDER BY id), channel, payload, size, published_at
    FROM moved
    RETURNING position, channel, payload, size, published_at
), lines AS (
    SELECT position, CASE WHEN size <= 3800 THEN concat_ws(E'\\t', channel,
        to_char(published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), payload::text) END AS line
    FROM logged
), placed AS (
    SELECT *, (sum(coalesce(octet_length(line) + 1, 8000)) OVER before) / 4000 AS part FROM lines
    WINDOW before AS (ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), parts AS (
    SELECT min(position) AS first, max(position) AS last,
        CASE WHEN bool_and(line IS NOT NULL) THEN E'\\n' || string_agg(line, E'\\n' ORDER BY position)
            ELSE '' END AS body
    FROM placed GROUP BY coalesce(part, 0) ORDER BY first
)
SELECT (SELECT count(*) FROM moved) AS moved,
    (SELECT count(*) FROM oldest) = $1 OR (SELECT count(*) FROM oldest) > (SELECT count(*) FROM moved) AS more,
    pg_current_snapshot()::text AS snapshot, pg_current_xact_id_if_assigned()::text::bigint AS own,
    (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM socketio_pg.outbox_id_seq) AS issued,
    count(pg_notify('{LOG_CHANNEL}', concat_ws(' ', epoch, first, last) || body)) AS notifications
FROM parts CROSS JOIN head
"""

# One round trip with two statements, so that the second sees what the last holder of the row's lock has committed. With
# nothing to move it takes no lock, and PostgreSQL writes nothing to disk.
_LOW = {"floor": "%(floor)s::bigint", "xids": "%(xids)s::text[]::xid8[]", "lows": "%(lows)s::bigint[]"}
MOVE_BATCH = f"""
SELECT FROM socketio_pg.head
WHERE EXISTS (SELECT FROM socketio_pg.outbox WHERE id > ({_BOUND.format(**_LOW)})) FOR UPDATE;
EXECUTE socketio_pg_move(%(limit)s, {_LOW["floor"]}, {_LOW["xids"]}, {_LOW["lows"]})
"""

# A restored copy or a promoted replica may lack the newest messages; its system identifier, timeline or table differs.
_RENEW_EPOCH = """
UPDATE socketio_pg.head SET
    epoch = CASE WHEN head.system_identifier IS NULL THEN epoch ELSE gen_random_uuid() END,
    system_identifier = here.system_identifier, timeline = here.timeline, log_oid = here.log_oid
FROM (
    SELECT 'socketio_pg.log'::regclass::oid AS log_oid, system_identifier,
        ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer AS timeline
    FROM pg_control_system()
) AS here
WHERE (head.system_identifier, head.timeline, head.log_oid)
    IS DISTINCT FROM (here.system_identifier, here.timeline, here.log_oid)
RETURNING epoch
"""

_OLDEST = """
SELECT position, extract(epoch FROM now() - logged_at)::float FROM socketio_pg.log WHERE position > %s
ORDER BY position LIMIT %s
"""

_TRIM = """
WITH gone AS (DELETE FROM socketio_pg.log WHERE position > %s AND position <= %s)
UPDATE socketio_pg.head SET trimmed = %s WHERE trimmed < %s
"""

_BEAT = """
INSERT INTO socketio_pg.node (id, name, version, relay, position, clients) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET relay = excluded.relay, position = excluded.position, clients = excluded.clients,
    seen_at = now()
"""


class Relay:
    """The relay of this node. It leads or stands by.

    ``retention`` is in seconds; ``max_messages`` is None for no limit. ``describe()`` returns (position, clients) of
    this node for the view ``socketio_pg.nodes``. ``on_leading(leading)`` is called when this node starts or stops
    leading.
    """

    #: Seconds between attempts to become the leader.
    election_interval = 0.5
    #: Maximum messages in a batch.
    batch_size = 1000
    #: Seconds to wait after a batch that was not full: the next one moves more messages at the same cost.
    pause = 0.002
    #: Seconds between scans of the outbox while the doorbell does not ring; doubles up to the second value. Finds the
    #: rows of publishers that did not ring because the relay was busy, but committed when it was idle.
    idle = (0.005, 1.0)
    #: Seconds between scans of the outbox from its beginning: see `low_water`.
    full_scan_interval = 10.0
    #: Seconds between trims, and maximum messages that one statement removes.
    trim_interval = 10.0
    trim_size = 1000
    #: Seconds between heartbeats in ``socketio_pg.node``.
    beat_interval = 10.0
    #: Seconds after which a statement without a response counts as a lost connection.
    timeout = 8.0
    #: Seconds before the first attempt to reconnect; doubles up to the second value.
    backoff = (0.1, 5.0)

    def __init__(
        self,
        database: Database,
        retention: float,
        max_messages: int | None,
        describe: Callable[[], tuple[int, int]],
        on_leading: Callable[[bool], None] | None = None,
    ) -> None:
        self._database = database
        self._retention = retention
        self._max_messages = max_messages
        self._describe = describe
        self._id = str(uuid.uuid4())
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._worker = green.Worker()
        self._installed = green.Event()
        self._next_beat = self._next_trim = self._next_full_scan = 0.0
        self._low = LowWater()
        #: True while this node leads.
        self.leading = False
        self._on_leading = on_leading or (lambda leading: None)
        #: Why it neither leads nor stands by, for the operator; None if it does either.
        self.problem: str | None = "the relay is starting"
        #: True if a move has succeeded since the last failure; and if the next connection is a reconnection.
        self._worked = self._lost = False

    def start(self) -> None:
        """Start the green thread; call it after a fork."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread and close the connection, so that another node can take over immediately."""
        self._worker.stop()

    def look(self) -> None:
        """Check again whether the schema is installed."""
        self._installed.send()

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        logged = False
        while True:
            connection = None
            self._installed = green.Event()
            try:
                # Not through a pooler: session locks and LISTEN need a session.
                connection = self._database.connect(listen=True)
                self._execute(connection, _SESSION)
                self._execute(connection, MOVE)
                if self._lost:
                    metrics.reconnects.labels("relay").inc()
                self._lost, self.problem = True, None
                self._stand_by(connection)
                self._lead(connection)
            except LogNotInstalledError as error:
                self._lost, self.problem = False, str(error)
                self._stop_leading()
                if connection is not None:
                    connection.close()
                    connection = None
                self._wait_installed()
            except DatabaseError as error:
                if self._worked:
                    logged = self._worked = False
                    backoff.reset()
                self.problem = f"not relaying: {error}"
                logger.log(logging.DEBUG if logged else logging.WARNING, "not relaying: %s; retrying", error)
                logged = True
            except Exception as error:
                self.problem = f"not relaying: {error}"
                # A bug. The outbox keeps the messages that are published meanwhile.
                logger.exception("the relay failed; retrying")
            finally:
                self._stop_leading()
                if connection is not None:
                    connection.close()
            green.sleep(backoff.next())

    def _stop_leading(self) -> None:
        if self.leading:
            self.leading = False
            self._on_leading(False)

    def _wait_installed(self) -> None:
        try:
            self._installed.wait(60.0)
        except green.TimedOut:
            return

    def _stand_by(self, connection: Any) -> None:
        while not self._execute(connection, "SELECT pg_try_advisory_lock(%s, %s)", LOCK_CLASS, RELAY_LOCK)[0][0]:
            self._beat(connection)
            green.sleep(self.election_interval)

    def _lead(self, connection: Any) -> None:
        self.leading = True
        self._on_leading(True)
        logger.info("relaying the log on %s", self._database)
        self._execute(connection, f"LISTEN {BELL_CHANNEL}")
        self._check_epoch(connection)
        self._next_trim = self._next_beat = self._next_full_scan = 0.0
        self._low = LowWater()
        busy, idle = False, Backoff(*self.idle, jitter=0.0)
        while True:
            moved = self._move(connection)
            if moved:
                idle.reset()
                if not busy:
                    # Try, do not wait: see sql/2_functions.sql. Without the lock publishers just keep ringing the bell.
                    busy = self._execute(connection, "SELECT pg_try_advisory_lock(%s, %s)", LOCK_CLASS, BUSY_LOCK)[0][0]
                if moved < self.batch_size:
                    green.sleep(self.pause)
                else:
                    green.sleep()
            elif busy:
                self._execute(connection, "SELECT pg_advisory_unlock(%s, %s)", LOCK_CLASS, BUSY_LOCK)
                busy = False
                continue  # scan once more, now that publishers ring the bell again
            else:
                self._wait_for_bell(connection, idle.next())
            self._beat(connection)
            self._trim(connection)

    def _move(self, connection: Any) -> int:
        """Move at most one batch; return the number of messages."""
        began = time.monotonic()
        full = began >= self._next_full_scan
        low = self._low
        parameters = {
            "limit": self.batch_size,
            "floor": 0 if full else low.floor,
            "xids": [str(xid) for xid in low.open],
            "lows": list(low.open.values()),
        }
        moved, more, snapshot, own, issued, _ = self._execute(connection, MOVE_BATCH, parameters)[0]
        low.scanned(snapshot, own, issued, all_moved=not more)
        if moved:
            metrics.relay_batch_messages.observe(moved)
            metrics.relay_batch_seconds.observe(time.monotonic() - began)
        if full:
            # Full scans take at most a twentieth of the relay's time.
            now = time.monotonic()
            self._next_full_scan = now + max(self.full_scan_interval, 20 * (now - began))
        self._worked = True
        return int(moved)

    def _wait_for_bell(self, connection: Any, seconds: float) -> None:
        if not connection.notifies and green.select([connection], seconds):
            with translated_errors(self.timeout):
                # poll() does not raise after a FATAL notice; the next statement does.
                connection.poll()
        connection.notifies.clear()

    def _check_epoch(self, connection: Any) -> None:
        try:
            renewed = self._execute(connection, _RENEW_EPOCH)
        except DatabaseUnavailableError:
            raise
        except DatabaseError as error:
            # Some hosted databases do not permit these functions.
            logger.warning("cannot detect whether the database was restored from a copy: %s", error)
            return
        if renewed:
            logger.info("the log's epoch is %s", renewed[0][0])
            self._execute(connection, f"NOTIFY {LOG_CHANNEL}, 'epoch'")

    def _trim(self, connection: Any) -> None:
        if time.monotonic() < self._next_trim:
            return
        head = Head(*self._execute(connection, HEAD)[0])
        oldest = self._execute(connection, _OLDEST, head.trimmed, self.trim_size)
        upto = trim_upto(oldest, head.position, self._retention, self._max_messages)
        if upto is not None:
            self._execute(connection, _TRIM, head.trimmed, upto, upto, upto)
        # In small statements, so that new messages are moved between them.
        more = upto is not None and upto == oldest[-1][0]
        self._next_trim = time.monotonic() + (0.05 if more else self.trim_interval)

    def _beat(self, connection: Any) -> None:
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + self.beat_interval
        position, clients = self._describe()
        self._execute(connection, _BEAT, self._id, self._name, __version__, self.leading, position, clients)
        if self.leading:
            self._execute(connection, "DELETE FROM socketio_pg.node WHERE seen_at < now() - interval '1 minute'")

    def _execute(self, connection: Any, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        named = len(parameters) == 1 and isinstance(parameters[0], dict)
        with translated_errors(self.timeout), connection.cursor() as cursor:
            cursor.execute(sql, parameters[0] if named else parameters or None)
            return list(cursor.fetchall()) if cursor.description else []
