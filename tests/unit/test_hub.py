"""The hub's subscriptions."""

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from socketio_pg.pubsub.filters import parse_filter
from socketio_pg.pubsub.hub import Hub, UnknownSubscriberError

SUBSCRIBERS = st.sampled_from(["ann", "bob", "cyd"])
CHANNELS = st.sampled_from(["foo", "Foo", "bar", "😀"])


def test_subscribe_reports_the_first_subscription_of_a_channel() -> None:
    hub = Hub()
    hub.add("ann")
    hub.add("bob")
    assert hub.subscribe("ann", "foo") is True
    assert hub.subscribe("bob", "foo") is False
    assert hub.subscribe("bob", "bar") is True


def test_unsubscribe_reports_the_last_subscription_of_a_channel() -> None:
    hub = Hub()
    for subscriber in ("ann", "bob"):
        hub.add(subscriber)
        hub.subscribe(subscriber, "foo")
    assert hub.unsubscribe("ann", "foo") is False
    assert hub.unsubscribe("bob", "foo") is True
    assert hub.channels() == set()


def test_unsubscribing_without_a_subscription_changes_nothing() -> None:
    hub = Hub()
    hub.add("ann")
    hub.subscribe("ann", "foo")
    assert hub.unsubscribe("ann", "bar") is False
    assert hub.unsubscribe("bob", "foo") is False
    assert hub.unsubscribe("ann", "foo") is True
    assert hub.unsubscribe("ann", "foo") is False


def test_dropped_subscriber_cannot_subscribe() -> None:
    # Requests run in green threads, so one may run after its client has disconnected.
    hub = Hub()
    hub.add("ann")
    hub.drop("ann")
    with pytest.raises(UnknownSubscriberError):
        hub.subscribe("ann", "foo")
    assert (hub.channels(), len(hub)) == (set(), 0)


def test_drop_returns_channels_without_subscribers() -> None:
    hub = Hub()
    for subscriber in ("ann", "bob"):
        hub.add(subscriber)
        hub.subscribe(subscriber, "shared")
    hub.subscribe("ann", "own")
    hub.subscribe("ann", "own too")
    assert sorted(hub.drop("ann")) == ["own", "own too"]
    assert hub.drop("ann") == []
    assert hub.drop("nobody") == []
    assert hub.channels() == {"shared"}


def test_adding_twice_keeps_the_subscriptions() -> None:
    hub = Hub()
    hub.add("ann")
    hub.subscribe("ann", "foo")
    hub.add("ann")
    assert hub.is_subscribed("ann", "foo")
    assert len(hub) == 1


def test_channels_returns_a_copy() -> None:
    hub = Hub()
    hub.add("ann")
    hub.subscribe("ann", "foo")
    hub.channels().clear()
    assert hub.channels() == {"foo"}


def test_subscription_has_one_filter_until_it_ends() -> None:
    hub = Hub()
    fives, sixes = parse_filter({"id": 5}), parse_filter({"id": 6})
    assert fives is not None
    for subscriber in ("ann", "bob"):
        hub.add(subscriber)
        hub.subscribe(subscriber, "foo")
        hub.set_filter(subscriber, "foo", fives)
    index = hub.filters("foo")
    assert index is not None
    assert (list(index), hub.filter_of("ann", "foo"), hub.filters("bar")) == ([fives], fives, None)
    hub.set_filter("ann", "foo", sixes)
    assert set(index) == {fives, sixes}
    hub.set_filter("ann", "foo", None)
    assert (list(index), hub.filter_of("ann", "foo")) == ([fives], None)
    hub.set_filter("ann", "foo", sixes)
    hub.drop("ann")
    assert list(index) == [fives]
    hub.unsubscribe("bob", "foo")
    assert (hub.filters("foo"), hub.filter_of("bob", "foo")) == (None, None)


def test_sizes_of_a_subscribers_filters() -> None:
    hub = Hub()
    small, large = parse_filter({"id": 5}), parse_filter({"id": 6, "name": "x"})
    assert small is not None
    assert large is not None
    hub.add("ann")
    for channel in ("foo", "bar"):
        hub.subscribe("ann", channel)
        hub.set_filter("ann", channel, small)
    assert hub.filters_size("ann") == (2, 2 * len(small.text))
    assert hub.filters_size("ann", large, small) == (3, len(small.text) + len(large.text))
    hub.set_filter("ann", "foo", large)
    assert hub.filters_size("ann") == (3, len(small.text) + len(large.text))
    hub.unsubscribe("ann", "foo")
    hub.set_filter("ann", "bar", None)
    assert (hub.filters_size("ann"), hub._filter_sizes) == ((0, 0), {})


