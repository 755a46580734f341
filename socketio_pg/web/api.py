"""Publish and replay over HTTP: a Flask blueprint. docs/http.md describes the requests.

Authentication, permissions, limits and error codes are the same as for Socket.IO clients.
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, current_app, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter

from socketio_pg.access.access import Access
from socketio_pg.access.tickets import Tickets
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green, metrics
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.config import Settings
from socketio_pg.core.cursors import Since, parse_cursor
from socketio_pg.core.errors import (
    ForbiddenError,
    InvalidChannelError,
    InvalidRequestError,
    SocketIOPGError,
)
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import (
    Position,
    WireJSON,
)
from socketio_pg.core.meta import is_traceparent
from socketio_pg.core.publications import (
    Publication,
    naming_message,
    requested_publication,
    requested_publications,
    requested_wait,
    wants_echo,
)
from socketio_pg.engine.polling import BodyError
from socketio_pg.gateway.admission import API, Admission
from socketio_pg.gateway.limits import RequestLimits
from socketio_pg.log.log import DEFAULT_MESSAGES, MAX_MESSAGES
from socketio_pg.log.starts import requested_start
from socketio_pg.presence.presence import Presence
from socketio_pg.protocol.answers import showable
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.streams.streams import Streams
from socketio_pg.web import api_errors
from socketio_pg.web.bodies import close_if_unread, read_object, require_json
from socketio_pg.web.control import ControlApi
from socketio_pg.web.identity import Identity
from socketio_pg.web.openapi import openapi
from socketio_pg.web.stream import StreamApi, TakenResponse, stream_headers

logger = logging.getLogger("socketio_pg.api")

_NUMBER = re.compile(r"[0-9]{1,19}")
#: The paths of this blueprint. Others below /api/ may belong to the application.
_OURS = re.compile(r"/api/(publish|tickets|stream|openapi\.json|channels/.*/(messages|presence|stream))", re.DOTALL)


class Api:
    """The request handlers. ``start()`` connects the server; ``max_bytes`` is the limit of a body."""

    def __init__(
        self,
        settings: Settings,
        pubsub: PubSub,
        access: Access,
        admission: Admission,
        presence: Presence,
        streams: Streams,
        tickets: Tickets,
        start: Callable[[], None],
        max_bytes: int,
    ) -> None:
        self._settings = settings
        self._pubsub = pubsub
        self._permissions = access.permissions
        self._senders = access.senders
        self._admission = admission
        self._presence = presence
        self._identity = Identity(access.authenticator, admission, start, settings.jwt_leeway)
        self._max_bytes = max_bytes
        self._limits = RequestLimits(settings)
        self._streams = StreamApi(settings, streams, tickets, admission, self._identity, self._limits)
        self._document = openapi(settings, access.authenticator.mode, max_bytes)

    def publish(self) -> Response:
        """``POST /api/publish``."""
        claims, who = self._identify()
        require_json()
        body = self._read_object(who)
        if "messages" not in body:
            one, wait = requested_publication(body), requested_wait(body)
            _refuse_echo(body)
            self._permissions.require(claims, "publish", one.channel)
            self._limits.check_publication(who, one.channel, self._pubsub.rule_of(one.channel).rate)
            [one] = self._with_origin([one], claims)
            return _json(self._pubsub.publish_one(one, wait=wait).to_wire())
        if "channel" in body or "payload" in body:
            raise InvalidRequestError("messages cannot be combined with channel and payload")
        several, wait = requested_publications(body["messages"]), requested_wait(body)
        for index, message in enumerate(body["messages"]):
            with naming_message(index):
                _refuse_echo(message)
        self._limits.check_together(who, len(several))
        self._require_publish(claims, several)
        for index, one in enumerate(several):
            with naming_message(index):
                self._limits.check_publication(who, one.channel, self._pubsub.rule_of(one.channel).rate)
        results = self._pubsub.publish_together(self._with_origin(several, claims), wait=wait)
        count = sum(not result.duplicate for result in results)
        return _json({"published": count, "messages": [result.to_wire() for result in results]})

    def _with_origin(self, publications: Sequence[Publication], claims: Claims | None) -> list[Publication]:
        """Return publications with the client that publishes, and with the request's trace where they have none."""
        sender = self._senders.json_of(claims)
        header = request.headers.get("traceparent")
        # Of an invalid header W3C Trace Context says to ignore it: a proxy may have added it.
        trace = header if is_traceparent(header) else None
        return [replace(one, sender=sender, traceparent=one.traceparent or trace) for one in publications]

    def messages(self, channel: str) -> Response:
        """``GET /api/channels/{channel}/messages``."""
        claims, who = self._identify()
        self._limits.check_event(who, 0)
        validate_channel(_as_sent(channel))
        since, history, limit = _requested_page()
        self._permissions.require(claims, "subscribe", channel)
        rule = self._pubsub.rule_of(channel)
        if rule.history is False and (since is not None or history):
            raise ForbiddenError("history is not allowed in this channel", channel=channel)
        if history is not None and rule.max_messages is not None:
            history = min(history, rule.max_messages)
        page = self._pubsub.read_page(channel, since=since, history=history, limit=limit)
        return _json(page.to_wire(channel))

    def presence(self, channel: str) -> Response:
        """``GET /api/channels/{channel}/presence``, with ``?count`` only the number of members."""
        claims, who = self._identify()
        self._limits.check_event(who, 0)
        validate_channel(_as_sent(channel))
        if not self._pubsub.rule_of(channel).presence:
            raise ForbiddenError("presence is not allowed in this channel", channel=channel)
        self._permissions.require(claims, "presence", channel)
        return _json(self._presence.summary(channel, only_count="count" in request.args))

    def stream(self, channel: str) -> Response:
        """``GET /api/channels/{channel}/stream``."""
        return self._streams.stream([_as_sent(channel)], self._stream_headers())

    def stream_together(self) -> Response:
        """``GET /api/stream?channel=…&channel=…``."""
        return self._streams.stream(request.args.getlist("channel"), self._stream_headers())

    def tickets(self) -> Response:
        """``POST /api/tickets``."""
        claims, who = self._identify()
        require_json()
        return _json(self._streams.tickets(self._read_object(who), claims))

    def _stream_headers(self) -> Headers:
        """Return the headers of a stream, which no function that follows the request can add to."""
        headers = stream_headers()
        add_headers(self, headers)
        return headers

    def document(self) -> Response:
        """``GET /api/openapi.json``."""
        # A proxy may have removed a prefix from the path, which the server does not know. An address relative to the
        # document is right then, but some tools do not resolve it.
        server = ".." if self._settings.trusted_proxies else request.script_root or "/"
        return _json(self._document | {"servers": [{"url": server}]})

    # -- origin, identity, permissions ---------------------------------------------------------------------------------

    def check_origin(self) -> None:
        """Refuse pages of disallowed origins, as for Socket.IO clients. Raises :class:`ForbiddenError`."""
        origin = request.environ.get("HTTP_ORIGIN")
        if origin is not None and not self.allows(origin):
            raise ForbiddenError("this origin is not allowed")

    def allows(self, origin: str) -> bool:
        """Return True when a page of ``origin`` may send the current request and read the response."""
        return origin.isprintable() and self._admission.allows_origin(origin, request.environ)

    def _identify(self) -> tuple[Claims | None, str]:
        """Return the claims, and the name under which the rate limits count the client."""
        self._admission.check_attempt(request.environ)
        claims = self._identity.identify(request.environ)
        return claims, self._identity.name(request.environ, claims)

    def _read_object(self, who: str) -> dict[str, Any]:
        return read_object(self._max_bytes, functools.partial(self._limits.check_event, who))

    def _require_publish(self, claims: Claims | None, publications: Sequence[Publication]) -> None:
        """Check all channels concurrently, so that policies are evaluated in few transactions."""
        answers: dict[str, SocketIOPGError | None] = {}

        def check(channel: str) -> None:
            answers[channel] = SocketIOPGError("the server failed to handle this", channel=channel)
            try:
                self._permissions.require(claims, "publish", channel)
                answers[channel] = None
            except SocketIOPGError as error:
                answers[channel] = error

        for thread in [green.spawn(check, channel) for channel in {one.channel for one in publications}]:
            thread.wait()
        for index, publication in enumerate(publications):
            error = answers[publication.channel]
            if error is not None:
                with naming_message(index):
                    raise error


