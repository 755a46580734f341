"""The command ``bench``: a quick self-test."""

import contextlib
import secrets

import click

from socketio_pg.cli.command import FAILED, examples, json_option, open_database, token_option, url_option
from socketio_pg.cli.selftest import local_server, measure
from socketio_pg.cli.terminal import print_json, say
from socketio_pg.core import config
from socketio_pg.postgres.queries import session


@click.command(
    epilog=examples(
        "socketio-pg bench",
        "socketio-pg bench --subscribers 200 --messages 500",
        'socketio-pg bench --url https://example.com --token "$TOKEN"',
    )
)
@url_option
@token_option
@click.option("--channel", help="Another channel than one of its own, for a --token that allows only some.")
@click.option("--subscribers", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--messages", type=click.IntRange(1, 100_000), default=200, show_default=True)
@json_option
def bench(
    url: str | None, token: str | None, channel: str | None, subscribers: int, messages: int, as_json: bool
) -> None:
    """Run a quick self-test.

    Sends messages through server and database to some subscribers, and says whether all arrive, and how fast. A
    self-test and no benchmark: the clients are in this process and take most of the time. Without --url it starts a
    server of its own on a free port, with the configured database, and ends it afterwards.
    """
    channel = channel or f"bench:{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        if url is None:
            settings = config.load()
            with session(open_database(settings)):
                pass  # what is wrong is said at once
            say("starting a server …", error=True)
            url, token = stack.enter_context(local_server(settings, channel))
        result = measure(url, token, channel, subscribers, messages)
    if as_json:
        print_json(result)
    else:
        say("A self-test, no benchmark: the clients are in this process.")
        say(f"delivered     {result.delivered} of {result.expected} ({messages} messages to {subscribers} subscribers)")
        say(f"latency       p50 {result.p50 * 1000:.1f} ms, p99 {result.p99 * 1000:.1f} ms")
        say(f"published     {messages / result.seconds:.0f} messages/s, each after the commit of the one before")
        say(f"deliveries    {result.delivered / result.seconds:.0f}/s")
    if result.delivered != result.expected:
        raise click.exceptions.Exit(FAILED)
