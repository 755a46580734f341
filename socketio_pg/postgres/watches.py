"""Reads the watches of tables, and switches them on and off with ``socketio_pg.watch()`` and ``unwatch()``.

All functions take a connection on which the schema was verified (`trust`), and raise :class:`DatabaseUnavailableError`,
:class:`LogNotInstalledError` and :class:`DatabaseError`.
"""

from collections.abc import Mapping
from typing import Any

from socketio_pg.core.errors import (
    DatabaseError,
    DatabaseRefusedError,
    ForbiddenError,
    InvalidRequestError,
    SocketIOPGError,
)
from socketio_pg.postgres.database import fetch, fetch_as_is, fetch_named

OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
#: Options of the SQL function watch(): name → SQL type.
TYPES = {
    "channel": "text", "operations": "text[]", "columns": "text[]", "exclude": "text[]", "when": "text",
    "old": "boolean", "tier": "text", "per": "text", "bulk_limit": "integer",
}  # fmt: skip
#: Tables that are listed, to choose one of them.
MAX_TABLES = 500
#: Seconds for a statement; and for which it waits for a table that is in use, with all writers behind it.
_SECONDS, _LOCK_SECONDS = 5.0, 2

_READ = """
SELECT w.table_name AS table, w.channel, w.operations, w.columns, w.exclude, w."when", w.old, w.tier, w.per,
    w.bulk_limit, w.failures, w.last_error, extract(epoch FROM w.last_error_at)::float AS last_error_at,
    pg_get_userbyid(c.relowner) AS owner, coalesce((
        SELECT bool_and(t.tgenabled = 'D') FROM socketio_pg.watch_triggers AS k
        JOIN pg_trigger AS t ON t.tgrelid = k.relation AND t.tgname = k.name
        WHERE k.relation = c.oid AND k.spec ->> 'channel' = w.channel), false) AS disabled
FROM socketio_pg.watches AS w LEFT JOIN (
    -- Not to_regclass(), which fails without USAGE of the table's schema.
    pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace AND c.relkind IN ('r', 'p')
) ON format('%I.%I', n.nspname, c.relname) = w.table_name
ORDER BY w.table_name, w.channel
"""

_TABLES = f"""
SELECT format('%I.%I', n.nspname, c.relname) AS table, pg_get_userbyid(c.relowner) AS owner,
    pg_has_role(c.relowner, 'USAGE') AS may_watch
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'socketio_pg') AND NOT starts_with(n.nspname, 'pg_')
    AND NOT EXISTS (SELECT FROM socketio_pg.watch_triggers AS w WHERE w.relation = c.oid)
ORDER BY NOT pg_has_role(c.relowner, 'USAGE'), 1 LIMIT {MAX_TABLES}
"""

_RIGHTS = """
SELECT current_user::text AS role, has_function_privilege(
    'socketio_pg.watch(regclass, text, text[], text[], text[], text, boolean, text, text, integer)', 'EXECUTE') AS may
"""


def read(connection: Any) -> list[dict[str, Any]]:
    """Return the watches: the columns of ``socketio_pg.watches``, ``owner`` of the table, ``disabled`` triggers.

    ``last_error_at`` is in seconds since 1970.
    """
    return fetch_named(connection, _READ, _SECONDS)


def read_tables(connection: Any) -> list[dict[str, Any]]:
    """Return the tables that are not watched, those first that the role may watch (``may_watch``)."""
    return fetch_named(connection, _TABLES, _SECONDS)


def rights(connection: Any) -> tuple[str, str | None]:
    """Return the name of the connection's role, and why it may switch no watch on or off; None if it may."""
    [found] = fetch_named(connection, _RIGHTS, _SECONDS)
    role = str(found["role"])
    if found["may"]:
        return role, None
    return role, (
        f"the server's role {role} may not call socketio_pg.watch(): run 'socketio-pg init --watcher-role {role}', or "
        "call it as the owner of the table"
    )


def find_table(connection: Any, name: str) -> int | None:
    """Return the oid of a table by its name in SQL, found with the connection's own search_path; None without one.

    Raises :class:`ForbiddenError` without USAGE of its schema, and :class:`InvalidRequestError` for what is no name.
    """
    try:
        [[found]] = fetch_as_is(
            connection,
            "SELECT pg_catalog.to_regclass(%s::pg_catalog.text)::pg_catalog.oid",
            name,
            seconds=_SECONDS,
        )
    except DatabaseError as error:
        raise _explained(error) from error.__cause__
    return None if found is None else int(found)


def watch(connection: Any, table: int, options: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Watch a table, with options of watch(). Return the channel, and what PostgreSQL has noted about it.

    Raises :class:`ForbiddenError` when the role may not, and :class:`InvalidRequestError` for a wrong option.
    """
    arguments = "".join(f', "{name}" => %s::{TYPES[name]}' for name in options)
    del connection.notices[:]
    [[channel]] = _changed(
        connection, f"SELECT socketio_pg.watch(%s::oid::regclass{arguments})", table, *options.values()
    )
    return channel, [notice.partition(":")[2].strip() for notice in connection.notices]


def unwatch(connection: Any, table: int, channel: str | None) -> int:
    """Stop watching a table on one channel, or on all (None). Return the number of watches that were removed.

    Raises :class:`ForbiddenError` when the role may not.
    """
    [[removed]] = _changed(connection, "SELECT socketio_pg.unwatch(%s::oid::regclass, %s::text)", table, channel)
    return int(removed)


def _changed(connection: Any, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    try:
        return fetch(connection, f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'; {sql}", *parameters, seconds=_SECONDS)
    except DatabaseError as error:
        raise _explained(error) from error.__cause__


def _explained(error: DatabaseError) -> SocketIOPGError:
    """Return an error as the operator reads it: PostgreSQL's own text, where it is about the request or a privilege."""
    text = error.detail or error.message
    if error.sqlstate == "42501":
        return ForbiddenError(f"the server's role may not do this: {text}")
    if error.sqlstate == "55P03":
        return DatabaseRefusedError("the table is in use by a long transaction: try again later")
    if error.sqlstate is not None and error.sqlstate.startswith(("SG", "22", "42")):
        return InvalidRequestError(text)
    return error
