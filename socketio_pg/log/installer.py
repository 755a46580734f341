"""Installs the log's schema for AUTO_INIT: at the start, and again when the log is missing."""

import logging
from collections.abc import Callable

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, UntrustedSchemaError
from socketio_pg.core.problems import Problem
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.schema import install

logger = logging.getLogger("socketio_pg.installer")


class Installer:
    """Installs the schema in ``database`` as long as ``installed`` returns False.

    A database may be dropped and created again under a running server. ``installed`` says whether this node knows the
    log; ``on_installed`` is called when it can look for it.
    """

    #: Seconds between two looks. The log is missing when two of them do not find it: it may be about to be replaced.
    interval = 2.0
    #: Seconds before the first attempt after a failure, and the most.
    backoff = (0.5, 30.0)

    def __init__(
        self, database: Database, max_payload: int, installed: Callable[[], bool], on_installed: Callable[[], None]
    ) -> None:
        self._database = database
        self._max_payload = max_payload
        self._installed = installed
        self._on_installed = on_installed
        self._worker = green.Worker()
        self._problem = Problem("the log is being installed")

    @property
    def problem(self) -> Problem:
        """Why the log is missing."""
        return self._problem

    def start(self) -> None:
        """Start the green thread."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """Stop the green thread."""
        self._worker.stop()

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        while True:
            try:
                install(self._database, self._max_payload, again=False)
            except DatabaseError as error:
                logger.warning("the log's schema could not be installed: %s; retrying", error)
                self._problem = Problem.of(error, "the log could not be installed: ")
                green.sleep(backoff.next())
            except UntrustedSchemaError:
                green.sleep(backoff.next())  # logged by `trust`, once
            else:
                self._problem = Problem("the log is being installed")
                backoff.reset()
                self._on_installed()
                self._wait_until_missing()

    def _wait_until_missing(self) -> None:
        missing = 0
        while missing < 2:
            green.sleep(self.interval)
            missing = 0 if self._installed() else missing + 1
