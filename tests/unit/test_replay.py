"""The transition from replayed to live messages, with concurrent activity whenever a replay waits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.core.messages import EncodedMessage, from_log
from socketio_pg.log.history import Read
from socketio_pg.log.recent import Page, Recent
from socketio_pg.log.replay import MESSAGE_OVERHEAD, HeldReplay, Replay, Step
from socketio_pg.log.starts import LogPosition
from socketio_pg.pubsub.hub import Hub


@dataclasses.dataclass
class Node:
    """A simulated follower and history over a list. Messages arrive whenever a caller waits."""

    channels: list[str]
    data: st.DataObject
    position: int = 0
    epoch: str = "e"
    trimmed: int = 0
    recent: Recent = dataclasses.field(default_factory=lambda: Recent(2000))
    hub: Hub = dataclasses.field(default_factory=Hub)
    received: list[int] = dataclasses.field(default_factory=list)
    gaps: list[int] = dataclasses.field(default_factory=list)
    #: How often the replay has reported that it has caught up.
    ended: int = 0
    #: Bytes of a page: from one message to any number of them.
    page_bytes: int = 0

    def deliver(self, count: int) -> None:
        """Deliver live messages like the follower: advance the position, then send to subscribers that are not held."""
        messages = [
            from_log(position, self.channels[position - 1], "2026", "0")
            for position in range(self.position + 1, min(self.position + count, len(self.channels)) + 1)
        ]
        if not messages:
            return
        assert messages[-1].position is not None
        self.position = messages[-1].position
        self.recent.append(messages)
        if "me" not in self.hub.held("a"):
            self.send([message for message in messages if message.channel == "a"])

    def wait(self) -> None:
        self.deliver(self.data.draw(st.integers(0, 4)))

    # -- as Follower, History and Receiver

    def wait_moved(self, seconds: float) -> None:
        self.deliver(1)

    def look(self) -> None: ...

    def channel_page(self, channel: str, after: int, upto: int) -> Read:
        page = self.recent.page(channel, after, upto)
        if page is not None:
            return Read(page, 0)
        self.wait()
        if self.data.draw(st.integers(0, 3)) == 0:
            raise DatabaseUnavailableError("gone for a moment")
        if after < self.trimmed:
            return Read(Page(after, after, ()), self.trimmed)
        end = min(self.recent.start, after + self.data.draw(st.integers(1, 6)))
        found = [
            from_log(position, channel, "2026", "0")
            for position in range(after + 1, end + 1)
            if self.channels[position - 1] == channel
        ]
        page = Page(after, end, found)
        self.recent.keep(channel, page)
        return Read(page, self.trimmed)

    def select(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        self.wait()
        return messages

    def send(self, messages: Sequence[EncodedMessage]) -> None:
        self.received += [message.position for message in messages if message.position is not None]

    def live(self, epoch: str | None, position: int) -> None:
        assert (epoch, position) == (self.epoch, self.position)
        assert self.hub.held("a") == (), "the live messages follow"
        self.ended += 1

    def gap(self, reason: str, epoch: str, position: int) -> None:
        assert reason == "trimmed"
        self.gaps.append(position)


@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=40), st.data())
def test_every_message_is_sent_once_in_order(channels: list[str], data: st.DataObject) -> None:
    node = Node(channels, data)
    node.page_bytes = data.draw(st.sampled_from([0, 2 * MESSAGE_OVERHEAD + 2, 10**6]))
    Replay.retry = (0.0, 0.0)
    started = data.draw(st.integers(0, len(channels)))
    node.position = started
    node.recent.reset(started)
    node.deliver(data.draw(st.integers(0, 10)))
    # May be ahead of this node: the client may come from a node that is further ahead.
    since = data.draw(st.integers(0, len(channels)))
    node.trimmed = data.draw(st.integers(0, node.recent.start))
    node.received.clear()
    node.hub.add("me")
    node.hub.subscribe("me", "a")
    any_node: Any = node
    replay = Replay(any_node, any_node, "a", since, data.draw(st.sampled_from([None, LogPosition("e", since)])))
    node.hub.hold("me", "a", replay)
    held = HeldReplay(replay, node, lambda: node.hub.held_by("me", "a") is replay, lambda: node.hub.release("me", "a"))
    while True:
        sent = len(node.received)
        step = held.step()
        if step is Step.OVER:
            break
        assert len(node.received) - sent <= max(1, node.page_bytes // MESSAGE_OVERHEAD)
        if step is Step.AHEAD:
            replay.wait_moved()
        node.wait()
    assert node.hub.held("a") == ()
    assert node.ended == replay.announced
    node.deliver(len(channels))
    first = max([since, *node.gaps])
    assert node.received == [
        position for position in range(first + 1, len(channels) + 1) if channels[position - 1] == "a"
    ]
    assert not node.gaps or node.gaps == [node.trimmed], "one gap, and only if messages were trimmed"
