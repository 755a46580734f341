"""The requests to sign in to the inspector, and out."""

from datetime import datetime, timezone
from typing import Any

from flask import Response, current_app, request

from socketio_pg.core.errors import InvalidRequestError, UnauthorizedError
from socketio_pg.core.messages import WireJSON
from socketio_pg.inspector.access import COOKIE, SESSION_SECONDS, TICKET_SECONDS, InspectorAccess
from socketio_pg.inspector.everywhere import Everywhere
from socketio_pg.inspector.passes import SESSION, TICKET, Passes, Reader
from socketio_pg.inspector.routes import Routes, reader
from socketio_pg.version import __version__

#: The maximum length of a token, in characters: as `access/tokens` accepts.
MAX_TOKEN = 16_384

#: The other pages, for the navigation → an endpoint of each.
_PAGES = {"playground": "socketio_pg.socket_test", "demos": "socketio_pg_demo.index"}


class SessionApi:
    """The request handlers."""

    def __init__(self, access: InspectorAccess, passes: Passes, everywhere: Everywhere) -> None:
        self._access = access
        self._passes = passes
        self._everywhere = everywhere

    def add_to(self, routes: Routes) -> None:
        routes.get("session", self.session, needs="nothing")
        routes.post("login", self.login, needs="nothing")
        routes.post("logout", self.logout, needs="nothing")
        routes.post("ticket", self.ticket)

    def session(self) -> dict[str, Any]:
        """``GET /inspector/api/session``: who is signed in, if anybody."""
        return self._describe(self._access.identify(request.environ))

    def login(self, body: dict[str, Any]) -> Response:
        """``POST /inspector/api/login``: sets the cookie."""
        token = body.get("token")
        if not isinstance(token, str) or not token.strip() or len(token) > MAX_TOKEN:
            raise InvalidRequestError(f"token must be a text of 1 to {MAX_TOKEN} characters")
        if not self._access.ways:
            raise UnauthorizedError("no token is configured: set INSPECTOR_TOKEN")
        found = self._access.sign_in(request.environ, token.strip())
        response = _json(self._describe(found))
        # Without a path: that of this address then, which has the prefix that a proxy may have removed.
        response.set_cookie(
            COOKIE,
            self._passes.issue(SESSION, found, SESSION_SECONDS),
            expires=None if found.until is None else datetime.fromtimestamp(found.until, timezone.utc),
            path=None,
            secure=self._access.is_secure(request.environ),
            httponly=True,
            samesite="Strict",
        )
        return response

    def logout(self, body: dict[str, Any]) -> Response:
        """``POST /inspector/api/logout``: removes the cookie."""
        response = _json(self._describe(None))
        response.set_cookie(
            COOKIE, "", max_age=0, expires=0, path=None, secure=self._access.is_secure(request.environ),
            httponly=True, samesite="Strict",
        )  # fmt: skip
        return response

    def ticket(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST /inspector/api/ticket``: for the `auth` of the namespace, whose requests do not have the cookie."""
        return {"ticket": self._passes.issue(TICKET, reader(), TICKET_SECONDS), "seconds": TICKET_SECONDS}

    def _describe(self, found: Reader | None) -> dict[str, Any]:
        own = self._everywhere.own
        return {
            "signed_in": found is not None,
            "may_act": found is not None and found.may_act,
            "by": None if found is None else found.by,
            "name": None if found is None else found.name,
            "until": None if found is None else found.until,
            "sign_in": self._access.ways,
            "pages": {name: endpoint in current_app.view_functions for name, endpoint in _PAGES.items()},
        } | ({} if found is None else {"version": __version__, "node": own.name, "worker": own.worker})


def _json(value: dict[str, Any]) -> Response:
    return Response(WireJSON.dumps(value), content_type="application/json")
