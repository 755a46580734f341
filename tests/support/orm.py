"""A database with the log and the tables of a test's mapped classes. Published messages are read from the outbox."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from _pytest.mark import ParameterSet
from sqlalchemy import MetaData, event
from sqlalchemy.orm import Session

from socketio_pg.postgres import schema
from socketio_pg.postgres.database import Database
from tests.support.driver import blocking_driver
from tests.support.postgres import VERSIONS, Cluster

DRIVERS = ("psycopg2", "psycopg")


def _backend(version: int, driver: str, *marks: pytest.MarkDecorator) -> ParameterSet:
    return pytest.param((version, driver), id=f"pg{version}-{driver}", marks=marks)


def _backends(driver: str, daily: int) -> list[ParameterSet]:
    return [_backend(version, driver, *([] if version == daily else [pytest.mark.nightly])) for version in VERSIONS]


#: PostgreSQL majors and drivers: `make test` runs each major and each driver once, `make nightly` every pair.
PSYCOPG_BACKENDS = _backends("psycopg", VERSIONS[-1])
BACKENDS = [*_backends("psycopg2", VERSIONS[0]), *PSYCOPG_BACKENDS]
#: For a test that takes long: `make test` runs it once.
ONE_BACKEND = [_backend(VERSIONS[0], driver, *([pytest.mark.nightly] * (driver != DRIVERS[0]))) for driver in DRIVERS]


class OrmDatabase:
    """A database with an engine. No server runs, so published messages stay in the outbox."""

    def __init__(self, url: str, driver: str) -> None:
        self.url = url.replace("postgresql://", f"postgresql+{driver}://")
        self.engine = sqlalchemy.create_engine(self.url)
        self.statements: list[str] = []
        event.listen(self.engine, "before_cursor_execute", self._count)

    def empty(self, metadata: MetaData) -> "OrmDatabase":
        """Empty the tables of ``metadata`` and the outbox. Return self."""
        format_table = self.engine.dialect.identifier_preparer.format_table
        tables = ", ".join(format_table(table) for table in metadata.sorted_tables)
        self.sql(f"TRUNCATE {tables}, socketio_pg.outbox RESTART IDENTITY CASCADE")
        return self

    def session(self, **options: Any) -> Session:
        return Session(self.engine, **options)

    def sql(self, statement: str, **parameters: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(sqlalchemy.text(statement), parameters)
            return list(result) if result.returns_rows else []

    def sent(self) -> list[tuple[str, Any]]:
        """Return (channel, payload) of the messages committed since the last call, in order."""
        rows = self.sql(
            "WITH gone AS (DELETE FROM socketio_pg.outbox RETURNING id, channel, payload::text)"
            " SELECT channel, payload FROM gone ORDER BY id"
        )
        return [(channel, json.loads(payload)) for channel, payload in rows]

    @contextlib.contextmanager
    def counted(self) -> Iterator[list[str]]:
        """Yield a list of the statements executed in the body; each is a round trip."""
        self.statements.clear()
        yield self.statements

    def _count(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)


def images(sent: list[tuple[str, Any]]) -> list[Any]:
    """Return channel, op, table and row image of each message."""
    return [
        (channel, payload["op"], payload["table"], payload["new"] or payload["old"])
        for channel, payload in sent
    ]  # fmt: skip


@contextlib.contextmanager
def orm_database(
    cluster: Cluster, driver: str, name: str, metadata: MetaData, prepare: Callable[[OrmDatabase], None] | None = None
) -> Iterator[OrmDatabase]:
    """Create a database ``name`` with the log and the tables of ``metadata``. ``prepare`` runs before the tables."""
    cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    cluster.sql(f"CREATE DATABASE {name}")
    schema.install(Database(cluster.url(name)), 1_000_000)
    made = OrmDatabase(cluster.url(name), driver)
    with blocking_driver():
        try:
            if prepare is not None:
                prepare(made)
            metadata.create_all(made.engine)
            yield made
        finally:
            made.engine.dispose()
