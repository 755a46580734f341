"""`python bench/nodes.py`: measures the cost of additional listening nodes for the database, relative to one node."""

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import socketio

# `python bench/nodes.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import log_database, machine  # noqa: E402
from bench.log_database import CHANNEL, PAYLOAD_BYTES, Cluster, connect, head, one, payload, relay_backend  # noqa: E402
from bench.servers import ServerProcess  # noqa: E402
from bench.writers import Writers  # noqa: E402

NODES = (1, 5, 10, 25, 50)
WRITERS = 16
NOTIFY = f"\\set n random(100000000, 999999999)\nSELECT pg_notify('{CHANNEL}', '{payload(':n')}');\n"
#: Size of a notification on CHANNEL on the wire: type, length, process id, two zero-terminated strings.
NOTIFICATION_BYTES = 1 + 4 + 4 + len(CHANNEL) + 1 + PAYLOAD_BYTES + 1
PATIENCE = 120.0


class Sessions:
    """Sessions that listen like nodes and discard all notifications, so that only PostgreSQL's work is measured.

    One thread reads for all sessions.
    """

    def __init__(self, url: str, number: int, channel: str) -> None:
        self._connections: list[Any] = []
        self._poll = select.poll()
        #: Received bytes by descriptor.
        self.read: dict[int, int] = {}
        for _ in range(number):
            connection = connect(url)
            connection.cursor().execute(f"LISTEN {channel}")
            self._connections.append(connection)
            os.set_blocking(connection.fileno(), False)
            self._poll.register(connection.fileno(), select.POLLIN)
            self.read[connection.fileno()] = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            for descriptor, _ in self._poll.poll(100):
                data = os.read(descriptor, 1 << 20)
                if not data:
                    self._poll.unregister(descriptor)
                self.read[descriptor] += len(data)

    def wait(self, size: int) -> None:
        """Wait until each session has received ``size`` bytes."""
        deadline = time.monotonic() + PATIENCE
        while min(self.read.values(), default=size) < size:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{min(self.read.values())} of {size} bytes")
            time.sleep(0.005)

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        for connection in self._connections:
            connection.close()


def notify(cluster: Cluster, url: str, number: int, seconds: float) -> float:
    """Return commits/s, each with a NOTIFY of 100 bytes that ``number`` sessions receive."""
    with closing(Sessions(url, number, CHANNEL)) as sessions:
        written = Writers(cluster, url, NOTIFY, WRITERS, seconds).wait()
        ended = time.monotonic()
        sessions.wait(written.transactions * NOTIFICATION_BYTES)
        # Includes the time for deliveries that were pending when the writers ended.
        return written.transactions / (written.seconds + time.monotonic() - ended)


def relay(url: str, number: int, messages: int) -> tuple[float, float]:
    """Return messages/s from the outbox into the log, and CPU seconds of the relay's backend per 1,000 messages.

    One of ``number`` nodes is real, relays and follows; the others only listen. All messages are in one transaction.
    """
    with ExitStack() as stack:
        server = ServerProcess("ours", url)
        server.start()
        stack.callback(server.stop)
        stack.enter_context(closing(Sessions(url, number - 1, "socketio_pg")))
        connection = stack.enter_context(closing(connect(url)))
        # Warms up caches and plans.
        _relay(connection, 1000)
        backend = relay_backend(connection)
        cpu = machine.process_cpu(backend)
        return messages / _relay(connection, messages), (machine.process_cpu(backend) - cpu) * 1000 / messages


def notify_through_leader(cluster: Cluster, url: str, number: int, seconds: float) -> float:
    """Like :func:`notify`, but a real node with LISTEN=leader listens, and ``number`` Redis connections receive."""
    with ExitStack() as stack:
        redis = stack.enter_context(Redis())
        server = ServerProcess("ours", url, LISTEN="leader", MESSAGE_QUEUE=redis.url, MAX_EVENTS_PER_SECOND="0")
        server.start()
        stack.callback(server.stop)
        client = socketio.Client()
        client.connect(f"http://127.0.0.1:{server.port}", transports=["websocket"])
        stack.callback(client.disconnect)
        assert client.call("subscribe", {"channel": CHANNEL})["ok"]
        readers = stack.enter_context(closing(RedisReaders(redis, number)))
        written = Writers(cluster, url, NOTIFY, WRITERS, seconds).wait()
        ended = time.monotonic()
        readers.wait(written.transactions)
        return written.transactions / (written.seconds + time.monotonic() - ended)


