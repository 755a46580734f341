"""Flask routes beside the sockets: health and the demo page."""

from collections.abc import Callable
from pathlib import Path

from flask import Blueprint, Response, jsonify, redirect, url_for
from werkzeug.wrappers import Response as BaseResponse

STATIC = Path(__file__).parent / "static"


def create_blueprint(readiness: Callable[[], str | None], *, enable_test_page: bool) -> Blueprint:
    """``/healthz`` and ``/readyz``; with ``enable_test_page`` the page, at ``/static/test.html``.

    ``readiness`` returns None, or why the server cannot serve clients now.
    """
    blueprint = Blueprint(
        "socketio_pg",
        __name__,
        static_folder=STATIC if enable_test_page else None,
        static_url_path="/static" if enable_test_page else None,
    )

    @blueprint.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @blueprint.get("/readyz")
    def readyz() -> tuple[Response, int]:
        problem = readiness()
        if problem is None:
            return jsonify(status="ready"), 200
        return jsonify(status="unavailable", reason=problem), 503

    if enable_test_page:

        @blueprint.get("/socket-test")
        def socket_test() -> BaseResponse:
            return redirect(url_for("socketio_pg.static", filename="test.html"))

    return blueprint
