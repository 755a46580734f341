"""Changed rows as PostgreSQL itself writes them in JSON, and the messages about them. Knows tables, but no objects.

The database makes the JSON (``to_jsonb``), of the values that a session had loaded too, so that every type looks as it
does in a trigger, and nothing that PostgreSQL can store cannot be sent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Table,
    Text,
    and_,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    select,
    table,
    true,
    union_all,
    values,
)
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.engine import Connection
from sqlalchemy.sql.selectable import SelectBase, Values
from sqlalchemy.types import NullType

from socketio_pg.channels import validate_channel
from socketio_pg.errors import InvalidChannelError, InvalidRequestError
from socketio_pg.messages import MAX_NOTIFY_BYTES, check_size

#: A function of PostgreSQL takes 100 arguments: that many pairs go into one object, and objects are put together.
_PAIRS = 50

_NO_PATH: ColumnElement[Any] = literal_column("'{}'")
_RELATIONS = table("pg_class", column("oid"), column("relnamespace"), schema="pg_catalog")
_SCHEMAS = table("pg_namespace", column("oid"), column("nspname"), schema="pg_catalog")

Operation = Literal["INSERT", "UPDATE", "DELETE"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows are published, and what of them. Columns go by the names of the attributes they are mapped to.

    ``template`` is the channel's: texts, and in between attributes as tuples of one. ``columns`` are those of ``key``,
    ``visible`` (what messages have) and the template; ``mapped`` are all, and ``volatile`` those that change by
    themselves with an UPDATE of any (``onupdate``, generated columns, a version).
    """

    title: str
    table: Table
    source: FromClause
    columns: Mapping[str, Column[Any]]
    key: Sequence[str]
    visible: Sequence[str]
    mapped: Sequence[str]
    template: Sequence[str | tuple[str]]
    volatile: frozenset[str]
    durable: bool

    @property
    def channel_columns(self) -> list[str]:
        return [part[0] for part in self.template if isinstance(part, tuple)]

    def channel(self, parts: Sequence[str | None]) -> str | None:
        """The channel of a row with these values of :attr:`channel_columns`; None when one of them is NULL.

        Raises :class:`InvalidChannelError`.
        """
        texts = iter(parts)
        whole = [next(texts) if isinstance(part, tuple) else part for part in self.template]
        if None in whole:
            return None
        name = "".join(text for text in whole if text is not None)
        try:
            return validate_channel(name)
        except InvalidChannelError as error:
            raise InvalidChannelError(f"{self.title}: {error.message}", channel=error.channel) from None


