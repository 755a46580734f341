"""The publishing connection: one green thread takes all waiting messages and commits them together."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

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
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.companions import seal_meta
from socketio_pg.postgres.database import READ_ONLY, Database, encoder, is_usable, translated_errors
from socketio_pg.postgres.outgoing import NOTIFIED, Outgoing, Receipt, statements
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
#: Whether the role may know which ids its messages have in the outbox.
_MAY_NUMBER = "SELECT pg_catalog.has_sequence_privilege('socketio_pg.outbox_id_seq', 'USAGE, SELECT')"

#: The result of a request to publish: a receipt of each message, or the error because of which none was sent.
Result: TypeAlias = Sequence[Receipt] | SocketIOPGError


class _UnknownOutcomeError(DatabaseUnavailableError):
    """The connection was lost during the COMMIT: the messages may have been sent or not."""


class _IdInUseError(SocketIOPGError):
    """Another transaction, which has not ended, has published one of the ids."""


class _Request:
    """Messages that are committed together or not at all."""

    __slots__ = ("asked", "done", "group", "has_ids", "messages", "numbered", "numbers", "repeatable", "unknown")

    def __init__(self, messages: Sequence[Outgoing], numbered: bool) -> None:
        self.messages = messages
        self.numbered = numbered
        self.asked = time.monotonic()
        self.done = green.Event()
        ids = [message.id is not None for message in messages]
        self.has_ids = True in ids
        #: Whether each message has an id, so that none is published twice when the request is repeated.
        self.repeatable = False not in ids
        #: To be committed together with requests of the same group only.
        self.group: object = None
        #: The numbers that its messages had in attempts so far, and the first one whose outcome is unknown.
        self.numbers: set[int] | None = None
        self.unknown: SocketIOPGError | None = None

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

    def publish(self, messages: Sequence[Outgoing], *, numbered: bool = True) -> Sequence[Receipt]:
        """As :meth:`Publisher.publish`."""

    def flush(self, seconds: float) -> None:
        """As :meth:`Publisher.flush`."""

    def stop(self) -> None:
        """As :meth:`Publisher.stop`."""


class Publisher:
    """Sends NOTIFY and ``socketio_pg.publish()`` for many callers together; each call returns after its commit.

    PostgreSQL commits transactions with NOTIFY one at a time, and each waits for the disk. Ten messages in one commit
    cost hardly more than one. ``sealing`` seals the metadata of notifications.
    """

    #: The maximum seconds that a caller waits.
    timeout = 2.0
    #: Seconds between two trials after a durable publication has failed.
    trial_interval = 2.0
    #: Messages and characters in one commit; requests in the queue.
    batch_size = 1000
    batch_characters = 4_000_000
    queue_size = 20_000
    #: Seconds until a request is tried again whose ids are in use, or whose outcome is unknown; and for how long it is,
    #: in the second case. In the first one it is tried for :attr:`timeout` seconds.
    again_after = 0.05
    again_for = 5.0

    def __init__(self, database: Database, sealing: Sealing | None = None) -> None:
        self._database = database
        self._companion = partial(seal_meta, sealing or Sealing(Seal()))
        self._waiting: deque[_Request] = deque()
        self._worker = green.Worker()
        self._connection: Any = None
        #: Whether the connection's role may read the ids of its messages; None before that is known.
        self._may_number: bool | None = None
        #: Requests that will be tried again.
        self._postponed: set[_Request] = set()
        #: The last connection was lost and has not been replaced yet.
        self._lost = False
        self._problem: Problem | None = None
        self._trials = green.Worker()

    @property
    def problem(self) -> Problem | None:
        """Why durable publications fail, for the operator; None while they work, and before the first one."""
        return self._problem

    def publish(self, messages: Sequence[Outgoing], *, numbered: bool = True) -> Sequence[Receipt]:
        """Send ``messages`` in one transaction; return after the commit. No two may be equal, unless they are durable.

        Without ``numbered`` the receipts may lack the numbers, which costs a little less.
        Messages whose ids were published before are left out. If another transaction that has published one of the ids
        is still open, this one waits for it, alone. If all messages have ids, a lost commit is repeated.

        Raises :class:`LogNotInstalledError`, :class:`PayloadTooLargeError` or :class:`InvalidRequestError` when
        PostgreSQL rejects a message, and :class:`DatabaseUnavailableError` when the database fails or does not answer
        within :attr:`timeout` seconds. If the connection was lost during the commit, it is unknown whether subscribers
        get the message, and the error's message says so.
        """
        [result] = self.publish_all([(messages, numbered)])
        if isinstance(result, SocketIOPGError):
            raise result
        return result

    def publish_all(self, requests: Iterable[tuple[Sequence[Outgoing], bool]]) -> list[Result]:
        """Publish each of ``requests``, (messages, numbered), as :meth:`publish` does, in this order.

        Return the result of each.
        """
        began, asked = time.monotonic(), [_Request(messages, numbered) for messages, numbered in requests]
        # All of them before the first one is waited for: no other request comes in between.
        for request in asked:
            if len(self._waiting) < self.queue_size:
                self._waiting.append(request)
            else:
                text = "too many messages are waiting to be published"
                request.done.send(DatabaseUnavailableError(text, channel=request.channel))
        if self._waiting:
            self._worker.start(self._run)
        results: list[Result] = []
        for request in asked:
            result: Result = request.done.wait()
            results.append(result)
            if not isinstance(result, SocketIOPGError):
                tier = "log" if any(message.durable for message in request.messages) else "notify"
                metrics.publish_seconds.labels(tier).observe(time.monotonic() - began)
        return results

    @property
    def waiting(self) -> int:
        """The number of requests whose commit has not begun."""
        return len(self._waiting)

    def flush(self, seconds: float) -> None:
        """Wait until all messages are committed or refused, at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while (self._worker.running or self._postponed) and time.monotonic() < deadline:
            green.sleep(0.01)

    def stop(self) -> None:
        """Fail all waiting messages and close the connection."""
        self._worker.stop()
        self._trials.stop()
        ending = DatabaseUnavailableError("the server is shutting down")
        self._fail(self._waiting, ending)
        postponed, self._postponed = self._postponed, set()
        self._fail(list(postponed), ending)
        self._disconnect()

    def _run(self) -> None:
        batch: list[_Request] = []
        try:
            while self._waiting:
                batch = self._next_batch()
                try:
                    receipts = self._commit(batch)
                except _IdInUseError as error:
                    self._separate(batch, error)
                except DatabaseUnavailableError as error:
                    _limited_log(logging.WARNING, "publishing failed: %s", error)
                    metrics.failed_commits.inc()
                    self._note_failure(batch, error)
                    self._fail_or_repeat(batch, error)
                    # The waiting messages fail, too: another attempt could exceed their callers' timeout.
                    self._fail_or_repeat(self._waiting, error)
                except SocketIOPGError:
                    self._commit_one_by_one(batch)
                else:
                    if self._problem is not None and _durable(batch):
                        self._problem = None
                    _send_receipts(batch, receipts)
        except BaseException:
            # Killed by stop(), or a bug: every caller gets an answer. Answers that were sent before remain valid.
            failed = DatabaseUnavailableError("the message may have been sent or not: publishing was interrupted")
            self._fail(batch, failed)
            self._fail(self._waiting, failed)
            raise

    def _next_batch(self) -> list[_Request]:
        """Take requests in order, up to the first duplicate, as PostgreSQL drops equal NOTIFYs in a transaction."""
        batch: list[_Request] = []
        seen: set[tuple[str, str]] = set()
        count = size = 0
        while self._waiting and count < self.batch_size and size < self.batch_characters:
            request = self._waiting[0]
            if batch and request.group is not batch[0].group:
                break
            notified = [(one.channel, one.payload_json) for one in request.messages if not one.durable]
            if notified:
                if not seen.isdisjoint(notified):
                    break
                seen.update(notified)
            batch.append(self._waiting.popleft())
            count += len(request.messages)
            size += sum(len(message.payload_json) for message in request.messages)
        return batch

    def _commit(self, batch: Sequence[_Request]) -> Sequence[Receipt]:
        """Commit one transaction, and return the receipts of its messages.

        If it raises, nothing was sent, unless the error says that this is unknown.
        """
        for _ in range(2):
            reused = self._connection is not None
            try:
                receipts = self._send(batch)
                break
            except _IdInUseError:
                raise
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
            # The lock timeout is for ids only: the commit of a NOTIFY waits for a lock, too.
            reset = "SET LOCAL lock_timeout TO DEFAULT; " if any(request.has_ids for request in batch) else ""
            self._execute(f"{reset}COMMIT")
        except DatabaseUnavailableError as error:
            if error.sqlstate is not None and is_usable(self._connection):
                # PostgreSQL has rolled back: its NOTIFY queue is full, for instance.
                raise DatabaseUnavailableError(_NOT_ACCEPTED, detail=str(error)) from error
            self._lost = True
            self._disconnect()
            raise _UnknownOutcomeError(
                "the database connection was lost during the commit: the message may have been sent or not"
            ) from error
        metrics.commit_messages.observe(len(receipts))
        return receipts

    def _send(self, batch: Sequence[_Request]) -> Sequence[Receipt]:
        with translated_errors(self.timeout):
            if self._connection is None:
                # Also limited in PostgreSQL: otherwise a session would go on waiting for a lock after its caller has
                # given up, and each further message would add one.
                limit = str(int(self.timeout * 1000))
                self._connection = self._database.connect("publish", settings={"statement_timeout": limit})
                self._may_number = None
                if self._lost:
                    metrics.reconnects.labels("publisher").inc()
                    self._lost = False
        messages = [message for request in batch for message in request.messages]
        if any(message.durable or message.id is not None for message in messages):
            verify(self._database, self._connection, self.timeout)
            if self._may_number is None:
                self._may_number = self._execute(_MAY_NUMBER)[0][0]
        numbered = bool(self._may_number) and any(request.numbered for request in batch)
        found = statements(messages, encoder(self._connection), self._companion, numbers=numbered)
        try:
            rows = self._execute(found.sql, *found.parameters, fetch=numbered or found.has_ids)
        except DatabaseUnavailableError as error:
            if error.sqlstate != "55P03" or not found.has_ids:
                raise
            self._execute("ROLLBACK")
            raise _IdInUseError("a transaction that publishes the same id has not ended") from error
        if found.plain or not (numbered or found.has_ids):
            return [NOTIFIED] * len(messages)
        if not found.has_ids and len(rows) == len(messages):
            return [Receipt(row[-1]) for row in rows]
        numbers = iter(rows)
        return [
            receipt
            for request in batch
            for receipt in _receipts(
                request, [next(numbers)[-1] if one.durable or one.id is not None else None for one in request.messages]
            )
        ]

    def _execute(self, sql: str, *parameters: object, fetch: bool = True) -> list[tuple[Any, ...]]:
        with translated_errors(self.timeout), self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if fetch and cursor.description else []

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit_one_by_one(self, batch: Sequence[_Request]) -> None:
        """Commit each request separately after PostgreSQL has rejected one of them, so that the others are sent."""
        for index, request in enumerate(batch):
            try:
                _send_receipts([request], self._commit([request]))
                continue
            except _IdInUseError as busy:
                self._postpone(request, busy)
                continue
            except DatabaseUnavailableError as lost:
                self._note_failure([request], lost)
                self._fail_or_repeat(deque(batch[index:]), lost)
                return
            except DatabaseError as refused:
                state = refused.sqlstate or ""
                error: SocketIOPGError
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

    # -- requests with ids that are tried again ------------------------------------------------------------------------

    def _separate(self, batch: Sequence[_Request], error: _IdInUseError) -> None:
        """Try again in parts, until the request is alone that must wait for another transaction: the others need not.

        In halves of those with ids: a commit for each would take long.
        """
        if len(batch) == 1:
            self._postpone(batch[0], error)
            return
        others = [request for request in batch if not request.has_ids]
        having = [request for request in batch if request.has_ids]
        middle = len(having) // 2
        for half in (having[:middle], having[middle:]):
            group = object()
            for request in half:
                request.group = group
        self._waiting.extendleft(reversed(others + having))

    def _fail_or_repeat(self, requests: deque[_Request] | list[_Request], error: DatabaseUnavailableError) -> None:
        """Fail ``requests``, apart from those whose outcome is unknown and that can be repeated."""
        while requests:
            request = requests.pop()
            if request.repeatable and (request.unknown is not None or isinstance(error, _UnknownOutcomeError)):
                request.unknown = request.unknown or error
                self._postpone(request, error)
            else:
                request.done.send(error)

    def _postpone(self, request: _Request, error: SocketIOPGError) -> None:
        """Try a request again after a while, or fail it if that has been going on for too long."""
        seconds = self.timeout if request.unknown is None else self.again_for
        if time.monotonic() - request.asked < seconds:
            request.group = object()
            self._postponed.add(request)
            green.run_soon(self._try_again, request)
        elif request.unknown is not None:
            request.done.send(request.unknown)
        else:
            text = f"nothing was published: {error.message}"
            request.done.send(DatabaseUnavailableError(text, channel=request.channel))

    def _try_again(self, request: _Request) -> None:
        green.sleep(self.again_after)
        if request in self._postponed:
            self._postponed.discard(request)
            self._waiting.append(request)
            self._worker.start(self._run)

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
            request = requests.pop()
            request.done.send(request.unknown or error)


