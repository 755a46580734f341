"""Follows the log for one table: finds what its views get of each change, after row-level security if it applies.

A feed has a position in the log, and no messages: it reads them from the log, mostly from memory. So it can stop while
the database does not answer, and continue, without losing or buffering any.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, LogNotInstalledError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.log.log import Log
from socketio_pg.pubsub.filters import Filter
from socketio_pg.tables.changes import Change, Event
from socketio_pg.tables.checks import RowChecks, Seen, Seer
from socketio_pg.tables.definition import Definition
from socketio_pg.tables.reading import pauses
from socketio_pg.tables.views import PlainViews, RestartError, Touched, View, ViewKey

logger = logging.getLogger("socketio_pg.tables")

#: What cannot be parsed, or written again.
NOT_JSON = (ValueError, TypeError, RecursionError)


class Receiver(Protocol):
    """Gets what a feed finds. The methods are called in its green thread."""

    def deliver(self, feed: "Feed", events: Mapping[View, Sequence[Event]], before: int) -> None:
        """Send ``events`` to the members of views. Before, they had all changes up to the position ``before``."""

    def restart(self, view: View, reason: str) -> None:
        """Send the members of a view their rows again; they leave the view."""

    def fail(self, view: View, error: SocketIOPGError) -> None:
        """End the subscriptions of a view's members."""

    def charge_view(self, view: View, filter: Filter, steps: int) -> None:
        """Count the cost of a view's filter."""


