"""Flask routes for health, metrics and the test page."""

import hmac
from collections.abc import Callable, Mapping
from pathlib import Path

from flask import Blueprint, Response, abort, jsonify, redirect, request, url_for
from werkzeug.wrappers import Response as BaseResponse

from socketio_pg.core.problems import Problem

STATIC = Path(__file__).parent.parent / "static"


#: Security headers of our own pages and answers. The test page loads the Socket.IO client from its CDN if there is no
#: local copy.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' https://cdn.socket.io; "
    "connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def add_security_headers(response: Response) -> Response:
    """Add security headers to a response. For a blueprint's ``after_request``."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def create_blueprint(
    readiness: Callable[[], Mapping[str, Problem | None]],
    render_metrics: Callable[[], tuple[bytes, str]],
    *,
    enable_test_page: bool,
    metrics_token: str | None = None,
) -> Blueprint:
    """Return routes for ``/healthz`` and ``/readyz``; with ``enable_test_page`` also the page ``/static/test.html``.

    ``readiness`` returns the problem of each part of the server, or None; the server is ready when no part has one.
    ``/metrics`` needs ``metrics_token`` as bearer token; ``render_metrics`` returns its text and content type.
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
        found = readiness()
        shown = {part: "ok" if problem is None else problem.public for part, problem in found.items()}
        problem = next(filter(None, found.values()), None)
        if problem is None:
            return jsonify(status="ready", parts=shown), 200
        return jsonify(status="unavailable", reason=problem.public, parts=shown), 503

    if metrics_token is not None:
        expected = f"Bearer {metrics_token}".encode()

        @blueprint.get("/metrics")
        def metrics() -> Response:
            if not hmac.compare_digest(request.headers.get("Authorization", "").encode("utf-8", "replace"), expected):
                abort(401)
            text, content_type = render_metrics()
            return Response(text, content_type=content_type)

    blueprint.after_request(add_security_headers)

    if enable_test_page:

        @blueprint.get("/socket-test")
        def socket_test() -> BaseResponse:
            return redirect(url_for("socketio_pg.static", filename="test.html"))

    return blueprint