def _refuse_echo(message: Mapping[str, Any]) -> None:
    if not wants_echo(message):
        raise InvalidRequestError("echo is for Socket.IO clients: name the client with exclude")


def _as_sent(channel: str) -> str:
    """Return the channel of the path. Raises InvalidChannelError for invalid UTF-8, which werkzeug replaces."""
    try:
        request.environ["PATH_INFO"].encode("latin-1").decode()
    except UnicodeDecodeError:
        raise InvalidChannelError("channel must be UTF-8, percent-encoded") from None
    return channel


def _requested_page() -> tuple[Since | None, int | None, int]:
    """Return ``since``, ``history`` and ``limit`` of the query. Raises :class:`InvalidRequestError`."""
    after, history, limit = _since(), _number("history"), _number("limit")
    if limit is not None and not 1 <= limit <= MAX_MESSAGES:
        raise InvalidRequestError(f"limit must be a whole number from 1 to {MAX_MESSAGES}")
    requested_start({"since": after, "history": history})  # raises here, before the permission check
    return after, history, limit or DEFAULT_MESSAGES


def _since() -> Since | None:
    """Return ``since`` of the query; of ``since=POSITION`` with ``epoch=EPOCH`` both together."""
    sinces, epochs = request.args.getlist("since"), request.args.getlist("epoch")
    if not sinces and not epochs:
        return None
    if len(sinces) == 1:
        if not epochs and not _NUMBER.fullmatch(sinces[0]):
            return sinces[0]
        cursor = parse_cursor(sinces[0])
        number, named = (sinces[0], epochs) if cursor is None else (str(cursor["position"]), [*epochs, cursor["epoch"]])
        if len(epochs) == 1 and epochs[0] and len(set(named)) == 1 and _NUMBER.fullmatch(number):
            return Position(epoch=epochs[0], position=int(number))
    raise InvalidRequestError(
        "since must be EPOCH:POSITION, a position together with epoch, a time as ISO 8601, or a snapshot token"
    )


