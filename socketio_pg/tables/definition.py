"""A table as the catalog describes it, with its watch, and what a role may read of it. Pure, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.errors import ForbiddenError, InvalidRequestError
from socketio_pg.tables.requests import Order

_OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


@dataclass(frozen=True, slots=True)
class Column:
    """A column. ``sql`` is its quoted name, ``base`` the name of its type, or of the base type of a domain."""

    name: str
    sql: str
    number: int
    type: str
    base: str

    @property
    def escaped(self) -> str:
        """The quoted name for a statement with parameters, in which ``%`` has a meaning."""
        return self.sql.replace("%", "%%")


@dataclass(frozen=True, slots=True)
class Definition:
    """A table that can be a live table.

    ``sql`` names it in FROM. ``columns`` are those that the watch shows and the key's, ``whole`` is true when the watch
    leaves none out, ``sends_old`` when it sends old rows. ``trusted``: its owner is trusted with the rights of the
    server's role. ``version`` changes whenever one of these does.
    """

    name: str
    relation: int
    sql: str
    channel: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    whole: bool
    sends_old: bool
    trusted: bool
    version: str

    def named(self, names: Sequence[str]) -> tuple[Column, ...]:
        """Return the columns with these names, in the order of the names."""
        columns = {column.name: column for column in self.columns}
        return tuple(columns[name] for name in names)


@dataclass(frozen=True, slots=True)
class Rights:
    """The part of a table that a role may read: its visible ``columns`` by name, in order.

    ``whole``: the messages of the watch have these columns and no other, also after a column is added. ``checked``:
    row-level security applies to the role.
    """

    columns: tuple[str, ...]
    whole: bool
    checked: bool


def definition(name: str, found: Mapping[str, Any] | None) -> Definition:
    """Return the definition of the table ``name`` from the result of ``socketio_pg.live_table()``.

    Raises :class:`InvalidRequestError`, whose message names the remedy.
    """
    if found is None:
        raise InvalidRequestError("there is no such table: the name is schema.table, without quotes")
    watch = found["watch"]
    channel = f"table:{found['schema']}.{found['table']}"
    problem = _problem(found, watch)
    if problem is not None:
        raise InvalidRequestError(f"the table cannot be a live table: {problem}")
    shown = set(found["shown"])
    columns = tuple(
        Column(one["name"], one["sql"], one["number"], one["type"], one["base"])
        for one in found["columns"]
        if one["name"] in shown
    )
    whole = watch.get("columns") is None and watch.get("exclude") is None
    version = repr(
        (
            watch["counter"],
            found["trusted"],
            found["relation"],
            found["sql"],
            found["key"],
            found["columns"],
            found["shown"],
        )
    )
    sends_old = watch.get("old") is not False
    key = tuple(found["key"])
    return Definition(
        name, found["relation"], found["sql"], channel, key, columns, whole, sends_old, found["trusted"], version
    )


def _problem(found: Mapping[str, Any], watch: Mapping[str, Any] | None) -> str | None:
    """Return why a table cannot be a live table, and the remedy; None if it can."""
    call = f"SELECT socketio_pg.watch('{found['schema']}.{found['table']}')"
    if watch is None:
        return f"it has no watch on its default channel: run {call}"
    if watch.get("tier") != "log":
        return f"its watch does not use the log: run {call}"
    if watch.get("when") is not None:
        return f"its watch has a condition, and does not send all changes: run {call}, and move the other to a channel"
    missing = [one for one in _OPERATIONS if one not in found["operations"]]
    if missing:
        return f"its watch does not send {', '.join(missing)}: watch all operations"
    if not found["enabled"]:
        return "a trigger of its watch is disabled: enable it"
    if found["problem"] is not None:
        return f"its watch does not work: {found['problem']}"
    if found["inherits"]:
        return "it is a partition, or takes part in inheritance"
    if found["blind"]:
        return f"its watch does not see {found['blind'][0]}"
    if not found["key"]:
        return "it has no primary key"
    hidden = [name for name in found["key"] if name not in found["shown"]]
    if hidden:
        return f"its watch excludes {hidden[0]}, a column of the primary key"
    foreign = [one["name"] for one in found["columns"] if one["foreign"] and one["name"] in found["shown"]]
    if foreign:
        return (
            f"the type of the column {foreign[0]} belongs to a role that the owner of socketio_pg does not trust: "
            "exclude the column from the watch"
        )
    return None


def rights(table: Definition, *, reads_table: bool, readable: Sequence[int], in_schema: bool, checked: bool) -> Rights:
    """Return what a role may read. ``readable`` has the numbers of the columns with the privilege SELECT.

    Raises :class:`ForbiddenError`.
    """
    numbers = set(readable)
    columns = tuple(column.name for column in table.columns if reads_table or column.number in numbers)
    if not in_schema or not set(table.key) <= set(columns):
        raise ForbiddenError("the role may not read this table, or not its primary key")
    return Rights(columns, table.whole and reads_table, checked)


def check_columns(visible: Sequence[str], order: Sequence[Order], paths: Sequence[str]) -> None:
    """Raise :class:`InvalidRequestError` when a request names a column that is not visible."""
    for kind, names in (("where", paths), ("order", [one.column for one in order])):
        for name in names:
            if name not in visible:
                shown = name if len(name) <= 63 else name[:63] + "…"
                raise InvalidRequestError(f"{kind}: there is no column '{shown}' that you may read")
