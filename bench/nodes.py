"""`python bench/nodes.py`: what more nodes cost the database that they listen to, as ratios to one node."""

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

# `python bench/nodes.py` puts bench/ first on the path; its modules are those of the package `bench`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import log_database, machine  # noqa: E402
from bench.log_database import CHANNEL, PAYLOAD_BYTES, Cluster, connect, head, one, payload, relay_backend  # noqa: E402
from bench.servers import ServerProcess  # noqa: E402
from bench.writers import Writers  # noqa: E402

NODES = (1, 5, 10, 25, 50)
WRITERS = 16
NOTIFY = f"\\set n random(100000000, 999999999)\nSELECT pg_notify('{CHANNEL}', '{payload(':n')}');\n"
#: Of a notification on CHANNEL, on the wire: type, length, process, two texts with their ends.
NOTIFICATION_BYTES = 1 + 4 + 4 + len(CHANNEL) + 1 + PAYLOAD_BYTES + 1
PATIENCE = 120.0


class Sessions:
    """Sessions that listen as nodes do, and throw away what comes: all that is measured is PostgreSQL's.

    A thread reads for all of them.
    """

    def __init__(self, url: str, number: int, channel: str) -> None:
        self._connections: list[Any] = []
        self._poll = select.poll()
        #: Bytes that came, by descriptor.
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
        """Until each session has got so many bytes."""
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
    """Commits/s that each notify 100 bytes, all of which ``number`` sessions get."""
    with closing(Sessions(url, number, CHANNEL)) as sessions:
        written = Writers(cluster, url, NOTIFY, WRITERS, seconds).wait()
        ended = time.monotonic()
        sessions.wait(written.transactions * NOTIFICATION_BYTES)
        # What was still to be delivered when the writers had ended belongs to it.
        return written.transactions / (written.seconds + time.monotonic() - ended)


def relay(url: str, number: int, messages: int) -> tuple[float, float]:
    """(messages/s from the outbox into the log, CPU seconds of the relay's backend per 1,000 of them).

    One real node relays and follows; the others, of ``number``, only listen. All is published in one transaction.
    """
    with ExitStack() as stack:
        server = ServerProcess("ours", url)
        server.start()
        stack.callback(server.stop)
        stack.enter_context(closing(Sessions(url, number - 1, "socketio_pg")))
        connection = stack.enter_context(closing(connect(url)))
        # Everything is planned and warm.
        _relay(connection, 1000)
        backend = relay_backend(connection)
        cpu = machine.process_cpu(backend)
        return messages / _relay(connection, messages), (machine.process_cpu(backend) - cpu) * 1000 / messages


def notify_through_leader(cluster: Cluster, url: str, number: int, seconds: float) -> float:
    """As :func:`notify`, but a real node with LISTEN=leader listens, and ``number`` connections of Redis get it."""
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
    """redis-server, without anything on the disk."""

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
    """Connections that read what the nodes' queue carries, in a thread, and throw it away; of one it is counted."""

    def __init__(self, redis: Redis, number: int) -> None:
        self._sockets = [socket.create_connection(("127.0.0.1", redis.port)) for _ in range(number)]
        self._poll = select.poll()
        for one_of_them in self._sockets:
            one_of_them.sendall(b"SUBSCRIBE socketio_pg_queue\r\n")
            one_of_them.setblocking(False)
            self._poll.register(one_of_them, select.POLLIN)
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
                    # Not so much that a whole word is in it.
                    self._rest = text[-len(word) + 1 :]

    def wait(self, notifications: int) -> None:
        """Until all of them have been read, by each connection."""
        deadline = time.monotonic() + PATIENCE
        while self.notifications < notifications or min(self.read.values()) < self.read[self._counted] * 0.99:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.notifications} of {notifications} notifications")
            time.sleep(0.005)

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        for one_of_them in self._sockets:
            one_of_them.close()


def _relay(connection: Any, messages: int) -> float:
    """Seconds from the commit of so many messages until the last has its position."""
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
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many, in turn (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of notifying each time (default: 3)")
    parser.add_argument("--messages", type=int, default=50_000, help="to relay each time (default: 50,000)")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES, help="how many nodes (default: 1 5 10 25 50)")
    parser.add_argument("--json", type=Path, help="write all figures there")
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
