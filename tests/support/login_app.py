"""An application with its own login: a Flask session, or tokens for clients without a session."""

from socketio_pg.core import green

green.patch()

from typing import Any  # noqa: E402

from flask import Flask, Request, request, session  # noqa: E402

from socketio_pg import Claims, UnauthorizedError  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402
from tests.support.all_workers import AllWorkers  # noqa: E402
from tests.support.clock import add_clock  # noqa: E402

app = Flask(__name__)
app.secret_key = "of the tests"


def authenticate(handshake: Request, auth: Any) -> Claims | None:
    assert handshake.path == "/socket.io/" or handshake.path.startswith("/api/")
    if isinstance(auth, dict) and "token" in auth:
        if auth["token"] == "fails":
            raise ValueError("s3cret")
        if auth["token"] == "wrong":
            raise UnauthorizedError("this is not the password")
        if auth["token"] == "nonsense":
            return {"sub": "nonsense"}  # type: ignore[return-value]
        return Claims(auth["token"])
    user = session.get("user")
    return None if user is None else Claims({"sub": user, "subscribe": [f"user:{user}"]})


server = SocketServer(app, authenticate=authenticate)
add_clock(app)


@app.post("/login/<user>")
def login(user: str) -> str:
    session["user"] = user
    return "welcome"


#: (namespace, subject) for each call of the application's connect handlers.
connected: list[list[Any]] = []


def record(namespace: str) -> None:
    claims = server.claims(request.sid)  # type: ignore[attr-defined]
    connected.append([namespace, None if claims is None else claims.subject])
    if claims is not None and claims.subject == "unwelcome":
        raise ConnectionRefusedError("not you")


@server.socketio.on("connect")
def connect() -> None:
    record("/")


@server.socketio.on("connect", namespace="/chat")
def connect_chat() -> None:
    record("/chat")


@server.socketio.on("whoami")
def whoami() -> str | None:
    claims = server.claims(request.sid)  # type: ignore[attr-defined]
    return None if claims is None else claims.subject


states = AllWorkers(app, "state", lambda _: {"connected": connected, "sessions": len(server.access.sessions)})


@app.get("/state")
def state() -> dict[str, Any]:
    """Return those of all workers."""
    found = states.call()
    return {
        "connected": [one for worker in found for one in worker["connected"]],
        "sessions": sum(worker["sessions"] for worker in found),
    }
