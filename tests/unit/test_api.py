"""Answers of the HTTP API and of /metrics to requests that match no route, in an application with routes of its own."""

import pytest
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from socketio_pg.core.config import Settings
from socketio_pg.websocket import SocketServer
from tests.unit.conftest import NOWHERE

pytestmark = pytest.mark.usefixtures("socket_server")


@pytest.fixture
def app() -> Flask:
    """An application that has routes below /api/."""
    app = Flask("users_app", static_folder=None)
    SocketServer(app, NOWHERE, settings=Settings())
    app.post("/api/users", endpoint="users")(lambda: "created")
    app.get("/api/list/", endpoint="list")(lambda: "listed")
    return app


def test_unknown_path_below_api_is_json(app: Flask) -> None:
    answer = app.test_client().get("/api/nothing")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "invalid_request")
    assert app.test_client().post("/api/nothing", json={}).get_json()["error"]["message"] == "no such path"


def test_other_paths_are_left_to_flask(app: Flask) -> None:
    assert "html" in app.test_client().get("/nothing").content_type
    assert app.test_client().post("/api/users").text == "created"
    assert app.test_client().get("/api/users").status_code == 405
    assert app.test_client().get("/api/list").status_code == 308


@pytest.mark.parametrize("handled", [404, HTTPException, Exception], ids=["status", "HTTPException", "Exception"])
def test_error_handlers_of_the_application_answer_for_its_paths(app: Flask, handled: int | type[Exception]) -> None:
    app.register_error_handler(handled, lambda error: Response("mine", 404))
    assert app.test_client().get("/api/nothing").text == "mine"
    wrong = app.test_client().get("/api/publish")
    assert (wrong.status_code, wrong.get_json()["error"]["message"]) == (405, "this path supports only OPTIONS, POST")
    assert wrong.headers["Allow"] == "OPTIONS, POST"


def test_metrics_without_a_token_say_how_to_switch_them_on(app: Flask) -> None:
    answer = app.test_client().get("/metrics")
    assert (answer.status_code, answer.mimetype) == (404, "text/plain")
    assert "set METRICS_TOKEN" in answer.text
    assert "Authorization: Bearer" in answer.text


def test_metrics_of_the_application_are_left_to_it(app: Flask) -> None:
    app.get("/metrics")(lambda: "mine")
    assert app.test_client().get("/metrics").text == "mine"


def test_metrics_with_a_wrong_token_say_which_one_they_need() -> None:
    app = Flask("users_app", static_folder=None)
    SocketServer(app, NOWHERE, settings=Settings(metrics_token="secret of the metrics"))
    answer = app.test_client().get("/metrics", headers={"Authorization": "Bearer x"})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "METRICS_TOKEN" in answer.text
    assert "secret" not in answer.text
