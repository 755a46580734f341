"""The durable log as one node sees it: its current position, pages of older messages, and replays."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from socketio_pg.core import metrics
from socketio_pg.core.cursors import format_cursor
from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.core.messages import EncodedMessage, Position
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History, Read
from socketio_pg.log.merging import MergedReplay
from socketio_pg.log.replay import Replay
from socketio_pg.log.skipping import Skipping
from socketio_pg.log.starts import LogPosition, LogTime, Snapshot, Start

#: Messages of one page: the maximum, and the default.
MAX_MESSAGES, DEFAULT_MESSAGES = 1000, 100
#: A page is complete when its payloads have this many characters.
MAX_PAGE_CHARACTERS = 1_000_000


@dataclass(slots=True)
class ReplayPage:
    """``messages`` in order, up to ``position``; ``more`` is True when the log already has messages after that.

    ``recovery`` reports what became of a requested ``since``, as in `subscribed`. Without a log ``epoch`` is None.
    ``snapshot`` is what is left of a requested one after ``position``.
    """

    epoch: str | None
    position: int
    recovery: dict[str, Any]
    messages: list[EncodedMessage] = field(default_factory=list)
    more: bool = False
    snapshot: Snapshot | None = None

    @property
    def next(self) -> str | None:
        """The `since` of the next page; None without a log."""
        if self.epoch is None:
            return None
        return format_cursor(self.epoch, self.position) if self.snapshot is None else self.snapshot.to_token()

    def to_wire(self, channel: str) -> dict[str, Any]:
        """Return the body of the HTTP response, as documented in docs/http.md."""
        where = {} if self.epoch is None else {"epoch": self.epoch, "position": self.position, "next": self.next}
        messages = [message.to_wire() for message in self.messages]
        return {"channel": channel, "messages": messages, "more": self.more} | where | self.recovery


class Log:
    """Reads the log: ``follower`` knows how far this node has delivered it, ``history`` reads older messages."""

    #: Seconds for which :meth:`read_page` waits until the messages of a snapshot have positions.
    snapshot_patience = 5.0

    def __init__(self, follower: Follower, history: History) -> None:
        self._follower = follower
        self._history = history

    @property
    def installed(self) -> bool:
        """True when the database has a log, as far as this node knows."""
        return self._follower.installed

    @property
    def epoch(self) -> str | None:
        """The log's epoch; None without a log."""
        return self._follower.epoch

    @property
    def position(self) -> int:
        """The last position that this node has started to deliver; 0 without a log."""
        return self._follower.position

    def current(self) -> Position | None:
        """Return :attr:`epoch` and :attr:`position`; None without a log."""
        epoch = self.epoch
        return None if epoch is None else Position(epoch=epoch, position=self.position)

    @property
    def delivered(self) -> int:
        """The last position that this node has delivered to all subscribers; 0 without a log."""
        return self._follower.delivered

    @property
    def behind(self) -> int:
        """The number of messages that this node knows of and has not delivered; 0 without a log."""
        return self._follower.behind

    def locate(self, start: Start) -> Start:
        """Return the position that a time means, and any other start as it is, as without a log.

        May wait. Raises :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        if not isinstance(start, LogTime) or not self.installed:
            return start
        return LogPosition(**self._history.before_time(start.at))

    def find_start(self, channel: str, start: Start) -> tuple[int | None, dict[str, Any]]:
        """Return the position after which to replay (None for no replay), and what to tell the client about ``since``.

        May wait. Raises :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        if start is None:
            return None, {}
        if isinstance(start, int):
            if not self.installed:
                return None, {}
            return self._history.before_newest(channel, start, self.position), {}
        located = self.locate(start)
        if isinstance(located, LogPosition | Snapshot):
            reason = self._unrecoverable(channel, located.epoch, located.position)
            if reason is None:
                return located.position, {"recovered": True}
        else:
            reason = "not_installed"
        metrics.unrecovered.labels(reason).inc()
        return None, {"recovered": False, "reason": reason}

    def newest(self, channel: str) -> EncodedMessage | None:
        """Return the newest message of ``channel`` that this node has delivered; None if the log has none.

        May wait. Raises :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        if not self.installed:
            return None
        upto = self.position
        after = self._history.before_newest(channel, 1, upto)
        messages = self._history.channel_page(channel, after, upto).page.messages if after < upto else ()
        return messages[0] if messages else None

    def before(self, channel: str, position: int, count: int) -> int:
        """Return the position after which the ``count`` messages of ``channel`` before ``position`` begin.

        May wait. Raises :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        return self._history.before_newest(channel, count, min(position - 1, self.position))

    def replay(self, channel: str, after: int, start: Start = None) -> Replay:
        """Return a replay of ``channel`` from the position ``after`` on, which is that of ``start``.

        Without ``start`` the subscriber has not requested the replay.
        """
        return Replay(self._follower, self._history, channel, after, start)

    def replay_together(self, starts: Mapping[str, int], start: Start = None) -> MergedReplay:
        """Return one replay of several channels, each from a position on. ``start``: see :meth:`replay`."""
        return MergedReplay(self._follower, self._history, starts, start)

    def skipping(self, channel: str, start: Start) -> Skipping:
        """Return what a replay of ``channel`` skips if ``start`` is a snapshot."""
        return Skipping(self._follower, self._history, (channel,), start)

    def channel_page(self, channel: str, after: int, upto: int) -> Read:
        """Return the next page of ``channel`` after a position, see :meth:`History.channel_page`. Waits."""
        return self._history.channel_page(channel, after, upto)

    def look(self) -> None:
        """Have the log's head read soon: it may have been removed."""
        self._follower.look()

    def read_page(self, channel: str, start: Start, limit: int) -> ReplayPage:
        """Return at most ``limit`` messages of ``channel``; none, only the current position, when ``start`` is None.

        The page ends at the position that this node has delivered. May wait. Raises :class:`DatabaseUnavailableError`
        or :class:`LogNotInstalledError`.
        """
        while True:
            epoch = self.epoch
            after, recovery = self.find_start(channel, start)
            skipping = self.skipping(channel, start if after is not None else None)
            problem = self._wait_known(skipping, epoch)
            if problem is not None:
                after, recovery = None, {"recovered": False, "reason": problem}
            # A client of a node that is further on than this one gets no messages, and keeps its position.
            upto = self.position
            page = ReplayPage(epoch, upto if after is None else max(after, upto), recovery)
            if after is not None and after < upto and not self._fill(page, channel, after, upto, limit, skipping):
                continue  # trimmed in the meantime: `recovery` may have changed
            if self.epoch == epoch:
                page.snapshot = skipping.left(page.position)
                return page

    def oldest(self) -> Position:
        """Return the position before the oldest message that the log still has. Waits, and raises as above."""
        head = self._history.head()
        return Position(epoch=head.epoch, position=head.trimmed)

    def oldest_of(self, channel: str) -> int:
        """Return the position before the oldest message that the log has of ``channel``. Waits, and raises as above."""
        return self._history.channel_page(channel, 0, self.position).trimmed

    def _wait_known(self, skipping: Skipping, epoch: str | None) -> str | None:
        """Wait until it is known what to skip, or the epoch has changed. Return why it cannot be known.

        Raises :class:`DatabaseUnavailableError` after :attr:`snapshot_patience`.
        """
        deadline = time.monotonic() + self.snapshot_patience
        while self.epoch == epoch:
            problem = skipping.look()
            if skipping.known:
                return problem
            if time.monotonic() > deadline:
                raise DatabaseUnavailableError("messages of the snapshot have no positions yet: try again later")
            skipping.wait()
        return None

    def _unrecoverable(self, channel: str, epoch: str, position: int) -> str | None:
        """Return why the messages after a position cannot be replayed; None when they can."""
        if not self.installed:
            return "not_installed"
        if epoch == self.epoch:
            if position > self.position:  # from a node that is further on than this one?
                if position > self._history.head().position:
                    return "position_unknown"
            elif self._history.channel_page(channel, position, self.position).incomplete(position):
                return "trimmed"
        # Checked last: the epoch may have changed while the log was read.
        return None if epoch == self.epoch else "epoch_changed"

    def _fill(self, page: ReplayPage, channel: str, after: int, upto: int, limit: int, skipping: Skipping) -> bool:
        """Add messages to ``page``. Return False when its first messages were trimmed before they could be read."""
        size = 0
        while after < upto:
            read = self._history.channel_page(channel, after, upto)
            if read.trimmed > after and not page.messages:
                return False
            # A page that already has messages ends before the trimmed ones: the next request reports them.
            page.more = read.trimmed > after
            for message in skipping.rest(read.page.messages) if not page.more else ():
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
