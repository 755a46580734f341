"""The commands ``connections`` and ``disconnect``: what `control/` does, for operators."""

import json
import urllib.error
import urllib.request
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

import click

from socketio_pg.cli.command import Failure, Misuse, Unavailable, examples, json_option, open_database
from socketio_pg.cli.terminal import print_json, table, tell
from socketio_pg.core import addresses, loading
from socketio_pg.postgres.database import fetch, session
from socketio_pg.postgres.trust import verify

#: Seconds for the answer of the server, which waits for the other processes.
TIMEOUT = 10.0


@click.command(epilog=examples("socketio-pg connections", "socketio-pg connections alice --url https://example.com"))
@click.argument("sub", required=False)
@click.option("--url", help="Ask the server at this address; the default is that of HOST and PORT.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Show at most this many.")
@json_option
def connections(sub: str | None, url: str | None, limit: int, as_json: bool) -> None:
    """List connections of all servers, or of a user.

    SUB is the claim 'sub' of the user's tokens. The command asks a running server, and needs its ADMIN_TOKEN.
    """
    settings = loading.load()
    if settings.admin_token is None:
        raise Misuse("set ADMIN_TOKEN to that of the server.")
    query = {"limit": limit} | ({} if sub is None else {"sub": sub})
    address = (url or f"http://{addresses.authority(settings.host, settings.port)}").rstrip("/")
    found = _get(f"{address}/api/connections?{urlencode(query)}", settings.admin_token)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one["sub"] or "",
            one["sid"],
            one["transport"],
            one["address"],
            datetime.fromtimestamp(one["since"], timezone.utc).isoformat(" ", "seconds").removesuffix("+00:00"),
            one["subscriptions"],
            one["node"] if one["worker"] is None else f"{one['node']}/{one['worker']}",
        )
        for one in found["connections"]
    ]
    table(("SUB", "SID", "TRANSPORT", "ADDRESS", "SINCE", "SUBSCRIPTIONS", "NODE"), rows)
    if found["count"] > len(rows):
        tell(f"{found['count'] - len(rows)} more connections are not shown.")
    for silent in found["unanswered"]:
        worker = "" if silent["worker"] is None else f", worker {silent['worker']}"
        tell(f"No answer from {silent['node']}{worker}")


@click.command(epilog=examples("socketio-pg disconnect alice", "socketio-pg disconnect --connection q0e3RZ…"))
@click.argument("sub", required=False)
@click.option("--connection", "sid", help="Disconnect only the connection with this id.")
def disconnect(sub: str | None, sid: str | None) -> None:
    """Disconnect a user from all servers.

    SUB is the claim 'sub' of the user's tokens. Stock clients do not come back by themselves, but a token stays good
    until it expires. The command uses the database: its role needs 'socketio-pg init --admin-role'.
    """
    if (sub is None) == (sid is None):
        raise Misuse("name a user, or a connection with --connection.")
    database = open_database(loading.load())
    with session(database, "cli disconnect") as connection:
        verify(database, connection)
        if sub is not None:
            fetch(connection, "SELECT socketio_pg.disconnect_user(%s)", sub)
        else:
            fetch(connection, "SELECT socketio_pg.disconnect_connection(%s)", sid)
    tell(f"The servers of {database} disconnect {'this user' if sub is not None else 'this connection'}.")


def _get(address: str, token: str) -> Any:
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(10_000)
        if error.code == 404:
            raise Failure("this server has no ADMIN_TOKEN.") from None
        try:
            problem = json.loads(text)["error"]["message"]
        except (ValueError, LookupError, TypeError):
            problem = f"HTTP {error.code}"
        raise Failure(f"the server refuses this: {problem}") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"the server at {address.partition('?')[0]} does not answer: {error}") from None
