"""Builds the messages about changed rows, from their values as JSON. No I/O: `reading` gets the values.

Works on tables, not on objects.
"""

import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import orjson
from sqlalchemy import Column, FetchedValue, FromClause, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError
from sqlalchemy.types import Enum, TypeEngine

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import ConfigurationError, InvalidChannelError
from socketio_pg.core.messages import MAX_NOTIFY_BYTES

logger = logging.getLogger("socketio_pg.orm")

#: Messages of at most so many bytes fit into the log, whatever MAX_PAYLOAD is.
ALWAYS_FITS = 900
#: Why a message lacks the row: the row has no JSON, it cannot be read, or the message would be too large.
Reason = Literal["no_json", "not_readable", "too_large"]
#: Types whose values always have a JSON form. Others, such as json with ``\u0000``, may have none.
_ALWAYS_JSON = re.compile(
    r"(SMALLINT|INTEGER|BIGINT|NUMERIC|DECIMAL|REAL|FLOAT|DOUBLE PRECISION|BOOLEAN|VARCHAR|CHAR|TEXT|CITEXT|DATE|TIME"
    r"|TIMESTAMP|INTERVAL|UUID|BYTEA|JSONB|INET|CIDR|MACADDR8?|INT[48]RANGE|NUMRANGE|DATERANGE|TS(TZ)?RANGE|HSTORE)\b"
)
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

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
    durable: bool | None

    def channel(self, image: Image) -> str | None:
        """Return a row's channel; None when a placeholder is NULL. Raises :class:`InvalidChannelError`."""
        name = ""
        for part in self.template:
            text = part if isinstance(part, str) else image[part[0]]
            if text is None:
                return None
            # Strings without quotes, all other types in their JSON form.
            name += json.loads(text) if isinstance(part, tuple) and text.startswith('"') else text
        return validate_channel(name)

    def former_channel(self, image: Image) -> str | None:
        """Return a row's old channel; None when its name is invalid, because nothing was ever published there."""
        try:
            return self.channel(image)
        except InvalidChannelError:
            return None

    @functools.cached_property
    def may_lack_json(self) -> bool:
        """Whether a value of the columns may have no JSON form, so that the query that reads it fails."""
        return not all(_is_always_json(column) for column in self.columns.values())

    @functools.cached_property
    def bare(self) -> "Rows":
        """The same rows with the columns of the key and the channel only."""
        needed = {*self.key, *placeholders(self.template)}
        return replace(self, columns={name: column for name, column in self.columns.items() if name in needed})

    @functools.cached_property
    def logged(self) -> "Rows":
        """The same rows, published through the log."""
        return replace(self, durable=True)

    @functools.cached_property
    def notified(self) -> "Rows":
        """The same rows, published with NOTIFY."""
        return replace(self, durable=False)


def _is_always_json(column: Column[Any]) -> bool:
    # A virtual generated column is computed when it is read, and may fail then.
    computed, default = column.computed, column.server_default
    stored = type(default) is not FetchedValue if computed is None else computed.persisted is True
    return stored and (isinstance(column.type, Enum) or _ALWAYS_JSON.match(_name(column.type)) is not None)


def _name(type_: TypeEngine[Any]) -> str:
    try:
        return type_.compile(dialect=_DIALECT)
    except CompileError:  # SQLAlchemy does not know it
        return ""


@dataclass(frozen=True, slots=True)
class Change:
    """One written row. ``key``: its primary key's values, the new ones unless the row was deleted.

    ``old``: known values before the change, by attribute. ``candidates``: attributes that an UPDATE may have changed.
    ``now``: known values of the channel's attributes after the change, for rows that cannot be read.
    """

    rows: Rows
    operation: Operation
    key: Sequence[Any]
    old: Mapping[str, Any] = field(default_factory=dict)
    candidates: Sequence[str] = ()
    now: Mapping[str, Any] = field(default_factory=dict)


class Outgoing(NamedTuple):
    """A message to publish, as JSON text. ``short_json`` replaces ``payload_json`` if that is too large for the log."""

    channel: str
    payload_json: str
    short_json: str
    durable: bool


def messages(
    change: Change, schema: str, new: Image | None, old: Image, reason: Reason | None = None
) -> Iterator[Outgoing]:
    """Yield the messages about one change. ``new``: the row now; ``old``: the known values before.

    With a ``reason`` the messages lack the row, and the images need only the columns of the key and the channel. A row
    whose channel has no valid name is logged.
    """
    rows = change.rows
    if change.operation == "INSERT":
        yield from _message(rows, "INSERT", schema, _channel(rows, new or {}), new, None, reason)
    elif new is None:
        yield from _message(rows, "DELETE", schema, rows.former_channel(old), None, old, reason)
    else:
        # Attributes that cannot have changed have their old value.
        old = {key: old.get(key, new[key]) for key in new if key in old or key not in change.candidates}
        # A placeholder's unknown old value counts as unchanged.
        here, there = _channel(rows, new), rows.former_channel(new | old)
        if here != there:
            yield from _message(rows, "DELETE", schema, there, None, old, reason, moved=True)
            yield from _message(rows, "INSERT", schema, here, new, None, reason, moved=True)
            return
        visible = [key for key in change.candidates if key in rows.visible]
        if reason is not None:
            changed = visible
        else:
            changed = [rows.columns[key].name for key in visible if key not in old or old[key] != new[key]]
        if changed:
            yield from _message(rows, "UPDATE", schema, here, new, old, reason, changed)


def _channel(rows: Rows, image: Image) -> str | None:
    try:
        return rows.channel(image)
    except InvalidChannelError as error:
        # The application's write must not fail: watch() warns, too.
        logger.warning("%s: a row is not published: %s", rows.title, error.message)
        return None


def _message(
    rows: Rows,
    operation: Operation,
    schema: str,
    channel: str | None,
    new: Image | None,
    old: Image | None,
    reason: Reason | None,
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
    short = _short(body, reason or "too_large", ALWAYS_FITS if rows.durable else MAX_NOTIFY_BYTES)
    if reason is not None:
        yield Outgoing(channel, short, short, bool(rows.durable))
        return
    images = {name: image and _object(rows, image, rows.visible) for name, image in (("new", new), ("old", old))}
    payload = orjson.dumps(body | images | {"changed": changed}).decode()
    if not rows.durable and len(payload.encode()) > MAX_NOTIFY_BYTES:
        payload = short
    yield Outgoing(channel, payload, short, bool(rows.durable))


def _short(body: Mapping[str, Any], reason: Reason, most: int) -> str:
    """Return a message without the row, and without the key if it would have over ``most`` bytes otherwise."""
    short = {**body, "truncated": True, "reason": reason}
    text = orjson.dumps(short)
    return (text if len(text) <= most else orjson.dumps(short | {"pk": None})).decode()


def _object(rows: Rows, image: Image, keys: Sequence[str]) -> dict[str, orjson.Fragment]:
    # SQLAlchemy's names are a subclass of str, which orjson rejects as keys.
    return {str(rows.columns[key].name): orjson.Fragment(image[key] or "null") for key in keys if key in image}
