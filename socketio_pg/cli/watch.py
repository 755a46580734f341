"""The commands ``watch``, ``unwatch`` and ``watches``: publish row changes of tables."""

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from socketio_pg.cli.command import Failure, examples, json_option, names, open_database
from socketio_pg.cli.terminal import print_json, say, table, tell
from socketio_pg.core import loading
from socketio_pg.postgres.database import fetch, session
from socketio_pg.postgres.trust import verify
from socketio_pg.postgres.watches import OPERATIONS, TYPES, find_table

COLUMNS = (
    "table_name", "channel", "operations", "columns", "exclude", "when", "old", "tier", "per", "bulk_limit", "failures",
)  # fmt: skip


@click.command(
    epilog=examples(
        "socketio-pg watch orders",
        "socketio-pg watch orders --channel 'orders:{customer_id}' --exclude card",
        "socketio-pg watch app.orders --operations INSERT,UPDATE",
        "socketio-pg watch orders --when \"new.state = 'paid'\"",
        "socketio-pg listen table:public.orders",
    )
)
@click.argument("table_name", metavar="TABLE")
@click.option("--channel", help="Channel; {column} is the row's value. Default: table:SCHEMA.TABLE.")
@click.option("--operations", multiple=True, help=f"Some of {', '.join(OPERATIONS)}; comma-separated or repeated.")
@click.option("--columns", multiple=True, help="Send only these columns; comma-separated or repeated.")
@click.option("--exclude", multiple=True, help="Never send these columns; comma-separated or repeated.")
@click.option("--when", metavar="SQL", help="Send only changes that meet this condition on new and old.")
@click.option("--no-old", is_flag=True, help="Do not send the old row.")
@click.option("--tier", type=click.Choice(["log", "notify"]), help="Send through the log (default) or with NOTIFY.")
@click.option("--per", type=click.Choice(["statement", "row"]), help="Statement triggers (default) or row triggers.")
@click.option("--bulk-limit", type=click.IntRange(0), help="Send only a count when a statement changes more rows.")
def watch(table_name: str, no_old: bool, **options: Any) -> None:
    """Publish changes of TABLE as messages.

    Publishes every committed change. Running it again for the same table and channel replaces the options.
    """
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("operations", "columns", "exclude"):
            value = names(value)
        if value is not None:
            given[name] = value
    if "operations" in given:
        given["operations"] = [name.upper() for name in given["operations"]]
        for name in given["operations"]:
            if name not in OPERATIONS:
                raise click.BadParameter(f"{name!r}; allowed: {', '.join(OPERATIONS)}", param_hint="--operations")
    if no_old:
        given["old"] = False
    arguments = "".join(f', "{name}" => %s::{TYPES[name]}' for name in given)
    with _verified() as connection:
        number = _find_table(connection, table_name)
        [[channel]] = fetch(connection, f"SELECT socketio_pg.watch(%s::regclass{arguments})", number, *given.values())
        for notice in connection.notices:
            tell(f"note: {notice.partition(':')[2].strip()}", error=True)
    tell(f"watching {table_name}: publishing its changes to {channel}")


@click.command(
    epilog=examples("socketio-pg unwatch orders", "socketio-pg unwatch orders --channel 'orders:{customer_id}'")
)
@click.argument("table_name", metavar="TABLE")
@click.option("--channel", help="Remove only the watch for this channel. Default: all watches of the table.")
def unwatch(table_name: str, channel: str | None) -> None:
    """Stop publishing changes of TABLE."""
    with _verified() as connection:
        number = _find_table(connection, table_name)
        [[removed]] = fetch(connection, "SELECT socketio_pg.unwatch(%s::regclass, %s::text)", number, channel)
    if not removed:
        raise Failure(f"{table_name} is not watched" + ("" if channel is None else f" for {channel}"))
    tell(f"no longer watching {table_name}" + (f" ({removed} watches)" if removed > 1 else ""))


@click.command(epilog=examples("socketio-pg watches", "socketio-pg watches --json | jq -r .channel"))
@json_option
def watches(as_json: bool) -> None:
    """List the watched tables."""
    with _verified() as connection:
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        rows = fetch(connection, f"SELECT {columns} FROM socketio_pg.watches ORDER BY table_name, channel")
    if as_json:
        for row in rows:
            print_json(dict(zip(COLUMNS, row, strict=True)))
    elif rows:
        shown = ("table_name", "channel", "operations", "columns", "exclude", "when", "tier", "per", "failures")
        listed = [[row[COLUMNS.index(name)] for name in shown] for row in rows]
        table([name.replace("_name", "") for name in shown], listed)
    else:
        say("no table is watched")


@contextlib.contextmanager
def _verified() -> Iterator[Any]:
    """A connection to the database, whose schema socketio_pg is trusted."""
    database = open_database(loading.load())
    with session(database, "cli watch") as connection:
        verify(database, connection)
        yield connection


def _find_table(connection: Any, name: str) -> int:
    """Return the oid of a table, found with the role's search_path."""
    found = find_table(connection, name)
    if found is None:
        elsewhere = "" if "." in name else " in the search_path: for another schema, write SCHEMA.TABLE"
        raise Failure(f"table {name} does not exist{elsewhere}")
    return found
