"""A durable consumer on a server: messages come through a Subscriber, positions are in the application's database."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal

from sqlalchemy.engine import Engine

from socketio_pg.consumer.connections import Session, Waker
from socketio_pg.consumer.consumer import Message, MissedMessagesError
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.cursors import Since
from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import Position
from socketio_pg.subscriber.subscriber import Gap, Subscriber, Subscription

logger = logging.getLogger("socketio_pg.consumer")

#: The table of positions, in the schema that the connection's search_path names first.
CREATE_TABLE = """\
CREATE TABLE IF NOT EXISTS socketio_pg_position (
    consumer text NOT NULL,
    channel  text NOT NULL,
    epoch    text NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (consumer, channel)
)
"""

_READ = "SELECT epoch, position FROM socketio_pg_position WHERE consumer = {name} AND channel = {channel}"
# A conflict: another process has made the row.
_INSERT = """
INSERT INTO socketio_pg_position (consumer, channel, epoch, position) VALUES ({name}, {channel}, {epoch}, {position})
ON CONFLICT DO NOTHING
"""
_MOVE = """
UPDATE socketio_pg_position SET epoch = {epoch}, position = {position} WHERE consumer = {name} AND channel = {channel}
"""


class ServerConsumer:
    """A consumer with a name, whose positions are in the table ``socketio_pg_position`` of the application's database.

    For programs that reach a server, and not its database. The messages of the log come through ``subscriber``, and
    those of NOTIFY are ignored. ``connect``, ``attempts``, the delays and ``on_failure`` are those of
    :class:`~socketio_pg.consumer.Consumer`. ``start`` says where it begins the first time: "now", a position or a time.

    Several processes may run consumers of one name: each gets all messages, and the first one does the work.

    When messages of the log are missing, :meth:`run` raises :class:`MissedMessagesError`. With ``on_gap`` it calls
    ``on_gap(connection, gap)`` instead, in the transaction that moves the position past the gap; each process may.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        connect: Engine | Callable[[], Any],
        name: str,
        channels: Sequence[str],
        *,
        start: Literal["now"] | Position | datetime | str = "now",
        attempts: int | None = 10,
        retry_delay: float = 1.0,
        retry_delay_max: float = 60.0,
        on_failure: Callable[[Any, Message, Exception], object] | None = None,
        on_gap: Callable[[Any, Gap], object] | None = None,
    ) -> None:
        if isinstance(channels, str):
            raise TypeError("channels must be a sequence of channels")
        if isinstance(start, str) and start.startswith("snapshot:"):
            raise InvalidRequestError("a consumer cannot start from a snapshot token")
        self.name = name
        self._subscriber = subscriber
        self._connect = connect
        self._channels = [validate_channel(channel) for channel in channels]
        self._start: Since | None = None if start == "now" else start
        self._attempts = attempts
        self._retry_delays = (retry_delay, retry_delay_max)
        self._on_failure = on_failure
        self._on_gap = on_gap
        self._handler: Callable[[Any, Message], object] = lambda connection, message: None
        self._waker = Waker()
        self._ended = threading.Event()
        self._stopping = False
        #: Why it has stopped by itself.
        self._error: Exception | None = None
        #: Used by one thread at a time: first by that of :meth:`run`, then by the one that calls handlers.
        self._lock = threading.Lock()
        self._session: Session | None = None

    def run(self, handler: Callable[[Any, Message], object]) -> None:
        """Call ``handler(connection, message)`` for each message, in the subscriber's thread, until :meth:`stop`.

        ``connection`` has an open transaction, which also moves the position. The handler does its work in it, and
        neither commits nor rolls back.

        Raises the exception of the handler after ``attempts`` failures, :class:`MissedMessagesError`, and what
        :meth:`Subscriber.subscribe` raises. A lost connection to either side is made again.
        """
        self._handler = handler
        subscriptions: list[Subscription] = []
        try:
            with self._lock:
                session = self._open()
                session.query(CREATE_TABLE)
                session.commit()
                stored = {channel: self._read(session, channel) for channel in self._channels}
                session.commit()
            for channel in self._channels:
                subscriptions.append(self._subscribe(channel, stored[channel]))
            self._ended.wait()
            if self._error is not None:
                raise self._error
        finally:
            self._stopping = True
            self._waker.wake()
            for subscription in subscriptions:
                self._subscriber.unsubscribe(subscription)
            with self._lock:
                if self._session is not None:
                    self._session.close()
                self._session = None

    def stop(self) -> None:
        """Let :meth:`run` return after the current transaction. May be called by any thread."""
        self._stopping = True
        self._waker.wake()
        self._ended.set()

    def close(self) -> None:
        """Call it when :meth:`run` has returned."""
        self._waker.close()

    def __enter__(self) -> "ServerConsumer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _subscribe(self, channel: str, stored: Position | None) -> Subscription:
        # No message is handled before the first position is stored: a crash would skip those before the next one.
        with self._lock:
            subscription = self._subscriber.subscribe(
                channel,
                self._take,
                since=self._start if stored is None else stored,
                on_gap=self._miss,
                on_error=self._fail,
            )
            first = subscription.position
            if first is None:
                raise InvalidRequestError("the server has no log", channel=channel)
            session = self._open()
            session.query(_INSERT, {"name": self.name, "channel": channel, **first})
            session.commit()
        return subscription

    def _open(self) -> Session:
        if self._session is None or self._session.lost:
            self._session = None
            self._session = Session(self._connect, self._waker, listen=False)
        return self._session

    def _read(self, session: Session, channel: str, lock: str = "") -> Position | None:
        rows = session.query(_READ + lock, {"name": self.name, "channel": channel})
        return Position(epoch=rows[0][0], position=rows[0][1]) if rows else None

    # -- in the subscriber's thread, which calls one after the other ---------------------------------------------------

    def _take(self, message: Any) -> None:
        """Do the work on a message, however often it takes."""
        if "position" in message:
            self._persist(message, message, lambda connection: self._handler(connection, message))

    def _miss(self, gap: Gap) -> None:
        if gap["tier"] == "notify":
            return
        if self._on_gap is None or gap.get("epoch") is None:
            text = f"consumer {self.name}: messages of {gap['channel']!r} are missing: {gap['reason']}"
            self._fail(MissedMessagesError(text, gap))
            return
        on_gap = self._on_gap
        self._persist(gap, None, lambda connection: on_gap(connection, gap))

    def _fail(self, error: Exception) -> None:
        """End :meth:`run` with an error."""
        if not self._stopping:
            self._error = error
        self._stopping = True
        self._ended.set()

    def _persist(self, place: Any, message: Message | None, work: Callable[[Any], object]) -> None:
        """Do ``work`` in a transaction that moves the position to ``place``, unless another process has done so.

        ``message`` is None for a gap.
        """
        failures = 0
        skipping = False
        retry = Backoff(*self._retry_delays)
        while not self._stopping:
            session = None
            try:
                with self._lock:
                    session = self._open()
                    self._do(session, place, work, is_gap=message is None)
                return
            except Exception as error:
                lost = session is None
                if session is not None:
                    session.rollback()
                    lost = session.lost
                failures += 0 if lost else 1
                delay = retry.next()
                if self._attempts is None or failures < self._attempts:
                    logger.warning("consumer %r: %s; retrying in %.1f s", self.name, error, delay)
                elif self._on_failure is None or message is None or skipping:
                    self._fail(error)
                    return
                else:
                    logger.error("consumer %r skips message %d: %s", self.name, message["position"], error)
                    work = partial(_skip, self._on_failure, message, error)
                    skipping, failures, delay = True, 0, 0.0
            self._sleep(delay)

    def _do(self, session: Session, place: Any, work: Callable[[Any], object], is_gap: bool) -> None:
        here = self._read(session, place["channel"], " FOR UPDATE")
        if here is None:
            raise SocketIOPGError(f"the position of consumer {self.name} in {place['channel']!r} is gone")
        if here["epoch"] != place["epoch"]:
            done = not is_gap  # by another process, which has handled the gap between the epochs
        else:
            done = here["position"] > place["position"] or (here["position"] == place["position"] and not is_gap)
        if not done:
            work(session.handle)
            session.check()
            where = {"channel": place["channel"], "epoch": place["epoch"], "position": place["position"]}
            session.query(_MOVE, {"name": self.name, **where})
        session.commit()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._waker.wait(left)


def _skip(
    on_failure: Callable[[Any, Message, Exception], object], message: Message, error: Exception, connection: Any
) -> None:
    on_failure(connection, message, error)
