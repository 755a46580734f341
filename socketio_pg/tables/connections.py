"""A few connections that read tables as clients: waiting for a free one, time limits, a retry on a new connection."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseError, DatabaseTimeoutError, DatabaseUnavailableError, SocketIOPGError
from socketio_pg.postgres.database import Database, fetch_as_is, is_busy, is_usable
from socketio_pg.postgres.trust import verify

T = TypeVar("T")


class Connections:
    """At most ``most`` connections to ``database``, each of which one green thread uses at a time."""

    #: Seconds for the end of a transaction.
    end_seconds = 2.0

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._free = most
        self._waiting: deque[green.Event] = deque()
        self._idle: list[Any] = []
        self._stopped = False

    def run(self, use: Callable[[Any], T], patience: float) -> T:
        """Return ``use(connection)``, whose transaction is rolled back; waits up to ``patience`` seconds for its turn.

        It is called again on a new connection if an idle one has turned out to be lost. Raises
        :class:`DatabaseUnavailableError`, :class:`LogNotInstalledError`, and what ``use`` raises.
        """
        with self._turn(patience):
            while True:
                reused = bool(self._idle)
                connection = self._idle.pop() if reused else self._database.connect("tables")
                try:
                    verify(self._database, connection)
                    result = use(connection)
                except BaseException as error:
                    kept = isinstance(error, SocketIOPGError) and self._give_back(connection)
                    if not kept:
                        connection.close()
                    lost = isinstance(error, DatabaseUnavailableError) and not isinstance(error, DatabaseTimeoutError)
                    if reused and lost and not kept:
                        continue
                    raise
                if not self._give_back(connection):
                    connection.close()
                return result

    def _give_back(self, connection: Any) -> bool:
        """Keep a connection for the next one, if it still works. The role and the settings end with its transaction."""
        if self._stopped or is_busy(connection):
            return False
        try:
            if not is_usable(connection):
                fetch_as_is(connection, "ROLLBACK", seconds=self.end_seconds)
        except DatabaseError:
            return False
        self._idle.append(connection)
        return True

    def start(self) -> None:
        self._stopped = False

    def stop(self) -> None:
        """Close idle connections, and the others once they are not in use any more."""
        self._stopped = True
        while self._idle:
            self._idle.pop().close()

    @contextlib.contextmanager
    def _turn(self, patience: float) -> Iterator[None]:
        if self._free:
            self._free -= 1
        else:
            turn = green.Event()
            self._waiting.append(turn)
            try:
                turn.wait(patience)
            except BaseException as error:
                if turn.is_set():
                    self._release()
                else:
                    self._waiting.remove(turn)
                if isinstance(error, green.TimedOut):
                    raise DatabaseUnavailableError("too many clients wait for rows at the moment: retry") from None
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        if self._waiting:
            self._waiting.popleft().send()
        else:
            self._free += 1
