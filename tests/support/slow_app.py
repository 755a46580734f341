"""An application with a slow connect handler, and a route that shows the server's state.

The handler takes ``SLOW_CONNECT`` seconds. With ``SLOW_LOGIN`` the login takes as many as the client's ``auth`` says;
null means until a test asks for ``/release``.
"""

from socketio_pg.core import green

green.patch()

import os  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from flask import Flask, Request, request  # noqa: E402

from socketio_pg import Claims  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402

released = green.Event()


def authenticate(handshake: Request, auth: Any) -> Claims:
    if auth["seconds"] is None:
        released.wait()
    else:
        green.sleep(auth["seconds"])
    return Claims({"sub": "slow"})


app = Flask(__name__)
server = SocketServer(app, authenticate=authenticate if os.environ.get("SLOW_LOGIN") else None)


@server.socketio.on("connect")
def connect() -> None:
    server.socketio.sleep(float(os.environ.get("SLOW_CONNECT", "0.3")))


@server.socketio.on("call_me")
def call_me() -> str:
    return f"called back: {server.socketio.call('question', to=request.sid, timeout=60)}"  # type: ignore[attr-defined]


@app.get("/release")
def release() -> str:
    released.send()
    return "done"


@app.get("/state")
def state() -> dict[str, int]:
    io = server.socketio.server
    return {
        "subscribers": len(server.pubsub.hub),
        "namespaces": len(io.manager.rooms),
        "pending": len(io.manager.pending_connect) + len(io.manager.pending_disconnect),
        "requests": len(io.environ),
        "sockets": len(io.eio.sockets),
    }


@app.get("/memory")
def memory() -> dict[str, int]:
    engine = server.socketio.server.eio
    return {
        "sockets": len(engine.sockets),
        "identifying": engine.identifying,
        "kilobytes": int(Path("/proc/self/status").read_text("utf-8").split("VmRSS:")[1].split()[0]),
    }
