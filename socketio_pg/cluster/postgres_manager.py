"""PostgresManager: a client manager for python-socketio on PostgreSQL, the counterpart of its RedisManager.

For programs that only emit, and for other Socket.IO servers. This package's server uses `postgres`, which shares its
connections.
"""

import logging
import os
import secrets
import selectors
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import socketio
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from socketio_pg.client import execute
from socketio_pg.cluster.chunks import Assembler, split
from socketio_pg.cluster.emitter_seal import EmitterSeal
from socketio_pg.cluster.queue_manager import Command, QueueManager
from socketio_pg.core.addresses import LIBPQ_DEFAULTS, database_url
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import QUEUE_CHANNEL, RESERVED_PREFIX, quote_identifier
from socketio_pg.core.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError, SocketIOPGError
from socketio_pg.postgres.session import session_sql

logger = logging.getLogger("socketio_pg.postgres_manager")

_NOTIFY = (
    "SELECT pg_catalog.pg_notify(CAST({channel} AS pg_catalog.text), part)"
    " FROM pg_catalog.unnest(CAST({parts} AS pg_catalog.text[])) AS parts (part)"
)


class _OnConnections(socketio.PubSubManager):  # type: ignore[misc]
    """A queue on connections of an SQLAlchemy engine, or on a connection of the caller."""

    name = "postgres"

    #: Seconds without data after which the connection is tested with a query.
    heartbeat_interval = 5.0
    #: Seconds in which the test notification must arrive after connecting.
    proof_timeout = 5.0
    #: Seconds before the first attempt to reconnect; doubles up to the second value.
    backoff = (0.1, 5.0)

    def __init__(
        self, database: Any, channel: str, write_only: bool, logger: Any, json: Any, cluster_key: str | None
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)
        self._sealer = EmitterSeal(cluster_key)
        self._engine: Engine | None = None
        self._connection = None
        if isinstance(database, str):
            self._dsn = database_url(database)
            # A creator function, because libpq's connection strings have more options than SQLAlchemy's URLs.
            self._engine = create_engine("postgresql+psycopg2://", creator=self._connect, pool_pre_ping=True)
        elif isinstance(database, Engine):
            self._engine = database
        elif write_only:
            self._connection = database
        if not write_only and (self._engine is None or self._engine.dialect.driver != "psycopg2"):
            raise ConfigurationError(
                "a PostgresManager needs a database URL or an engine with psycopg2, unless it is write_only."
            )
        self._process = os.getpid()

    def _publish(self, data: Command) -> None:
        parts = list(split(self.json.dumps(data)))
        if self._engine is None:
            self._notify(self._connection, parts)
            return
        try:
            with self._pool().begin() as connection:
                self._notify(connection, parts)
        except SQLAlchemyError as error:
            raise _translate(error) from error

    def _notify(self, connection: Any, parts: Sequence[str]) -> None:
        self._sealer.refresh(connection)
        values = {"channel": self.channel, "parts": [self._sealer.seal(self.channel, part) for part in parts]}
        execute(connection, _NOTIFY, values)

    def _connect(self) -> Any:
        assert self._engine is not None
        assert self._engine.dialect.loaded_dbapi is not None
        defaults = {name: value for name, value in LIBPQ_DEFAULTS.items() if name not in self._dsn}
        connection: Any = self._engine.dialect.loaded_dbapi.connect(
            self._dsn, fallback_application_name="socketio_pg emit", **defaults
        )
        _set_session(connection)
        return connection

    def _pool(self) -> Engine:
        assert self._engine is not None
        if self._process != os.getpid():
            # After a fork: the connections belong to the parent process.
            self._engine.dispose(close=False)
            self._process = os.getpid()
        return self._engine

    def _listen(self) -> Iterator[Any]:
        assert self._engine is not None
        assert self._engine.dialect.loaded_dbapi is not None
        backoff = Backoff(*self.backoff)
        reported = False
        while True:
            assembler = Assembler()
            try:
                for sealed in self._notifications():
                    backoff.reset()
                    reported = False
                    part = None if sealed is None else self._sealer.open(self.channel, sealed)
                    text = None if part is None else assembler.add(part)
                    if text is not None:
                        yield text
            except (SQLAlchemyError, SocketIOPGError, self._engine.dialect.loaded_dbapi.Error) as error:
                level = logging.DEBUG if reported else logging.WARNING
                logger.log(
                    level, "not listening, emits from other processes are missed: %s; retrying", _translate(error)
                )
                reported = True
            except Exception:
                # A bug: this process must still listen again.
                logger.exception("listening failed; retrying")
            time.sleep(backoff.next())

    def _notifications(self) -> Generator[str | None, None, None]:
        """Yield None once it listens, then the sealed payloads, on a separate connection."""
        pooled = self._pool().raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        try:
            connection.autocommit = True
            _set_session(connection)  # an engine of the caller has not done it
            cursor = connection.cursor()
            cursor.execute(f"LISTEN {quote_identifier(self.channel)}")
            self._prove(connection, cursor)
            self._sealer.refresh(connection)
            yield None
            while True:
                self._sealer.refresh(connection)
                notifications = [found.payload for found in connection.notifies if found.channel == self.channel]
                connection.notifies.clear()
                yield from notifications
                if not _readable(connection, self.heartbeat_interval):
                    cursor.execute("SELECT 1")
                # After a FATAL notice this poll() succeeds, and the next one raises.
                connection.poll()
        finally:
            connection.close()

    def _prove(self, connection: Any, cursor: Any) -> None:
        """Check that a NOTIFY from another session arrives; none does through a pooler in transaction mode."""
        nonce = f"{RESERVED_PREFIX}_{secrets.token_hex(8)}"
        cursor.execute(f"LISTEN {nonce}")
        with self._pool().begin() as other:
            execute(other, "SELECT pg_catalog.pg_notify({channel}, '')", {"channel": nonce})
        deadline = time.monotonic() + self.proof_timeout
        while not any(found.channel == nonce for found in connection.notifies):
            left = deadline - time.monotonic()
            if left <= 0:
                raise DatabaseError(
                    "a NOTIFY does not reach this LISTEN connection: a pooler in transaction mode is in between"
                )
            _readable(connection, left)
            connection.poll()
        cursor.execute(f"UNLISTEN {nonce}")


