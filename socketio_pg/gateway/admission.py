"""Admission control: refuses requests while draining, over an address's limits, or with a wrong origin or host."""

import contextlib
import logging
import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import metrics
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import (
    DatabaseUnavailableError,
    ForbiddenError,
    InvalidRequestError,
    RateLimitedError,
    SocketIOPGError,
    UnauthorizedError,
)
from socketio_pg.core.logs import PerValueLog, RateLimitedLog
from socketio_pg.core.messages import WireJSON
from socketio_pg.engine.environs import HANDSHAKE
from socketio_pg.engine.http import parsed
from socketio_pg.engine.origins import AllowedHosts, canonical_origin, client_address, is_allowed
from socketio_pg.gateway.limits import AddressLimits, Bucket
from socketio_pg.protocol.extension import PATH, is_below
from socketio_pg.workers.local_counts import Counts, LocalCounts

logger = logging.getLogger("socketio_pg.admission")
_limited_log = RateLimitedLog(logger)
#: Pages choose their origins, so the number of different ones in a minute is limited too.
_origins_log = PerValueLog(logger, seconds=60.0, values=100)

StartResponse = Callable[..., Any]

#: Paths that answer at any host. Load balancers and probes ask for the first two by IP address, and these show nothing
#: secret; the third needs METRICS_TOKEN.
_ANY_HOST = ("/healthz", "/readyz", "/metrics")
#: Paths that begin with this are those of the HTTP API (`web/api`), whose errors are JSON.
API = "/api/"
#: The same for the inspector.
INSPECTOR_API = "/inspector/api/"
#: The paths of streams, which a server that drains tells to come back: at a 503 an EventSource would stop for good.
_STREAMS = re.compile(r"/api/(?:channels/.+/)?stream", re.DOTALL)
_SHUTTING_DOWN = DatabaseUnavailableError("the server is shutting down")
_WRONG_HOST = InvalidRequestError("this host name is not in ALLOWED_HOSTS")

#: CONNECT packets of one connection: this many together, and then a second.
CONNECT_BURST, CONNECTS_PER_SECOND = 30, 1.0


@dataclass(slots=True)
class _Connection:
    """An Engine.IO connection that counts for its address."""

    address: str
    #: False during the handshake, which may yet be refused.
    opened: bool = False
    #: True until it has connected to a namespace.
    pending: bool = True
    #: The CONNECT packets that it may send; None before the first one.
    connects: Bucket | None = None


class StreamPlace:
    """A stream that counts for its address. ``freed`` is called when it has ended."""

    def __init__(self, limits: AddressLimits, address: str, freed: Callable[[], None]) -> None:
        self._limits = limits
        self._address = address
        self._pending = True
        self._freed = freed

    def admit(self) -> None:
        """Note that its client has been identified, and has the permission."""
        self._pending = False
        self._limits.joined(self._address)

    def free(self) -> None:
        """Note that it has ended. Call it once."""
        self._freed()
        self._limits.closed(self._address, pending=self._pending)


