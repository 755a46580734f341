"""A node with two workers under load: subscribers and publishers of all kinds, and what is wrong with what they saw.

Each source publishes on both tiers, and notes which publications were acknowledged. `checker` judges the log tier.
"""

import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import Any

import psycopg2
import psycopg2.extras
import requests
import socketio

from tests.support.checker import (
    Delivered,
    Disconnected,
    Improper,
    Logged,
    Note,
    Outcome,
    Sent,
    Subscribed,
    Transaction,
    digest,
    judge,
)
from tests.support.checker_run import failures
from tests.support.checker_subscribers import UNCERTAIN
from tests.support.checker_world import in_pages
from tests.support.clients import SocketClient
from tests.support.passed import Event, Gap, Heard, Passed, judge_passed
from tests.support.patience import PATIENCE, until
from tests.support.server import ServerProcess

APP = "tests.support.workers_app:app"
#: The channels of the two tiers.
LOG, NOTIFY = "kept", "passing"


#: The answer to a request of a client that is not connected.
NOT_SENT = object()


class Member(SocketClient):
    """A client that knows which worker serves it, and comes back by itself."""

    EVENTS = ("connect", "disconnect", "subscribed", "event", "gap", "error")

    def __init__(self, url: str, transport: str) -> None:
        self.url, self.transport = url, transport
        #: Why the connection was lost each time, other than by :meth:`move`.
        self.cuts: list[str] = []
        self._moving = False
        self._asking = threading.RLock()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        super().__init__(url, (transport,))

    def _recorder(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.on(name, arguments[0] if arguments else None)

    def __repr__(self) -> str:
        return f"a client ({self.transport}, {self.io.eio.state}, disconnected: {self.cuts})"

    def on(self, name: str, argument: Any) -> None:
        """Take an event. Runs in the thread of the connection."""
        if name == "disconnect":
            if not self._moving:
                self.cuts.append(argument)
            self._answers.put(None)

    def ask(self, event: str, body: Any = None) -> Any:
        """Send ``event``. Return its acknowledgement, :data:`NOT_SENT`, or None when the connection is lost first."""
        with self._asking:
            answers = self._answers = queue.SimpleQueue()
            try:
                self.io.emit(event, body, callback=answers.put)
            except socketio.exceptions.SocketIOError:
                return NOT_SENT
            return answers.get(timeout=PATIENCE)

    def worker(self) -> int:
        """Return the process id of the worker that serves it, once it is connected."""
        found: list[int] = []

        def told() -> bool:
            found[:] = [pid] if isinstance(pid := self.ask("pid"), int) else []
            return bool(found)

        until(told, "the client is connected")
        return found[0]

    def move(self) -> None:
        """Disconnect and connect again, perhaps to another worker."""
        with self._asking:
            self._moving = True
            self.close()
            self._moving = False
            self._open()


class Watcher(Member):
    """Subscribes to both channels. Records what arrives, for `checker` and for :func:`judge_passed`."""

    def __init__(self, url: str, transport: str, epoch: str) -> None:
        self.notes: list[Note] = []
        self.events: list[Event] = []
        self.subscriptions = 0
        self._here = False
        self._epoch = epoch
        self._since: int | None = None
        self._position: int | None = None
        super().__init__(url, transport)

    def on(self, name: str, argument: Any) -> None:
        super().on(name, argument)
        if name == "connect":
            self._here = True
            for channel in (LOG, NOTIFY):
                self._subscribe(channel)
        elif name == "disconnect":
            self._here = False
            self.notes.append(Disconnected())
            self.events.append(None)
        elif not self._here:
            pass  # python-socketio's client handles the rest of its last poll after the disconnect
        elif name == "subscribed":
            self.subscriptions += 1
            if argument["channel"] == LOG:
                self._position = argument["position"]
                self.notes.append(Subscribed(LOG, self._position, self._since, argument.get("recovered")))
        elif name == "event":
            self._take(argument)
        elif name == "gap" and argument["reason"] == "database_connection_lost":
            if argument["channel"] == NOTIFY:
                self.events.append(Gap(_seconds(argument["since"]), _seconds(argument["until"])))
        else:
            self.notes.append(Improper(f"got {name} {argument}"))

    def _subscribe(self, channel: str) -> None:
        body: dict[str, Any] = {"channel": channel}
        if channel == LOG:
            self._since = self._position
            if self._since is not None:
                body["since"] = {"epoch": self._epoch, "position": self._since}

        def answered(answer: Any) -> None:
            if answer["ok"]:
                return
            if answer["error"]["code"] != "database_unavailable":
                self.notes.append(Improper(f"could not subscribe: {answer}"))
            self._subscribe(channel)

        with suppress(socketio.exceptions.SocketIOError):  # the connection is lost
            self.io.emit("subscribe", body, callback=answered)

    def _take(self, argument: Any) -> None:
        body = argument["payload"]
        if argument["channel"] == NOTIFY:
            self.events.append(Heard(body["source"], body["number"], body["sent"], time.monotonic()))
            return
        self._position = argument["position"]
        self.notes.append(
            Delivered(LOG, self._position, body["id"], digest(body), argument["published_at"], "replayed" in argument)
        )

    @property
    def position(self) -> int:
        """The last position that has arrived."""
        return -1 if self._position is None else self._position

    def first_sent_after(self, began: float) -> Heard | None:
        """Return the first message to arrive that was sent after ``began``."""
        recent = itertools.takewhile(lambda one: not isinstance(one, Heard) or one.at > began, reversed(self.events))
        found = [one for one in recent if isinstance(one, Heard) and one.sent > began]
        return found[-1] if found else None

    def heard(self, source: str) -> bool:
        """Return whether a message of ``source`` has arrived."""
        return any(isinstance(event, Heard) and event.source == source for event in self.events)

    def gaps(self) -> int:
        """Return how many gaps were told."""
        return sum(isinstance(event, Gap) for event in self.events)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


# -- publishers --------------------------------------------------------------------------------------------------------


class Source(threading.Thread):
    """Publishes on both tiers in turn, the next message when the last one was answered, until ``stopping`` is set."""

    def __init__(self, name: str, stopping: threading.Event, pause: float) -> None:
        super().__init__(name=name, daemon=True)
        self._stopping = stopping
        self._pause = pause
        self.transactions: list[Transaction] = []
        self.passed: list[Passed] = []
        self.problems: list[str] = []

    def run(self) -> None:
        try:
            for number in itertools.count():
                if self._stopping.wait(self._pause):
                    return
                self._publish(number, durable=number % 2 == 0)
        except BaseException as error:
            self.problems.append(f"{self.name} ended with {error!r}")
            raise

    def _publish(self, number: int, *, durable: bool) -> None:
        began, sent = time.time(), time.monotonic()
        identifier = f"{self.name}-{number}"
        body = {"id": identifier, "source": self.name, "number": number, "sent": sent}
        outcome = self.send(LOG if durable else NOTIFY, body, durable=durable)
        done = outcome is Outcome.COMMITTED
        if durable:
            acknowledged = time.monotonic() if done else math.inf
            messages = [Sent(identifier, LOG, digest(body), sent)]
            self.transactions.append(Transaction(identifier, messages, outcome=outcome, acknowledged=acknowledged))
        else:
            self.passed.append(Passed(number, began, time.time() if done else math.inf, outcome))

    def send(self, channel: str, body: dict[str, Any], *, durable: bool) -> Outcome:
        """Publish one message."""
        raise NotImplementedError

    def _refused(self, error: Mapping[str, Any]) -> Outcome:
        if error["code"] != "database_unavailable":
            self.problems.append(f"{self.name} could not publish: {error}")
        return Outcome.UNKNOWN if UNCERTAIN in error["message"] else Outcome.ROLLED_BACK


class SqlSource(Source):
    """Publishes with SQL."""

    def __init__(self, name: str, stopping: threading.Event, url: str, pause: float = 0.01) -> None:
        super().__init__(name, stopping, pause)
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def run(self) -> None:
        with closing(self._connection):
            super().run()

    def send(self, channel: str, body: dict[str, Any], *, durable: bool) -> Outcome:
        function = "socketio_pg.publish(%s, %s::jsonb)" if durable else "pg_notify(%s, %s)"
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}", (channel, psycopg2.extras.Json(body).dumps(body)))
        return Outcome.COMMITTED


