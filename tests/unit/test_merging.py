"""Replays of several channels together: order, completeness, and what an interrupted one has passed on."""

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.messages import EncodedMessage, from_log
from socketio_pg.log.history import Read
from socketio_pg.log.merging import MergedReplay
from socketio_pg.log.recent import Page
from socketio_pg.log.replay import MESSAGE_OVERHEAD, HeldReplay, Step

CHANNELS = ("a", "b", "c")


class Node:
    """A simulated log, with pages that end anywhere. Follower, history and receiver in one."""

    epoch = "e"

    def __init__(self, channels: Sequence[str], data: st.DataObject) -> None:
        self.channels = channels
        self.data = data
        self.position = len(channels)
        self.page_bytes = data.draw(st.sampled_from([0, 2 * MESSAGE_OVERHEAD + 2, 10**6]))
        self.received: list[int] = []
        self.released = False

    def channel_page(self, channel: str, after: int, upto: int) -> Read:
        end = min(upto, after + self.data.draw(st.integers(1, 8)))
        found = [
            from_log(position, channel, "2026", "0")
            for position in range(after + 1, end + 1)
            if self.channels[position - 1] == channel
        ]
        return Read(Page(after, end, found), 0)

    def select(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        return messages

    def send(self, messages: Sequence[EncodedMessage]) -> None:
        self.received += [message.position for message in messages if message.position is not None]

    def gap(self, reason: str, epoch: str, position: int) -> None:
        raise AssertionError

    def release(self) -> None:
        self.released = True


@given(
    st.lists(st.sampled_from([*CHANNELS, "other"]), min_size=1, max_size=60),
    st.sets(st.sampled_from(CHANNELS), min_size=1),
    st.data(),
)
def test_messages_of_all_channels_are_sent_once_in_order(
    channels: list[str], wanted: set[str], data: st.DataObject
) -> None:
    node: Any = Node(channels, data)
    starts = {channel: data.draw(st.integers(0, len(channels))) for channel in wanted}
    replay = MergedReplay(node, node, starts)
    held = HeldReplay(replay, node, lambda: not node.released, node.release)

    def due(upto: int) -> list[int]:
        return [
            position
            for position, channel in enumerate(channels, 1)
            if position <= upto and channel in starts and position > starts[channel]
        ]

    while True:
        step = held.step()
        # Whoever stops here and continues after the last position misses nothing, and gets nothing twice.
        assert node.received == due(replay.position)
        if step is Step.OVER:
            break
    assert node.released
    assert node.received == due(len(channels))


class TrimmedNode(Node):
    """A log whose channels rules trim, each for itself, while it is read."""

    def __init__(self, channels: Sequence[str], data: st.DataObject) -> None:
        super().__init__(channels, data)
        #: Not drawn in the green threads that read, which Hypothesis could not stop.
        self.random = random.Random(data.draw(st.integers(0, 1000)))
        self.trimmed = dict.fromkeys(CHANNELS, 0)
        self.gaps: list[int] = []

    def channel_page(self, channel: str, after: int, upto: int) -> Read:
        if self.random.random() < 0.3:
            trimmed = self.random.choice(CHANNELS)
            self.trimmed[trimmed] = self.random.randint(self.trimmed[trimmed], len(self.channels))
        trimmed_upto = self.trimmed[channel]
        if trimmed_upto > after:
            return Read(Page(after, after, ()), trimmed_upto)
        end = min(upto, after + self.random.randint(1, 8))
        found = [
            from_log(position, channel, "2026", "0")
            for position in range(after + 1, end + 1)
            if self.channels[position - 1] == channel
        ]
        return Read(Page(after, end, found), trimmed_upto)

    def gap(self, reason: str, epoch: str, position: int) -> None:
        self.gaps.append(position)


@given(
    st.lists(st.sampled_from([*CHANNELS, "other"]), min_size=1, max_size=40),
    st.sets(st.sampled_from(CHANNELS), min_size=1),
    st.data(),
)
def test_a_channel_that_is_trimmed_takes_nothing_from_the_others(
    channels: list[str], wanted: set[str], data: st.DataObject
) -> None:
    node: Any = TrimmedNode(channels, data)
    starts = {channel: data.draw(st.integers(0, len(channels))) for channel in wanted}
    held = HeldReplay(MergedReplay(node, node, starts), node, lambda: not node.released, node.release)
    while held.step() is Step.MORE:
        pass
    assert node.received == sorted(set(node.received)), "in order, each once"
    expected = [
        position
        for position, channel in enumerate(channels, 1)
        if channel in starts and position > max(starts[channel], node.trimmed[channel])
    ]
    assert set(expected) <= set(node.received)
    missing = [
        position
        for position, channel in enumerate(channels, 1)
        if channel in starts and position > starts[channel] and position not in node.received
    ]
    assert node.gaps or not missing, "never in silence"
