"""Filters are tried with pauses, while subscriptions come and go; the cost of each filter is accounted for."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.pubsub.filters import Filter, Reader, parse_filter
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.matching import Matching


def parsed(filter: Any) -> Filter:
    made = parse_filter(filter)
    assert made is not None
    return made


def message(payload: Any, channel: str = "a") -> EncodedMessage:
    return EncodedMessage(channel, json.dumps(payload))


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def matching(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Matching]:
    """Yields at every opportunity."""
    monkeypatch.setattr(Matching, "slice_seconds", -1.0)
    made = Matching(hub)
    yield made
    assert made._prepared == {}


def subscribe(hub: Hub, name: str, filter: Any) -> None:
    hub.add(name)
    hub.subscribe(name, "a")
    hub.set_filter(name, "a", None if filter is None else parsed(filter))


def found(matching: Matching, *messages: EncodedMessage) -> list[set[str]]:
    return [{filter.text for filter in matching.matching(one)} for one in messages]


def test_filters_that_change_during_the_preparation(hub: Hub, matching: Matching) -> None:
    for number in range(250):
        subscribe(hub, f"client {number}", {"n": {"gt": number}})
    messages = [message({"n": 3}), message({"n": 200}), message({"n": 3}, "without filters")]

    def change() -> None:
        subscribe(hub, "new", {"n": {"lt": 1000}})
        hub.drop("client 0")
        subscribe(hub, "client 1", {"n": {"gte": 3}})
        # It leaves and comes back: once, not twice.
        hub.drop("client 2")
        subscribe(hub, "client 2", {"n": {"gt": 2}})

    green.spawn(change)
    matching.prepare(messages)
    assert "new" in hub.subscribers("a"), "it has yielded"
    index = hub.filters("a")
    assert index is not None
    for one in messages[:2]:
        now = {filter for filter in index if filter.matches(one.payload_json)}
        assert set(matching.matching(one)) >= now
        assert set(matching.matching(one)) - now <= {parsed({"n": {"gt": 0}}), parsed({"n": {"gt": 1}})}
        assert len(set(matching.matching(one))) == len(matching.matching(one))
    assert matching.matching(messages[2]) == ()
    matching.finish(messages)


def test_first_filter_of_a_channel_after_the_preparation(hub: Hub, matching: Matching) -> None:
    subscribe(hub, "other", None)
    messages = [message(1), message([2])]
    matching.prepare(messages)
    subscribe(hub, "new", {"0": 2})
    assert found(matching, *messages) == [set(), {parsed({"0": 2}).text}]
    hub.drop("new")
    subscribe(hub, "another", {"0": {"ne": 2}})
    assert found(matching, *messages) == [{parsed({"0": {"ne": 2}}).text}, set()]
    matching.finish(messages)


def test_filters_all_leave_and_others_come(hub: Hub, matching: Matching) -> None:
    subscribe(hub, "one", {"0": 2})
    messages = [message([2])]
    matching.prepare(messages)
    hub.drop("one")
    assert found(matching, *messages) == [set()]
    subscribe(hub, "two", {"0": [2, 3]})
    assert found(matching, *messages) == [{parsed({"0": [2, 3]}).text}]
    matching.finish(messages)


def test_failed_preparation_leaves_nothing(hub: Hub, matching: Matching) -> None:
    subscribe(hub, "one", {"0": 2})
    with pytest.raises(ValueError, match=r"Expecting value"):
        matching.prepare([message(1), EncodedMessage("a", "not JSON")])


def test_costs_are_due_when_they_are_large(hub: Hub, matching: Matching) -> None:
    expensive, cheap = {"t": {"like": "%x_x_z%"}}, {"t": {"like": "%abc%"}}
    subscribe(hub, "one", expensive)
    subscribe(hub, "two", cheap)
    matching.least_due = 200_000
    one = message({"t": "x" * 10_000})
    due = []
    for _ in range(4):
        matching.prepare([one])
        matching.finish([one])
        due += matching.take_due()
    each = 10_000 * 11 + 150 + 200
    assert [(filter, steps) for _, filter, steps in due if filter == parsed(expensive)] == [
        (parsed(expensive), 2 * each)
    ] * 2
    assert [channel for channel, *_ in due] == ["a"] * len(due)
    assert matching.take_due() == []
    # The cost of a short text is not accounted for.
    short = message({"t": "x" * 300})
    index, reader = hub.filters("a"), Reader(short.payload_json)
    assert index is not None
    index.matching(reader)
    assert reader.spent == []


def test_reader_is_shared_with_local_subscriptions(hub: Hub, matching: Matching) -> None:
    subscribe(hub, "one", {"0": 2})
    one = message([2])
    matching.prepare([one])
    assert matching.reader(one) is matching.reader(one)
    matching.finish([one])
    assert matching.reader(one) is not matching.reader(one)


def test_one_replay_at_a_time_tries_its_filter(matching: Matching) -> None:
    trace: list[str] = []

    def select(name: str) -> None:
        with matching.selecting() as pause:
            for _ in range(3):
                trace.append(name)
                pause()

    threads = [green.spawn(select, name) for name in "ab"]
    for thread in threads:
        thread.wait()
    assert "".join(trace) in ("aaabbb", "bbbaaa")
