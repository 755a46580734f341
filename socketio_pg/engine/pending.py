"""The sessions that are not connected to a namespace, and which of them are closed to make room. Pure, no clock."""

from collections.abc import Iterator
from typing import Protocol

#: Seconds within which a long-polling session must send its second request. Stock clients send it immediately.
SILENT_SECONDS = 5.0
#: An address with more sessions than this makes room before other addresses do.
MAX_SHARE = 10


class Session(Protocol):
    """A session of the engine, as far as this module uses it."""

    #: The client's address, in the form in which limits count it.
    address: str


class _Crowds:
    """Finds the addresses that have more than :data:`MAX_SHARE` sessions."""

    def __init__(self) -> None:
        #: Address → its sessions, the oldest first.
        self._sessions: dict[str, dict[Session, None]] = {}
        self._crowded: dict[str, None] = {}

    def add(self, session: Session) -> None:
        sessions = self._sessions.setdefault(session.address, {})
        sessions[session] = None
        if len(sessions) > MAX_SHARE:
            self._crowded[session.address] = None

    def discard(self, session: Session) -> None:
        sessions = self._sessions.get(session.address)
        if sessions is None or session not in sessions:
            return
        del sessions[session]
        if len(sessions) <= MAX_SHARE:
            self._crowded.pop(session.address, None)
        if not sessions:
            del self._sessions[session.address]

    def oldest(self) -> Session | None:
        """Return the oldest session of an address that has too many, of each such address in turn; None without any."""
        address = next(iter(self._crowded), None)
        if address is None:
            return None
        del self._crowded[address]
        self._crowded[address] = None
        return next(iter(self._sessions[address]))


class Pending:
    """Sessions before they connect to a namespace, each with the time at which it was opened.

    A session is *silent* until its second request: a handshake of long-polling takes no connection, so that one client
    can make thousands in a second. WebSockets are never silent. A session is *busy* while the server handles a message
    of it: it waits for the server and not the other way round, and is not closed to make room.

    A flood from a few addresses makes room itself: the oldest session of an address with more than :data:`MAX_SHARE` is
    closed before the oldest of all.
    """

    def __init__(self) -> None:
        # Each begins with the session that has been in it for the longest time.
        self._silent: dict[Session, float] = {}
        self._idle: dict[Session, float] = {}
        self._busy: dict[Session, float] = {}
        #: Of the silent sessions, and of these and the idle ones.
        self._silent_crowds, self._crowds = _Crowds(), _Crowds()

    def __len__(self) -> int:
        return len(self._silent) + len(self._idle) + len(self._busy)

    @property
    def silent(self) -> int:
        """The number of silent sessions."""
        return len(self._silent)

    def add(self, session: Session, now: float, *, silent: bool) -> None:
        """Add a session that was opened, or that has left its namespace, at ``now``."""
        self.remove(session)
        (self._silent if silent else self._idle)[session] = now
        self._crowds.add(session)
        if silent:
            self._silent_crowds.add(session)

    def answer(self, session: Session) -> bool:
        """Note that a session has sent another request. Return whether it was silent."""
        opened = self._silent.pop(session, None)
        if opened is not None:
            self._idle[session] = opened
            self._silent_crowds.discard(session)
        return opened is not None

    def begin(self, session: Session) -> None:
        """Note that the server handles a message of the session."""
        opened = self._idle.pop(session, None)
        if opened is not None:
            self._busy[session] = opened
            self._crowds.discard(session)

    def end(self, session: Session) -> None:
        """Note that the message has been handled."""
        opened = self._busy.pop(session, None)
        if opened is not None:
            self._idle[session] = opened
            self._crowds.add(session)

    def remove(self, session: Session) -> None:
        """Forget a session that is connected to a namespace or closed."""
        for kind in (self._silent, self._idle, self._busy):
            kind.pop(session, None)
        self._crowds.discard(session)
        self._silent_crowds.discard(session)

    def oldest_silent(self) -> Session | None:
        """Return the session to close when there are too many silent ones: the oldest one of these."""
        return self._silent_crowds.oldest() or next(iter(self._silent), None)

    def oldest(self) -> Session | None:
        """Return the session to close when there is no room at all: the oldest one that is not busy."""
        crowding = self._crowds.oldest()
        if crowding is not None:
            return crowding
        first = [next(iter(kind.items()), None) for kind in (self._silent, self._idle)]
        found = [one for one in first if one is not None]
        return min(found, key=lambda one: one[1])[0] if found else None

    def expired(self, now: float, seconds: float) -> Iterator[Session]:
        """Yield the sessions that were opened ``seconds`` ago, silent ones after :data:`SILENT_SECONDS`."""
        for session, opened in list(self._silent.items()):
            if opened + min(seconds, SILENT_SECONDS) > now:
                break  # silent sessions are in the order of their opening
            yield session
        for kind in (self._idle, self._busy):
            for session, opened in list(kind.items()):
                if opened + seconds <= now:
                    yield session