class HttpSource(Source):
    """Publishes with the HTTP API, each message on a new connection, which any worker may accept."""

    def __init__(self, name: str, stopping: threading.Event, url: str, pause: float) -> None:
        super().__init__(name, stopping, pause)
        self._url = url

    def send(self, channel: str, body: dict[str, Any], *, durable: bool) -> Outcome:
        try:
            answer = requests.post(
                f"{self._url}/api/publish",
                json={"channel": channel, "payload": body, "durable": durable},
                timeout=PATIENCE,
            )
        except requests.ConnectionError:
            return Outcome.UNKNOWN
        return Outcome.COMMITTED if answer.ok else self._refused(answer.json()["error"])


class SocketSource(Source):
    """Publishes with a Socket.IO client."""

    def __init__(self, name: str, stopping: threading.Event, member: Member, pause: float) -> None:
        super().__init__(name, stopping, pause)
        self._member = member

    def send(self, channel: str, body: dict[str, Any], *, durable: bool) -> Outcome:
        answer = self._member.ask("publish", {"channel": channel, "payload": body, "durable": durable})
        if answer is None:
            return Outcome.UNKNOWN
        if answer is NOT_SENT:
            return Outcome.ROLLED_BACK
        return Outcome.COMMITTED if answer["ok"] else self._refused(answer["error"])


