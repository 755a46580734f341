"""Stores sessions in the database, for the other nodes: docs/recovery.md. One green thread owns the connection.

Changes are written together: at once after a pause, otherwise every :attr:`SessionTable.pause` seconds.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseUnavailableError, LogNotInstalledError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.postgres.database import FIXED_PATH, Database, transaction
from socketio_pg.postgres.trust import verify

logger = logging.getLogger("socketio_pg.recovery")
_limited_log = RateLimitedLog(logger, seconds=60.0)

_SEEN = """
INSERT INTO socketio_pg.session_owner AS o (id) VALUES (%s::uuid)
ON CONFLICT (id) DO UPDATE SET seen_at = now(), ended = false RETURNING o.xmax::text = '0'
"""
_END = "UPDATE socketio_pg.session_owner SET seen_at = now(), ended = true WHERE id = %s::uuid"
_PUT = """
INSERT INTO socketio_pg.session AS s (sid, owner, subscriptions)
SELECT found.sid, %s::uuid, found.subscriptions FROM unnest(%s::text[], %s::text[]) AS found(sid, subscriptions)
ON CONFLICT (sid) DO UPDATE SET subscriptions = excluded.subscriptions WHERE s.owner = excluded.owner
"""
_DELETE = "DELETE FROM socketio_pg.session WHERE sid = ANY(%s::text[]) AND owner = %s::uuid"
_DELETE_ANY = "DELETE FROM socketio_pg.session WHERE sid = ANY(%s::text[])"
_FIND = """
SELECT s.sid, o.id::text, NOT o.ended AND o.seen_at > now() - make_interval(secs => %s)
FROM socketio_pg.session AS s JOIN socketio_pg.session_owner AS o ON o.id = s.owner
WHERE s.sid = ANY(%s::text[]) AND o.seen_at > now() - make_interval(secs => %s)
"""
_TAKE = """
UPDATE socketio_pg.session AS s SET owner = %s::uuid FROM unnest(%s::text[], %s::text[]) AS found(sid, owner)
WHERE s.sid = found.sid AND s.owner = found.owner::uuid RETURNING s.sid, s.subscriptions
"""
#: Owners that are silent, and the sessions that nobody has.
_SWEEP = """
DELETE FROM socketio_pg.session_owner WHERE seen_at < now() - make_interval(secs => %s);
DELETE FROM socketio_pg.session AS s
WHERE NOT EXISTS (SELECT FROM socketio_pg.session_owner AS o WHERE o.id = s.owner)
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that has a session. ``lives``: it was seen lately, and has not ended."""

    id: str
    lives: bool


@dataclass(eq=False, slots=True)
class _Question:
    """One of :data:`_FIND` or, with a former owner, :data:`_TAKE`."""

    sid: str
    former: str | None = None
    done: green.Event = field(default_factory=green.Event)
    asked_at: float = field(default_factory=time.monotonic)


class SessionTable:
    """The table of sessions, as this process uses it. Sessions are kept for ``seconds`` after their owner was seen.

    ``on_lost()`` is called when the database has lost the sessions of this process: they must be put again.
    """

    #: Seconds between two writes, for a batch of sessions, and of a statement.
    pause = 0.1
    batch = 1000
    #: Texts that are made before other green threads run.
    texts_together = 20
    timeout = 10.0
    #: Seconds for which a question waits for a database that is not available.
    patience = 5.0
    #: Seconds for the last changes.
    stop_seconds = 3.0

    def __init__(self, database: Database, seconds: float, on_lost: Callable[[], None]) -> None:
        self._database = database
        self._seconds = seconds
        self._on_lost = on_lost
        #: This process.
        self.owner = str(uuid.uuid4())
        self._connection: Any = None
        self._lost = False
        self._worker = green.Worker()
        self._wanted = green.Event()
        #: Session → the function that returns its subscriptions as text; None to delete it.
        self._changes: dict[str, Callable[[], str] | None] = {}
        #: Those that are being written.
        self._writing: dict[str, Callable[[], str] | None] = {}
        #: Sessions to delete whoever has them.
        self._forgotten: set[str] = set()
        self._questions: list[_Question] = []
        #: The number of changes so far; and who waits until that many are written.
        self._number = 0
        self._waiters: list[tuple[int, green.Event]] = []
        self._flush = False
        self._wrote_at = self._seen_at = self._swept_at = float("-inf")
        #: When this process was not in the database: it is new, or the tables were emptied.
        self._emptied_at = float("-inf")
        #: Seconds between two signs of life.
        self._beat = max(0.5, min(10.0, seconds / 4))
        self._registered = self._stopped = False
        #: Whether this process has sessions, and must be seen.
        self.busy = False

    # -- for the other green threads -----------------------------------------------------------------------------------

    @property
    def is_incomplete(self) -> bool:
        """Whether sessions of other processes may be missing: PostgreSQL has crashed, and they store them again."""
        return time.monotonic() - self._emptied_at < 2 * self._beat

    def has_changes(self, sid: str) -> bool:
        """Return whether a session waits to be stored."""
        return sid in self._changes or sid in self._writing

    def put(self, sid: str, subscriptions: Callable[[], str] | None) -> None:
        """Store the subscriptions of a session of this process, or delete it (None). Does not wait.

        ``subscriptions()`` is called when they are written: once for all changes of a moment.
        """
        self._changes[sid] = subscriptions
        self._number += 1
        self._wake()

    def forget(self, sid: str) -> None:
        """Delete a session, whichever process has it. Does not wait."""
        self._changes.pop(sid, None)
        self._forgotten.add(sid)
        self._number += 1
        self._wake()

    def wait_written(self, seconds: float, *, now: bool = False) -> None:
        """Wait until the changes so far are committed; ``now``: without a pause.

        Raises :class:`DatabaseUnavailableError` after ``seconds``.
        """
        written = green.Event()
        self._waiters.append((self._number, written))
        self._flush = self._flush or now
        self._wake()
        try:
            written.wait(seconds)
        except green.TimedOut:
            raise DatabaseUnavailableError("the client's session cannot be stored at the moment") from None

    def find(self, sid: str) -> Owner | None:
        """Return the process that has a session; None if there is no such session. Waits.

        Raises :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        found: Owner | None = self._ask(_Question(sid))
        return found

    def take(self, sid: str, former: str) -> str | None:
        """Take a session over from another process. Return its subscriptions; None if that no longer has it.

        Waits, and raises as :meth:`find`.
        """
        subscriptions: str | None = self._ask(_Question(sid, former))
        return subscriptions

    def stop(self) -> None:
        """Write the last changes, say that this process ends, and close the connection. Waits for the database."""
        self._stopped = True
        self._worker.stop()
        self._hang_up()  # it may be in a transaction
        if self._registered:
            with contextlib.suppress(SocketIOPGError, green.TimedOut), green.timeout(self.stop_seconds):
                self._write()
                self._execute(_END, self.owner)
        self._fail(DatabaseUnavailableError("the server is shutting down"))
        self._hang_up()

    def _ask(self, question: _Question) -> Any:
        if self._stopped:
            raise DatabaseUnavailableError("the server is shutting down")
        self._questions.append(question)
        self._wake()
        result = question.done.wait()
        if isinstance(result, SocketIOPGError):
            raise result
        return result

    def _wake(self) -> None:
        if not self._stopped:
            self._worker.start(self._run)
            self._wanted.send()

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(0.1, 5.0)
        failures = 0
        while True:
            self._wait()
            try:
                verify(self._database, self._connected(), self.timeout)
                self._answer()
                if self._due() <= 0:
                    self._write()
                backoff.reset()
                failures = 0
            except SocketIOPGError as error:
                failures += 1
                if isinstance(error, LogNotInstalledError):
                    self._database.verified.clear()
                _limited_log(logging.WARNING, "the sessions of clients cannot be stored: %s; retrying", error)
                lost = self._hang_up()
                # An idle connection may have been lost long ago, and a database that restarts is back soon.
                patience = self.patience if isinstance(error, DatabaseUnavailableError) else 0.0
                self._fail(error, time.monotonic() - patience)
                if failures > 1 or not lost:
                    green.sleep(backoff.next())
            except Exception:  # a bug: the next sessions must still be stored
                logger.exception("storing sessions failed; retrying")
                self._hang_up()
                self._fail(DatabaseUnavailableError("the client's session cannot be read at the moment"))
                green.sleep(5.0)

    def _due(self) -> float:
        """Return the seconds until the next write."""
        now = time.monotonic()
        wait = float("inf")
        if self._changes or self._forgotten or self._waiters:
            wait = 0.0 if self._flush else self._wrote_at + self.pause - now
        if self.busy:
            wait = min(wait, self._seen_at + self._beat - now)
        return wait

    def _wait(self) -> None:
        while not self._questions and (due := self._due()) > 0:
            with contextlib.suppress(green.TimedOut):
                self._wanted.wait(None if due == float("inf") else due)
            self._wanted = green.Event()

    def _answer(self) -> None:
        while self._questions:
            questions = self._questions[: self.batch]
            finds = [one for one in questions if one.former is None]
            takes = [one for one in questions if one.former is not None]
            found: dict[str, object] = {}
            if finds:
                self._see()  # so that it is known whether the table is complete
                rows = self._execute(_FIND, 3 * self._beat, [one.sid for one in finds], self._seconds)
                found |= {row[0]: Owner(row[1], row[2]) for row in rows}
                self._send(finds, found)
            if takes:
                # The owner first: others remove the sessions of processes that they do not know.
                self._see()
                rows = self._execute(_TAKE, self.owner, [one.sid for one in takes], [one.former for one in takes])
                self._send(takes, dict(rows))
            del self._questions[: len(questions)]

    def _send(self, questions: Iterable[_Question], answers: dict[str, Any]) -> None:
        for question in questions:
            question.done.send(answers.get(question.sid))

    def _write(self) -> None:
        changes, forgotten, number = self._changes, self._forgotten, self._number
        self._changes, self._writing, self._forgotten = {}, changes, set()
        self._flush = False
        self._wrote_at = time.monotonic()
        try:
            self._see()
            self._store(changes, list(forgotten))
        except BaseException:
            # A newer change of the same session takes precedence.
            self._changes = changes | self._changes
            self._forgotten |= forgotten
            raise
        finally:
            self._writing = {}
        waiters, self._waiters = self._waiters, []
        for until, written in waiters:
            if until <= number:
                written.send()
            else:
                self._waiters.append((until, written))

    def _store(self, changes: dict[str, Callable[[], str] | None], forgotten: Sequence[str]) -> None:
        items = list(changes.items())
        for start in range(0, max(1, len(items)), self.batch):
            part = items[start : start + self.batch]
            gone = [sid for sid, subscriptions in part if subscriptions is None]
            put: list[tuple[str, str]] = []
            for sid, subscriptions in part:
                if subscriptions is not None:
                    put.append((sid, subscriptions()))
                    if len(put) % self.texts_together == 0:
                        green.sleep()
            with transaction(self._connected(), self.timeout) as cursor:
                cursor.execute(FIXED_PATH)
                if put:
                    cursor.execute(_PUT, (self.owner, [sid for sid, _ in put], [text for _, text in put]))
                if gone:
                    cursor.execute(_DELETE, (gone, self.owner))
                if forgotten and start == 0:
                    cursor.execute(_DELETE_ANY, (list(forgotten),))

    def _see(self) -> None:
        """Note in the database that this process lives, and remove what others have left behind."""
        if time.monotonic() - self._seen_at < 0.5:
            return
        new = self._execute(_SEEN, self.owner)[0][0]
        self._seen_at = time.monotonic()
        if self._seen_at - self._swept_at > max(5.0, self._seconds / 2):
            self._swept_at = self._seen_at
            self._execute(_SWEEP, self._seconds)
        if new:
            self._emptied_at = self._seen_at
            if self._registered:
                self._on_lost()
        self._registered = True

    def _execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with transaction(self._connected(), self.timeout) as cursor:
            cursor.execute(FIXED_PATH)
            cursor.execute(sql, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def _connected(self) -> Any:
        if self._connection is None:
            limit = str(int(self.timeout * 1000))
            self._connection = self._database.connect("sessions", settings={"statement_timeout": limit})
            if self._lost:
                metrics.reconnects.labels("sessions").inc()
                self._lost = False
        return self._connection

    def _hang_up(self) -> bool:
        """Close the connection. Return whether there was one."""
        connection, self._connection = self._connection, None
        if connection is None:
            return False
        self._lost = True
        self._seen_at = float("-inf")  # a database that has crashed does not know this process
        connection.close()
        return True

    def _fail(self, error: SocketIOPGError, until: float = float("inf")) -> None:
        """Answer the questions that were asked before a time with an error."""
        for question in [one for one in self._questions if one.asked_at <= until]:
            self._questions.remove(question)
            question.done.send(error)
