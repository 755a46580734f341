"""The operator moves a server from one green-thread library to the other while clients are connected."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster
from tests.support.replay_clients import CLIENTS, Client


class Received:
    """What a client got on its channel, in order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.numbers: list[int] = []
        self.positions: list[int] = []

    def read_until(self, number: int) -> None:
        while not self.numbers or self.numbers[-1] < number:
            message: dict[str, Any] = self._client.next("message", "one")[0]
            self.numbers.append(message["payload"][0])
            self.positions.append(message["position"])


class Publisher:
    """Publishes the numbers from 1 in SQL until it is stopped."""

    def __init__(self, log: Log, channel: str) -> None:
        self._log, self._channel = log, channel
        self.last = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.02):
            self._log.publish(self._channel, self.last + 1, self.last + 1)
            self.last += 1

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "libraries", AUTO_INIT="1", GREEN="eventlet")
    wait_installed(made)
    yield made
    made.server.close()


def test_clients_lose_nothing_when_the_server_moves_to_the_other_library_and_back(log: Log, channel: str) -> None:
    """On the same port. Both clients come back on their own, and get each position of the log once."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(kind(log.server.url))) for kind in CLIENTS.values()]
        for client in clients:
            client.subscribe("one", channel)
        publisher = Publisher(log, channel)
        stack.callback(publisher.stop)
        received = [Received(client) for client in clients]
        for library in ("gevent", "eventlet"):
            for one in received:
                one.read_until(publisher.last + 1)
            log.server.stop()
            log.server.start(GREEN=library)
            assert f"Using worker: {library}" in log.server.log
        for one in received:
            one.read_until(publisher.last + 1)
        publisher.stop()
        for one in received:
            one.read_until(publisher.last)
        rows = log.sql("SELECT position FROM socketio_pg.log WHERE channel = %s ORDER BY position", channel)
        for one in received:
            assert one.numbers == list(range(1, publisher.last + 1))
            assert one.positions == [position for (position,) in rows]
