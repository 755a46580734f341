"""Rechecks of permissions: their triggers and revocations."""

import contextlib
from collections.abc import Callable

import pytest

from socketio_pg.access.permissions import Permissions
from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Action, Question
from socketio_pg.access.rechecks import Rechecks
from socketio_pg.access.sessions import Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.pubsub.hub import Hub
from tests.support.patience import PATIENCE


class Answers(Policies):
    """Denies (sub, channel) in ``forbidden``, and fails for channels in ``unknown``."""

    def __init__(self) -> None:
        self.forbidden: set[tuple[str, str]] = set()
        self.unknown: set[str] = set()
        self.asked: list[str] = []
        #: Every answer waits for this event.
        self.gate = green.Event()
        self.gate.send()

    def ask(self, question: Question) -> bool:
        self.asked.append(question.channel)
        self.gate.wait(PATIENCE)
        if question.channel in self.unknown:
            raise DatabaseUnavailableError("away")
        return not any(f'"{sub}"' in question.claims and channel == question.channel for sub, channel in self.forbidden)


class World:
    """Clients ``a`` and ``b``, also named so in their claims, in channels ``x`` and ``y``."""

    def __init__(self, interval: float) -> None:
        self.answers = Answers()
        settings = Settings(authorization="rls", allowed_roles=("r",))
        self.permissions = Permissions(settings, "required", self.answers)
        self.hub, self.sessions = Hub(), Sessions(0, lambda session: None, lambda session: None)
        self.revoked: list[tuple[str, str]] = []
        #: Further actions for which clients are there, by client and channel.
        self.actions: dict[tuple[str, str], list[Action]] = {}
        self.ended: list[tuple[str, str, str]] = []
        self.changed = green.Event()
        self.rechecks = Rechecks(self.sessions, self.hub, self.permissions, self._actions, self._revoke, interval)
        self.rechecks.min_pause = 0.0
        self.rechecks.retry = 0.01
        for sid in "ab":
            self.hub.add(sid)
            self.sessions.set(sid, "/", Claims({"sub": sid, "role": "r"}))
            for channel in "xy":
                self.hub.subscribe(sid, channel)

    def _actions(self, sid: str, channel: str) -> list[Action]:
        return self.actions.get((sid, channel), [])

    def _revoke(self, sid: str, channel: str, action: Action) -> None:
        if action == "subscribe":
            self.revoked.append((sid, channel))
            self.hub.unsubscribe(sid, channel)
        else:
            self.ended.append((sid, channel, action))
        self.changed.send()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with contextlib.suppress(green.TimedOut), green.timeout(PATIENCE):
            while not condition():
                green.sleep(0.001)
        assert condition()


@pytest.fixture
def world() -> World:
    return World(interval=0)


def test_all_subscriptions_are_rechecked_periodically() -> None:
    world = World(interval=0.01)
    world.rechecks.start()
    world.wait_for(lambda: len(world.answers.asked) > 8)
    assert world.revoked == []
    world.answers.forbidden.add(("a", "y"))
    world.changed.wait(PATIENCE)
    assert world.revoked == [("a", "y")]
    world.rechecks.stop()


def test_zero_interval_rechecks_only_on_request(world: World) -> None:
    world.rechecks.start()
    world.answers.forbidden |= {("a", "x"), ("b", "y")}
    green.sleep(0.05)
    assert world.answers.asked == []
    world.rechecks.permissions_changed(None)
    world.wait_for(lambda: len(world.revoked) == 2)
    assert sorted(world.revoked) == [("a", "x"), ("b", "y")]
    world.rechecks.stop()


def test_recheck_can_be_limited_to_one_channel(world: World) -> None:
    world.rechecks.start()
    world.answers.forbidden |= {("a", "x"), ("a", "y")}
    world.rechecks.permissions_changed("y")
    world.rechecks.permissions_changed("nobody's")
    world.wait_for(lambda: bool(world.revoked))
    assert world.revoked == [("a", "y")]
    assert set(world.answers.asked) == {"y"}
    world.rechecks.stop()


def test_failed_recheck_keeps_the_subscription_and_is_retried(world: World) -> None:
    world.rechecks.start()
    world.answers.forbidden |= {("a", "x"), ("a", "y")}
    world.answers.unknown.add("y")
    world.rechecks.permissions_changed(None)
    world.wait_for(lambda: world.answers.asked.count("y") >= 6)
    assert world.revoked == [("a", "x")]
    world.answers.unknown.clear()
    world.wait_for(lambda: len(world.revoked) == 2)
    world.rechecks.stop()


def test_recheck_with_outdated_claims_is_ignored(world: World) -> None:
    world.answers.forbidden |= {("a", "x"), ("b", "x")}
    world.answers.gate = green.Event()
    world.rechecks.start()
    world.rechecks.permissions_changed("x")
    world.wait_for(lambda: len(world.answers.asked) == 2)
    world.sessions.set("a", "/", Claims({"sub": "c", "role": "r"}))
    world.answers.gate.send()
    world.wait_for(lambda: bool(world.revoked))
    assert world.revoked == [("b", "x")]
    world.rechecks.stop()


def test_new_token_is_checked_for_all_channels(world: World) -> None:
    claims = Claims({"sub": "a", "role": "r"})
    world.answers.forbidden.add(("a", "x"))
    assert world.rechecks.ask(claims, ["x", "y"]) == {"x": False, "y": True}
    assert world.rechecks.ask(claims, []) == {}
    world.answers.unknown.add("y")
    with pytest.raises(DatabaseUnavailableError):
        world.rechecks.ask(claims, ["x", "y"])
