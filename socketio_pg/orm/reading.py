"""Reads changed rows as JSON from PostgreSQL. What publishing cannot express never fails the application's write.

PostgreSQL converts every value to JSON (``to_jsonb``), including old values that the session had loaded. So every type
looks as in a trigger. A row that has no JSON, or cannot be read, is published without its values.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Integer,
    Table,
    Text,
    and_,
    cast,
    column,
    false,
    func,
    literal,
    select,
    table,
    true,
    union_all,
    values,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.sql.selectable import Values
from sqlalchemy.types import NullType

from socketio_pg.orm.row_images import Change, Image, Outgoing, Reason, Rows, logger, messages, placeholders

_RELATIONS = table("pg_class", column("oid"), column("relnamespace"), schema="pg_catalog")
_SCHEMAS = table("pg_namespace", column("oid"), column("nspname"), schema="pg_catalog")

#: Classes of SQLSTATE (manual, appendix A) with which the conversion of a value fails: unsupported features, data
#: exceptions, exceptions of functions, limits, and errors that functions raise. Others concern the whole transaction.
_NO_JSON = ("0A", "21", "22", "2F", "38", "39", "54", "P0", "XX")


def read(connection: Connection, changes: Sequence[Change]) -> list[Outgoing]:
    """Return the messages about ``changes``, in their order. Runs one query; rows without JSON are found by halving.

    Raises the driver's errors that concern the connection, the transaction or a privilege.
    """
    guarded = any(change.rows.may_lack_json for change in changes)
    try:
        with _savepoint(connection) if guarded else contextlib.nullcontext():
            found = _Found(connection, changes)
    except StatementError as error:
        if not _concerns_a_value(error) or (not guarded and isinstance(error, DBAPIError) and _sqlstate(error)):
            raise
        if len(changes) == 1:
            return list(_read_bare(connection, changes[0]))
        middle = len(changes) // 2
        return [*read(connection, changes[:middle]), *read(connection, changes[middle:])]
    return [message for number in range(len(changes)) for message in _found_messages(connection, found, number)]


def _found_messages(connection: Connection, found: "_Found", number: int) -> Iterator[Outgoing]:
    change = found.changes[number]
    if change.operation != "DELETE" and number not in found.new:
        # A policy hides it, or a trigger has removed it.
        return _unread(connection, change, "not_readable")
    return messages(change, found.schemas[number], found.new.get(number), found.old.get(number, {}))


def _read_bare(connection: Connection, change: Change) -> Iterator[Outgoing]:
    """Yield the messages about a change that has no JSON, without the row, from what the database has of it."""
    rows = change.rows.bare
    old = {name: value for name, value in change.old.items() if name in rows.columns}
    try:
        with _savepoint(connection):
            found = _Found(connection, [replace(change, rows=rows, old=old)])
    except StatementError as error:
        if not _concerns_a_value(error):
            raise
        yield from _unread(connection, change, "no_json")
        return
    if change.operation != "DELETE" and 0 not in found.new:
        yield from _unread(connection, change, "not_readable")
    else:
        yield from messages(change, found.schemas[0], found.new.get(0), found.old.get(0, {}), "no_json")


def _unread(connection: Connection, change: Change, reason: Reason) -> Iterator[Outgoing]:
    """Yield a message without the row from the values that the session knows; log a change whose channel is unknown."""
    rows = change.rows.bare
    old = {name: value for name, value in change.old.items() if name in rows.columns}
    now = {**old, **change.now, **dict(zip(rows.key, change.key, strict=True))}
    new_image: Image = {}
    old_image: Image = {}
    try:
        with _savepoint(connection):
            found = _Found(connection, [Change(rows, "DELETE", change.key, known) for known in (now, old)])
            schema, new_image, old_image = found.schemas[0], found.old[0], found.old.get(1, {})
    except StatementError as error:
        if not _concerns_a_value(error):
            raise
        schema = str(connection.scalar(select(_schema(connection, rows.table))))
    if all(name in new_image for name in placeholders(rows.template)):
        deleted = change.operation == "DELETE"
        new = None if deleted else new_image
        yield from messages(replace(change, rows=rows), schema, new, new_image if deleted else old_image, reason)
    else:
        logger.warning("%s: a row is not published: its channel is unknown (%s)", rows.title, reason)


@contextlib.contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    """A savepoint around the body, without which an error would undo the whole transaction."""
    try:
        nested = connection.begin_nested()
    except DBAPIError as error:
        if _sqlstate(error) != "25P01":  # no_active_sql_transaction: each statement is a transaction of its own
            raise
        yield
        return
    with nested:
        yield


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or ""


def _concerns_a_value(error: StatementError) -> bool:
    """Return whether a statement failed because of a value: in PostgreSQL, in the driver, or in a type's own code."""
    if not isinstance(error, DBAPIError):
        return True
    return not error.connection_invalidated and (not _sqlstate(error) or _sqlstate(error).startswith(_NO_JSON))


