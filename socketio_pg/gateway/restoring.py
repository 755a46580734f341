"""Gives clients their sessions back: Socket.IO's connection state recovery, as docs/recovery.md says.

A client sends CONNECT with a pid. Its session is taken over, its subscriptions are checked, its CONNECT is answered,
and then it is sent what it has missed. Node's server sends that before the answer. But a stock client keeps events that
come before the answer, without their offsets: if the connection breaks in between, it would get them twice.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from socketio_pg.access.sessions import Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green, metrics
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError, SocketIOPGError
from socketio_pg.core.patterns import named
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.presence_requests import Prepared
from socketio_pg.gateway.subscribing import Pending
from socketio_pg.log.log import Log
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.offsets import Offset, parse_offset, tag_of
from socketio_pg.pubsub.hub import Hub
from socketio_pg.recovery.keeping import Keeping
from socketio_pg.recovery.session import Entry, NotRecoveredError, Session, identity_of

logger = logging.getLogger("socketio_pg.recovery")


@dataclass(slots=True)
class _Attempt:
    """The CONNECT of a client that wants to be able to recover its session."""

    #: Whether it has a session to come back to.
    returning: bool
    #: Whether a new session can be kept.
    possible: bool = False
    session: Session | None = None
    offset: Offset | None = None
    subscriptions: list[Pending] = field(default_factory=list)
    reason: str | None = None
    channels: list[str] = field(default_factory=list)

    def fail(self, error: NotRecoveredError) -> None:
        self.session = None
        self.reason, self.channels = error.reason, list(error.channels)
        if self.returning:
            metrics.recoveries.labels(error.reason).inc()

    def to_wire(self) -> dict[str, Any]:
        """Return the field ``recovery`` of `server_hello`."""
        if self.session is not None and self.reason is None and self.returning:
            return {"recovered": True}
        channels = {"channels": self.channels} if self.channels else {}
        return {"recovered": False} | ({} if self.reason is None else {"reason": self.reason}) | channels


class Restoring:
    """Restores sessions while their clients connect.

    ``prepare(sid, request)`` prepares a subscription as :meth:`Subscribing.prepare` does, which is stored already.
    ``join(sid, channel, prepared)`` makes the client what it was in the channel's presence.
    """

    def __init__(
        self,
        keeping: Keeping,
        sessions: Sessions,
        manager: Manager,
        hub: Hub,
        log: Log,
        delivery: Delivery,
        prepare: Callable[[str, dict[str, Any]], Pending],
        join: Callable[[str, str, Prepared], object],
    ) -> None:
        self._keeping = keeping
        self._sessions = sessions
        self._manager = manager
        self._hub = hub
        self._log = log
        self._delivery = delivery
        self._prepare = prepare
        self._join = join
        #: By Engine.IO's sid.
        self._attempts: dict[str, _Attempt] = {}

    def resume(self, eio_sid: str, namespace: str, auth: object, claims: Claims | None) -> str | None:
        """Return the sid of the session that a client continues, which is its own from now on; None for a new one."""
        if namespace != "/" or not isinstance(auth, dict) or auth.get("recovery") is not True:
            return None
        if not self._is_here(eio_sid):
            return None  # closed while it was identified
        pid = auth.get("pid")
        attempt = self._attempts[eio_sid] = _Attempt(pid is not None)
        try:
            self._keeping.prepare()
            attempt.possible = True
            if pid is None:
                return None
            ticket = self._keeping.read_pid(pid)
            if ticket is None:
                raise NotRecoveredError("invalid_pid")
            if ticket.who != identity_of(claims):
                raise NotRecoveredError("other_client")
            # Before the offset is looked at: the former connection ends in any case.
            attempt.session = session = self._keeping.take(ticket, str(pid), eio_sid)
            text = auth.get("offset")
            attempt.offset = Offset(ticket.epoch, 0) if text is None else parse_offset(text)
            if not self._is_here(eio_sid):
                self._keeping.lose(ticket.sid)
                return None
            try:
                self._starts(session, attempt.offset)
            except NotRecoveredError:
                # A client that does not get the answer comes back with the same pid, and is told the same reason.
                self._keeping.lose(ticket.sid)
                raise
            return ticket.sid
        except NotRecoveredError as error:
            attempt.fail(error)
            return None

    def restore(self, sid: str, eio_sid: str) -> bool:
        """Restore the subscriptions of a session. Return False if that is impossible: then it is lost again."""
        attempt = self._attempts.get(eio_sid)
        if attempt is None or attempt.session is None:
            return False
        self._hub.add(sid)
        self._manager.follow(sid, attempt.session.cursor)
        try:
            self._restore(sid, attempt, attempt.session)
            return True
        except NotRecoveredError as error:
            attempt.fail(error)
        except (DatabaseError, LogNotInstalledError):
            attempt.fail(NotRecoveredError("database_unavailable"))
        return False

    def restored(self, sid: str, eio_sid: str) -> bool:
        """Begin to deliver, before the answer to CONNECT. Return False if that is impossible. Does not wait."""
        attempt = self._attempts.get(eio_sid)
        session = self._keeping.get(sid)
        if attempt is None or session is None or session is not attempt.session:
            return False  # ended while the application's connect handler waited
        if not self._is_here(eio_sid) or self._is_stale(session):
            return False
        for one in attempt.subscriptions:
            if self._hub.is_subscribed(sid, one.channel) and one.after is not None:
                self._delivery.enter(sid, one.channel, one.filter, one.strings)
                self._delivery.hold(sid, one.channel, one.after, one.start)
                if one.presence is not None:
                    self._join(sid, one.channel, one.presence)
        return True

    def answer(self, sid: str, eio_sid: str, namespace: str) -> dict[str, Any]:
        """Return the ``pid`` of a client that wants one: that of its session, or of a new one."""
        attempt = self._attempts.get(eio_sid)
        if attempt is None or namespace != "/" or not attempt.possible:
            return {}
        if attempt.session is not None and attempt.session.ticket.sid != sid:
            # It could not be restored. With its pid the client would believe that it has missed nothing.
            self._keeping.forget(attempt.session.ticket.sid)
            attempt.fail(NotRecoveredError("failed"))
        if attempt.session is None:
            found = self._sessions.get(sid)
            session = self._keeping.begin(sid, eio_sid, None if found is None else found.claims)
            self._manager.follow(sid, session.cursor)
            return {"pid": session.pid}
        metrics.recoveries.labels("recovered").inc()
        return {"pid": attempt.session.pid}

    def connected(self, sid: str) -> dict[str, Any] | None:
        """Send a client what it has missed, soon.

        Return the field ``recovery`` of its `server_hello`; None if it has not asked for it.
        """
        attempt = self._attempts.pop(self._manager.eio_sid_from_sid(sid, "/"), None)
        catching_up = self._delivery.catching_up(sid)
        if catching_up is not None:
            green.run_soon(catching_up.run)
        return None if attempt is None else attempt.to_wire()

    def closed(self, eio_sid: str) -> None:
        """Forget a connection that is closed."""
        self._attempts.pop(eio_sid, None)

    # -- one session ---------------------------------------------------------------------------------------------------

    def _starts(self, session: Session, offset: Offset | None) -> dict[str, int]:
        """Return the position after which each subscription goes on. Raises :class:`NotRecoveredError`."""
        if offset is None:
            raise NotRecoveredError("unknown_offset")
        if self._is_stale(session) or offset.epoch != self._log.epoch:
            raise NotRecoveredError("epoch_changed")
        if not offset.complete:
            raise NotRecoveredError("replaying")
        notify = self._keeping.not_covered(session)
        if notify:
            raise NotRecoveredError("notify", notify)
        # A client that has got nothing of its session sends the offset of a former one: each subscription goes on where
        # it began. Offsets of this session that are older than it have its tag, and so have those with numbers.
        ticket = session.ticket
        own_offset = offset.position >= ticket.position if offset.tag is None else offset.tag == tag_of(ticket.sid)
        starts = {}
        for channel, entry in session.entries.items():
            reached = _reached(entry, offset) if own_offset else 0
            if reached is None or entry.replaying == "snapshot":
                raise NotRecoveredError("replaying")
            starts[channel] = max(reached, entry.after)
        return starts

    def _restore(self, sid: str, attempt: _Attempt, session: Session) -> None:
        starts = self._starts(session, attempt.offset)
        requests = [self._request(session, channel, after) for channel, after in starts.items()]
        found = green.run_together([functools.partial(self._prepare, sid, request) for request in requests])
        ended: list[tuple[str, str]] = []
        for channel, one in zip(starts, found, strict=True):
            if isinstance(one, Pending):
                if "reason" in one.told:
                    raise NotRecoveredError(str(one.told["reason"]))
                attempt.subscriptions.append(one)
            elif isinstance(one, (DatabaseUnavailableError, DatabaseError, LogNotInstalledError)) or not isinstance(
                one, SocketIOPGError
            ):
                raise one
            else:
                ended.append((channel, one.code))
        for channel, reason in ended:
            # As for a connected client: it may have lost the permission.
            self._keeping.left(sid, channel)
            self._manager.emit("unsubscribed", named(channel) | {"reason": reason}, "/", to=sid, ignore_queue=True)

    def _request(self, session: Session, channel: str, after: int) -> dict[str, Any]:
        entry = session.entries[channel]
        return {
            **named(channel),
            "since": {"epoch": session.ticket.epoch, "position": after},
            "filter": entry.filter,
            "numbers": "string" if entry.strings else None,
            "presence": entry.presence,
        }

    def _is_stale(self, session: Session) -> bool:
        return session.ticket.epoch != self._log.epoch

    def _is_here(self, eio_sid: str) -> bool:
        return self._manager.is_open(eio_sid)


def _reached(entry: Entry, offset: Offset) -> int | None:
    """Return the position up to which a client with an ``offset`` of its session has got a subscription.

    None: the client had the offset before it subscribed.
    """
    own = offset.others.get(entry.number)
    if own is not None:
        return own
    if not entry.replaying:
        return offset.position
    if offset.tag is not None:
        return offset.position if entry.number <= offset.newest else None
    # During the replay, and until the log goes on after its end, offsets have the tag.
    over = not isinstance(entry.replaying, (bool, str)) and offset.position > entry.replaying
    return offset.position if over else None
