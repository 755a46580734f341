"""Follows each client from CONNECT to disconnect, and notifies the parts of the server."""

from collections.abc import Callable, Mapping
from typing import Any

from socketio_pg.access.access import Access
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.errors import InvalidRequestError, RateLimitedError
from socketio_pg.ephemeral.ephemeral import Ephemeral
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.health import Health
from socketio_pg.gateway.idle import Idle
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.live_tables import LiveTables
from socketio_pg.gateway.presence_rooms import PresenceRooms
from socketio_pg.gateway.restoring import Restoring
from socketio_pg.protocol.lifecycle import Lifecycle
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.recovery.keeping import Keeping


class ClientLifecycle(Lifecycle):
    """The lifecycle of a server's clients. ``start()`` starts the server, unless it is running.

    ``identifiers``: namespace → the function that identifies its clients in place of the authenticator.
    """

    def __init__(
        self,
        admission: Admission,
        access: Access,
        limits: ClientLimits,
        idle: Idle,
        pubsub: PubSub,
        hub: Hub,
        delivery: Delivery,
        health: Health,
        keeping: Keeping,
        restoring: Restoring,
        tables: LiveTables,
        ephemeral: Ephemeral,
        presence: PresenceRooms,
        start: Callable[[], None],
        identifiers: Mapping[str, Callable[[dict[str, Any], object], Claims]],
    ) -> None:
        self._admission = admission
        self._access = access
        self._limits = limits
        self._idle = idle
        self._pubsub = pubsub
        self._hub = hub
        self._delivery = delivery
        self._health = health
        self._keeping = keeping
        self._restoring = restoring
        self._tables = tables
        self._ephemeral = ephemeral
        self._presence = presence
        self._start = start
        self._identifiers = identifiers

    def opened(self, eio_sid: str, environ: dict[str, Any]) -> None:
        self._admission.opened(eio_sid, environ)

    def closed(self, eio_sid: str) -> None:
        self._admission.closed(eio_sid)
        self._restoring.closed(eio_sid)

    def before_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        self._admission.check_connect(eio_sid)

    def identify(self, environ: dict[str, Any], auth: object, namespace: str) -> object:
        identify = self._identifiers.get(namespace, self._access.authenticator.identify)
        with self._admission.authenticating(environ):
            return identify(environ, auth)

    def joined(self, eio_sid: str) -> None:
        self._admission.joined(eio_sid)

    def identified(self, sid: str, namespace: str, identity: Any) -> None:
        self._access.sessions.set(sid, namespace, identity)

    def resume(self, eio_sid: str, namespace: str, auth: object, identity: Any) -> str | None:
        return self._restoring.resume(eio_sid, namespace, auth, identity)

    def restore(self, sid: str, eio_sid: str) -> bool:
        return self._restoring.restore(sid, eio_sid)

    def restored(self, sid: str, eio_sid: str) -> bool:
        return self._restoring.restored(sid, eio_sid)

    def answer(self, sid: str, eio_sid: str, namespace: str) -> dict[str, Any]:
        return self._restoring.answer(sid, eio_sid, namespace)

    def ended(self, sid: str, namespace: str) -> None:
        if namespace == "/":
            self._keeping.forget(sid)
            self._presence.leave_all(sid)

    def connected(self, sid: str) -> None:
        self._start()
        self._hub.add(sid)
        self._idle.heard(sid)
        session = self._access.sessions.get(sid)
        claims = None if session is None else session.claims
        recovery = self._restoring.connected(sid)
        self._delivery.emit_hello(sid, claims, self._access.authenticator.mode, self._health.current(), recovery)
        for channel in (recovery or {}).get("channels", ()):
            self._delivery.emit_missed(sid, channel)
        # Of a recovered session: the differences that it has missed are in no log.
        self._presence.tell_state(sid)

    def before_event(self, sid: str, size: int) -> None:
        session = self._access.sessions.get(sid)
        if session is None:
            # While the application's disconnect handler waits. Nothing may be counted again for a client that has left.
            raise InvalidRequestError("the client has disconnected")
        self._idle.heard(sid)
        try:
            self._limits.check_event(sid, size)
        except RateLimitedError as error:
            if error.cut_off:
                green.run_soon(self._delivery.cut_off, sid, error, "rate_limited", session.namespace)
            raise

    def disconnected(self, sid: str) -> None:
        self._access.sessions.drop(sid)
        self._limits.drop(sid)
        self._idle.drop(sid)
        self._pubsub.drop(sid)
        self._delivery.drop(sid)
        self._keeping.lose(sid)
        self._presence.lose(sid)
        self._tables.drop(sid)
        self._ephemeral.drop(sid)
