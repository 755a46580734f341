"""A real PostgreSQL for the tests: an embedded cluster with helpers that a test would otherwise repeat."""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import make_url

from socketio_pg.postgres.embedded import EmbeddedPostgres
from socketio_pg.postgres.listener import Listener
from socketio_pg.pubsub.pubsub import PubSub


class Cluster(EmbeddedPostgres):
    """An embedded PostgreSQL in a folder of its own."""

    @property
    def socket_path(self) -> str:
        host = make_url(self.url()).query["host"]
        return f"{host}/.s.PGSQL.5432"

    def connect(self, database: str = "postgres") -> Any:
        """A plain psycopg2 connection in autocommit mode, for the test's own use."""
        connection = psycopg2.connect(self.url(database))
        connection.autocommit = True
        return connection

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own, committed; returns its rows.

        In a real thread: where the test's thread also runs green threads, those must not be waited for here.
        """
        rows: list[tuple[Any, ...]] = in_thread(self._sql, statement, parameters)
        return rows

    def _sql(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def notify(self, channel: str, payload: str = "") -> None:
        self.sql("SELECT pg_notify(%s, %s)", channel, payload)

    def backends(self) -> list[tuple[Any, ...]]:
        """(pid, query) of the connections of socketio_pg."""
        return self.sql("SELECT pid, query FROM pg_stat_activity WHERE application_name = 'socketio_pg'")

    def terminate_backends(self) -> int:
        """Kill all connections of socketio_pg; returns how many there were."""
        rows = self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'socketio_pg'")
        return len(rows)


def own_listener(pubsub: PubSub) -> Listener:
    """The listener of one that listens itself."""
    assert isinstance(pubsub.listener, Listener)
    return pubsub.listener


@contextlib.contextmanager
def cluster(version: int, *, durable: bool = False) -> Iterator[Cluster]:
    """A running cluster of major ``version``, removed at the end.

    ``durable``: whether what it confirms survives a crash of the machine. ``synchronous_commit`` stays on either way:
    the log's relay behaves otherwise without it.
    """
    # Not pytest's tmp_path: PostgreSQL may have to run as another user, and a socket's path has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix=f"pg{version}-"))
    running = Cluster(folder, version=version)
    running.start()
    if not durable:
        for setting in ("fsync", "full_page_writes"):
            running.sql(f"ALTER SYSTEM SET {setting} = off")
        running.sql("SELECT pg_reload_conf()")
    try:
        yield running
    finally:
        running.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def in_thread(function: Any, *arguments: Any) -> Any:
    """Run ``function`` in a real thread and wait for it."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((function(*arguments), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value
