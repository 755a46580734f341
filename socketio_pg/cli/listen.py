"""The command ``listen``."""

import contextlib
import json
import re
import select
import sys
import time
from datetime import datetime
from typing import Any

import click

from socketio_pg.cli.command import (
    FAILED,
    as_seconds,
    examples,
    json_option,
    require_database,
    token_option,
    url_option,
)
from socketio_pg.cli.listening import FromDatabase, FromServer, Source, Start, parse_since
from socketio_pg.cli.terminal import abandon_output, json_text, print_json, say
from socketio_pg.core import loading
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.log.starts import MAX_HISTORY
from socketio_pg.pubsub.filters import parse_filter

#: Seconds between two checks of the deadline, and of whether standard output still has a reader.
TICK = 1.0


def _as_filter(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        filter: dict[str, Any] = json.loads(value)
        parse_filter(filter)
    except (ValueError, RecursionError):
        raise click.BadParameter(f"{value!r} is not JSON", ctx, param) from None
    except InvalidRequestError as error:
        raise click.BadParameter(error.message, ctx, param) from None
    return filter


@click.command(
    epilog=examples(
        "socketio-pg listen orders chat",
        "socketio-pg listen orders --history 20 --json | jq .payload",
        "socketio-pg listen orders --since earliest --json > orders.jsonl",
        "socketio-pg listen orders --since 2026-11-24T12:00:00Z",
        """socketio-pg listen table:public.orders --filter '{"new.status": "paid"}'""",
        "socketio-pg listen orders --count 1 --timeout 30s   # code 1 without one",
        "socketio-pg listen orders --url https://example.com",
    )
)
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@json_option
@click.option(
    "--since",
    metavar="PLACE",
    help="Start after this position of the log (EPOCH:POSITION), at a time (2026-11-24T12:00:00Z), after a snapshot "
    "(a token of socketio_pg.snapshot()), or with all that the log has ('earliest').",
)
@click.option(
    "--history", type=click.IntRange(0, MAX_HISTORY), help="Print this many of the newest messages of the log first."
)
@click.option(
    "--filter",
    metavar="JSON",
    callback=_as_filter,
    help="Only messages that fulfil these conditions: '{\"new.id\": 5}'.",
)
@click.option("--count", type=click.IntRange(1), help="End after this many messages.")
@click.option("--timeout", callback=as_seconds, metavar="TIME", help="End after this time: 90s, 15m, 1h.")
@url_option
@token_option
def listen(
    channels: tuple[str, ...],
    as_json: bool,
    since: str | None,
    history: int | None,
    filter: dict[str, Any] | None,
    count: int | None,
    timeout: float | None,
    url: str | None,
    token: str | None,
) -> None:
    """Print the messages of channels.

    Runs until Ctrl-C and reconnects automatically. Gaps, and everything else that is not a message, go to standard
    error. With --json it prints one line of JSON for each message.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    start = _start(since, history)
    for channel in channels:
        validate_channel(channel)
    with contextlib.closing(_open(url, token)) as source:
        for channel in dict.fromkeys(channels):
            source.subscribe(channel, start, filter)
        say(f"listening to {', '.join(dict.fromkeys(channels))}", error=True)
        try:
            received = _run(source, as_json, count, deadline)
        except KeyboardInterrupt:
            abandon_output()  # it may be a full pipe
            raise
    if count is not None and received < count:
        raise click.exceptions.Exit(FAILED)


def _start(since: str | None, history: int | None) -> Start:
    if since is None:
        return history
    if history is not None:
        raise click.UsageError("--since and --history do not go together")
    try:
        return parse_since(since)
    except InvalidRequestError as error:
        raise click.BadParameter(f"{since!r}: {error.message}", param_hint="--since") from None


def _open(url: str | None, token: str | None) -> Source:
    if url is not None:
        return FromServer(url, token)
    settings = loading.load()
    require_database(settings)
    return FromDatabase(settings)


def _run(source: Source, as_json: bool, count: int | None, deadline: float | None) -> int:
    """Print events until the end. Return the number of messages."""
    received = 0
    while count is None or received < count:
        left = TICK if deadline is None else min(TICK, deadline - time.monotonic())
        if left <= 0:
            break
        event = source.next(left)
        if event is None:
            _check_reader()
        elif event.kind == "gap":
            say(gap_line(event.body), error=True)
        elif event.kind == "health":
            say(health_line(event.body), error=True)
        else:
            received += 1
            if as_json:
                print_json(event.body)
            else:
                say(message_line(event.body))
    return received


def _check_reader() -> None:
    """Raise BrokenPipeError when standard output has no reader: a quiet channel would not notice otherwise."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # it is not a file
        return
    poll = select.poll()
    poll.register(descriptor, 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        raise BrokenPipeError


def message_line(body: dict[str, Any]) -> str:
    """Return a message as a line for people: time, channel, position, payload."""
    published_at = body.get("published_at")
    # Python before 3.11 does not know Z.
    at = datetime.fromisoformat(published_at.replace("Z", "+00:00")) if published_at else datetime.now().astimezone()
    parts = [
        click.style(at.astimezone().strftime("%H:%M:%S"), dim=True),
        click.style(body["channel"], fg="cyan", bold=True),
    ]
    if body.get("position") is not None:
        parts.append(click.style(f"#{body['position']}", fg="yellow"))
    # JSON escapes control characters except for these, which some terminals interpret.
    payload = json_text(body["payload"])
    parts.append(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", payload))
    if "from" in body:
        parts.append(click.style(f"from {_sender(body['from'])}", dim=True))
    if body.get("replayed"):
        parts.append(click.style("(replayed)", dim=True))
    return "  ".join(parts)


def _sender(claims: Any) -> str:
    """Return the client's name, or its claims if there are more: in ASCII, which cannot control a terminal."""
    one = claims.get("sub") if isinstance(claims, dict) and claims.keys() == {"sub"} else claims
    return json.dumps(one)


def gap_line(body: dict[str, Any]) -> str:
    """Return a gap as a line for people."""
    between = f" between {body['since']} and {body['until']}" if "since" in body and "until" in body else ""
    what = "NOTIFY" if body.get("tier") == "notify" else "the log"
    return click.style(
        f"gap in {body['channel']}: messages of {what} may have been missed{between} ({body['reason']})", fg="red"
    )


def health_line(body: dict[str, Any]) -> str:
    """Return a server's report on its database as a line for people."""
    color = "green" if body["database"] == "reachable" else "red"
    return click.style(f"the server's database is {body['database']} since {body['since']}", fg=color)
