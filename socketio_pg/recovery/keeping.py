"""Keeps the sessions of clients that want to recover them, on this node and in the database: docs/recovery.md.

`restoring` gives them back to their clients. The node that has a session is its owner; another one asks it to let go of
the session before it takes it over, so that no two connections have it at a time.
"""

import contextlib
import functools
import json
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import SESSIONS_CHANNEL, match_pattern
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ClusterKeyError, DatabaseUnavailableError, SocketIOPGError
from socketio_pg.core.patterns import is_pattern
from socketio_pg.log.log import Log
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.offsets import Cursor, tag_of
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.recovery.asking import Asking
from socketio_pg.recovery.session import Entry, NotRecoveredError, Session, Ticket, identity_of
from socketio_pg.recovery.session_table import SessionTable

#: For what pids are sealed.
_PURPOSE = "socketio_pg session"
#: The maximum length of a pid.
MAX_PID = 1000


class Keeping:
    """The sessions of one process."""

    #: Seconds for a connection of this node to end, and for taking a session over, repeatedly.
    close_seconds, take_seconds = 5.0, 10.0
    #: Seconds after which a session without a row can no longer be waiting to be stored.
    young = 10.0
    #: Seconds that a `subscribe` waits until it is stored.
    store_seconds = 2.0
    #: Channels of which it is remembered that they have carried NOTIFY messages.
    max_notified = 10_000

    def __init__(self, settings: Settings, pubsub: PubSub, log: Log, manager: Manager) -> None:
        self._seconds = settings.recovery_seconds
        self._durable = settings.durable_channels
        self._pubsub = pubsub
        self._sealing = pubsub.sealing
        self._log = log
        self._manager = manager
        self._sessions: dict[str, Session] = {}
        self._table = SessionTable(pubsub.database, self._seconds, self._store_all)
        #: Whether other nodes can be heard and the table can be used; and when that was last tried in vain.
        self._ready = False
        self._receiving = False
        self._tried_at = float("-inf")
        #: Channels of which this process has delivered NOTIFY messages.
        self._notified: dict[str, None] = {}
        #: Sessions that are being taken over by this process.
        self._taking: dict[str, green.Event] = {}
        self._asking = Asking(pubsub, self._table.owner)
        #: Sessions that others take over: when this process has let go of them (monotonic), the oldest first.
        self._let_go_at: dict[str, float] = {}
        self._expiring = green.Worker()
        #: Sessions that others may have taken over unnoticed.
        self._unchecked: dict[str, None] = {}
        self._checking = green.Worker()

    @property
    def count(self) -> int:
        """The number of sessions of this process, of clients that are here or away."""
        return len(self._sessions)

    def get(self, sid: str) -> Session | None:
        """Return the session of a client of this process; None if it has none."""
        return self._sessions.get(sid)

    def stop(self) -> None:
        """Store the last changes. Other processes need not ask this one from now on."""
        self._asking.stop()
        self._expiring.stop()
        self._checking.stop()
        self._table.stop()

    # -- sessions begin and end ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Return when sessions can be kept. Raises :class:`NotRecoveredError`. Waits."""
        if not self._seconds:
            raise NotRecoveredError("off")
        if self._ready and self._log.epoch is not None:
            return
        if not self._ready and time.monotonic() - self._tried_at < 1.0:
            raise NotRecoveredError("database_unavailable")
        try:
            self._pubsub.wait_log()
            if self._log.epoch is None:
                raise NotRecoveredError("not_installed")
            if not self._receiving:
                self._receiving = True
                self._pubsub.receive_reserved(SESSIONS_CHANNEL, self._hear, self._check_owners)
            self._pubsub.listener.wait(SESSIONS_CHANNEL, self._pubsub.subscribe_timeout_down)
            self._table.find("")
            self._sealing.seal_for_client(_PURPOSE, "")
            self._ready = True
        except (SocketIOPGError, ClusterKeyError):
            self._tried_at = time.monotonic()
            raise NotRecoveredError("database_unavailable") from None

    def begin(self, sid: str, eio_sid: str, claims: Claims | None) -> Session:
        """Begin the session of a client that connects, after :meth:`prepare`. Does not wait."""
        epoch = self._log.epoch or ""
        ticket = Ticket(sid, identity_of(claims), epoch, self._log.position, time.time())
        text = json.dumps([ticket.sid, ticket.who, ticket.epoch, ticket.position, ticket.began])
        pid = self._sealing.seal_for_client(_PURPOSE, text)
        session = Session(ticket, pid, self._cursor(ticket), eio_sid)
        self._add(session)
        self._store(session)
        return session

    def _cursor(self, ticket: Ticket) -> Cursor:
        return Cursor(self._log, tag_of(ticket.sid), ticket.position)

    def read_pid(self, pid: object) -> Ticket | None:
        """Return the contents of a pid; None if it is not one of this installation.

        Waits for the first cluster key. Raises :class:`NotRecoveredError` when there is none.
        """
        if not isinstance(pid, str) or len(pid) > MAX_PID:
            return None
        try:
            text = self._sealing.open_from_client(_PURPOSE, pid)
        except ClusterKeyError:
            raise NotRecoveredError("database_unavailable") from None
        return None if not text else Ticket(*json.loads(text))

    def lose(self, sid: str) -> None:
        """Note that the connection of a session has ended. Its client may return."""
        session = self._sessions.get(sid)
        if session is not None:
            session.eio_sid = None
            session.cursor.behind.clear()
            session.left_at = time.monotonic()

    def forget(self, sid: str) -> None:
        """End a session for good, on all nodes."""
        if not self._ready:
            return
        if self._sessions.pop(sid, None) is not None:
            self._table.put(sid, None)
        elif not self._manager.is_sid_room("/", sid):
            # Its client may be away from another node.
            self._table.forget(sid)
            green.run_soon(self._asking.tell, {"forget": [sid]})
        self._table.busy = bool(self._sessions)

    def forget_user(self, subject: str) -> None:
        """End the sessions of a user whose clients are away from this process."""
        who = identity_of(Claims({"sub": subject}))
        for sid, session in list(self._sessions.items()):
            if session.eio_sid is None and session.ticket.who == who:
                self.forget(sid)

    def identify(self, sid: str, claims: Claims) -> None:
        """End the session of a client that has become another one: its pid is bound to its former identity."""
        session = self._sessions.get(sid)
        if session is not None and session.ticket.who != identity_of(claims):
            self.forget(sid)

    def _add(self, session: Session) -> None:
        self._sessions[session.ticket.sid] = session
        self._table.busy = True
        self._expiring.start(self._expire)

    def _expire(self) -> None:
        while self._sessions:
            green.sleep(max(0.5, min(5.0, self._seconds / 4)))
            latest = time.monotonic() - self._seconds
            for sid, session in list(self._sessions.items()):
                if session.eio_sid is None and session.left_at is not None and session.left_at < latest:
                    del self._sessions[sid]
                    self._table.put(sid, None)
        self._table.busy = False

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def joined(self, sid: str, channel: str, entry: Entry) -> Entry | None:
        """Store a subscription that a client is about to get, and give it a number. Return the one it replaces.

        Waits until it is stored. Raises :class:`DatabaseUnavailableError`, and changes nothing then.
        """
        if self._log.epoch is None:
            self._sessions.pop(sid, None)  # the log was removed, and the table with it
        session = self._sessions.get(sid)
        if session is None:
            return None
        eio_sid, former = session.eio_sid, session.entries.get(channel)
        if former is not None:
            entry.presence = former.presence
        if former is not None and not entry.replaying:
            # It goes on where it is, with another filter.
            entry.number, entry.after, entry.replaying = former.number, former.after, former.replaying
        else:
            session.numbers += 1
            entry.number = session.numbers
        self.put(sid, channel, entry)
        try:
            self._table.wait_written(self.store_seconds)
        except DatabaseUnavailableError:
            if session.eio_sid in (None, eio_sid):  # otherwise another connection has it already
                self.put(sid, channel, former)
            raise
        return former

    def put(self, sid: str, channel: str, entry: Entry | None) -> None:
        """Replace a subscription of a session; None removes it."""
        session = self._sessions.get(sid)
        if session is None or session.entries.get(channel) is entry:
            return
        if entry is None:
            del session.entries[channel]
            session.cursor.leave(channel)
        else:
            session.entries[channel] = entry
            session.cursor.numbers[channel] = entry.number
        self._store(session)

    def began(self, sid: str, channel: str, position: int) -> None:
        """Note the position after which a new subscription without a replay begins."""
        session = self._sessions.get(sid)
        if session is not None and channel in session.entries:
            session.entries[channel].after = position

    def set_presence(self, sid: str, channel: str, recorded: dict[str, Any] | None) -> None:
        """Store what a client is in a channel that it has subscribed to."""
        session = self._sessions.get(sid)
        entry = None if session is None else session.entries.get(channel)
        # One whose connection is lost has the same when it returns.
        if session is not None and entry is not None and session.eio_sid is not None and entry.presence != recorded:
            entry.presence = recorded
            self._store(session)

    def left(self, sid: str, channel: str) -> None:
        """Note that a subscription has ended."""
        self.put(sid, channel, None)

    def replayed(self, sid: str, channel: str, number: int | None) -> None:
        """Note that the replay that the subscription of this number began with is over."""
        session = self._sessions.get(sid)
        entry = None if session is None else session.entries.get(channel)
        # Not of a newer one, which is being stored.
        if session is None or entry is None or entry.number != number:
            return
        if entry.replaying is True or entry.replaying == "snapshot":
            entry.replaying = self._log.position
            self._store(session)

    def note_notify(self, channels: Collection[str]) -> None:
        """Note that these channels carry NOTIFY messages, which a client that is away misses."""
        if self._sessions:
            self._notified |= dict.fromkeys(channels)
            while len(self._notified) > self.max_notified:
                del self._notified[next(iter(self._notified))]

    def not_covered(self, session: Session) -> list[str]:
        """Return the channels of a session of which NOTIFY messages may have been missed.

        Patterns do not promise any.
        """
        return [
            channel
            for channel in session.entries
            if not is_pattern(channel)
            and (
                channel in session.notified
                or channel in self._notified
                or not any(match_pattern(pattern, channel) for pattern in self._durable)
            )
        ]

    def _store(self, session: Session) -> None:
        self._table.put(session.ticket.sid, lambda: session.to_text(self._notified))

    def _store_all(self) -> None:
        for session in self._sessions.values():
            self._store(session)

    # -- taking over ---------------------------------------------------------------------------------------------------

    def take(self, ticket: Ticket, pid: str, eio_sid: str) -> Session:
        """Return the session of a pid, for the connection ``eio_sid``. Ends the connection that has it. Waits.

        Raises :class:`NotRecoveredError`.
        """
        sid = ticket.sid
        with self._alone(sid):
            session = self._sessions.get(sid)
            if session is not None and not self._still_owns(session):
                # Another process has taken it over while this one could not be asked, and may have changed it.
                self._sessions.pop(sid, None)  # it may have been forgotten in the meantime
                if not self._close(session):
                    raise NotRecoveredError("busy")
                session = None
            if session is None:
                text = self._take_elsewhere(ticket)
                if text is None:
                    raise NotRecoveredError("unknown_session")
                session = Session(ticket, pid, self._cursor(ticket), None)
                session.load(text)
                self._add(session)
            elif not self._close(session):
                raise NotRecoveredError("busy")
            elif self._sessions.get(sid) is not session:
                raise NotRecoveredError("unknown_session")  # forgotten in the meantime
            session.eio_sid, session.left_at = eio_sid, None
            # That of the former connection is in the rooms' lists.
            cursor = session.cursor = self._cursor(ticket)
            cursor.numbers = {channel: entry.number for channel, entry in session.entries.items()}
            return session

    @contextlib.contextmanager
    def _alone(self, sid: str) -> Iterator[None]:
        while sid in self._taking:
            self._taking[sid].wait()
        done = self._taking[sid] = green.Event()
        try:
            yield
        finally:
            del self._taking[sid]
            done.send()

    def _close(self, session: Session) -> bool:
        """End the connection that has a session of this process, if there is one. Return whether it has ended."""
        sid = session.ticket.sid
        try:
            if session.eio_sid is not None:
                # It may be about to get the session: then it has no sid yet, and finds out that it is closed.
                self._manager.close(session.eio_sid).wait(self.close_seconds)
            if self._manager.is_sid_room("/", sid):
                self._manager.left(sid).wait(self.close_seconds)
        except green.TimedOut:
            return False
        session.eio_sid = None
        return True

    def _still_owns(self, session: Session) -> bool:
        """Return whether no other process has taken a session of this one over. Waits.

        Each time, because a connection to the database that is lost is noticed late, and with it what others ask for.
        Raises :class:`NotRecoveredError`.
        """
        ticket = session.ticket
        try:
            owner = self._table.find(ticket.sid)
        except SocketIOPGError:
            raise NotRecoveredError("database_unavailable") from None
        if owner is not None:
            return owner.id == self._table.owner
        # It may not be stored yet, or not again. Otherwise another process has forgotten it.
        return (
            time.time() - ticket.began <= self.young or self._table.is_incomplete or self._table.has_changes(ticket.sid)
        )

    def _take_elsewhere(self, ticket: Ticket) -> str | None:
        """Return the subscriptions of a session that another process has, or had; None if there is no such session."""
        sid = ticket.sid
        asked_all = False
        deadline = time.monotonic() + self.take_seconds
        try:
            while time.monotonic() < deadline:
                owner = self._table.find(sid)
                if owner is None:
                    # It may not be stored yet, or not again.
                    young = time.time() - ticket.began <= self.young
                    if asked_all or not (young or self._table.is_incomplete):
                        return None
                    asked_all = True
                    self._asking.ask(sid, None)
                    continue
                if owner.id == self._table.owner:
                    if not self._has_let_go(sid):
                        return None  # this process has forgotten it, and is about to delete it
                    # Another process is about to take it, for a connection that the client has given up already.
                    green.sleep(0.02)
                    continue
                if owner.lives and not self._asking.is_silent(owner.id):
                    self._asking.ask(sid, owner.id)
                subscriptions = self._table.take(sid, owner.id)
                if subscriptions is not None:
                    return subscriptions
        except SocketIOPGError:
            raise NotRecoveredError("database_unavailable") from None
        raise NotRecoveredError("busy")

    def _has_let_go(self, sid: str) -> bool:
        at = self._let_go_at.get(sid)
        return at is not None and time.monotonic() - at < self.take_seconds

    # -- messages of other processes -----------------------------------------------------------------------------------

    def _hear(self, texts: Sequence[str]) -> None:
        for message in self._asking.open(texts):
            if "ask" in message:
                green.run_soon(self._let_go, message["ask"])
            for sid in message.get("forget", ()):
                session = self._sessions.get(sid)
                if session is not None and session.eio_sid is None:
                    del self._sessions[sid]
                    self._table.put(sid, None)

    def _let_go(self, asked: Sequence[tuple[str | None, str]]) -> None:
        """Close the connections of sessions that another process takes over, store them, and say so."""
        mine = [sid for owner, sid in asked if owner == self._table.owner or (owner is None and sid in self._sessions)]
        if not mine:
            return
        green.run_together([functools.partial(self._let_go_of, sid) for sid in mine])
        try:
            # Also one that this process does not have any more: it may be about to be deleted.
            self._table.wait_written(self.close_seconds, now=True)
        except DatabaseUnavailableError:
            return
        self._asking.tell({"released": [sid for sid in mine if sid not in self._sessions]})

    def _let_go_of(self, sid: str) -> None:
        with self._alone(sid):
            session = self._sessions.get(sid)
            if session is not None and self._close(session):
                self._store(session)
                if self._sessions.get(sid) is session:
                    del self._sessions[sid]
                    self._note_let_go(sid)

    def _note_let_go(self, sid: str) -> None:
        now = time.monotonic()
        self._let_go_at.pop(sid, None)
        self._let_go_at[sid] = now
        while now - self._let_go_at[oldest := next(iter(self._let_go_at))] > self.take_seconds:
            del self._let_go_at[oldest]

    def _check_owners(self) -> None:
        """Messages may have been missed: close the connections of sessions that others have taken over."""
        self._unchecked |= dict.fromkeys(self._sessions)
        if self._unchecked:
            self._checking.start(self._close_taken)

    def _close_taken(self) -> None:
        backoff = Backoff(0.1, 5.0)
        while self._unchecked:
            sid = next(iter(self._unchecked))
            try:
                owner = self._table.find(sid)
            except SocketIOPGError:
                green.sleep(backoff.next())
                continue
            backoff.reset()
            del self._unchecked[sid]
            session = self._sessions.get(sid)
            if session is not None and owner is not None and owner.id != self._table.owner:
                del self._sessions[sid]
                if session.eio_sid is not None:
                    self._manager.close(session.eio_sid)
