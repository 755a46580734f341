"""The demo of HTML without JavaScript of the page: htmx follows a stream, and the server renders what it shows."""

import contextlib
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, render_template, request
from werkzeug.exceptions import NotFound, UnsupportedMediaType

from socketio_pg.postgres.database import Database, transaction
from socketio_pg.web.html import publish_template
from socketio_pg.web.pages import STATIC

#: The channel, which must be in HTML_CHANNELS.
CHANNEL = "demo:votes"
#: Time limit for the SQL of one request, in seconds.
TIMEOUT = 10.0

_CHOICES = ("Elephant", "Camel", "Penguin")
_PARTIAL = "socketio_pg_demo/votes_list.html"
_SETUP = """
CREATE SCHEMA IF NOT EXISTS socketio_pg_demo;
CREATE TABLE IF NOT EXISTS socketio_pg_demo.vote (choice text PRIMARY KEY, count int NOT NULL);
"""
_CDN = "https://cdn.jsdelivr.net"


def add_votes(blueprint: Blueprint, database: Database) -> None:
    """Add the page ``/demo/votes``, and the request that counts a vote."""

    @blueprint.get("/demo/votes")
    def votes() -> Response:
        with demo_cursor(database) as cursor:
            cursor.execute("SELECT to_regclass('socketio_pg_demo.vote') IS NOT NULL")
            context = _context(cursor, ready=cursor.fetchone()[0])
        vendored = (STATIC / "vendor" / "htmx.min.js").exists()
        page = Response(render_template("socketio_pg_demo/votes.html", vendored=vendored, **context))
        scripts = "'self'" if vendored else f"'self' {_CDN}"
        page.headers["Content-Security-Policy"] = (
            f"default-src 'self'; script-src {scripts}; object-src 'none'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        return page

    @blueprint.post("/demo/votes/<int:choice>")
    def vote(choice: int) -> Response:
        if "HX-Request" not in request.headers:
            raise UnsupportedMediaType  # pages of other origins cannot send this header without a CORS preflight
        if choice >= len(_CHOICES):
            raise NotFound
        with demo_cursor(database) as cursor:
            cursor.execute(_SETUP)
            cursor.execute(
                "INSERT INTO socketio_pg_demo.vote AS found VALUES (%s, 1) "
                "ON CONFLICT (choice) DO UPDATE SET count = found.count + 1",
                [_CHOICES[choice]],
            )
            publish_template(cursor.connection, CHANNEL, _PARTIAL, event="votes", **_context(cursor, ready=True))
        return Response(status=204)


def add_sample_votes(cursor: Any) -> None:
    """Create the table with some votes, unless it has votes."""
    cursor.execute(_SETUP)
    cursor.execute(
        "INSERT INTO socketio_pg_demo.vote SELECT * FROM unnest(%s, '{3,5,2}'::int[]) AS sample (choice, count) "
        "WHERE NOT EXISTS (SELECT FROM socketio_pg_demo.vote)",
        [list(_CHOICES)],
    )


def _context(cursor: Any, *, ready: bool) -> dict[str, Any]:
    counts: dict[str, int] = {}
    if ready:
        cursor.execute("SELECT choice, count FROM socketio_pg_demo.vote")
        counts = dict(cursor.fetchall())
    return {"votes": [(name, counts.get(name, 0)) for name in _CHOICES], "total": sum(counts.values())}


@contextlib.contextmanager
def demo_cursor(database: Database) -> Iterator[Any]:
    """Open a cursor in a transaction, on a new connection."""
    with contextlib.closing(database.connect("demo")) as connection, transaction(connection, TIMEOUT) as cursor:
        yield cursor
