"""The channels that clients may hear through a pattern, with AUTHORIZATION=rls: asked at each channel's first message.

No client learns about a channel that it may not hear. A decision counts for a while, and until permissions change.
"""

import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from socketio_pg.access.permissions import Permissions
from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.core import green, metrics
from socketio_pg.core.errors import ForbiddenError


@dataclass(frozen=True, slots=True)
class _Decision:
    """Whether a client may hear a channel, until when that counts, and :meth:`Permissions.mark` when it was asked."""

    session: Session
    allowed: bool
    until: float
    mark: int


class ChannelRights:
    """The decisions for all clients. They are no older than ``seconds`` (PERMISSION_RECHECK_SECONDS; 0: any age)."""

    #: Decisions that are remembered for each client; the oldest are asked again.
    max_channels = 2_000

    def __init__(self, permissions: Permissions, sessions: Sessions, seconds: float) -> None:
        self._permissions = permissions
        self._sessions = sessions
        # A decision must still count when the question has been answered.
        self._seconds = max(1.0, seconds) if seconds else float("inf")
        self._of: dict[str, dict[str, _Decision]] = {}

    def are_asked(self, pattern: str) -> bool:
        """Return whether the subscribers of ``pattern`` hear only the channels for which they have the permission."""
        return self._permissions.asks_each(pattern)

    def sort(self, channel: str, sids: Collection[str]) -> tuple[list[str], list[str]]:
        """Return those of ``sids`` that may not hear a channel, and those for which it is not known. Does not wait."""
        refused: list[str] = []
        unknown: list[str] = []
        if self._permissions.is_public(channel):
            return refused, unknown
        # For each message and each of its receivers: without a call for each condition.
        now, changed, of, session_of = (
            time.monotonic(),
            self._permissions.changed_at(channel),
            self._of,
            self._sessions.get,
        )
        for sid in sids:
            found = of.get(sid, _NONE).get(channel)
            if found is None or found.until <= now or found.mark < changed or session_of(sid) is not found.session:
                unknown.append(sid)
            elif not found.allowed:
                refused.append(sid)
        return refused, unknown

    def decide(self, sid: str, channels: Collection[str]) -> set[str]:
        """Return the channels that a client may hear. Asks for those that are not known, all at the same time. Waits.

        Raises :class:`DatabaseUnavailableError` or :class:`DatabaseError` when one of them cannot be decided; the
        others are known afterwards.
        """
        unknown = [one for one in channels if sid in self.sort(one, [sid])[1]]
        while unknown:
            session = self._sessions.get(sid)
            if session is None:
                return set()
            mark = self._permissions.mark()
            self._ask(session, mark, unknown)
            # Permissions may have changed meanwhile, and so may the client's identity.
            unknown = [one for one in unknown if sid in self.sort(one, [sid])[1]]
        return {one for one in channels if self.sort(one, [sid]) == ([], [])}

    def refuse(self, sid: str, channels: Collection[str], seconds: float) -> None:
        """Refuse what is not known of ``channels``, for some seconds: it could not be decided in time."""
        session = self._sessions.get(sid)
        if session is not None:
            until, mark = time.monotonic() + seconds, self._permissions.mark()
            for channel in channels:
                if sid in self.sort(channel, [sid])[1]:
                    self._note(channel, _Decision(session, False, until, mark))

    def drop(self, sid: str) -> None:
        """Forget a client that has left, or has no patterns any more."""
        self._of.pop(sid, None)

    def _ask(self, session: Session, mark: int, channels: Sequence[str]) -> None:
        found = green.run_together([functools.partial(self._is_allowed, session, one) for one in channels])
        failure: BaseException | None = None
        until = time.monotonic() + self._seconds
        for channel, answer in zip(channels, found, strict=True):
            if isinstance(answer, BaseException):
                failure = answer
                metrics.pattern_channels.labels("failed").inc()
            else:
                metrics.pattern_channels.labels("allowed" if answer else "refused").inc()
                self._note(channel, _Decision(session, answer, until, mark))
        if failure is not None:
            raise failure

    def _is_allowed(self, session: Session, channel: str) -> bool:
        try:
            self._permissions.require(session.claims, "subscribe", channel)
            return True
        except ForbiddenError:
            return False

    def _note(self, channel: str, decision: _Decision) -> None:
        sid = decision.session.sid
        if self._sessions.get(sid) is decision.session:
            decisions = self._of.setdefault(sid, {})
            decisions.pop(channel, None)
            decisions[channel] = decision
            if len(decisions) > self.max_channels:
                del decisions[next(iter(decisions))]


_NONE: dict[str, _Decision] = {}
