"""One run of the checker: writers, subscribers and faults for a while; then a calm phase, and the check."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg2

from tests.support.checker import Delivered, Logged, Outcome, Sent, Transaction, digest, judge
from tests.support.checker_clients import Client, Loop
from tests.support.checker_faults import Breaker, plan_faults
from tests.support.checker_people import ROOM, PeopleProgram, expected_room
from tests.support.checker_programs import AsyncioProgram, ConsumerPrograms, StreamProgram
from tests.support.checker_recovering import EXCUSES, RecoveringSubscriber
from tests.support.checker_snapshots import MIRROR, SnapshotProgram
from tests.support.checker_subscribers import SocketPublisher, Subscriber
from tests.support.checker_world import World, wait_for, world
from tests.support.checker_writers import LEDGER, Writer

CHANNELS = ("orders", "Überweisung 日本", "prices", "chat", "seldom")

#: Seconds after the last fault within which all nodes serve, and then within which everything is delivered.
RECOVER_SECONDS, DELIVER_SECONDS = 90.0, 120.0


#: Settings: patterns may match all channels, and members leave soon.
FOR_PEOPLE = {"PATTERN_MIN_PREFIX": "0", "PRESENCE_GRACE": "2"}


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a run."""

    seconds: float
    #: Mean seconds between two faults, two transactions of a writer, and two actions of a restless subscriber.
    between_faults: float = 2.5
    pace: float = 0.1
    restless: float = 3.0
    writers: int = 8
    socket_publishers: int = 2
    #: Subscribers that disconnect only because of faults, and restless ones.
    steady: int = 3
    restless_subscribers: int = 7
    #: Restless subscribers that recover their sessions.
    recovering: int = 3
    #: Programs with patterns and presence, and the mean seconds between two of their changes of presence.
    people: int = 4
    between_changes: float = 0.5
    #: Share of the writers' transactions that commit in two phases; with 0 the cluster allows none.
    two_phase: float = 0.0
    #: Workers of each node.
    workers: int = 1


@dataclass(slots=True)
class Report:
    """The result of a run. ``problems`` is empty if it succeeded."""

    seed: int
    seconds: float
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    server_logs: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:g}" for name, value in self.figures.items())
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        verdict = f"{len(self.problems)} PROBLEMS" if self.problems else "ok"
        lines = [f"seed {self.seed}, {self.seconds:.0f} s: {verdict}", f"  {figures}", f"  faults: {faults}"]
        return "\n".join(lines + [f"  ! {problem}" for problem in self.problems])


def run(seed: int, size: Size, tell: Callable[[str], None] = lambda line: None) -> Report:
    """Run with ``seed``. ``tell`` is called with a line about each fault."""
    random = Random(seed)
    # With a small buffer, clients that do not read are disconnected and reconnect.
    buffer = random.choice(("1000000", "200000", "30000"))
    began = time.monotonic()

    def tell_when(line: str) -> None:
        tell(f"{time.monotonic() - began:7.2f} {line}")

    with world(20 if size.two_phase else 0, size.workers, SEND_BUFFER_BYTES=buffer, **FOR_PEOPLE) as made:
        made.cluster.sql(f"{LEDGER}; {MIRROR}")
        return _Run(made, seed, size, random, tell_when).run()


