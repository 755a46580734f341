"""Requests before they are anybody's: what is refused while draining, for its address, or for its origin."""

from collections.abc import Callable, Iterable
from typing import Any

from socketio_pg.core import metrics
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import RateLimitedError
from socketio_pg.engine.http import Query
from socketio_pg.engine.origins import client_address, is_allowed
from socketio_pg.gateway.limits import AddressLimits

StartResponse = Callable[..., Any]


class Door:
    """Stands before the server. ``path`` is that of Socket.IO; ``draining()`` whether nobody may come in any more."""

    def __init__(self, settings: Settings, path: str, draining: Callable[[], bool]) -> None:
        self._settings = settings
        self._path = path
        self._draining = draining
        self._limits = AddressLimits(settings)
        self._limited = bool(settings.max_connections_per_address)
        #: The address of each open connection, by Engine.IO's sid.
        self._addresses: dict[str, str] = {}

    def answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes] | None:
        """The answer to a request that is refused; None for one that may go on."""
        if self._draining():
            return _refuse(start_response, "503 SERVICE UNAVAILABLE", "draining", "shutting down")
        # With a sid it belongs to a connection that is there already.
        if environ["PATH_INFO"].startswith(self._path) and Query(environ.get("QUERY_STRING", "")).sid is None:
            refusal = self._limits.refusal(self.address(environ))
            if refusal is not None:
                return _refuse(start_response, "429 TOO MANY REQUESTS", *refusal)
        return None

    def allows_origin(self, origin: str | None, environ: dict[str, Any]) -> bool:
        """Whether a page of this origin may connect."""
        settings = self._settings
        return is_allowed(origin, environ, settings.cors_allowed_origins, settings.trusted_proxies)

    def opened(self, eio_sid: str, environ: dict[str, Any]) -> None:
        """A connection is open."""
        if self._limited:
            address = self._addresses[eio_sid] = self.address(environ)
            self._limits.opened(address)

    def closed(self, eio_sid: str) -> None:
        """It is not any more."""
        address = self._addresses.pop(eio_sid, None)
        if address is not None:
            self._limits.closed(address)

    def check_attempt(self, environ: dict[str, Any]) -> None:
        """Count a request that has to say who it comes from each time. Raises :class:`RateLimitedError`."""
        if not self._limits.attempt(self.address(environ)):
            raise RateLimitedError("too many requests from this address")

    def address(self, environ: dict[str, Any]) -> str:
        """The address that limits count for."""
        return client_address(environ, self._settings.trusted_proxies)


def _refuse(start_response: StartResponse, status: str, reason: str, text: str) -> Iterable[bytes]:
    metrics.refused_connections.labels(reason).inc()
    headers = [("Content-Type", "text/plain"), ("Connection", "close"), ("Retry-After", "1")]
    start_response(status, headers)
    return [text.encode()]
