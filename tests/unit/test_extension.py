"""The Flask-SocketIO extension on our server, and its WSGI middleware."""

from collections.abc import Callable
from typing import Any

import flask_socketio
import pytest
from flask import Flask, request

from socketio_pg.core.errors import PayloadTooLargeError
from socketio_pg.protocol.extension import SocketIO


@pytest.fixture
def app() -> Flask:
    app = Flask("test")
    app.secret_key = "test"

    @app.get("/page")
    def page() -> str:
        return "a page"

    return app


def test_flask_socketio_handlers_work_and_are_answered(app: Flask) -> None:
    extension = SocketIO(app, async_mode="threading")
    assert app.extensions["socketio"] is extension

    @extension.on("add")
    def add(left: int, right: int) -> int:
        assert request.event["message"] == "add"  # type: ignore[attr-defined]
        return left + right

    @extension.on("fail")
    def fail() -> None:
        raise PayloadTooLargeError("too much", channel="foo")

    client = extension.test_client(app)
    error = {"code": "payload_too_large", "message": "too much"}
    assert client.emit("add", 1, 2, callback=True) == 3
    assert client.emit("fail", callback=True) == {"ok": False, "error": error}
    client.emit("fail")
    assert client.get_received() == [{"name": "error", "args": [{**error, "channel": "foo"}], "namespace": "/"}]
    assert client.emit("nothing", callback=True)["error"]["code"] == "invalid_request"
    assert client.emit("add", 1, 2, callback=True) == 3


def test_handlers_can_be_registered_before_init_app(app: Flask) -> None:
    extension = SocketIO(async_mode="threading")
    extension.on_event("early", lambda: "early", namespace="/chat")

    class Room(flask_socketio.Namespace):  # type: ignore[misc]
        def on_early(self) -> str:
            return "room"

    extension.on_namespace(Room("/room"))
    extension.init_app(app)
    for namespace, answer in (("/chat", "early"), ("/room", "room")):
        client = extension.test_client(app, namespace=namespace)
        assert client.emit("early", callback=True, namespace=namespace) == answer


def test_emit_outside_a_request_reaches_the_room(app: Flask) -> None:
    extension = SocketIO(app, async_mode="threading")
    extension.on_event("join", lambda: flask_socketio.join_room("foo"))
    inside, outside = extension.test_client(app), extension.test_client(app)
    inside.emit("join")
    extension.emit("event", {"payload": 1}, to="foo")
    assert inside.get_received() == [{"name": "event", "args": [{"payload": 1}], "namespace": "/"}]
    assert outside.get_received() == []


@pytest.mark.parametrize(
    ("options", "path"), [({}, "/socket.io/"), ({"path": "/live"}, "/live/"), ({"path": "a/b"}, "/a/b/")]
)
def test_only_requests_below_the_path_go_to_engineio(app: Flask, options: dict[str, str], path: str) -> None:
    SocketIO(app, async_mode="threading", **options)
    client = app.test_client()
    assert client.get("/page").text == "a page"
    assert client.get("/nothing").status_code == 404
    assert client.get(path.rstrip("/") + "x").status_code == 404
    # Engine.IO refuses a request without a version, on a server that can serve clients.
    for requested in (path, f"{path}x", path.rstrip("/")):
        assert client.get(requested, environ_overrides={"eventlet.input": None}).status_code == 400
        assert client.get(requested).status_code == 500


def test_before_request_can_answer_instead(app: Flask) -> None:
    def refuse(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("503 SERVICE UNAVAILABLE", [("Retry-After", "1")])
        return [b"not now"]

    SocketIO(app, async_mode="threading", before_request=refuse)
    client = app.test_client()
    for path in ("/page", "/socket.io/?EIO=4&transport=polling"):
        response = client.get(path)
        assert (response.status_code, response.text, response.headers["Retry-After"]) == (503, "not now", "1")


def test_after_request_follows_each_request_that_was_let_pass(app: Flask) -> None:
    seen: list[tuple[str, str]] = []

    def before(environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        seen.append(("before", environ["PATH_INFO"]))

    SocketIO(
        app,
        async_mode="threading",
        before_request=before,
        after_request=lambda environ: seen.append(("after", environ["PATH_INFO"])),
    )
    client = app.test_client()
    for path in ("/page", "/nothing", "/socket.io/"):
        client.get(path)
        assert seen == [("before", path), ("after", path)]
        seen.clear()
