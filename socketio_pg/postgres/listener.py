"""The LISTEN connection: one green thread owns it, keeps it alive, and listens to the acquired channels.

    connect → prove that notifications arrive → LISTEN to all acquired channels → deliver, LISTEN, UNLISTEN, heartbeat
       ↑                                                                            │
       └────────────── back off with jitter ←── connection lost (gap for each channel)

It knows nothing about subscribers (`hub`) and payloads (`messages`).
"""

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol, TypeAlias

from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import RESERVED_PREFIX, quote_identifier
from socketio_pg.core.errors import (
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InvalidChannelError,
    InvalidRequestError,
)
from socketio_pg.core.meta import META_CHANNEL
from socketio_pg.core.problems import Problem
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.companions import Joiner, Notification
from socketio_pg.postgres.database import Database, decode_text, encode_text, translated_errors

logger = logging.getLogger("socketio_pg.listener")


@dataclass(frozen=True, slots=True)
class NotifyGap:
    """Notifications between ``since`` and ``until``, by the listening node's clock, may have been missed."""

    channel: str
    since: datetime
    until: datetime
    reason: str = "database_connection_lost"

    def to_wire(self) -> dict[str, str]:
        """Return the argument of the Socket.IO event ``gap``; times are in ISO 8601, UTC."""
        return {
            "channel": self.channel,
            "reason": self.reason,
            "since": self.since.isoformat(timespec="milliseconds"),
            "until": self.until.isoformat(timespec="milliseconds"),
        }


OnNotifications: TypeAlias = Callable[[Sequence[Notification]], None]
OnGap: TypeAlias = Callable[[NotifyGap], None]


class ChannelListener(Protocol):
    """Listens to channels for a node: :class:`Listener`, or a replacement that gets notifications from another node.

    Calls ``on_notifications`` and ``on_gap`` as :class:`Listener` does.
    """

    @property
    def ready(self) -> bool:
        """Whether it listens to all channels that were acquired when it came up."""

    @property
    def problem(self) -> Problem | None:
        """The reason why it is not ready, for the operator; None when it is."""

    @property
    def heard(self) -> datetime:
        """The time up to which it has missed nothing, except for gaps that it will report after a :attr:`problem`."""

    @property
    def channels(self) -> int:
        """The number of channels that it listens to, including those in their grace time."""

    @property
    def connections(self) -> int:
        """The number of its connections to the database."""

    @property
    def backends(self) -> Mapping[int, int]:
        """PostgreSQL's process id of each connection that is up → the number of channels that it listens to."""

    def start(self) -> None:
        """Start its green thread. Call it after any fork."""

    def stop(self) -> None:
        """Stop its green thread."""

    def acquire(self, channel: str) -> None:
        """Listen to ``channel``; :meth:`wait` returns once it does."""

    def release(self, channel: str) -> None:
        """Stop listening to ``channel``, after a grace time."""

    def wait(self, channel: str, seconds: float) -> None:
        """Return once ``channel`` is listened to.

        Raises :class:`DatabaseUnavailableError` after ``seconds``, :class:`ListenCancelledError` when it is released.
        """


#: Also frees the part of the NOTIFY queue that all sessions have read. PostgreSQL does that when notifications are
#: written, and a full queue refuses them: without this call it stays full after every session has caught up.
_HEARTBEAT = "SELECT pg_catalog.pg_notification_queue_usage()"


