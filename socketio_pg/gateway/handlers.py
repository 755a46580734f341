"""Handles the events of clients: subscribe, unsubscribe, publish, authenticate. docs/protocol.md describes them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from socketio_pg.access.access import Access
from socketio_pg.access.questions import Action
from socketio_pg.access.sessions import Session
from socketio_pg.access.tokens import Claims
from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.patterns import is_pattern
from socketio_pg.core.publications import requested_publication, requested_wait, wants_echo
from socketio_pg.ephemeral.ephemeral import Ephemeral
from socketio_pg.ephemeral.messages import is_ephemeral
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.live_tables import LiveTables
from socketio_pg.gateway.presence_requests import PresenceRequests
from socketio_pg.gateway.presence_rooms import PresenceRooms
from socketio_pg.gateway.subscribing import Subscribing, wants_batches
from socketio_pg.log.log import Log
from socketio_pg.presence.presence import Presence
from socketio_pg.protocol.answers import Answer, showable
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.hub import Hub, UnknownSubscriberError
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.recovery.keeping import Keeping

#: Returns an answer, or only an acknowledgement.
Handler = Callable[[str, dict[str, Any]], Answer | dict[str, Any]]


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
        keeping: Keeping,
        tables: LiveTables,
        ephemeral: Ephemeral,
        presence: Presence,
        rooms: PresenceRooms,
    ) -> None:
        self._server = server
        self._pubsub = pubsub
        self._hub = hub
        self._delivery = delivery
        self._authenticator = access.authenticator
        self._sessions = access.sessions
        self._permissions = access.permissions
        self._senders = access.senders
        self._rechecks = access.rechecks
        self._admission = admission
        self._limits = limits
        self._keeping = keeping
        self._tables = tables
        self._ephemeral = ephemeral
        self.presence = PresenceRequests(
            presence,
            rooms,
            access.sessions,
            access.permissions,
            access.rechecks,
            limits,
            self._require,
            pubsub.rules,
            pubsub.rule_of,
        )
        self.subscribing = Subscribing(
            server,
            pubsub,
            hub,
            log,
            delivery,
            keeping,
            access.permissions,
            limits,
            self.presence,
            lambda sid, name: self._require("pattern" if is_pattern(name) else "subscribe", sid, name),
        )

    def register(self, *, test: bool = False) -> None:
        """Register the handlers with the server; ``test`` adds ``test_pub``, another name for ``publish``."""
        handlers: dict[str, Handler] = {
            "subscribe": self.subscribe,
            "unsubscribe": self.unsubscribe,
            "publish": self.publish,
            "authenticate": self.authenticate,
            "presence_get": self.presence.get,
            "presence_update": self.presence.update,
            "presence_leave": self.presence.leave,
        }
        if test:
            handlers["test_pub"] = self.publish
        for event, handler in handlers.items():
            self._server.on(event, _with_object(handler))

    def subscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        if "table" not in request:
            return self.subscribing.subscribe(sid, request)
        batch = wants_batches(request.get("batch"))
        answer = self._tables.subscribe(sid, request)
        self.subscribing.set_batching(sid, [batch])
        # A recovered session would not have the table, and its client would not know.
        self._keeping.forget(sid)
        return answer

    def unsubscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        return (self._tables if "table" in request else self.subscribing).unsubscribe(sid, request)

    def publish(self, sid: str, request: dict[str, Any]) -> Answer | dict[str, Any]:
        if is_ephemeral(request):
            # Most of these are handled before, without a green thread.
            return self._ephemeral.publish(sid, request)
        one, wait, echo = requested_publication(request), requested_wait(request), wants_echo(request)
        if one.exclude is not None:
            raise InvalidRequestError("exclude is for publishers without a connection: send echo: false")
        claims = self._require("publish", sid, one.channel)
        self._limits.check_publication(sid, one.channel, self._pubsub.rule_of(one.channel).rate)
        sender = self._senders.json_of(claims)
        published = self._pubsub.publish_one(replace(one, exclude=None if echo else sid, sender=sender), wait=wait)
        return Answer("published", published.to_wire())

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
        self._keeping.identify(sid, claims)
        self._set_in_other_namespaces(sid, claims)
        for channel in self._hub.channels_of(sid):
            if not allowed[channel]:
                self._delivery.revoke(sid, channel)
            elif self._permissions.is_overtaken(channel, mark):
                self._rechecks.recheck(channel)
        self._tables.renew(sid)
        self.presence.renew(sid)
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

    def _require(self, action: Action, sid: str, channel: str) -> Claims | None:
        """Return when the client may do that, with the claims that it has at the end of the check: these."""
        while True:
            session = self._session(sid)
            self._permissions.require(session.claims, action, channel)
            if self._session(sid) is session:
                return session.claims


def _with_object(handler: Handler) -> Callable[..., Answer | dict[str, Any]]:
    """Make an event handler of ``handler`` that checks that the client sent one object."""

    def handle(sid: str, *arguments: Any) -> Answer | dict[str, Any]:
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
            elif error.channel is None and isinstance(request.get("pattern"), str):
                error.pattern = showable(request["pattern"]) or None
            raise

    return handle
