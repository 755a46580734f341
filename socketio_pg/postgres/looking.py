"""Connections for people who look at the database now and then: one is kept for a while, and answers are in time."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseTimeoutError, DatabaseUnavailableError
from socketio_pg.postgres.database import Database, is_usable
from socketio_pg.postgres.trust import verify

T = TypeVar("T")


class Looking:
    """Runs functions with a connection to ``database``, on which the schema is verified."""

    #: Seconds for one answer, with connecting; seconds for which an unused connection is kept; connections at a time.
    seconds, linger, most = 2.0, 20.0, 4

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: tuple[Any, float] | None = None
        self._busy = 0
        self._closer = green.Worker()

    def run(self, function: Callable[[Any], T], seconds: float | None = None) -> T:
        """Return ``function(connection)``. It may run twice: the connection that was kept may have been lost.

        Raises :class:`DatabaseUnavailableError`, also after ``seconds`` (by default :attr:`seconds`),
        :class:`LogNotInstalledError`, and what the function raises.
        """
        if self._busy >= self.most:
            raise DatabaseUnavailableError("too many requests read the database at the moment: try again later")
        limit = self.seconds if seconds is None else seconds
        self._busy += 1
        try:
            with green.timeout(limit):
                return self._run(function)
        except green.TimedOut:
            raise DatabaseTimeoutError(f"the database did not answer within {limit:g} s") from None
        finally:
            self._busy -= 1

    def stop(self) -> None:
        """Close the connection that is kept."""
        self._closer.stop()
        self._close_kept()

    def _run(self, function: Callable[[Any], T]) -> T:
        while True:
            kept, self._kept = self._kept, None
            connection = self._database.connect("inspector") if kept is None else kept[0]
            try:
                verify(self._database, connection)
                found = function(connection)
            except BaseException as error:
                if is_usable(connection):
                    self._keep(connection)
                else:
                    connection.close()
                    lost = isinstance(error, DatabaseUnavailableError) and not isinstance(error, DatabaseTimeoutError)
                    if kept is not None and lost:
                        continue
                raise
            self._keep(connection)
            return found

    def _keep(self, connection: Any) -> None:
        if self._kept is not None:  # another one was faster
            connection.close()
            return
        self._kept = (connection, time.monotonic() + self.linger)
        self._closer.start(self._close_later)

    def _close_later(self) -> None:
        while self._kept is not None:
            left = self._kept[1] - time.monotonic()
            if left <= 0:
                self._close_kept()
                return
            green.sleep(left)

    def _close_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            with contextlib.suppress(Exception):
                kept[0].close()
