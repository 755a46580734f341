"""Replays the log to one subscription, page by page, from a position up to the live messages.

During a replay the hub holds the subscription: it skips live messages of the log, and the replay reads them from the
log later. When the replay has caught up, the hold ends. So nothing is buffered, however slow the client is, and each
message is sent once.
"""

import enum
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, LogNotInstalledError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History, Read
from socketio_pg.log.skipping import Skipping
from socketio_pg.log.starts import Start

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.replay"))


#: Bytes of a message on the wire in addition to its payload: channel, time, position.
MESSAGE_OVERHEAD = 200


@runtime_checkable
class HasPosition(Protocol):
    """The reason for which the hub holds a subscription."""

    @property
    def position(self) -> int:
        """All messages of the subscription up to this position were sent, or are being sent."""


class ReplayReceiver(Protocol):
    """Receives a replay."""

    @property
    def page_bytes(self) -> int:
        """The maximum size of a page in bytes. A single larger message is a page of its own."""

    def select(self, messages: Sequence[EncodedMessage], /) -> Sequence[EncodedMessage]:
        """Return the messages of a page that are to be sent. May wait."""

    def send(self, messages: Sequence[EncodedMessage], /) -> None:
        """Send a page of messages, in order."""

    def gap(self, reason: str, epoch: str, position: int, /) -> None:
        """Report that messages were trimmed or deleted by hand, or that it is unknown which ones a snapshot has.

        The replay continues after ``position``.
        """

    def live(self, epoch: str | None, position: int, /) -> None:
        """Report that live messages after a position follow now: the hold has just ended. Must not wait."""


class Step(enum.Enum):
    """The result of :meth:`HeldReplay.step`."""

    #: The replay has arrived at the live messages, or its hold has ended.
    OVER = enum.auto()
    #: More messages may follow.
    MORE = enum.auto()
    #: The replay begins at a position that this node has not delivered yet.
    AHEAD = enum.auto()


class Replay:
    """The progress of a replay of ``channel`` after the position ``after``, which is that of ``start``.

    It also reports messages that were deleted by hand before it began, unless it is one of the newest messages. Without
    ``start`` the subscriber has not requested it, and is not told when it has caught up. ``channels``: those of a
    snapshot, by default the one.
    """

    #: Seconds before the first retry when the log cannot be read; doubles up to the second value.
    retry = (0.5, 5.0)

    def __init__(
        self,
        follower: Follower,
        history: History,
        channel: str,
        after: int,
        start: Start = None,
        channels: Collection[str] = (),
    ) -> None:
        self._follower = follower
        self._history = history
        self.channel = channel
        #: All messages of the channel up to this position were passed to the receiver; the last call may not be over.
        self.position = after
        self._epoch = follower.epoch
        #: Deletions by hand up to this position were reported; None before the first page.
        self.reported: int | None = None if isinstance(start, int) else 0
        #: Whether the subscriber is told when the replay has caught up.
        self.announced = start is not None
        self.skipping = Skipping(follower, history, channels or (channel,), start)
        self._backoff = Backoff(*self.retry)

    def step(self, receiver: ReplayReceiver, held: Callable[[], bool], release: Callable[[], None]) -> Step:
        """Send the next page, and call ``release()`` if it was the last one before the live messages.

        ``held()`` is False when the hub no longer holds the subscription for this replay. May wait for the database.
        """
        follower = self._follower
        while held():
            ahead = self.position - follower.position
            # In another epoch the subscriber has got a gap, and continues with live messages. Otherwise no other green
            # thread ran since the positions were compared, so no message can be in between.
            if follower.epoch != self._epoch or (ahead == 0 and not self.skipping):
                release()
                if self.announced:
                    receiver.live(follower.epoch, follower.position)
                break
            if ahead >= 0 and self.skipping.known:  # the client, or the snapshot, is of a node that is further on
                return Step.AHEAD
            try:
                if not self.skipping.known:
                    self._report(self.skipping.look(), receiver, held)
                    if not self.skipping.known:
                        return Step.AHEAD
                    continue
                sent = self._send_page(receiver, held)
            except (DatabaseError, LogNotInstalledError) as error:
                follower.look()  # if the log was removed, its epoch changes, and the replay ends
                _limited_log(logging.WARNING, "a replay cannot read the log: %s; retrying", error)
                green.sleep(self._backoff.next())
                return Step.MORE
            self._backoff.reset()
            if sent and self.position != follower.position:
                return Step.MORE
        return Step.OVER

    def wait_moved(self) -> None:
        """After :attr:`Step.AHEAD`, wait until this node has delivered more, for at most a second."""
        self.skipping.wait()

    def _report(self, problem: str | None, receiver: ReplayReceiver, held: Callable[[], bool]) -> None:
        if problem is not None and self._epoch is not None and held():
            receiver.gap(problem, self._epoch, self.position)

    def _read(self, upto: int) -> Read:
        return self._history.channel_page(self.channel, self.position, upto)

    def _send_page(self, receiver: ReplayReceiver, held: Callable[[], bool]) -> bool:
        """Read a page and send it. Return False when it has no messages."""
        read = self._read(self._follower.position)
        if not held() or self._follower.epoch != self._epoch:
            return False
        if read.trimmed > self.position or read.missing:
            assert self._epoch is not None
            self.position = max(self.position, read.trimmed)
            receiver.gap("trimmed", self._epoch, self.position)
            return False
        if self.reported is None:
            self.reported = read.removed
        if read.removed > max(self.position, self.reported):
            assert self._epoch is not None
            receiver.gap("trimmed", self._epoch, self.position)
            self.reported = read.removed
        messages = beginning(read.page.messages, receiver.page_bytes)
        # `history` keeps the rest of the page for the next step.
        last = messages[-1].position if len(messages) < len(read.page.messages) else None
        selected = receiver.select(self.skipping.rest(messages))
        if not held() or self._follower.epoch != self._epoch:
            return False
        # Before send(), which may yield: other green threads must see the position being sent.
        self.position = read.page.end if last is None else last
        if selected:
            receiver.send(selected)
        self.skipping.passed(self.position)
        return bool(selected)


@dataclass(frozen=True, slots=True)
class HeldReplay:
    """A replay with its receiver, and the hold on the subscription: ``held()``, and ``release()`` to end it."""

    replay: Replay
    receiver: ReplayReceiver
    held: Callable[[], bool]
    release: Callable[[], None]

    @property
    def channel(self) -> str:
        return self.replay.channel

    def wait_moved(self) -> None:
        """After :attr:`Step.AHEAD`, wait until this node has delivered more, for at most a second."""
        self.replay.wait_moved()

    def step(self) -> Step:
        """Send the next page. Waits for the database, and not for the receiver."""
        return self.replay.step(self.receiver, self.held, self.release)


def beginning(messages: Sequence[EncodedMessage], most: int) -> Sequence[EncodedMessage]:
    """Return as many of the first messages as fit into ``most`` bytes with their envelopes, at least one."""
    size = 0
    for index, message in enumerate(messages):
        text = message.payload_json
        size += MESSAGE_OVERHEAD + (len(text) if text.isascii() else len(text.encode()))
        size += 0 if message.meta is None else message.meta.size
        if size > most and index:
            return messages[:index]
    return messages
