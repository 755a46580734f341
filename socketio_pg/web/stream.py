"""Streams of Server-Sent Events over HTTP, and the tickets for them. docs/sse.md describes the requests.

An EventSource stops for good at any answer but a 200. So what passes by itself (a drain, a full server, a database that
is away) is answered with a 200 that tells the client to come back, and only what stays wrong with an error.
"""

import functools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

from flask import Response, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from socketio_pg.access.tickets import Tickets
from socketio_pg.access.tokens import Claims
from socketio_pg.core import metrics
from socketio_pg.core.channels import match_pattern, validate_channel
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import (
    ClusterKeyError,
    ForbiddenError,
    InvalidRequestError,
    SocketIOPGError,
)
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.engine import handover
from socketio_pg.engine.stream import StreamConnection, response_head
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.limits import RequestLimits
from socketio_pg.log.starts import Start, requested_start
from socketio_pg.protocol.extension import HOLD
from socketio_pg.pubsub.filters import INVALID_STEPS, Filter, parse_filter
from socketio_pg.streams.events import retry
from socketio_pg.streams.groups import Contents, Form
from socketio_pg.streams.preparing import EARLIEST, MAX_CHANNELS, StreamRequest
from socketio_pg.streams.streams import RETRY_LATER, Streams, failure, jittered
from socketio_pg.web.identity import Identity

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.streams"))

CONTENT_TYPE = "text/event-stream"
#: The cookie that keeps a ticket good. Its path is the one of the request, as the browser knows it.
COOKIE = "socketio_pg_stream"
#: Codes of errors that pass by themselves.
PASSING = frozenset(
    ("rate_limited", "too_many_subscriptions", "database_unavailable", "authentication_unavailable", "internal")
)
#: Parameters whose name says that a token is in them.
_SECRETS = ("token", "access_token", "jwt")


