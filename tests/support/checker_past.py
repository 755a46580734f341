"""The checker of the log's past: it is truncated, deleted, restored from a dump and set back while clients read.

One writer publishes the numbers from 1 on. When the application of a client is told of a gap, numbers that were
published until then may be missing, repeated or out of order. All others arrive once and in order.
"""

import contextlib
import json
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg2

from socketio_pg.subscriber.subscriber import Gap, Message, Subscriber
from tests.support.checker_run import failures
from tests.support.checker_world import World, wait_for, world
from tests.support.node import NodeClient
from tests.support.patience import PATIENCE
from tests.support.postgres import in_thread

CHANNEL = "numbers"
#: Seconds after the last fault within which every client gets the last number.
DELIVER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Got:
    """A message that the application got."""

    number: int
    epoch: str
    position: int


@dataclass(frozen=True, slots=True)
class Told:
    """A gap of the log that the application was told of, and the last number that may have been published by then."""

    reason: str
    published: int


Event = Got | Told


def judge(name: str, events: Sequence[Event], last: int) -> list[str]:
    """Return all problems with what one client got. Pure."""
    problems: list[str] = []
    before, excused, told = Got(0, "", 0), 0, False
    for event in events:
        if isinstance(event, Told):
            excused, told = event.published, True
            continue
        where = f"{name}: {event.number} at {event.position} follows {before.number} at {before.position}"
        if event.number > excused:
            first = max(before.number, excused) + 1
            if event.number > first:
                problems.append(f"lost in silence: {where}")
            elif event.number < first:
                problems.append(f"repeated in silence: {where}")
        elif before.number > excused:
            problems.append(f"repeated in silence: {where}")
        if not told and before.epoch and event.epoch != before.epoch:
            problems.append(f"another epoch in silence: {where}")
        elif not told and event.position <= before.position:
            problems.append(f"position went back in silence: {where}")
        before, told = event, False
    if before.number != last:
        problems.append(f"never delivered: {name} ends with {before.number} of {last}")
    return problems


class Reader:
    """A client with what its application gets."""

    def __init__(self, name: str, published: Callable[[], int]) -> None:
        self.name = name
        self._published = published
        self.events: list[Event] = []

    def got(self, message: Any) -> None:
        self.events.append(Got(message["payload"]["n"], message["epoch"], message["position"]))

    def told(self, gap: Any) -> None:
        if gap["tier"] == "log":
            self.events.append(Told(gap["reason"], self._published()))

    @property
    def newest(self) -> int:
        return next((event.number for event in reversed(self.events) if isinstance(event, Got)), 0)

    def close(self) -> None: ...


class PythonReader(Reader):
    def __init__(self, url: str, published: Callable[[], int]) -> None:
        super().__init__("python", published)

        def on_message(message: Message) -> None:
            self.got(message)

        def on_gap(gap: Gap) -> None:
            self.told(gap)

        self._subscriber = Subscriber(
            url, reconnection_delay=0.1, reconnection_delay_max=0.5, retry_delay=0.1, retry_delay_max=0.5, retry=True
        )
        self._subscriber.subscribe(CHANNEL, on_message, on_gap=on_gap)

    def close(self) -> None:
        self._subscriber.close()


class BrowserReader(Reader):
    """socketio_pg.js on the stock client, under Node."""

    def __init__(self, url: str, published: Callable[[], int]) -> None:
        super().__init__("javascript", published)
        self._node = NodeClient(url, "websocket", "replay.mjs")
        self._node.send({"command": "subscribe", "name": "one", "channel": CHANNEL, "options": {}, "raises": False})
        assert "error" not in self._node.next(kind="done")
        for line in self._node.lines:
            self._take(line)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(AssertionError):
            while True:
                self._take(self._node.next())

    def _take(self, line: dict[str, Any]) -> None:
        if line["kind"] == "message":
            self.got(line["message"])
        elif line["kind"] == "gap":
            self.told(line["gap"])

    def close(self) -> None:
        self._node._process.kill()
        self._thread.join()
        self._node.close()


class Numbers(threading.Thread):
    """Publishes numbers, each in its own transaction."""

    def __init__(self, made: World) -> None:
        super().__init__(name="numbers")
        self._world = made
        self._stopping = threading.Event()
        self.count = 0

    def run(self) -> None:
        connection: Any = None
        number = 1
        while not self._stopping.wait(0.005):
            try:
                if connection is None:
                    connection = self._world.cluster.connect()
                    connection.cursor().execute("SET statement_timeout = '10s'")
                body = json.dumps({"n": number})
                connection.cursor().execute("SELECT socketio_pg.publish(%s, %s::jsonb)", (CHANNEL, body))
                self.count = number
                number += 1
            except psycopg2.Error:
                # Not committed: it was refused, or the connection was lost before its only statement ended, which
                # no fault here causes.
                if connection is not None and connection.closed:
                    connection = None
                time.sleep(0.05)
        if connection is not None:
            connection.close()

    def end(self) -> None:
        self._stopping.set()
        self.join()


