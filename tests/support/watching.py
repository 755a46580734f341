"""A database with watched tables, without a relay: the messages of a statement are read from the outbox."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import psycopg2

from socketio_pg.postgres import schema
from tests.support.postgres import Cluster, in_thread

MAX_PAYLOAD = 100_000


class WatchDatabase:
    """A separate database with our schema, on one connection, so that plans are kept between statements.

    ``warnings``: the warnings of the last statement.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.url = cluster.url(name)
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cluster.sql(f"CREATE DATABASE {name}")
        self.warnings: list[str] = []
        self.connection = self.connect()
        self.sql(schema.statements(MAX_PAYLOAD))

    @property
    def version(self) -> int:
        """PostgreSQL's major version."""
        return int(self.connection.info.server_version) // 10_000

    def connect(self, url: str | None = None) -> Any:
        connection = psycopg2.connect(url or self.url)
        connection.autocommit = True
        return connection

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        # In a real thread: other tests of this process set psycopg2's wait callback for green threads.
        rows: list[tuple[Any, ...]] = in_thread(self._sql, statement, parameters)
        return rows

    def _sql(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        del self.connection.notices[:]
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            self.warnings = [notice.strip() for notice in self.connection.notices if notice.startswith("WARNING")]
            return list(cursor.fetchall()) if cursor.description else []

    def with_orders(self) -> "WatchDatabase":
        """Drop all tables, and create an empty, unwatched table ``orders``. Return self."""
        self.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public; SELECT socketio_pg.watch_sweep()")
        self.sql("CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text, secret text)")
        self.taken()
        return self

    def watch(self, table: str | None, channel: str | None = None, **options: object) -> str:
        names = "".join(f', "{name}" => %s' for name in options)
        [(watched,)] = self.sql(f"SELECT socketio_pg.watch(%s, %s{names})", table, channel, *options.values())
        return str(watched)

    def sent(self, statement: str, *parameters: object) -> list[tuple[str, dict[str, Any]]]:
        """Run ``statement``. Return its messages as (channel, payload), in order."""
        self.sql(statement, *parameters)
        return self.taken()

    def payloads(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        return [payload for _, payload in self.sent(statement, *parameters)]

    def taken(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the messages in the outbox, and empty it."""
        warnings = self.warnings
        rows = self.sql(
            "WITH d AS (DELETE FROM socketio_pg.outbox RETURNING *)"
            " SELECT channel, payload::text, size = octet_length(payload::text) FROM d ORDER BY id"
        )
        self.warnings = warnings
        assert all(size_is_right for *_, size_is_right in rows)
        return [(channel, json.loads(payload)) for channel, payload, _ in rows]

    def failures(self, table: str) -> list[int]:
        """Return the failure counts of the table's watches, in the order of their channels."""
        rows = self.sql("SELECT failures FROM socketio_pg.watches WHERE table_name = %s ORDER BY channel", table)
        return [count for (count,) in rows]

    def close(self) -> None:
        self.connection.close()


Made = TypeVar("Made", bound=WatchDatabase)


@contextlib.contextmanager
def dropped_at_the_end(database: Made) -> Iterator[Made]:
    try:
        yield database
    finally:
        database.close()
        database.cluster.sql(f"DROP DATABASE IF EXISTS {database.name} WITH (FORCE)")


def watch_database(cluster: Cluster, name: str) -> contextlib.AbstractContextManager[WatchDatabase]:
    return dropped_at_the_end(WatchDatabase(cluster, name))
