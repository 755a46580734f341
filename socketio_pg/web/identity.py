"""Authenticates the requests of the HTTP API, and counts them for their addresses."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from socketio_pg.access.authentication import Authenticator
from socketio_pg.access.tokens import Claims
from socketio_pg.core.errors import UnauthorizedError
from socketio_pg.gateway.admission import Admission


class Identity:
    """Tells who sends a request. ``start()`` connects the server; ``leeway`` is JWT_LEEWAY."""

    def __init__(
        self, authenticator: Authenticator, admission: Admission, start: Callable[[], None], leeway: float
    ) -> None:
        self._authenticator = authenticator
        self._admission = admission
        self._start = start
        self._leeway = leeway

    def identify(self, environ: dict[str, Any]) -> Claims | None:
        """Return the claims of a request; None for an anonymous client. May wait. Raises as the authenticator."""
        self._start()
        with self._admission.authenticating(environ):
            claims = self._authenticator.identify(environ, None)
        if claims is not None:
            self.require_valid(claims)  # those of an application's hook; tokens were checked above
        return claims

    def require_valid(self, claims: Claims) -> None:
        """Raise :class:`UnauthorizedError` if the claims have expired."""
        if claims.expires_at is not None and claims.expires_at + self._leeway <= time.time():
            raise UnauthorizedError("this login has expired")

    def name(self, environ: dict[str, Any], claims: Claims | None) -> str:
        """Return the name under which the rate limits count the client."""
        if claims is None:
            return f"address {self._admission.address(environ)}"
        name = claims.text if claims.subject is None else claims.subject
        return f"client {hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
