"""Somebody's own application, with binary data, namespaces and callbacks; it tells everything that clients can grow."""

import eventlet

eventlet.monkey_patch()

import gc  # noqa: E402
import os  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import flask_socketio  # noqa: E402
import greenlet  # type: ignore[import-untyped]  # noqa: E402
from flask import Flask, request  # noqa: E402

from socketio_pg.logs import configure_logging  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402

configure_logging("INFO")
app = Flask(__name__)
server = SocketServer(app, binary=os.environ.get("BINARY") == "1")
io = server.socketio
#: Handlers that must never run on a client's word.
forged: list[str] = []


def sid() -> str:
    return str(request.sid)  # type: ignore[attr-defined]


def connect(auth: Any) -> None:
    flask_socketio.emit("auth", auth)


for namespace in ("/", "/custom"):
    io.on_event("connect", connect, namespace=namespace)
    io.on_event("message", lambda *data: flask_socketio.emit("message-back", data), namespace=namespace)
    io.on_event("message-with-ack", lambda *data: data, namespace=namespace)
    io.on_event("leave", lambda: flask_socketio.disconnect(), namespace=namespace)


@io.on("connect_error")
@io.on("disconnecting")
@io.on("newListener")
def never(*_: object) -> None:
    forged.append("a reserved event")


@io.on("*")
def anything(event: str, *data: Any) -> list[Any]:
    if event == "*":
        forged.append(event)
    return [event, sid(), *data]


@io.on("raise")
def fail() -> None:
    raise ValueError("s3cret")


@io.on("call me")
def call_me(question: Any) -> Any:
    return io.call("question", question, to=sid(), timeout=5)


@app.get("/state")
def state() -> dict[str, Any]:
    stock = io.server
    gc.collect()
    status = Path("/proc/self/status").read_text("utf-8")
    return {
        "forged": forged,
        "green": sum(isinstance(found, greenlet.greenlet) and not found.dead for found in gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "sockets": len(stock.eio.sockets),
        "requests": len(stock.environ),
        "namespaces": len(stock.manager.rooms),
        "rooms": sum(map(len, stock.manager.rooms.values())),
        "pending": len(stock.manager.pending_connect) + len(stock.manager.pending_disconnect),
        "callbacks": len(stock.manager.callbacks),
        "attachments": len(stock._binary_packet),
        "sessions": len(server.access.sessions),
        "subscribers": len(server.pubsub.hub),
        "channels": len(server.pubsub.hub.channels()),
        "kilobytes": int(status.split("VmRSS:")[1].split()[0]),
    }
