"""The file of declarations for watched tables: rows, keys, changes, and the map of channels. No I/O."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from socketio_pg.typescript.catalog import OPERATIONS, Catalog, Column, Table, Watch
from socketio_pg.typescript.names import Identifiers, comment, declared_name, pascal, property_name, string, union
from socketio_pg.typescript.values import JSON, Options, Values

PACKAGE = "socketio-pg"
CHANNELS, TABLES, CHANGE = "Channels", "Tables", "RowChange"
#: Names with a meaning in the file.
_RESERVED = (CHANNELS, TABLES, CHANGE, JSON, "Pick", "Omit")
#: A channel whose placeholders have more texts than this together is a pattern of strings.
MAX_CHANNELS = 32

_HEAD = """\
// Written by `socketio-pg types`: run it again after a change of tables or watches.
/* eslint-disable */
"""


@dataclass(frozen=True, slots=True)
class _Shape:
    """All that decides about the type of a watch's messages."""

    shown: tuple[str, ...]
    key: tuple[str, ...] | None
    sends_old: bool
    operations: tuple[str, ...]


def declarations(catalog: Catalog, options: Options) -> str:
    """Return the text of the file. Equal tables and watches have equal texts."""
    identifiers = Identifiers(_RESERVED)
    names = [_Names(table, identifiers) for table in catalog.tables]
    values = Values(catalog, identifiers, options)
    tables = [part for one in names for part in _table(one, values)]
    types = values.declarations()
    channels = _channels(names, values)
    parts = [_HEAD.rstrip("\n")]
    if tables:
        parts.append(f"import type {{ {CHANGE} }} from {string(PACKAGE)};")
    if values.needs_json:
        big = " | bigint" if options.integers == "bigint" else ""
        parts.append(
            "/** A value of json or jsonb. */\n"
            f"export type {JSON} = string | number{big} | boolean | null | {JSON}[] | {{ [key: string]: {JSON} }};"
        )
    parts += types + tables
    parts.append(_interface(CHANNELS, "The payloads of channels: a type parameter of `createClient`.", channels))
    rows = {f"{one.table.schema}.{one.table.name}": row for one in names if (row := _live_row(one)) is not None}
    parts.append(_interface(TABLES, "Rows of tables with a watch on their default channel: see live tables.", rows))
    return "\n\n".join(parts) + "\n"


class _Names:
    """The names of a table's declarations: its row, its key, and the changes of each shape of messages."""

    def __init__(self, table: Table, identifiers: Identifiers) -> None:
        self.table = table
        base = declared_name(table.schema, table.name)
        self.row = identifiers.take(base or "Table")
        self.key = None
        if any(watch.key for watch in table.watches):
            self.key = identifiers.take(f"{self.row}Key")
        self.changes: dict[_Shape, str] = {}
        watches = [watch for watch in table.watches if watch.problem is None]
        shapes = {watch.channel: _shape(watch) for watch in watches}
        #: That of the watch on the default channel, which live tables need.
        self.default = shapes.get(f"table:{table.schema}.{table.name}")
        first = self.default
        if first is None and len(set(shapes.values())) == 1:
            [first] = set(shapes.values())
        if first is not None:
            self.changes[first] = identifiers.take(f"{self.row}Change")
        for channel, shape in shapes.items():
            if shape not in self.changes:
                suffix = pascal(channel)
                if base and suffix.startswith(base):
                    suffix = suffix[len(base) :]
                self.changes[shape] = identifiers.take(f"{self.row}{suffix}Change")

    def change_of(self, watch: Watch) -> str:
        return self.changes[_shape(watch)]


def _shape(watch: Watch) -> _Shape:
    operations = set(watch.operations)
    if watch.parts and "UPDATE" in operations:
        operations |= {"INSERT", "DELETE"}  # a row that moves to another channel
    return _Shape(watch.shown, watch.key, watch.sends_old, tuple(one for one in OPERATIONS if one in operations))


