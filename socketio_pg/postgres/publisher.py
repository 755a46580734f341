"""The publishing connection: one green thread takes all waiting messages and commits them together."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from socketio_pg.core import green, metrics
from socketio_pg.core.errors import (
    DatabaseError,
    DatabaseRefusedError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidRequestError,
    LogNotInstalledError,
    SocketIOPGError,
)
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.problems import Problem
from socketio_pg.postgres.database import READ_ONLY, Database, encode_text, is_usable, translated_errors
from socketio_pg.postgres.trust import verify

logger = logging.getLogger("socketio_pg.publisher")
_limited_log = RateLimitedLog(logger)

#: SQLSTATEs of payloads that PostgreSQL cannot store as jsonb (manual, appendix A).
_UNSTORABLE = {
    "22P02": "PostgreSQL does not accept it",
    "22P05": "it has a character that PostgreSQL cannot store",
    "22003": "a number is out of range",
}
_NOT_ACCEPTED = "the database does not accept messages at the moment"
#: The channel of a publication that is rolled back. No subscriber gets anything.
_TRIAL_CHANNEL = "trial"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """JSON text for ``channel``, sent with NOTIFY or, if ``durable``, through the log."""

    channel: str
    payload_json: str
    durable: bool = False


@dataclass(slots=True)
class _Request:
    """Messages that are committed together or not at all."""

    messages: Sequence[Outgoing]
    done: green.Event = field(default_factory=green.Event)

    @property
    def channel(self) -> str | None:
        """The channel of the only message; None for several, as it is unknown which of them an error is about."""
        return self.messages[0].channel if len(self.messages) == 1 else None


class MessagePublisher(Protocol):
    """Publishes for a node: :class:`Publisher`, or a replacement that another process of the node publishes for."""

    @property
    def problem(self) -> Problem | None:
        """As :attr:`Publisher.problem`."""

    @property
    def waiting(self) -> int:
        """As :attr:`Publisher.waiting`."""

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """As :meth:`Publisher.publish`."""

    def flush(self, seconds: float) -> None:
        """As :meth:`Publisher.flush`."""

    def stop(self) -> None:
        """As :meth:`Publisher.stop`."""


class Publisher:
    """Sends NOTIFY and ``socketio_pg.publish()`` for many callers together; each call returns after its commit.

    PostgreSQL commits transactions with NOTIFY one at a time, and each waits for the disk. Ten messages in one commit
    cost hardly more than one.
    """

    #: The maximum seconds that a caller waits.
    timeout = 2.0
    #: Seconds between two trials after a durable publication has failed.
    trial_interval = 2.0
    #: Messages and characters in one commit; requests in the queue.
    batch_size = 1000
    batch_characters = 4_000_000
    queue_size = 20_000

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Request] = deque()
        self._worker = green.Worker()
        self._connection: Any = None
        #: The last connection was lost and has not been replaced yet.
        self._lost = False
        self._problem: Problem | None = None
        self._trials = green.Worker()

    @property
    def problem(self) -> Problem | None:
        """Why durable publications fail, for the operator; None while they work, and before the first one."""
        return self._problem

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Send ``messages`` in one transaction; return after the commit. No two may be equal, unless they are durable.

        Raises :class:`LogNotInstalledError`, :class:`PayloadTooLargeError` or :class:`InvalidRequestError` when
        PostgreSQL rejects a message, and :class:`DatabaseUnavailableError` when the database fails or does not answer
        within :attr:`timeout` seconds. If the connection was lost during the commit, it is unknown whether subscribers
        get the message, and the error's message says so.
        """
        [error] = self.publish_all([messages])
        if error is not None:
            raise error

    def publish_all(self, requests: Iterable[Sequence[Outgoing]]) -> list[SocketIOPGError | None]:
        """Publish each of ``requests`` as :meth:`publish` does, in this order. Return the error of each, or None."""
        began, asked = time.monotonic(), [_Request(messages) for messages in requests]
        # All of them before the first one is waited for: no other request comes in between.
        for request in asked:
            if len(self._waiting) < self.queue_size:
                self._waiting.append(request)
            else:
                text = "too many messages are waiting to be published"
                request.done.send(DatabaseUnavailableError(text, channel=request.channel))
        if self._waiting:
            self._worker.start(self._run)
        errors: list[SocketIOPGError | None] = []
        for request in asked:
            errors.append(request.done.wait())
            if errors[-1] is None:
                tier = "log" if any(message.durable for message in request.messages) else "notify"
                metrics.publish_seconds.labels(tier).observe(time.monotonic() - began)
        return errors

    @property
    def waiting(self) -> int:
        """The number of requests whose commit has not begun."""
        return len(self._waiting)

    def flush(self, seconds: float) -> None:
        """Wait until all messages are committed or refused, at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._worker.running and time.monotonic() < deadline:
            green.sleep(0.01)

    def stop(self) -> None:
        """Fail all waiting messages and close the connection."""
        self._worker.stop()
        self._trials.stop()
        self._fail(self._waiting, DatabaseUnavailableError("the server is shutting down"))
        self._disconnect()

    def _run(self) -> None:
        batch: list[_Request] = []
        try:
            while self._waiting:
                batch = self._next_batch()
                try:
                    self._commit(batch)
                except DatabaseUnavailableError as error:
                    _limited_log(logging.WARNING, "publishing failed: %s", error)
                    metrics.failed_commits.inc()
                    self._note_failure(batch, error)
                    self._fail(batch, error)
                    # The waiting messages fail, too: another attempt could exceed their callers' timeout.
                    self._fail(self._waiting, error)
                except SocketIOPGError:
                    self._commit_one_by_one(batch)
                else:
                    if self._problem is not None and _durable(batch):
                        self._problem = None
                    for request in batch:
                        request.done.send()
        except BaseException:
            # Killed by stop(), or a bug: every caller gets an answer. Answers that were sent before remain valid.
            failed = DatabaseUnavailableError("the message may have been sent or not: publishing was interrupted")
            self._fail(batch, failed)
            self._fail(self._waiting, failed)
            raise

    def _next_batch(self) -> list[_Request]:
        """Take requests in order, up to the first duplicate, as PostgreSQL drops equal NOTIFYs in a transaction."""
        batch: list[_Request] = []
        seen: set[Outgoing] = set()
        count = size = 0
        while self._waiting and count < self.batch_size and size < self.batch_characters:
            request = self._waiting[0]
            notified = [message for message in request.messages if not message.durable]
            if not seen.isdisjoint(notified):
                break
            seen.update(notified)
            batch.append(self._waiting.popleft())
            count += len(request.messages)
            size += sum(len(message.payload_json) for message in request.messages)
        return batch

    def _commit(self, batch: Sequence[_Request]) -> None:
        """Commit one transaction. If it raises, nothing was sent, unless the error says that this is unknown."""
        for _ in range(2):
            reused = self._connection is not None
            try:
                self._send(batch)
                break
            except DatabaseUnavailableError as error:
                self._lost = self._lost or reused
                self._disconnect()
                # An idle connection may have died unnoticed, and nothing was sent: retry once on a new one.
                if not reused or isinstance(error, DatabaseTimeoutError):
                    raise
            except SocketIOPGError as error:
                if isinstance(error, LogNotInstalledError):
                    self._database.verified.clear()
                self._disconnect()
                raise
        try:
            self._execute("COMMIT")
        except DatabaseUnavailableError as error:
            if error.sqlstate is not None and is_usable(self._connection):
                # PostgreSQL has rolled back: its NOTIFY queue is full, for instance.
                raise DatabaseUnavailableError(_NOT_ACCEPTED, detail=str(error)) from error
            self._lost = True
            self._disconnect()
            raise DatabaseUnavailableError(
                "the database connection was lost during the commit: the message may have been sent or not"
            ) from error
        metrics.commit_messages.observe(sum(len(request.messages) for request in batch))

    def _send(self, batch: Sequence[_Request]) -> None:
        with translated_errors(self.timeout):
            if self._connection is None:
                # Also limited in PostgreSQL: otherwise a session would go on waiting for a lock after its caller has
                # given up, and each further message would add one.
                limit = str(int(self.timeout * 1000))
                self._connection = self._database.connect("publish", settings={"statement_timeout": limit})
                if self._lost:
                    metrics.reconnects.labels("publisher").inc()
                    self._lost = False
        if any(message.durable for request in batch for message in request.messages):
            verify(self._database, self._connection, self.timeout)
        # In one round trip, but without the COMMIT, so that a failure before it is known to have sent nothing. unnest()
        # returns rows in the order of its arrays; with several, it is always the one of pg_catalog.
        sql, parameters = ["BEGIN"], []
        for function, payload_type, durable in (
            ("pg_catalog.pg_notify", "text", False),
            ("socketio_pg.publish", "jsonb", True),
        ):
            messages = [message for request in batch for message in request.messages if message.durable is durable]
            if messages:
                sql.append(
                    f"SELECT {function}(channel, payload::pg_catalog.{payload_type})"
                    " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) AS message(channel, payload)"
                )
                parameters.append([encode_text(self._connection, message.channel) for message in messages])
                parameters.append([encode_text(self._connection, message.payload_json) for message in messages])
        self._execute(";".join(sql), *parameters)

    def _execute(self, sql: str, *parameters: object) -> None:
        with translated_errors(self.timeout), self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit_one_by_one(self, batch: Sequence[_Request]) -> None:
        """Commit each request separately after PostgreSQL has rejected one of them, so that the others are sent."""
        for index, request in enumerate(batch):
            error: SocketIOPGError | None = None
            try:
                self._commit([request])
            except DatabaseUnavailableError as lost:
                self._note_failure([request], lost)
                self._fail(deque(batch[index:]), lost)
                return
            except DatabaseError as refused:
                state = refused.sqlstate or ""
                if state in _UNSTORABLE and _durable([request]):
                    problem = f"payload cannot be stored as jsonb: {_UNSTORABLE[state]}"
                    error = InvalidRequestError(problem, channel=request.channel)
                elif state.startswith("22"):  # data exception, for instance a character that the encoding lacks
                    problem = "the database does not accept this payload or channel"
                    error = InvalidRequestError(problem, channel=request.channel, detail=f"{problem}: {refused}")
                else:
                    # Not the client's fault: the database is read-only, a privilege is missing, or the like.
                    _limited_log(logging.WARNING, "publishing failed: %s", refused)
                    metrics.failed_commits.inc()
                    error = _as_failure(refused, request.channel)
                    self._note_failure([request], error)
            except SocketIOPGError as refused:
                error = refused
            request.done.send(error)

    # -- durable publications that fail --------------------------------------------------------------------------------

    def _note_failure(self, batch: Sequence[_Request], error: SocketIOPGError) -> None:
        if _durable(batch):
            self._problem = Problem.of(error, "publishing through the log fails: ")
            self._trials.start(self._try_until_it_works)

    def _try_until_it_works(self) -> None:
        """Publish and roll back until that works: a node that is not ready may get no messages to publish."""
        connection = None
        while self._problem is not None:
            green.sleep(self.trial_interval)
            try:
                if connection is None:
                    limit = str(int(self.timeout * 1000))
                    connection = self._database.connect("publish", settings={"statement_timeout": limit})
                verify(self._database, connection, self.timeout)
                with translated_errors(self.timeout + 1.0), connection.cursor() as cursor:
                    cursor.execute("BEGIN; SELECT socketio_pg.publish(%s, 'null'); ROLLBACK", [_TRIAL_CHANNEL])
                self._problem = None
            except LogNotInstalledError:
                self._database.verified.clear()
                self._problem = None  # callers get this error
            except SocketIOPGError as error:
                self._problem = Problem.of(error, "publishing through the log fails: ")
                if connection is not None:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()

    @staticmethod
    def _fail(requests: deque[_Request] | list[_Request], error: DatabaseUnavailableError) -> None:
        while requests:
            requests.pop().done.send(error)


def _as_failure(refused: DatabaseError, channel: str | None) -> DatabaseError:
    detail = f"publishing failed: {refused}"
    if isinstance(refused, DatabaseRefusedError):
        problem = READ_ONLY if refused.message == READ_ONLY else _NOT_ACCEPTED
        return DatabaseUnavailableError(problem, channel=channel, detail=detail)
    return DatabaseError("publishing failed", channel=channel, detail=detail)  # a bug


def _durable(requests: Sequence[_Request]) -> bool:
    return any(message.durable for request in requests for message in request.messages)
