"""Durable consumers that get messages from a server, and keep their positions in another database."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from socketio_pg.consumer import Message, MissedMessagesError
from socketio_pg.consumer.server import ServerConsumer
from socketio_pg.subscriber import Gap, Subscriber
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.replay_clients import ProxiedLog


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[ProxiedLog]:
    made = ProxiedLog(newest_pg, "server_consumer")
    made.install()
    yield made
    made.close()


@pytest.fixture(scope="module")
def own(newest_pg: Cluster) -> Iterator[str]:
    """The address of the application's own database."""
    newest_pg.sql("DROP DATABASE IF EXISTS own WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE own")
    with psycopg.connect(newest_pg.url("own")) as connection:
        connection.execute("CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, channel text, number int)")
    yield newest_pg.url("own")
    newest_pg.sql("DROP DATABASE own WITH (FORCE)")


class Program:
    """A consumer with a connection to the server, in a thread."""

    def __init__(
        self, log: ProxiedLog, own: str, channel: str, fails: dict[int, int] | None = None, **options: Any
    ) -> None:
        self._subscriber = Subscriber(log.address, reconnection_delay=0.1, reconnection_delay_max=0.5)
        self._consumer = ServerConsumer(
            self._subscriber, lambda: psycopg.connect(own), channel, [channel], retry_delay=0.01, **options
        )
        #: Number of a message → how often it still fails.
        self._fails = fails or {}
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._consumer.run(self._handle)
        except Exception as error:
            self.error = error

    def _handle(self, connection: Any, message: Message) -> None:
        number = message["payload"][0]
        insert(connection, message["channel"], number)
        if self._fails.get(number, 0) > 0:
            self._fails[number] -= 1
            raise LookupError(f"no {number}")

    def wait_error(self) -> Exception:
        self._thread.join(PATIENCE)
        assert self.error is not None
        return self.error

    def close(self) -> None:
        self._consumer.stop()
        self._thread.join(PATIENCE)
        self._consumer.close()
        self._subscriber.close()


def insert(connection: Any, channel: str, number: int) -> None:
    connection.execute("INSERT INTO effect (channel, number) VALUES (%s, %s)", (channel, number))


def effects(own: str, channel: str) -> list[int]:
    with psycopg.connect(own) as connection:
        rows = connection.execute("SELECT number FROM effect WHERE channel = %s ORDER BY id", (channel,))
        return [number for (number,) in rows]


def registered(own: str, channel: str) -> bool:
    with psycopg.connect(own) as connection:
        if connection.execute("SELECT to_regclass('socketio_pg_position')").fetchone() == (None,):
            return False
        return bool(connection.execute("SELECT FROM socketio_pg_position WHERE channel = %s", (channel,)).fetchall())


def wait_effects(own: str, channel: str, expected: list[int]) -> None:
    until(lambda: len(effects(own, channel)) >= len(expected), "all messages have effects")
    assert effects(own, channel) == expected


def test_each_message_has_one_effect_while_everything_breaks(
    log: ProxiedLog, own: str, channel: str, newest_pg: Cluster
) -> None:
    with contextlib.closing(Program(log, own, channel, {3: 2})):
        until(lambda: registered(own, channel), "it has its first position")
        # The second process of this name gets the same messages.
        with contextlib.closing(Program(log, own, channel)):
            log.publish(channel, 1, 5)
            wait_effects(own, channel, [1, 2, 3, 4, 5])
            log.proxy.refuse()
            log.publish(channel, 6, 10)
            newest_pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'own'")
            log.proxy.restore()
            wait_effects(own, channel, list(range(1, 11)))
    log.publish(channel, 11, 12)
    with contextlib.closing(Program(log, own, channel)):
        wait_effects(own, channel, list(range(1, 13)))


def test_failures_and_gaps_end_the_run_or_are_handled_in_the_transaction(
    log: ProxiedLog, own: str, channel: str
) -> None:
    with contextlib.closing(Program(log, own, channel, {1: 99}, attempts=2)) as program:
        until(lambda: registered(own, channel), "it has its first position")
        log.publish(channel, 1, 2)
        assert str(program.wait_error()) == "no 1"
    assert effects(own, channel) == []

    def bury(connection: Any, message: Message, error: Exception) -> None:
        insert(connection, channel, -message["payload"][0])

    with contextlib.closing(Program(log, own, channel, {1: 99}, attempts=2, on_failure=bury)):
        wait_effects(own, channel, [-1, 2])
    log.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
    log.sql("NOTIFY socketio_pg, 'epoch'")
    log.settle()
    with contextlib.closing(Program(log, own, channel)) as program:
        error = program.wait_error()
        assert isinstance(error, MissedMessagesError)
        assert error.gap["reason"] == "epoch_changed"
    gaps: list[Gap] = []

    def on_gap(connection: Any, gap: Gap) -> None:
        gaps.append(gap)

    with contextlib.closing(Program(log, own, channel, on_gap=on_gap)):
        until(lambda: gaps, "the gap is handled")
        log.publish(channel, 7, 7)
        until(lambda: effects(own, channel)[-1:] == [7], "it goes on")
