"""An application that uses Flask-SocketIO's API, on one of several nodes, and is controlled by HTTP requests."""

from socketio_pg.core import green

green.patch()

import os  # noqa: E402
from typing import Any  # noqa: E402

from flask import Flask, request  # noqa: E402
from flask_socketio import emit, join_room  # noqa: E402

from socketio_pg.engine.router import Router  # noqa: E402
from socketio_pg.log.relay import Relay  # noqa: E402
from socketio_pg.recovery.keeping import Keeping  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402

# Tests wait for what a node reports with its heartbeat.
Relay.beat_interval = 1.0
# With several workers, tests choose the worker of a client: it connects until it gets that one.
Router.slack = 1_000_000
# All sessions that tests recover are older than those that may not be stored yet.
Keeping.young = 0.0

app = Flask(__name__)
server = SocketServer(app, binary=True)
io = server.socketio
#: [sid, reason] of the clients that have disconnected from this node.
left: list[list[str]] = []


@io.on("join")
def join(room: str) -> None:
    join_room(room)


@io.on("reply")
def reply(data: Any) -> None:
    emit("news", data)


@io.on("disconnect")
def disconnect(reason: str) -> None:
    left.append([request.sid, reason])  # type: ignore[attr-defined]


@io.on("join", namespace="/other")
def join_other(room: str) -> None:
    join_room(room, namespace="/other")


@app.post("/emit")
def emit_() -> str:
    body = request.get_json()
    data = body.pop("data")
    if "binary" in body:
        data = {"bytes": bytes.fromhex(body.pop("binary")), "more": data}
    io.server.emit(body.pop("event", "news"), tuple(data) if body.pop("several", False) else data, **body)
    return "done"


@app.post("/ask/<sid>")
def ask(sid: str) -> Any:
    answer = io.server.call("question", request.get_json(), to=sid, timeout=60)
    return {"bytes": answer.hex()} if isinstance(answer, bytes) else {"answer": answer}


@app.post("/disconnect/<sid>")
def disconnect_(sid: str) -> str:
    io.server.disconnect(sid)
    return "done"


@app.route("/rooms/<room>/<sid>", methods=["PUT", "DELETE"])
def member(room: str, sid: str) -> str:
    (io.server.enter_room if request.method == "PUT" else io.server.leave_room)(sid, room)
    return "done"


@app.delete("/rooms/<room>")
def close(room: str) -> str:
    io.server.close_room(room)
    return "done"


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())


@io.on("pid")
def pid_of_client() -> int:
    return os.getpid()


@app.get("/state")
def state() -> Any:
    return {"left": left, "callbacks": len(io.server.manager.callbacks)}
