"""Checks whether a client may subscribe or publish: applies the settings' rules, and caches decisions of `policies`.

Clients are authenticated before (`authentication`).
"""

import hashlib
import json
import time
from typing import NamedTuple, TypeAlias

from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import INSERTING, Action, Question
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    ForbiddenError,
    LogNotInstalledError,
)
from socketio_pg.core.patterns import covers, is_pattern, prefix_of

#: What the actions whose name is no verb are called in an error.
_WORDS: dict[Action, str] = {
    "presence": "see who is there",
    "join": "be a member",
    "ephemeral": "publish ephemeral messages",
    "pattern": "subscribe",
}
#: The cache key of a question: action, channel, role, hash of the claims.
_Key: TypeAlias = tuple[str, str, str, bytes]


#: The settings that say which clients may do an action.
_SETTINGS: dict[Action, str] = {"publish": "PUBLISH", "join": "PRESENCE", "ephemeral": "EPHEMERAL"}


class Decision(NamedTuple):
    """The decision about an action, and its cause: a setting's name, ``claims`` (those of the token) or ``policies``.

    ``reason`` is that of a refusal, None if it is allowed. The policies are still to be asked the ``question``.
    """

    by: str
    reason: str | None = None
    question: Question | None = None


class _Remembered(NamedTuple):
    """A decision, when it expires, and the value of :meth:`Permissions.mark` when the question was asked."""

    until: float
    allowed: bool
    mark: int


