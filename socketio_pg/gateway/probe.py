"""What only PostgreSQL knows about itself and the outbox: asked now and then, and by nobody who has to wait for it."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseError, DatabaseTimeoutError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.postgres.database import Database, translated_errors

logger = logging.getLogger("socketio_pg.probe")

# Of a long outbox only so much is counted: the count is for a person, and must not cost much when all is slow already.
_MOST_COUNTED = 100_000
_OUTBOX = f"""
SELECT (SELECT count(*) FROM (SELECT FROM socketio_pg.outbox LIMIT {_MOST_COUNTED}) AS found),
    coalesce((SELECT greatest(0, extract(epoch FROM clock_timestamp() - published_at))
        FROM socketio_pg.outbox ORDER BY id LIMIT 1), 0)::float
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """``queue_usage``: of PostgreSQL's queue of notifications, 0 to 1. The outbox's messages, 100,000 at most, and the
    age of the oldest in seconds; None where there is no log."""

    queue_usage: float
    outbox_messages: int | None
    outbox_age: float | None


class Probe:
    """Asks PostgreSQL when it is asked itself, once in :attr:`interval` at most, on a connection that it keeps."""

    #: Seconds between two queries; after a failure as well.
    interval = 5.0
    #: Seconds that :meth:`read` waits for an answer, where the last query had one.
    patience = 0.25
    #: Seconds for the query.
    timeout = 2.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._next = 0.0
        self._running: green.Event | None = None
        self._thread: green.GreenThread | None = None
        self._reading: Reading | None = None
        self._answered = True

    def read(self) -> Reading | None:
        """The last reading, :attr:`interval` old at most unless PostgreSQL is slow; None when it did not answer."""
        if self._running is None and time.monotonic() >= self._next:
            self._running = green.Event()
            self._thread = green.spawn(self._run, self._running)
        running = self._running
        if running is not None and self._answered:
            try:
                running.wait(self.patience)
            except green.TimedOut:
                self._answered = False  # the next one does not wait for it
        return self._reading

    def stop(self) -> None:
        """End what is being asked, and close the connection."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.kill()
        self._running = None
        self._hang_up()

    def _run(self, done: green.Event) -> None:
        try:
            reused = self._connection is not None
            try:
                self._reading = self._ask()
            except DatabaseUnavailableError as error:
                self._hang_up()
                # A connection that had been idle may have died long ago.
                if not reused or isinstance(error, DatabaseTimeoutError):
                    raise
                self._reading = self._ask()
            self._answered = True
        except DatabaseError as error:
            logger.debug("PostgreSQL could not be asked for the metrics: %s", error)
            self._reading, self._answered = None, False
            self._hang_up()
        finally:
            self._next = time.monotonic() + self.interval
            self._running = None
            done.send()

    def _ask(self) -> Reading:
        if self._connection is None:
            self._connection = self._database.connect()
            self._execute(f"SET statement_timeout = {int(self.timeout * 1000)}; SELECT 1")
        [(usage,)] = self._execute("SELECT pg_notification_queue_usage()::float")
        try:
            [(messages, age)] = self._execute(_OUTBOX)
        except LogNotInstalledError:
            return Reading(usage, None, None)
        except DatabaseError as error:
            if error.sqlstate != "42501":
                raise
            return Reading(usage, None, None)  # not for this role: as good as not there
        return Reading(usage, messages, age)

    def _execute(self, sql: str) -> list[tuple[Any, ...]]:
        with translated_errors(self.timeout), self._connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
