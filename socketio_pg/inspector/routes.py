"""The inspector's routes: the files of the page, and the JSON API with sign-in, rights and errors.

A part of the API is an object with a method ``add_to(routes)``, which calls :meth:`Routes.get` and :meth:`Routes.post`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from flask import Blueprint, Response, g, redirect, request, send_from_directory
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.wrappers import Response as BaseResponse

from socketio_pg.core import metrics
from socketio_pg.core.errors import ForbiddenError, SocketIOPGError, UnauthorizedError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import WireJSON
from socketio_pg.engine.polling import BodyError
from socketio_pg.gateway.admission import INSPECTOR_API
from socketio_pg.inspector.access import InspectorAccess
from socketio_pg.inspector.passes import Reader
from socketio_pg.web import api_errors
from socketio_pg.web.bodies import close_if_unread, read_object, require_json
from socketio_pg.web.pages import STATIC, add_security_headers, plain

logger = logging.getLogger("socketio_pg.inspector")

#: What a request needs: nothing, somebody who is signed in, or one who may act.
Right = Literal["nothing", "read", "act"]
#: Returns the answer of a GET.
Getter = Callable[[], dict[str, Any]]
#: Gets the object in the body of a POST, and returns the answer.
Poster = Callable[[dict[str, Any]], dict[str, Any] | Response]

#: The maximum size of a body of somebody who may not be signed in: a token.
MAX_ANONYMOUS_BYTES = 65_536
FILES = STATIC / "inspector"
#: Files of the other pages that the page uses, too.
SHARED = ("page.css", "sql.js", "favicon.svg")
#: The page runs no script, and loads no file, but its own: no inline ones either.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_OFF = (
    "The inspector is off. Set INSPECTOR_TOKEN to a random text, such as that of 'openssl rand -hex 32', and sign in "
    "with it; INSPECTOR_ADMIN_TOKEN lets one act, too. In development (DEBUG=1) it is on for the own machine."
)


class Part(Protocol):
    """A part of the API."""

    def add_to(self, routes: "Routes", /) -> None: ...


def reader() -> Reader:
    """Return who has sent the current request, which needs somebody who is signed in."""
    found = g.socketio_pg_reader
    assert isinstance(found, Reader)
    return found


class Routes:
    """Adds the API's requests to a blueprint. ``start()`` connects the server; ``max_bytes`` limits a body."""

    def __init__(
        self, blueprint: Blueprint, access: InspectorAccess, start: Callable[[], None], max_bytes: int
    ) -> None:
        self._blueprint = blueprint
        self._access = access
        self._start = start
        self._max_bytes = max_bytes
        #: The methods of each path below /inspector/.
        self.methods: dict[str, list[str]] = {}

    def get(self, path: str, handler: Getter, *, needs: Right = "read") -> None:
        """Answer ``GET /inspector/api/PATH`` with what ``handler()`` returns, for those who are signed in."""

        def answer() -> Response:
            self._admit(needs)
            return _json(handler())

        self._add("GET", path, answer)

    def post(self, path: str, handler: Poster, *, needs: Right = "read") -> None:
        """Answer ``POST /inspector/api/PATH`` with what ``handler(body)`` returns. Logs the requests that act."""

        def answer() -> Response:
            self._access.require_same_origin(request.environ)
            self._admit(needs)
            require_json()
            body = read_object(MAX_ANONYMOUS_BYTES if needs == "nothing" else self._max_bytes)
            if needs == "act":
                logger.info("inspector: %s%s, signed in with %s", path, _objects(body), reader())
            found = handler(body)
            return found if isinstance(found, Response) else _json(found)

        self._add("POST", path, answer)

    def _add(self, method: str, path: str, answer: Callable[[], Response]) -> None:
        self.methods.setdefault(f"api/{path}", []).append(method)
        endpoint = f"{method.lower()}_{path.replace('/', '_')}"
        self._blueprint.add_url_rule(f"/api/{path}", endpoint, answer, methods=[method])

    def _admit(self, needs: Right) -> None:
        self._start()
        if needs == "nothing":
            return
        found = self._access.identify(request.environ)
        if found is None:
            raise UnauthorizedError("sign in to the inspector")
        if needs == "act" and not found.may_act:
            raise ForbiddenError("this sign-in may only read: sign in with INSPECTOR_ADMIN_TOKEN to act")
        g.socketio_pg_reader = found


