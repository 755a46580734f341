"""`python bench/ephemeral.py`: people who move their cursors, by ephemeral messages and by NOTIFY.

50 people on one channel, on one node or half of them on each of two, move 60 times a second each. The moves are
published with `ephemeral: true`, then with `durable: false`. A move has the time at which it was sent, which a few
clients read; the others only count.
"""

import argparse
import contextlib
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

# `python bench/ephemeral.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import database, machine  # noqa: E402
from bench.servers import Server, ServerProcess  # noqa: E402
from bench.swarm import Client, Swarm  # noqa: E402
from bench.trial import percentiles  # noqa: E402
from bench.wire import PONG, client_frame  # noqa: E402

CHANNEL = "map"
#: Channels of NOTIFY: that of the messages, and that on which nodes send each other ephemeral messages.
LISTENED = (CHANNEL, "socketio_pg_nodes")
KINDS = ("ephemeral", "notify")
#: Seconds before anything is measured, and after the last move.
WARM_SECONDS, REST_SECONDS = 1.5, 1.0
#: Clients that read the times of moves.
READERS = 4
_TIME = re.compile(rb'"t":(\d+)')
_MESSAGE = b'"payload":'


@dataclass
class Counted:
    """What the clients have received."""

    messages: int = 0
    size: int = 0
    latencies: list[int] = field(default_factory=list)


