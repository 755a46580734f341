"""Asks row-level-security policies what clients may do: many questions in one transaction, which is rolled back.

What a question is about, and for how long an answer counts, is decided in `permissions`.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from socketio_pg import green
from socketio_pg.channels import RESERVED_PREFIX
from socketio_pg.database import Database, encode_text, translated_errors
from socketio_pg.errors import DatabaseError, DatabaseTimeoutError, DatabaseUnavailableError, SocketIOPGError

logger = logging.getLogger("socketio_pg.policies")

Action: TypeAlias = Literal["subscribe", "publish"]

_DECIDE = "SELECT socketio_pg.decide(%s::text[], %s::text[], %s::text[], %s::text[])"


@dataclass(frozen=True, slots=True)
class Question:
    """May whoever has ``claims`` (JSON text), as ``role`` of PostgreSQL, do this in ``channel``?"""

    action: Action
    role: str
    claims: str
    channel: str


@dataclass(eq=False, slots=True)
class _Asked:
    question: Question
    done: green.Event = field(default_factory=green.Event)
    #: Nobody waits for the answer any more.
    abandoned: bool = False


class _Lane:
    """Questions that wait, and how many are asked together by how many green threads at once."""

    def __init__(self, workers: int, batch_size: int) -> None:
        self.workers = workers
        self.batch_size = batch_size
        self.waiting: deque[_Asked] = deque()
        self.busy = 0

    def next_batch(self) -> list[_Asked]:
        batch: list[_Asked] = []
        while self.waiting and len(batch) < self.batch_size:
            asked = self.waiting.popleft()
            if not asked.abandoned:
                batch.append(asked)
        return batch


class Policies:
    """The policies on ``socketio_pg.messages`` in ``database``. ``timeout``: seconds for one decision.

    One policy that takes long must not make everybody wait: what was in its batch is asked again one by one, by one
    green thread of its own, and its channel goes that way from the start for a while.
    """

    #: Times the timeout that somebody waits for an answer: for those before him, and once alone after a batch.
    patience = 2.5
    #: Questions that may wait.
    queue_size = 20_000
    #: Seconds for which the questions of a slow channel are asked one by one, and so many channels.
    slow_seconds = 60.0
    most_slow = 10_000

    def __init__(self, database: Database, timeout: float) -> None:
        self._database = database
        self._timeout = timeout
        self._lane = _Lane(workers=2, batch_size=50)
        self._slow_lane = _Lane(workers=1, batch_size=1)
        self._slow: dict[str, float] = {}
        self._idle: list[Any] = []
        self._threads: set[green.GreenThread] = set()
        self._complained = float("-inf")
        self._silent = 0

    @property
    def connections(self) -> int:
        """The most connections that it uses."""
        return self._lane.workers + self._slow_lane.workers

    def ask(self, question: Question) -> bool:
        """Whether the policies allow it. Waits.

        Raises :class:`DatabaseUnavailableError` when there is no answer in time, :class:`LogNotInstalledError` without
        our schema, and :class:`DatabaseError`, for instance when the server's role lacks rights. A policy that fails
        is a no, and goes to the log.
        """
        asked = self._put(question)
        try:
            answer = asked.done.wait(self._timeout * self.patience)
        except green.TimedOut:
            asked.abandoned = True
            raise DatabaseTimeoutError("permissions cannot be checked in time", channel=question.channel) from None
        if isinstance(answer, SocketIOPGError):
            raise answer
        return bool(answer)

    def check(self, roles: Collection[str]) -> None:
        """Return when policies can be asked at all, and log what is wrong with ``roles``. Raises as :meth:`ask`."""
        # Nobody's channel.
        questions = [Question("subscribe", role, json.dumps({"role": role}), RESERVED_PREFIX) for role in sorted(roles)]
        for question, answer in zip(questions, self._decide(questions), strict=True):
            if answer.startswith(("failed: 42501", "failed: 22023")):
                logger.warning(
                    "clients of role %r will be refused: %s; grant it to the server's role, and run "
                    "'socketio-pg init --client-role %s'",
                    question.role,
                    answer.removeprefix("failed: ").partition("\n")[0],
                    question.role,
                )

    def stop(self) -> None:
        """Refuse what waits, and close the connections."""
        for thread in list(self._threads):
            thread.kill()
        for lane in (self._lane, self._slow_lane):
            self._answer_all(lane.waiting, DatabaseUnavailableError("the server is shutting down"))
            lane.waiting.clear()
        while self._idle:
            self._idle.pop().close()

    def _put(self, question: Question) -> _Asked:
        asked = _Asked(question)
        slow_until = self._slow.get(question.channel)
        if slow_until is not None and slow_until <= time.monotonic():
            del self._slow[question.channel]
            slow_until = None
        self._put_into(self._lane if slow_until is None else self._slow_lane, [asked])
        return asked

    def _put_into(self, lane: _Lane, all_asked: Sequence[_Asked]) -> None:
        if len(lane.waiting) + len(all_asked) > self.queue_size:
            raise DatabaseUnavailableError("too many permissions wait to be checked")
        lane.waiting.extend(all_asked)
        if lane.busy < lane.workers:
            lane.busy += 1
            self._threads.add(green.spawn(self._work, lane))

    # -- the green threads ---------------------------------------------------------------------------------------------

    def _work(self, lane: _Lane) -> None:
        batch: list[_Asked] = []
        try:
            # Those who ask at the same time get together into one batch.
            green.sleep()
            while batch := lane.next_batch():
                self._answer(lane, batch)
        finally:
            # Only when killed, or by a bug, is anything left of it.
            self._answer_all(batch, DatabaseUnavailableError("permissions cannot be checked at the moment"))
            lane.busy -= 1
            self._threads.discard(green.current())

    def _answer(self, lane: _Lane, batch: list[_Asked]) -> None:
        try:
            answers = self._decide([asked.question for asked in batch])
        except DatabaseTimeoutError as error:
            if error.sqlstate is None:  # it is not PostgreSQL that has ended it: it does not answer at all
                self._answer_all(batch, error)
            elif len(batch) > 1:
                self._ask_alone(batch)
            else:
                self._is_slow(batch[0].question.channel)
                self._answer_all(batch, DatabaseTimeoutError("the policies for this channel took too long"))
        except SocketIOPGError as error:
            self._answer_all(batch, error)
        else:
            for asked, answer in zip(batch, answers, strict=True):
                asked.done.send(self._understood(asked.question, answer))

    def _ask_alone(self, batch: Sequence[_Asked]) -> None:
        try:
            self._put_into(self._slow_lane, batch)
        except DatabaseUnavailableError as full:
            self._answer_all(batch, full)

    @staticmethod
    def _answer_all(batch: Sequence[_Asked] | deque[_Asked], error: SocketIOPGError) -> None:
        for asked in batch:
            asked.done.send(error)

    def _is_slow(self, channel: str) -> None:
        if channel not in self._slow:
            logger.warning("the policies for channel %r took over %g s", channel, self._timeout)
        if len(self._slow) < self.most_slow:
            self._slow[channel] = time.monotonic() + self.slow_seconds

    def _understood(self, question: Question, answer: str) -> bool:
        # INSERT policies say no with an error; what else fails is a fault that somebody has to know of.
        if answer.startswith("failed: ") and not (
            answer.startswith("failed: 42501") and "row-level security" in answer and question.action == "publish"
        ):
            self._complain(question, answer)
        return answer == "allowed"

    def _complain(self, question: Question, answer: str) -> None:
        if time.monotonic() < self._complained + 1.0:
            self._silent += 1
            return
        first_line = answer.partition("\n")[0]
        more = f" ({self._silent} more since the last time)" if self._silent else ""
        logger.warning(
            "may role %r %s %r? No, since it %s%s", question.role, question.action, question.channel, first_line, more
        )
        self._complained, self._silent = time.monotonic(), 0

    def _decide(self, questions: Sequence[Question]) -> list[str]:
        while True:
            reused = bool(self._idle)
            connection = self._idle.pop() if reused else self._database.connect()
            try:
                answers = self._decide_on(connection, questions)
            except BaseException as error:
                connection.close()
                # A connection that had been idle may have died long ago, and nothing is changed by asking again.
                if (
                    reused
                    and isinstance(error, DatabaseUnavailableError)
                    and not isinstance(error, DatabaseTimeoutError)
                ):
                    continue
                raise
            self._idle.append(connection)
            return answers

    def _decide_on(self, connection: Any, questions: Sequence[Question]) -> list[str]:
        # A second more than PostgreSQL itself gives it.
        with translated_errors(self._timeout + 1.0), connection.cursor() as cursor:
            cursor.execute(
                f"BEGIN; SET LOCAL statement_timeout = {int(self._timeout * 1000)}; {_DECIDE}",
                (
                    [question.action for question in questions],
                    [encode_text(connection, question.role) for question in questions],
                    [question.claims for question in questions],
                    [encode_text(connection, question.channel) for question in questions],
                ),
            )
            answers = [row[0] for row in cursor.fetchall()]
            cursor.execute("ROLLBACK")
        if len(answers) != len(questions):
            raise DatabaseError("the database has answered something else than was asked")
        return answers
