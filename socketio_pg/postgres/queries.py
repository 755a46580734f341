"""Single questions to the database, on a connection for a while: for the command line."""

import contextlib
from collections.abc import Iterator
from typing import Any

from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.postgres.database import Database, translated_errors


@contextlib.contextmanager
def session(database: Database) -> Iterator[Any]:
    """A connection in autocommit mode for the body. Raises :class:`DatabaseUnavailableError`, which says which one."""
    try:
        connection = database.connect()
    except DatabaseUnavailableError as error:
        raise type(error)(f"{database}: {error.message}") from None
    try:
        yield connection
    finally:
        connection.close()


def fetch(connection: Any, sql: str, *parameters: object, seconds: float = 30.0) -> list[tuple[Any, ...]]:
    """The rows of one statement. Raises as :func:`translated_errors`."""
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def fetch_named(connection: Any, sql: str, seconds: float = 30.0) -> list[dict[str, Any]]:
    """The rows of one statement, by the names of its columns. Raises as :func:`translated_errors`."""
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(sql)
        columns = [column.name for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
