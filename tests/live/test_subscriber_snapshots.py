"""Snapshots in the Python Subscriber: `load`, `live`, and several handlers of one channel."""

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from socketio_pg.subscriber.subscriber import Gap, Message, Subscriber
from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_snapshots", AUTO_INIT="1")
    wait_installed(made)
    made.sql("CREATE TABLE item (channel text, n int)")
    yield made
    made.server.close()


@pytest.fixture
def subscriber(log: Log) -> Iterator[Subscriber]:
    with Subscriber(
        log.server.url, reconnection_delay=0.05, reconnection_delay_max=0.2, retry_delay=0.1, retry_delay_max=0.1
    ) as made:
        yield made


def cut(subscriber: Subscriber) -> None:
    """Cut the connection, as a network does."""
    connection = subscriber._link.connection
    if connection is not None:
        connection._client.eio.ws.sock.shutdown(socket.SHUT_RDWR)


def write(log: Log, channel: str, *numbers: int) -> None:
    log.sql(
        "WITH added AS (INSERT INTO item SELECT %s, unnest(%s) RETURNING channel, n)"
        " SELECT socketio_pg.publish(channel, to_jsonb(n)) FROM added",
        channel, list(numbers),
    )  # fmt: skip


class Reader:
    """Loads the rows of a channel; collects them, and the messages, of the last snapshot."""

    def __init__(self, log: Log, channel: str) -> None:
        self._log, self._channel = log, channel
        self.loads = 0
        self.events: queue.Queue[Any] = queue.Queue()
        self.failing = 0

    def load(self) -> tuple[list[int], str]:
        self.loads += 1
        if self.failing:
            self.failing -= 1
            raise RuntimeError("not now")
        [(rows, token)] = self._log.sql(
            "SELECT coalesce(array_agg(n), '{}'), (SELECT socketio_pg.snapshot()) FROM item WHERE channel = %s",
            self._channel,
        )
        return rows, token

    def on_rows(self, rows: list[int]) -> None:
        self.events.put(("rows", rows))

    def handle(self, message: Message) -> None:
        self.events.put(("message", message["payload"]))

    def on_live(self, live: object) -> None:
        self.events.put(("live", None))

    def until(self, last: int) -> tuple[list[int], list[int]]:
        """Return the rows and the messages of the last snapshot, up to the message ``last``."""
        rows: list[int] = []
        messages: list[int] = []
        while last not in messages and last not in rows:
            kind, value = self.events.get(timeout=PATIENCE)
            if kind == "rows":
                rows, messages = value, []
            elif kind == "message":
                messages.append(value)
        return rows, messages


def test_rows_and_messages_are_everything_once(log: Log, subscriber: Subscriber, channel: str) -> None:
    """While messages are written, and the connection is cut again and again."""
    total = 300

    def run() -> None:
        for n in range(1, total + 1):
            write(log, channel, n)

    writer = threading.Thread(target=run)
    writer.start()
    readers: list[Reader] = []
    while len(readers) < 5:
        reader = Reader(log, channel)
        with contextlib.suppress(ConnectionError):  # cut just now
            subscriber.subscribe(channel, reader.handle, load=reader.load, on_rows=reader.on_rows)
            readers.append(reader)
            cut(subscriber)
    writer.join()
    for reader in readers:
        rows, messages = reader.until(total)
        assert sorted(rows + messages) == list(range(1, total + 1))
        assert reader.loads == 1


def test_load_is_repeated_when_messages_are_missing(log: Log, subscriber: Subscriber, channel: str) -> None:
    write(log, channel, 1)
    reader = Reader(log, channel)
    gaps: queue.Queue[Gap] = queue.Queue()
    subscription = subscriber.subscribe(
        channel, reader.handle, load=reader.load, on_rows=reader.on_rows, on_live=reader.on_live, on_gap=gaps.put
    )
    assert subscription.live.wait(PATIENCE)
    assert [reader.events.get(timeout=PATIENCE) for _ in range(2)] == [("rows", [1]), ("live", None)]
    write(log, channel, 2)
    assert reader.events.get(timeout=PATIENCE) == ("message", 2)
    reader.failing = 2
    log.sql("TRUNCATE socketio_pg.log")  # a new epoch
    assert reader.events.get(timeout=PATIENCE) == ("rows", [1, 2])
    write(log, channel, 3)
    while (event := reader.events.get(timeout=PATIENCE)) != ("message", 3):
        assert event == ("live", None)
    assert reader.loads == 4
    assert gaps.empty()
    assert subscription.live.wait(PATIENCE)
    assert subscription.position is not None


def test_errors_of_the_first_load_are_raised(log: Log, subscriber: Subscriber, channel: str) -> None:
    reader = Reader(log, channel)
    reader.failing = 1
    with pytest.raises(RuntimeError, match="not now"):
        subscriber.subscribe(channel, reader.handle, load=reader.load)


def test_other_handlers_miss_nothing_that_is_in_the_snapshot(log: Log, subscriber: Subscriber, channel: str) -> None:
    """The snapshot contains messages that have no positions yet: its replay skips them."""
    plain: queue.Queue[Any] = queue.Queue()
    subscriber.subscribe(channel, lambda message: plain.put(message["payload"]))
    write(log, channel, 1)
    assert plain.get(timeout=PATIENCE) == 1
    reader = Reader(log, channel)
    with contextlib.closing(psycopg2.connect(log.url)) as blocking, blocking.cursor() as cursor:
        cursor.execute("SELECT FROM socketio_pg.head FOR UPDATE")  # the relay waits
        write(log, channel, 2, 3)
        subscription = subscriber.subscribe(
            channel, reader.handle, load=reader.load, on_rows=reader.on_rows, on_live=reader.on_live
        )
        assert reader.events.get(timeout=PATIENCE) == ("rows", [1, 2, 3])
        write(log, channel, 4)
        assert subscription.position is None, "no place to continue from"
        blocking.rollback()
    assert [plain.get(timeout=PATIENCE) for _ in range(3)] == [2, 3, 4]
    assert reader.until(4) == ([], [4])
    write(log, channel, 5)
    assert plain.get(timeout=PATIENCE) == 5
    assert reader.until(5) == ([], [5])
    assert subscription.position is not None
