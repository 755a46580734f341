"""One connection of a consumer: psycopg2's, psycopg 3's or SQLAlchemy's. Runs statements, awaits notifications."""

import contextlib
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from socketio_pg.client import as_tuple, plain_cursor
from socketio_pg.core.channels import LOG_CHANNEL

#: The drivers' numbers for a transaction that is open, and one that has failed (libpq's PQTransactionStatusType).
_OPEN, _FAILED = 2, 3

# With these PostgreSQL notices within half a minute that this machine is gone, and lets another process continue. The
# last one is for data that it has sent and that nobody confirms.
_SESSION = """
SELECT pg_catalog.set_config('tcp_keepalives_idle', '10', false) AS idle,
    pg_catalog.set_config('tcp_keepalives_interval', '5', false) AS pause,
    pg_catalog.set_config('tcp_keepalives_count', '3', false) AS count,
    pg_catalog.set_config('tcp_user_timeout', '25s', false) AS unconfirmed
"""


class Waker:
    """Interrupts :meth:`Session.wait`, from any thread and from a signal handler."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full, or closed: a signal may come at the end of a program
            self._writer.send(b"x")

    def wait(self, seconds: float, *others: Any) -> bool:
        """Wait until :meth:`wake` is called or one of ``others`` is readable; return False after ``seconds``."""
        with selectors.DefaultSelector() as selector:
            for one in (self.reader, *others):
                selector.register(one, selectors.EVENT_READ)
            readable = selector.select(seconds)
        with contextlib.suppress(BlockingIOError):
            self.reader.recv(1000)
        return bool(readable)

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


class Session:
    """A connection that belongs to the consumer. ``handle`` is the application's kind of connection, for its work."""

    def __init__(self, connect: Engine | Callable[[], Any], waker: Waker, *, listen: bool) -> None:
        self.handle: Any = connect.connect() if isinstance(connect, Engine) else connect()
        self._waker = waker
        self._listens = listen
        try:
            self._driver = self._prepare()
            if listen:
                self.query(_SESSION)
                self.query(f"LISTEN {LOG_CHANNEL}")
                self.commit()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> Any:
        """Return the driver's connection, outside autocommit mode."""
        driver: Any = self.handle
        if isinstance(self.handle, Connection):
            driver = self.handle.connection.driver_connection
            # It listens, so it does not return to the pool.
            self.handle.detach()
        if not hasattr(driver, "info") or not hasattr(driver, "autocommit"):
            raise TypeError(f"{type(driver).__name__} is not a connection of psycopg or SQLAlchemy")
        if driver.autocommit:
            if driver is not self.handle:
                raise ValueError("a consumer needs transactions: the engine must not use AUTOCOMMIT")
            driver.autocommit = False
        return driver

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be lost."""
        return bool(self._driver.closed)

    def query(self, statement: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run ``statement``, in which ``{name}`` stands for a value, and return its rows."""
        values = values or {}
        if isinstance(self.handle, Connection):
            written = statement.format(**{name: f":{name}" for name in values}) if values else statement
            result = self.handle.execute(text(written), dict(values))
            return [tuple(row) for row in result] if result.returns_rows else []
        with plain_cursor(self.handle) as cursor:
            written = statement.format(**{name: f"%({name})s" for name in values}) if values else statement
            cursor.execute(written, values or None)
            return [as_tuple(row) for row in cursor.fetchall()] if cursor.description else []

    def commit(self) -> None:
        self.handle.commit()

    def check(self) -> None:
        """Raise :class:`RuntimeError` unless the transaction is still open and can be committed."""
        status = int(self._driver.info.transaction_status)
        if status == _FAILED:
            raise RuntimeError("the handler has caught an error of PostgreSQL, after which nothing can be committed")
        if status != _OPEN:
            raise RuntimeError("the handler has ended the transaction: it must leave that to the consumer")

    def rollback(self) -> None:
        """Roll back, or close the connection if that is impossible."""
        try:
            self.handle.rollback()
        except Exception:  # of any driver: the connection is lost
            self.close()

    def wait(self, seconds: float) -> bool:
        """Wait for a notification of the log, or until the waker is called; return False after ``seconds``."""
        if not self._listens:
            return self._waker.wait(seconds)
        if self._take_notifications():
            return True
        woken = self._waker.wait(seconds, self._driver)
        self._take_notifications()
        return woken

    def notifications(self, seconds: float) -> list[tuple[str, str]]:
        """Return (channel, payload) of the notifications that have arrived; wait for one, at most ``seconds``."""
        found = self._take_notifications()
        if not found and seconds > 0:
            self._waker.wait(seconds, self._driver)
            found = self._take_notifications()
        return found

    def _take_notifications(self) -> list[tuple[str, str]]:
        if hasattr(self._driver, "poll"):  # psycopg2
            self._driver.poll()
            found = [(one.channel, one.payload) for one in self._driver.notifies]
            self._driver.notifies.clear()
            return found
        return [(one.channel, one.payload) for one in self._driver.notifies(timeout=0)]

    def close(self) -> None:
        with contextlib.suppress(Exception):  # of any driver: the connection may be lost
            self.handle.close()
