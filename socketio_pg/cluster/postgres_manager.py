"""PostgresManager: a client manager for python-socketio on PostgreSQL, as its RedisManager is one on Redis.

For programs that only emit, and for servers that are not ours. Ours have their connections already: see `cluster`.
"""

import logging
import os
import secrets
import selectors
import time
from collections.abc import Generator, Iterator
from typing import Any

import socketio
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from socketio_pg.client import execute
from socketio_pg.cluster.chunks import Assembler, split
from socketio_pg.cluster.queue_manager import Command, QueueManager
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import QUEUE_CHANNEL, RESERVED_PREFIX, quote_identifier
from socketio_pg.core.config import LIBPQ_DEFAULTS, database_url
from socketio_pg.core.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError

logger = logging.getLogger("socketio_pg.postgres_manager")

_NOTIFY = "SELECT pg_notify({channel}, part) FROM unnest(CAST({parts} AS text[])) AS parts (part)"


class _OnConnections(socketio.PubSubManager):  # type: ignore[misc]
    """A queue on connections of SQLAlchemy's, or on one of the caller's."""

    name = "postgres"

    #: Seconds of silence after which the connection is asked for a sign of life.
    heartbeat_interval = 5.0
    #: Seconds in which a notification of our own must arrive.
    proof_timeout = 5.0
    #: Seconds to the first attempt to reconnect; doubles up to the second value.
    backoff = (0.1, 5.0)

    def __init__(self, database: Any, channel: str, write_only: bool, logger: Any, json: Any) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)
        self._engine: Engine | None = None
        self._connection = None
        if isinstance(database, str):
            self._dsn = database_url(database)
            # With a function: libpq's addresses can do more than SQLAlchemy's.
            self._engine = create_engine("postgresql+psycopg2://", creator=self._connect, pool_pre_ping=True)
        elif isinstance(database, Engine):
            self._engine = database
        elif write_only:
            self._connection = database
        if not write_only and (self._engine is None or self._engine.dialect.driver != "psycopg2"):
            raise ConfigurationError("a PostgresManager that listens needs an address, or an engine of psycopg2.")
        self._process = os.getpid()

    def _publish(self, data: Command) -> None:
        values = {"channel": self.channel, "parts": list(split(self.json.dumps(data)))}
        if self._engine is None:
            execute(self._connection, _NOTIFY, values)
            return
        try:
            with self._pool().begin() as connection:
                execute(connection, _NOTIFY, values)
        except SQLAlchemyError as error:
            raise _translate(error) from error

    def _connect(self) -> Any:
        assert self._engine is not None
        assert self._engine.dialect.loaded_dbapi is not None
        defaults = {name: value for name, value in LIBPQ_DEFAULTS.items() if name not in self._dsn}
        return self._engine.dialect.loaded_dbapi.connect(self._dsn, **defaults)

    def _pool(self) -> Engine:
        assert self._engine is not None
        if self._process != os.getpid():
            # A child: the connections are its parent's.
            self._engine.dispose(close=False)
            self._process = os.getpid()
        return self._engine

    def _listen(self) -> Iterator[Any]:
        assert self._engine is not None
        assert self._engine.dialect.loaded_dbapi is not None
        backoff = Backoff(*self.backoff)
        complained = False
        while True:
            assembler = Assembler()
            try:
                for part in self._notifications():
                    backoff.reset()
                    complained = False
                    text = None if part is None else assembler.add(part)
                    if text is not None:
                        yield text
            except (SQLAlchemyError, DatabaseError, self._engine.dialect.loaded_dbapi.Error) as error:
                level = logging.DEBUG if complained else logging.WARNING
                logger.log(level, "not listening, what others emit is missed: %s; retrying", _translate(error))
                complained = True
            except Exception:
                # A bug, then. Listening again is still the best that can be done.
                logger.exception("listening failed; retrying")
            time.sleep(backoff.next())

    def _notifications(self) -> Generator[str | None, None, None]:
        """The payloads, on a connection of its own; None once it listens."""
        pooled = self._pool().raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(f"LISTEN {quote_identifier(self.channel)}")
            self._prove(connection, cursor)
            yield None
            while True:
                notifications = [found.payload for found in connection.notifies if found.channel == self.channel]
                connection.notifies.clear()
                yield from notifications
                if not _readable(connection, self.heartbeat_interval):
                    cursor.execute("SELECT 1")
                # After a FATAL notice it returns as if all were well; the next one raises.
                connection.poll()
        finally:
            connection.close()

    def _prove(self, connection: Any, cursor: Any) -> None:
        """NOTIFY from another session: with a pooler in transaction mode it does not arrive, nor would anything."""
        nonce = f"{RESERVED_PREFIX}_{secrets.token_hex(8)}"
        cursor.execute(f"LISTEN {nonce}")
        with self._pool().begin() as other:
            execute(other, "SELECT pg_notify({channel}, '')", {"channel": nonce})
        deadline = time.monotonic() + self.proof_timeout
        while not any(found.channel == nonce for found in connection.notifies):
            left = deadline - time.monotonic()
            if left <= 0:
                raise DatabaseError("a NOTIFY does not reach our LISTEN: a pooler in transaction mode is in between")
            _readable(connection, left)
            connection.poll()
        cursor.execute(f"UNLISTEN {nonce}")


class PostgresManager(QueueManager, _OnConnections):
    """Socket.IO's emits, disconnects, rooms and callbacks across processes, over PostgreSQL's NOTIFY.

    ``database`` is an address, a SQLAlchemy ``Engine``, or, to write only, whatever :class:`socketio_pg.client.Client`
    takes: then what is emitted is part of the caller's transaction. ``write_only`` is for programs that are no server.
    All processes need the same ``channel``; that of our servers with ``MESSAGE_QUEUE=postgres`` is the default.
    ``logger`` and ``json`` are as python-socketio's managers have them.

    ::

        PostgresManager("postgresql://…", write_only=True).emit("news", {"id": 7}, room="readers")
        socketio.Server(client_manager=PostgresManager("postgresql://…"))

    Emitting raises :class:`DatabaseUnavailableError`, :class:`DatabaseError` (the driver's own errors on a connection
    of the caller's) and :class:`PayloadTooLargeError` over 50 million characters of JSON. Who was not listening at the
    commit does not get it: that is NOTIFY.

    Raises :class:`ConfigurationError`.
    """

    def __init__(
        self,
        database: Any,
        channel: str = QUEUE_CHANNEL,
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
    ) -> None:
        super().__init__(database, channel, write_only, logger, json)


def _readable(connection: Any, seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:  # select() takes no descriptor over 1,023
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _translate(error: Exception) -> DatabaseError:
    if isinstance(error, DatabaseError):
        return error
    # The first line only, and never the statement: it has the payload.
    original = getattr(error, "orig", None) or error
    line = (str(original).strip().splitlines() or [type(error).__name__])[0]
    unavailable = isinstance(error, (OperationalError, InterfaceError)) or not isinstance(error, SQLAlchemyError)
    return DatabaseUnavailableError(line) if unavailable else DatabaseError(line)
