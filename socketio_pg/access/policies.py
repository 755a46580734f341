"""Evaluates row-level-security policies: many questions in one transaction, which is rolled back.

`permissions` builds the questions and caches the answers.
"""

import json
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

from socketio_pg.access.questions import INSERTING, Asked, Lane, Question, Slow
from socketio_pg.core import green
from socketio_pg.core.channels import RESERVED_PREFIX
from socketio_pg.core.errors import (
    DatabaseError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    LogNotInstalledError,
    SocketIOPGError,
)
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.postgres.database import Database, encode_text, translated_errors
from socketio_pg.postgres.trust import verify

logger = logging.getLogger("socketio_pg.policies")

# Qualified, because the policies' functions run with the role's own search_path.
_DECIDE = f"SELECT socketio_pg.decide({'%s::pg_catalog.text[], ' * 4}%s::pg_catalog.float8)"

#: SQLSTATEs (manual, appendix A) that say nothing about permission: transaction rollback and deadlocks, insufficient
#: resources, operator intervention, system errors, a read-only database, and lock_not_available.
_TRANSIENT = ("40", "53", "57", "58", "25006", "55P03")


class Policies:
    """The policies on ``socketio_pg.messages`` in ``database``. ``timeout``: seconds for one decision.

    ``on_broken`` is called when no policy can be evaluated although the database answers: a privilege or the schema is
    missing.

    One slow policy must not delay all other questions. When a batch times out, its questions are asked again one by
    one in a separate slow lane; questions about a slow channel go directly to the slow lane for a while.
    """

    #: Seconds that a caller waits for an answer, as a multiple of the timeout: this covers the questions ahead of it,
    #: and a second attempt alone after its batch has failed.
    patience = 2.5
    #: Fraction of the timeout after which a batch starts no further question; the rest goes into the next batch.
    budget = 0.5
    #: Questions in each queue.
    queue_size = 20_000

    def __init__(self, database: Database, timeout: float, on_broken: Callable[[], None] | None = None) -> None:
        self._database = database
        self._timeout = timeout
        self._lane = Lane(workers=2, batch_size=50)
        self._slow_lane = Lane(workers=1, batch_size=1)
        self._slow = Slow()
        self._idle: list[Any] = []
        self._limited_log = RateLimitedLog(logger)
        self._on_broken = on_broken or (lambda: None)

    @property
    def connections(self) -> int:
        """The maximum number of connections."""
        return len(self._lane.workers) + len(self._slow_lane.workers)

    def ask(self, question: Question) -> bool:
        """Return whether the policies allow it. Waits.

        Raises :class:`DatabaseUnavailableError` when there is no answer in time, :class:`LogNotInstalledError` without
        the schema ``socketio_pg``, and :class:`DatabaseError`, for instance when the server's role lacks privileges. A
        policy that fails refuses the action, and the failure is logged.
        """
        asked = Asked(question)
        self._put(self._slow_lane if question in self._slow else self._lane, asked)
        try:
            answer = asked.done.wait(self._timeout * self.patience)
        except green.TimedOut:
            asked.abandoned = True
            raise DatabaseTimeoutError("permissions cannot be checked in time", channel=question.channel) from None
        if isinstance(answer, SocketIOPGError):
            raise answer
        return bool(answer)

    def check(self, roles: Collection[str]) -> None:
        """Return if policies can be evaluated, and log problems with ``roles``. Raises as :meth:`ask`."""
        for role, problem in self.problems(roles).items():
            logger.warning(
                "clients of role %r will be refused: %s; grant the role to the server's role, and its privileges with "
                "'socketio-pg init --client-role %s'",
                role,
                problem,
                role,
            )

    def problems(self, roles: Collection[str]) -> dict[str, str]:
        """Return why clients of a role will be refused, for each such role of ``roles``. Raises as :meth:`ask`."""
        found = {}
        for role in sorted(roles):
            # A channel that no client can use.
            question = Question("subscribe", role, json.dumps({"role": role}), RESERVED_PREFIX)
            [answer] = self._decide([question])
            if answer.startswith(("failed: 42501", "failed: 22023", "failed: SG004")):
                found[role] = answer.removeprefix("failed: ").partition("\n")[0]
        return found

    def stop(self) -> None:
        """Fail all waiting questions and close the connections."""
        lanes = (self._lane, self._slow_lane)
        for worker in [worker for lane in lanes for worker in lane.workers]:
            worker.stop()
        for lane in lanes:
            self._answer_all(lane.clear(), DatabaseUnavailableError("the server is shutting down"))
        while self._idle:
            self._idle.pop().close()

    def _put(self, lane: Lane, asked: Asked, *, first: bool = False) -> None:
        if lane.size >= self.queue_size:
            raise DatabaseUnavailableError("too many permission checks are waiting")
        lane.put(asked, first=first)
        idle = next((worker for worker in lane.workers if not worker.running), None)
        if idle is not None:
            idle.start(self._work, lane)

    # -- the green threads ---------------------------------------------------------------------------------------------

    def _work(self, lane: Lane) -> None:
        batch: list[Asked] = []
        try:
            # Lets questions that are asked at the same time get into one batch.
            green.sleep()
            while batch := lane.next_batch():
                self._answer(lane, batch)
        finally:
            # Answers the batch if the thread was killed, or failed because of a bug.
            self._answer_all(batch, DatabaseUnavailableError("permissions cannot be checked at the moment"))

    def _answer(self, lane: Lane, batch: list[Asked]) -> None:
        try:
            answers = self._decide([asked.question for asked in batch])
        except DatabaseTimeoutError as error:
            if error.sqlstate is None:  # not statement_timeout: PostgreSQL does not respond at all
                self._answer_all(batch, error)
            elif len(batch) > 1:
                self._ask_alone(batch)
            else:
                self._mark_slow(batch[0].question)
                self._answer_all(batch, DatabaseTimeoutError("the policies for this channel took too long"))
        except DatabaseUnavailableError as error:
            self._answer_all(batch, error)
        except SocketIOPGError as error:
            if isinstance(error, LogNotInstalledError):
                self._database.verified.clear()
            self._answer_all(batch, error)
            self._on_broken()
        else:
            for asked, answer in zip(batch, answers, strict=False):
                asked.done.send(self._decision(asked.question, answer))
            for asked in reversed(batch[len(answers) :]):
                lane.put(asked, first=True)

    def _ask_alone(self, batch: Sequence[Asked]) -> None:
        for asked in batch:
            try:
                self._put(self._slow_lane, asked)
            except DatabaseUnavailableError as full:
                asked.done.send(full)

    @staticmethod
    def _answer_all(batch: Sequence[Asked], error: SocketIOPGError) -> None:
        for asked in batch:
            asked.done.send(error)

    def _mark_slow(self, question: Question) -> None:
        if self._slow.add(question):
            self._limited_log(
                logging.WARNING, "the policies for channel %r took over %g s", question.channel, self._timeout
            )

    def _decision(self, question: Question, answer: str) -> bool | SocketIOPGError:
        if not answer.startswith("failed: "):
            return answer == "allowed"
        sqlstate, _, message = answer.removeprefix("failed: ").partition(" ")
        if sqlstate.startswith(_TRANSIENT):
            return DatabaseUnavailableError("permissions cannot be checked at the moment", channel=question.channel)
        # INSERT policies refuse with this error; any other failure is a fault in the policies and is logged.
        if question.action not in INSERTING or sqlstate != "42501" or "row-level security" not in message:
            self._limited_log(
                logging.WARNING,
                "refused role %r to %s channel %r because a policy failed: %s %r",
                question.role, question.action, question.channel, sqlstate, message[:200],
            )  # fmt: skip
        return False

    def _decide(self, questions: Sequence[Question]) -> list[str]:
        """Return the answers to the first of ``questions``, to at least one."""
        while True:
            reused = bool(self._idle)
            connection = self._idle.pop() if reused else self._database.connect("policies")
            try:
                answers = self._decide_on(connection, questions)
            except BaseException as error:
                connection.close()
                # An idle connection may have died unnoticed, and a question can be repeated without side effects.
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
        verify(self._database, connection, self._timeout + 1.0)
        # A second more than statement_timeout.
        with translated_errors(self._timeout + 1.0), connection.cursor() as cursor:
            cursor.execute(
                f"BEGIN; SET LOCAL statement_timeout = {int(self._timeout * 1000)}; {_DECIDE}",
                (
                    [question.action for question in questions],
                    [encode_text(connection, question.role) for question in questions],
                    [question.claims for question in questions],
                    [encode_text(connection, question.channel) for question in questions],
                    self._timeout * self.budget,
                ),
            )
            answers = [row[0] for row in cursor.fetchall()]
            cursor.execute("ROLLBACK")
        if not 0 < len(answers) <= len(questions):
            raise DatabaseError("the database returned an unexpected number of answers")
        return answers
