"""The publishing connection: one green thread takes every message that waits and commits them together."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from socketio_pg.core import green, metrics
from socketio_pg.core.errors import (
    DatabaseError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidRequestError,
    SocketIOPGError,
)
from socketio_pg.core.logs import Complaints
from socketio_pg.postgres.database import Database, encode_text, translated_errors

logger = logging.getLogger("socketio_pg.publisher")
_complain = Complaints(logger)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """JSON text for ``channel``, with NOTIFY or (``durable``) through the log."""

    channel: str
    payload_json: str
    durable: bool = False


@dataclass(slots=True)
class _Request:
    """What goes together, or not at all."""

    messages: Sequence[Outgoing]
    done: green.Event = field(default_factory=green.Event)

    @property
    def channel(self) -> str | None:
        """The only message's; which of several an error is about nobody can tell."""
        return self.messages[0].channel if len(self.messages) == 1 else None


class Publisher:
    """Sends NOTIFY and ``socketio_pg.publish()`` for many callers at once; each is answered after its commit.

    Why together: PostgreSQL lets only one transaction with NOTIFY commit at a time, each waiting for the disk; ten in
    one commit cost hardly more than one.
    """

    #: Seconds that a caller waits at most.
    timeout = 2.0
    #: Messages in one commit, and messages that may wait.
    batch_size = 1000
    batch_characters = 4_000_000
    queue_size = 20_000

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Request] = deque()
        self._worker = green.Worker()
        self._connection: Any = None
        #: The connection was, since when there has been no other.
        self._lost = False

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Send ``messages``, of which no two may be equal unless they are durable, in one transaction; returns after
        the commit.

        Raises :class:`LogNotInstalledError`, :class:`PayloadTooLargeError` or :class:`InvalidRequestError` when
        PostgreSQL does not take the message, and :class:`DatabaseUnavailableError` when that took over :attr:`timeout`
        seconds or failed. After a lost connection it is then not known whether subscribers get the message, and the
        error's message says so.
        """
        request = _Request(messages)
        if len(self._waiting) >= self.queue_size:
            raise DatabaseUnavailableError("too many messages wait to be published", channel=request.channel)
        began = time.monotonic()
        self._waiting.append(request)
        self._worker.start(self._run)
        error = request.done.wait()
        if error is not None:
            raise error
        tier = "log" if any(message.durable for message in messages) else "notify"
        metrics.publish_seconds.labels(tier).observe(time.monotonic() - began)

    @property
    def waiting(self) -> int:
        """Messages that wait for their commit to begin."""
        return len(self._waiting)

    def flush(self, seconds: float) -> None:
        """Wait until all that was handed in is committed or refused, ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        while self._worker.running and time.monotonic() < deadline:
            green.sleep(0.01)

    def stop(self) -> None:
        """Refuse what still waits, and close the connection."""
        self._worker.stop()
        self._fail(self._waiting, DatabaseUnavailableError("the server is shutting down"))
        self._hang_up()

    def _run(self) -> None:
        batch: list[_Request] = []
        try:
            while self._waiting:
                batch = self._next_batch()
                try:
                    self._commit(batch)
                except DatabaseUnavailableError as error:
                    _complain(logging.WARNING, "publishing failed: %s", error)
                    metrics.failed_commits.inc()
                    self._fail(batch, error)
                    # They would wait for the same; nobody is to wait longer than the timeout.
                    self._fail(self._waiting, error)
                except SocketIOPGError:
                    self._commit_one_by_one(batch)
                else:
                    for request in batch:
                        request.done.send()
        except BaseException:
            # Killed by stop(), or a bug: nobody is left waiting. Those who have their answer keep it.
            failed = DatabaseUnavailableError("the message may have been sent or not: publishing was cut off")
            self._fail(batch, failed)
            self._fail(self._waiting, failed)
            raise

    def _next_batch(self) -> list[_Request]:
        """What waits, in order, up to the first repetition: PostgreSQL folds equal NOTIFYs of one transaction."""
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
        """One transaction. When it raises, nothing was sent, unless the error's message says that this is not known."""
        for _ in range(2):
            reused = self._connection is not None
            try:
                self._send(batch)
                break
            except DatabaseUnavailableError as error:
                self._lost = self._lost or reused
                self._hang_up()
                # A connection that had been idle may have died long ago, with nothing sent: once more on a new one.
                if not reused or isinstance(error, DatabaseTimeoutError):
                    raise
            except SocketIOPGError:
                self._hang_up()
                raise
        try:
            self._execute("COMMIT")
        except DatabaseUnavailableError as error:
            self._lost = True
            self._hang_up()
            raise DatabaseUnavailableError(
                "the database connection was lost during the commit: the message may have been sent or not"
            ) from error
        metrics.commit_messages.observe(sum(len(request.messages) for request in batch))

    def _send(self, batch: Sequence[_Request]) -> None:
        with translated_errors(self.timeout):
            if self._connection is None:
                self._connection = self._database.connect()
                if self._lost:
                    metrics.reconnects.labels("publisher").inc()
                    self._lost = False
        # In one round trip, and not with the COMMIT: see above. Rows of unnest() come in the order of its arrays.
        sql, parameters = ["BEGIN"], []
        for function, payload_type, durable in (("pg_notify", "text", False), ("socketio_pg.publish", "jsonb", True)):
            share = [message for request in batch for message in request.messages if message.durable is durable]
            if share:
                sql.append(
                    f"SELECT {function}(channel, payload::{payload_type})"
                    " FROM unnest(%s::text[], %s::text[]) AS message(channel, payload)"
                )
                parameters.append([encode_text(self._connection, message.channel) for message in share])
                parameters.append([encode_text(self._connection, message.payload_json) for message in share])
        self._execute(";".join(sql), *parameters)

    def _execute(self, sql: str, *parameters: object) -> None:
        with translated_errors(self.timeout), self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit_one_by_one(self, batch: Sequence[_Request]) -> None:
        """One of them is not acceptable to PostgreSQL: find out which, and send the others."""
        for index, request in enumerate(batch):
            error: SocketIOPGError | None = None
            try:
                self._commit([request])
            except DatabaseUnavailableError as lost:
                self._fail(deque(batch[index:]), lost)
                return
            except DatabaseError as refused:
                error = refused
                durable = any(message.durable for message in request.messages)
                if durable and refused.sqlstate in ("22P02", "22P05", "22003"):
                    error = InvalidRequestError(f"payload cannot be kept as jsonb: {refused}", channel=request.channel)
            except SocketIOPGError as refused:
                error = refused
            request.done.send(error)

    @staticmethod
    def _fail(requests: deque[_Request] | list[_Request], error: DatabaseUnavailableError) -> None:
        while requests:
            requests.pop().done.send(error)
