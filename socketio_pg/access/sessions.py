"""The sessions of connected clients: their claims and when these expire."""

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from socketio_pg.access.tokens import Claims
from socketio_pg.core import green


@dataclass(frozen=True, eq=False, slots=True)
class Session:
    """One client of one Socket.IO namespace; ``claims`` is None for an anonymous one.

    ``since``: when it connected, in seconds since 1970.
    """

    sid: str
    namespace: str
    claims: Claims | None
    since: float = field(default_factory=time.time)

    @property
    def subject(self) -> str | None:
        """The name of the user: ``sub`` of the claims."""
        return None if self.claims is None else self.claims.subject


class Sessions:
    """The sessions by ``sid``. One green thread watches the expiry of all of them.

    ``on_expiring`` is called :attr:`warn_before` seconds before a session's claims expire, ``on_expired`` ``leeway``
    seconds after they have expired. Both may wait.
    """

    #: Seconds.
    warn_before = 30.0
    #: Seconds between two checks.
    tick = 0.5

    def __init__(
        self, leeway: float, on_expiring: Callable[[Session], None], on_expired: Callable[[Session], None]
    ) -> None:
        self._leeway = leeway
        self._on_expiring = on_expiring
        self._on_expired = on_expired
        self._sessions: dict[str, Session] = {}
        #: The ids of each user's sessions, the oldest first.
        self._of_subject: dict[str, dict[str, None]] = {}
        #: A heap of (wall-clock time, tie-breaker, session, whether it expires then; else it is warned).
        self._due: list[tuple[float, int, Session, bool]] = []
        self._numbers = itertools.count()
        self._worker = green.Worker()

    def set(self, sid: str, namespace: str, claims: Claims | None) -> None:
        """Set the claims of ``sid``, which may have a session already."""
        former = self._remove(sid)
        session = Session(sid, namespace, claims) if former is None else replace(former, claims=claims)
        self._sessions[sid] = session
        if session.subject is not None:
            self._of_subject.setdefault(session.subject, {})[sid] = None
        if claims is None or claims.expires_at is None:
            return
        self._forget_old()
        heapq.heappush(self._due, (claims.expires_at - self.warn_before, next(self._numbers), session, False))
        heapq.heappush(self._due, (claims.expires_at + self._leeway, next(self._numbers), session, True))
        self._worker.start(self._watch)

    def get(self, sid: str) -> Session | None:
        """Return the session of ``sid``; None when it has disconnected."""
        return self._sessions.get(sid)

    def drop(self, sid: str) -> None:
        """Forget ``sid``, which has disconnected."""
        self._remove(sid)

    def all(self) -> list[Session]:
        """Return all sessions."""
        return list(self._sessions.values())

    def of(self, subject: str) -> list[Session]:
        """Return the sessions of a user."""
        return [self._sessions[sid] for sid in self._of_subject.get(subject, ())]

    def __len__(self) -> int:
        return len(self._sessions)

    def _remove(self, sid: str) -> Session | None:
        session = self._sessions.pop(sid, None)
        if session is not None and session.subject is not None:
            sids = self._of_subject[session.subject]
            del sids[sid]
            if not sids:
                del self._of_subject[session.subject]
        return session

    def _is_current(self, session: Session) -> bool:
        return self._sessions.get(session.sid) is session

    def _forget_old(self) -> None:
        """Remove replaced sessions from the heap now and then: otherwise they stay until they expire, maybe a year."""
        if len(self._due) > 1000 and len(self._due) > 4 * len(self._sessions):
            self._due = [entry for entry in self._due if self._is_current(entry[2])]
            heapq.heapify(self._due)

    def _watch(self) -> None:
        while self._due:
            while self._due and self._due[0][0] <= time.time():
                _, _, session, at_end = heapq.heappop(self._due)
                if self._is_current(session):
                    green.run_soon(self._on_expired if at_end else self._on_expiring, session)
            green.sleep(self.tick)
