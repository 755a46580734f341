"""One subscription's way from a position in the log to the live messages.

While it lasts, the subscriber is held: live messages of the log pass it by. They are in the log as well, from where
they are read in their turn; when nothing is left between, the hold ends. So nothing has to be buffered, however slow
the client is, and each message comes once.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, InvalidRequestError, LogNotInstalledError
from socketio_pg.core.logs import Complaints
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History

_complain = Complaints(logging.getLogger("socketio_pg.replay"))


#: Most messages that ``history`` asks for.
MAX_HISTORY = 1000


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The last message that a client has: what follows it is to be replayed."""

    epoch: str
    position: int


#: Where a subscription or a page begins: after a position (``since``), with this many of the newest messages
#: (``history``), or (None) with the messages that are published from now on.
Start: TypeAlias = LogPosition | int | None


def requested_start(request: Mapping[str, Any]) -> Start:
    """Return where a request to subscribe asks to begin, from its ``since`` and ``history``.

    Raises :class:`InvalidRequestError`.
    """
    since, history = request.get("since"), request.get("history")
    if since is not None and history is not None:
        raise InvalidRequestError("since and history do not go together")
    if history is not None:
        if not isinstance(history, int) or isinstance(history, bool) or not 0 <= history <= MAX_HISTORY:
            raise InvalidRequestError(f"history must be a whole number from 0 to {MAX_HISTORY}")
        return history
    if since is None:
        return None
    epoch, position = (since.get("epoch"), since.get("position")) if isinstance(since, dict) else (None, None)
    if not isinstance(epoch, str) or not isinstance(position, int) or isinstance(position, bool):
        raise InvalidRequestError('since must be like {"epoch": "…", "position": 0}')
    if not 0 <= position < 2**63:
        raise InvalidRequestError("since.position must be a whole number from 0 to 2^63 - 1")
    return LogPosition(epoch, position)


class ReplayReceiver(Protocol):
    """Where a replay goes."""

    def send(self, messages: Sequence[EncodedMessage], /) -> None:
        """A page, in order."""

    def wait_sent(self) -> bool:
        """Wait until what was sent is nearly out; False when the receiver is gone."""

    def gap(self, reason: str, epoch: str, position: int, /) -> None:
        """Messages were trimmed away before they could be read; it goes on after ``position``."""


class Replay:
    """Brings ``channel`` from ``after`` on. The hub holds the subscriber as long as ``held()`` is True."""

    #: Seconds between two attempts to read the log when it cannot be read.
    retry = (0.5, 5.0)

    def __init__(self, follower: Follower, history: History, channel: str, after: int) -> None:
        self._follower = follower
        self._history = history
        self.channel = channel
        #: All messages of the channel up to here have been sent, the last of them perhaps just now.
        self.position = after
        self._epoch = follower.epoch

    def run(self, receiver: ReplayReceiver, held: Callable[[], bool], release: Callable[[], None]) -> None:
        """Send everything up to the live messages, then ``release()``. Returns early when it is not held any more."""
        backoff = Backoff(*self.retry)
        if not receiver.wait_sent():
            return
        while held() and self._follower.epoch == self._epoch:
            ahead = self.position - self._follower.position
            if ahead == 0:
                # Nothing has waited since the last look at the position: no message can be in between.
                release()
                return
            if ahead > 0:  # the client comes from a node that is further on
                self._follower.wait_moved(1.0)
                continue
            try:
                self._step(receiver, held)
                backoff.reset()
            except (DatabaseError, LogNotInstalledError) as error:
                self._follower.look()  # should the log have gone, the replay is over
                _complain(logging.WARNING, "a replay waits: %s", error)
                green.sleep(backoff.next())
            if held() and not receiver.wait_sent():
                return
        if held():
            release()  # another epoch: the subscriber was told, and goes on with the live messages

    def _step(self, receiver: ReplayReceiver, held: Callable[[], bool]) -> None:
        read = self._history.channel_page(self.channel, self.position, self._follower.position)
        if not held() or self._follower.epoch != self._epoch:
            return
        if read.trimmed > self.position:
            assert self._epoch is not None
            receiver.gap("trimmed", self._epoch, read.trimmed)
            self.position = read.trimmed
            return
        # Before it is sent, which may let others run: who asks then is told what is on its way.
        self.position = read.page.end
        if read.page.messages:
            receiver.send(read.page.messages)
