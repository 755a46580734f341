"""The positions that published messages get, for publishers that wait for them. No I/O.

A publisher knows the ids of its messages in the outbox. The relay numbers them after the commit, and the follower
passes each numbered message on to here: often before its publisher begins to wait, because the answer to the commit
and the relay's notification arrive on different connections.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage, Position
from socketio_pg.log.recent import Recent


@dataclass(slots=True, eq=False)
class _Waiter:
    """A publisher that waits for ``missing`` positions."""

    missing: int
    done: green.Event = field(default_factory=green.Event)


class Places:
    """Finds the positions of messages by their ids in the outbox. ``recent`` has the newest messages.

    While nobody waits, a message costs nothing here: the newest ones are looked up in ``recent`` when somebody asks.
    """

    #: Messages of ``recent`` that one call looks at, and positions that are remembered for repeated publications.
    look_at = 2_000
    remembered = 20_000

    def __init__(self, recent: Recent) -> None:
        self._recent = recent
        self._epoch: str | None = None
        self._positions: dict[int, int] = {}
        #: The messages of ``recent`` up to this position are in ``_positions``, or too old.
        self._known = 0
        #: The greatest id that was looked at: smaller ones that are not known are older, or commit late.
        self._newest_id = 0
        #: Whether the newest message has its id: those that a server of an older version relays do not.
        self._has_ids = True
        self._waiting: dict[int, list[_Waiter]] = {}

    def reset(self, epoch: str | None) -> None:
        """Forget all positions, and end all calls of :meth:`wait`: another epoch begins, or the log is gone."""
        self._epoch, self._known, self._newest_id, self._has_ids = epoch, 0, 0, True
        self._positions.clear()
        self._end_all()

    def note(self, messages: Sequence[EncodedMessage]) -> None:
        """Note the next messages of the log, which ``recent`` has already got."""
        if not self._waiting:
            return
        for message in messages:
            if message.outbox_id in self._waiting:
                assert message.position is not None
                self._remember(message.outbox_id, message.position)
                for waiter in self._waiting.pop(message.outbox_id):
                    waiter.missing -= 1
                    if not waiter.missing:
                        waiter.done.send()
        if messages and messages[-1].outbox_id is None:
            self._end_all()  # their messages will have no ids either

    def wait(self, ids: Sequence[int], seconds: float, old: Collection[int] = ()) -> list[Position | None]:
        """Return the position of each of ``ids``; None for those that are unknown after ``seconds``.

        Those of ``old`` were published before: they are not waited for if they should have arrived already.
        """
        deadline = time.monotonic() + seconds
        self._look()
        missing = {one for one in ids if one not in self._positions and not (one in old and one <= self._newest_id)}
        if missing and seconds > 0 and self._epoch is not None and self._has_ids:
            waiter = _Waiter(len(missing))
            for one in missing:
                self._waiting.setdefault(one, []).append(waiter)
            try:
                waiter.done.wait(max(0.0, deadline - time.monotonic()))
            except green.TimedOut:
                pass
            finally:
                self._forget(missing, waiter)
        epoch = self._epoch
        places = [self._positions.get(one) for one in ids]
        return [None if epoch is None or at is None else Position(epoch=epoch, position=at) for at in places]

    def _look(self) -> None:
        """Remember the newest messages of ``recent``."""
        for message in reversed(self._recent.newest(self._known, self.look_at)):
            assert message.position is not None
            self._known, self._has_ids = message.position, message.outbox_id is not None
            if message.outbox_id is not None:
                self._remember(message.outbox_id, message.position)

    def _remember(self, outbox_id: int, position: int) -> None:
        self._positions[outbox_id] = position
        self._newest_id = max(self._newest_id, outbox_id)
        if len(self._positions) > self.remembered:
            del self._positions[next(iter(self._positions))]

    def _end_all(self) -> None:
        """End all calls of :meth:`wait`."""
        waiting, self._waiting = self._waiting, {}
        for waiters in waiting.values():
            for waiter in waiters:
                waiter.done.send()

    def _forget(self, ids: set[int], waiter: _Waiter) -> None:
        """Stop waiting for ``ids``."""
        for one in ids:
            waiters = self._waiting.get(one)
            if waiters is not None and waiter in waiters:
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[one]
