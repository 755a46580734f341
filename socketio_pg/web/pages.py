"""Flask routes for health, metrics and the playground."""

import functools
import hmac
from collections.abc import Callable, Mapping
from pathlib import Path

from flask import Blueprint, Response, jsonify, redirect, request, send_from_directory
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as BaseResponse

from socketio_pg.core.problems import Problem

STATIC = Path(__file__).parent.parent / "static"
#: The helper for browsers, and the Socket.IO client that it needs: also served without the playground.
SCRIPTS = ("socketio_pg.js", "vendor/socket.io.min.js")


#: Security headers of our own pages and answers. The playground loads the Socket.IO client from its CDN if there is no
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


def redirect_here(name: str) -> BaseResponse:
    """Redirect from a route of the first level to another one.

    The address is relative: a proxy may have removed a prefix from the path, which the server does not know.
    """
    if not request.environ["PATH_INFO"]:  # the prefix itself, without a slash
        name = f"{request.script_root.rpartition('/')[2]}/{name}"
    return redirect(name)


def add_security_headers(response: Response) -> Response:
    """Add security headers to a response. For a blueprint's ``after_request``."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


_HEADER = "send it as the header 'Authorization: Bearer …'."


def plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of plain text."""
    return add_security_headers(Response(f"{text}\n", status, headers, content_type="text/plain; charset=utf-8"))


def create_blueprint(
    readiness: Callable[[], Mapping[str, Problem | None]],
    render_metrics: Callable[[], tuple[bytes, str]],
    *,
    enable_test_page: bool,
    metrics_token: str | None = None,
) -> Blueprint:
    """Return routes for ``/healthz``, ``/readyz`` and the scripts for pages of the application (:data:`SCRIPTS`).

    With ``enable_test_page`` all files of `static/` are served, among them the page ``/static/test.html``.
    ``readiness`` returns the problem of each part of the server, or None; the server is ready when no part has one.
    ``/metrics`` needs ``metrics_token`` as bearer token, and without one says how to switch it on. ``render_metrics``
    returns its text and content type.
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
                return plain(401, f"/metrics needs METRICS_TOKEN: {_HEADER}", {"WWW-Authenticate": "Bearer"})
            text, content_type = render_metrics()
            return Response(text, content_type=content_type)

    else:
        # Not a route: the application may have its own /metrics.
        @blueprint.before_app_request
        def explain_metrics() -> Response | None:
            if request.path == "/metrics" and isinstance(request.routing_exception, NotFound):
                return plain(404, f"/metrics is off: set METRICS_TOKEN to a random text, and {_HEADER}")
            return None

    blueprint.after_request(add_security_headers)

    if enable_test_page:

        @blueprint.get("/socket-test")
        def socket_test() -> BaseResponse:
            return redirect_here("static/test.html")

    else:
        for name in SCRIPTS:
            send = functools.partial(send_from_directory, STATIC, name)
            blueprint.add_url_rule(f"/static/{name}", name.replace(".", "_"), send)

    return blueprint
