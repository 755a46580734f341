"""An application with a slow connect handler, and a route that shows the server's state."""

import eventlet

eventlet.monkey_patch()

from flask import Flask, request  # noqa: E402

from socketio_pg.websocket import SocketServer  # noqa: E402

app = Flask(__name__)
server = SocketServer(app)


@server.socketio.on("connect")
def connect() -> None:
    server.socketio.sleep(0.3)


@server.socketio.on("call_me")
def call_me() -> str:
    return f"called back: {server.socketio.call('question', to=request.sid, timeout=5)}"  # type: ignore[attr-defined]


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
