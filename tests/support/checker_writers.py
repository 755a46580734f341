"""The checker's writers: threads that publish in their own transactions, and always know which ones committed."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import psycopg2

from tests.support.checker import Outcome, Sent, Transaction, digest
from tests.support.checker_plans import BACK, RELEASE, SAVEPOINT, Pause, Plan, Publish, payload, plan_transactions

#: Written in the writers' own transactions, so it records which ones committed, independent of the log.
#: pg_xact_status() is not used because transaction ids can be reused after a crash.
LEDGER = "CREATE TABLE ledger (transaction text PRIMARY KEY, void boolean NOT NULL)"

#: Error codes of sessions that are ended from outside: connection lost, administrator, crash, startup.
#: Any other error is a problem, because the statements must always succeed.
ENDED = {None, "57P01", "57P02", "57P03"}


class Writer(threading.Thread):
    """Publishes until ``stopping`` is set. ``connect`` returns a connection in autocommit mode, or raises."""

    def __init__(
        self,
        name: str,
        seed: str,
        connect: Callable[[], Any],
        channels: Sequence[str],
        pace: float,
        stopping: threading.Event,
        two_phase: float = 0.0,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._random = Random(f"{seed} {name}")
        self._connect = connect
        self._plans = plan_transactions(Random(f"{seed} {name} plans"), channels, pace, two_phase)
        self._stopping = stopping
        self._connection: Any = None
        self._count = 0
        #: Its transactions, and unexpected errors of PostgreSQL.
        self.transactions: list[Transaction] = []
        self.problems: list[str] = []

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                plan = next(self._plans)
                self._perform(plan, f"{self.name}-{len(self.transactions)}")
                self._stopping.wait(plan.pause)
        except BaseException as error:
            self.problems.append(f"{self.name} ended with {error!r}")
            raise
        finally:
            self._close()

    def _perform(self, plan: Plan, name: str) -> None:
        # Recorded first: the published messages must be known even if the connection is lost.
        transaction = Transaction(name)
        self.transactions.append(transaction)
        try:
            self._execute(plan.begin)
            self._take_steps(plan, transaction)
            self._execute("INSERT INTO ledger VALUES (%s, false)", name)
            if not plan.commits:
                self._execute("ROLLBACK")
                return
        except psycopg2.Error as error:
            # COMMIT was not sent, so it cannot have committed.
            self._note(error, name)
            self._close()
            return
        try:
            if plan.prepared is None:
                self._execute("COMMIT")
            else:
                self._execute(f"PREPARE TRANSACTION '{name}'")
                self._stopping.wait(plan.prepared)
                self._execute(f"COMMIT PREPARED '{name}'")
            transaction.outcome = Outcome.COMMITTED
        except psycopg2.Error as error:
            self._note(error, name)
            self._close()
            transaction.outcome = self._find_out(name)
        if transaction.outcome is Outcome.COMMITTED:
            transaction.acknowledged = time.monotonic()

    def _take_steps(self, plan: Plan, transaction: Transaction) -> None:
        kept = 0
        for step in plan.steps:
            if isinstance(step, Publish):
                identifier = f"{self.name}-{self._count}"
                self._count += 1
                body = payload(self._random, identifier, step)
                sent = Sent(identifier, step.channel, digest(body), time.monotonic())
                transaction.messages.append(sent)
                self._execute("INSERT INTO mirror VALUES (%s, %s)", step.channel, identifier)
                self._execute("SELECT socketio_pg.publish(%s, %s::jsonb)", step.channel, json.dumps(body))
            elif isinstance(step, Pause):
                self._stopping.wait(step.seconds)
            else:
                self._execute(step.sql)
                if step.sql == SAVEPOINT:
                    kept = len(transaction.messages)
                elif step.sql == BACK:
                    transaction.discarded += transaction.messages[kept:]
                    del transaction.messages[kept:]
                    self._execute(RELEASE)

    def _find_out(self, name: str) -> Outcome:
        """Return whether the transaction committed. If it did not, make sure that it never will."""
        while True:
            try:
                # Another session ends it if it was prepared.
                for (gid,) in self._execute("SELECT gid FROM pg_prepared_xacts WHERE gid = %s", name):
                    self._execute(f"COMMIT PREPARED '{gid}'")
                # Waits for the transaction if it still runs; may itself lose the connection and be retried. Does not
                # wait for ever if it is prepared meanwhile.
                self._execute("SET lock_timeout = '2s'")
                self._execute("INSERT INTO ledger VALUES (%s, true) ON CONFLICT DO NOTHING", name)
                self._execute("RESET lock_timeout")
                (void,) = self._execute("SELECT void FROM ledger WHERE transaction = %s", name)[0]
                return Outcome.ROLLED_BACK if void else Outcome.COMMITTED
            except psycopg2.Error as error:
                if error.pgcode != "55P03":  # lock_not_available
                    self._note(error, name)
                self._close()
                time.sleep(0.05)  # a starting database can only be polled

    def _execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = self._connected()
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def _connected(self) -> Any:
        while True:
            try:
                return self._connect()
            except psycopg2.OperationalError:
                time.sleep(0.05)  # as above

    def _note(self, error: psycopg2.Error, name: str) -> None:
        if error.pgcode not in ENDED:
            self.problems.append(f"{name} was refused: {error.pgcode} {str(error).strip()}")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg2.Error):
                connection.close()