def _receipts(request: _Request, numbers: Sequence[int | None]) -> list[Receipt]:
    """Return the receipts of a request's messages. A duplicate of its own earlier attempt is none."""
    own = request.numbers or set()
    receipts = [
        NOTIFIED if number is None else Receipt(abs(number), number < 0 and -number not in own) for number in numbers
    ]
    if request.repeatable:
        request.numbers = own | {number for number in numbers if number is not None and number > 0}
    return receipts


def _send_receipts(requests: Sequence[_Request], receipts: Sequence[Receipt]) -> None:
    """Give each of ``requests`` the receipts of its messages."""
    start = 0
    for request in requests:
        end = start + len(request.messages)
        found = receipts[start:end]
        start = end
        if request.has_ids:
            metrics.duplicates.inc(sum(receipt.duplicate for receipt in found))
        request.done.send(found)


def _as_failure(refused: DatabaseError, channel: str | None) -> DatabaseError:
    detail = f"publishing failed: {refused}"
    if isinstance(refused, DatabaseRefusedError):
        problem = READ_ONLY if refused.message == READ_ONLY else _NOT_ACCEPTED
        return DatabaseUnavailableError(problem, channel=channel, detail=detail)
    return DatabaseError("publishing failed", channel=channel, detail=detail)  # a bug


def _durable(requests: Sequence[_Request]) -> bool:
    return any(message.durable for request in requests for message in request.messages)