class Admission:
    """Decides about requests before the Socket.IO server and the Flask application see them.

    ``counts`` counts connections and attempts by address; by default for this process alone.
    """

    def __init__(self, settings: Settings, counts: Counts | None = None) -> None:
        self._settings = settings
        self._limits = AddressLimits(settings, counts or LocalCounts())
        #: By Engine.IO's sid.
        self._connections: dict[str, _Connection] = {}
        self._hosts = _allowed_hosts(settings)
        self._draining = False
        #: The number of streams, with those that are being prepared.
        self.streams = 0

    @property
    def draining(self) -> bool:
        """Whether the server drains, and admits nothing."""
        return self._draining

    def start_draining(self) -> None:
        """Refuse every request from now on."""
        self._draining = True

    def admits(self, environ: dict[str, Any]) -> bool:
        """Return whether a handshake is admitted, and count it as :meth:`answer` does, which refuses the others.

        Never waits.
        """
        # For development the own names of the machine may have to be looked up.
        if self._draining or self._settings.debug or not self._hosts.allow(environ, self._settings.trusted_proxies):
            return False
        connection = _Connection(self.address(environ))
        if self._limits.open(connection.address) is not None:
            return False
        environ[HANDSHAKE] = connection
        return True

    def answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes] | None:
        """Answer a request that is refused; return None for one that is admitted.

        A handshake counts for its address from now on, so that others cannot take its place: :meth:`opened` confirms
        that, and :meth:`answered` ends it otherwise.
        """
        if self._draining and not _STREAMS.fullmatch(environ["PATH_INFO"]):
            return _refuse(environ, start_response, "503 SERVICE UNAVAILABLE", "draining", _SHUTTING_DOWN)
        if not self._hosts.allow(environ, self._settings.trusted_proxies) and environ["PATH_INFO"] not in _ANY_HOST:
            _limited_log(
                logging.WARNING, "refused a request to the host %r, which is not in ALLOWED_HOSTS",
                str(environ.get("HTTP_HOST"))[:200],
            )  # fmt: skip
            return _refuse(environ, start_response, "400 BAD REQUEST", "host", _WRONG_HOST)
        # A request with a sid belongs to an open connection.
        if is_below(environ["PATH_INFO"], PATH) and parsed(environ.get("QUERY_STRING", "")).sid is None:
            connection = _Connection(self.address(environ))
            refusal = self._limits.open(connection.address)
            if refusal is not None:
                reason, text = refusal
                return _refuse(environ, start_response, "429 TOO MANY REQUESTS", reason, RateLimitedError(text))
            environ[HANDSHAKE] = connection
        return None

    def answered(self, environ: dict[str, Any]) -> None:
        """Note that an admitted request has been answered, or has failed."""
        connection = environ.get(HANDSHAKE)
        if connection is not None and not connection.opened:
            self._limits.closed(connection.address, pending=True)

    def allows_origin(self, origin: str | None, environ: dict[str, Any]) -> bool:
        """Return whether a page of this origin may connect. Logs a refused one, once a minute."""
        settings = self._settings
        allowed = settings.cors_allowed_origins
        if is_allowed(origin, environ, allowed, settings.trusted_proxies, loopback=settings.debug):
            return True
        if origin:
            _origins_log(
                origin, logging.WARNING,
                "refused a page of the origin %.200r, which sent its request to the host %.200r; to allow it, set %s, "
                "or, behind a proxy, let the proxy forward the header Host unchanged",
                origin, str(environ.get("HTTP_HOST") or ""), _setting_for(origin, allowed or ()),
            )  # fmt: skip
        return False

    def opened(self, eio_sid: str, environ: dict[str, Any]) -> None:
        """Note that a connection is open. Flask-SocketIO's test client has no handshake, and counts for no address."""
        connection = environ.pop(HANDSHAKE, None)
        if connection is not None:
            connection.opened = True
            self._connections[eio_sid] = connection

    def joined(self, eio_sid: str) -> None:
        """Note that a connection has connected to its first namespace."""
        connection = self._connections.get(eio_sid)
        if connection is not None and connection.pending:
            connection.pending = False
            self._limits.joined(connection.address)

    def closed(self, eio_sid: str) -> None:
        """Count a closed connection for its address."""
        connection = self._connections.pop(eio_sid, None)
        if connection is not None:
            self._limits.closed(connection.address, pending=connection.pending)

    def check_connect(self, eio_sid: str) -> None:
        """Count a CONNECT packet. Raises :class:`RateLimitedError`, with ``cut_off`` to close the connection."""
        connection = self._connections.get(eio_sid)
        if connection is None:
            return
        if connection.connects is None:
            connection.connects = Bucket(CONNECTS_PER_SECOND, CONNECT_BURST)
        elif not self._limits.attempt(connection.address):
            raise RateLimitedError("too many attempts to connect from this address")
        if not connection.connects.take():
            error = RateLimitedError("too many CONNECT packets on this connection")
            error.cut_off = True
            raise error

    @contextlib.contextmanager
    def authenticating(self, environ: dict[str, Any]) -> Iterator[None]:
        """Count a token or login that is refused in the body of the ``with`` statement.

        Raises :class:`RateLimitedError` when too many of the same address were refused before.
        """
        address = self.address(environ)
        if not self._limits.may_try(address):
            raise RateLimitedError("too many refused tokens or logins from this address")
        try:
            yield
        except (UnauthorizedError, ForbiddenError):
            self._limits.failed(address)
            raise

    def check_attempt(self, environ: dict[str, Any]) -> None:
        """Count a request that authenticates itself. Raises :class:`RateLimitedError`."""
        if not self._limits.attempt(self.address(environ)):
            raise RateLimitedError("too many requests from this address")

    def open_stream(self, environ: dict[str, Any]) -> "StreamPlace":
        """Count a stream for its address, which is pending until it is admitted. Raises :class:`RateLimitedError`."""
        address = self.address(environ)
        refusal = self._limits.open(address)
        if refusal is not None:
            reason, text = refusal
            metrics.refused_connections.labels(reason).inc()
            raise RateLimitedError(text)
        self.streams += 1
        return StreamPlace(self._limits, address, self._stream_ended)

    def _stream_ended(self) -> None:
        self.streams -= 1

    def address(self, environ: dict[str, Any]) -> str:
        """Return the address for which limits count."""
        return client_address(environ, self._settings.trusted_proxies)


def _setting_for(origin: str, allowed: Sequence[str]) -> str:
    """Return the value of CORS_ALLOWED_ORIGINS that also allows ``origin``."""
    found = canonical_origin(origin)
    if found is None or not found.isprintable():
        return "CORS_ALLOWED_ORIGINS='*', which allows every page"  # such as "null", of a local file
    return f"CORS_ALLOWED_ORIGINS={','.join([*allowed, found[:200]])}"


def _allowed_hosts(settings: Settings) -> AllowedHosts:
    if settings.allowed_hosts is not None:
        return AllowedHosts(settings.allowed_hosts)
    if not settings.debug:
        return AllowedHosts("*")
    return AllowedHosts((".localhost",), addresses=True, own_names=_own_names)


def _own_names() -> Collection[str]:
    """Return the names of this machine. May wait for the resolver."""
    return socket.gethostname(), socket.getfqdn()


def _refuse(
    environ: dict[str, Any], start_response: StartResponse, status: str, reason: str, error: SocketIOPGError
) -> Iterable[bytes]:
    """Answer with ``error``: as JSON below /api/ (docs/http.md) and /inspector/api/, as plain text elsewhere."""
    metrics.refused_connections.labels(reason).inc()
    is_api = environ["PATH_INFO"].startswith((API, INSPECTOR_API))
    body = WireJSON.dumps({"error": error.to_wire()}) if is_api else error.message
    content_type = "application/json" if is_api else "text/plain"
    start_response(status, [("Content-Type", content_type), ("Connection", "close"), ("Retry-After", "1")])
    return [body.encode()]