def _number(name: str) -> int | None:
    """Return a whole number of the query; None when it is missing."""
    values = request.args.getlist(name)
    if not values:
        return None
    if len(values) > 1 or not _NUMBER.fullmatch(values[0]):
        raise InvalidRequestError(f"{name} must be one whole number")
    return int(values[0])


# -- the blueprint -----------------------------------------------------------------------------------------------------


class _ChannelConverter(BaseConverter):
    """A channel name in a path. It may contain any character, including slashes, also as the first one."""

    regex = r"(?s:.*?)"
    part_isolating = False


def create_api_blueprint(api: Api, control: ControlApi | None = None) -> Blueprint:
    """Return the blueprint with the routes below ``/api/``.

    ``control`` has the requests that need ADMIN_TOKEN.
    """
    blueprint = Blueprint("socketio_pg_api", __name__, url_prefix="/api")
    limited_log = RateLimitedLog(logger)
    blueprint.record_once(lambda state: state.app.url_map.converters.update(socketio_pg_channel=_ChannelConverter))
    blueprint.before_request(api.check_origin)
    blueprint.post("/publish")(api.publish)
    blueprint.get("/channels/<socketio_pg_channel:channel>/messages", merge_slashes=False)(api.messages)
    blueprint.get("/channels/<socketio_pg_channel:channel>/presence", merge_slashes=False)(api.presence)
    blueprint.get("/channels/<socketio_pg_channel:channel>/stream", merge_slashes=False)(api.stream)
    blueprint.get("/stream")(api.stream_together)
    blueprint.post("/tickets")(api.tickets)
    blueprint.get("/openapi.json")(api.document)
    if control is not None:
        control.add_to(blueprint)

    @blueprint.errorhandler(Exception)
    def respond(error: Exception) -> Response:
        status = None
        if isinstance(error, HTTPException):
            status, error = api_errors.of_http(error)
        elif isinstance(error, BodyError):
            status, error = api_errors.of_body(error)
        elif isinstance(error, api_errors.NotJSONError):
            status = error.status
        elif not isinstance(error, SocketIOPGError):
            limited_log.failure("an HTTP request failed")
            error = SocketIOPGError("the server failed to handle this")
        metrics.errors.labels(error.code).inc()
        if error.channel is not None:
            error.channel = showable(error.channel)
        return Response(*api_errors.answer(error, status))

    @blueprint.before_app_request
    def answer_without_route() -> Response | None:
        """Answer requests below /api/ that match no route; Flask knows no blueprint for them."""
        problem = request.routing_exception
        if not isinstance(problem, NotFound | MethodNotAllowed) or not request.path.startswith(API):
            return None
        # An application with error handlers answers for its own paths.
        if not _OURS.fullmatch(request.path) and any(current_app.error_handler_spec[None].values()):
            return None
        response = respond(problem)
        if isinstance(problem, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(problem.valid_methods or ()))
        return _complete(api, response)

    blueprint.after_request(functools.partial(_complete, api))
    return blueprint


def _complete(api: Api, response: Response) -> Response:
    """Add the headers that all responses have, and close the connection after a body that was not read."""
    if isinstance(response, TakenResponse):
        return response
    add_headers(api, response.headers)
    return close_if_unread(response)


def add_headers(api: Api, headers: Headers) -> None:
    """Add the headers that all responses have: no caching, and the origins that may read them."""
    headers.setdefault("Cache-Control", "no-store")
    headers.add("Vary", "Origin")
    headers["X-Content-Type-Options"] = "nosniff"
    origin = request.environ.get("HTTP_ORIGIN")
    if origin is not None and api.allows(origin):
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Expose-Headers"] = "Retry-After"
        if request.method == "OPTIONS":
            headers["Access-Control-Allow-Methods"] = "GET, POST"
            headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, Last-Event-ID, traceparent"


def _json(value: dict[str, Any]) -> Response:
    return Response(WireJSON.dumps(value), content_type="application/json")
