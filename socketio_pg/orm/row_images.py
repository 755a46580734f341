"""Reads changed rows as JSON from PostgreSQL, and builds the messages about them. Works on tables, not on objects.

PostgreSQL converts every value to JSON (``to_jsonb``), including old values that the session had loaded. So every type
looks as in a trigger, and every value that PostgreSQL can store can be sent.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import (
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
from sqlalchemy.sql.selectable import Values
from sqlalchemy.types import NullType

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import ConfigurationError, InvalidChannelError, InvalidRequestError
from socketio_pg.core.messages import MAX_NOTIFY_BYTES, check_size

_RELATIONS = table("pg_class", column("oid"), column("relnamespace"), schema="pg_catalog")
_SCHEMAS = table("pg_namespace", column("oid"), column("nspname"), schema="pg_catalog")

Operation = Literal["INSERT", "UPDATE", "DELETE"]

#: Attribute → its value as JSON text, None for NULL. Unknown values are absent.
Image = dict[str, str | None]
#: A channel's name: literal strings, and placeholders (names of columns or attributes) as tuples of one.
Template = Sequence[str | tuple[str]]


def parse_template(channel: str) -> Template:
    """Parse a channel with placeholders: ``"a:{b}"`` is ``["a:", ("b",)]``.

    Raises :class:`ConfigurationError`, and :class:`InvalidChannelError` for a name without placeholders.
    """
    if not isinstance(channel, str):
        raise ConfigurationError("@publishes needs the name of a channel: @publishes('orders:{customer_id}')")
    parts = [text or (name,) for text, name in re.findall(r"([^{}]+)|\{([^{}]+)\}", channel)]
    if "".join(part if isinstance(part, str) else f"{{{part[0]}}}" for part in parts) != channel:
        raise ConfigurationError(f"@publishes({channel!r}): a placeholder must be the name of a column in braces")
    if not placeholders(parts):
        validate_channel(channel)
    return parts


def placeholders(template: Template) -> list[str]:
    return [part[0] for part in template if isinstance(part, tuple)]


@dataclass(frozen=True, eq=False)
class Rows:
    """One class's published rows. Columns have the names of the attributes that they are mapped to.

    ``columns``: all that are needed, for ``key``, ``visible`` (in messages) and the template. ``mapped``: all columns.
    ``volatile``: columns that any UPDATE may change (``onupdate``, generated columns, a version counter).
    """

    title: str
    table: Table
    source: FromClause
    columns: Mapping[str, Column[Any]]
    key: Sequence[str]
    visible: Sequence[str]
    mapped: Sequence[str]
    template: Template
    volatile: frozenset[str]
    durable: bool

    def channel(self, image: Image) -> str | None:
        """Return a row's channel; None when a placeholder is NULL. Raises :class:`InvalidChannelError`."""
        name = ""
        for part in self.template:
            text = part if isinstance(part, str) else image[part[0]]
            if text is None:
                return None
            # Strings without quotes, all other types in their JSON form.
            name += json.loads(text) if isinstance(part, tuple) and text.startswith('"') else text
        try:
            return validate_channel(name)
        except InvalidChannelError as error:
            raise InvalidChannelError(f"{self.title}: {error.message}", channel=error.channel) from None

    def former_channel(self, image: Image) -> str | None:
        """Return a row's old channel; None when its name is invalid, because nothing was ever published there."""
        try:
            return self.channel(image)
        except InvalidChannelError:
            return None


@dataclass(frozen=True, slots=True)
class Change:
    """One written row. ``key``: its primary key's values, the new ones unless the row was deleted.

    ``old``: known values before the change, by attribute. ``candidates``: attributes that an UPDATE may have changed.
    """

    rows: Rows
    operation: Operation
    key: Sequence[Any]
    old: Mapping[str, Any] = field(default_factory=dict)
    candidates: Sequence[str] = ()


class Outgoing(NamedTuple):
    """A message to publish. ``payload_json`` is JSON text."""

    channel: str
    payload_json: str
    durable: bool


def read(connection: Connection, changes: Sequence[Change]) -> Iterator[Outgoing]:
    """Yield the messages about ``changes``, in their order. Runs one query.

    Raises :class:`InvalidChannelError`, :class:`PayloadTooLargeError` for messages too large for NOTIFY, and
    :class:`InvalidRequestError` for a row that cannot be read.
    """
    new: dict[int, Image] = {}
    old: dict[int, Image] = {}
    schemas: dict[int, str] = {}
    query: Executable = union_all(*_parts(connection, changes))
    for number, is_new, schema, texts in connection.execute(query):
        change = changes[number]
        (new if is_new else old)[number] = dict(zip(change.rows.columns if is_new else change.old, texts, strict=True))
        schemas[number] = schema
    for number, change in enumerate(changes):
        if change.operation != "DELETE" and number not in new:
            raise InvalidRequestError(
                f"{change.rows.title}: a row cannot be read after it was written: a policy hides it, "
                "or a trigger removed it"
            )
        yield from _messages(change, schemas[number], new.get(number), old.get(number, {}))


# -- the query ---------------------------------------------------------------------------------------------------------


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


# -- the messages ------------------------------------------------------------------------------------------------------


def _messages(change: Change, schema: str, new: Image | None, old: Image) -> Iterator[Outgoing]:
    """Yield the messages about one change. ``new``: the row now; ``old``: the known values before."""
    rows = change.rows
    if change.operation == "INSERT":
        yield from _message(rows, "INSERT", schema, rows.channel(new or {}), new, None)
    elif new is None:
        yield from _message(rows, "DELETE", schema, rows.former_channel(old), None, old)
    else:
        # Attributes that cannot have changed have their old value.
        old = {key: old.get(key, new[key]) for key in new if key in old or key not in change.candidates}
        # A placeholder's unknown old value counts as unchanged.
        here, there = rows.channel(new), rows.former_channel(new | old)
        if here != there:
            yield from _message(rows, "DELETE", schema, there, None, old, moved=True)
            yield from _message(rows, "INSERT", schema, here, new, None, moved=True)
            return
        visible = [key for key in change.candidates if key in rows.visible]
        changed = [rows.columns[key].name for key in visible if key not in old or old[key] != new[key]]
        if changed:
            yield from _message(rows, "UPDATE", schema, here, new, old, changed)


def _message(
    rows: Rows,
    operation: Operation,
    schema: str,
    channel: str | None,
    new: Image | None,
    old: Image | None,
    changed: Sequence[str] = (),
    moved: bool = False,
) -> Iterator[Outgoing]:
    if channel is None:
        return
    key = {**(old or {}), **(new or {})}
    body: dict[str, Any] = {"op": operation, "schema": schema, "table": rows.table.name}
    body["pk"] = _object(rows, key, [name for name in rows.key if name in rows.visible])
    if moved:
        body["moved"] = True
    images = {name: image and _object(rows, image, rows.visible) for name, image in (("new", new), ("old", old))}
    payload = orjson.dumps(body | images | {"changed": changed}).decode()
    if not rows.durable and len(payload.encode()) > MAX_NOTIFY_BYTES:
        payload = orjson.dumps(body | {"truncated": True}).decode()
        check_size(payload)
    yield Outgoing(channel, payload, rows.durable)


def _object(rows: Rows, image: Image, keys: Sequence[str]) -> dict[str, orjson.Fragment]:
    # SQLAlchemy's names are a subclass of str, which orjson rejects as keys.
    return {str(rows.columns[key].name): orjson.Fragment(image[key] or "null") for key in keys if key in image}
