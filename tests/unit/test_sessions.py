"""socketio_pg.sessions: who is warned, and who is over."""

import pytest

from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green


class Clock:
    """The wall clock, as the sessions see it."""

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
    """Sessions, and what was called."""

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
        """What is called until ``seconds`` after the beginning, and was not before."""
        self._clock.now = 1_000_000.0 + seconds
        done = len(self.calls)
        green.sleep(0.02)  # some ticks
        return self.calls[done:]

    def set(self, sid: str, lives: float | None) -> None:
        self.sessions.set(sid, "/", Claims({} if lives is None else {"exp": int(1_000_000 + lives)}))


def test_a_warning_and_the_end(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("a", 100)
    watched.set("b", 200)
    watched.set("forever", None)
    assert watched.at(69) == []
    assert watched.at(70) == [("expiring", "a")]
    assert watched.at(99) == []
    assert watched.at(100) == [("expired", "a")]
    assert watched.at(1000) == [("expiring", "b"), ("expired", "b")]


def test_the_end_is_late_by_the_leeway(clock: Clock) -> None:
    watched = Watched(clock, leeway=10)
    watched.set("a", 100)
    assert watched.at(109) == [("expiring", "a")]
    assert watched.at(110) == [("expired", "a")]


def test_a_short_life_is_warned_of_at_once(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("a", 5)
    assert watched.at(0) == [("expiring", "a")]


def test_who_renews_or_leaves_is_left_alone(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("renews", 100)
    watched.set("leaves", 100)
    watched.sessions.drop("leaves")
    watched.set("renews", 500)
    assert watched.at(200) == []
    assert watched.at(470) == [("expiring", "renews")]
    watched.set("renews", None)
    assert watched.at(10_000) == []


def test_a_clock_that_jumps_ends_what_has_ended(clock: Clock) -> None:
    watched = Watched(clock)
    watched.set("a", 3600)
    assert watched.at(-3600) == []
    assert watched.at(7200) == [("expiring", "a"), ("expired", "a")]


def test_who_they_are(clock: Clock) -> None:
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


def test_those_who_have_left_are_not_kept_until_their_tokens_end(clock: Clock) -> None:
    watched = Watched(clock)
    for number in range(10_000):
        watched.set(str(number), 10_000_000)
        watched.sessions.drop(str(number))
    assert len(watched.sessions._due) < 3000


def test_the_callback_of_one_does_not_hold_up_others(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    gate = green.Event()

    def expired(session: Session) -> None:
        if session.sid == "a":
            gate.wait(5)
            raise ValueError("a handler that fails")
        calls.append(session.sid)
        gate.send()

    sessions = Sessions(0, lambda session: None, expired)
    sessions.tick = 0.001
    for sid in "ab":
        sessions.set(sid, "/", Claims({"exp": 1}))
    gate.wait(5)
    assert calls == ["b"]
    with green.timeout(5):
        while not caplog.records:
            green.sleep(0.001)
