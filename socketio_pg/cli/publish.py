"""The command ``publish``."""

import json
import sys

import click

from socketio_pg.cli.command import examples, open_database, token_option, url_option
from socketio_pg.cli.terminal import say
from socketio_pg.core import config
from socketio_pg.core.channels import match_pattern, validate_channel
from socketio_pg.core.errors import PayloadTooLargeError
from socketio_pg.core.messages import MAX_NOTIFY_BYTES, check_size, is_strict_json
from socketio_pg.postgres.database import encode_text, fetch, session
from socketio_pg.postgres.trust import verify
from socketio_pg.subscriber.subscriber import Subscriber


@click.command(
    epilog=examples(
        "socketio-pg publish orders '{\"id\": 7}'",
        "socketio-pg publish orders '{\"id\": 7}' --durable      # through the log: never lost",
        "jq -c . report.json | socketio-pg publish reports - --durable",
        'socketio-pg publish orders 1 --url https://example.com --token "$TOKEN"',
    )
)
@click.argument("channel")
@click.argument("payload", metavar="JSON")
@click.option("--durable", is_flag=True, help="Publish through the log, not NOTIFY. Needs 'socketio-pg init'.")
@url_option
@token_option
@click.option("--quiet", "-q", is_flag=True, help="Print nothing on success.")
def publish(channel: str, payload: str, durable: bool, url: str | None, token: str | None, quiet: bool) -> None:
    """Publish JSON to CHANNEL.

    "-" reads the JSON from standard input. Returns after the commit. Uses the log with --durable and for
    DURABLE_CHANNELS, otherwise NOTIFY; a server (--url) also uses the log for payloads too large for NOTIFY.
    """
    validate_channel(channel)
    text = _read(payload)
    if url is None:
        _to_database(channel, text, durable)
    else:
        with Subscriber(url, token=token) as subscriber:
            subscriber.publish(channel, json.loads(text), durable or None)
    if not quiet:
        say(f"published to {channel}")


def _read(payload: str) -> str:
    """Return the JSON text of the argument, or of standard input."""
    if payload == "-":
        try:
            payload = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise click.BadParameter("standard input is not UTF-8", param_hint="JSON") from None
    text = payload.strip()
    if not is_strict_json(text):
        hint = "; a string needs double quotes inside the shell's: '\"text\"'" if text.isalnum() else ""
        raise click.BadParameter(f"not JSON{hint}", param_hint="JSON")
    return text


def _to_database(channel: str, text: str, durable: bool) -> None:
    settings = config.load()
    database = open_database(settings)
    durable = durable or any(match_pattern(pattern, channel) for pattern in settings.durable_channels)
    try:
        check_size(text, settings.max_payload if durable else MAX_NOTIFY_BYTES)
    except PayloadTooLargeError as error:
        raise PayloadTooLargeError(error.message if durable else f"{error.message}: use --durable") from None
    call = "SELECT socketio_pg.publish(%s, %s::jsonb)" if durable else "SELECT pg_notify(%s, %s)"
    with session(database) as connection:
        if durable:
            verify(database, connection)
        fetch(connection, call, encode_text(connection, channel), encode_text(connection, text))
