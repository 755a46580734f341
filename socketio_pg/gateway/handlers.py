"""Handles the events of clients: subscribe, unsubscribe, publish, authenticate. docs/protocol.md describes them."""

from collections.abc import Callable
from typing import Any

from socketio_pg.access.access import Access
from socketio_pg.access.questions import Action
from socketio_pg.access.sessions import Session
from socketio_pg.access.tokens import Claims
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidChannelError, InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import requested_publication
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.log.log import Log
from socketio_pg.log.replay import LogPosition, requested_start
from socketio_pg.protocol.answers import Answer, showable
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.filters import INVALID_STEPS, Filter, parse_filter
from socketio_pg.pubsub.hub import Hub, UnknownSubscriberError
from socketio_pg.pubsub.pubsub import PubSub

Handler = Callable[[str, dict[str, Any]], Answer]


class Handlers:
    """The event handlers. Each gets the client's ``sid`` and the object that it sent."""

    def __init__(
        self,
        server: Server,
        pubsub: PubSub,
        hub: Hub,
        log: Log,
        delivery: Delivery,
        access: Access,
        admission: Admission,
        limits: ClientLimits,
    ) -> None:
        self._server = server
        self._pubsub = pubsub
        self._hub = hub
        self._log = log
        self._delivery = delivery
        self._authenticator = access.authenticator
        self._sessions = access.sessions
        self._permissions = access.permissions
        self._rechecks = access.rechecks
        self._admission = admission
        self._limits = limits

    def register(self, *, test: bool = False) -> None:
        """Register the handlers with the server; ``test`` adds ``test_pub``, another name for ``publish``."""
        handlers: dict[str, Handler] = {
            "subscribe": self.subscribe,
            "unsubscribe": self.unsubscribe,
            "publish": self.publish,
            "authenticate": self.authenticate,
        }
        if test:
            handlers["test_pub"] = self.publish
        for event, handler in handlers.items():
            self._server.on(event, _with_object(handler))

    def subscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        channel = validate_channel(request.get("channel"))
        if self._server.manager.is_sid_room("/", channel):
            raise InvalidChannelError("this name is the id of a client", channel=channel)
        mark = self._permissions.mark()
        self._require(sid, "subscribe", channel)
        # Only clients that have the permission cost more than the question.
        start, filter = requested_start(request), self._parse_filter(sid, request.get("filter"))
        new = not self._hub.is_subscribed(sid, channel)
        if new:
            self._limits.check_subscriptions(self._hub.count_channels(sid))
            if not self._hub.has_channel(channel):
                self._limits.check_channels(self._hub.channel_count)
        self._pubsub.join(sid, channel)
        try:
            if self._permissions.is_overtaken(channel, mark):
                # The first answer may predate a change of permissions. Later changes recheck this subscription.
                self._require(sid, "subscribe", channel)
            after, recovered = self._log.find_start(channel, start)
            if filter is not None:
                size = self._hub.filters_size(sid, filter, self._hub.filter_of(sid, channel))
                self._limits.check_filters(*size)
        except BaseException:
            if new:
                self._pubsub.leave(sid, channel)
            raise
        # The client may have disconnected or unsubscribed in the meantime. Nothing waits from here on.
        if not self._hub.is_subscribed(sid, channel):
            raise InvalidRequestError("unsubscribed before the subscription was complete", channel=channel)
        live = self._delivery.enter(sid, channel, filter)
        body = {"channel": channel} | recovered
        if filter is not None:
            body["filter"] = request["filter"]
        if self._log.epoch is None:
            return Answer("subscribed", body)
        cause = "since" if isinstance(start, LogPosition) else "history"
        then = self._delivery.hold(sid, channel, after, cause) if after is not None else None
        body |= {"epoch": self._log.epoch, "position": self._pubsub.position_of(sid, channel, live)}
        return Answer("subscribed", body, then)

    def _parse_filter(self, sid: str, value: object) -> Filter | None:
        if not value:
            return parse_filter(value)
        self._limits.check_new_filter(sid)
        steps = INVALID_STEPS
        try:
            filter = parse_filter(value)
            if filter is not None:
                steps = filter.parsing_steps
            return filter
        finally:
            self._limits.spend_on_filters(sid, steps)

    def unsubscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        channel = validate_channel(request.get("channel"))
        self._delivery.leave(sid, channel)
        return Answer("unsubscribed", {"channel": channel})

    def publish(self, sid: str, request: dict[str, Any]) -> Answer:
        publication = requested_publication(request)
        self._require(sid, "publish", publication.channel)
        self._pubsub.publish(publication.channel, publication.payload, publication.durable)
        return Answer("published", {"channel": publication.channel})

    def authenticate(self, sid: str, request: dict[str, Any]) -> Answer:
        if "token" not in request:
            raise InvalidRequestError("token is missing")
        before = self._session(sid)
        environ = self._server.get_environ(sid, "/")
        if environ is None:
            raise UnknownSubscriberError(sid)
        with self._admission.authenticating(environ):
            claims = self._authenticator.renew(environ, request["token"])
        mark = self._permissions.mark()
        allowed: dict[str, bool] = {}
        # Repeats for channels that were subscribed to during the check. Nothing waits after the last round.
        while unknown := self._hub.channels_of(sid) - allowed.keys():
            allowed |= self._rechecks.ask(claims, unknown)
        if self._session(sid) is not before:
            raise InvalidRequestError("another 'authenticate' of this client was completed first")
        self._sessions.set(sid, "/", claims)
        self._set_in_other_namespaces(sid, claims)
        for channel in self._hub.channels_of(sid):
            if not allowed[channel]:
                self._delivery.revoke(sid, channel)
            elif self._permissions.is_overtaken(channel, mark):
                self._rechecks.recheck(channel)
        return Answer("authenticated", claims.to_wire())

    def _set_in_other_namespaces(self, sid: str, claims: Claims) -> None:
        """Set the claims in the client's other namespaces too: expiry in any of them closes the shared connection."""
        manager = self._server.manager
        eio_sid = manager.eio_sid_from_sid(sid, "/")
        for namespace in list(manager.get_namespaces()):
            other = manager.sid_from_eio_sid(eio_sid, namespace)
            if other is not None and other != sid and self._sessions.get(other) is not None:
                self._sessions.set(other, namespace, claims)

    def _session(self, sid: str) -> Session:
        session = self._sessions.get(sid)
        if session is None:
            raise UnknownSubscriberError(sid)
        return session

    def _require(self, sid: str, action: Action, channel: str) -> None:
        """Return when the client may do that, with the claims that it has at the end of the check."""
        while True:
            session = self._session(sid)
            self._permissions.require(session.claims, action, channel)
            if self._session(sid) is session:
                return


def _with_object(handler: Handler) -> Callable[..., Answer]:
    """Make an event handler of ``handler`` that checks that the client sent one object."""

    def handle(sid: str, *arguments: Any) -> Answer:
        if len(arguments) != 1 or not isinstance(arguments[0], dict):
            raise InvalidRequestError("this event takes one object")
        request = arguments[0]
        try:
            return handler(sid, request)
        except UnknownSubscriberError:
            raise InvalidRequestError("the client has disconnected") from None
        except SocketIOPGError as error:
            if error.channel is None and isinstance(request.get("channel"), str):
                error.channel = showable(request["channel"]) or None
            raise

    return handle
