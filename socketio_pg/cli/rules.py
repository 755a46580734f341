"""The command ``rules``: the rules for channels, and what counts for one channel."""

from typing import Any

import click

from socketio_pg.cli.command import examples, json_option, open_database
from socketio_pg.cli.terminal import age, print_json, say, table
from socketio_pg.core import loading
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import LogNotInstalledError
from socketio_pg.core.rules import Origin, Rules
from socketio_pg.log.rule_rows import RULES, parse_rows
from socketio_pg.postgres.database import fetch, session
from socketio_pg.postgres.trust import verify


@click.command(epilog=examples("socketio-pg rules", "socketio-pg rules chat:5", "socketio-pg rules chat:5 --json"))
@click.argument("channel", required=False)
@json_option
def rules(channel: str | None, as_json: bool) -> None:
    """Show the rules for channels, or those that count for CHANNEL.

    The most specific rule comes first. Those of CHANNEL_RULES are those of this command's own settings.
    """
    settings = loading.load()
    if channel is not None:
        validate_channel(channel)
    found = Rules.of_settings(settings)
    problems: list[str] = []
    database = open_database(settings)
    with session(database, "cli rules") as connection:
        try:
            verify(database, connection)
            rows, problems = parse_rows(fetch(connection, RULES))
            found.replace(rows)
        except LogNotInstalledError as missing:
            problems = [missing.message]
    for problem in problems:
        click.echo(f"note: {problem}", err=True)
    if channel is None:
        _show_all(found, as_json)
    else:
        _show_channel(found, channel, as_json)


def _show_all(found: Rules, as_json: bool) -> None:
    rows = [(one.pattern, one.source, one.rule.set_columns()) for one in found.sourced()]
    if as_json:
        print_json([{"pattern": pattern, "source": source, **columns} for pattern, source, columns in rows])
    elif not rows:
        say("no rules: the settings count for all channels")
    else:
        shown = [
            (pattern, source, ", ".join(f"{name} {_text(name, value)}" for name, value in columns.items()))
            for pattern, source, columns in rows
        ]
        table(("pattern", "source", "columns"), shown)


def _show_channel(found: Rules, channel: str, as_json: bool) -> None:
    explained = found.explain(channel)
    if as_json:
        print_json({
            name: {"value": value, "source": origin.source, "pattern": origin.pattern}
            for name, (value, origin) in explained.items()
        })  # fmt: skip
        return
    rows = [(name, _text(name, value), _origin(origin)) for name, (value, origin) in explained.items()]
    table(("column", "value", "from"), rows)


def _text(name: str, value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if name == "max_age":
        return age(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _origin(origin: Origin) -> str:
    return origin.source if origin.pattern is None else f"the rule '{origin.pattern}' of {_SOURCES[origin.source]}"


_SOURCES = {"table": "the table", "CHANNEL_RULES": "CHANNEL_RULES"}
