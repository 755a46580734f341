"""Selecting the messages of a replay, while the client changes its subscription."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.gateway.replay_client import ReplayClient, ReplayTools
from socketio_pg.pubsub.filters import parse_filter
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.matching import Matching

MESSAGES = [EncodedMessage("foo", f'{{"n":{number}}}', number, "now") for number in range(4)]


class _Matching(Matching):
    """Calls ``change`` once, when the work on a page pauses for the ``pauses``-th time."""

    def __init__(self, change: Callable[[], None], pauses: int) -> None:
        super().__init__(Hub())
        self._change = change
        self._left = pauses

    @contextlib.contextmanager
    def selecting(self) -> Iterator[Callable[[], None]]:
        yield self._count

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._change()


# A pause follows each of the four messages that the first filter is tried on, and then each of the two that it selects.
@pytest.mark.parametrize("pauses", range(1, 7))
def test_messages_of_a_replay_match_the_filter_of_the_moment_when_they_are_sent(pauses: int) -> None:
    hub = Hub()
    hub.add("sid")
    hub.subscribe("sid", "foo")
    hub.set_strings("sid", "foo", True)
    hub.set_filter("sid", "foo", parse_filter({"n": {"lt": 2}}))
    matching = _Matching(lambda: hub.set_filter("sid", "foo", parse_filter({"n": {"gte": 1}})), pauses)
    unused = cast(Any, None)
    tools = ReplayTools(unused, hub, matching, unused, unused, lambda *_: None, 1_000, {})
    client = ReplayClient(tools, "sid", "foo", "epoch")
    assert [message.position for message in client.select(MESSAGES)] == [1, 2, 3]
    assert client.strings == {number: f'{{"n":"{number}"}}' for number in (1, 2, 3)}