def create_inspector_blueprint(
    access: InspectorAccess, parts: Sequence[Part], start: Callable[[], None], max_bytes: int
) -> Blueprint:
    """Return the routes below ``/inspector/``: the page's files, and those of ``parts`` below ``/inspector/api/``."""
    blueprint = Blueprint("socketio_pg_inspector", __name__, url_prefix="/inspector")
    limited_log = RateLimitedLog(logger)
    routes = Routes(blueprint, access, start, max_bytes)
    for part in parts:
        part.add_to(routes)

    @blueprint.get("")
    def index() -> BaseResponse:
        # Relative: a proxy may have removed a prefix from the path, which the server does not know.
        return redirect("inspector/")

    @blueprint.get("/")
    def page() -> Response:
        return _file("index.html")

    @blueprint.get("/<path:name>")
    def file(name: str) -> Response:
        if name in routes.methods:
            raise MethodNotAllowed(routes.methods[name])
        return _file(name)

    def _file(name: str) -> Response:
        response = send_from_directory(STATIC if name in SHARED else FILES, name)
        response.headers["Cache-Control"] = "no-cache"
        return response

    @blueprint.errorhandler(Exception)
    def respond(error: Exception) -> Response:
        status = None
        if isinstance(error, HTTPException):
            if not request.path.startswith(INSPECTOR_API):
                return plain(error.code or 500, error.name)
            status, error = api_errors.of_http(error)
        elif isinstance(error, BodyError):
            status, error = api_errors.of_body(error)
        elif isinstance(error, api_errors.NotJSONError):
            status = error.status
        elif not isinstance(error, SocketIOPGError):
            limited_log.failure("a request of the inspector failed")
            error = SocketIOPGError("the server failed to handle this")
        metrics.errors.labels(error.code).inc()
        body, code, headers = api_errors.answer(error, status or api_errors.STATUSES.get(error.code, 400))
        return Response(body, code, headers)

    @blueprint.before_app_request
    def answer_without_route() -> Response | None:
        """Answer requests below /inspector/api/ that match no route, for which Flask knows no blueprint."""
        problem = request.routing_exception
        if not isinstance(problem, NotFound | MethodNotAllowed) or not request.path.startswith(INSPECTOR_API):
            return None
        return complete(respond(problem))

    def complete(response: Response) -> Response:
        if request.path.startswith(INSPECTOR_API):
            response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = _POLICY
        add_security_headers(response)
        return close_if_unread(response)

    def link() -> Response:
        return add_security_headers(Response("export const hasInspector = true;\n", mimetype="text/javascript"))

    blueprint.after_request(complete)
    # For the link of the playground: the file of this name says false.
    blueprint.record(lambda state: state.app.add_url_rule("/static/inspector_link.js", "inspector_link", link))
    return blueprint


def create_off_blueprint() -> Blueprint:
    """Return what explains how to switch the inspector on. It adds no route: the application may have its own."""
    blueprint = Blueprint("socketio_pg_inspector_off", __name__)

    @blueprint.before_app_request
    def explain() -> Response | None:
        path = request.path
        if (path == "/inspector" or path.startswith("/inspector/")) and isinstance(request.routing_exception, NotFound):
            return plain(404, _OFF)
        return None

    return blueprint


def _objects(body: dict[str, Any]) -> str:
    """Return what a request acts on, for the log: names only, neither payloads nor claims."""
    named = [(name, body[name]) for name in ("channel", "table", "enabled", "sid", "sub") if name in body]
    return "".join(f" {name}={value!r:.200}" for name, value in named if isinstance(value, str | bool))


def _json(value: dict[str, Any]) -> Response:
    return Response(WireJSON.dumps(value), content_type="application/json")
