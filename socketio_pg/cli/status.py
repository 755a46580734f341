"""The commands ``status`` and ``doctor``: the current state, and common problems with fixes."""

from typing import Any

import click

from socketio_pg.cli.command import FAILED, examples, json_option, open_database
from socketio_pg.cli.terminal import Progress, age, clean, entry, print_json, say, table, wrapped
from socketio_pg.core import loading
from socketio_pg.doctor.doctor import examine
from socketio_pg.doctor.findings import Finding
from socketio_pg.doctor.status import MAX_CHANNELS, MAX_COUNTED, read_status
from socketio_pg.postgres.database import session


@click.command(epilog=examples("socketio-pg status", "socketio-pg status --json | jq .relay.outbox.rows"))
@json_option
def status(as_json: bool) -> None:
    """Show database, log, servers, channels and consumers.

    Also works without the schema.
    """
    database = open_database(loading.load())
    with session(database, "cli status") as connection:
        found = read_status(database, connection)
    if as_json:
        print_json(found)
        return
    _print_database(found["database"])
    schema = found["schema"]
    if "problem" in schema:
        entry("schema", schema["problem"])
    elif schema["version"] is None:
        entry("schema", "not installed: NOTIFY works, the log needs 'socketio-pg init'")
    else:
        old = "" if schema["version"] == schema["expected"] else f"; this program needs version {schema['expected']}"
        entry("schema", f"version {schema['version']}{old}")
        _print_log(found)


def _print_database(database: dict[str, Any]) -> None:
    standby = ", a hot standby" if database["standby"] else ""
    entry("database", f"PostgreSQL {database['version']}{standby}, {database['address']}, {database['encoding']}")
    entry(
        "sessions", f"{database['sessions']} of {database['most_sessions']}, {database['ours']} of them by socketio_pg"
    )
    entry("NOTIFY queue", f"{database['notify_queue']:.1%} full")


def _print_log(found: dict[str, Any]) -> None:
    log, relay = found["log"], found["relay"]
    if "problem" in log:
        entry("log", log["problem"])
    else:
        entry("log", f"position {log['position']}, trimmed up to {log['trimmed']}, epoch {log['epoch']}")
    if "problem" in relay:
        entry("relay", relay["problem"])
    else:
        leader = (
            "none: no server is running" if relay["pid"] is None else f"{relay['node'] or '?'} (session {relay['pid']})"
        )
        expired = f", which has not renewed its lease for {age(relay['renewed_seconds_ago'])}"
        entry("relay", f"{leader}{expired if relay['expired'] else ''}")
        outbox = relay["outbox"]
        more = "more than " if outbox["rows"] >= MAX_COUNTED else ""
        waiting = f"{more}{outbox['rows']} waiting"
        entry("outbox", "empty" if not outbox["rows"] else f"{waiting}, the oldest for {age(outbox['oldest_seconds'])}")
    for name, columns, none in (
        ("nodes", ("name", "version", "relay", "position", "clients", "started_at"), "no server is running"),
        ("channels", ("channel", "messages", "last_position", "age"), "the log is empty"),
    ):
        rows = found[name]
        if isinstance(rows, dict):
            entry(name, rows["problem"])
        elif not rows:
            entry(name, none)
        else:
            say()
            table(columns, [[_cell(row, column) for column in columns] for row in rows])
            if len(rows) == MAX_CHANNELS and name == "channels":
                say(f"(only the {MAX_CHANNELS} with the newest messages)")
            if name == "nodes":
                _print_workers(rows)
    _print_consumers(found["consumers"])


def _print_workers(nodes: list[dict[str, Any]]) -> None:
    """Print the workers of the nodes that have several."""
    rows = [
        (node["name"], worker["slot"], worker["pid"], worker["clients"], "yes" if worker["listens"] else None,
         worker["problem"] or "ready")
        for node in nodes
        for worker in node["workers"] or ()
    ]  # fmt: skip
    if rows:
        say()
        table(("node", "worker", "pid", "clients", "listens", "state"), rows)


def _print_consumers(rows: Any) -> None:
    """Print the durable consumers, if there are any."""
    if isinstance(rows, dict):
        entry("consumers", rows["problem"])
    elif rows:
        say()
        columns = ("consumer", "position", "lag", "age", "failures", "state")
        table(columns, [
            (row["name"], row["position"], row["lag"], None if row["age_seconds"] is None else age(row["age_seconds"]),
             row["failures"], row["lost"] or (row["error"] or "ok").partition("\n")[0])
            for row in rows
        ])  # fmt: skip


def _cell(row: dict[str, Any], column: str) -> object:
    if column == "age":
        return age(row["age_seconds"])
    if column == "started_at":
        return f"{row[column].astimezone():%Y-%m-%d %H:%M:%S}"
    return {True: "leads", False: None}[row["relay"]] if column == "relay" else row[column]


@click.command(epilog=examples("socketio-pg doctor", "socketio-pg doctor --json | jq 'select(.level != \"ok\")'"))
@json_option
@click.option("--verbose", "-v", is_flag=True, help="Also list the checks that passed.")
def doctor(as_json: bool, verbose: bool) -> None:
    """Check for common problems.

    Suggests a fix for each. Run it on the server's machine, with the server's settings. Exits with 1 if it finds
    an error, with 0 if it finds only warnings.
    """
    counts = {"ok": 0, "warning": 0, "error": 0}
    with Progress() as progress:
        progress.show("checking …")
        for finding in examine(loading.load()):
            counts[finding.level] += 1
            progress.show("")
            if as_json:
                print_json(finding)
            elif finding.level != "ok" or verbose:
                _print_finding(finding)
            progress.show(f"checking … {sum(counts.values())} done, the last one: {finding.check}")
    if not as_json:
        say(f"errors: {counts['error']}, warnings: {counts['warning']}, passed: {counts['ok']}")
    if counts["error"]:
        raise click.exceptions.Exit(FAILED)


def _print_finding(finding: Finding) -> None:
    """Print a finding, and its remedy on the next line."""
    colour = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
    head = f"{click.style(f'{finding.level:7}', fg=colour)}  {finding.check:14}"
    say(f"{head}  {wrapped(clean(finding.found), 25, 25)}")
    if finding.remedy is not None:
        say(f"{'':25}→ {wrapped(clean(finding.remedy), 27, 27)}")
