"""An application with its own authentication, which sets the expiry from a header, or fails."""

from socketio_pg.core import green

green.patch()

from typing import Any  # noqa: E402

from flask import Flask, Request  # noqa: E402

from socketio_pg import Claims  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402


def authenticate(request: Request, auth: Any) -> Claims | None:
    assert auth is None
    ends = request.headers.get("X-Ends")
    if ends is None:
        raise ValueError("s3cret")
    return Claims({"sub": "alice", "exp": int(ends)})


app = Flask(__name__)
server = SocketServer(app, authenticate=authenticate)