class _Found:
    """The rows of ``changes``, read with one query: images by the number of the change."""

    def __init__(self, connection: Connection, changes: Sequence[Change]) -> None:
        self.changes = changes
        self.new: dict[int, Image] = {}
        self.old: dict[int, Image] = {}
        self.schemas: dict[int, str] = {}
        query: Executable = union_all(*_parts(connection, changes))
        for number, is_new, schema, texts in connection.execute(query):
            change = changes[number]
            names = change.rows.columns if is_new else change.old
            (self.new if is_new else self.old)[number] = dict(zip(names, texts, strict=True))
            self.schemas[number] = schema


def _parts(connection: Connection, changes: Sequence[Change]) -> Iterator[Any]:
    """Yield SELECTs of (change number, is new, schema, values as JSON texts), to be combined with UNION ALL."""
    written: dict[Rows, list[tuple[Any, ...]]] = {}
    loaded: dict[tuple[Rows, tuple[str, ...]], list[tuple[Any, ...]]] = {}
    for number, change in enumerate(changes):
        if change.operation != "DELETE":
            written.setdefault(change.rows, []).append((number, *change.key))
        if change.old:
            loaded.setdefault((change.rows, tuple(change.old)), []).append((number, *change.old.values()))
    for index, (rows, data) in enumerate(written.items()):
        given, key = _values_table(f"socketio_pg_key_{index}", rows, rows.key, data)
        found = given.join(rows.source, and_(*(rows.columns[name] == value for name, value in key.items())))
        yield _select(connection, rows, given, true(), rows.columns.values()).select_from(found)
    for index, ((rows, keys), data) in enumerate(loaded.items()):
        given, old = _values_table(f"socketio_pg_old_{index}", rows, keys, data)
        yield _select(connection, rows, given, false(), old.values()).select_from(given)


def _values_table(
    name: str, rows: Rows, keys: Sequence[str], data: Sequence[tuple[Any, ...]]
) -> tuple[Values, dict[str, ColumnElement[Any]]]:
    """Return a VALUES table of change numbers and attribute values, and its value columns by attribute."""
    types = [rows.columns[key].type for key in keys]
    given = values(
        column("number", Integer), *(column(f"value_{index}", type_) for index, type_ in enumerate(types)), name=name
    ).data(data)
    # The casts restore the columns' types, which the driver's literals may lose. Types unknown to SQLAlchemy stay text.
    return given, {
        key: cast(given.c[f"value_{index}"], Text if isinstance(type_, NullType) else type_)
        for index, (key, type_) in enumerate(zip(keys, types, strict=True))
    }


def _select(
    connection: Connection, rows: Rows, given: Values, is_new: ColumnElement[bool], found: Iterable[ColumnElement[Any]]
) -> Any:
    texts: list[ColumnElement[str]] = [cast(func.pg_catalog.to_jsonb(value), Text) for value in found]
    return select(given.c.number, is_new, _schema(connection, rows.table), array[Any](texts, type_=Text()))


def _schema(connection: Connection, of: Table) -> ColumnElement[str]:
    """Return the schema of a table: the one given to SQLAlchemy, or the one where PostgreSQL finds the table."""
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(of.schema, of.schema)
    if schema is not None:
        return literal(str(schema), Text)
    name = connection.dialect.identifier_preparer.quote(of.name)
    found = (
        select(_RELATIONS.c.relnamespace).where(_RELATIONS.c.oid == func.pg_catalog.to_regclass(name)).scalar_subquery()
    )
    return cast(select(_SCHEMAS.c.nspname).where(_SCHEMAS.c.oid == found).scalar_subquery(), Text)
