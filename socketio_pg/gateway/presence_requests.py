"""Handles the requests of clients about presence: a field of `subscribe`, and events. docs/presence.md has them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from socketio_pg.access.permissions import Permissions
from socketio_pg.access.questions import Action
from socketio_pg.access.rechecks import Rechecks
from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.channels import has_control_characters, validate_channel
from socketio_pg.core.errors import (
    ForbiddenError,
    InvalidRequestError,
    PayloadTooLargeError,
    SocketIOPGError,
    TooManySubscriptionsError,
)
from socketio_pg.core.messages import encode_payload
from socketio_pg.core.patterns import is_pattern
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.presence_rooms import PresenceRooms
from socketio_pg.presence.presence import Presence
from socketio_pg.presence.roster import ANONYMOUS
from socketio_pg.protocol.answers import Answer
from socketio_pg.pubsub.hub import UnknownSubscriberError

#: Bytes of a state as JSON, of the key that an anonymous client chooses, and of a token's ``sub``.
MAX_STATE, MAX_KEY, MAX_SUBJECT = 1024, 128, 512
#: Channels in which one client may be a member, or watch.
MAX_CHANNELS = 100

#: U+0000 in JSON: not that of an escaped backslash.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is allowed. ``key`` is the one that it has chosen; ``state`` JSON text.

    ``mark``, ``session``: the time of the permissions, and the client's claims, when it was asked whether it may.
    ``ref``, ``joined_at``: of the membership that its recoverable session has.
    """

    join: bool
    watch: bool
    key: str | None
    state: str
    mark: int
    session: Session | None
    ref: str | None = None
    joined_at: int | None = None
    #: Whether its session has more, which it may not do any more.
    refused: bool = False


