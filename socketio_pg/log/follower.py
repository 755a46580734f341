"""Follows the log: delivers its messages in the order of their positions.

    LISTEN, until committed → read the head → deliver later messages from the relay's notifications

Reads missing positions from the log before it delivers later ones.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import LOG_CHANNEL
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.sealing import Sealing
from socketio_pg.log.history import History, Read
from socketio_pg.log.places import Places
from socketio_pg.log.positions import Progress, consecutive, decode_batch, explained
from socketio_pg.log.recent import Page, Recent
from socketio_pg.postgres.listener import ChannelListener

logger = logging.getLogger("socketio_pg.follower")


class Follower:
    """Delivers the log on this node.

    ``deliver`` gets batches of consecutive messages, and may yield to other green threads. ``on_gap(reason)`` is called
    when messages of any channel are lost for this node's subscribers: ``trimmed`` or ``epoch_changed``.
    ``on_trims(trims)`` is called when rules have removed messages of some channels before they were delivered: channel
    → the position up to which. ``on_found()`` is called when the follower finds a log where there was none. ``sealing``
    opens the relay's notifications. ``prepare`` gets each batch while its messages do not count as delivered yet, and
    may yield too. ``cost(message)`` is the work that a message causes, in characters. ``history`` is closed with the
    follower.
    """

    #: Seconds before the first retry after a failed attempt to read the log; doubles up to the second value.
    backoff = (0.1, 5.0)
    #: Seconds between reads of the head when nothing else asks for one.
    interval = 30.0
    #: Seconds between two reads that notifications cause which the relay did not send: any role may notify.
    pause = 0.1
    #: Maximum messages and characters in a batch; between batches the follower yields to other green threads.
    batch_messages = 200
    batch_characters = 100_000

    def __init__(
        self,
        listener: ChannelListener,
        history: History,
        recent: Recent,
        deliver: Callable[[Sequence[EncodedMessage]], None],
        on_gap: Callable[[str], None],
        sealing: Sealing,
        on_trims: Callable[[Mapping[str, int]], None] = lambda trims: None,
        on_found: Callable[[], None] = lambda: None,
        prepare: Callable[[Sequence[EncodedMessage]], None] = lambda messages: None,
        cost: Callable[[EncodedMessage], int] = lambda message: len(message.payload_json),
    ) -> None:
        self._listener = listener
        self._history = history
        self._recent = recent
        #: Finds the positions of messages that this node has published.
        self.places = Places(recent)
        self._deliver = deliver
        self._on_gap = on_gap
        self._on_trims = on_trims
        self._sealing = sealing
        self._on_found = on_found
        self._prepare = prepare
        self._cost = cost
        #: How far the log was delivered; None without a log, or before it is known whether there is one.
        self._progress: Progress | None = None
        self._delivered = 0
        #: True if the database had no log when it was last read; and if it had one before that.
        self._absent = self._lost = False
        #: Held while delivering: the listener's green thread delivers notifications, this one what was missing.
        self._delivering = green.Lock()
        self._worker = green.Worker()
        #: Set when the head is to be read; replaced before each read.
        self._requested = green.Event()
        #: When the head was last read (monotonic), and whether a read is due because of a doubtful notification.
        self._looked_at = float("-inf")
        self._doubting = False
        #: Set when it is known whether the log is installed.
        self._known = green.Event()
        #: Set and replaced whenever `position` or the epoch changes.
        self._moved = green.Event()

    # -- for the other green threads ----------------------------------------------------------------------------------

    @property
    def installed(self) -> bool:
        """True if the database has a log, as far as this node knows."""
        return self._progress is not None

    @property
    def epoch(self) -> str | None:
        """The log's epoch; None without a log."""
        return None if self._progress is None else self._progress.epoch

    @property
    def position(self) -> int:
        """The last position that was passed to ``deliver``, which may not have returned yet; 0 without a log."""
        return 0 if self._progress is None else self._progress.position

    @property
    def delivered(self) -> int:
        """The last position that ``deliver`` has finished delivering; 0 without a log."""
        return min(self._delivered, self.position)

    @property
    def behind(self) -> int:
        """The number of messages that this node knows of and has not delivered; 0 without a log."""
        return 0 if self._progress is None else self._progress.target - self.delivered

    def start(self) -> None:
        """Start the green thread; call it after a fork."""
        if not self._worker.running:
            self._listener.acquire(LOG_CHANNEL)
            self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread and close the connection. A later start continues at the same position."""
        self._worker.stop()
        self._history.stop()
        self.places.reset(self.epoch)

    def wait_known(self, seconds: float) -> None:
        """Wait until it is known whether there is a log, and its position.

        Raises :class:`DatabaseUnavailableError` after ``seconds``.
        """
        try:
            self._known.wait(seconds)
        except green.TimedOut:
            raise DatabaseUnavailableError("the log cannot be read at the moment") from None

    def wait_moved(self, seconds: float) -> None:
        """Wait until the position or the epoch changes, for at most ``seconds``."""
        try:
            self._moved.wait(seconds)
        except green.TimedOut:
            return

    def look(self) -> None:
        """Read the head and missing messages soon; call it when notifications may have been lost."""
        self._requested.send()

    def doubt(self) -> None:
        """Look, but once in :attr:`pause` seconds at most: the reason may be a notification of any role."""
        if not self._doubting:
            self._doubting = True
            green.run_soon(self._look_later, self._looked_at + self.pause - time.monotonic())

    # -- from the listener, in its green thread -----------------------------------------------------------------------

    def hear(self, texts: Sequence[str]) -> None:
        """Process notifications of :data:`LOG_CHANNEL`, in order."""
        with self._delivering:
            for sealed in texts:
                # A repeated notification does no harm: it has an epoch and positions.
                text = self._sealing.open(LOG_CHANNEL, sealed, replayable=True)
                batch = None if text is None else decode_batch(text)
                progress = self._progress
                if batch is None or progress is None or batch.epoch != progress.epoch:
                    self.doubt()
                    continue
                if batch.first <= progress.position:
                    self.doubt()  # a late or repeated notification, or the positions went back
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
                # LISTEN first: later commits send notifications, and the head includes all earlier ones.
                self._listener.wait(LOG_CHANNEL, 60.0)
                self._requested = green.Event()
                self._catch_up()
            except LogNotInstalledError:
                self._forget()
            except DatabaseError as error:
                if error.sqlstate == "42501":
                    # Insufficient privilege: for this role the same as no log. NOTIFY needs no rights and still works.
                    logger.warning("cannot use the log: %s", error)
                    self._forget()
                    self._known.send()
                    self._wait_requested()
                    continue
                logger.warning("cannot read the log: %s; retrying", error)
                green.sleep(backoff.next())
                continue
            except Exception:
                # A bug. For the subscribers a retry is still better than nothing.
                logger.exception("following the log failed; retrying")
                green.sleep(self.backoff[1])
                continue
            backoff.reset()
            self._known.send()
            self._wait_requested()

    def _wait_requested(self) -> None:
        """Wait until :meth:`look` is called, for at most :attr:`interval`."""
        try:
            self._requested.wait(self.interval)
        except green.TimedOut:
            return
        finally:
            self._looked_at = time.monotonic()

    def _look_later(self, seconds: float) -> None:
        green.sleep(max(0.0, seconds))
        self._doubting = False
        self.look()

    def _forget(self) -> None:
        self._absent = True
        if self._progress is not None:
            logger.warning("the log no longer exists")
            self._progress = None
            self.places.reset(None)
            self._lost = True
            self._on_gap("epoch_changed")

    def _catch_up(self) -> None:
        asked = self._progress
        position, target = (0, 0) if asked is None else (asked.position, asked.target)
        head = self._history.head()
        with self._delivering:
            progress = self._progress
            # Compared with the position before the query: notifications may have been delivered meanwhile.
            if progress is None or head.epoch != progress.epoch or head.position < position:
                self._progress = Progress(head.epoch, head.position)
                self._recent.reset(head.position)
                self.places.reset(head.epoch)
                self._delivered = head.position
                self._notify_moved()
                if progress is None:
                    self._on_found()
                    # Another node may have relayed messages meanwhile, and clients learn the epoch of the new log.
                    missed = self._lost or (self._absent and head.position > 0)
                    self._absent = self._lost = False
                    if missed:
                        self._on_gap("epoch_changed")
                else:
                    logger.warning("the log was replaced or restored: its epoch is now %s", head.epoch)
                    self._on_gap("epoch_changed")
                return
            if target > head.position and progress.target == target:
                logger.warning("a notification named position %d, but the log is at %d: forged?", target, head.position)
                progress.target = progress.position
            progress.expect(head.position)
        # Page by page: only one page is in memory, however far this node is behind.
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
                    self._notify_moved()
                    self._on_gap("trimmed")
                before = progress.position
                page = read.page
                holes = len(page.messages) < page.end - page.after
                if holes and read.removed <= before and explained(page.messages, before, page.end, read.channels):
                    self._deliver_left(progress, read)
                    continue
                self._deliver_due(progress, consecutive(page.messages, before) if holes else page.messages)
                if progress.position == before and progress.behind:
                    self._skip(progress, page, head.position)

    def _deliver_left(self, progress: Progress, read: Read) -> None:
        """Deliver a page of which rules have removed messages, after reporting which channels lack some."""
        missing = {channel: upto for channel, upto in read.channels.items() if upto > progress.position}
        # The messages in memory must be complete.
        self._recent.reset(read.page.end)
        if missing:
            self._on_trims(missing)
        left = progress.left(read.page.messages)
        if left:
            self._deliver_some(progress, left, remember=False)
        progress.position = max(progress.position, read.page.end)
        progress.expect(progress.position)
        self._delivered = progress.position
        self._notify_moved()

    def _skip(self, progress: Progress, page: Page, head: int) -> None:
        """Skip rows that are missing although they were not trimmed: they were deleted by hand. Logs an error."""
        first = page.messages[0].position if page.messages else None
        missing = min(head, page.end if first is None else first - 1)
        if missing > progress.position:
            logger.error("positions %d to %d are missing in the log", progress.position + 1, missing)
            progress.position = missing
            self._recent.reset(missing)
            self._delivered = missing
            self._notify_moved()
            self._on_gap("trimmed")

    # -- in either green thread, while it holds the lock ---------------------------------------------------------------

    def _deliver_due(self, progress: Progress, messages: Sequence[EncodedMessage]) -> None:
        self._deliver_some(progress, progress.due(messages))

    def _deliver_some(self, progress: Progress, due: Sequence[EncodedMessage], *, remember: bool = True) -> None:
        start = 0
        while start < len(due):
            end, size = start, 0
            while end < len(due) and end - start < self.batch_messages and size < self.batch_characters:
                size += self._cost(due[end])
                end += 1
            batch = due[start:end]
            self._prepare(batch)
            # The position first: `deliver` may yield, and other green threads must see the position being sent.
            position = batch[-1].position
            assert position is not None
            progress.position = position
            if remember:
                self._recent.append(batch)
            self.places.note(batch)
            self._notify_moved()
            self._deliver(batch)
            self._delivered = position
            start = end
            if start < len(due):
                green.sleep()

    def _notify_moved(self) -> None:
        moved, self._moved = self._moved, green.Event()
        moved.send()
