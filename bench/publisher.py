"""Publishes with NOTIFY at a given rate, in a separate process, so that a slow commit does not delay a reader."""

import gc
import json
import multiprocessing
import os
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from socket import create_connection
from typing import Protocol

import psycopg2

PAYLOAD_BYTES = 100
MARKER = b"^"


@dataclass(frozen=True)
class Job:
    """Commits at `rate`/s, `per_commit` messages each, until `messages` are sent, over all channels in turn."""

    channels: tuple[str, ...]
    messages: int
    rate: float
    per_commit: int = 1
    jitter: bool = False


@dataclass(frozen=True)
class Sent:
    """The result of a job. `started` is CLOCK_MONOTONIC; `latest` is the delay of the latest commit, in seconds."""

    messages: int
    started: float
    seconds: float
    latest: float


class Source(Protocol):
    """A source of messages: PostgreSQL, or the raw server's loop."""

    def start(self, job: Job) -> None: ...

    def result(self, timeout: float) -> Sent: ...

    def close(self) -> None: ...


def payload(number: int, size: int = PAYLOAD_BYTES) -> str:
    """Return `size` bytes of JSON with the send time, a number to check the order, and one MARKER to count."""
    head = f'{{"n":{number},"t":{time.monotonic_ns()},"m":"^","p":"'
    return head + "x" * (size - len(head) - 2) + '"}'


class Publisher:
    """A process with one database connection in autocommit mode."""

    def __init__(self, database_url: str, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, database_url, core), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(30) or self._connection.recv() != "ready":
            raise TimeoutError("the publisher did not connect")

    def start(self, job: Job) -> None:
        self._connection.send(job)

    def result(self, timeout: float) -> Sent:
        if not self._connection.poll(timeout):
            raise TimeoutError("the publisher fell behind and did not finish")
        sent = self._connection.recv()
        assert isinstance(sent, Sent)
        return sent

    def close(self) -> None:
        self._connection.close()
        self._process.join(2)
        self._process.kill()


class RawSource:
    """The control connection of raw_server.py, as a `Source`."""

    def __init__(self, port: int) -> None:
        self._socket = create_connection(("127.0.0.1", port), timeout=30)
        self._lines = self._socket.makefile("r")
        self.clients = 0

    def expect(self, clients: int) -> None:
        """Wait until the server has accepted all clients, so that no accept() happens during a measurement."""
        self.clients = clients
        self.start(Job(("live",), 0, 1.0))
        self._lines.readline()

    def start(self, job: Job) -> None:
        self._socket.sendall(json.dumps({**asdict(job), "clients": self.clients}).encode() + b"\n")

    def result(self, timeout: float) -> Sent:
        self._socket.settimeout(timeout)
        return Sent(**json.loads(self._lines.readline()))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def _serve(pipe: Connection, database_url: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    cursor = connection.cursor()
    numbers: Counter[str] = Counter()
    gc.disable()
    pipe.send("ready")
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        started = time.monotonic()
        latest = 0.0
        sent = 0
        for commit in range(0, job.messages, job.per_commit):
            # Jitter keeps a low rate from synchronising with a timer of the server.
            due = started + (commit / job.per_commit + (random.random() if job.jitter else 0.0)) / job.rate
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            latest = max(latest, -wait)
            names: list[str] = []
            texts: list[str] = []
            for index in range(commit, min(commit + job.per_commit, job.messages)):
                channel = job.channels[index % len(job.channels)]
                names.append(channel)
                texts.append(payload(numbers[channel]))
                numbers[channel] += 1
            if len(names) == 1:
                cursor.execute("SELECT pg_notify(%s, %s)", (names[0], texts[0]))
            else:
                cursor.execute("SELECT count(pg_notify(c, p)) FROM unnest(%s, %s) AS m (c, p)", (names, texts))
            sent += len(names)
        pipe.send(Sent(sent, started, time.monotonic() - started, latest))
