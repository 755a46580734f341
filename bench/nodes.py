"""`python bench/nodes.py`: what more nodes cost the database that they listen to, as ratios to one node."""

import argparse
import json
import os
import select
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

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
    found: dict[int, list[tuple[float, float, float]]] = {number: [] for number in arguments.nodes}
    with log_database.running() as cluster:
        print(
            f"PostgreSQL {cluster.version_number()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
        )
        for repeat in range(arguments.repeats):
            for number in arguments.nodes if repeat % 2 == 0 else reversed(arguments.nodes):
                with cluster.database("bench_nodes") as url:
                    commits = notify(cluster, url, number, arguments.seconds)
                    found[number].append((commits, *relay(url, number, arguments.messages)))
    print("| nodes | NOTIFY commits/s | | relayed messages/s | | relay's SQL, CPU ms per 1,000 messages |")
    print("|---|---|---|---|---|---|")
    medians = {number: [median(column) for column in zip(*rows, strict=True)] for number, rows in found.items()}
    first = medians[arguments.nodes[0]]
    for number, (commits, relayed, cpu) in medians.items():
        print(
            f"| {number} | {commits:,.0f} | {commits / first[0]:.2f} | {relayed:,.0f} | {relayed / first[1]:.2f} "
            f"| {cpu * 1000:.1f} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