class Listener:
    """Listens to the channels that were acquired and not yet released.

    ``on_notifications`` gets the notifications of one read of the connection, in order; ``on_gap`` is called for each
    channel when it is listened to again after the connection was lost. Both run in the listener's green thread.
    ``on_left`` is called when a channel was released and the connection certainly does not listen to it any more.
    ``sealing`` opens the metadata of notifications, which follows the payload and a NUL.
    """

    #: Seconds without data after which the connection is tested with a query, and seconds for its answer.
    heartbeat_interval = 5.0
    heartbeat_timeout = 5.0
    #: Seconds before the first attempt to reconnect; doubles up to the second value.
    backoff = (0.1, 5.0)
    #: Seconds for one batch of LISTEN, and for the proof after connecting.
    statement_timeout = 10.0
    #: A gap begins this long before the last sign of life, as PostgreSQL sends notifications a moment after the commit.
    margin = timedelta(seconds=1)
    #: Seconds between the release of a channel and its UNLISTEN: a page that reloads subscribes again.
    unlisten_grace = 3.0
    #: The maximum number of released channels in their grace time; beyond it the UNLISTEN of the oldest is due.
    max_leaving = 1_000
    #: LISTEN statements in one round trip; notifications are delivered between two round trips.
    batch_size = 500

    def __init__(
        self,
        database: Database,
        on_notifications: Callable[[Sequence[Notification]], None],
        on_gap: Callable[[NotifyGap], None],
        on_left: Callable[[str], None] = lambda channel: None,
        sealing: Sealing | None = None,
    ) -> None:
        self._database = database
        self._on_notifications = on_notifications
        self._on_gap = on_gap
        self._on_left = on_left
        self._joiner = Joiner(sealing or Sealing(Seal()))
        self._wanted: set[str] = set()
        self._listening: set[str] = set()
        self._pending: OrderedDict[str, None] = OrderedDict()
        #: The channels of the LISTEN or UNLISTEN in progress.
        self._changing: set[str] = set()
        self._leaving: OrderedDict[str, float] = OrderedDict()
        self._gaps: dict[str, datetime] = {}
        self._waiters = Waiters()
        self._waker: green.Waker | None = None
        self._worker = green.Worker()
        self._heard = datetime.now(timezone.utc)
        self._ready = False
        self._problem = Problem("not started")
        #: True until it is ready, or has failed, for the first time since :meth:`start`.
        self.opening = True
        #: PostgreSQL's process id of the connection; None without one.
        self.backend: int | None = None

    # -- called by other green threads; nothing here uses the connection -------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the connection is up, proven, and listens to all channels that were acquired when it came up."""
        return self._ready

    @property
    def problem(self) -> Problem | None:
        """The reason why it is not ready, for the operator; None when it is."""
        return None if self._ready else self._problem

    @property
    def heard(self) -> datetime:
        """The time up to which it has certainly missed nothing."""
        return self._heard

    @property
    def listening(self) -> int:
        """The number of channels that the connection listens to."""
        return len(self._listening)

    def start(self) -> None:
        """Start the green thread. Call it after any fork, in the process that listens."""
        if not self._worker.running:
            self._waker = green.Waker()
            self._problem = Problem("connecting")
            self.opening = True
            self._worker.start(self._run, self._waker)

    def stop(self) -> None:
        """Stop the green thread and close the connection."""
        self._worker.stop()

    def acquire(self, channel: str) -> None:
        """Listen to ``channel``; :meth:`wait` returns once it does."""
        self._wanted.add(channel)
        self._leaving.pop(channel, None)
        if channel not in self._listening:
            self._pending[channel] = None
            self._wake()

    def release(self, channel: str) -> None:
        """Stop listening to ``channel``; the UNLISTEN follows after a grace time."""
        self._wanted.discard(channel)
        self._pending.pop(channel, None)
        if channel in self._listening:
            self._leaving[channel] = time.monotonic() + self.unlisten_grace
            self._wake()
        self._waiters.cancel(channel)
        self._check_left(channel)

    def _check_left(self, channel: str) -> None:
        if not any(channel in channels for channels in (self._wanted, self._listening, self._changing)):
            self._on_left(channel)

    def wait(self, channel: str, seconds: float) -> None:
        """Return once the LISTEN for ``channel`` has committed.

        Raises :class:`DatabaseUnavailableError` after ``seconds``, :class:`ListenCancelledError` when it is released
        before that, :class:`InvalidChannelError` when the database's encoding cannot represent the name.
        """
        if channel not in self._listening:
            try:
                self._waiters.wait(channel, seconds)
            except DatabaseUnavailableError as error:
                if self.problem is None:
                    raise
                error.message = f"{error.message}: {self.problem.public}"
                raise

    def _wake(self) -> None:
        if self._worker.running and self._waker is not None:
            self._waker.wake()

    # -- the green thread ------------------------------------------------------------------------------------------

    def _run(self, waker: green.Waker) -> None:
        try:
            self._stay_connected(waker)
        finally:
            self._lost(DatabaseUnavailableError("stopped"))
            waker.close()

    def _stay_connected(self, waker: green.Waker) -> None:
        backoff = Backoff(*self.backoff)
        lost = False
        #: The reasons that were logged since the connection last worked: the first one seldom is the cause.
        reported: set[str] = set()
        while True:
            connection = None
            try:
                connection = self._database.connect("listen", listen=True)
                self._prove(connection)
                self._listen_again(connection)
                if lost:
                    metrics.reconnects.labels("listener").inc()
                lost = True  # however this connection ends, the next one is a reconnect
                logger.log(logging.WARNING if reported else logging.INFO, "listening on %s", self._database)
                backoff.reset()
                reported.clear()
                self.backend = connection.info.backend_pid
                self._serve(connection, waker)
            except DatabaseError as error:
                if connection is not None:
                    self._deliver(connection)  # notifications that arrived before the end
                self._lost(error)
                known = str(error) in reported
                logger.log(logging.DEBUG if known else logging.WARNING, "not listening: %s; retrying", error)
                reported.add(str(error))
            except Exception as error:
                # A bug: the subscribers still need a connection.
                self._lost(error)
                logger.exception("the listener failed; retrying")
            finally:
                self.backend = None
                if connection is not None:
                    connection.close()
            green.sleep(backoff.next())

    def _prove(self, connection: Any) -> None:
        """Check with a NOTIFY from another session that both addresses are one database without a pooler in between."""
        nonce = f"{RESERVED_PREFIX}_{secrets.token_hex(8)}"
        self._execute(connection, f"LISTEN {nonce}")
        other = self._database.connect("listen")
        try:
            self._execute(other, _HEARTBEAT)
            self._execute(other, f"NOTIFY {nonce}")
        finally:
            other.close()
        deadline = time.monotonic() + self.heartbeat_timeout
        with translated_errors(self.statement_timeout):
            while not any(notification.channel == nonce for notification in connection.notifies):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DatabaseRefusedError(
                        "a NOTIFY does not reach the LISTEN connection: it goes through a pooler in transaction mode, "
                        "or to another database; set LISTEN_DATABASE_URL to PostgreSQL's own address"
                    )
                if green.select([connection], left):
                    connection.poll()
        connection.notifies.clear()
        self._execute(connection, f"UNLISTEN {nonce}")

    def _listen_again(self, connection: Any) -> None:
        self._joiner.reset()
        self._execute(connection, f"LISTEN {META_CHANNEL}")
        self._heard = datetime.now(timezone.utc)
        for channel in self._gaps.keys() - self._wanted:
            del self._gaps[channel]
        self._pending = OrderedDict.fromkeys(self._wanted)
        while self._pending:
            self._listen_batch(connection)
        self._ready, self.opening = True, False

    def _serve(self, connection: Any, waker: green.Waker) -> None:
        heartbeat = time.monotonic() + self.heartbeat_interval
        while True:
            if self._pending:
                self._listen_batch(connection)
            self._unlisten_due(connection)
            now = time.monotonic()
            if now >= heartbeat:
                self._execute(connection, _HEARTBEAT, self.heartbeat_timeout)
                heartbeat = time.monotonic() + self.heartbeat_interval
            self._deliver(connection)
            if self._pending:
                continue
            wait = heartbeat - now
            if len(self._leaving) > self.max_leaving:
                continue
            if self._leaving:
                wait = min(wait, next(iter(self._leaving.values())) - now)
            for ready in green.select([connection, waker], wait):
                if ready is waker:
                    waker.clear()
                else:
                    with translated_errors(self.heartbeat_timeout):
                        # After a FATAL notice the first poll() succeeds, and the next one raises.
                        connection.poll()
                    # A FATAL notice is no sign of life; neither is a notification while others are still unread.
                    if connection.notifies and not green.select([connection], 0):
                        self._heard = datetime.now(timezone.utc)
                    heartbeat = time.monotonic() + self.heartbeat_interval

    def _listen_batch(self, connection: Any) -> None:
        batch: dict[str, None] = {}
        while self._pending and len(batch) < self.batch_size:
            channel, _ = self._pending.popitem(last=False)
            if channel in self._wanted and channel not in self._listening:
                batch[channel] = None
        if not batch:
            return
        self._changing = set(batch)
        try:
            self._execute(connection, ";".join(f"LISTEN {quote_identifier(channel)}" for channel in batch))
        except (DatabaseUnavailableError, DatabaseRefusedError):
            self._pending.update(batch)
            raise
        except DatabaseError:
            for channel in list(batch):
                try:
                    self._execute(connection, f"LISTEN {quote_identifier(channel)}")
                except (DatabaseUnavailableError, DatabaseRefusedError):
                    raise
                except DatabaseError as error:
                    del batch[channel]
                    text = "the database refuses this name"
                    refused = InvalidChannelError(text, channel=channel, detail=f"{text}: {error}")
                    self._refuse(channel, refused)
        self._listening.update(batch)
        self._changing = set()
        now = datetime.now(timezone.utc)
        for channel in batch:
            # The gap is reported before waiters resume: new subscribers have missed nothing.
            since = self._gaps.pop(channel, None)
            if since is not None:
                self._guarded(self._on_gap, NotifyGap(channel, since, now))
        for channel in batch:
            self._waiters.done(channel)
        for channel in batch.keys() - self._wanted:
            self.release(channel)  # released while the LISTEN was in progress
        self._deliver(connection)

    def _refuse(self, channel: str, error: InvalidChannelError) -> None:
        self._wanted.discard(channel)
        self._changing.discard(channel)
        self._waiters.done(channel, error)
        self._check_left(channel)

    def _unlisten_due(self, connection: Any) -> None:
        now = time.monotonic()
        due: list[str] = []
        for channel, deadline in self._leaving.items():  # ordered by deadline, as the grace time is constant
            in_time = deadline > now and len(self._leaving) - len(due) <= self.max_leaving
            if in_time or len(due) == self.batch_size:
                break
            due.append(channel)
        for channel in due:
            del self._leaving[channel]
            self._listening.discard(channel)
        if due:
            self._changing = set(due)
            self._execute(connection, ";".join(f"UNLISTEN {quote_identifier(channel)}" for channel in due))
            self._changing = set()
            # Acquired again while the UNLISTEN was in progress.
            self._pending.update(dict.fromkeys(channel for channel in due if channel in self._wanted))
            for channel in due:
                self._check_left(channel)

    def _deliver(self, connection: Any) -> None:
        if connection.notifies:
            # `notifies` is in the order of the commits.
            notifications = [
                (decode_text(connection, found.channel), decode_text(connection, found.payload))
                for found in connection.notifies
            ]
            connection.notifies.clear()
            joined = self._joiner.join(notifications, self._gets)
            if joined:
                self._guarded(self._on_notifications, joined)

    def _gets(self, channel: str) -> bool:
        return channel in self._listening or channel in self._changing

    def _execute(self, connection: Any, sql: str, seconds: float | None = None) -> None:
        with translated_errors(seconds or self.statement_timeout), connection.cursor() as cursor:
            cursor.execute(encode_text(connection, sql))
        self._heard = datetime.now(timezone.utc)

    def _lost(self, error: Exception) -> None:
        self._ready, self._problem, self.opening = False, Problem.of(error), False
        for channel in self._listening & self._wanted:
            self._gaps.setdefault(channel, self._heard - self.margin)
        left = (self._listening | self._changing) - self._wanted
        self._changing = set()
        self._listening.clear()
        self._leaving.clear()
        for channel in left:
            self._check_left(channel)

    def _guarded(self, function: Callable[[Any], None], argument: Any) -> None:
        """Call ``function``; its failure must not end the connection."""
        try:
            function(argument)
        except Exception:  # a bug in the receiver: other channels need the connection
            logger.exception("a receiver of notifications failed")