class Feed:
    """The views of ``table`` on this node to which row-level security applies (``checked``), or those without.

    ``position``: the live members have all changes up to there.
    """

    #: Seconds before the first retry when the database does not answer; doubles up to the second value.
    retry = (0.1, 5.0)
    #: Seconds between two checks of rows: many changes then cost PostgreSQL little more than one.
    check_interval = 0.02
    #: Seconds for which the feed waits for clients that are about to become live.
    longest_pause = 5.0

    def __init__(self, table: Definition, log: Log, checks: RowChecks | None, receiver: Receiver) -> None:
        self.table = table
        self.position = log.position
        self.epoch = log.epoch
        self._log = log
        self._checks = checks
        self._receiver = receiver
        self.views: dict[ViewKey, View] = {}
        #: Subscriptions that use this feed, live or not; and reads of rows for others.
        self.users = self.loading = 0
        self._lost: str | None = None
        self._checked_at = float("-inf")
        #: Subscriptions that wait for the position to move on.
        self.waiting = 0
        self._plain = PlainViews(self._charge)
        self._worker = green.Worker()
        self._wanted = green.Event()
        self._moved = green.Event()
        self._busy = False
        self._idle = green.Event()
        self._pausing = 0
        self._resumed = green.Event()
        self._backoff = Backoff(*self.retry)
        self._limited_log = RateLimitedLog(logger)

    @property
    def checked(self) -> bool:
        return self._checks is not None

    @property
    def busy(self) -> bool:
        """Whether the feed is preparing or delivering changes: those after :attr:`position`, or those up to there."""
        return self._busy

    # -- for the other green threads -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look for messages: the log has moved on."""
        self._wanted.send()
        self._worker.start(self._run)

    def lose(self, reason: str) -> None:
        """Send all members their rows again: messages of the log are missing."""
        self._lost = reason
        self.wake()

    def stop(self) -> None:
        self._worker.stop()

    def join(self, key: ViewKey, member: object, keys: set[str]) -> View:
        """Add a live member, which has all changes up to :attr:`position`, and rows with ``keys``.

        Call it within :meth:`paused`, without a break after the comparison of positions.
        """
        view = self.views.get(key)
        if view is None:
            view = self.views[key] = View(key)
            if not self.checked:
                self._plain.add(view)
        view.members.add(member)
        view.keys |= keys
        return view

    def leave(self, view: View, member: object) -> None:
        """Remove a live member."""
        view.members.discard(member)
        if not view.members and self.views.get(view.key) is view:
            del self.views[view.key]
            if not self.checked:
                self._plain.discard(view)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the position while the body runs, for a short time. May wait."""
        self._pausing += 1
        try:
            while self._busy:
                self._idle.wait()
            yield
        finally:
            self._pausing -= 1
            if not self._pausing:
                resumed, self._resumed = self._resumed, green.Event()
                resumed.send()

    def wait_moved(self, seconds: float) -> None:
        """Wait until the position changes, for at most ``seconds``."""
        self.waiting += 1
        try:
            self.wake()
            self._moved.wait(seconds)
        except green.TimedOut:
            return
        finally:
            self.waiting -= 1

    def changes(self, messages: Sequence[EncodedMessage]) -> list[Change]:
        return [Change(message, self.table.key, sends_old=self.table.sends_old) for message in messages]

    def check(self, seers: Sequence[Seer], touched: Touched) -> dict[Seer, Seen]:
        """Select the touched rows as ``seers``. Waits, and raises as :meth:`RowChecks.check`."""
        assert self._checks is not None
        if not touched.keys or not seers:
            return {seer: {} for seer in seers}
        return self._checks.check(self.table, seers, touched.keys)

    def read(self, after: int, upto: int) -> tuple[int, list[EncodedMessage]]:
        """Return the next messages after a position, at most ``upto``, and up to where these are all. May wait.

        Raises :class:`RestartError` if messages are missing.
        """
        read = self._log.channel_page(self.table.channel, after, upto)
        if read.incomplete(after):
            raise RestartError("trimmed")
        return read.page.end, list(read.page.messages)

    def check_epoch(self, epoch: str | None) -> None:
        """Raise :class:`RestartError` if the log has another epoch."""
        if self._log.epoch != epoch:
            raise RestartError("epoch_changed")

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted = green.Event()
            while self._advance():
                green.sleep()

    def _advance(self) -> bool:
        """Deliver the next changes. Return whether there may be more."""
        if self.checked and self.views:
            green.sleep(max(0.0, self._checked_at + self.check_interval - time.monotonic()))
        ends = time.monotonic() + self.longest_pause
        while self._pausing and time.monotonic() < ends:
            with contextlib.suppress(green.TimedOut):
                self._resumed.wait(max(0.01, ends - time.monotonic()))
        self._busy = True
        try:
            return self._step()
        except (DatabaseError, LogNotInstalledError) as error:
            self._limited_log(logging.WARNING, "changes of a live table wait: %s; retrying", error)
        except Exception:  # a bug: the clients get their rows again
            logger.exception("a live table failed")
            self._restart_all("definition_changed")
        finally:
            self._busy = False
            idle, self._idle = self._idle, green.Event()
            idle.send()
        green.sleep(self._backoff.next())
        return True

    def _step(self) -> bool:
        try:
            self.check_epoch(self.epoch)
            lost, self._lost = self._lost, None
            if lost is not None:
                raise RestartError(lost)
            before = self.position
            upto = self._log.position
            if before >= upto:
                return False
            end, messages = self.read(before, upto)
            events = self._events(messages) if messages else {}
            self.check_epoch(self.epoch)
        except RestartError as restart:
            self._restart_all(restart.reason)
            return True
        self._backoff.reset()
        # The position first: sending may yield.
        self.position = end
        self._notify_moved()
        if events:
            self._receiver.deliver(self, events, before)
        return True

    def _restart_all(self, reason: str) -> None:
        views = list(self.views.values())
        self.epoch, self.position = self._log.epoch, self._log.position
        self._notify_moved()
        for view in views:
            self._receiver.restart(view, reason)

    def _events(self, messages: Sequence[EncodedMessage]) -> Mapping[View, Sequence[Event]]:
        if not self.views:
            return {}
        try:
            changes = self.changes(messages)
            if not self.checked:
                return self._plain.events(changes, pauses())
            touched = Touched(changes)
        except NOT_JSON:
            raise RestartError("no_json") from None
        self._checked_at = time.monotonic()
        views = [(view, view.key.seer) for view in self.views.values()]
        seen = self.check(list({seer: None for _, seer in views if seer is not None}), touched)
        found: dict[View, Sequence[Event]] = {}
        pause = pauses()
        for view, seer in views:
            assert seer is not None
            rows = seen[seer]
            if isinstance(rows, SocketIOPGError):
                self._receiver.fail(view, rows)
                continue
            filter = view.key.filter
            events = touched.events(
                rows,
                view.keys,
                filter,
                lambda spent, steps, view=view: self._receiver.charge_view(view, spent, steps),  # type: ignore[misc]
            )
            if events:
                found[view] = events
            pause()
        return found

    def _charge(self, filter: Filter, steps: int) -> None:
        for view in list(self.views.values()):
            if view.key.filter == filter:
                self._receiver.charge_view(view, filter, steps)

    def _notify_moved(self) -> None:
        moved, self._moved = self._moved, green.Event()
        moved.send()
