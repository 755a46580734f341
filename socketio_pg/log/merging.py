"""Replays several channels together, in the order of positions over all of them."""

import functools
import heapq
from collections.abc import Mapping, Sequence
from operator import attrgetter

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History, Read
from socketio_pg.log.recent import Page
from socketio_pg.log.replay import Replay
from socketio_pg.log.starts import Start


class MergedReplay(Replay):
    """The progress of a replay of several channels. ``starts``: channel → the position after which it begins.

    All messages of all channels up to :attr:`position` were passed to the receiver.
    """

    def __init__(self, follower: Follower, history: History, starts: Mapping[str, int], start: Start = None) -> None:
        super().__init__(follower, history, ", ".join(starts), min(starts.values()), start, starts)
        self._starts = dict(starts)

    def _read(self, upto: int) -> Read:
        wanted = {channel: max(after, self.position) for channel, after in self._starts.items()}
        due = [(channel, after) for channel, after in wanted.items() if after < upto]
        # At the same time: the reads that need the database are combined in a query.
        found = green.run_together(
            [functools.partial(self._history.channel_page, channel, after, upto) for channel, after in due]
        )
        reads: list[Read] = []
        for one in found:
            if isinstance(one, BaseException):
                raise one
            reads.append(one)
        # Rules trim each channel for itself: the others go on from where they are.
        trimmed = {
            channel: read.trimmed for (channel, after), read in zip(due, reads, strict=True) if read.trimmed > after
        }
        if trimmed:
            self._starts |= trimmed
            position = min(max(self.position, after) for after in self._starts.values())
            return Read(Page(self.position, self.position, ()), position, missing=True)
        return merged(reads, self.position, upto)


def merged(reads: Sequence[Read], after: int, upto: int) -> Read:
    """Return the pages of several channels, which lack none, as one. It ends where the first of them ends."""
    end = min((read.page.end for read in reads), default=upto)
    merging = heapq.merge(*(read.page.messages for read in reads), key=attrgetter("position"))
    messages: list[EncodedMessage] = [one for one in merging if one.position is not None and one.position <= end]
    removed = max((read.removed for read in reads), default=0)
    return Read(Page(after, end, messages), 0, removed)