# -- all together ------------------------------------------------------------------------------------------------------


class Load:
    """Two watchers of each transport for each worker, and sources of all kinds.

    ``pause``: seconds from the answer to a message until a source publishes the next one. SQL waits for a third of it.
    """

    def __init__(self, server: ServerProcess, url: str, pause: float) -> None:
        self.server = server
        self._url = url
        self._pause = pause
        self._stopping = threading.Event()
        [(self._epoch,)] = self.sql("SELECT epoch::text FROM socketio_pg.head")
        self.watchers: list[Watcher] = []
        self.publishers: list[Member] = []
        self.sources: list[Source] = []

    def start(self) -> None:
        for transport in ("websocket", "polling") * 4:
            self.watchers.append(Watcher(self.server.url, transport, self._epoch))
        for _ in range(4):
            self.publishers.append(Member(self.server.url, "websocket"))
        until(lambda: all(one.subscriptions == 2 for one in self.watchers), "all watchers have subscribed")
        self.sources += [SqlSource("sql", self._stopping, self._url, self._pause / 3)]
        self.sources += [HttpSource("http", self._stopping, self.server.url, self._pause)]
        for n, one in enumerate(self.publishers):
            self.sources.append(SocketSource(f"socket{n}", self._stopping, one, self._pause))
        for source in self.sources:
            source.start()

    def _kinds(self) -> Iterator[list[Member]]:
        yield [one for one in self.watchers if one.transport == "websocket"]
        yield [one for one in self.watchers if one.transport == "polling"]
        yield list(self.publishers)

    @property
    def members(self) -> list[Member]:
        return [*self.watchers, *self.publishers]

    def spread(self) -> dict[Member, int]:
        """Move clients until each of the two workers has some of each kind. Return the worker of each client."""
        until(lambda: len(self.server.worker_pids()) == 2, "gunicorn has two workers")
        workers = set(self.server.worker_pids())
        where: dict[Member, int] = {}
        for kind in self._kinds():
            where |= {one: one.worker() for one in kind}
            deadline = time.monotonic() + PATIENCE
            for one in itertools.cycle(kind):
                if {where[one] for one in kind} >= workers:
                    break
                assert time.monotonic() < deadline, f"no worker gets some of the clients: {where}"
                one.move()
                where[one] = one.worker()
        return where

    def wait_heard(self, since: float, watchers: Iterable[Watcher]) -> list[float]:
        """Wait until each of ``watchers`` gets a message sent after ``since``. Return the seconds until it arrived."""
        found: list[float] = []
        for watcher in watchers:
            until(lambda watcher=watcher: watcher.first_sent_after(since) is not None, f"{watcher} gets messages")  # type: ignore[misc]
            heard = watcher.first_sent_after(since)
            assert heard is not None
            found.append(heard.at - since)
        return found

    def finish(self) -> list[str]:
        """Stop publishing, wait until everything has arrived, and return all problems."""
        # A client that has just moved, or lost its connection, gets no NOTIFY before it has subscribed again.
        self.wait_heard(time.monotonic(), self.watchers)
        self._stopping.set()
        for source in self.sources:
            source.join(PATIENCE)
        last = SqlSource("last", threading.Event(), self._url)
        with closing(last._connection):
            last._publish(0, durable=True)
            last._publish(1, durable=False)
        self.sources.append(last)
        until(lambda: not self.sql("SELECT FROM socketio_pg.outbox LIMIT 1"), "the log has everything")
        log = in_pages(psycopg2.connect(self._url))
        for watcher in self.watchers:
            until(lambda watcher=watcher: watcher.position >= log[-1].position, "the log is delivered")  # type: ignore[misc]
            until(lambda watcher=watcher: watcher.heard("last"), "the last message has arrived")  # type: ignore[misc]
        return [*self._judge(log), *failures(self.server.log)]

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def _judge(self, log: Sequence[Logged]) -> Iterator[str]:
        for source in self.sources:
            yield from source.problems
        transactions = [transaction for source in self.sources for transaction in source.transactions]
        named = {f"{one.transport} {number}": one for number, one in enumerate(self.watchers)}
        yield from judge(transactions, log, {name: ((LOG,), one.notes) for name, one in named.items()})
        passed = {source.name: source.passed for source in self.sources}
        for name, one in named.items():
            yield from judge_passed(name, one.events, passed)

    def figures(self) -> dict[str, int]:
        """Return how much there was of what."""
        transactions = [transaction for source in self.sources for transaction in source.transactions]
        passed = [one for source in self.sources for one in source.passed]
        outcomes = [one.outcome for one in transactions] + [one.outcome for one in passed]
        heard = sum(isinstance(event, Heard) for one in self.watchers for event in one.events)
        return {
            "published on the log tier": len(transactions),
            "published on the NOTIFY tier": len(passed),
            **{outcome.value: outcomes.count(outcome) for outcome in Outcome},
            "delivered from the log": sum(isinstance(note, Delivered) for one in self.watchers for note in one.notes),
            "of these replayed": sum(
                note.replayed for one in self.watchers for note in one.notes if isinstance(note, Delivered)
            ),
            "delivered from NOTIFY": heard,
            "not delivered": len(passed) * len(self.watchers) - heard,
            "gaps": sum(one.gaps() for one in self.watchers),
            "disconnected": sum(len(one.cuts) for one in self.members),
        }

    def close(self) -> None:
        self._stopping.set()
        for member in self.members:
            member.close()
        for source in self.sources:
            if source.ident is not None:
                source.join(PATIENCE)


@contextmanager
def load_on(server: ServerProcess, url: str, pause: float) -> Iterator[Load]:
    """Run a :class:`Load` on ``server``, whose database has the address ``url``."""
    made = Load(server, url, pause)
    try:
        made.start()
        yield made
    finally:
        made.close()