class Outgoing(NamedTuple):
    """What is to be sent. ``payload_json`` is the text of JSON."""

    channel: str
    payload_json: str
    durable: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One row that was written. ``key``: the values of its primary key now (of one that is gone: then).

    ``old``: values before the change, as far as they are known, by attribute. ``candidates``: the attributes of an
    UPDATE that it may have changed.
    """

    rows: Rows
    operation: Operation
    key: Sequence[Any]
    old: Mapping[str, Any] = field(default_factory=dict)
    candidates: Sequence[str] = ()


def read(connection: Connection, changes: Sequence[Change]) -> Iterator[Outgoing]:
    """The messages about ``changes``, in their order. One query.

    Raises :class:`InvalidChannelError`, :class:`PayloadTooLargeError` for what no NOTIFY carries, and
    :class:`InvalidRequestError` for a row that cannot be read.
    """
    # Changes of one shape share a part of the query.
    shapes: dict[tuple[Any, ...], list[int]] = {}
    for number, change in enumerate(changes):
        shape = (change.rows, change.operation, tuple(change.old), tuple(change.candidates))
        shapes.setdefault(shape, []).append(number)
    parts = [
        _select(connection, f"socketio_pg_{index}", [(number, changes[number]) for number in numbers])
        for index, numbers in enumerate(shapes.values())
    ]
    query: Executable = union_all(*parts)
    images: dict[int, Any] = {row.number: row for row in connection.execute(query)}
    for number, change in enumerate(changes):
        if number not in images:
            raise InvalidRequestError(
                f"{change.rows.title}: a row cannot be read after it was written: a policy hides it, "
                "or a trigger has removed it"
            )
        yield from _messages(change, images[number])


def _select(connection: Connection, name: str, changes: Sequence[tuple[int, Change]]) -> SelectBase:
    """The images of ``changes``, which have one shape, as texts of JSON."""
    change = changes[0][1]
    rows, columns, known = change.rows, change.rows.columns, list(change.old)
    given = _given(name, rows, known, changes)
    was: dict[str, ColumnElement[Any]] = {key: _typed(given.c[f"old_{i}"], columns[key]) for i, key in enumerate(known)}
    now: dict[str, ColumnElement[Any]] = {}
    if change.operation != "DELETE":
        now = dict(columns)
        if change.operation == "UPDATE":
            # What it cannot have changed is what it was.
            was = {key: was.get(key, columns[key]) for key in columns if key in was or key not in change.candidates}
    differ = [_differs(now[key], was.get(key)) for key in change.candidates]
    # A placeholder's old value that nobody knows: then the row has not been seen to move.
    stays = any(key not in was for key in rows.channel_columns)
    found = select(
        given.c.number.label("number"),
        _schema(connection, rows.table).label("schema"),
        _image(rows, now, rows.visible).label("new"),
        _image(rows, was, rows.visible).label("old"),
        _image(rows, now, _visible_key(rows)).label("new_key"),
        _image(rows, was, _visible_key(rows)).label("old_key"),
        array[Any](differ, type_=Boolean()).label("differ"),
        _texts(now, rows.channel_columns).label("new_channel"),
        _texts(now if stays else was, rows.channel_columns).label("old_channel"),
    )
    if change.operation == "DELETE":
        return found.select_from(given)
    joined = [columns[key] == _typed(given.c[f"key_{i}"], columns[key]) for i, key in enumerate(rows.key)]
    return found.select_from(given.join(rows.source, and_(*joined)))


def _given(name: str, rows: Rows, known: Sequence[str], changes: Sequence[tuple[int, Change]]) -> Values:
    """What Python knows, as a table: the numbers of the changes, where their rows are, and values they had."""
    data = [
        (number, *change.key, *change.old.values()) if change.operation != "DELETE" else (number, *change.old.values())
        for number, change in changes
    ]
    key = rows.key if changes[0][1].operation != "DELETE" else ()
    return values(
        column("number", Integer),
        *(column(f"key_{i}", rows.columns[of].type) for i, of in enumerate(key)),
        *(column(f"old_{i}", rows.columns[of].type) for i, of in enumerate(known)),
        name=name,
    ).data(data)


def _typed(given: ColumnElement[Any], like: Column[Any]) -> ColumnElement[Any]:
    # A type that SQLAlchemy does not know has no name to cast to; its values are the driver's texts.
    return cast(given, Text if isinstance(like.type, NullType) else like.type)


def _schema(connection: Connection, of: Table) -> ColumnElement[str]:
    """The schema of a table: what SQLAlchemy was told, or where PostgreSQL finds it."""
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(of.schema, of.schema)
    if schema is not None:
        return literal(str(schema), Text)
    name = connection.dialect.identifier_preparer.quote(of.name)
    found = select(_RELATIONS.c.relnamespace).where(_RELATIONS.c.oid == func.to_regclass(name)).scalar_subquery()
    return cast(select(_SCHEMAS.c.nspname).where(_SCHEMAS.c.oid == found).scalar_subquery(), Text)


def _image(rows: Rows, source: Mapping[str, ColumnElement[Any]], keys: Sequence[str]) -> ColumnElement[str]:
    """Those columns of ``keys`` that ``source`` has, as the text of a JSON object; NULL when it has none at all."""
    if not source:
        return cast(null(), Text)
    pairs = [(rows.columns[key].name, source[key]) for key in keys if key in source]
    whole: ColumnElement[Any] = func.jsonb_build_object()
    for start in range(0, len(pairs), _PAIRS):
        arguments = [part for name, value in pairs[start : start + _PAIRS] for part in (_quoted(name), value)]
        some = func.jsonb_build_object(*arguments, type_=JSONB)
        whole = some if start == 0 else whole.op("||")(some)
    return cast(whole, Text)


def _quoted(name: str) -> ColumnElement[str]:
    # No parameter: there would be thousands, of which psycopg 3 takes 65,535.
    return literal_column("'" + name.replace("'", "''") + "'", Text)


def _visible_key(rows: Rows) -> list[str]:
    return [key for key in rows.key if key in rows.visible]


def _differs(now: ColumnElement[Any], was: ColumnElement[Any] | None) -> ColumnElement[bool]:
    return true() if was is None else func.to_jsonb(now).is_distinct_from(func.to_jsonb(was))


def _texts(source: Mapping[str, ColumnElement[Any]], keys: Sequence[str]) -> ColumnElement[Any]:
    """The values as they stand in a channel's name: the text of a JSON string, other JSON as it is."""
    texts: list[ColumnElement[str]] = [func.to_jsonb(source[key]).op("#>>")(_NO_PATH) for key in keys if source]
    return array(texts, type_=Text())


def _messages(change: Change, row: Any) -> Iterator[Outgoing]:
    rows = change.rows
    here = rows.channel(row.new_channel) if row.new is not None else None
    there = rows.channel(row.old_channel) if row.old is not None else None

    def message(operation: Operation, channel: str, **parts: Any) -> Outgoing:
        new = operation != "DELETE"
        body: dict[str, Any] = {
            "op": operation,
            "schema": row.schema,
            "table": rows.table.name,
            "pk": orjson.Fragment(row.new_key if new else row.old_key),
            "new": orjson.Fragment(row.new) if new else None,
            "old": orjson.Fragment(row.old) if operation != "INSERT" else None,
            "changed": [],
        }
        text = orjson.dumps(body | parts).decode()
        if not rows.durable and len(text.encode()) > MAX_NOTIFY_BYTES:
            text = orjson.dumps(body | parts | {"new": None, "old": None, "truncated": True}).decode()
            check_size(text)
        return Outgoing(channel, text, rows.durable)

    if change.operation == "UPDATE" and here == there:
        changed = [
            rows.columns[key].name
            for key, differs in zip(change.candidates, row.differ, strict=True)
            if differs and key in rows.visible
        ]
        if here is not None and changed:
            yield message("UPDATE", here, changed=changed)
        return
    moved = {"moved": True} if change.operation == "UPDATE" else {}
    if there is not None:
        yield message("DELETE", there, **moved)
    if here is not None:
        yield message("INSERT", here, **moved)
