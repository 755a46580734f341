"""The command ``publish``."""

import json
import sys
import time
from dataclasses import replace
from typing import Any

import click

from socketio_pg.cli.command import examples, json_option, open_database, token_option, url_option
from socketio_pg.cli.terminal import Progress, print_json, say, tell
from socketio_pg.core import green, loading
from socketio_pg.core.channels import match_pattern, validate_channel
from socketio_pg.core.errors import InvalidRequestError, LogNotInstalledError, PayloadTooLargeError
from socketio_pg.core.messages import MAX_NOTIFY_BYTES, Position, check_size, is_strict_json
from socketio_pg.core.meta import validate_exclude, validate_traceparent
from socketio_pg.core.publications import Publication, Published, validate_id
from socketio_pg.doctor.status import read_relay
from socketio_pg.postgres.database import Database, encode_text, fetch, session
from socketio_pg.postgres.trust import verify
from socketio_pg.subscriber.subscriber import Subscriber


@click.command(
    epilog=examples(
        "socketio-pg publish orders '{\"id\": 7}'",
        "socketio-pg publish orders '{\"id\": 7}' --no-durable    # NOTIFY",
        "jq -c . report.json | socketio-pg publish reports - --durable",
        "socketio-pg publish orders 1 --durable --json | jq .position",
        "socketio-pg publish invoices 7 --id invoice-7    # once, if repeated",
        "socketio-pg publish orders 1 --url https://example.com",
    )
)
@click.argument("channel")
@click.argument("payload", metavar="JSON")
@click.option(
    "--durable/--no-durable", default=None, help="Through the log, which needs 'socketio-pg init', or with NOTIFY."
)
@click.option("--id", help="Publish once: not if this id was published on the channel within five minutes.")
@click.option("--exclude", metavar="SID", help="Not to this client: its Socket.IO id. Needs the log.")
@click.option("--traceparent", metavar="TEXT", help="That of W3C Trace Context, for subscribers. Needs the log.")
@url_option
@token_option
@click.option("--quiet", "-q", is_flag=True, help="Print nothing on success, and do not wait for the position.")
@json_option
def publish(
    channel: str,
    payload: str,
    durable: bool | None,
    id: str | None,
    exclude: str | None,
    traceparent: str | None,
    url: str | None,
    token: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Publish JSON to CHANNEL.

    "-" reads the JSON from standard input. Returns after the commit. Without --durable and --no-durable the message
    goes through the log where one is installed, in the channels of DURABLE_CHANNELS (by default all), otherwise with
    NOTIFY.

    Prints the position of a message in the log, which a running server assigns after the commit. For a role that may
    not read the log, the position is not known.
    """
    publication = Publication(
        validate_channel(channel),
        None,
        durable,
        None if id is None else validate_id(id),
        None if exclude is None else validate_exclude(exclude),
        None if traceparent is None else validate_traceparent(traceparent),
    )
    text = _read(payload)
    problem = None
    if url is not None and exclude is not None:
        raise click.UsageError("--exclude does not go together with --url: it is for publishers without a connection")
    if url is None:
        published, problem = _to_database(publication, text, wait=not quiet)
    else:
        with Subscriber(url, token=token) as subscriber:
            published = subscriber.publish(
                channel, json.loads(text), durable, id=id, traceparent=traceparent, wait=not quiet
            )
    if quiet:
        return
    if as_json:
        print_json(published.to_wire())
    else:
        what = "published before" if published.duplicate else "published"
        say(f"{what} to {channel}" + ("" if published.position is None else f" at position {published.position}"))
    if problem is not None:
        tell(problem, error=True)


def _read(payload: str) -> str:
    """Return the JSON text of the argument, or of standard input."""
    if payload == "-":
        try:
            payload = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise click.BadParameter("standard input is not UTF-8", param_hint="JSON") from None
    text = payload.strip()
    if not is_strict_json(text):
        raise click.BadParameter(f"not JSON{_reason(text)}", param_hint="JSON")
    return text


def _reason(text: str) -> str:
    if text.isalnum():
        return "; a string needs double quotes inside the shell's: '\"text\"'"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f": {error.msg[0].lower()}{error.msg[1:]} at character {error.pos + 1}"
    except (ValueError, RecursionError):
        pass  # a long number, or many brackets
    return ""


#: Seconds to wait for the position of a message while a server relays the log, and seconds between two looks.
PATIENCE = 5.0
LOOK = 0.02
#: The same for that of a message that was published before, which has none if it went with NOTIFY.
DUPLICATE_PATIENCE = 0.5

_MAY_PUBLISH = """
SELECT has_schema_privilege('socketio_pg', 'USAGE')
    AND has_function_privilege('socketio_pg.publish(text, jsonb)', 'EXECUTE')
"""

_READABLE = """
SELECT has_table_privilege('socketio_pg.log', 'SELECT') AND has_table_privilege('socketio_pg.head', 'SELECT')
    AND has_function_privilege('socketio_pg.publish_as(text, text, boolean, text, text, text)', 'EXECUTE')
"""

_PUBLISH_NUMBERED = """
SELECT socketio_pg.publish_as(%s, %s, true, %s, %s, %s), (SELECT coalesce(max(position), 0) FROM socketio_pg.log)
"""

_PLACE = """
SELECT epoch::text, position FROM socketio_pg.log, socketio_pg.head WHERE channel = %s AND position > %s AND log.id = %s
"""


def _to_database(publication: Publication, text: str, *, wait: bool) -> tuple[Published, str | None]:
    """Publish JSON text. Return the result, and a sentence about why it has no position yet, if it is to have one."""
    settings = loading.load()
    database = open_database(settings)
    with session(database, "cli publish") as connection:
        durable = publication.durable
        if durable is None:
            wanted = any(match_pattern(pattern, publication.channel) for pattern in settings.durable_channels)
            durable = (wanted or len(text.encode()) > MAX_NOTIFY_BYTES) and _has_log(database, connection)
        try:
            check_size(text, settings.max_payload if durable else MAX_NOTIFY_BYTES)
        except PayloadTooLargeError as error:
            raise PayloadTooLargeError(error.message if durable else f"{error.message}: use --durable") from None
        channel, payload = encode_text(connection, publication.channel), encode_text(connection, text)
        result = Published(publication.channel, durable)
        if durable or publication.id is not None:
            verify(database, connection)
        chosen = (publication.id, publication.exclude, publication.traceparent)
        if not durable and chosen[1:] != (None, None):
            raise InvalidRequestError("--exclude and --traceparent need the log: use --durable")
        if publication.id is None and not durable:
            fetch(connection, "SELECT pg_notify(%s, %s)", channel, payload)
            return result, None
        if not durable or not wait or not fetch(connection, _READABLE)[0][0]:
            # In the oldest form if it will do: all roles may call that which may publish.
            more = (durable, *chosen) if chosen != (None, None, None) else ()
            sql = f"SELECT socketio_pg.publish(%s, %s::jsonb{', %s' * len(more)})"
            [(new,)] = fetch(connection, sql, channel, payload, *more)
            return replace(result, duplicate=new is False), None
        [(number, newest)] = fetch(connection, _PUBLISH_NUMBERED, channel, payload, *chosen)
        result = replace(result, waited=True, duplicate=number < 0)
        place = _wait_for_place(connection, channel, newest, number)
        return (result, place) if isinstance(place, str) else (replace(result, place=place), None)


def _has_log(database: Database, connection: Any) -> bool:
    """Return whether the database has a log through which this role may publish."""
    try:
        verify(database, connection)
    except LogNotInstalledError:
        return False
    return bool(fetch(connection, _MAY_PUBLISH)[0][0])


def _wait_for_place(connection: Any, channel: object, newest: int, number: int) -> Position | str:
    """Return the place of a committed message once the relay has moved it to the log, or why it has none yet.

    ``number`` is negative for one that was published before.
    """
    old = number < 0
    if read_relay(connection)["pid"] is None:
        return "No server is running: the message gets its position in the log when one starts."
    deadline = time.monotonic() + (DUPLICATE_PATIENCE if old else PATIENCE)
    with Progress() as progress:
        while not (found := fetch(connection, _PLACE, channel, 0 if old else newest, abs(number))):
            if time.monotonic() > deadline and old:
                return "The message that was published before went with NOTIFY, or has no position in the log yet."
            if time.monotonic() > deadline:
                return "The message has no position in the log yet: 'socketio-pg doctor' checks the servers."
            progress.show("waiting for its position in the log …")
            green.sleep(LOOK)
    [(epoch, position), *_] = found
    return Position(epoch=epoch, position=position)
