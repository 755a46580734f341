"""Runs many concurrent writers with pgbench, which needs a fifth of Python's CPU time, and reads its figures."""

import re
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass

from bench.log_database import CHANNEL, Cluster, connect, head, one, payload, published, relay_backend
from bench.machine import busy_ticks, process_cpu
from bench.reader import Subscriber

SAMPLE_SECONDS = 0.25

BUSINESS_TABLE = """
CREATE TABLE IF NOT EXISTS purchase (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer integer NOT NULL,
    total numeric(12, 2) NOT NULL,
    note text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""
_NUMBER = "\\set n random(100000000, 999999999)\n"
_WRITE = "INSERT INTO purchase (customer, total, note) VALUES (:n % 10000, :n / 1000.0, 'bench');\n"
TRANSACTIONS = {
    "plain": f"{_NUMBER}BEGIN;\n{_WRITE}COMMIT;\n",
    "log": f"{_NUMBER}BEGIN;\n{_WRITE}SELECT socketio_pg.publish('{CHANNEL}', '{payload(':n')}');\nCOMMIT;\n",
    "notify": f"{_NUMBER}BEGIN;\n{_WRITE}SELECT pg_notify('{CHANNEL}', '{payload(':n')}');\nCOMMIT;\n",
}


def publishing(messages: int) -> str:
    """Return the script of a transaction that only publishes this many messages."""
    publish = f"SELECT socketio_pg.publish('{CHANNEL}', '{payload(':n')}')"
    return _NUMBER + (f"{publish};\n" if messages == 1 else f"{publish} FROM generate_series(1, {messages});\n")


@dataclass(frozen=True)
class Written:
    transactions: int
    seconds: float
    latency_ms: float

    @property
    def tps(self) -> float:
        return self.transactions / self.seconds


class Writers:
    """A running pgbench with `clients` connections, as fast as possible or at `rate` transactions/s in total."""

    def __init__(
        self, cluster: Cluster, url: str, script: str, clients: int, seconds: float, rate: float | None = None
    ) -> None:
        self._script = tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".sql")  # noqa: SIM115 - closed in wait()
        self._script.write(script)
        self._script.flush()
        pace = [] if rate is None else ["-R", f"{rate:g}"]
        self._seconds = seconds
        self._process = subprocess.Popen(
            [
                cluster.program_dir / "pgbench",
                *("-n", "-c", str(clients), "-j", "2", "-T", f"{seconds:.0f}"),
                *pace,
                *("-f", self._script.name, url),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> Written:
        out, error = self._process.communicate(timeout=self._seconds + 60)
        self._script.close()
        if self._process.returncode:
            raise RuntimeError(f"pgbench failed: {error[-1000:]}")
        transactions = int(_figure(r"number of transactions actually processed: (\d+)", out))
        return Written(
            transactions,
            # Excludes the time for connecting.
            transactions / _figure(r"tps = ([\d.]+) \(without", out),
            _figure(r"latency average = ([\d.]+) ms", out),
        )


def _figure(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern} in the output of pgbench: {text}")
    return float(found[1])


class Flushes:
    """Counts the WAL flushes of the cluster, and their time, from its creation on."""

    def __init__(self, url: str) -> None:
        self._connection = connect(url)
        self._before = self._read()

    def since_start(self, transactions: int) -> dict[str, float]:
        """Return the mean time of a flush, and the flushes for each of this many transactions of pgbench."""
        # A session reports its figures when it ends.
        while one(self._connection, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'"):
            time.sleep(0.02)
        flushes, ms = (now - before for now, before in zip(self._read(), self._before, strict=True))
        return {"flush_ms": ms / max(1, flushes), "flushes_each": flushes / transactions}

    def _read(self) -> tuple[float, float]:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT sum(fsyncs)::float8, sum(fsync_time)::float8 FROM pg_stat_io WHERE object = 'wal'")
            flushes, ms = cursor.fetchone()
        return flushes, ms

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Sample:
    """At `t` seconds: messages without a position yet, and messages with one that the subscriber has not received."""

    t: float
    outbox: int
    position: int
    in_flight: int


class Watch:
    """Samples the backlog and the CPU use in a thread.

    The backlog is the outbox's sequence minus the newest position: exact when no transaction is open, and O(1).
    Counting the outbox would scan its dead rows.
    """

    def __init__(self, url: str, node: int, subscriber: Subscriber) -> None:
        self.samples: list[Sample] = []
        self._node = node
        self._subscriber = subscriber
        self._connection = connect(url)
        self._relay = relay_backend(self._connection)
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._before = (process_cpu(node), process_cpu(self._relay), *busy_ticks())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def backlog(self) -> Sample:
        position = head(self._connection)
        waiting = published(self._connection) - position
        return Sample(time.monotonic() - self._began, waiting, position, position - self._subscriber.position)

    def pause(self) -> dict[str, float]:
        """Stop sampling. Return CPU use as shares of the time (1 is one core), and the largest backlog."""
        self._ended.set()
        self._thread.join()
        seconds = time.monotonic() - self._began
        node, relay, busy, ticks = (process_cpu(self._node), process_cpu(self._relay), *busy_ticks())
        return {
            "node_busy": (node - self._before[0]) / seconds,
            "relay_busy": (relay - self._before[1]) / seconds,
            "machine_busy": (busy - self._before[2]) / max(1, ticks - self._before[3]),
            "backlog_max": max(sample.outbox + sample.in_flight for sample in self.samples),
        }

    def drain(self, seconds: float) -> float:
        """Wait until the outbox is empty and the subscriber has everything. Return the seconds. Raises TimeoutError."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            sample = self.backlog()
            if sample.outbox <= 0 and sample.in_flight <= 0:
                return time.monotonic() - began
            time.sleep(0.005)
        raise TimeoutError(f"after {seconds:.0f} s there is still a backlog: {sample}")

    def outbox_rows(self) -> int:
        return int(one(self._connection, "SELECT count(*) FROM socketio_pg.outbox"))

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.samples.append(self.backlog())


def business_table(url: str) -> None:
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(BUSINESS_TABLE)


def series(samples: list[Sample]) -> list[list[float]]:
    """Return [t, outbox, position, in flight] for the JSON."""
    return [[round(sample.t, 2), sample.outbox, sample.position, sample.in_flight] for sample in samples]
