"""Reads the cluster keys and the installation's identity from the database, again and again."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    LogNotInstalledError,
    UntrustedSchemaError,
)
from socketio_pg.core.problems import Problem
from socketio_pg.core.seal import Key
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres import cluster_keys
from socketio_pg.postgres.database import Database, fetch
from socketio_pg.postgres.trust import verify

logger = logging.getLogger("socketio_pg.key_reader")


class ClusterKeys(Protocol):
    """Gives a process its cluster keys: :class:`KeyReader`, or a replacement that gets them from another process."""

    @property
    def problem(self) -> Problem | None:
        """As :attr:`KeyReader.problem`."""

    def start(self) -> None:
        """As :meth:`KeyReader.start`."""

    def stop(self) -> None:
        """As :meth:`KeyReader.stop`."""

    def look(self) -> None:
        """As :meth:`KeyReader.look`."""

    def read(self) -> None:
        """As :meth:`KeyReader.read`."""


class KeyReader:
    """Gives ``sealing`` the keys of this installation, on a connection of its own.

    ``cluster_key`` has the texts of the setting CLUSTER_KEY, which replace the keys in the database.
    """

    #: Seconds between two reads: less than half of the time after which a new key is used.
    interval = 8.0
    #: The minimum of it, when a text names an unknown key.
    min_interval = 1.0
    #: Seconds before the first retry after a failure; doubles up to the second value.
    backoff = (0.1, 5.0)
    #: Seconds for one query.
    timeout = 5.0

    def __init__(self, database: Database, sealing: Sealing, cluster_key: Sequence[str]) -> None:
        self._database = database
        self._sealing = sealing
        self._given = [Key.from_text(text) for text in cluster_key]
        self._connection: Any = None
        self._worker = green.Worker()
        self._problem: Problem | None = Problem("the cluster key has not been read from the database yet")

    @property
    def problem(self) -> Problem | None:
        """Why this node cannot seal and open, for the operator; None when it can."""
        return None if self._sealing.ready else self._problem

    def start(self) -> None:
        """Start the green thread; call it after a fork."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread and close the connection."""
        self._worker.stop()
        self._close()

    def look(self) -> None:
        """Read the keys soon."""
        self._sealing.want_keys()

    def read(self) -> None:
        """Read the keys now.

        Raises :class:`ConfigurationError` when there are none or this role may not read them, and
        :class:`DatabaseUnavailableError`.
        """
        try:
            if self._connection is None:
                self._connection = self._database.connect("keys")
            self._sealing.use(*cluster_keys.read(self._fetch, self._given, self._verify))
        except ConfigurationError:
            self._database.verified.discard(self._connection)  # the schema may have been removed
            raise
        except UntrustedSchemaError as error:
            raise ConfigurationError(error.message, detail=error.detail) from None
        except LogNotInstalledError:
            raise ConfigurationError(cluster_keys.NOT_INSTALLED) from None
        except DatabaseUnavailableError:
            self._close()
            raise

    def _verify(self) -> None:
        # Otherwise another role could choose the key, and forge whatever nodes send each other.
        verify(self._database, self._connection, self.timeout)

    def _fetch(self, sql: str) -> list[tuple[Any, ...]]:
        return fetch(self._connection, sql, seconds=self.timeout)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        try:
            while True:
                pause = self.interval
                try:
                    self.read()
                    self._note(None)
                    backoff.reset()
                except ConfigurationError as error:
                    # A node without MESSAGE_QUEUE and without the log needs no key. `trust` logs its problem itself.
                    unreadable = error.message == cluster_keys.UNREADABLE
                    self._note(Problem.of(error), logging.WARNING if unreadable else logging.DEBUG)
                except DatabaseError as error:
                    self._note(Problem.of(error, f"{cluster_keys.UNREADABLE}: "))
                    pause = backoff.next()
                except Exception as error:
                    # A bug. The keys that are known still work.
                    logger.exception("reading the cluster key failed; retrying")
                    self._note(Problem.of(error, f"{cluster_keys.UNREADABLE}: "))
                green.sleep(min(pause, self.min_interval))
                self._sealing.wait_wanted(max(0.0, pause - self.min_interval))
        finally:
            self._close()

    def _note(self, problem: Problem | None, level: int = logging.WARNING) -> None:
        if problem is not None and problem != self._problem:
            logger.log(level, "%s", problem)
        self._problem = problem
