"""Publish from an asyncio program, inside its own transaction: asyncpg, psycopg 3, SQLAlchemy. Needs no server."""

from typing import Any

from sqlalchemy import text

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import LogNotInstalledError
from socketio_pg.core.messages import check_size, encode_payload
from socketio_pg.core.publications import validate_id

# Qualified: the caller's search_path may contain schemas of other owners. The payload is a text first: a program may
# have told asyncpg how to encode jsonb.
_INSTALLED = """
SELECT pg_catalog.to_regprocedure(
    'socketio_pg.publish(pg_catalog.text, pg_catalog.jsonb, pg_catalog.bool, pg_catalog.text)') IS NOT NULL
"""
_NOTIFY = "SELECT pg_catalog.pg_notify(CAST({0} AS pg_catalog.text), CAST({1} AS pg_catalog.text))"
_PUBLISH = """
SELECT socketio_pg.publish(CAST({0} AS pg_catalog.text), CAST(CAST({1} AS pg_catalog.text) AS pg_catalog.jsonb),
    CAST({2} AS pg_catalog.bool), CAST({3} AS pg_catalog.text))
"""


async def publish(
    connection: Any, channel: str, payload: Any, *, durable: bool | None = None, id: str | None = None
) -> bool:
    """Publish any JSON value when the transaction of ``connection`` commits; return False for a repeated ``id``.

    ``connection`` is one of asyncpg, psycopg 3 (``AsyncConnection``), or an ``AsyncConnection`` or ``AsyncSession`` of
    SQLAlchemy, which is flushed first. Outside a transaction the message is sent immediately.

    ``durable``: through the log (True) or with NOTIFY (False); None takes the log where it is installed. With an
    ``id`` (1 to 64 bytes), the message is published once on its channel within five minutes.

    Raises :class:`InvalidChannelError`, :class:`InvalidRequestError` when the payload is not JSON or the id is invalid,
    :class:`PayloadTooLargeError` over 7,999 bytes with NOTIFY, :class:`LogNotInstalledError` for ``durable`` or an
    ``id`` without the log, TypeError for another connection, and the driver's errors. Before the last one the
    transaction can go on. PostgreSQL checks the size of messages of the log: SQLSTATE SG002.
    """
    validate_channel(channel)
    encoded = encode_payload(payload)
    if id is not None:
        validate_id(id)
    if durable is False:
        check_size(encoded)
    if hasattr(connection, "run_sync") and hasattr(connection, "flush"):
        await connection.flush()
    if durable is False and id is None:
        await _fetch(connection, _NOTIFY, channel, encoded)
        return True
    if await _fetch(connection, _INSTALLED):
        return bool(await _fetch(connection, _PUBLISH, channel, encoded, durable is not False, id))
    if durable or id is not None:
        raise LogNotInstalledError("the log is not installed in the database: run 'socketio-pg init'", channel=channel)
    check_size(encoded)
    await _fetch(connection, _NOTIFY, channel, encoded)
    return True


async def _fetch(connection: Any, statement: str, *values: Any) -> Any:
    """Return the only value of the only row. ``{0}`` stands for the first value in ``statement``."""
    if hasattr(connection, "fetchval"):  # asyncpg
        return await connection.fetchval(statement.format(*(f"${n}" for n in range(1, len(values) + 1))), *values)
    if hasattr(connection, "run_sync"):  # SQLAlchemy
        names = [f"value_{n}" for n in range(len(values))]
        written = text(statement.format(*(f":{name}" for name in names)))
        result = await connection.execute(written, dict(zip(names, values, strict=True)))
        return result.scalar()
    if hasattr(connection, "cursor") and hasattr(connection, "set_autocommit"):  # psycopg 3
        async with connection.cursor() as cursor:
            await cursor.execute(statement.format(*["%s"] * len(values)), values or None)
            row = await cursor.fetchone()
            return row[0] if isinstance(row, tuple) else next(iter(row.values()))
    raise TypeError(f"{type(connection).__name__} is not a connection of asyncpg, psycopg or SQLAlchemy for asyncio")
