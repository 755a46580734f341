"""A durable consumer on PostgreSQL: each message is done exactly once, whatever crashes. Needs no server to read."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias, TypedDict

from sqlalchemy.engine import Engine

from socketio_pg.consumer.connections import Session, Waker
from socketio_pg.core import schema_trust
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import quote_literal, validate_channel
from socketio_pg.core.errors import (
    InvalidRequestError,
    LogNotInstalledError,
    SocketIOPGError,
    UntrustedSchemaError,
)
from socketio_pg.core.messages import Position, loads

logger = logging.getLogger("socketio_pg.consumer")

#: Where a consumer starts: at the newest message, the oldest one, after a position (also as "epoch:position"), at a
#: time with its zone, or with what a snapshot does not have: a token of the SQL function ``socketio_pg.snapshot()``.
Start: TypeAlias = Literal["now", "earliest"] | Position | datetime | str

# Everything is qualified: the application's search_path may contain schemas of other owners.
_CONSUME = """
SELECT epoch::pg_catalog.text, position, channel, payload::pg_catalog.text, published_at,
    sender::pg_catalog.text, traceparent
FROM socketio_pg.consume(CAST({name} AS pg_catalog.text), CAST({channels} AS pg_catalog.text[]),
    CAST({most} AS pg_catalog.int4), CAST({start} AS pg_catalog.text))
"""
_MOVE = """
SELECT socketio_pg.consumer_move(CAST({name} AS pg_catalog.text), CAST({target} AS pg_catalog.text),
    CAST({expected} AS pg_catalog.text))
"""
_FAILED = """
SELECT socketio_pg.consumer_failed(CAST({name} AS pg_catalog.text), CAST({position} AS pg_catalog.int8),
    CAST({error} AS pg_catalog.text))
