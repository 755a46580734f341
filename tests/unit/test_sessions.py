"""Sessions: warnings before tokens expire, and expiry."""

import pytest

from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from tests.support.patience import PATIENCE


class Clock:
    """The wall clock of the sessions."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("socketio_pg.access.sessions.time", clock)
    return clock


class Watched:
    """Sessions with recorded callbacks."""

    def __init__(self, clock: Clock, leeway: float = 0.0) -> None:
        self._clock = clock
        self.calls: list[tuple[str, str]] = []
        self.sessions = Sessions(
            leeway,
            lambda session: self.calls.append(("expiring", session.sid)),
            lambda session: self.calls.append(("expired", session.sid)),
        )
        self.sessions.tick = 0.001

    def at(self, seconds: float) -> list[tuple[str, str]]:
        """Set the clock to ``seconds`` after the start. Return the callbacks since the last call."""
        self._clock.now = 1_000_000.0 + seconds
        done = len(self.calls)
        for _ in range(20):  # some ticks; after a pause of the whole process, one longer sleep may be only one of them
            green.sleep(0.001)
        return self.calls[done:]

    def set(self, sid: str, lives: float | None) -> None:
        self.sessions.set(sid, "/", Claims({} if lives is None else {"exp": int(1_000_000 + lives)}))


def test_session_is_warned_and_expires(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("a", 100)
    watched.set("b", 200)
    watched.set("forever", None)
    assert watched.at(69) == []
    assert watched.at(70) == [("expiring", "a")]
    assert watched.at(99) == []
    assert watched.at(100) == [("expired", "a")]
    assert watched.at(1000) == [("expiring", "b"), ("expired", "b")]


def test_leeway_delays_the_expiry(clock: Clock) -> None:
    watched = Watched(clock, leeway=10)
    watched.set("a", 100)
    assert watched.at(109) == [("expiring", "a")]
    assert watched.at(110) == [("expired", "a")]


def test_short_session_is_warned_immediately(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("a", 5)
    assert watched.at(0) == [("expiring", "a")]


def test_renewed_or_dropped_session_does_not_expire(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("renews", 100)
    watched.set("leaves", 100)
    watched.sessions.drop("leaves")
    watched.set("renews", 500)
    assert watched.at(200) == []
    assert watched.at(470) == [("expiring", "renews")]
    watched.set("renews", None)
    assert watched.at(10_000) == []


def test_clock_jump_expires_due_sessions(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("a", 3600)
    assert watched.at(-3600) == []
    assert watched.at(7200) == [("expiring", "a"), ("expired", "a")]


def test_session_has_namespace_and_claims(clock: Clock) -> None:
    sessions = Watched(clock).sessions
    claims = Claims({"sub": "alice"})
    sessions.set("a", "/", claims)
    sessions.set("b", "/chat", None)
    found = [sessions.get("a"), sessions.get("b")]
    assert [(one.namespace, one.claims) for one in found if one] == [("/", claims), ("/chat", None)]
    sessions.drop("a")
    sessions.drop("a")
    assert sessions.get("a") is None
    assert len(sessions) == 1


def test_dropped_sessions_are_removed_before_they_expire(clock: Clock) -> None:
    watched = Watched(clock)
    for number in range(10_000):
        watched.set(str(number), 10_000_000)
        watched.sessions.drop(str(number))
    assert len(watched.sessions._due) < 3000


def test_slow_or_failing_callback_does_not_delay_others(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    gate = green.Event()

    def expired(session: Session) -> None:
        if session.sid == "a":
            gate.wait(PATIENCE)
            raise ValueError("a handler that fails")
        calls.append(session.sid)
        gate.send()

    sessions = Sessions(0, lambda session: None, expired)
    sessions.tick = 0.001
    for sid in "ab":
        sessions.set(sid, "/", Claims({"exp": 1}))
    gate.wait(PATIENCE)
    assert calls == ["b"]
    with green.timeout(PATIENCE):
        while not caplog.records:
            green.sleep(0.001)