class PostgresManager(QueueManager, _OnConnections):
    """Carries Socket.IO's emits, disconnects, rooms and callbacks between processes, with PostgreSQL's NOTIFY.

    ``database`` is a database URL, an SQLAlchemy ``Engine``, or with ``write_only`` any connection that
    :class:`socketio_pg.client.Client` accepts: emits are part of the caller's transaction then. ``write_only`` is for
    programs that are not servers. All processes need the same ``channel``; the default is the one that socketio_pg's
    servers use with ``MESSAGE_QUEUE=postgres``. All seal what they send: the database's role needs the right to read
    the cluster key (``socketio-pg init --emitter-role``), or ``cluster_key`` has the servers' setting CLUSTER_KEY; the
    default is what the environment has. ``logger`` and ``json`` are as in python-socketio's managers.

    ::

        PostgresManager("postgresql://…", write_only=True).emit("news", {"id": 7}, room="readers")
        socketio.Server(client_manager=PostgresManager("postgresql://…"))

    Emitting raises :class:`DatabaseUnavailableError`, :class:`DatabaseError` (on a connection of the caller: the
    driver's own errors), and :class:`PayloadTooLargeError` over 50 million characters of JSON. As always with NOTIFY,
    processes that are not listening at the time of the commit do not receive the message; nor do they if the commit
    comes more than a minute after the emit. Raises :class:`ConfigurationError` without the key.
    """

    def __init__(
        self,
        database: Any,
        channel: str = QUEUE_CHANNEL,
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
        cluster_key: str | None = None,
    ) -> None:
        super().__init__(database, channel, write_only, logger, json, cluster_key)

    def _open(self, text: str | bytes | None) -> str | None:
        # Its parts have been opened.
        return str(text)


def _set_session(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(session_sql())
    if not connection.autocommit:
        connection.commit()


def _readable(connection: Any, seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:  # select() takes no descriptor over 1,023
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _translate(error: Exception) -> DatabaseError:
    if isinstance(error, DatabaseError):
        return error
    # Only the first line, and never the statement, which contains the payload.
    original = getattr(error, "orig", None) or error
    line = (str(original).strip().splitlines() or [type(error).__name__])[0]
    unavailable = isinstance(error, (OperationalError, InterfaceError)) or not isinstance(error, SQLAlchemyError)
    if unavailable:
        return DatabaseUnavailableError("the database is not available at the moment", detail=line)
    return DatabaseError("the database refused this", detail=line)