"""

#: SQLSTATEs of consume() for messages that were missed.
_MISSED = ("SG021", "SG022")
#: SQLSTATEs of conflicts with other transactions: a repetition can succeed. And how often they are repeated at once.
_CONFLICTS = ("40001", "40P01")
_MAX_CONFLICTS = 20


class _Message(TypedDict):
    channel: str
    payload: Any
    epoch: str
    position: int
    published_at: str


class Message(_Message, TypedDict("_Sender", {"from": dict[str, Any]}, total=False), total=False):
    """A message of the log. ``published_at`` is ISO 8601 in UTC.

    ``from`` is the client that has published it, as in docs/identity.md; missing for other publishers. ``traceparent``
    is there if its publisher has given one.
    """

    traceparent: str


class ConsumerGap(TypedDict):
    """The consumer has missed messages of the log.

    ``reason``: ``trimmed``, messages after ``since`` were removed before it got them; ``epoch_changed``, the log was
    recreated or restored. It can continue from ``epoch`` and ``position``.
    """

    reason: Literal["trimmed", "epoch_changed"]
    since: Position
    epoch: str
    position: int


class MissedMessagesError(SocketIOPGError):
    """A consumer cannot continue, because it has missed messages: see :attr:`gap`.

    Pass ``on_gap``, or check the data and call :meth:`Consumer.move`.
    """

    def __init__(self, message: str, gap: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.gap = gap


class Consumer:
    """A consumer with a name, whose position is in the table ``socketio_pg.consumer``.

    ``connect`` is an SQLAlchemy engine, or a function that returns a new connection of psycopg2, psycopg 3 or
    SQLAlchemy; the consumer uses one of its own. ``channels`` are the channels that it reads, all if None. ``start``
    says where it begins the first time: "now", "earliest", a position, a time, or the token of a snapshot.

    Several processes may run consumers of one name: one works, the others take over within ``poll`` seconds when it
    ends or crashes. ``poll`` is also the time between two looks at the log without a notification. Behind a pooler in
    transaction mode set ``listen=False``: it then depends on these looks.

    A message whose handler raises an exception is rolled back and tried again after ``retry_delay`` seconds, doubled
    each time up to ``retry_delay_max``; the messages after it wait. After ``attempts`` failures (None: never)
    :meth:`run` raises the exception. With ``on_failure`` it calls ``on_failure(connection, message, error)`` instead,
    and skips the message in the same transaction.

    When messages were removed from the log before the consumer got them, or the log was recreated or restored,
    :meth:`run` raises :class:`MissedMessagesError`. With ``on_gap`` it calls ``on_gap(connection, gap)`` instead and
    continues from the position that it returns (None: that of the gap), in one transaction.

    ``schema_owner`` is a role to trust as the owner of the schema, as the setting SCHEMA_OWNER. With another owner,
    :meth:`run` raises :class:`UntrustedSchemaError`; without the schema, :class:`LogNotInstalledError`.
    """

    def __init__(
        self,
        connect: Engine | Callable[[], Any],
        name: str,
        *,
        channels: Sequence[str] | None = None,
        start: Start = "now",
        batch: int = 1,
        attempts: int | None = 10,
        retry_delay: float = 1.0,
        retry_delay_max: float = 60.0,
        poll: float = 1.0,
        listen: bool = True,
        on_failure: Callable[[Any, Message, Exception], object] | None = None,
        on_gap: Callable[[Any, ConsumerGap], Start | None] | None = None,
        parse_float: Callable[[str], Any] = float,
        schema_owner: str | None = None,
    ) -> None:
        if isinstance(channels, str):
            raise TypeError("channels must be a sequence of channels")
        if not 1 <= batch <= 1000:
            raise InvalidRequestError("batch must be from 1 to 1000")
        self.name = name
        self._connect = connect
        self._channels = None if channels is None else [validate_channel(channel) for channel in channels]
        self._start = _cursor(start)
        self._batch = batch
        self._attempts = attempts
        self._poll = poll
        self._listen = listen
        self._on_failure = on_failure
        self._on_gap = on_gap
        self._parse_float = parse_float
        self._schema_owner = schema_owner
        self._waker = Waker()
        self._stopping = False
        self._session: Session | None = None
        #: False until the first connection: errors before it are reported at once.
        self._connected = False
        self._retry = Backoff(retry_delay, retry_delay_max)
        self._reconnect = Backoff(0.1, 5.0)
        #: Pauses while the log is busy with messages of other channels.
        self._idle = Backoff(0.002, 0.05, jitter=0.0)
        #: After a failure of several messages: the position up to which they are done one by one.
        self._single_until: int | None = None
        self._conflicts = 0

    def run(self, handler: Callable[[Any, Message], object], *, until_idle: bool = False) -> None:
        """Call ``handler(connection, message)`` for each message, in order, until :meth:`stop` is called.

        ``connection`` has an open transaction, which also has the consumer's position. The handler does its work in
        it, and neither commits nor rolls back. With a ``batch`` of more than one, so many messages share a transaction;
        when one of them fails, they are done one by one. With ``until_idle`` it returns when there is nothing to do.

        Raises the exception of the handler after ``attempts`` failures, :class:`MissedMessagesError`, and the driver's
        errors; when the connection is lost it reconnects.
        """
        reconnecting = False
        while not self._stopping:
            try:
                done = self._step(handler)
            except Exception as error:
                lost = self._session is None or self._session.lost
                self._hang_up()
                if not lost or not self._connected or isinstance(error, LogNotInstalledError):
                    raise
                level = logging.INFO if reconnecting else logging.WARNING
                logger.log(level, "consumer %r: no connection: %s; retrying", self.name, error)
                reconnecting = True
                self._waker.wait(self._reconnect.next())
                continue
            reconnecting = False
            self._reconnect.reset()
            if done:
                self._idle.reset()
            elif done == 0 and until_idle:
                return
            elif done == 0 and self._session is not None:
                with contextlib.suppress(Exception):  # the next step finds a lost connection
                    if self._session.wait(self._poll):
                        self._waker.wait(self._idle.next())

    def step(self, handler: Callable[[Any, Message], object]) -> int:
        """Do the next messages, at most a batch, in one transaction; return their number.

        0: there are none, another process of this name works, or they have failed, and the pause is over.
        """
        return self._step(handler) or 0

    def _step(self, handler: Callable[[Any, Message], object]) -> int | None:
        """Like :meth:`step`, but returns None when there was a failure or a gap."""
        session = self._open()
        most = 1 if self._single_until is not None else self._batch
        taken: list[Message] = []
        message: Message | None = None
        try:
            taken = self._take(session, most)
            for message in taken:
                message["payload"] = loads(message["payload"], self._parse_float)
                handler(session.handle, message)
                session.check()
            message = None
            session.commit()
        except Exception as error:
            session.rollback()
            if session.lost:
                raise
            self._fail(session, taken, message, error)
            return None
        except BaseException:
            self._hang_up()
            raise
        if taken:
            self._conflicts = 0
            self._retry.reset()
            if self._single_until is not None and taken[-1]["position"] >= self._single_until:
                self._single_until = None
        return len(taken)

    def stop(self) -> None:
        """Let :meth:`run` return after the current transaction. May be called by any thread or signal handler."""
        self._stopping = True
        self._waker.wake()

    def move(self, target: Start) -> None:
        """Move the consumer to a start. Messages in between are not delivered, or again."""
        session = self._open()
        session.query(_MOVE, {"name": self.name, "target": _cursor(target), "expected": None})
        session.commit()

    def close(self) -> None:
        """Close the connection. Call it when :meth:`run` has returned."""
        self._hang_up()
        self._waker.close()

    def __enter__(self) -> "Consumer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Session:
        if self._session is None or self._session.lost:
            self._session = None
            session = Session(self._connect, self._waker, listen=self._listen)
            self._connected = True
            try:
                self._verify(session)
            except BaseException:
                session.close()
                raise
            self._session = session
        return self._session

    def _verify(self, session: Session) -> None:
        """Verify that the schema belongs to a trusted role, before anything in it is called."""
        owner = None if self._schema_owner is None else quote_literal(self._schema_owner)
        [(present, problems)] = session.query(schema_trust.query(owner))
        session.commit()
        if problems:
            raise UntrustedSchemaError(f"the schema socketio_pg is not trusted: {', '.join(problems)}")
        if not present:
            raise LogNotInstalledError("the log is not installed in the database: run 'socketio-pg init'")

    def _hang_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _take(self, session: Session, most: int) -> list[Message]:
        """Return the next messages. Their payloads are still text: one that cannot be decoded fails like a handler."""
        values = {"name": self.name, "channels": self._channels, "most": most, "start": self._start}
        messages = []
        for epoch, position, channel, text, published_at, sender, traceparent in session.query(_CONSUME, values):
            message = Message(
                channel=channel, payload=text, epoch=epoch, position=position, published_at=_iso(published_at)
            )
            if sender is not None:
                message["from"] = json.loads(sender)
            if traceparent is not None:
                message["traceparent"] = traceparent
            messages.append(message)
        return messages

    # -- failures: the transaction is rolled back ----------------------------------------------------------------------

    def _fail(self, session: Session, taken: list[Message], message: Message | None, error: Exception) -> None:
        """Prepare the next attempt, or raise ``error``. ``message`` is the one whose handler has failed."""
        if not taken and sqlstate(error) in _MISSED:
            self._handle_gap(session, error)
        elif sqlstate(error) in _CONFLICTS and self._conflicts < _MAX_CONFLICTS:
            self._conflicts += 1
            logger.debug("consumer %r: %s; retrying", self.name, error)
        elif not taken:
            raise error
        elif len(taken) > 1:
            logger.warning("consumer %r: %s; doing the messages of the batch one by one", self.name, error)
            self._single_until = taken[-1]["position"]
        else:
            self._handle_failure(session, message or taken[0], error)

    def _handle_failure(self, session: Session, message: Message, error: Exception) -> None:
        # PostgreSQL's texts have neither U+0000 nor lone surrogates.
        text = f"{type(error).__name__}: {error}".replace("\0", "?").encode(errors="replace").decode()
        values = {"name": self.name, "position": message["position"], "error": text}
        [(failures,)] = session.query(_FAILED, values)
        if not failures:
            # The message is the first one: the transaction that was rolled back has also made the consumer. Without it,
            # the next attempt would begin elsewhere at a later time, and no failure would count.
            session.query(_MOVE, {"name": self.name, "target": self._start_before(message), "expected": ""})
            [(failures,)] = session.query(_FAILED, values)
        session.commit()
        place = f"message {message['position']} of {message['channel']!r}"
        if self._attempts is None or failures < self._attempts:
            delay = self._retry.next()
            what = f"{place} has failed, attempt {failures}: {text}; retrying in {delay:.1f} s"
            logger.warning("consumer %r: %s", self.name, what)
            self._sleep(delay)
        elif self._on_failure is None:
            logger.error("consumer %r: %s has failed %d times; stopping", self.name, place, failures)
            raise error
        else:
            self._skip(session, message, error)

    def _start_before(self, message: Message) -> str:
        """Return a start from which ``message`` is the next one, if it is the first one of this consumer."""
        if self._start.startswith("snapshot:"):
            return self._start
        return _cursor(Position(epoch=message["epoch"], position=message["position"] - 1))

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._waker.wait(left)

    def _skip(self, session: Session, message: Message, error: Exception) -> None:
        assert self._on_failure is not None
        with self._transaction(session):
            # Another process may have taken it meanwhile.
            taken = self._take(session, 1)
            if [found["position"] for found in taken] == [message["position"]]:
                self._on_failure(session.handle, message, error)
                session.check()
                self._retry.reset()
                logger.error("consumer %r skips message %d: %s", self.name, message["position"], error)
            else:
                session.handle.rollback()

    def _handle_gap(self, session: Session, error: Exception) -> None:
        gap = _gap(error)
        if self._on_gap is None:
            raise MissedMessagesError(_first_line(error), gap) from error
        with self._transaction(session):
            # Moves it first, which locks it: another process may have handled the gap meanwhile.
            target = _cursor(Position(epoch=gap["epoch"], position=gap["position"]))
            values = {"name": self.name, "target": target, "expected": _cursor(gap["since"])}
            if session.query(_MOVE, values) == [(True,)]:
                start = self._on_gap(session.handle, gap)
                session.check()
                if start is not None:
                    session.query(_MOVE, {"name": self.name, "target": _cursor(start), "expected": None})
                logger.warning("consumer %r: %s; continuing", self.name, _first_line(error))

    @contextlib.contextmanager
    def _transaction(self, session: Session) -> Iterator[None]:
        try:
            yield
            session.commit()
        except BaseException:
            session.rollback()
            raise


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of psycopg2, psycopg 3 or SQLAlchemy; None for others."""
    original = _original(error)
    state = getattr(original, "pgcode", None) or getattr(original, "sqlstate", None)
    return state if isinstance(state, str) else None


def _original(error: BaseException) -> Any:
    """Return the driver's error that SQLAlchemy has wrapped."""
    original = getattr(error, "orig", None)
    return error if original is None else original


def _gap(error: Exception) -> ConsumerGap:
    gap: ConsumerGap = json.loads(_original(error).diag.message_detail)
    return gap


def _first_line(error: Exception) -> str:
    return str(_original(error).diag.message_primary)


def _cursor(start: Start) -> str:
    """Return a start as text for SQL. Raises :class:`InvalidRequestError`."""
    if isinstance(start, dict):
        epoch, position = start.get("epoch"), start.get("position")
        if not isinstance(epoch, str) or not isinstance(position, int):
            raise InvalidRequestError('a position must be like {"epoch": "…", "position": 0}')
        return f"{epoch}:{position}"
    return start.isoformat() if isinstance(start, datetime) else start


def _iso(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