class ListenCancelledError(InvalidRequestError):
    """The channel was released while a caller waited for its LISTEN."""


class Waiters:
    """Green threads that wait until a channel is listened to."""

    def __init__(self) -> None:
        self._events: dict[str, list[green.Event]] = {}

    def wait(self, channel: str, seconds: float) -> None:
        """Return after :meth:`done`, or raise its error. Raises :class:`DatabaseUnavailableError` after ``seconds``."""
        event = green.Event()
        waiters = self._events.setdefault(channel, [])
        waiters.append(event)
        try:
            error = event.wait(seconds)
        except green.TimedOut:
            raise DatabaseUnavailableError("cannot listen to the database at the moment", channel=channel) from None
        finally:
            waiters.remove(event)
            if not waiters and self._events.get(channel) is waiters:
                del self._events[channel]
        if error is not None:
            raise error

    def done(self, channel: str, error: Exception | None = None) -> None:
        """Resume the waiters of ``channel``; with ``error`` their :meth:`wait` raises it."""
        for event in self._events.get(channel, ()):
            event.send(error)

    def cancel(self, channel: str) -> None:
        """Resume the waiters of ``channel``, which was released, with :class:`ListenCancelledError`."""
        self.done(channel, ListenCancelledError("unsubscribed before the subscription was complete", channel=channel))