class HubAgainstModel(RuleBasedStateMachine):
    """Compares a hub with a dictionary of sets after any sequence of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub()
        self.model: dict[str, set[str]] = {}

    def members(self) -> dict[str, set[str]]:
        """Return the model by channel."""
        members: dict[str, set[str]] = defaultdict(set)
        for subscriber, channels in self.model.items():
            for channel in channels:
                members[channel].add(subscriber)
        return dict(members)

    @rule(subscriber=SUBSCRIBERS)
    def add(self, subscriber: str) -> None:
        self.hub.add(subscriber)
        self.model.setdefault(subscriber, set())

    @rule(subscriber=SUBSCRIBERS, channel=CHANNELS)
    def subscribe(self, subscriber: str, channel: str) -> None:
        if subscriber not in self.model:
            with pytest.raises(UnknownSubscriberError):
                self.hub.subscribe(subscriber, channel)
            return
        result = self.hub.subscribe(subscriber, channel)
        self.model[subscriber].add(channel)
        # Also true when the only subscriber subscribes again: a redundant LISTEN is harmless, a missing one is not.
        assert result is (self.members()[channel] == {subscriber})

    @rule(subscriber=SUBSCRIBERS, channel=CHANNELS)
    def unsubscribe(self, subscriber: str, channel: str) -> None:
        was_in = channel in self.model.get(subscriber, ())
        self.model.get(subscriber, set()).discard(channel)
        assert self.hub.unsubscribe(subscriber, channel) is (was_in and channel not in self.members())

    @rule(subscriber=SUBSCRIBERS)
    def drop(self, subscriber: str) -> None:
        before = self.members()
        self.model.pop(subscriber, None)
        assert sorted(self.hub.drop(subscriber)) == sorted(before.keys() - self.members().keys())

    @invariant()
    def both_agree(self) -> None:
        members = self.members()
        assert self.hub.channels() == members.keys()
        assert len(self.hub) == len(self.model)
        for subscriber in ("ann", "bob", "cyd"):
            for channel in ("foo", "Foo", "bar", "😀"):
                assert self.hub.is_subscribed(subscriber, channel) is (subscriber in members.get(channel, ()))

    def teardown(self) -> None:
        """Assert that nothing remains when all subscribers have left."""
        for subscriber in self.model:
            self.hub.drop(subscriber)
        assert self.hub.channels() == set()
        assert len(self.hub) == 0


TestHubAgainstModel = HubAgainstModel.TestCase


def test_form_of_numbers_belongs_to_the_subscription() -> None:
    hub = Hub()
    for subscriber in ("ann", "bob"):
        hub.add(subscriber)
        hub.subscribe(subscriber, "foo")
    hub.set_strings("ann", "foo", True)
    assert (hub.wants_strings("ann", "foo"), hub.wants_strings("bob", "foo")) == (True, False)
    assert (hub.has_strings("foo"), hub.has_strings("bar"), hub.any_strings) == (True, False, True)
    hub.set_strings("ann", "foo", False)
    assert not hub.any_strings
    hub.set_strings("ann", "foo", True)
    hub.drop("ann")
    assert not hub.any_strings


def test_subscriptions_that_overlap_are_those_that_may_get_the_same_messages() -> None:
    """Also through others: each message is sent once to all of them together."""
    hub = Hub()
    for name in ("ann", "bob"):
        hub.add(name)
    for name in ("a:*", "a:1", "a:2", "*:2", "b:2", "b:3", "c*d"):
        hub.subscribe("ann", name)
    hub.subscribe("bob", "a:1")
    hub.subscribe("bob", "a:2")
    assert set(hub.overlapping("ann", "a:1")) == {"a:*", "a:2", "*:2", "b:2"}
    assert set(hub.overlapping("ann", "b:3")) == set(hub.overlapping("ann", "c*d")) == set()
    assert hub.overlapping("bob", "a:1") == [], "without patterns nothing overlaps"
    assert hub.names("a:2") == ("a:2", "*:2", "a:*")
    assert set(hub.patterns_of("ann")) == {"a:*", "*:2", "c*d"}
    hub.hold("ann", "a:*", "a replay")
    hub.hold("ann", "a:1", "a replay")
    assert set(hub.held_of("ann")) == {"a:*", "a:1"}
    hub.release("ann", "a:1")
    hub.unsubscribe("ann", "a:*")
    assert not hub.held_of("ann")
    assert hub.names("a:2") == ("a:2", "*:2")
    hub.drop("ann")
    assert (hub.names("a:2"), hub.count_pattern_subscriptions(), len(hub.patterns)) == (("a:2",), 0, 0)
