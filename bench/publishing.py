"""Measures publishing by clients through their sockets, with acknowledgements; and a plain loop of commits."""

import json
import time

import psycopg2

from bench.publisher import payload
from bench.swarm import Client
from bench.trial import Row, Trial, percentiles
from bench.wire import FrameReader, client_frame

PUBLISHERS = 50
PIPELINES = (1, 20)
DRAIN_SECONDS = 15.0


class PublishingClient:
    """Keeps `pipeline` publishes in flight and measures the time until each acknowledgement."""

    def __init__(self, client: Client, pipeline: int) -> None:
        self.latencies: list[int] = []
        self.acknowledged = 0
        self.refused: list[str] = []
        self.going = True
        self._client = client
        self._pipeline = pipeline
        self._sent: dict[bytes, int] = {}
        self._frames = FrameReader()
        self._number = 0

    @property
    def in_flight(self) -> int:
        return len(self._sent)

    def begin(self) -> None:
        self._client.send(b"".join(self._publish() for _ in range(self._pipeline)))

    def feed(self, data: bytes, now: int) -> None:
        again: list[bytes] = []
        for text in self._frames.feed(data):
            if not text.startswith(b"43"):
                continue
            number, _, answer = text[2:].partition(b"[")
            self.latencies.append(now - self._sent.pop(number))
            self.acknowledged += 1
            if b'"ok":true' not in answer:
                self.refused.append(answer.decode())
            if self.going:
                again.append(self._publish())
        if again:
            self._client.send(b"".join(again))

    def _publish(self) -> bytes:
        number = str(self._number).encode()
        self._number += 1
        # Without the marker: the subscriber counts messages by parsing them.
        text = payload(self._number).replace("^", "-")
        self._sent[number] = time.monotonic_ns()
        return client_frame(b'42%b["publish",{"channel":"published","payload":%b}]' % (number, text.encode()))


def commit_each(trial: Trial) -> list[Row]:
    """Measure a baseline: one connection commits each NOTIFY, as fast as it can, without a server or listener.

    A commit with nothing but a NOTIFY writes no WAL, so it does not wait for the disk, regardless of
    `synchronous_commit`.
    """
    connection = psycopg2.connect(trial.database_url)
    connection.autocommit = True
    cursor = connection.cursor()
    latencies: list[int] = []
    started = time.monotonic()
    while time.monotonic() - started < trial.size.seconds:
        before = time.monotonic_ns()
        cursor.execute("SELECT pg_notify('published', %s)", (payload(len(latencies)),))
        latencies.append(time.monotonic_ns() - before)
    rate = len(latencies) / (time.monotonic() - started)
    connection.close()
    return [Row("one connection, one commit each", {"acks_per_s": rate, **percentiles(latencies)})]


def publish(trial: Trial) -> list[Row]:
    """Publish from 50 clients through their sockets, with acknowledgements; another client must receive everything."""
    if trial.server.name == "raw":
        return commit_each(trial)
    trial.swarm.connect([()] * PUBLISHERS + [("published",)], 30)
    trial.swarm.pump(None, 0.5)
    rows: list[Row] = []
    for pipeline in PIPELINES:
        arrived: list[int] = []
        frames = FrameReader()

        def count(data: bytes, now: int, arrived: list[int] = arrived, frames: FrameReader = frames) -> None:
            for text in frames.feed(data):
                if text.startswith(b'42["event",'):
                    arrived.append(json.loads(text[2:])[1]["payload"]["n"])

        publishers = [PublishingClient(client, pipeline) for client in trial.swarm.clients[:PUBLISHERS]]
        for client, publisher in zip(trial.swarm.clients, publishers, strict=False):
            trial.swarm.hook(client, publisher.feed)
        trial.swarm.hook(trial.swarm.clients[PUBLISHERS], count)
        stop = trial.meter()
        for publisher in publishers:
            publisher.begin()
        trial.swarm.pump(None, trial.size.seconds)
        spent = stop()
        done = sum(publisher.acknowledged for publisher in publishers)
        for publisher in publishers:
            publisher.going = False
        deadline = time.monotonic() + DRAIN_SECONDS
        while any(publisher.in_flight for publisher in publishers) and time.monotonic() < deadline:
            trial.swarm.pump(None, 0.1)
        trial.swarm.pump(None, 0.5)
        row = spent.row(
            f"{PUBLISHERS} clients, {pipeline} in flight each",
            acks_per_s=done / spent.wall,
            acks_per_cpu_s=done / spent.server,
            **percentiles([latency for publisher in publishers for latency in publisher.latencies]),
        )
        refused = [answer for publisher in publishers for answer in publisher.refused]
        if refused:
            row.flags.append(f"{len(refused)} refused, first {refused[0]}")
        published = sum(publisher.acknowledged for publisher in publishers)
        if len(arrived) != published:
            row.flags.append(f"{published} acknowledged, {len(arrived)} arrived")
        rows.append(row)
    return rows
