"""PubSub without a database: its address, and who gets which message."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from socketio_pg.core.channels import LOG_CHANNEL, PERMISSIONS_CHANNEL
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.messages import EncodedMessage, from_log
from socketio_pg.pubsub.filters import Filter, parse_filter
from socketio_pg.pubsub.local import LocalSubscription
from socketio_pg.pubsub.pubsub import PubSub

NOWHERE = "postgresql://user:password@127.0.0.1:9/nowhere"


class Receiver:
    """Remembers payloads and gaps; fails at the payload ``"bad"``."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def receive(self, message: EncodedMessage, extra: Mapping[str, Any]) -> None:
        if message.payload() == "bad":
            raise RuntimeError("bad")
        self.got.append(message.payload())

    def gap(self, gap: dict[str, Any]) -> None:
        self.got.append(gap["reason"])

    def live(self, live: dict[str, Any]) -> None:
        """Is not remembered."""


def subscribed(pubsub: PubSub, filter: Filter | None = None) -> tuple[LocalSubscription, Receiver]:
    """A complete subscription to the channel a, without a LISTEN."""
    receiver = Receiver()
    subscription = LocalSubscription("a", receiver, filter, pubsub.log)
    pubsub.hub.add(subscription)
    pubsub.hub.subscribe(subscription, "a")
    pubsub._local.add(subscription)
    return subscription, receiver


def deliver(pubsub: PubSub, *payloads: str, logged: bool = False) -> None:
    pubsub._dispatcher.deliver(
        [
            from_log(position, "a", "2026", payload) if logged else EncodedMessage("a", payload)
            for position, payload in enumerate(payloads, 1)
        ]
    )


def test_the_address_of_an_application(clean_settings: Path) -> None:
    app = SimpleNamespace(config={"SQLALCHEMY_DATABASE_URI": "postgresql+psycopg2://127.0.0.1:9/of_app"})
    assert "of_app" in str(PubSub.from_app(app).database)


def test_an_application_without_an_address(clean_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = SimpleNamespace(config={})
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        PubSub.from_app(app)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:9/of_environment")
    assert "of_environment" in str(PubSub.from_app(app).database)


def test_changed_permissions_count_before_messages_of_the_log_that_came_with_them() -> None:
    pubsub = PubSub(NOWHERE)
    order: list[str] = []
    pubsub._follower.hear = lambda texts: order.extend(texts)  # type: ignore[method-assign]
    pubsub.receive_reserved(PERMISSIONS_CHANNEL, order.extend, lambda: None)
    pubsub._dispatcher.on_notifications([(LOG_CHANNEL, "1 2 3"), (PERMISSIONS_CHANNEL, "a")])
    assert order == ["a", "1 2 3"]


def test_held_subscriptions_get_no_live_messages_of_the_log() -> None:
    pubsub = PubSub(NOWHERE)
    subscription, receiver = subscribed(pubsub)
    pubsub.hub.hold(subscription, "a", "replay")
    deliver(pubsub, "1", logged=True)
    deliver(pubsub, "2")
    pubsub.hub.release(subscription, "a")
    deliver(pubsub, "3", logged=True)
    assert receiver.got == [2, 3]


def test_a_hold_that_ends_during_a_delivery_does_not_add_to_it() -> None:
    """Such a replay has sent the messages that are being delivered."""
    pubsub = PubSub(NOWHERE)
    subscription, receiver = subscribed(pubsub)
    pubsub.hub.hold(subscription, "a", "replay")

    class Releases:
        def receive_messages(self, messages: Any) -> None:
            pubsub.hub.release(subscription, "a")

        def charge(self, costs: Any) -> None: ...

        def receive_gap(self, gap: Any) -> None: ...

        def receive_log_gap(self, reason: str) -> None: ...

        def receive_trims(self, trims: Mapping[str, int]) -> None: ...

    pubsub.add_receiver(Releases())
    deliver(pubsub, "1", logged=True)
    assert receiver.got == []


def test_a_subscription_that_ends_during_a_delivery_gets_no_more_of_it() -> None:
    pubsub = PubSub(NOWHERE)
    _, one = subscribed(pubsub)
    second, other = subscribed(pubsub)
    one.receive = lambda message, extra: pubsub.unsubscribe(second)  # type: ignore[method-assign]
    deliver(pubsub, "1", "2")
    assert other.got == []


def test_filters() -> None:
    pubsub = PubSub(NOWHERE)
    _, receiver = subscribed(pubsub, parse_filter({"n": 1}))
    deliver(pubsub, '{"n": 1}', '{"n": 2}')
    assert receiver.got == [{"n": 1}]


def test_gaps() -> None:
    pubsub = PubSub(NOWHERE)
    _, receiver = subscribed(pubsub)
    pubsub._dispatcher.on_log_gap("trimmed")
    assert receiver.got == ["trimmed"]


def test_a_receiver_that_fails_costs_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pubsub = PubSub(NOWHERE)
    _, one = subscribed(pubsub)
    _, other = subscribed(pubsub)
    with caplog.at_level(logging.ERROR):
        deliver(pubsub, '"bad"', "1")
    assert one.got == other.got == [1]
    assert caplog.text.count("a receiver of messages failed") == 2
