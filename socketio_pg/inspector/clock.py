"""Measures by how much the database's clock differs from that of this process, while somebody looks."""

import logging
import time
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseError
from socketio_pg.inspector.latency import clock
from socketio_pg.postgres.database import Database, fetch, session

logger = logging.getLogger("socketio_pg.inspector")

_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


class Clock:
    """The difference, measured with some round trips, of which the fastest counts: it is exact to half of its time."""

    #: Seconds after which it is measured again, and after a failure; seconds for a measurement; round trips.
    interval, retry, timeout, trips = 60.0, 5.0, 1.5, 4

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Seconds to add to this process's clock; None when it is not known. ``uncertainty``: by which it may be wrong.
        self.offset: float | None = None
        self.uncertainty: float | None = None
        self._due = 0.0
        self._measuring: green.Event | None = None

    def look(self) -> None:
        """Measure if that is due, and wait for it if the difference is not known yet."""
        if self._measuring is None and time.monotonic() >= self._due:
            self._measuring = green.Event()
            green.run_soon(self._measure, self._measuring)
        if self.offset is None and self._measuring is not None:
            self._measuring.wait()

    def _measure(self, done: green.Event) -> None:
        self._due = time.monotonic() + self.retry
        try:
            with green.timeout(self.timeout), session(self._database, "inspector") as connection:
                offset, self.uncertainty = min(
                    (self._trip(connection) for _ in range(self.trips)), key=lambda one: one[1]
                )
                self.offset = offset
            self._due = time.monotonic() + self.interval
        except (DatabaseError, green.TimedOut) as error:
            logger.debug("the database's clock could not be read: %s", error)
        finally:
            self._measuring = None
            done.send()

    def _trip(self, connection: Any) -> tuple[float, float]:
        began = clock()
        [(there,)] = fetch(connection, _NOW, seconds=self.timeout)
        ended = clock()
        return there - (began + ended) / 2, (ended - began) / 2
