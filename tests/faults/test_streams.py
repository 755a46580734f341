"""Streams under faults: two nodes of two workers are killed and drained, and the database loses all connections."""

import contextlib
import http.client
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.sse import EventSource, Parser, Stream

CHANNELS = ("streams-a", "streams-b", "streams-c")


@pytest.fixture
def nodes(newest_pg: Cluster) -> Iterator[tuple[Log, ServerProcess, ServerProcess]]:
    with contextlib.ExitStack() as stack:
        log = Log(newest_pg, "faults_streams", "-w", "2", AUTO_INIT="1")
        stack.callback(log.server.close)
        wait_installed(log)
        other = ServerProcess(log.url, "-w", "2", DRAIN_SECONDS="0.2")
        stack.callback(other.close)
        yield log, log.server, other


class Writer:
    """Publishes numbers to all channels in turn, in transactions of one to five messages, until it is closed."""

    def __init__(self, log: Log) -> None:
        self.count = 0
        self._log = log
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for size in itertools.cycle((1, 5, 2)):
            if self._closed.wait(0.01):
                return
            # In one transaction, in the order of the numbers.
            self._log.sql(
                "SELECT socketio_pg.publish((%s::text[])[n %% 3 + 1], jsonb_build_object('n', n)) "
                "FROM generate_series(%s, %s) AS n",
                list(CHANNELS), self.count, self.count + size - 1,
            )  # fmt: skip
            self.count += size

    def wait_more(self, clients: list[EventSource]) -> None:
        """Wait until all clients have got something that was published after this call."""
        after = self.count
        for client in clients:
            client.wait(lambda client: any(found["payload"]["n"] > after for found in client.messages[-50:]))

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


def test_nothing_is_missed_and_nothing_comes_twice(nodes: tuple[Log, ServerProcess, ServerProcess]) -> None:
    log, one, other = nodes
    urls = (one.url, other.url)
    wanted: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (CHANNELS, {}), (CHANNELS[:1], {}), (CHANNELS[1:], {"filter": {"n": {"gte": 0}}}),
        (CHANNELS, {"since": "earliest"}),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(EventSource(urls[number % 2 :] + urls[: number % 2], *channels, **query))
            for number, (channels, query) in enumerate(wanted)
        ]
        for client in clients:
            client.wait(lambda client: client.events)
        writer = Writer(log)
        try:
            writer.wait_more(clients)
            one.kill()
            writer.wait_more(clients)
            one.start()
            log.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'socketio_pg%'")
            writer.wait_more(clients)
            os.kill(other.worker_pids()[0], signal.SIGKILL)
            writer.wait_more(clients)
            other.restart()
            writer.wait_more(clients)
        finally:
            writer.close()
        for client, (channels, _) in zip(clients, wanted, strict=True):
            due = [number for number in range(writer.count) if CHANNELS[number % 3] in channels]
            client.wait_messages(len(due))
            assert client.refused is None
            assert [found["payload"]["n"] for found in client.messages] == due
            positions = [found["position"] for found in client.messages]
            assert positions == sorted(set(positions))
        assert sum(client.connections for client in clients) > len(clients)


def test_a_drain_ends_streams_and_tells_new_ones_when_to_come_back(newest_pg: Cluster) -> None:
    """Never with a 503, at which an EventSource would stop for good."""
    with contextlib.ExitStack() as stack:
        server = ServerProcess(newest_pg.url(), DRAIN_SECONDS="2")
        stack.callback(server.close)
        streams = [stack.enter_context(Stream(server.url, f"drained-{number}")) for number in range(20)]
        for stream in streams:
            assert stream.next().name == "subscribed"
        # gunicorn accepts no new connection during the drain, but this one is open already.
        waiting = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        stack.callback(waiting.close)
        waiting.request("GET", "/healthz")
        waiting.getresponse().read()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "draining 20 clients" in server.log, "the server drains")
        waiting.request("GET", "/api/channels/foo/stream", headers={"Last-Event-ID": "e:1"})
        answer = waiting.getresponse()
        parser = Parser()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
        assert list(parser.feed(answer.read())) == []
        assert 3_000 <= (parser.retry or 0) <= 9_000
        for stream in streams:
            stream.wait_end()
            assert stream.parser.retry is not None
            assert [event.name for event in stream.events] == ["subscribed"]
        server.process.wait(PATIENCE)
        assert "Traceback" not in server.log
