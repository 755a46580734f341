"""Conflation of one channel: which messages wait, which leave, and in which order."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage, from_log
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.gateway.conflating import Conflating
from socketio_pg.pubsub.conflation import MAX_KEYS, Conflated, Key
from socketio_pg.pubsub.hub import Hub
from tests.support.patience import until


def message(position: int, key: object = 0) -> EncodedMessage:
    return from_log(position, "c", "2026", f'{{"k": {key}, "n": {position}}}')


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2))))
def test_what_is_sent_is_the_newest_of_each_key_in_order(published: list[tuple[int, float]]) -> None:
    conflated = Conflated(2.0, Key("k"))
    now, sent, times = 0.0, [], []
    for position, (key, pause) in enumerate(published, 1):
        now += pause
        conflated.add([message(position, key)])
        if conflated.is_due(now):
            sent += conflated.take(now)
            times.append(now)
    sent += conflated.take(now + 1)
    positions = [one.position or 0 for one in sent]
    assert positions == sorted(set(positions)), "each once, in order"
    for key in range(4):
        ours = [position for position, (one, _) in enumerate(published, 1) if one == key]
        assert not ours or ours[-1] in positions, "the newest of each key is sent"
    assert all(after - before >= 0.5 - 1e-9 for before, after in itertools.pairwise(times))
    assert len(sent) + conflated.replaced == len(published)


def test_the_position_before_what_waits() -> None:
    conflated = Conflated(1.0, Key(None))
    assert conflated.before is None
    conflated.add([message(5)])
    assert conflated.before == 4
    conflated.add([message(8, 1)])
    assert conflated.before == 7, "5 was replaced: without a path all have one key"
    assert [one.position for one in conflated.take(0.0)] == [8]
    assert (conflated.before, bool(conflated)) == (None, False)


def test_too_many_keys_leave_at_once() -> None:
    conflated = Conflated(0.001, Key("k"))
    conflated.take(0.0)
    conflated.add([message(key + 1, key) for key in range(MAX_KEYS)])
    assert not conflated.is_due(1.0)
    conflated.add([message(MAX_KEYS + 1, MAX_KEYS)])
    assert conflated.is_due(1.0)
    conflated.sending = True
    assert not conflated.is_due(1.0), "the order stays"


def test_keys() -> None:
    key = Key("a.b")

    def of(payload: str) -> object:
        return key.of(EncodedMessage("c", payload))

    assert of('{"a": {"b": 1}}') == of('{"a": {"b": 1.0}, "x": 2}')
    values = ("1", "true", '"1"', "null", "[1]", '{"x": 1}', "0")
    assert len({of(f'{{"a": {{"b": {value}}}}}') for value in values}) == 7
    assert of("[]") == of('{"a": {"b": null}}') == of('{"a": 5}')
    assert of('{"a": {"b": {"x": 1, "y": 2}}}') == of('{"a": {"b": {"y": 2, "x": 1}}}')
    assert Key("..").of(EncodedMessage("c", "1")) == Key(None).of(EncodedMessage("c", "2"))


class _Node:
    """Subscriptions to conflated channels. ``sent`` and ``replayed`` are positions."""

    def __init__(self, rate: float) -> None:
        self.sent: list[int | None] = []
        self.replayed: list[int] = []
        self.hub = Hub()
        self.hub.add("ann")
        rules = Rules(Rule())
        rules.replace({"*": Rule(max_rate=rate)})
        self.conflating = Conflating(
            rules, self.hub, self._send, self._send, lambda sid, name, after: self.replayed.append(after), lambda: 9
        )

    def receive(self, position: int, channel: str) -> None:
        self.conflating.receive([from_log(position, channel, "2026", "1")])

    def _send(self, messages: Sequence[EncodedMessage]) -> None:
        self.sent += [message.position for message in messages]


def test_a_new_epoch_forgets_what_waits_and_which_subscriptions_are_late() -> None:
    node = _Node(20.0)
    node.hub.subscribe("ann", "c")
    node.receive(100, "c")
    node.receive(101, "c")
    node.hub.add("bob")
    node.hub.subscribe("bob", "c")
    node.conflating.begin("bob", "c")
    node.receive(102, "c")
    node.conflating.drop_log()
    node.receive(1, "c")
    until(lambda: green.sleep(0.002) or 1 in node.sent, "the first message of the epoch is sent")
    assert (node.sent, node.replayed) == ([100, 1], [])
