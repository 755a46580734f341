"""The requests of control, for whoever has ADMIN_TOKEN: docs/http.md."""

import hmac
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, request

from socketio_pg.control.control import DEFAULT_CONNECTIONS, MAX_CONNECTIONS, Control, Done
from socketio_pg.core.errors import InvalidRequestError, UnauthorizedError
from socketio_pg.core.messages import WireJSON
from socketio_pg.gateway.admission import Admission
from socketio_pg.web.bodies import read_object, require_json


class ControlApi:
    """The request handlers. ``start()`` connects the server; ``max_bytes`` limits a request's body."""

    def __init__(
        self, token: str, control: Control, admission: Admission, start: Callable[[], None], max_bytes: int
    ) -> None:
        self._expected = f"Bearer {token}".encode()
        self._control = control
        self._admission = admission
        self._start = start
        self._max_bytes = max_bytes

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes to the blueprint of the HTTP API, which answers their errors."""
        user = "/users/<socketio_pg_channel:sub>"
        for path, method, handler in (
            ("/connections", "GET", self.connections),
            ("/connections/<socketio_pg_channel:sid>", "DELETE", self.disconnect_connection),
            (f"{user}/connections", "DELETE", self.disconnect_user),
            (f"{user}/subscriptions", "DELETE", self.unsubscribe_user),
            (f"{user}/messages", "POST", self.send_to_user),
        ):
            blueprint.add_url_rule(path, handler.__name__, handler, methods=[method], merge_slashes=False)

    def connections(self) -> Response:
        """``GET /api/connections?sub=…``."""
        self._require_token()
        limit = _one("limit")
        if limit is not None and not (limit.isdecimal() and len(limit) <= 4):
            raise InvalidRequestError(f"limit must be a whole number from 1 to {MAX_CONNECTIONS}")
        found = self._control.connections(
            _one("sub"), _one("sid"), DEFAULT_CONNECTIONS if limit is None else int(limit), _one("room")
        )
        return _json(found.to_wire())

    def disconnect_connection(self, sid: str) -> Response:
        """``DELETE /api/connections/{sid}``."""
        self._require_token()
        return _done(self._control.disconnect_connection(sid))

    def disconnect_user(self, sub: str) -> Response:
        """``DELETE /api/users/{sub}/connections``."""
        self._require_token()
        return _done(self._control.disconnect_user(sub))

    def unsubscribe_user(self, sub: str) -> Response:
        """``DELETE /api/users/{sub}/subscriptions?channel=…``."""
        self._require_token()
        channel = _one("channel")
        if channel is None:
            raise InvalidRequestError("channel is missing: '*' ends all subscriptions")
        return _done(self._control.unsubscribe_user(sub, channel))

    def send_to_user(self, sub: str) -> Response:
        """``POST /api/users/{sub}/messages``."""
        self._require_token()
        require_json()
        body = read_object(self._max_bytes)
        if "payload" not in body:
            raise InvalidRequestError("payload is missing")
        return _done(self._control.send_to_user(sub, body["payload"]))

    def _require_token(self) -> None:
        """Return when the request has ADMIN_TOKEN, and the server is running. Raises :class:`UnauthorizedError`."""
        environ = request.environ
        self._admission.check_attempt(environ)
        # Counts a wrong one for its address, as other tokens.
        with self._admission.authenticating(environ):
            given = request.headers.get("Authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(given, self._expected):
                raise UnauthorizedError("send ADMIN_TOKEN as the header 'Authorization: Bearer …'")
        self._start()


def _one(name: str) -> str | None:
    """Return a parameter of the query; None when it is missing."""
    values = request.args.getlist(name)
    if len(values) > 1:
        raise InvalidRequestError(f"{name} must not appear twice")
    return values[0] if values else None


def _done(done: Done) -> Response:
    return _json(done.to_wire())


def _json(value: dict[str, Any]) -> Response:
    return Response(WireJSON.dumps(value), content_type="application/json")
