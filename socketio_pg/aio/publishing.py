"""Publish from an asyncio program, inside its own transaction: asyncpg, psycopg 3, SQLAlchemy. Needs no server."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text

from socketio_pg.client import publication, publication_values
from socketio_pg.core.log_choice import LOG_CHOICE, database_key


async def publish(
    connection: Any,
    channel: str,
    payload: Any,
    *,
    durable: bool | None = None,
    id: str | None = None,
    exclude: str | None = None,
    traceparent: str | None = None,
    schema_owner: str | None = None,
) -> bool:
    """Publish any JSON value when the transaction of ``connection`` commits; return False for a repeated ``id``.

    ``connection`` is one of asyncpg, psycopg 3 (``AsyncConnection``), or an ``AsyncConnection`` or ``AsyncSession`` of
    SQLAlchemy, which is flushed first. Outside a transaction the message is sent immediately.

    ``durable``, ``id``, ``exclude``, ``traceparent``, ``schema_owner`` and the errors are those of
    :class:`socketio_pg.client.Client`. Raises TypeError for another connection.
    """
    driver = _driver(connection)
    values = publication_values(channel, payload, id, exclude, traceparent)
    if driver == "sqlalchemy" and hasattr(connection, "flush"):
        await connection.flush()
    statement = publication(values, await _has_log(connection, driver, schema_owner) if durable is None else durable)
    try:
        [(result,)] = await _fetch(connection, driver, statement, values)
    except Exception:
        LOG_CHOICE.forget()  # the log may have been removed
        raise
    return result is not False


async def _has_log(connection: Any, driver: str, schema_owner: str | None) -> bool:
    key = None
    if driver == "psycopg":
        key = database_key(connection)
    elif driver == "sqlalchemy":
        bound = connection.get_bind() if hasattr(connection, "flush") else connection
        key = bound.engine.url
    found = None if key is None else LOG_CHOICE.known(key, schema_owner)
    if found is None:
        # asyncpg does not tell the database of a connection: None is asked each time.
        found = LOG_CHOICE.learn(
            key, schema_owner, await _fetch(connection, driver, LOG_CHOICE.question(schema_owner), {})
        )
    return found


def _driver(connection: Any) -> str:
    """Return the kind of a connection. Raises TypeError."""
    if hasattr(connection, "fetchval"):
        return "asyncpg"
    if hasattr(connection, "run_sync"):
        return "sqlalchemy"
    if hasattr(connection, "cursor") and hasattr(connection, "set_autocommit"):
        return "psycopg"
    raise TypeError(f"{type(connection).__name__} is not a connection of asyncpg, psycopg or SQLAlchemy for asyncio")


async def _fetch(connection: Any, driver: str, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    """Return the rows of ``statement``, in which ``{name}`` stands for a value."""
    if driver == "asyncpg":
        names = list(values)
        numbered = statement.format(**{name: f"${names.index(name) + 1}" for name in names}) if names else statement
        return [tuple(row) for row in await connection.fetch(numbered, *values.values())]
    if driver == "sqlalchemy":
        written = statement.format(**{name: f":{name}" for name in values}) if values else statement
        return [tuple(row) for row in await connection.execute(text(written), dict(values))]
    async with connection.cursor() as cursor:
        written = statement.format(**{name: f"%({name})s" for name in values}) if values else statement
        await cursor.execute(written, dict(values) or None)
        rows = await cursor.fetchall()
        return [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in rows]