class Redis:
    """Runs redis-server without persistence."""

    def __enter__(self) -> "Redis":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class RedisReaders:
    """Connections that read the nodes' queue in a thread and discard it. Counts the notifications of one connection."""

    def __init__(self, redis: Redis, number: int) -> None:
        self._sockets = [socket.create_connection(("127.0.0.1", redis.port)) for _ in range(number)]
        self._poll = select.poll()
        for connection in self._sockets:
            connection.sendall(b"SUBSCRIBE socketio_pg_queue\r\n")
            connection.setblocking(False)
            self._poll.register(connection, select.POLLIN)
        self.read = dict.fromkeys([found.fileno() for found in self._sockets], 0)
        self._counted, self._rest, self.notifications = self._sockets[0].fileno(), b"", 0
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        word = f'["{CHANNEL}",'.encode()
        while not self._closing:
            for descriptor, _ in self._poll.poll(100):
                data = os.read(descriptor, 1 << 20)
                self.read[descriptor] += len(data)
                if descriptor == self._counted:
                    text = self._rest + data
                    self.notifications += text.count(word)
                    # Too short to contain a whole word.
                    self._rest = text[-len(word) + 1 :]

    def wait(self, notifications: int) -> None:
        """Wait until each connection has read all notifications."""
        deadline = time.monotonic() + PATIENCE
        while self.notifications < notifications or min(self.read.values()) < self.read[self._counted] * 0.99:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.notifications} of {notifications} notifications")
            time.sleep(0.005)

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        for connection in self._sockets:
            connection.close()


def _relay(connection: Any, messages: int) -> float:
    """Publish messages. Return the seconds from the commit until the last one has its position."""
    publish = f"SELECT socketio_pg.publish('{CHANNEL}', '{payload('123456789')}') FROM generate_series(1, {messages})"
    wanted = head(connection) + messages
    one(connection, f"SELECT count(*) FROM ({publish}) AS published")
    began = time.monotonic()
    while head(connection) < wanted:
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(f"{head(connection)} of {wanted}")
        time.sleep(0.005)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="number of repeats; the medians are shown (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each NOTIFY measurement (default: 3)")
    parser.add_argument("--messages", type=int, default=50_000, help="messages per relay measurement (default: 50,000)")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES, help="numbers of nodes (default: 1 5 10 25 50)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    found: dict[int, list[tuple[float, ...]]] = {number: [] for number in arguments.nodes}
    with log_database.running() as cluster:
        print(
            f"PostgreSQL {cluster.version_number()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
        )
        for repeat in range(arguments.repeats):
            for number in arguments.nodes if repeat % 2 == 0 else reversed(arguments.nodes):
                with cluster.database("bench_nodes") as url:
                    commits = notify(cluster, url, number, arguments.seconds)
                    relayed = relay(url, number, arguments.messages)
                    through = notify_through_leader(cluster, url, number, arguments.seconds)
                    found[number].append((commits, *relayed, through))
    print(
        "| nodes | NOTIFY commits/s | | with LISTEN=leader | | relayed messages/s | | relay's SQL, CPU ms per 1,000 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    medians = {number: [median(column) for column in zip(*rows, strict=True)] for number, rows in found.items()}
    first = medians[arguments.nodes[0]]
    for number, (commits, messages, cpu, through) in medians.items():
        print(
            f"| {number} | {commits:,.0f} | {commits / first[0]:.2f} | {through:,.0f} | {through / first[0]:.2f} "
            f"| {messages:,.0f} | {messages / first[1]:.2f} | {cpu * 1000:.1f} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
