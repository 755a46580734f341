"""Watches the outbox and the notification queue from this node, whichever node relays the log, and if none does.

A leader cannot report that it is stuck: its process or its session may be stopped, or wait for a lock. So each node
checks for itself that the oldest message in the outbox does not stay the same.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseError, LogNotInstalledError
from socketio_pg.core.problems import Problem
from socketio_pg.postgres.database import FIXED_PATH, Database, translated_errors
from socketio_pg.postgres.trust import verify

logger = logging.getLogger("socketio_pg.backlog")

# The count stops here: it informs people, and must stay cheap when the database is slow.
_MAX_COUNTED = 100_000

_AGE = "greatest(0, extract(epoch FROM clock_timestamp() - published_at))::float"

# Scans from an id on, not from the first: moved rows stay in the index until vacuum removes them (see `low_water`).
_OUTBOX = f"""
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM socketio_pg.outbox_id_seq) AS issued,
    (SELECT count(*) FROM (SELECT FROM socketio_pg.outbox WHERE id > %s LIMIT %s) AS found) AS messages, id, age
FROM (SELECT 1) AS one LEFT JOIN (
    SELECT id, {_AGE} AS age FROM socketio_pg.outbox WHERE id > %s ORDER BY id LIMIT 1
) AS oldest ON true
"""

_FIRST = f"SELECT id, {_AGE} FROM socketio_pg.outbox ORDER BY id LIMIT 1"


@dataclass(frozen=True, slots=True)
class Reading:
    """State of PostgreSQL: usage of its notification queue (0 to 1), the number of messages in the outbox (counted up
    to 100,000) and the age of the oldest in seconds. The latter two are None without a log.
    """

    queue_usage: float
    outbox_messages: int | None
    outbox_age: float | None


class Waiting:
    """Measures for how long the same message has been the oldest. Pure, no I/O; all times are monotonic.

    The age of a row is no measure: a transaction may publish at its beginning and commit an hour later, and its old
    row is then visible for a moment.
    """

    def __init__(self) -> None:
        self.id: int | None = None
        self._since = self._seen = 0.0

    def seen(self, id: int | None, now: float) -> None:
        """Note the oldest message at a time: its id, or None for an empty outbox."""
        if id != self.id:
            self.id, self._since = id, now
        self._seen = now

    @property
    def seconds(self) -> float:
        """Seconds between the first and the last time that the present oldest message was seen; 0 without one."""
        return 0.0 if self.id is None else self._seen - self._since


class Backlog:
    """Watches the outbox of ``database``. ``count``: also counts its messages, for the metrics.

    Messages that are moved slowly, but in turn, are no :attr:`problem`: a burst drains automatically, and
    ``outbox_oldest_age_seconds`` shows the lag.
    """

    #: Seconds between two looks.
    interval = 2.0
    #: Seconds after which a message counts as stuck that has been the oldest all the time.
    stuck_after = 5.0
    #: Seconds without a successful look, although the database can be connected to, after which that is a problem.
    unread_after = 10.0
    #: Seconds for one look.
    timeout = 2.0
    #: Seconds between scans of the outbox from its beginning, which find rows that were committed late, and seconds for
    #: such a scan. It takes at most a twentieth of the time, as the relay's full scans do.
    full_scan_interval = 10.0
    full_scan_timeout = 5.0

    def __init__(self, database: Database, *, count: bool = False) -> None:
        self._database = database
        self._count = count
        self._connection: Any = None
        self._worker = green.Worker()
        self._reading: Reading | None = None
        self._oldest, self._late = Waiting(), Waiting()
        #: The id after which to scan, and the newest id drawn by any transaction at the last look.
        self._floor: int | None = None
        self._issued = 0
        self._next_full_scan = 0.0
        self._unread_since: float | None = None
        self._failure: Problem | None = None
        self._reported = False

    @property
    def reading(self) -> Reading | None:
        """The last reading; None when PostgreSQL did not answer."""
        return self._reading

    @property
    def stuck_seconds(self) -> float:
        """Seconds for which the oldest message has been seen waiting; 0 unless two looks have seen the same one."""
        return max(self._oldest.seconds, self._late.seconds)

    @property
    def problem(self) -> Problem | None:
        """Why messages do not get from the outbox to the log, for the operator; None when they do."""
        if self.stuck_seconds > self.stuck_after:
            return Problem(f"messages have been waiting in the outbox for {self.stuck_seconds:.0f} s")
        if self._unread_since is not None and time.monotonic() - self._unread_since > self.unread_after:
            return self._failure
        return None

    def start(self) -> None:
        """Start the green thread; call it after a fork."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """Stop the green thread and close the connection."""
        self._worker.stop()

    def _run(self) -> None:
        try:
            while True:
                began = time.monotonic()
                try:
                    self._look()
                    self._unread_since = None
                except DatabaseError as error:
                    logger.debug("PostgreSQL could not be queried: %s", error)
                    self._reading, self._failure = None, Problem.of(error, "the outbox cannot be read: ")
                    if self._unread_since is None:
                        self._unread_since = began
                    self._hang_up()
                except Exception:  # a bug: the following looks may succeed
                    logger.exception("watching the outbox failed; retrying")
                    self._reading = None
                    self._hang_up()
                self._report()
                green.sleep(self.interval)
        finally:
            self._hang_up()

    def _report(self) -> None:
        problem = self.problem
        if problem is not None and not self._reported:
            logger.warning("%s: the relay is stuck, or none is running", problem)
        elif problem is None and self._reported:
            logger.info("no message is stuck in the outbox any more")
        self._reported = problem is not None

    def _look(self) -> None:
        if self._connection is None:
            self._connection = self._database.connect("backlog", settings={"jit": "off"})
        [(usage,)] = self._execute(self.timeout, "SELECT pg_notification_queue_usage()::float")
        try:
            verify(self._database, self._connection, self.timeout)
            messages, age = self._look_at_outbox()
        except LogNotInstalledError:
            self._database.verified.clear()
            messages = age = None
        except DatabaseError as error:
            if error.sqlstate != "42501":
                raise
            messages = age = None  # the role may not read the outbox
        if age is None:
            self._oldest, self._late = Waiting(), Waiting()
        self._reading = Reading(usage, messages, age)

    def _look_at_outbox(self) -> tuple[int | None, float]:
        """Return the number of messages, if they are counted, and the age of the oldest; 0 without any."""
        if self._floor is None:
            # Rows that were there before: the first scan from the beginning finds them.
            [(self._issued, *_)] = self._execute(self.timeout, _OUTBOX, 0, 0, _NEVER)
            self._floor = self._issued
        most = _MAX_COUNTED if self._count else 0
        [(issued, messages, id, age)] = self._execute(self.timeout, _OUTBOX, self._floor, most, self._floor)
        if issued < self._issued:  # the table was created again
            self._floor, self._next_full_scan = 0, 0.0
        self._oldest.seen(id, time.monotonic())
        # A row that is not visible yet has an id greater than those drawn until the previous look, or is found by a
        # scan from the beginning.
        self._floor = self._issued if id is None else id - 1
        self._issued = issued
        late = self._scan_all()
        if late is not None:
            age, messages = max(age or 0.0, late), max(messages, 1)
        return (messages if self._count else None), age or 0.0

    def _scan_all(self) -> float | None:
        """Scan from the beginning if that is due. Return the age of the oldest message, None for none or no scan."""
        began = time.monotonic()
        if began < self._next_full_scan:
            return None
        try:
            found = self._execute(self.full_scan_timeout, _FIRST)
        finally:
            now = time.monotonic()
            self._next_full_scan = now + max(self.full_scan_interval, 20 * (now - began))
        id, age = found[0] if found else (None, None)
        self._late.seen(id, now)
        return None if age is None else float(age)

    def _execute(self, seconds: float, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        # Also limited in PostgreSQL, which would otherwise go on with a query that timed out here.
        limited = f"{FIXED_PATH}; SET statement_timeout = {int(seconds * 1000)}; {sql}"
        with translated_errors(seconds + 0.5), self._connection.cursor() as cursor:
            cursor.execute(limited, parameters or None)
            return list(cursor.fetchall())

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


#: No row has a greater id.
_NEVER = 2**63 - 1
