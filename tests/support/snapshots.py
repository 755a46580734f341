"""Random histories of writers, snapshots and subscriptions on a log, all in one thread: a seed is one interleaving."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg2
import psycopg2.errors

from socketio_pg import PubSub
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError
from tests.support.log_database import LogDatabase
from tests.support.patience import PATIENCE, until

#: Publishing and reading in one transaction: each channel has a table, whose rows are its messages.
TABLES = {"a": "rows_of_a", "b": "rows_of_b"}
SCHEMA = "; ".join(f"CREATE TABLE {table} (n int PRIMARY KEY)" for table in TABLES.values())

_WRITE = "INSERT INTO {table} VALUES (%s); SELECT socketio_pg.publish(%s, to_jsonb(%s::int))"
_READ = "SELECT socketio_pg.snapshot(), (SELECT coalesce(array_agg(n), '{{}}') FROM {table})"


class Writer:
    """A session with random transactions: rows with their messages, savepoints, rollbacks, prepared transactions."""

    def __init__(self, history: "History", name: str) -> None:
        self._history, self._random = history, history.random
        self._name = name
        self.cursor = history.connect()
        self._open = False
        self._savepoints = 0
        #: Prepared transactions that are still to be decided.
        self._prepared: list[str] = []

    def act(self) -> None:
        """Take a random step. SERIALIZABLE transactions may fail, as an application's do."""
        try:
            self._act()
        except psycopg2.errors.SerializationFailure:
            self.cursor.execute("ROLLBACK")
            self._open = False

    def _act(self) -> None:
        if self._prepared and self._random.random() < 0.2:
            self._decide(self._prepared.pop())
        elif not self._open:
            level = self._random.choice(["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
            self.cursor.execute(f"BEGIN ISOLATION LEVEL {level}")
            self._open, self._savepoints = True, 0
        else:
            self._random.choice([self._write, self._write, self._write, self._savepoint, self._end, self._end])()

    def _write(self) -> None:
        channel = self._random.choice(list(TABLES))
        for _ in range(self._random.choice([1, 1, 1, 4])):
            number = self._history.next_number()
            self.cursor.execute(_WRITE.format(table=TABLES[channel]), (number, channel, number))

    def _savepoint(self) -> None:
        if self._savepoints and self._random.random() < 0.6:
            self.cursor.execute(self._random.choice(["ROLLBACK TO", "RELEASE"]) + f" SAVEPOINT s{self._savepoints}")
            self._savepoints -= 1
        else:
            self._savepoints += 1
            self.cursor.execute(f"SAVEPOINT s{self._savepoints}")

    def _end(self) -> None:
        self._open = False
        if self._history.two_phase and self._random.random() < 0.3:
            name = f"{self._name}-{self._history.next_number()}"
            self.cursor.execute(f"PREPARE TRANSACTION '{name}'")
            self._prepared.append(name)
        else:
            self.cursor.execute(self._random.choice(["COMMIT", "COMMIT", "ROLLBACK"]))

    def _decide(self, name: str) -> None:
        if self._open:
            self._open = False
            self.cursor.execute("ROLLBACK")
        self.cursor.execute(self._random.choice(["COMMIT", "COMMIT", "ROLLBACK"]) + f" PREPARED '{name}'")

    def finish(self) -> None:
        with contextlib.suppress(psycopg2.errors.SerializationFailure):
            if self._open:
                self._end()
        while self._prepared:
            self._decide(self._prepared.pop())

    def snapshot(self) -> "Reader | None":
        """Return a snapshot in the present transaction, which commits afterwards."""
        if not self._open:
            return None
        self._open = False
        try:
            reader = Reader(self._history, self.cursor)
            self.cursor.execute("COMMIT")
        except psycopg2.errors.SerializationFailure:
            self.cursor.execute("ROLLBACK")
            return None
        return reader


@dataclass
class Reader:
    """The rows and the token of one snapshot, then the messages of a subscription that begins with it."""

    history: "History"
    cursor: Any = None
    token: str = ""
    rows: list[int] = field(default_factory=list)
    queue: Any = field(default_factory=green.Queue)

    def __post_init__(self) -> None:
        self.channel = self.history.random.choice(list(TABLES))
        if self.cursor is not None:
            self.cursor.execute(_READ.format(table=TABLES[self.channel]))
            self.token, self.rows = self.cursor.fetchone()

    def subscribe(self, pubsub: PubSub) -> None:
        """Begin to receive: with a subscription, or with a page whenever :meth:`read_page` is called."""
        self._pubsub = pubsub
        self._next: str | None = self.token if self.history.random.random() < 0.3 else None
        if self._next is None:
            pubsub.subscribe(self.channel, self.queue, since=self.token, on_gap=self.queue.put)

    def read_page(self) -> None:
        if self._next is None:
            return
        with contextlib.suppress(DatabaseUnavailableError):  # messages of the snapshot have no positions yet
            limit = self.history.random.choice([1, 3, 1000])
            page = self._pubsub.read_page(self.channel, since=self._next, limit=limit)
            assert page.recovery == {"recovered": True}
            for message in page.messages:
                self.queue.put({"payload": message.payload()})
            self._next = page.next

    def judge(self, committed: set[int]) -> None:
        """Compare with all committed rows; the last message of each channel is -1."""
        messages: list[int] = []
        while True:
            while self._next is not None and self.queue.empty():
                self.read_page()
                green.sleep()  # so that this process follows the log
            message = self.queue.get(timeout=PATIENCE)
            assert "reason" not in message, message
            if message["payload"] == -1:
                break
            messages.append(message["payload"])
        assert len(set(messages)) == len(messages), "nothing comes twice"
        assert set(self.rows) & set(messages) == set(), "no message is in the rows"
        assert set(self.rows) | set(messages) == committed, "no message is missing"


class RepeatableReader(Reader):
    """A REPEATABLE READ transaction that reads its rows and its token at different times, in either order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._session = self.history.connect_reader()
        levels = ["REPEATABLE READ"] if self.history.standby else ["REPEATABLE READ", "SERIALIZABLE"]
        level = self.history.random.choice(levels)
        self._session.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT 1")
        self._steps = [self._read_rows, self._read_token]
        self.history.random.shuffle(self._steps)

    def step(self) -> bool:
        """Take the next step. Return True when it was the last one: there is a token, or the transaction failed."""
        try:
            self._steps.pop()()
            if not self._steps:
                self._session.execute("COMMIT")
        except psycopg2.errors.SerializationFailure:
            self._steps, self.token = [], ""
        return not self._steps

    def _read_rows(self) -> None:
        self._session.execute(f"SELECT n FROM {TABLES[self.channel]}")
        self.rows = [n for (n,) in self._session.fetchall()]

    def _read_token(self) -> None:
        self._session.execute("SELECT socketio_pg.snapshot()")
        [self.token] = self._session.fetchone()


class History:
    """One random history on ``log``: ``steps`` random steps of writers, readers, subscriptions and the relay.

    Readers connect to ``standby``, if there is one: its address.
    """

    def __init__(
        self, log: LogDatabase, random: Random, *, two_phase: bool = False, standby: str | None = None
    ) -> None:
        self.log, self.random, self.two_phase, self.standby = log, random, two_phase, standby
        self._number = 0
        self._stack = contextlib.ExitStack()

    def connect(self) -> Any:
        connection = self._stack.enter_context(contextlib.closing(self.log.connect()))
        return connection.cursor()

    def _rows_at(self, cursor: Any) -> int:
        cursor.execute("SELECT " + " + ".join(f"(SELECT count(*) FROM {table})" for table in TABLES.values()))
        return int(cursor.fetchone()[0])

    def connect_reader(self) -> Any:
        """Connect to where snapshots are taken."""
        if self.standby is None:
            return self.connect()
        connection = self._stack.enter_context(contextlib.closing(psycopg2.connect(self.standby)))
        connection.autocommit = True
        return connection.cursor()

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def run(self, steps: int) -> list[Reader]:
        """Run it, and judge all snapshots. Return them."""
        with self._stack, self._pubsub() as pubsub:
            for table in TABLES.values():
                self.log.sql(f"DELETE FROM {table}")
            if self.standby is not None:
                reader = self.connect_reader()
                until(lambda: not self._rows_at(reader), "the standby has no rows of the history before")
            writers = [Writer(self, f"writer{n}") for n in range(self.random.randint(1, 4))]
            readers: list[Reader] = []
            waiting: list[Reader] = []
            repeatable: list[RepeatableReader] = []

            def read() -> None:
                kind = self.random.choice(["statement", "repeatable", "writer"])
                if kind == "statement":
                    waiting.append(Reader(self, self.connect_reader()))
                elif kind == "repeatable" and len(repeatable) < 3:
                    repeatable.append(RepeatableReader(self))
                elif kind == "writer" and (found := self.random.choice(writers).snapshot()) is not None:
                    waiting.append(found)

            def step_repeatable() -> None:
                if repeatable:
                    reader = self.random.choice(repeatable)
                    if reader.step():
                        repeatable.remove(reader)
                        waiting.extend([reader] if reader.token else [])

            def subscribe() -> None:
                if waiting:
                    reader = waiting.pop(self.random.randrange(len(waiting)))
                    reader.subscribe(pubsub)
                    readers.append(reader)

            def relay() -> None:
                self.log.move(self.random.choice([1, 2, 5, 1000]))

            def write() -> None:
                self.random.choice(writers).act()

            def read_page() -> None:
                if readers:
                    self.random.choice(readers).read_page()

            actions: list[Callable[[], None]] = [write] * 12
            actions += [relay, relay, read, step_repeatable, subscribe, read_page]
            for _ in range(steps):
                self.random.choice(actions)()
            while repeatable:
                step_repeatable()
            while waiting:
                subscribe()
            for writer in writers:
                writer.finish()
            committed = {
                channel: {n for (n,) in self.log.sql(f"SELECT n FROM {table}")} for channel, table in TABLES.items()
            }
            for channel in TABLES:
                self.log.publish(channel, "-1")
            while self.log.move(self.random.choice([3, 1000])):
                pass
            for reader in readers:
                reader.judge(committed[reader.channel])
            return readers

    @contextlib.contextmanager
    def _pubsub(self) -> Iterator[PubSub]:
        pubsub = PubSub(self.log.url)
        try:
            pubsub.position()
            pubsub.log.snapshot_patience = 0.0
            yield pubsub
        finally:
            pubsub.disconnect()