class _Flight:
    """A question that was asked at ``mark`` and has no answer yet."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.done = green.Event()


class Permissions:
    """The permission checks of one server.

    ``authentication`` is the effective value of AUTH; ``policies`` decide with AUTHORIZATION=rls.
    """

    #: Seconds for which a refusal is cached: short, so that a newly granted permission takes effect soon.
    denied_seconds = 1.0
    #: Decisions in the cache.
    max_remembered = 20_000

    def __init__(self, settings: Settings, authentication: str, policies: Policies) -> None:
        self._settings = settings
        self._authentication = authentication
        self._policies = policies
        everybody = "all" if authentication == "off" else "authenticated"
        self._publish = settings.publish or everybody
        #: Who may do what only some clients may do, before AUTHORIZATION decides: off, authenticated, or all.
        self._allowed: dict[Action, str] = {
            "publish": self._publish,
            "join": settings.presence or everybody,
            "ephemeral": settings.ephemeral or self._publish,
        }
        #: The roles that clients may have.
        self.roles = {*settings.allowed_roles, *filter(None, [settings.anonymous_role])}
        if self.roles and settings.authorization != "rls":
            raise ConfigurationError(
                f"ALLOWED_ROLES and ANONYMOUS_ROLE need AUTHORIZATION=rls; it is {settings.authorization}."
            )
        if settings.authorization == "rls" and not self.roles:
            raise ConfigurationError(
                "AUTHORIZATION=rls needs ALLOWED_ROLES or ANONYMOUS_ROLE: without them every client is refused."
            )
        self._remembered: dict[_Key, _Remembered] = {}
        #: Questions in flight: other callers with the same question wait for its answer.
        self._flights: dict[_Key, _Flight] = {}
        #: A counter of notified permission changes; its value at the last change of all channels, and of each channel.
        self._time = self._all_changed = 0
        self._changed: dict[str, int] = {}

    @property
    def may_change(self) -> bool:
        """Whether a client's permissions may change while it is connected: with policies, as their data changes."""
        return self._settings.authorization == "rls"

    def require(self, claims: Claims | None, action: Action, channel: str) -> None:
        """Return if a client with ``claims`` (None: anonymous) may do ``action`` in ``channel``. May wait.

        Raises :class:`ForbiddenError`, and :class:`DatabaseUnavailableError` or :class:`DatabaseError` when the
        permission cannot be checked: the client is refused then, too.
        """
        try:
            reason = self._refusal(claims, action, channel)
        except LogNotInstalledError:
            problem = "permissions cannot be checked: run 'socketio-pg init'"
            raise DatabaseRefusedError(problem, channel=channel) from None
        if reason is not None:
            raise ForbiddenError(reason, channel=channel)

    def recheck(self, claims: Claims | None, channel: str, action: Action = "subscribe") -> bool:
        """Return whether a client may go on with ``action`` in ``channel``, without using cached decisions. May wait.

        Raises as :meth:`require`.
        """
        if is_pattern(channel):
            return self._decide_pattern(claims, channel).reason is None
        question = self._question(claims, action, channel)
        if isinstance(question, Question):
            self._remembered.pop(_key(question), None)
        return self._refusal(claims, action, channel) is None

    def role(self, claims: Claims | None) -> str:
        """Return the role of a client with AUTHORIZATION=rls. Raises :class:`ForbiddenError`."""
        role = self.named_role(claims)
        if role is None or role not in self.roles:
            raise ForbiddenError("the client has no role in ALLOWED_ROLES, and there is no ANONYMOUS_ROLE for it")
        return role

    def forget(self, channel: str | None) -> None:
        """Discard cached decisions and pending answers: permissions for ``channel`` (None: for any) have changed."""
        self._time += 1
        if channel is None or len(self._changed) >= self.max_remembered:
            self._all_changed = self._time
            self._changed.clear()
        else:
            self._changed[channel] = self._time

    def mark(self) -> int:
        """Return the present time of the permissions, for :meth:`is_overtaken`."""
        return self._time

    def is_overtaken(self, channel: str, mark: int) -> bool:
        """Return whether permissions for ``channel`` have changed since ``mark``: a decision from then may be stale."""
        return self.changed_at(channel) > mark

    def changed_at(self, channel: str) -> int:
        """Return the mark at which permissions for ``channel`` last changed."""
        return max(self._all_changed, self._changed.get(channel, 0))

    def decide(self, claims: Claims | None, action: Action, channel: str) -> Decision:
        """Return what decides about an action, without asking the policies. Does not wait."""
        if action == "pattern":
            return self._decide_pattern(claims, channel)
        if action == "subscribe" and self.is_public(channel):
            return Decision("PUBLIC_CHANNELS")
        what = _WORDS.get(action, action)
        if action in ("publish", "ephemeral"):
            if any(match_pattern(pattern, channel) for pattern in self._settings.html_channels):
                return Decision("HTML_CHANNELS", "clients may not publish to a channel of HTML_CHANNELS")
            if any(match_pattern(f"table:{table}", channel) for table in self._settings.live_tables):
                return Decision("LIVE_TABLES", "clients may not publish to the channels of live tables")
        if action == "presence" and self._settings.presence == "off":
            return Decision("PRESENCE", "clients may not see who is there")
        allowed = self._allowed.get(action)
        if allowed == "off":
            return Decision(self._setting_of(action), f"clients may not {what}")
        if allowed == "authenticated" and claims is None:
            return Decision(self._setting_of(action), f"anonymous clients may not {what}")
        if self._settings.authorization == "off":
            if action in INSERTING:
                return Decision(self._setting_of(action))
            if claims is not None or self._authentication == "off":
                return Decision("AUTHORIZATION" if claims is not None else "AUTH")
            if action == "presence":
                # As for messages: who may read a channel may see who is there.
                return self.decide(claims, "subscribe", channel)
            return Decision("PUBLIC_CHANNELS", "anonymous clients may subscribe to public channels only")
        if self._settings.authorization == "claims":
            listed = _in_claims(claims, action, channel)
            return Decision("claims", None if listed else f"the token has no permission to {what} here")
        return self._by_policies(claims, action, channel)

    def _refusal(self, claims: Claims | None, action: Action, channel: str) -> str | None:
        """Return the reason for a refusal, None if the action is allowed."""
        decision = self.decide(claims, action, channel)
        if decision.question is None or self._ask(decision.question):
            return decision.reason
        return f"the policies grant no permission to {_WORDS.get(action, action)} here"

    def _setting_of(self, action: Action) -> str:
        """Return the setting that says which clients may do an action, before AUTHORIZATION decides."""
        own = {"join": self._settings.presence, "ephemeral": self._settings.ephemeral}.get(action)
        if own is not None or action == "publish":
            return _SETTINGS[action]
        return "PUBLISH" if action == "ephemeral" else "AUTH"

    def is_public(self, channel: str) -> bool:
        """Return whether every client may subscribe to a channel, or to all channels that match a pattern."""
        return any(covers(public, channel) for public in self._settings.public_channels)

    def asks_each(self, pattern: str) -> bool:
        """Return whether the subscribers of a pattern need the permission for each channel that matches it."""
        return self._settings.authorization == "rls" and not self.is_public(pattern)

    def _decide_pattern(self, claims: Claims | None, pattern: str) -> Decision:
        """Return what decides about a subscription to a pattern. The policies are asked for each channel later."""
        authorization = self._settings.authorization
        everything = self.is_public("*") or (authorization == "claims" and _in_claims(claims, "subscribe", "*"))
        least = self._settings.pattern_min_prefix
        if len(prefix_of(pattern)) < least and not everything:
            characters = "1 character" if least == 1 else f"{least} characters"
            return Decision("PATTERN_MIN_PREFIX", f"a pattern needs at least {characters} before its first '*' here")
        if self.is_public(pattern):
            return Decision("PUBLIC_CHANNELS")
        if authorization == "claims":
            covered = _in_claims(claims, "subscribe", pattern)
            return Decision("claims", None if covered else "no pattern in the token's list subscribe covers this one")
        if authorization == "rls":
            decision = self._by_policies(claims, "subscribe", pattern)
            return decision._replace(question=None)
        if claims is not None or self._authentication == "off":
            return Decision("AUTHORIZATION" if claims is not None else "AUTH")
        return Decision("PUBLIC_CHANNELS", "anonymous clients may subscribe to public channels only")

    def _by_policies(self, claims: Claims | None, action: Action, channel: str) -> Decision:
        question = self._question(claims, action, channel)
        if isinstance(question, Question):
            return Decision("policies", question=question)
        named = self.named_role(claims) is not None
        return Decision("ALLOWED_ROLES" if named or claims is not None else "ANONYMOUS_ROLE", question)

    def _question(self, claims: Claims | None, action: Action, channel: str) -> Question | str | None:
        """Return the question for the policies, or the reason for a refusal without them; None without rls."""
        if self._settings.authorization != "rls":
            return None
        role = self.named_role(claims)
        if role is None:
            return "the token names no role" if claims is not None else "anonymous clients have no role"
        if role not in self.roles:
            return "the token's role is not in ALLOWED_ROLES"
        if claims is not None and claims.claims.get("role") == role:
            return Question(action, role, claims.text, channel)
        # As in PostgREST, the claims always contain `role`, even if the token does not.
        complete = {**(claims.claims if claims is not None else {}), "role": role}
        return Question(action, role, json.dumps(complete, separators=(",", ":")), channel)

    def named_role(self, claims: Claims | None) -> str | None:
        """Return the role that a client has with AUTHORIZATION=rls, whether it is allowed or not; None without one."""
        named = None if claims is None else claims.claims.get(self._settings.jwt_role_claim)
        if named is None:
            return self._settings.anonymous_role
        return named if isinstance(named, str) else ""

    def _ask(self, question: Question) -> bool:
        key = _key(question)
        remembered = self._remembered.get(key)
        if remembered is not None and time.monotonic() < remembered.until and self._is_valid(question, remembered.mark):
            return remembered.allowed
        flight = self._flights.get(key)
        if flight is not None and self._is_valid(question, flight.mark):
            result = flight.done.wait()
            if isinstance(result, Exception):
                raise result
            return bool(result)
        flight = self._flights[key] = _Flight(self._time)
        answer: bool | Exception = DatabaseUnavailableError("permissions cannot be checked at the moment")
        try:
            answer = self._policies.ask(question)
        except Exception as error:
            answer = error
            raise
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            flight.done.send(answer)
        self._remember(key, answer, flight.mark)
        return answer

    def _is_valid(self, question: Question, mark: int) -> bool:
        return not self.is_overtaken(question.channel, mark)

    def _remember(self, key: _Key, allowed: bool, mark: int) -> None:
        seconds = self._settings.permission_cache_seconds
        now = time.monotonic()
        # Evicts in insertion order, which is nearly the order of expiry.
        while self._remembered:
            oldest = next(iter(self._remembered))
            if self._remembered[oldest].until > now and len(self._remembered) < self.max_remembered:
                break
            del self._remembered[oldest]
        self._remembered.pop(key, None)
        until = now + (seconds if allowed else min(seconds, self.denied_seconds))
        self._remembered[key] = _Remembered(until, allowed, mark)


def _key(question: Question) -> _Key:
    # A hash: claims may be long, and must not be kept for longer than their client is connected.
    claims = hashlib.blake2b(question.claims.encode(), digest_size=16).digest()
    return question.action, question.channel, question.role, claims


def _in_claims(claims: Claims | None, action: Action, channel: str) -> bool:
    """Return whether a pattern that the token lists under the action's name covers a channel, or a pattern."""
    patterns = None if claims is None else claims.claims.get(action)
    if not isinstance(patterns, list):
        return False
    return any(isinstance(pattern, str) and covers(pattern, channel) for pattern in patterns)
