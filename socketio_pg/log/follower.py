"""Follows the log: what the relay tells is delivered in the order of the positions, and what is missing is read first.

LISTEN, committed → read the head → deliver what is after it, from the notifications; what is missing, from the log
"""

import logging
from collections.abc import Callable, Sequence

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import LOG_CHANNEL
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.log.history import History
from socketio_pg.log.positions import Progress, decode_batch
from socketio_pg.log.recent import Page, Recent
from socketio_pg.postgres.listener import ChannelListener

logger = logging.getLogger("socketio_pg.follower")


class Follower:
    """Delivers the log on this node.

    ``deliver`` gets each share of consecutive messages, and may let other green threads run. ``on_gap(reason)`` is
    called when messages of any channel are lost to this node's subscribers: ``trimmed`` or ``epoch_changed``.
    ``on_found()`` is called when a log is found where there was none. ``cost(message)`` is the work that a message
    causes, in characters. ``history`` is closed with the follower.
    """

    #: Seconds after which a failed attempt to read the log is repeated; doubles up to the second value.
    backoff = (0.1, 5.0)
    #: Seconds between two looks at the head without a reason.
    interval = 30.0
    #: Messages that are delivered together, before other green threads get their turn, and characters.
    share_messages = 200
    share_characters = 100_000

    def __init__(
        self,
        listener: ChannelListener,
        history: History,
        recent: Recent,
        deliver: Callable[[Sequence[EncodedMessage]], None],
        on_gap: Callable[[str], None],
        on_found: Callable[[], None] = lambda: None,
        cost: Callable[[EncodedMessage], int] = lambda message: len(message.payload_json),
    ) -> None:
        self._listener = listener
        self._history = history
        self._recent = recent
        self._deliver = deliver
        self._on_gap = on_gap
        self._on_found = on_found
        self._cost = cost
        #: What was delivered; None while that is not known, or when there is no log.
        self._progress: Progress | None = None
        self._delivered = 0
        #: One delivers at a time: the listener's green thread what it hears, ours what was missing.
        self._delivering = green.Lock()
        self._worker = green.Worker()
        self._wanted = green.Event()
        #: Set when the log's state is known: installed or not.
        self._known = green.Event()
        #: Set, and replaced, whenever `position` moves or the epoch changes.
        self._moved = green.Event()

    # -- for the other green threads ----------------------------------------------------------------------------------

    @property
    def installed(self) -> bool:
        """Whether the database has a log, as far as this node knows."""
        return self._progress is not None

    @property
    def epoch(self) -> str | None:
        """The log's epoch; None without a log."""
        return None if self._progress is None else self._progress.epoch

    @property
    def position(self) -> int:
        """The last position that was handed to ``deliver``, perhaps just now; 0 without a log."""
        return 0 if self._progress is None else self._progress.position

    @property
    def delivered(self) -> int:
        """The last position that ``deliver`` has brought to everybody; 0 without a log."""
        return min(self._delivered, self.position)

    @property
    def behind(self) -> int:
        """How many messages this node knows of and has not delivered; 0 without a log."""
        return 0 if self._progress is None else self._progress.target - self.delivered

    def start(self) -> None:
        """Start the green thread, in the process that is to follow (after a fork)."""
        if not self._worker.running:
            self._listener.acquire(LOG_CHANNEL)
            self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread and close the connection. A later start continues at the same position."""
        self._worker.stop()
        self._history.stop()

    def wait_known(self, seconds: float) -> None:
        """Return when it is known whether there is a log, and where it is.

        Raises :class:`DatabaseUnavailableError` after ``seconds``.
        """
        try:
            self._known.wait(seconds)
        except green.TimedOut:
            raise DatabaseUnavailableError("the log cannot be read at the moment") from None

    def wait_moved(self, seconds: float) -> None:
        """Return when the position has moved, or after ``seconds``."""
        try:
            self._moved.wait(seconds)
        except green.TimedOut:
            return

    def look(self) -> None:
        """Something may have been missed: read the head, and what is missing."""
        self._wanted.send()

    # -- from the listener, in its green thread -----------------------------------------------------------------------

    def hear(self, texts: Sequence[str]) -> None:
        """Notifications of :data:`LOG_CHANNEL`, in order."""
        with self._delivering:
            for text in texts:
                batch = decode_batch(text)
                progress = self._progress
                if batch is None or progress is None or batch.epoch != progress.epoch:
                    self.look()
                    continue
                if batch.first <= progress.position:
                    self.look()  # heard late, or positions have gone back
                progress.expect(batch.last)
                if batch.messages is not None:
                    self._deliver_due(progress, batch.messages)
                if progress.behind:
                    self.look()

    # -- the green thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        while True:
            try:
                # The order matters: what commits after the LISTEN is heard, what committed before it is in the head.
                self._listener.wait(LOG_CHANNEL, 60.0)
                self._wanted = green.Event()
                self._catch_up()
            except LogNotInstalledError:
                self._forget()
            except DatabaseError as error:
                if error.sqlstate == "42501":
                    # As good as not installed, for this role: NOTIFY needs no rights, and goes on.
                    logger.warning("the log cannot be used: %s", error)
                    self._forget()
                    self._known.send()
                    self._rest()
                    continue
                logger.warning("the log cannot be read: %s; retrying", error)
                green.sleep(backoff.next())
                continue
            except Exception:
                # A bug, then. Trying again is still the best that can be done for the subscribers.
                logger.exception("following the log failed; retrying")
                green.sleep(self.backoff[1])
                continue
            backoff.reset()
            self._known.send()
            self._rest()

    def _rest(self) -> None:
        """Until somebody calls :meth:`look`; but look now and then, should all else fail."""
        try:
            self._wanted.wait(self.interval)
        except green.TimedOut:
            return

    def _forget(self) -> None:
        if self._progress is not None:
            logger.warning("the log is not there any more")
            self._progress = None
            self._on_gap("epoch_changed")

    def _catch_up(self) -> None:
        asked = self._progress
        position, target = (0, 0) if asked is None else (asked.position, asked.target)
        head = self._history.head()
        with self._delivering:
            progress = self._progress
            # Compared with where we were when we asked: meanwhile more may have been heard and delivered.
            if progress is None or head.epoch != progress.epoch or head.position < position:
                self._progress = Progress(head.epoch, head.position)
                self._recent.reset(head.position)
                self._delivered = head.position
                self._has_moved()
                if progress is None:
                    self._on_found()
                else:
                    logger.warning("the log is another one than before: epoch %s", head.epoch)
                    self._on_gap("epoch_changed")
                return
            if target > head.position and progress.target == target:
                logger.warning("told of position %d when the log was at %d: forged?", target, head.position)
                progress.target = progress.position
            progress.expect(head.position)
        # In pages: however long this node was away, one at a time is in memory.
        while progress is self._progress and progress.behind:
            read = self._history.page(progress.position, progress.target)
            with self._delivering:
                if progress is not self._progress:
                    return
                if read.trimmed > progress.position:
                    logger.warning("messages up to position %d were trimmed before they could be read", read.trimmed)
                    progress.position = read.trimmed
                    self._recent.reset(read.trimmed)
                    self._delivered = read.trimmed
                    self._has_moved()
                    self._on_gap("trimmed")
                before = progress.position
                self._deliver_due(progress, read.page.messages)
                if progress.position == before and progress.behind:
                    self._skip(progress, read.page, head.position)

    def _skip(self, progress: Progress, page: Page, head: int) -> None:
        """Rows are missing that were not trimmed: somebody has deleted them. Say so, and go on after them."""
        first = page.messages[0].position if page.messages else None
        missing = min(head, page.end if first is None else first - 1)
        if missing > progress.position:
            logger.error("positions %d to %d are missing in the log", progress.position + 1, missing)
            progress.position = missing
            self._recent.reset(missing)
            self._delivered = missing
            self._has_moved()
            self._on_gap("trimmed")

    # -- in either, while holding the lock -----------------------------------------------------------------------------

    def _deliver_due(self, progress: Progress, messages: Sequence[EncodedMessage]) -> None:
        due = progress.due(messages)
        start = 0
        while start < len(due):
            end, size = start, 0
            while end < len(due) and end - start < self.share_messages and size < self.share_characters:
                size += self._cost(due[end])
                end += 1
            share = due[start:end]
            # All of it before anybody else gets a turn: who asks for the position then is told what is being sent.
            position = share[-1].position
            assert position is not None
            progress.position = position
            self._recent.append(share)
            self._has_moved()
            self._deliver(share)
            self._delivered = position
            start = end
            if start < len(due):
                green.sleep()

    def _has_moved(self) -> None:
        moved, self._moved = self._moved, green.Event()
        moved.send()
