"""Replays of several channels together: order, completeness, and what an interrupted one has passed on."""

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
