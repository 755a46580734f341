"""Plain Flask-SocketIO on eventlet with a LISTEN green thread: a typical hand-written server.

Same wire protocol as socketio_pg. bench/servers.py runs it under gunicorn's eventlet worker, which monkey-patches.
"""

import json
import os
import select

import eventlet
import psycopg2
from eventlet.event import Event
from eventlet.pools import Pool
from flask import Flask
from flask_socketio import SocketIO, join_room
from psycopg2.extensions import quote_ident

DATABASE_URL = os.environ["DATABASE_URL"]

app = Flask(__name__)
socketio = SocketIO(app, async_mode="eventlet", cors_allowed_origins="*")


def connect() -> psycopg2.extensions.connection:
    connection = psycopg2.connect(DATABASE_URL)
    connection.autocommit = True
    return connection


pool = Pool(max_size=10, create=connect)
listening: dict[str, Event] = {}
pending: list[str] = []


def listen() -> None:
    connection = connect()
    cursor = connection.cursor()
    while True:
        while pending:
            channel = pending.pop(0)
            cursor.execute(f"LISTEN {quote_ident(channel, connection)}")
            listening[channel].send()
        connection.poll()
        while connection.notifies:
            notify = connection.notifies.pop(0)
            message = {"channel": notify.channel, "payload": json.loads(notify.payload)}
            socketio.emit("event", message, to=notify.channel)
        select.select([connection], [], [], 0.05)


def subscribe(message: dict[str, str]) -> dict[str, bool]:
    channel = message["channel"]
    if channel not in listening:
        listening[channel] = Event()
        pending.append(channel)
    listening[channel].wait()
    join_room(channel)
    return {"ok": True}


def publish(message: dict[str, object]) -> dict[str, bool]:
    with pool.item() as connection:
        connection.cursor().execute("SELECT pg_notify(%s, %s)", (message["channel"], json.dumps(message["payload"])))
    return {"ok": True}


@app.get("/readyz")
def ready() -> str:
    return "ready"


socketio.on_event("subscribe", subscribe)
socketio.on_event("publish", publish)
eventlet.spawn(listen)