def _table(names: _Names, values: Values) -> Iterator[str]:
    table = names.table
    title = comment(f"{table.schema}.{table.name}")
    about = f"{comment(table.comment)} ({title})" if table.comment else f"A row of {title}."
    yield _block(about, names.row, _shown(table), values)
    if names.key is not None:
        yield _block(f"The primary key of {title}.", names.key, _key(table), values)
    for shape, name in names.changes.items():
        watches = [watch for watch in table.watches if watch.problem is None and _shape(watch) == shape]
        channels = ", ".join(f"`{comment(watch.channel)}`" for watch in watches)
        settings = {"schema": string(table.schema), "table": string(table.name)}
        if not shape.sends_old:
            settings["old"] = "false"
        if shape.operations != OPERATIONS:
            settings["op"] = union(map(string, shape.operations))
        listed = "; ".join(f"{setting}: {value}" for setting, value in settings.items())
        arguments = (_row_of(names, shape), _key_of(names, shape), f"{{ {listed} }}")
        lines = ",\n".join(f"  {argument}" for argument in arguments)
        yield f"/** A message on {channels}. */\nexport type {name} = {CHANGE}<\n{lines}\n>;"


def _shown(table: Table) -> list[Column]:
    """Return the columns that are in the rows of a watch, and not only in its keys."""
    names = {name for watch in table.watches for name in watch.shown}
    return [column for column in table.columns if column.name in names]


def _key(table: Table) -> list[Column]:
    names = {name for watch in table.watches for name in watch.key or ()}
    return [column for column in table.columns if column.name in names]


def _row_of(names: _Names, shape: _Shape) -> str:
    return _reduced(names.row, [column.name for column in _shown(names.table)], shape.shown)


def _key_of(names: _Names, shape: _Shape) -> str:
    if shape.key is None or names.key is None:
        return "null"
    return _reduced(names.key, [column.name for column in _key(names.table)], shape.key)


def _live_row(names: _Names) -> str | None:
    """Return the type of the rows of a live table, which always have the key; None if the table cannot be one."""
    if names.default is None or names.default.key is None:
        return None
    row = _row_of(names, names.default)
    return row if set(names.default.shown).issuperset(names.default.key) else f"{row} & {_key_of(names, names.default)}"


def _block(note: str, name: str, columns: Sequence[Column], values: Values) -> str:
    return "\n".join([f"/** {note} */", f"export interface {name} {{", *map(values.property, columns), "}"])


def _reduced(name: str, all_names: Sequence[str], kept: Sequence[str]) -> str:
    """Return the type ``name`` with some of its properties, written with the shorter list."""
    omitted = [one for one in all_names if one not in kept]
    if not omitted:
        return name
    if len(omitted) <= len(kept):
        return f"Omit<{name}, {union(map(string, omitted))}>"
    return f"Pick<{name}, {union(map(string, kept))}>"


def _channels(names: Sequence[_Names], values: Values) -> dict[str, str]:
    """Return the map of channels. A channel that several watches share has the changes of each."""
    found: dict[str, list[str]] = {}
    for one in names:
        columns = {column.name: column for column in one.table.columns}
        for watch in one.table.watches:
            if watch.problem is None:
                for channel in _keys(watch, columns, values):
                    found.setdefault(channel, []).append(one.change_of(watch))
    return {channel: union(found[channel]) for channel in sorted(found)}


def _keys(watch: Watch, columns: Mapping[str, Column], values: Values) -> list[str]:
    """Return the channels of a watch, with ``${number}`` or ``${string}`` for values that are not known."""
    if not watch.parts:
        return [watch.channel]
    choices = [
        [part] if number % 2 == 0 else values.placeholder(columns[part]) for number, part in enumerate(watch.parts)
    ]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_CHANNELS:
        choices = [choice if len(choice) == 1 else ["${string}"] for choice in choices]
    return ["".join(one) for one in itertools.product(*choices)]


def _interface(name: str, note: str, properties: Mapping[str, str]) -> str:
    lines = [f"  {property_name(one)}: {kind};" for one, kind in properties.items()]
    return "\n".join([f"/** {note} */", f"export interface {name} {{", *lines, "}"])