class People:
    """Clients that all subscribe to the channel and move, on any number of nodes."""

    def __init__(self, servers: list[Server], count: int, rate: float, kind: str) -> None:
        self._swarms = [Swarm(server.port) for server in servers]
        for number, swarm in enumerate(self._swarms):
            swarm.connect([(CHANNEL,)] * (count // len(servers) + (number < count % len(servers))), 60)
        self._clients: list[Client] = [client for swarm in self._swarms for client in swarm.clients]
        self._rate = rate
        self._option = '"ephemeral":true' if kind == "ephemeral" else '"durable":false'
        self._epoll = select.epoll()
        self._by_fd = {client.socket.fileno(): client for client in self._clients}
        # From each node: the first clients are those of the first node.
        step = max(1, len(self._clients) // READERS)
        self._readers = {client.socket.fileno() for client in self._clients[::step]}
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self.sent = 0

    def move(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> Counted:
        """Let everybody move, and read. Calls ``meanwhile()`` a few times a second."""
        counted = Counted()
        called = time.monotonic()
        began = time.monotonic()
        pause = 1 / (self._rate * len(self._clients))
        number = 0
        while (now := time.monotonic()) < began + seconds:
            # In turn, so that the moves of all are spread evenly. A generator that is late catches up.
            while began + number * pause <= now:
                self._send(self._clients[number % len(self._clients)], number)
                number += 1
            if now - called > 0.2:
                called = now
                meanwhile()
            self._read(min(began + number * pause - time.monotonic(), 0.01), counted)
        self.sent += number
        return counted

    def rest(self, seconds: float) -> Counted:
        """Read without moving."""
        counted = Counted()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._read(left, counted)
        return counted

    def _send(self, client: Client, number: int) -> None:
        payload = {"x": number % 1000, "y": number % 777, "t": time.monotonic_ns()}
        text = json.dumps(payload, separators=(",", ":"))
        client.send(client_frame(f'42["publish",{{"channel":"{CHANNEL}","payload":{text},{self._option}}}]'.encode()))

    def _read(self, seconds: float, counted: Counted) -> None:
        for fd, _ in self._epoll.poll(max(0.0, seconds)):
            try:
                data = self._by_fd[fd].socket.recv(262_144)
            except BlockingIOError:
                continue
            if not data:
                raise RuntimeError("the server has closed a connection")
            if data.endswith(b"\x81\x012"):
                self._by_fd[fd].send(PONG)
            counted.size += len(data)
            counted.messages += data.count(_MESSAGE)
            if fd in self._readers:
                now = time.monotonic_ns()
                counted.latencies += [now - int(sent) for sent in _TIME.findall(data)]

    def close(self) -> None:
        for swarm in self._swarms:
            swarm.close()
        for client in self._clients:
            client.socket.close()


class Postgres:
    """What PostgreSQL does meanwhile: its CPU time, and the texts that it carries."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        cursor = self._connection.cursor()
        for channel in LISTENED:
            cursor.execute(f"LISTEN {channel}")
        cursor.execute("SHOW data_directory")
        #: The bytes of the notifications.
        self.size = 0
        [folder] = cursor.fetchone() or ()
        self._pid = int((Path(folder) / "postmaster.pid").read_text().splitlines()[0])

    def cpu_seconds(self) -> float:
        return sum(map(machine.process_cpu, (self._pid, *machine.children(self._pid))))

    def count(self) -> None:
        """Count the notifications that have arrived. Too many that wait would fill the connection's buffer."""
        while select.select([self._connection], [], [], 0)[0]:
            self._connection.poll()
        self.size += sum(len(one.payload.encode()) for one in self._connection.notifies)
        self._connection.notifies.clear()

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def nodes(count: int, url: str, library: str, cores: machine.Cores) -> Iterator[list[Server]]:
    """Run one node on a core of its own, or two that share all cores with everything else."""
    settings = {"AUTH": "off", "MAX_EVENTS_PER_SECOND": "0", "TEST_PAGE": "0", "CLUSTER_KEY": "of this benchmark" * 3}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                contextlib.closing(ServerProcess(library, url, cores.server if count == 1 else None, **settings))
            ).start()
            for _ in range(count)
        ]


def measure(options: argparse.Namespace, kind: str, servers: list[Server], postgres: Postgres) -> dict[str, float]:
    """Return the figures of one kind, per second."""
    people = People(servers, options.people, options.rate, kind)
    with contextlib.closing(people):
        people.move(WARM_SECONDS)
        postgres.count()
        people.sent = postgres.size = 0
        began = time.monotonic()
        cpu, database_cpu = sum(server.cpu_seconds() for server in servers), postgres.cpu_seconds()
        counted = people.move(options.seconds, postgres.count)
        seconds = time.monotonic() - began
        postgres.count()
        found = {
            "server_cpu": (sum(server.cpu_seconds() for server in servers) - cpu) / seconds,
            "database_cpu": (postgres.cpu_seconds() - database_cpu) / seconds,
            "sent": people.sent / seconds,
            "received": counted.messages / seconds,
            "received_mb": counted.size / seconds / 1e6,
            "database_kb": postgres.size / seconds / 1e3,
            **percentiles(counted.latencies),
        }
        # What is still on its way, or waits in the server, must not count for the next kind.
        while people.rest(REST_SECONDS).messages:
            pass
    return found


ROWS = {
    "server_cpu": "CPU of the servers, s/s", "database_cpu": "CPU of PostgreSQL, s/s", "sent": "moves sent, 1/s",
    "received": "events received, 1/s", "received_mb": "bytes received, MB/s",
    "database_kb": "texts in the database, KB/s", "p50_ms": "latency p50, ms", "p99_ms": "latency p99, ms",
}  # fmt: skip


def table(found: dict[tuple[int, str], dict[str, float]]) -> str:
    columns = list(found)
    lines = [f"{'':30}" + "".join(f"{f'{count} node, {kind}':>22}" for count, kind in columns)]
    for name, label in ROWS.items():
        cells = (f"{found[column].get(name, float('nan')):.3f}" for column in columns)
        lines.append(f"{label:30}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--rate", type=float, default=60.0, help="moves of each a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--server", choices=("ours", "gevent"), default="ours")
    parser.add_argument("--log", type=Path, help="append the figures to this file, as JSON")
    options = parser.parse_args()
    cores = machine.choose_cores()
    found: dict[tuple[int, str], dict[str, float]] = {}
    with database.running(cores) as (url, version):
        if len(options.nodes) == 1 and options.nodes[0] == 1:
            os.sched_setaffinity(0, {cores.load})
        with contextlib.closing(Postgres(url)) as postgres:
            for count in options.nodes:
                with nodes(count, url, options.server, cores) as servers:
                    for kind in options.kinds:
                        found[count, kind] = measure(options, kind, servers, postgres)
    print(f"{options.people} people, {options.rate:g} moves/s each, PostgreSQL {version}, {options.server}")
    print(table(found))
    if options.log:
        with options.log.open("a") as log:
            log.write(json.dumps([[*column, figures] for column, figures in found.items()]) + "\n")


if __name__ == "__main__":
    main()
