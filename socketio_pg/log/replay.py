"""One subscription's way from a position in the log to the live messages.

While it lasts, the subscriber is held: live messages of the log pass it by. They are in the log as well, from where
they are read in their turn; when nothing is left between, the hold ends. So nothing has to be buffered, however slow
the client is, and each message comes once.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from socketio_pg.core import green, metrics
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


def requested_start(request: dict[str, Any]) -> LogPosition | int | None:
    """Where a request to subscribe wants to begin: ``since``, the number of ``history``, or None for now.

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


def find_start(
    follower: Follower, history: History, channel: str, start: LogPosition | int | None
) -> tuple[int | None, dict[str, Any]]:
    """The position after which to replay, None for not at all; and what the client is told about its ``since``.

    May wait. Raises :class:`DatabaseUnavailableError`.
    """
    if start is None:
        return None, {}
    if isinstance(start, int):
        if not follower.installed:
            return None, {}
        return history.before_newest(channel, start, follower.position), {}
    reason = _unrecoverable(follower, history, channel, start)
    if reason is not None:
        metrics.unrecovered.labels(reason).inc()
        return None, {"recovered": False, "reason": reason}
    return start.position, {"recovered": True}


def _unrecoverable(follower: Follower, history: History, channel: str, since: LogPosition) -> str | None:
    """Why the messages after ``since`` cannot be replayed; None when they can."""
    if not follower.installed:
        return "not_installed"
    if since.epoch == follower.epoch:
        if since.position > follower.position:  # from a node that is further on than this one?
            if since.position > history.head().position:
                return "position_unknown"
        elif history.channel_page(channel, since.position, follower.position).trimmed > since.position:
            return "trimmed"
    # Asked last: it may have changed while the log was read.
    return None if since.epoch == follower.epoch else "epoch_changed"


class Receiver(Protocol):
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

    def run(self, receiver: Receiver, held: Callable[[], bool], release: Callable[[], None]) -> None:
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

    def _step(self, receiver: Receiver, held: Callable[[], bool]) -> None:
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


#: Messages of one answer: at most, and where nobody says how many.
MAX_MESSAGES, DEFAULT_MESSAGES = 1000, 100
#: Characters of payloads after which no further message is put into an answer.
MAX_PAGE_CHARACTERS = 1_000_000


@dataclass(slots=True)
class ReplayPage:
    """``messages`` in order. What comes after ``position`` is not in it; ``more``: there is some already.

    ``recovery`` is what the client is told about its ``since``, as in `subscribed`. Without a log ``epoch`` is None.
    """

    epoch: str | None
    position: int
    recovery: dict[str, Any]
    messages: list[EncodedMessage] = field(default_factory=list)
    more: bool = False

    def to_wire(self, channel: str) -> dict[str, Any]:
        """The answer in HTTP, as docs/http.md has it."""
        where = {} if self.epoch is None else {"epoch": self.epoch, "position": self.position}
        messages = [message.to_wire() for message in self.messages]
        return {"channel": channel, "messages": messages, "more": self.more} | where | self.recovery


def read_replay_page(
    follower: Follower, history: History, channel: str, start: LogPosition | int | None, limit: int
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
            page.more = len(page.messages) == limit or size >= MAX_PAGE_CHARACTERS
            if page.more:
                break
            page.messages.append(message)
            size += len(message.payload_json)
        if page.more:
            page.position = page.messages[-1].position or 0
            return True
        after = read.page.end
    return True
