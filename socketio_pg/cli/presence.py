"""The command ``presence``: the members of a channel, as the database has them."""

from typing import Any

import click
import orjson

from socketio_pg.cli.command import examples, json_option, open_database
from socketio_pg.cli.terminal import clean, json_text, print_json, say, table
from socketio_pg.core import loading
from socketio_pg.core.channels import validate_channel
from socketio_pg.postgres.database import fetch, session

#: The maximum number of rows of the command's table.
MAX_ROWS = 1_000
#: The people who joined first come first, and the connections of each together.
_MEMBERS = """
SELECT key, anonymous, ref, client, state::text, node, joined_at
FROM (
    SELECT *, min(joined_at) OVER (PARTITION BY key) AS since FROM socketio_pg.presence WHERE channel = %s
) AS found
ORDER BY since, key, joined_at, ref
"""
_COUNT = "SELECT count(DISTINCT key) FROM socketio_pg.presence WHERE channel = %s"


@click.command(
    epilog=examples(
        "socketio-pg presence room:7",
        "socketio-pg presence room:7 --count",
        "socketio-pg presence room:7 --json | jq -r .key | sort -u",
    )
)
@click.argument("channel")
@click.option("--count", "only_count", is_flag=True, help="Print the number of members only.")
@json_option
def presence(channel: str, only_count: bool, as_json: bool) -> None:
    """Show the members of a channel, on all nodes.

    One line for each connection of each member. --json prints one object for each.
    """
    validate_channel(channel)
    database = open_database(loading.load())
    with session(database, "cli presence") as connection:
        if only_count:
            [(count,)] = fetch(connection, _COUNT, channel)
            print_json({"channel": channel, "count": count}) if as_json else say(str(count))
            return
        rows = fetch(connection, _MEMBERS, channel)
    found = [_described(row) for row in rows]
    if as_json:
        for one in found:
            print_json(one)
    elif not found:
        say("nobody is there")
    else:
        columns = ("key", "joined_at", "state", "client", "node")
        table(columns, [[_cell(one, column) for column in columns] for one in found[:MAX_ROWS]])
        if len(found) > MAX_ROWS:
            say(f"(only the first {MAX_ROWS} of {len(found)} connections)")


def _described(row: tuple[Any, ...]) -> dict[str, Any]:
    key, anonymous, ref, client, state, node, joined_at = row
    found: dict[str, Any] = {"key": key}
    if anonymous:
        found["anonymous"] = True
    return found | {
        "ref": ref,
        "client": client,
        # As the client has sent it: numbers keep their digits.
        "state": orjson.Fragment(state),
        "node": node,
        "joined_at": joined_at.isoformat(),
    }


def _cell(one: dict[str, Any], column: str) -> str | None:
    if column == "state":
        text = json_text(one["state"])
        return None if text == "null" else clean(text)
    return clean(one[column])
