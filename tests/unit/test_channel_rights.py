"""Which channels a client may hear through its patterns: decisions, and how long they count."""

import pytest

from socketio_pg.access.channel_rights import ChannelRights
from socketio_pg.access.permissions import Permissions
from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Question
from socketio_pg.access.sessions import Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import DatabaseUnavailableError

ALICE, BOB = Claims({"sub": "alice", "role": "r"}), Claims({"sub": "bob", "role": "r"})


class Answers(Policies):
    """Allows what is in ``allowed``, and fails for what is in ``away``."""

    def __init__(self) -> None:
        self.allowed: set[tuple[str, str]] = set()
        self.away: set[str] = set()
        self.asked: list[str] = []

    def ask(self, question: Question) -> bool:
        self.asked.append(question.channel)
        if question.channel in self.away:
            raise DatabaseUnavailableError("away")
        return any(f'"{sub}"' in question.claims and channel == question.channel for sub, channel in self.allowed)


class World:
    """One client, ``sid``, who is alice."""

    def __init__(self) -> None:
        self.answers = Answers()
        settings = Settings(
            authorization="rls", allowed_roles=("r",), public_channels=("open:*",), permission_cache_seconds=0.0
        )
        self.permissions = Permissions(settings, "required", self.answers)
        self.sessions = Sessions(0, lambda session: None, lambda session: None)
        self.sessions.set("sid", "/", ALICE)
        self.rights = ChannelRights(self.permissions, self.sessions, 60.0)

    def known(self, channel: str) -> bool | None:
        refused, unknown = self.rights.sort(channel, ["sid"])
        return None if unknown else not refused


@pytest.fixture
def world() -> World:
    return World()


def test_each_channel_is_asked_once(world: World) -> None:
    world.answers.allowed = {("alice", "a:1"), ("bob", "a:2")}
    assert world.rights.are_asked("a:*")
    assert not world.rights.are_asked("open:x*")
    assert [world.known(channel) for channel in ("a:1", "a:2", "open:1")] == [None, None, True]
    assert world.rights.decide("sid", ["a:1", "a:2", "open:1"]) == {"a:1", "open:1"}
    assert [world.known(channel) for channel in ("a:1", "a:2", "open:1")] == [True, False, True]
    assert world.rights.decide("sid", ["a:1", "a:2"]) == {"a:1"}
    assert sorted(world.answers.asked) == ["a:1", "a:2"]
    assert world.rights.decide("gone", ["a:1"]) == set()
    world.rights.drop("sid")
    assert world.known("a:1") is None


def test_a_decision_ends_with_changed_permissions_identity_and_time(world: World) -> None:
    world.answers.allowed = {("alice", "a:1"), ("alice", "a:2")}
    world.rights.decide("sid", ["a:1", "a:2"])
    world.permissions.forget("a:1")
    assert [world.known(channel) for channel in ("a:1", "a:2")] == [None, True]
    world.permissions.forget(None)
    assert world.known("a:2") is None
    world.answers.allowed.clear()
    assert world.rights.decide("sid", ["a:1", "a:2"]) == set()
    world.sessions.set("sid", "/", BOB)
    assert [world.known(channel) for channel in ("a:1", "a:2")] == [None, None]
    world.rights.refuse("sid", ["a:1"], -1.0)
    assert world.known("a:1") is None


def test_what_cannot_be_decided_is_not_known(world: World) -> None:
    world.answers.allowed, world.answers.away = {("alice", "a:1")}, {"a:2"}
    with pytest.raises(DatabaseUnavailableError):
        world.rights.decide("sid", ["a:1", "a:2"])
    assert [world.known(channel) for channel in ("a:1", "a:2")] == [True, None]
    world.rights.refuse("sid", ["a:1", "a:2"], 60.0)
    assert [world.known(channel) for channel in ("a:1", "a:2")] == [True, False], "what is known stays"


def test_only_so_many_decisions_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChannelRights, "max_channels", 3)
    for number in range(5):
        world.rights.decide("sid", [f"a:{number}"])
    assert [world.known(f"a:{number}") for number in range(5)] == [None, None, False, False, False]