class Past:
    """Executes the faults."""

    def __init__(self, made: World, random: Random, folder: Path) -> None:
        self._world = made
        self._random = random
        self._dump = str(folder / "dump")
        self.done: Counter[str] = Counter()
        self.dump()

    def one(self, kind: str) -> None:
        FAULTS[kind](self)
        self.done[kind] += 1

    def dump(self) -> None:
        """Dump the log as it is now; a later restore brings it back."""
        self._program("pg_dump", "--format=custom", "--schema=socketio_pg", f"--file={self._dump}")

    def truncate(self) -> None:
        self._sql("TRUNCATE socketio_pg.log")

    def delete_newest(self) -> None:
        self._sql(
            "DELETE FROM socketio_pg.log WHERE position > (SELECT max(position) FROM socketio_pg.log) - %s",
            self._random.randint(1, 50),
        )

    def delete_newest_without_triggers(self) -> None:
        self._sql(
            "SET session_replication_role = replica;"
            "DELETE FROM socketio_pg.log WHERE position > (SELECT max(position) FROM socketio_pg.log) - 20"
        )

    def delete_some(self) -> None:
        self._sql(
            "DELETE FROM socketio_pg.log WHERE random() < 0.3"
            " AND position < (SELECT max(position) FROM socketio_pg.log)"
        )

    def restore(self) -> None:
        # In one transaction: a writer in between could publish what the restore then overwrites.
        self._program("pg_restore", "--clean", "--single-transaction", "--schema=socketio_pg", self._dump)

    def set_back(self) -> None:
        # While messages wait, later ones would get lower ids: nothing tells in which order they were published.
        wait_for(
            lambda: self._world.cluster.sql(
                "BEGIN; LOCK TABLE socketio_pg.outbox;"
                "SELECT setval('socketio_pg.outbox_id_seq', greatest(1, last_value / 2)) FROM socketio_pg.outbox_id_seq"
                " WHERE NOT EXISTS (SELECT FROM socketio_pg.outbox)"
            ),
            DELIVER_SECONDS,
            "an empty outbox",
        )

    def end_relay(self) -> None:
        self._sql("SELECT pg_terminate_backend(session_pid) FROM socketio_pg.head")

    def cut(self) -> None:
        node = self._random.choice(self._world.nodes)
        node.proxy.cut()
        node.proxy.restore()

    def kill_leader(self) -> None:
        leader = self._world.leader()
        if leader is not None:
            node, _ = leader
            node.server.kill()
            node.server.process.wait(PATIENCE)
            # The log changes while no server runs the relay, or another one just begins to.
            self.one(self._random.choice([kind for kind in FAULTS if kind not in ("kill_leader", "restore")]))
            node.server.start()

    def _sql(self, sql: str, *parameters: object) -> None:
        for _ in range(20):
            try:
                self._world.cluster.sql(sql, *parameters)
                return
            except psycopg2.errors.DeadlockDetected:
                continue

    def _program(self, name: str, *arguments: str) -> None:
        cluster = self._world.cluster
        command = [str(cluster.client_dir / name), "--dbname", cluster.url(), *arguments]
        for _ in range(20):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            assert "deadlock detected" in done.stderr, done.stderr


FAULTS: dict[str, Callable[[Past], None]] = {
    "dump": Past.dump,
    "truncate": Past.truncate,
    "delete_newest": Past.delete_newest,
    "delete_newest_without_triggers": Past.delete_newest_without_triggers,
    "delete_some": Past.delete_some,
    "restore": Past.restore,
    "set_back": Past.set_back,
    "end_relay": Past.end_relay,
    "cut": Past.cut,
    "kill_leader": Past.kill_leader,
}


@dataclass(slots=True)
class PastReport:
    """The result of a run. ``problems`` is empty if it succeeded."""

    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    numbers: int = 0
    gaps: int = 0
    server_logs: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        verdict = f"{len(self.problems)} PROBLEMS" if self.problems else "ok"
        first = f"{verdict}: {self.numbers} numbers, {self.gaps} gaps; {faults}"
        return "\n".join([first, *(f"  ! {text}" for text in self.problems)])


def run(seed: int, rounds: int, tell: Callable[[str], None] = lambda line: None) -> PastReport:
    """Execute every fault in each of ``rounds``, in a random order. ``tell`` gets a line about each."""
    random, report = Random(seed), PastReport()
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(world())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        writer = Numbers(made)
        readers = list(_readers(made, writer, stack))
        past = Past(made, random, folder)
        writer.start()
        try:
            for _ in range(rounds):
                for kind in random.sample(sorted(FAULTS), len(FAULTS)):
                    time.sleep(random.choice((0.05, 0.3, 1.2)))  # busy: faults hit messages in all states
                    tell(f"{kind} after {writer.count}")
                    past.one(kind)
        finally:
            writer.end()
        made.ready()
        time.sleep(2.0)  # longer than the relay takes to notice the last change at rest
        made.publish(CHANNEL, {"n": writer.count + 1})
        try:
            wait_for(lambda: all(one.newest > writer.count for one in readers), DELIVER_SECONDS, "the last number")
        except AssertionError as error:
            report.problems.append(str(error))
        report.faults, report.numbers = past.done, writer.count + 1
        for reader in readers:
            report.problems += judge(reader.name, reader.events, report.numbers)
            report.gaps += sum(isinstance(event, Told) for event in reader.events)
        for node in made.nodes:
            report.server_logs.append(node.server.log)
            report.problems += [f"{node.name} logged: {found}" for found in failures(node.server.log)]
    return report


def _readers(made: World, writer: "Numbers", stack: contextlib.ExitStack) -> Iterator[Reader]:
    """Yield a reader of each kind on each node."""
    for port in made.ports:
        for kind in (PythonReader, BrowserReader):
            # One more may be on its way.
            reader = in_thread(kind, f"http://127.0.0.1:{port}", lambda: writer.count + 1)
            stack.callback(reader.close)
            reader.name += f" on {port}"
            yield reader