class PresenceRequests:
    """The requests about presence of this process's clients.

    ``require(action, sid, channel)`` returns when the client may do that, and raises otherwise; it may wait.
    ``rule_of(channel)`` returns what the rules say of a channel, once they are known.
    """

    def __init__(
        self,
        presence: Presence,
        rooms: PresenceRooms,
        sessions: Sessions,
        permissions: Permissions,
        rechecks: Rechecks,
        limits: ClientLimits,
        require: Callable[[Action, str, str], object],
        rules: Rules,
        rule_of: Callable[[str], Rule],
    ) -> None:
        self._presence = presence
        self._rooms = rooms
        self._sessions = sessions
        self._permissions = permissions
        self._rechecks = rechecks
        self._limits = limits
        self._require = require
        self._rules = rules
        self._rule_of = rule_of
        #: Client → the channels whose members it waits for.
        self._waiting: dict[str, set[str]] = {}
        rules.watch(lambda: green.run_soon(self._apply_rules))

    # -- the field of `subscribe` --------------------------------------------------------------------------------------

    def prepare(self, sid: str, channel: str, value: object) -> Prepared | None:
        """Check the field ``presence``, and load the members. Return None if it asks for nothing. Waits.

        Raises :class:`InvalidRequestError`, :class:`ForbiddenError`, :class:`RateLimitedError`,
        :class:`TooManySubscriptionsError`, and the errors of :meth:`Presence.members`.
        """
        if value is None:
            return None
        if is_pattern(channel):
            raise InvalidRequestError("presence needs the name of a channel, not a pattern")
        mark, session = self._permissions.mark(), self._sessions.get(sid)
        if value is False:
            return Prepared(False, False, None, "", mark, session)
        if value is True:
            self._check_may(sid, channel, "presence")
            prepared = Prepared(False, True, None, "", mark, session)
        elif isinstance(value, dict):
            key, state = _requested_key(value.get("key")), _requested_state(value.get("state"))
            self._check_may(sid, channel, "join")
            self._limits.check_presence(sid)
            self._key(sid, key)
            prepared = Prepared(True, self._may_watch(sid, channel), key, state, mark, session)
        else:
            raise InvalidRequestError("presence must be true, false or an object")
        waiting = self._waiting.setdefault(sid, set())
        try:
            self._check_channels(sid, channel)
            waiting.add(channel)
            if prepared.watch:
                self._presence.roster(channel)
        finally:
            waiting.discard(channel)
            if not waiting:
                self._waiting.pop(sid, None)
        return prepared

    def _check_channels(self, sid: str, channel: str) -> None:
        channels = self._rooms.channels_of(sid) | self._waiting.get(sid, set())
        if channel not in channels and len(channels) >= MAX_CHANNELS:
            raise TooManySubscriptionsError(f"a client may use presence in at most {MAX_CHANNELS} channels")

    def prepare_again(self, sid: str, channel: str, recorded: dict[str, Any] | None) -> Prepared | None:
        """Check what :meth:`PresenceRooms.record` has stored with the session that a client recovers. Waits.

        What the client may not do any more is left out, and it is told.
        """
        if recorded is None:
            return None
        key, mark, session = recorded.get("key"), self._permissions.mark(), self._sessions.get(sid)
        may_join = may_watch = False
        try:
            if key is not None and key == self._key(sid, key.removeprefix(ANONYMOUS)):
                self._check_may(sid, channel, "join")
                may_join = True
        except ForbiddenError:
            pass
        if recorded.get("watch"):
            may_watch = self._may_watch(sid, channel)
            if may_watch:
                self._presence.roster(channel)
        return Prepared(
            may_join,
            may_watch,
            None if key is None else key.removeprefix(ANONYMOUS),
            recorded.get("state", "null"),
            mark,
            session,
            recorded.get("ref"),
            recorded.get("joined_at"),
            refused=may_join is not (key is not None) or may_watch is not bool(recorded.get("watch")),
        )

    def complete(self, sid: str, channel: str, prepared: Prepared) -> dict[str, Any]:
        """Join and watch, as far as the client may. Return the field of the answer. Does not wait."""
        body: dict[str, Any] = {}
        # Before anything begins: what fails leaves nothing behind.
        key = self._key(sid, prepared.key) if prepared.join else ""
        if prepared.join or prepared.watch:
            # Again: requests for other channels may have been prepared at the same time.
            self._check_channels(sid, channel)
        if prepared.watch:
            self._rooms.watch(sid, channel)
        else:
            self._rooms.unwatch(sid, channel)
        if prepared.join:
            membership = self._presence.join(
                sid, channel, key, prepared.state, ref=prepared.ref, joined_at=prepared.joined_at
            )
            self._rooms.record(sid, channel)
            body = {"key": membership.key, "ref": membership.ref}
        else:
            self._rooms.leave(sid, channel)
        if prepared.watch:
            body = self._presence.state(channel) | body
        if prepared.refused:
            self._rooms.tell_ended(sid, channel, ForbiddenError.code)
        if self._permissions.is_overtaken(channel, prepared.mark):
            self._rechecks.recheck(channel)
        if self._sessions.get(sid) is not prepared.session:
            green.run_soon(self._check_again, sid)
        return body

    # -- events --------------------------------------------------------------------------------------------------------

    def get(self, sid: str, request: dict[str, Any]) -> Answer:
        channel = validate_channel(request.get("channel"))
        self._check_may(sid, channel, "presence")
        self._presence.roster(channel)
        return Answer("presence_state", {"channel": channel} | self._presence.state(channel), once=True)

    def update(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        channel = validate_channel(request.get("channel"))
        if "state" not in request:
            raise InvalidRequestError("state is missing")
        state = _requested_state(request["state"])
        membership = self._presence.get(sid, channel)
        if membership is None:
            raise InvalidRequestError("the client is not a member of this channel: it joins with 'subscribe'")
        self._limits.check_presence(sid)
        self._presence.join(sid, channel, membership.key, state)
        self._rooms.record(sid, channel)
        return {"ok": True, "channel": channel}

    def leave(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        channel = validate_channel(request.get("channel"))
        self._rooms.leave(sid, channel)
        return {"ok": True, "channel": channel}

    # -- permissions of clients that are there -------------------------------------------------------------------------

    def actions(self, sid: str, channel: str) -> list[Action]:
        """Return the permissions that a client needs for what it is in a channel."""
        actions: list[Action] = []
        if self._rooms.is_watching(sid, channel):
            actions.append("presence")
        if self._presence.get(sid, channel) is not None:
            actions.append("join")
        return actions

    def revoke(self, sid: str, channel: str, action: Action) -> None:
        """End what a client may not do any more, and tell it."""
        if action in self.actions(sid, channel):
            (self._rooms.leave if action == "join" else self._rooms.unwatch)(sid, channel)
            self._rooms.tell_ended(sid, channel, ForbiddenError.code)

    def renew(self, sid: str) -> None:
        """Apply the new claims of a client: it leaves as the person that it was. Does not wait."""
        for membership in self._presence.of_client(sid):
            try:
                same = self._key(sid, membership.key.removeprefix(ANONYMOUS)) == membership.key
            except (ForbiddenError, UnknownSubscriberError):
                same = False
            if not same:
                self._rooms.leave(sid, membership.channel)
                self._rooms.tell_ended(sid, membership.channel, "identity_changed")
        if self._rooms.channels_of(sid):
            green.run_soon(self._check_again, sid)

    def _check_again(self, sid: str) -> None:
        for channel in self._rooms.channels_of(sid):
            for action in self.actions(sid, channel):
                try:
                    self._require(action, sid, channel)
                except ForbiddenError:
                    self.revoke(sid, channel, action)
                except UnknownSubscriberError:
                    return
                except SocketIOPGError:
                    self._rechecks.recheck(channel)

    def _apply_rules(self) -> None:
        """End what the rules do not allow any more."""
        for sid, channel in self._rooms.all():
            if not self._rules.of(channel).presence:
                for action in self.actions(sid, channel):
                    self.revoke(sid, channel, action)

    def _check_may(self, sid: str, channel: str, action: Action) -> None:
        if not self._rule_of(channel).presence:
            raise ForbiddenError("presence is not allowed in this channel", channel=channel)
        self._require(action, sid, channel)

    def _may_watch(self, sid: str, channel: str) -> bool:
        try:
            self._check_may(sid, channel, "presence")
        except ForbiddenError:
            return False
        return True

    def _key(self, sid: str, chosen: str | None) -> str:
        """Return the key of a client. Raises :class:`ForbiddenError` if its token names nobody."""
        session = self._sessions.get(sid)
        if session is None:
            raise UnknownSubscriberError(sid)
        if session.claims is None:
            return f"{ANONYMOUS}{chosen or sid}"
        return _subject(session.claims)


def _subject(claims: Claims) -> str:
    subject = claims.subject
    if not subject:
        raise ForbiddenError("the token has no sub, which names the member")
    if subject.startswith(ANONYMOUS) or not _is_storable(subject) or len(subject.encode()) > MAX_SUBJECT:
        raise ForbiddenError("the sub of this token cannot be the name of a member")
    return subject


def _is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text: without control characters and lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not has_control_characters(text)


def _requested_key(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and _is_storable(value) and 1 <= len(value.encode()) <= MAX_KEY:
        return value
    raise InvalidRequestError(f"key must be a string of 1 to {MAX_KEY} bytes without control characters")


def _requested_state(value: object) -> str:
    try:
        text = encode_payload(value)
    except InvalidRequestError:
        raise InvalidRequestError("state must be a JSON value") from None
    size = len(text.encode())
    if size > MAX_STATE:
        raise PayloadTooLargeError(f"state has {size} bytes of UTF-8 as JSON; at most {MAX_STATE} are allowed")
    if _NUL.search(text):
        raise InvalidRequestError("state must not contain U+0000")
    return text
