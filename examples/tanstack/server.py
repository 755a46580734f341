"""A Flask application whose requests change orders, and answer with the number of their transaction.

    pip install socketio_pg psycopg2-binary
    export DATABASE_URL=postgresql:///shop AUTO_INIT=1 LIVE_TABLES=public.tanstack_orders LIVE_TABLE_ROLE=orders_reader
    gunicorn -c python:socketio_pg.gunicorn_config --worker-class eventlet --workers 1 --bind 127.0.0.1:8000 server:app

The table and the role are in orders.sql: psql "$DATABASE_URL" -f orders.sql, after `socketio-pg init`.
"""

import os
from typing import Any

import psycopg2
from flask import Flask, request

from socketio_pg.websocket import SocketServer

app = Flask(__name__)
server = SocketServer(app=app, dsn=os.environ["DATABASE_URL"])

#: Type of a change → its statement. The client has no say in `changes`.
STATEMENTS = {
    "insert": "INSERT INTO tanstack_orders (id, customer, status) VALUES (%(id)s, %(customer)s, %(status)s)",
    "update": "UPDATE tanstack_orders SET customer = coalesce(%(customer)s, customer),"
    " status = coalesce(%(status)s, status), changes = changes + 1 WHERE id = %(id)s",
    "delete": "DELETE FROM tanstack_orders WHERE id = %(id)s",
}


@app.post("/orders")
def change_orders() -> tuple[dict[str, Any], int]:
    """Make a list of changes in one transaction: all or none."""
    try:
        with psycopg2.connect(os.environ["DATABASE_URL"]) as connection, connection.cursor() as cursor:
            for one in request.get_json():
                changes = {"customer": None, "status": None} | one["changes"]
                cursor.execute(STATEMENTS[one["type"]], {**changes, "id": one["id"]})
            cursor.execute("SELECT pg_current_xact_id()::text")
            [[txid]] = cursor.fetchall()
    except psycopg2.IntegrityError as error:
        return {"error": error.diag.message_primary}, 409
    return {"txid": txid}, 200
