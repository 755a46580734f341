"""The commands ``status`` and ``doctor``: the current state, and common problems with fixes."""

from typing import Any

import click

from socketio_pg.cli.command import FAILED, examples, json_option, open_database
from socketio_pg.cli.terminal import age, clean, print_json, say, table
from socketio_pg.core import config
from socketio_pg.doctor.doctor import examine
from socketio_pg.doctor.status import MAX_CHANNELS, MAX_COUNTED, read_status
from socketio_pg.postgres.database import session


@click.command(epilog=examples("socketio-pg status", "socketio-pg status --json | jq .relay.outbox.rows"))
@json_option
def status(as_json: bool) -> None:
    """Show database, log, servers and channels.

    Also works without the schema.
    """
    database = open_database(config.load())
    with session(database) as connection:
        found = read_status(database, connection)
    if as_json:
        print_json(found)
        return
    _print_database(found["database"])
    schema = found["schema"]
    if "problem" in schema:
        _line("schema", schema["problem"])
    elif schema["version"] is None:
        _line("schema", "not installed: NOTIFY works, the log needs 'socketio-pg init'")
    else:
        old = "" if schema["version"] == schema["expected"] else f"; this program needs version {schema['expected']}"
        _line("schema", f"version {schema['version']}{old}")
        _print_log(found)


def _print_database(database: dict[str, Any]) -> None:
    standby = ", a hot standby" if database["standby"] else ""
    _line("database", f"PostgreSQL {database['version']}{standby}, {database['address']}, {database['encoding']}")
    _line(
        "sessions", f"{database['sessions']} of {database['most_sessions']}, {database['ours']} of them by socketio_pg"
    )
    _line("NOTIFY queue", f"{database['notify_queue']:.1%} full")


def _print_log(found: dict[str, Any]) -> None:
    log, relay = found["log"], found["relay"]
    if "problem" in log:
        _line("log", log["problem"])
    else:
        _line("log", f"position {log['position']}, trimmed up to {log['trimmed']}, epoch {log['epoch']}")
    if "problem" in relay:
        _line("relay", relay["problem"])
    else:
        leader = (
            "none: no server is running" if relay["pid"] is None else f"{relay['node'] or '?'} (session {relay['pid']})"
        )
        expired = f", which has not renewed its lease for {age(relay['renewed_seconds_ago'])}"
        _line("relay", f"{leader}{expired if relay['expired'] else ''}")
        outbox = relay["outbox"]
        more = "more than " if outbox["rows"] >= MAX_COUNTED else ""
        waiting = f"{more}{outbox['rows']} waiting"
        _line("outbox", "empty" if not outbox["rows"] else f"{waiting}, the oldest for {age(outbox['oldest_seconds'])}")
    for name, columns, none in (
        ("nodes", ("name", "version", "relay", "position", "clients", "started_at"), "no server is running"),
        ("channels", ("channel", "messages", "last_position", "age"), "the log is empty"),
    ):
        rows = found[name]
        if isinstance(rows, dict):
            _line(name, rows["problem"])
        elif not rows:
            _line(name, none)
        else:
            say()
            table(columns, [[_cell(row, column) for column in columns] for row in rows])
            if len(rows) == MAX_CHANNELS and name == "channels":
                say(f"(only the {MAX_CHANNELS} with the newest messages)")


def _cell(row: dict[str, Any], column: str) -> object:
    if column == "age":
        return age(row["age_seconds"])
    if column == "started_at":
        return f"{row[column].astimezone():%Y-%m-%d %H:%M:%S}"
    return {True: "leads", False: ""}[row["relay"]] if column == "relay" else row[column]


def _line(name: str, text: str) -> None:
    say(f"{click.style(f'{name:12}', bold=True)}  {clean(text)}")


@click.command(epilog=examples("socketio-pg doctor", "socketio-pg doctor --json | jq 'select(.level != \"ok\")'"))
@json_option
@click.option("--verbose", "-v", is_flag=True, help="Also list the checks that passed.")
def doctor(as_json: bool, verbose: bool) -> None:
    """Check for common problems.

    Suggests a fix for each. Run it on the server's machine, with the server's settings. Exits with 1 if it finds
    an error, with 0 if it finds only warnings.
    """
    counts = {"ok": 0, "warning": 0, "error": 0}
    for finding in examine(config.load()):
        counts[finding.level] += 1
        if as_json:
            print_json(finding)
        elif finding.level != "ok" or verbose:
            colour = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
            say(f"{click.style(f'{finding.level:7}', fg=colour)}  {finding.check:14}  {clean(finding.found)}")
            if finding.remedy is not None:
                say(f"{'':25}→ {clean(finding.remedy)}")
    if not as_json:
        say(f"errors: {counts['error']}, warnings: {counts['warning']}, passed: {counts['ok']}")
    if counts["error"]:
        raise click.exceptions.Exit(FAILED)