class StreamApi:
    """The request handlers. ``limits`` are those of HTTP clients."""

    def __init__(
        self,
        settings: Settings,
        streams: Streams,
        tickets: Tickets,
        admission: Admission,
        identity: Identity,
        limits: RequestLimits,
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._tickets = tickets
        self._admission = admission
        self._identity = identity
        self._limits = limits

    def stream(self, channels: Sequence[object], headers: Headers) -> Response:
        """Answer with a stream, whose response has ``headers`` too. Raises what stays wrong with the request."""
        if self._admission.draining:
            return later(b": the server shuts down\n\n")
        try:
            return self._stream(channels, headers)
        except SocketIOPGError as raised:
            if raised.code not in PASSING:
                raise
            error = raised
        except HTTPException:
            raise
        except Exception:
            _limited_log.failure("a stream could not be opened")
            error = SocketIOPGError("the server failed to handle this")
        metrics.errors.labels(error.code).inc()
        return later(failure(error))

    def tickets(self, body: dict[str, Any], claims: Claims | None) -> dict[str, Any]:
        """``POST /api/tickets``: return the body of the answer."""
        channels = _requested_channels(body.get("channels"))
        self._limits.check_channels_together(self._identity.name(request.environ, claims), len(channels))
        self._streams.admit(claims, channels)
        try:
            return {"ticket": self._tickets.issue(claims, channels), "expires_in": self._tickets.seconds}
        except ClusterKeyError:
            raise ClusterKeyError(
                "tickets need the cluster key, which this server does not have: run 'socketio-pg init', or set "
                "CLUSTER_KEY"
            ) from None

    # -- one request ---------------------------------------------------------------------------------------------------

    def _stream(self, channels: Sequence[object], headers: Headers) -> Response:
        environ = request.environ
        for name in _SECRETS:
            if name in request.args:
                raise InvalidRequestError(
                    f"never put a token into the address, as '{name}': send the header 'Authorization: Bearer …', or "
                    "get a ticket with POST /api/tickets"
                )
        place = self._admission.open_stream(environ)
        try:
            claims, allowed = self._identify(environ, headers)
            who = self._identity.name(environ, claims)
            self._limits.check_event(who, 0)
            wanted = self._requested(who, _requested_channels(list(channels)))
            self._limits.check_channels_together(who, len(wanted.contents.channels))
            for channel in wanted.contents.channels:
                if allowed is not None and channel not in allowed:
                    raise ForbiddenError("the ticket is not for this channel", channel=channel)
            mark = self._streams.admit(claims, wanted.contents.channels)
            place.admit()
            if request.method == "HEAD":
                place.free()
                return Response(status=200, headers=headers)
            if not handover.has_connection(environ):
                raise InvalidRequestError("a stream needs a connection")
            head = response_head(HTTPStatus.OK, headers)
            take = functools.partial(handover.taken_over, environ)
            return TakenResponse(
                *self._streams.open(wanted, claims, mark, head, take, place.free, self._admission.address(environ))
            )
        except BaseException:
            place.free()
            raise

    def _identify(self, environ: dict[str, Any], headers: Headers) -> tuple[Claims | None, frozenset[str] | None]:
        """Return the claims of the client, and the channels that its ticket is for. Adds the ticket's cookie."""
        text = _one("ticket")
        if text is None or "HTTP_AUTHORIZATION" in environ:
            return self._identity.identify(environ), None
        with self._admission.authenticating(environ):
            ticket = self._tickets.open(text)
            if ticket.claims is not None:
                self._identity.require_valid(ticket.claims)
            if not ticket.fresh:
                shown = request.cookies.getlist(COOKIE)
                self._tickets.require_proof(shown[:10], ticket.claims)
        proof, seconds = self._tickets.prove(ticket.claims)
        headers.add("Set-Cookie", f"{COOKIE}={proof}; Max-Age={seconds}; HttpOnly{self._cookie_site(environ)}")
        return ticket.claims, ticket.channels

    def _cookie_site(self, environ: dict[str, Any]) -> str:
        """Return the cookie's attributes that say with which requests it is sent."""
        if environ.get("HTTP_SEC_FETCH_SITE") == "cross-site":
            return "; SameSite=None; Secure; Partitioned"
        scheme = environ["wsgi.url_scheme"]
        if self._settings.trusted_proxies:
            scheme = str(environ.get("HTTP_X_FORWARDED_PROTO", scheme)).partition(",")[0].strip()
        return "; SameSite=Strict; Secure" if scheme == "https" else "; SameSite=Strict"

    def _requested(self, who: str, channels: tuple[str, ...]) -> StreamRequest:
        """Return what the query and the header ask for. Raises :class:`InvalidRequestError`."""
        most = self._settings.max_subscriptions
        if most and len(channels) > most:
            raise InvalidRequestError(f"a stream may have at most {most} channels (MAX_SUBSCRIPTIONS)")
        form = _requested_form()
        if form == "html":
            self._require_html(channels)
        told: dict[str, Any] = {}
        text, filter = _one("filter"), None
        if text:
            told["filter"], filter = self._parse_filter(who, text)
        if form == "strings":
            told["numbers"] = "string"
        start, unusable, needs_log = _requested_start()
        return StreamRequest(Contents(channels, filter, form), start, told, unusable, needs_log)

    def _parse_filter(self, who: str, text: str) -> tuple[Any, Filter | None]:
        self._limits.check_new_filter(who)
        steps = INVALID_STEPS
        try:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                raise InvalidRequestError("filter must be JSON, percent-encoded") from None
            filter = parse_filter(value)
            if filter is not None:
                steps = filter.parsing_steps
            return value, filter
        finally:
            self._limits.spend_on_filters(who, steps)

    def _require_html(self, channels: Sequence[str]) -> None:
        for channel in channels:
            if not any(match_pattern(pattern, channel) for pattern in self._settings.html_channels):
                raise ForbiddenError("the channel is not in HTML_CHANNELS", channel=channel)


class TakenResponse(Response):
    """The response of a stream, whose connection was taken over: the WSGI server sends nothing."""

    def __init__(self, taken: handover.TakenOver, connection: StreamConnection) -> None:
        super().__init__(status=200)
        self._taken = taken
        self._connection = connection

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Not here, where the context of the request would last as long as the stream.
        environ[HOLD] = lambda: self._taken.hold_request(lambda: self._connection.closed)
        start_response("200 OK", [])
        return ()


def stream_headers() -> Headers:
    """Return the headers of every stream, for which proxies must neither store, nor change, nor collect the events."""
    return Headers(
        [("Content-Type", CONTENT_TYPE), ("Cache-Control", "no-store, no-transform"), ("X-Accel-Buffering", "no")]
    )


def later(told: bytes) -> Response:
    """Return a stream that ends at once, and tells the client to connect again."""
    return Response(told + retry(jittered(RETRY_LATER)), 200, stream_headers())


def _requested_channels(channels: object) -> tuple[str, ...]:
    """Return the names in order, without repetitions. Raises :class:`InvalidRequestError`."""
    if not isinstance(channels, list) or not 1 <= len(channels) <= MAX_CHANNELS:
        raise InvalidRequestError(f"there must be 1 to {MAX_CHANNELS} channels")
    return tuple(sorted({validate_channel(name) for name in channels}))


def _one(name: str) -> str | None:
    """Return the parameter of the query; None when it is missing."""
    values = request.args.getlist(name)
    if len(values) > 1:
        raise InvalidRequestError(f"{name} may be given once")
    return values[0] if values else None


def _requested_form() -> Form:
    numbers, format = _one("numbers"), _one("format")
    if numbers not in (None, "string"):
        raise InvalidRequestError("numbers must be 'string'")
    if format not in (None, "json", "html"):
        raise InvalidRequestError("format must be 'json' or 'html'")
    if format == "html":
        return "html"
    return "json" if numbers is None else "strings"


def _requested_start() -> tuple[Start | str, str | None, bool]:
    """Return where the stream begins, why its position is unusable, and whether it needs a log.

    The header is what a client sends that connects again: it goes before the query, and is never an error, at which
    the client would stop.
    """
    header = request.environ.get("HTTP_LAST_EVENT_ID")
    if header:
        if header == EARLIEST:
            return EARLIEST, None, False
        try:
            return requested_start({"since": header}), None, False
        except InvalidRequestError:
            return None, "position_unknown", False
    given = [text for text in (_one("last_event_id"), _one("since")) if text]
    history = _one("history")
    if len(given) + (history is not None) > 1:
        raise InvalidRequestError("only one of last_event_id, since and history may be given")
    if history is not None:
        if not history.isascii() or not history.isdigit() or len(history) > 9:
            raise InvalidRequestError("history must be a whole number")
        return requested_start({"history": int(history)}), None, False
    if not given:
        return None, None, False
    return (EARLIEST if given[0] == EARLIEST else requested_start({"since": given[0]})), None, True
