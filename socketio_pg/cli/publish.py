"""The command ``publish``."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import click

from socketio_pg.cli.command import examples, json_option, open_database, token_option, url_option
from socketio_pg.cli.terminal import Progress, print_json, say, tell
from socketio_pg.core import config, green
from socketio_pg.core.channels import match_pattern, validate_channel
from socketio_pg.core.errors import PayloadTooLargeError
from socketio_pg.core.messages import MAX_NOTIFY_BYTES, check_size, is_strict_json
from socketio_pg.doctor.status import read_relay
from socketio_pg.postgres.database import encode_text, fetch, session
from socketio_pg.postgres.trust import verify
from socketio_pg.subscriber.subscriber import Subscriber


@click.command(
    epilog=examples(
        "socketio-pg publish orders '{\"id\": 7}'",
        "socketio-pg publish orders '{\"id\": 7}' --durable    # through the log",
        "jq -c . report.json | socketio-pg publish reports - --durable",
        "socketio-pg publish orders 1 --durable --json | jq .position",
        "socketio-pg publish orders 1 --url https://example.com",
    )
)
@click.argument("channel")
@click.argument("payload", metavar="JSON")
@click.option("--durable", is_flag=True, help="Publish through the log, not NOTIFY. Needs 'socketio-pg init'.")
@url_option
@token_option
@click.option("--quiet", "-q", is_flag=True, help="Print nothing on success, and do not wait for the position.")
@json_option
def publish(
    channel: str, payload: str, durable: bool, url: str | None, token: str | None, quiet: bool, as_json: bool
) -> None:
    """Publish JSON to CHANNEL.

    "-" reads the JSON from standard input. Returns after the commit. Uses the log with --durable and for
    DURABLE_CHANNELS, otherwise NOTIFY; a server (--url) also uses the log for payloads too large for NOTIFY.

    Prints the position of a message in the log, which a running server assigns after the commit. With --url, and for
    a role that may not read the log, the position is not known.
    """
    validate_channel(channel)
    text = _read(payload)
    place: Place | str | None = None
    if url is None:
        place = _to_database(channel, text, durable, wait=not quiet)
    else:
        with Subscriber(url, token=token) as subscriber:
            subscriber.publish(channel, json.loads(text), durable or None)
    if quiet:
        return
    if as_json:
        print_json({"channel": channel} | (asdict(place) if isinstance(place, Place) else {}))
    else:
        say(f"published to {channel}" + (f" at position {place.position}" if isinstance(place, Place) else ""))
    if isinstance(place, str):
        tell(place, error=True)


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


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a message in the log."""

    epoch: str
    position: int


#: Seconds to wait for the position of a message while a server relays the log, and seconds between two looks.
PATIENCE = 5.0
LOOK = 0.02

_READABLE = """
SELECT has_table_privilege('socketio_pg.outbox', 'SELECT') AND has_table_privilege('socketio_pg.log', 'SELECT')
    AND has_table_privilege('socketio_pg.head', 'SELECT')
    AND has_sequence_privilege('socketio_pg.outbox_id_seq', 'SELECT')
"""

# One transaction: the relay removes the row from the outbox once it is committed.
_PUBLISH_AND_FIND = """
SELECT socketio_pg.publish(%s, %s::jsonb);
SELECT published_at::text, (SELECT coalesce(max(position), 0) FROM socketio_pg.log)
FROM socketio_pg.outbox WHERE id = currval('socketio_pg.outbox_id_seq')
"""

_PLACE = """
SELECT epoch::text, position FROM socketio_pg.log, socketio_pg.head
WHERE channel = %s AND position > %s AND published_at = %s::timestamptz
"""


def _to_database(channel: str, text: str, durable: bool, *, wait: bool) -> Place | str | None:
    """Publish. With ``wait``, return the place of the message in the log, or a sentence about why it has none yet."""
    settings = config.load()
    database = open_database(settings)
    durable = durable or any(match_pattern(pattern, channel) for pattern in settings.durable_channels)
    try:
        check_size(text, settings.max_payload if durable else MAX_NOTIFY_BYTES)
    except PayloadTooLargeError as error:
        raise PayloadTooLargeError(error.message if durable else f"{error.message}: use --durable") from None
    with session(database, "cli publish") as connection:
        values = encode_text(connection, channel), encode_text(connection, text)
        if not durable:
            fetch(connection, "SELECT pg_notify(%s, %s)", *values)
            return None
        verify(database, connection)
        if not wait or not fetch(connection, _READABLE)[0][0]:
            fetch(connection, "SELECT socketio_pg.publish(%s, %s::jsonb)", *values)
            return None
        [(published_at, newest)] = fetch(connection, _PUBLISH_AND_FIND, *values)
        return _wait_for_place(connection, values[0], newest, published_at)


def _wait_for_place(connection: Any, channel: object, newest: int, published_at: str) -> Place | str:
    """Return the place of a committed message once the relay has moved it to the log, or why it has none yet."""
    if read_relay(connection)["pid"] is None:
        return "No server is running: the message gets its position in the log when one starts."
    deadline = time.monotonic() + PATIENCE
    with Progress() as progress:
        while not (found := fetch(connection, _PLACE, channel, newest, published_at)):
            if time.monotonic() > deadline:
                return "The message has no position in the log yet: 'socketio-pg doctor' checks the servers."
            progress.show("waiting for its position in the log …")
            green.sleep(LOOK)
    [(epoch, position), *_] = found
    return Place(epoch, position)
