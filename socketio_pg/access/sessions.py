"""Who the connected clients are, and until when."""

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from socketio_pg.access.tokens import Claims
from socketio_pg.core import green


@dataclass(frozen=True, eq=False, slots=True)
class Session:
    """One client of one Socket.IO namespace; ``claims`` is None for an anonymous one."""

    sid: str
    namespace: str
    claims: Claims | None


class Sessions:
    """The sessions by ``sid``. One green thread looks after all that end some time.

    ``on_expiring`` is called :attr:`warn_before` seconds before a session's claims end, ``on_expired`` when they have,
    ``leeway`` seconds late. Both may wait.
    """

    #: Seconds.
    warn_before = 30.0
    #: Seconds between two looks at the clock.
    tick = 0.5

    def __init__(
        self, leeway: float, on_expiring: Callable[[Session], None], on_expired: Callable[[Session], None]
    ) -> None:
        self._leeway = leeway
        self._on_expiring = on_expiring
        self._on_expired = on_expired
        self._sessions: dict[str, Session] = {}
        #: (when, a number that makes it unique, what of, whether that is the end). By the wall clock, as tokens are.
        self._due: list[tuple[float, int, Session, bool]] = []
        self._numbers = itertools.count()
        self._worker = green.Worker()

    def set(self, sid: str, namespace: str, claims: Claims | None) -> None:
        """Who ``sid`` is from now on."""
        session = self._sessions[sid] = Session(sid, namespace, claims)
        if claims is None or claims.expires_at is None:
            return
        self._forget_old()
        heapq.heappush(self._due, (claims.expires_at - self.warn_before, next(self._numbers), session, False))
        heapq.heappush(self._due, (claims.expires_at + self._leeway, next(self._numbers), session, True))
        self._worker.start(self._watch)

    def get(self, sid: str) -> Session | None:
        """The session of ``sid``; None when it has left."""
        return self._sessions.get(sid)

    def drop(self, sid: str) -> None:
        """``sid`` has left."""
        self._sessions.pop(sid, None)

    def __len__(self) -> int:
        return len(self._sessions)

    def _is_current(self, session: Session) -> bool:
        return self._sessions.get(session.sid) is session

    def _forget_old(self) -> None:
        """Who has left or renewed stays in the heap until that is due, which can be in a year: sweep now and then."""
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
