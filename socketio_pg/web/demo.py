"""The demos of the development server at ``/demo/``: pages, and the SQL that they run in a schema of their own."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, request

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.postgres.database import Database
from socketio_pg.web.demo_votes import add_votes, demo_cursor
from socketio_pg.web.pages import STATIC, add_security_headers

_STATUSES = ("new", "paid", "packed", "shipped")
_CUSTOMERS = ("Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Hedy", "Ken", "Margaret", "Radia")
_ITEMS = ("keyboard", "screen", "lamp", "desk", "chair", "headphones", "notebook", "cable", "webcam", "microphone")

#: A statement with its parameters.
_Statement = tuple[str, Sequence[object]]


def create_demo_blueprint(database: Database) -> Blueprint:
    """Return the routes below ``/demo/``. Any client that can reach them can change tables in ``socketio_pg_demo``."""
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
        return Response("export const hasDemos = true;\n", mimetype="text/javascript")

    @blueprint.errorhandler(SocketIOPGError)
    def failed(error: SocketIOPGError) -> tuple[Response, int]:
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
                cursor.execute((STATIC / "demo" / f"{name}.sql").read_text("utf-8"))
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
