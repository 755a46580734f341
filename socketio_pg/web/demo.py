"""The demos of the development server at ``/demo/``: pages, and the SQL that they run in a schema of their own."""

import html
import json
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, request

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.schema import install
from socketio_pg.web.demo_votes import add_sample_votes, add_votes, demo_cursor
from socketio_pg.web.pages import STATIC, add_security_headers

logger = logging.getLogger("socketio_pg.demo")

#: The channel to which the playground of the development server subscribes at once.
FIRST_CHANNEL = "foo"

_STATUSES = ("new", "paid", "packed", "shipped")
_CUSTOMERS = ("Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Hedy", "Ken", "Margaret", "Radia")
_ITEMS = ("keyboard", "screen", "lamp", "desk", "chair", "headphones", "notebook", "cable", "webcam", "microphone")

_CHAT = (
    {"from": "Grace", "text": "Is the new warehouse online?"},
    {"from": "Edsger", "text": "Since this morning. Every row change shows up here."},
    {"from": "Grace", "text": "Grüße aus Köln"},
)

#: A statement with its parameters.
_Statement = tuple[str, Sequence[object]]


def add_samples(database: Database, max_payload: int) -> None:
    """Install the schema, fill the demos that are empty, and publish a message to :data:`FIRST_CHANNEL`.

    For the embedded database, which has no other user. A failure is only logged: the server works without the samples.
    """
    try:
        install(database, max_payload, again=False)
        with demo_cursor(database) as cursor:
            # Another worker may do the same.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('socketio_pg_demo'))")
            _publish(cursor, FIRST_CHANNEL, {"hello": "world"})
            for name in ("orders", "map"):
                cursor.execute(_setup_of(name))
            add_sample_votes(cursor)
            cursor.execute(
                "SELECT EXISTS (SELECT FROM socketio_pg.log WHERE channel = 'chat') "
                "OR EXISTS (SELECT FROM socketio_pg.outbox WHERE channel = 'chat')"
            )
            if not cursor.fetchone()[0]:
                for payload in _CHAT:
                    _publish(cursor, "chat", payload)
    except SocketIOPGError as error:
        logger.warning("the demos start empty: %s", error)


def _publish(cursor: Any, channel: str, payload: object) -> None:
    cursor.execute("SELECT socketio_pg.publish(%s, %s)", [channel, json.dumps(payload)])


def _setup_of(name: str) -> str:
    return (STATIC / "demo" / f"{name}.sql").read_text("utf-8")


def create_demo_blueprint(database: Database, *, is_open: bool) -> Blueprint:
    """Return the routes below ``/demo/``. Any client that can reach them can change tables in ``socketio_pg_demo``.

    ``is_open``: the server asks for no token, so that the playground can subscribe at once.
    """
    blueprint = Blueprint(
        "socketio_pg_demo",
        __name__,
        static_folder=STATIC / "demo",
        static_url_path="/demo",
        template_folder=STATIC.parent / "templates",
    )
    blueprint.after_request(add_security_headers)

    @blueprint.get("/demo/")
    def index() -> Response:
        return blueprint.send_static_file("index.html")

    @blueprint.get("/static/demos.js")
    def demos() -> Response:
        channels = json.dumps([FIRST_CHANNEL] if is_open else [])
        script = f"export const hasDemos = true;\nexport const firstChannels = {channels};\n"
        return Response(script, mimetype="text/javascript")

    @blueprint.errorhandler(SocketIOPGError)
    def failed(error: SocketIOPGError) -> tuple[Response, int]:
        if "HX-Request" in request.headers:
            return Response(html.escape(error.message)), 409
        return jsonify(error=error.message), 409

    @blueprint.get("/demo/map/rows")
    def people() -> Response:
        with demo_cursor(database) as cursor:
            cursor.execute("SELECT to_regclass('socketio_pg_demo.person') IS NOT NULL")
            ready = cursor.fetchone()[0]
            if ready:
                cursor.execute("SELECT to_jsonb(person) FROM socketio_pg_demo.person ORDER BY id LIMIT 1000")
            return jsonify(ready=ready, rows=[row for (row,) in cursor.fetchall()] if ready else [])

    def add(name: str, change: Callable[[Any], _Statement]) -> None:
        """Add the routes of one demo that set its table up and change it."""

        def setup() -> Response:
            _require_json()
            with demo_cursor(database) as cursor:
                cursor.execute(_setup_of(name))
            return jsonify(ok=True)

        def step() -> Response:
            _require_json()
            with demo_cursor(database) as cursor:
                sql = cursor.mogrify(*change(cursor)).decode()
                cursor.execute(sql)
            return jsonify(sql=f"{sql};")

        blueprint.add_url_rule(f"/demo/{name}/setup", f"{name}_setup", setup, methods=["POST"])
        blueprint.add_url_rule(f"/demo/{name}/change", f"{name}_change", step, methods=["POST"])

    add_votes(blueprint, database)
    add("orders", _change_orders)
    add("map", _move_people)
    return blueprint


def _require_json() -> None:
    """Answer 415 unless the body is JSON: pages of other origins cannot send JSON without a CORS preflight."""
    request.get_json()


def _change_orders(cursor: Any) -> _Statement:
    cursor.execute("SELECT id, status FROM socketio_pg_demo.orders ORDER BY id")
    orders = cursor.fetchall()
    done = [id for id, status in orders if status == _STATUSES[-1]]
    if done and (len(orders) > 12 or random.random() < 0.15):
        return "DELETE FROM socketio_pg_demo.orders WHERE id = %s", [done[0]]
    open_ones = [(id, status) for id, status in orders if status != _STATUSES[-1]]
    if open_ones and random.random() < 0.65:
        id, status = random.choice(open_ones)
        following = _STATUSES[_STATUSES.index(status) + 1] if status in _STATUSES else _STATUSES[0]
        return "UPDATE socketio_pg_demo.orders SET status = %s WHERE id = %s", [following, id]
    return (
        "INSERT INTO socketio_pg_demo.orders (customer, item, total, card) VALUES (%s, %s, %s, %s)",
        [random.choice(_CUSTOMERS), random.choice(_ITEMS), round(random.uniform(5, 900), 2), "4111 1111 1111 1111"],
    )


def _move_people(cursor: Any) -> _Statement:
    # One statement changes all rows; the watch sends a message per row.
    return (
        "UPDATE socketio_pg_demo.person SET "
        "lat = least(50.95, greatest(50.93, lat + (random() - 0.5) * 0.002)), "
        "lon = least(6.98, greatest(6.94, lon + (random() - 0.5) * 0.004))",
        [],
    )
