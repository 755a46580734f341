"""May these claims subscribe or publish here? The rules of the settings, and the answers of `policies` for a while.

Who a client is, is found out before (`authentication`).
"""

import hashlib
import json
import time
from typing import NamedTuple, TypeAlias

from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Action, Question
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    ForbiddenError,
    LogNotInstalledError,
)

#: A question: action, channel, role, hash of the claims.
_Key: TypeAlias = tuple[str, str, str, bytes]


class _Remembered(NamedTuple):
    """An answer, until when it counts, and :meth:`Permissions.mark` when it was asked for."""

    until: float
    allowed: bool
    mark: int


class _Flight:
    """A question that is being asked since ``mark``."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.done = green.Event()


class Permissions:
    """What clients may do. ``authentication`` is how AUTH works out; ``policies`` are asked with AUTHORIZATION=rls."""

    #: Seconds for which a no counts without asking again: who was just let in need not wait long.
    denied_seconds = 1.0
    #: Answers that are remembered.
    most_remembered = 20_000

    def __init__(self, settings: Settings, authentication: str, policies: Policies) -> None:
        self._settings = settings
        self._authentication = authentication
        self._policies = policies
        self._publish = settings.publish or ("all" if authentication == "off" else "authenticated")
        #: The roles that clients may have.
        self.roles = {*settings.allowed_roles, *filter(None, [settings.anonymous_role])}
        if self.roles and settings.authorization != "rls":
            raise ConfigurationError(
                f"ALLOWED_ROLES and ANONYMOUS_ROLE need AUTHORIZATION=rls; it is {settings.authorization}."
            )
        if settings.authorization == "rls" and not self.roles:
            raise ConfigurationError(
                "AUTHORIZATION=rls needs ALLOWED_ROLES, or ANONYMOUS_ROLE: without them nobody may."
            )
        self._remembered: dict[_Key, _Remembered] = {}
        #: What is being asked: who has the same question waits for its answer.
        self._flights: dict[_Key, _Flight] = {}
        #: Goes up with each change that was told; when all, and each channel, changed last.
        self._time = self._all_changed = 0
        self._changed: dict[str, int] = {}

    @property
    def may_change(self) -> bool:
        """Whether the same client may be allowed something else later: with policies, by their data."""
        return self._settings.authorization == "rls"

    def require(self, claims: Claims | None, action: Action, channel: str) -> None:
        """Return when a client with ``claims`` (None: anonymous) may do ``action`` in ``channel``. May wait.

        Raises :class:`ForbiddenError`, and :class:`DatabaseUnavailableError` or :class:`DatabaseError` when there is
        no knowing: then it may not, either.
        """
        try:
            reason = self._refusal(claims, action, channel)
        except LogNotInstalledError:
            raise DatabaseError("permissions cannot be checked: run 'socketio-pg init'", channel=channel) from None
        if reason is not None:
            raise ForbiddenError(reason, channel=channel)

    def recheck(self, claims: Claims | None, channel: str) -> bool:
        """Whether a client that subscribes to ``channel`` still may; what is remembered does not count. May wait.

        Raises as :meth:`require`.
        """
        question = None if self._is_public(channel) else self._question(claims, "subscribe", channel)
        if not isinstance(question, Question):
            return self._refusal(claims, "subscribe", channel) is None
        self._remembered.pop(_key(question), None)
        return self._ask(question)

    def forget(self, channel: str | None) -> None:
        """Permissions for ``channel``, or for any, have changed: what is remembered or being asked counts no more."""
        self._time += 1
        if channel is None or len(self._changed) >= self.most_remembered:
            self._all_changed = self._time
            self._changed.clear()
        else:
            self._changed[channel] = self._time

    def mark(self) -> int:
        """For :meth:`is_overtaken`."""
        return self._time

    def is_overtaken(self, channel: str, mark: int) -> bool:
        """Whether permissions for ``channel`` have changed since :meth:`mark`: an answer from then may be too old."""
        return max(self._all_changed, self._changed.get(channel, 0)) > mark

    def _refusal(self, claims: Claims | None, action: Action, channel: str) -> str | None:
        """Why it is forbidden; None when it is not."""
        if action == "subscribe" and self._is_public(channel):
            return None
        if action == "publish":
            if self._publish == "off":
                return "clients may not publish"
            if self._publish == "authenticated" and claims is None:
                return "anonymous clients may not publish"
        if self._settings.authorization == "off":
            let_in = claims is not None or self._authentication == "off" or action == "publish"
            return None if let_in else "anonymous clients may subscribe to public channels only"
        if self._settings.authorization == "claims":
            return None if _in_claims(claims, action, channel) else f"the token does not allow to {action} here"
        question = self._question(claims, action, channel)
        if not isinstance(question, Question):
            return question
        return None if self._ask(question) else f"the policies do not allow to {action} here"

    def _is_public(self, channel: str) -> bool:
        return any(match_pattern(pattern, channel) for pattern in self._settings.public_channels)

    def _question(self, claims: Claims | None, action: Action, channel: str) -> Question | str | None:
        """What the policies are to be asked; a refusal where that is clear already; None where they have no say."""
        if self._settings.authorization != "rls":
            return None
        named = None if claims is None else claims.claims.get(self._settings.jwt_role_claim)
        role = self._settings.anonymous_role if named is None else named
        if role is None:
            return "the token names no role" if claims is not None else "anonymous clients have no role"
        if not isinstance(role, str) or role not in self.roles:
            return "the token's role is not among those that are allowed"
        if claims is not None and claims.claims.get("role") == role:
            return Question(action, role, claims.text, channel)
        # As PostgREST does: `role` says what it is, also where the token does not.
        complete = {**(claims.claims if claims is not None else {}), "role": role}
        return Question(action, role, json.dumps(complete, separators=(",", ":")), channel)

    def _ask(self, question: Question) -> bool:
        key = _key(question)
        remembered = self._remembered.get(key)
        if remembered is not None and time.monotonic() < remembered.until and self._counts(question, remembered.mark):
            return remembered.allowed
        flight = self._flights.get(key)
        if flight is not None and self._counts(question, flight.mark):
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

    def _counts(self, question: Question, mark: int) -> bool:
        return not self.is_overtaken(question.channel, mark)

    def _remember(self, key: _Key, allowed: bool, mark: int) -> None:
        seconds = self._settings.permission_cache_seconds
        now = time.monotonic()
        # The oldest go first; in the order in which they were asked, which is nearly that in which they end.
        while self._remembered:
            oldest = next(iter(self._remembered))
            if self._remembered[oldest].until > now and len(self._remembered) < self.most_remembered:
                break
            del self._remembered[oldest]
        self._remembered.pop(key, None)
        until = now + (seconds if allowed else min(seconds, self.denied_seconds))
        self._remembered[key] = _Remembered(until, allowed, mark)


def _key(question: Question) -> _Key:
    # Claims may be long, and are not to be kept for longer than their client.
    claims = hashlib.blake2b(question.claims.encode(), digest_size=16).digest()
    return question.action, question.channel, question.role, claims


def _in_claims(claims: Claims | None, action: Action, channel: str) -> bool:
    """Whether one of the patterns that the token lists under the action's name fits."""
    patterns = None if claims is None else claims.claims.get(action)
    if not isinstance(patterns, list):
        return False
    return any(isinstance(pattern, str) and match_pattern(pattern, channel) for pattern in patterns)
