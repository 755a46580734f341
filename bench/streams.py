"""`python bench/streams.py`: what a stream of Server-Sent Events costs, as ratios to a WebSocket of the same server.

Both kinds of clients are connected to one server at the same time, each to a channel of its own, and the bursts go to
the two in turn. Memory is that of the clients that were connected last, so the kind that comes first alternates with
the repeats, each of which has a server of its own.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

# `python bench/streams.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import database, machine  # noqa: E402
from bench.publisher import Job, Publisher  # noqa: E402
from bench.servers import Server, ServerProcess  # noqa: E402
from bench.swarm import IN_FLIGHT, Swarm  # noqa: E402

KINDS = ("websocket", "stream")
#: Clients of each kind that are connected before anything is measured.
WARM = 200
FIGURES = ("cpu_us_per_delivery", "kb_per_client", "cpu_ms_per_connect")
DEADLINE = 300.0

Values = dict[str, float]


class Clients:
    """The clients of one kind, all in its channel."""

    def __init__(self, kind: str, server: Server) -> None:
        self.channel = f"bench-{kind}"
        self._streams = kind == "stream"
        self._server = server
        self.swarms: list[Swarm] = []

    def connect(self, count: int) -> None:
        swarm = Swarm(self._server.port)
        self.swarms.append(swarm)
        if not self._streams:
            swarm.connect([(self.channel,)] * count, DEADLINE)
            return
        request = f"GET /api/channels/{self.channel}/stream HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        for start in range(0, count, IN_FLIGHT):
            swarm.connect_bare(min(IN_FLIGHT, count - start))
            for client in swarm.clients[start:]:
                client.send(request)
            for client in swarm.clients[start:]:
                client.socket.settimeout(DEADLINE)
                answer = b""
                while b"event: subscribed" not in answer or not answer.endswith(b"\n\n"):
                    received = client.socket.recv(65536)
                    assert received, "the server has closed a stream"
                    answer += received
                client.socket.setblocking(False)

    @property
    def count(self) -> int:
        return sum(len(swarm.clients) for swarm in self.swarms)

    def receive(self, messages: int) -> None:
        """Read until each client has got so many messages more."""
        for swarm in self.swarms:
            complete = swarm.pump(swarm.total + messages * len(swarm.clients), DEADLINE)
            assert complete, f"{swarm.total} messages: not all have arrived"
            assert not swarm.lost, swarm.lost[:3]

    def close(self) -> None:
        for swarm in self.swarms:
            swarm.close()


@contextlib.contextmanager
def running(url: str, core: int, clients: int, library: str) -> Iterator[Server]:
    """Run a server that is large enough for both kinds."""
    settings = {"MAX_CONNECTIONS": str(3 * clients + 1_000), "AUTH": "off"}
    with contextlib.closing(ServerProcess(library, url, core, **settings)) as process:
        yield process.start()


def measure(options: argparse.Namespace, url: str, cores: machine.Cores, first: str) -> dict[str, Values]:
    """Return the figures of both kinds on one server."""
    found: dict[str, Values] = {kind: {} for kind in KINDS}
    publisher = Publisher(url, cores.load)
    with running(url, cores.server, options.clients, options.server) as server, contextlib.closing(publisher):
        of_kind = {kind: Clients(kind, server) for kind in KINDS}
        for clients in of_kind.values():
            clients.connect(WARM)
            _burst(clients, publisher, 20)
        for kind in sorted(KINDS, key=lambda kind: kind != first):
            time.sleep(2)
            memory, cpu = machine.memory(server.pid)["pss"], server.cpu_seconds()
            of_kind[kind].connect(options.clients)
            found[kind]["cpu_ms_per_connect"] = (server.cpu_seconds() - cpu) / options.clients * 1e3
            time.sleep(5)
            found[kind]["kb_per_client"] = (machine.memory(server.pid)["pss"] - memory) / options.clients
        costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(options.bursts):
            for kind in KINDS[:: -1 if number % 2 else 1]:
                cpu = server.cpu_seconds()
                _burst(of_kind[kind], publisher, options.messages)
                costs[kind].append((server.cpu_seconds() - cpu) / options.messages / of_kind[kind].count * 1e6)
        for kind in KINDS:
            found[kind]["cpu_us_per_delivery"] = median(costs[kind])
            of_kind[kind].close()
    return found


def _burst(clients: Clients, publisher: Publisher, messages: int) -> None:
    # One message a commit, so that each is sent for itself.
    publisher.start(Job((clients.channel,), messages, rate=20.0))
    clients.receive(messages)
    publisher.result(DEADLINE)


def table(found: list[dict[str, Values]]) -> str:
    """Return medians, and the ratios in the same repeat: their median, lowest and highest."""
    lines = [f"{'':28}{'websocket':>12}{'stream':>12}{'stream/websocket':>28}"]
    for figure in FIGURES:
        if figure not in found[0]["stream"]:
            continue
        cells = [f"{median(row[kind][figure] for row in found):.3f}" for kind in KINDS]
        ratios = sorted(row["stream"][figure] / row["websocket"][figure] for row in found)
        shown = f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        lines.append(f"{figure:28}{cells[0]:>12}{cells[1]:>12}{shown:>28}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=5_000, help="of each kind")
    parser.add_argument("--messages", type=int, default=50, help="messages of a burst")
    parser.add_argument("--bursts", type=int, default=6, help="bursts to each kind")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--server", choices=("ours", "gevent"), default="ours")
    options = parser.parse_args()
    cores = machine.choose_cores()
    machine.raise_file_limit(needed=3 * options.clients + 1_000)
    os.sched_setaffinity(0, {cores.load})
    found = []
    with database.running(cores) as (url, _):
        for repeat in range(options.repeats):
            found.append(measure(options, url, cores, KINDS[repeat % 2]))
            print(f"repeat {repeat + 1}: {found[-1]}", file=sys.stderr)
    print(table(found))


if __name__ == "__main__":
    main()