class _Run:
    def __init__(self, made: World, seed: int, size: Size, random: Random, tell: Callable[[str], None]) -> None:
        self._world = made
        self._seed = seed
        self._size = size
        self._random = random
        self._tell = tell
        self._stopping = threading.Event()
        self._loop = Loop()
        self._writers = [
            Writer(
                f"writer-{n}",
                str(seed),
                self._connector(f"writer-{n}"),
                CHANNELS,
                size.pace,
                self._stopping,
                size.two_phase,
            )
            for n in range(size.writers)
        ]
        self._publishers = [
            SocketPublisher(self._loop, f"publisher-{n}", made.ports, CHANNELS, Random(f"{seed} {n}"), size.pace)
            for n in range(size.socket_publishers)
        ]
        self._recovering = list(self._make_recovering())
        self._subscribers = [*self._make_subscribers(), *self._recovering]
        self._programs: list[AsyncioProgram | ConsumerPrograms | StreamProgram] = [
            AsyncioProgram("asyncio", made.ports[0], CHANNELS, made.epoch()),
            StreamProgram("stream", made.ports, CHANNELS, made.epoch()),
            ConsumerPrograms("consumers", made.cluster.url(), CHANNELS),
        ]
        self._snapshots = SnapshotProgram(
            "snapshots", made.cluster.url(), made.ports, CHANNELS, Random(f"{seed} snapshots")
        )
        self._people = list(self._make_people())
        self._sources: list[Writer | SocketPublisher] = [*self._writers, *self._publishers]
        self._breaker = Breaker(made, plan_faults(random, size.seconds, size.between_faults, size.workers), tell)
        self._problems: list[str] = []

    def _make_subscribers(self) -> Iterator[Subscriber]:
        ports, epoch = self._world.ports, self._world.epoch()
        for n in range(self._size.steady + self._size.restless_subscribers):
            restless = self._size.restless if n >= self._size.steady else None
            # Steady subscribers stay on one node each; restless ones may switch, and may have fewer channels.
            some = self._random.sample(CHANNELS, self._random.randint(1, len(CHANNELS)))
            yield Subscriber(
                self._loop,
                f"{'steady' if restless is None else 'restless'}-{n}",
                [ports[n % 2]] if restless is None else ports,
                CHANNELS if n % 2 == 0 else some,
                Random(f"{self._seed} subscriber {n}"),
                epoch,
                restless,
            )

    def _make_recovering(self) -> Iterator[RecoveringSubscriber]:
        for n in range(self._size.recovering):
            random = Random(f"{self._seed} recovering {n}")
            channels = CHANNELS if n % 2 == 0 else random.sample(CHANNELS, 3)
            ports, epoch = self._world.ports, self._world.epoch()
            yield RecoveringSubscriber(
                self._loop, f"recovering-{n}", ports, channels, random, epoch, self._size.restless / 3
            )

    def _make_people(self) -> Iterator[PeopleProgram]:
        """Two of the programs are one member."""
        ports, epoch, pace = self._world.ports, self._world.epoch(), self._size.between_changes
        for n in range(self._size.people):
            key, random = ("ann", "ben", "ann", "__proto__")[n % 4], Random(f"{self._seed} people {n}")
            yield PeopleProgram(f"people-{n}", key, ports[n // 2 % 2], CHANNELS, epoch, random, pace)

    def _connector(self, name: str) -> Callable[[], Any]:
        def connect() -> Any:
            connection = psycopg2.connect(self._world.cluster.url(), application_name=name)
            connection.autocommit = True
            return connection

        return connect

    def run(self) -> Report:
        began = time.monotonic()
        clients: list[Client] = [*self._subscribers, *self._publishers]
        late = self._random.sample(clients, len(clients) // 3)
        for client in clients:
            if client in late:  # so that they replay from the log
                self._loop.later(self._random.uniform(0.0, self._size.seconds / 2), client.start)
            else:
                client.start()
        self._loop.start()
        for one in (*self._writers, *self._programs, *self._people, self._snapshots):
            one.start()
        try:
            self._breaker.run(self._size.seconds)
            self._tell("calm")
            self._settle()
        except AssertionError as error:
            self._problems.append(str(error))
        finally:
            self._stopping.set()
            self._loop.end()
            for program in (*self._programs, *self._people, self._snapshots):
                program.end()
        report = Report(self._seed, time.monotonic() - began, faults=self._breaker.done)
        self._judge(report)
        return report

    def _settle(self) -> None:
        """Wait until everything is repaired, stop publishing, and wait until all messages have arrived."""
        self._snapshots.calm()
        for subscriber in self._subscribers:
            subscriber.calm()
        for one in self._people:
            one.calm()
        began = time.monotonic()
        self._world.ready()
        self._stopping.set()
        for writer in self._writers:
            writer.join(RECOVER_SECONDS)
            assert not writer.is_alive(), f"{writer.name} does not end"
        for publisher in self._publishers:
            publisher.stop()
        wait_for(lambda: all(one.idle for one in self._publishers), RECOVER_SECONDS, "answers to the publishers")
        self._tell(f"{time.monotonic() - began:.2f} s until all nodes serve and all publishers have stopped")
        self._publish_last()
        try:
            wait_for(self._is_delivered, DELIVER_SECONDS, "all messages delivered")
            self._wait_for_people()
        finally:
            self._tell(f"{time.monotonic() - began:.2f} s until everything is delivered")

    def _publish_last(self) -> None:
        """Publish one more message to each channel, so that late duplicates would arrive before it."""
        for channel in CHANNELS:
            body = {"id": f"last-{channel}"}
            sent = Sent(body["id"], channel, digest(body), time.monotonic())
            self._world.publish(channel, body)
            self._writers[0].transactions.append(
                Transaction(body["id"], [sent], outcome=Outcome.COMMITTED, acknowledged=time.monotonic())
            )

    def _wait_for_people(self) -> None:
        """Wait until all know who is in the room, and the database does."""
        wait_for(lambda: all(one.settled for one in self._people), RECOVER_SECONDS, "answers about presence")
        room = expected_room(self._people)

        def agreed() -> bool:
            return all(one.room == room for one in self._people) and self._world.room(ROOM) == room

        try:
            wait_for(agreed, DELIVER_SECONDS, "agreement about the members of the room")
        except AssertionError:
            known = {one.name: one.room for one in self._people} | {"the database": self._world.room(ROOM)}
            self._problems.append(f"the members are {room}, but {known}")

    def _is_delivered(self) -> bool:
        if self._world.in_outbox():
            return False
        newest = self._world.newest()
        return all(
            one.caught_up(newest) for one in (*self._subscribers, *self._programs, *self._people, self._snapshots)
        )

    def _judge(self, report: Report) -> None:
        transactions = [transaction for source in self._sources for transaction in source.transactions]
        log = self._world.log()
        subscribers = {one.name: (one.channels, one.notes) for one in (*self._subscribers, *self._programs)}
        for one in self._people:
            subscribers |= one.histories
        report.problems = [
            *self._problems,
            *self._breaker.problems,
            *self._loop.problems,
            *(problem for source in self._sources for problem in source.problems),
            *judge(transactions, log, subscribers, self._world.in_outbox()),
            *self._wrong_positions(log),
            *self._snapshots.problems(self._mirror()),
            *self._lost_sessions(report.faults),
        ]
        for node in self._world.nodes:
            report.server_logs.append(node.server.log)
            report.problems += [f"{node.name} logged: {found}" for found in failures(node.server.log)]
        report.figures = self._figures(transactions, log)

    def _wrong_positions(self, log: list[Logged]) -> Iterator[str]:
        """Yield the answers to publishers with a position that is not the message's."""
        places = {message.id: message.position for message in log}
        for publisher in self._publishers:
            for identifier, position in publisher.positions.items():
                if position is not None and position != places.get(identifier):
                    yield f"{identifier} was answered with position {position}, but has {places.get(identifier)}"

    def _mirror(self) -> dict[str, set[str]]:
        rows = self._world.cluster.sql("SELECT channel, array_agg(id) FROM mirror GROUP BY channel")
        return {channel: set(ids) for channel, ids in rows}

    def _figures(self, transactions: list[Transaction], log: list[Logged]) -> dict[str, float]:
        delivered = [note for one in self._subscribers for note in one.notes if isinstance(note, Delivered)]
        outcomes = Counter(transaction.outcome for transaction in transactions)
        return {
            "messages in the log": len(log),
            "deliveries": len(delivered),
            "replayed": sum(note.replayed for note in delivered),
            "snapshots": sum(map(len, self._snapshots.seen.values())),
            "connects": sum(one.connects for one in self._subscribers),
            "cut off": sum(one.cuts for one in self._subscribers),
            **self._recoveries(),
            "messages of patterns": sum(len(notes) for one in self._people for _, notes in one.histories.values()),
            "changes of presence": sum(one.changes.total() for one in self._people),
            "answers with a position": sum(
                position is not None for one in self._publishers for position in one.positions.values()
            ),
            "duplicates": sum(one.duplicates for one in self._publishers),
            **{outcome.value: outcomes[outcome] for outcome in Outcome},
        }

    def _recoveries(self) -> dict[str, float]:
        counts = sum((one.outcomes for one in self._recovering), Counter())
        known: dict[str, float] = {"sessions": counts.pop("first", 0), "recovered": counts.pop("recovered", 0)}
        return known | {f"not recovered ({reason})": counts[reason] for reason in sorted(counts)}

    def _lost_sessions(self, faults: Counter[str]) -> Iterator[str]:
        """Yield the recoveries that failed for a reason that a run does not give."""
        excused = EXCUSES | ({"unknown_session"} if faults["crash_postgres"] else set())
        for one in self._recovering:
            for reason in one.outcomes.keys() - excused:
                yield f"{one.name} was not recovered: {reason}, {one.outcomes[reason]} times"


#: A message of gunicorn: a connection was accepted during SIGTERM, when the listening socket was already closed.
HARMLESS = "Socket error processing request.: OSError: [Errno 9] Bad file descriptor"


def failures(log: str) -> list[str]:
    """Return the tracebacks in a server's log, each as its heading and its last line."""
    found: list[str] = []
    for match in re.finditer(r"^(.*)\nTraceback \(most recent call last\):\n((?: .*\n|\n)*)(.*)", log, re.MULTILINE):
        found.append(f"{match[1]}: {match[3]}")
    # Our own log lines contain the traceback in one line.
    for match in re.finditer(r'^.* message=("(?:[^"\\]|\\.)*"|\S+) .*traceback="(.*)"$', log, re.MULTILINE):
        found.append(f"{match[1].strip(chr(34))}: {match[2].split(chr(92) + 'n')[-1]}")
    return [failure for failure in found if not failure.endswith(HARMLESS)]
