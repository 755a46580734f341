"""Which messages a replay skips because they are in a snapshot, although they come after its position.

Messages get their positions after the commit: some that a snapshot contains were still in the outbox. The snapshot has
their ids, and the log keeps these.
"""

import time
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.cursors import MAX_POSITION
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History
from socketio_pg.log.starts import Snapshot, Start, ranges_of


class Skipping:
    """The messages that a replay of ``channels`` skips if it begins with a snapshot; none for any other ``start``.

    It is true while the replay cannot be over: it is not :attr:`known` yet what to skip, or something is still to come.
    """

    #: Seconds between two looks, the first ones and later ones; and for which the snapshot's transaction may stay open.
    looks = (0.02, 0.5)
    patience = 10.0

    def __init__(self, follower: Follower, history: History, channels: Collection[str], start: Start) -> None:
        self._follower = follower
        self._history = history
        self._channels = channels
        self._epoch = follower.epoch
        self._snapshot = start if isinstance(start, Snapshot) and start.ids else None
        #: False while it is unknown what to skip.
        self.known = self._snapshot is None
        #: Position → id of the messages that are still to be skipped.
        self._ids: Mapping[int, int] = {}
        self._rest: _Rest | None = None
        self._backoff = Backoff(*self.looks)
        self._next_look = 0.0
        self._give_up = time.monotonic() + self.patience
        #: The last look has found that nothing can follow. One is not enough: the snapshot's transaction may have ended
        #: while the query ran.
        self._ended = False

    def __bool__(self) -> bool:
        return not self.known or bool(self._ids)

    def look(self) -> str | None:
        """Try to find out what to skip. Return why that is impossible, if it is; then nothing is skipped.

        A message may get its position long after the snapshot: while no server relays, or if the snapshot's own
        transaction has published it and is still open. May wait for the database, and raises as :class:`History` does.
        """
        snapshot = self._snapshot
        if self.known or snapshot is None or time.monotonic() < self._next_look:
            return None
        found = self._history.contained(self._channels, snapshot)
        self._next_look = time.monotonic() + self._backoff.next()
        if found.epoch != self._epoch:
            self._follower.look()  # it notices the new epoch, which ends the replay
            return None
        if found.complete:
            self.known, self._ids, self._rest = True, found.ids, None
        elif not found.waiting and not (found.open and time.monotonic() < self._give_up):
            if self._ended:
                self.known, self._snapshot = True, None
                return "snapshot_unknown"
            self._ended = True
        else:
            self._ended = False
        return None

    def wait(self) -> None:
        """Wait until another look may help, or this node has delivered more, for at most a second."""
        seconds = 1.0 if self.known else self._next_look - time.monotonic()
        self._follower.wait_moved(max(0.001, min(1.0, seconds)))

    def rest(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        """Return the messages that are not skipped."""
        return [message for message in messages if message.position not in self._ids] if self._ids else messages

    def passed(self, position: int) -> None:
        """Note that the replay has arrived at a position."""
        if self._ids:
            self._ids = {skipped: id for skipped, id in self._ids.items() if skipped > position}

    def left(self, position: int) -> Snapshot | None:
        """Return what is left of the snapshot after a position that the replay has passed: where it may be continued.

        None if that is just the position.
        """
        if self._snapshot is None:
            return None
        if not self.known:
            return self._snapshot
        if self._rest is None or self._rest.position > position:
            self._rest = _Rest(self._ids)
        ranges = self._rest.after(position)
        return Snapshot(self._snapshot.epoch, position, ranges) if ranges else None


class _Rest:
    """The ids of messages that are still to be skipped, as ranges, at increasing positions.

    A stream asks at each message of a page. A snapshot may have 100,000 ids in hundreds of ranges.
    """

    def __init__(self, ids: Mapping[int, int]) -> None:
        #: Position and id of the messages that follow, the last one first.
        self._following = sorted(ids.items(), reverse=True)
        self._ranges = ranges_of(ids.values())
        self.position = 0

    def after(self, position: int) -> tuple[tuple[int, int], ...]:
        """Return the ids of the messages after a position, which is none before :attr:`position`."""
        self.position = position
        while self._following and self._following[-1][0] <= position:
            self._remove(self._following.pop()[1])
        return tuple(self._ranges)

    def _remove(self, id: int) -> None:
        index = bisect_right(self._ranges, (id, MAX_POSITION)) - 1
        first, last = self._ranges[index]
        left = [one for one in ((first, id - 1), (id + 1, last)) if one[0] <= one[1]]
        self._ranges[index : index + 1] = left
