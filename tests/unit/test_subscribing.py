"""Subscribing to many channels: a new epoch of the log while some of them wait, and failures of single ones."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from socketio_pg.core.config import Settings
from socketio_pg.core.errors import DatabaseUnavailableError, ForbiddenError
from socketio_pg.core.rules import Rules
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.subscribing import Subscribing
from socketio_pg.pubsub.hub import Hub

SINCE = {"epoch": "first", "position": 1}


class World:
    """The collaborators of :class:`Subscribing`; the log's epoch becomes ``second`` when channel ``c`` is read."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.hub.add("sid")
        self.epoch: str | None = "first"
        self.position = 7
        self.finds: Counter[str] = Counter()
        self.entered: list[str] = []
        #: Called while the channel is read.
        self.meanwhile: dict[str, Callable[[], object]] = {}
        self.failing: set[tuple[str, int]] = set()
        holds = SimpleNamespace(position_of=lambda sid, channel, live: 7)
        rules = Rules()
        pubsub: Any = SimpleNamespace(
            join=self.hub.subscribe, leave=self.hub.unsubscribe, holds=holds, rules=rules, rule_of=rules.of
        )
        delivery: Any = SimpleNamespace(
            enter=self._enter,
            has_entered=lambda sid, channel: channel in self.entered,
            hold=lambda *_: None,
            align=lambda *_: None,
            tell_live=lambda *_: None,
            leave=self.hub.unsubscribe,
        )
        names = ("joined", "left", "put", "began")
        keeping: Any = SimpleNamespace(**dict.fromkeys(names, lambda *_: None))
        presence: Any = SimpleNamespace(prepare=lambda *_: None)
        permissions: Any = SimpleNamespace(mark=lambda: 0, is_overtaken=lambda channel, mark: False)
        manager = SimpleNamespace(eio_sid_from_sid=lambda sid, namespace: "its connection")
        server: Any = SimpleNamespace(manager=manager)
        self.subscribing = Subscribing(
            server, pubsub, self.hub, self, delivery, keeping, permissions, ClientLimits(Settings()), presence,  # type: ignore[arg-type]
            self._require,
        )  # fmt: skip

    def find_start(self, channel: str, start: Any) -> tuple[int | None, dict[str, Any]]:
        self.finds[channel] = number = self.finds[channel] + 1
        if channel == "c":
            self.epoch = "second"
        if start is not None:
            self.meanwhile.pop(channel, lambda: None)()
        if (channel, number) in self.failing:
            raise DatabaseUnavailableError("not now")
        if start is None:
            return None, {}
        return (1, {"recovered": True}) if start.epoch == self.epoch else (None, {"recovered": False})

    def _enter(self, sid: str, channel: str, filter: object, strings: bool) -> bool:
        self.entered.append(channel)
        return False

    def _require(self, sid: str, channel: str) -> None:
        if channel == "forbidden":
            raise ForbiddenError("no")

    def subscribe(self, *channels: Any) -> list[dict[str, Any]]:
        answer = self.subscribing.subscribe("sid", {"channels": list(channels), "since": SINCE})
        assert (answer.event, answer.once) == ("subscribed", True)
        results: list[dict[str, Any]] = answer.body["channels"]
        return results


@pytest.fixture
def world() -> World:
    return World()


def test_a_new_epoch_applies_to_channels_that_were_read_before(world: World) -> None:
    """They are in no room yet, so that no gap would reach them."""
    results = world.subscribe("a", {"channel": "b", "since": None}, "c", "d")
    assert [result["epoch"] for result in results] == ["second"] * 4
    assert [result.get("recovered") for result in results] == [False, None, False, False]
    # Only what depends on the epoch is read again.
    assert world.finds == {"a": 2, "b": 1, "c": 1, "d": 1}


def test_a_failed_channel_is_left_and_does_not_affect_others(world: World) -> None:
    world.failing = {("a", 2), ("d", 1)}
    results = world.subscribe("a", "b", "c", "d", "forbidden", "")
    assert [result.get("error", {}).get("code") for result in results] == [
        "database_unavailable", None, None, "database_unavailable", "forbidden", "invalid_channel",
    ]  # fmt: skip
    assert world.hub.channels_of("sid") == set(world.entered) == {"b", "c"}


def test_an_earlier_subscription_survives_the_failure_of_a_later_request(world: World) -> None:
    world.hub.subscribe("sid", "a")
    world.failing = {("a", 1)}
    assert world.subscribe("a", "b")[0]["ok"] is False
    assert world.hub.channels_of("sid") == {"a", "b"}


@pytest.mark.parametrize("together", [True, False])
def test_a_request_that_fails_leaves_the_subscription_of_another_request(world: World, together: bool) -> None:
    """It would be in its room without being known to rechecks, so that it would survive a lost permission."""
    world.failing = {("a", 1)}
    world.meanwhile["a"] = lambda: world.subscribing.subscribe("sid", {"channel": "a"})
    if together:
        assert world.subscribe("a")[0]["ok"] is False
    else:
        with pytest.raises(DatabaseUnavailableError):
            world.subscribing.subscribe("sid", {"channel": "a", "since": SINCE})
    assert world.entered == ["a"]
    assert world.hub.channels_of("sid") == {"a"}


def test_names_that_are_no_texts_are_invalid_and_no_repetition(world: World) -> None:
    nested: Any = []
    for _ in range(5_000):
        nested = [nested]
    results = world.subscribe(None, "None", None, {"channel": 1}, "1", nested, {"channel": nested}, "1")
    assert [result.get("error", {}).get("code") for result in results] == [
        "invalid_channel", None, "invalid_channel", "invalid_channel", None, "invalid_channel", "invalid_channel",
        "invalid_request",
    ]  # fmt: skip


def test_channels_of_a_client_that_has_left_are_not_kept(world: World) -> None:
    world.hub.drop("sid")
    assert [result["error"]["code"] for result in world.subscribe("a", "b")] == ["invalid_request"] * 2
    assert world.hub.channels() == set()


def test_numbers_of_the_request_apply_to_each_channel_without_its_own(world: World) -> None:
    channels = ["a", {"channel": "b", "numbers": None}, {"channel": "d", "since": None}]
    results = world.subscribing.subscribe("sid", {"channels": channels, "numbers": "string"}).body["channels"]
    assert [result.get("numbers") for result in results] == ["string", None, "string"]
