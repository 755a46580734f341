"""One answer's worth of a channel's log, for who asks again and again instead of being connected."""

from dataclasses import dataclass, field
from typing import Any

from socketio_pg.core.messages import Message
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History
from socketio_pg.log.replay import Since, find_start

#: Messages of one answer: at most, and where nobody says how many.
MOST_MESSAGES, USUAL_MESSAGES = 1000, 100
#: Characters of payloads after which no further message is put into an answer.
ENOUGH_CHARACTERS = 1_000_000


@dataclass(slots=True)
class ReplayPage:
    """``messages`` in order. What comes after ``position`` is not in it; ``more``: there is some already.

    ``recovery`` is what the client is told about its ``since``, as in `subscribed`. Without a log ``epoch`` is None.
    """

    epoch: str | None
    position: int
    recovery: dict[str, Any]
    messages: list[Message] = field(default_factory=list)
    more: bool = False

    def to_wire(self, channel: str) -> dict[str, Any]:
        """The answer in HTTP, as docs/http.md has it."""
        where = {} if self.epoch is None else {"epoch": self.epoch, "position": self.position}
        messages = [message.to_wire() for message in self.messages]
        return {"channel": channel, "messages": messages, "more": self.more} | where | self.recovery


def read_replay_page(
    follower: Follower, history: History, channel: str, start: Since | int | None, limit: int
) -> ReplayPage:
    """``limit`` messages of ``channel`` at most: after a position, of the newest, or (None) none, only where it is now.

    Up to what this node has delivered. May wait. Raises :class:`DatabaseUnavailableError` or
    :class:`LogNotInstalledError`.
    """
    while True:
        epoch = follower.epoch
        after, recovery = find_start(follower, history, channel, start)
        # A client may come from a node that is further on: there is nothing for it then, and it keeps its position.
        upto = follower.position
        page = ReplayPage(epoch, upto if after is None else max(after, upto), recovery)
        if after is not None and after < upto and not _fill(page, history, channel, after, upto, limit):
            continue  # trimmed in the meantime: find out anew what is told then
        if follower.epoch == epoch:
            return page


def _fill(page: ReplayPage, history: History, channel: str, after: int, upto: int, limit: int) -> bool:
    """Whether everything that belongs into ``page`` could be read."""
    size = 0
    while after < upto:
        read = history.channel_page(channel, after, upto)
        if read.trimmed > after and not page.messages:
            return False
        # With some messages in it, it ends before what is missing: the next answer will say so.
        page.more = read.trimmed > after
        for message in read.page.messages if not page.more else ():
            page.more = len(page.messages) == limit or size >= ENOUGH_CHARACTERS
            if page.more:
                break
            page.messages.append(message)
            size += len(message.payload_json)
        if page.more:
            page.position = page.messages[-1].position or 0
            return True
        after = read.page.end
    return True
