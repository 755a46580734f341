"""`python bench/presence.py`: 10,000 clients join within 5 seconds, and then stay.

They are connected before, in rooms of 100 or all in one, on one node or spread over two. Measured are the CPU time of
servers and PostgreSQL, and the bytes that the clients receive, from the first join until nothing more arrives, and then
for some time of rest. With ``--centrifugo PATH`` the same is done with a Centrifugo: its clients subscribe, ask for the
presence of their channel, and get joins and leaves; two of its nodes share a Redis.
"""

import argparse
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

# `python bench/presence.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import database, machine  # noqa: E402
from bench.servers import ServerProcess  # noqa: E402
from bench.wire import client_frame  # noqa: E402

#: Clients that connect at the same time; seconds without data after which everything has arrived; the longest wait.
TOGETHER, QUIET_SECONDS, DEADLINE = 100, 1.5, 60.0
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_FREE = "127.0.0.1"


class Peer(ABC):
    """A server, and how its clients speak to it."""

    path: str
    #: What the server sends when the connection is open, and each ping; the client's answer to it.
    opened: bytes
    ping: re.Pattern[bytes]
    pong: bytes
    #: What a refused request is answered with.
    refused: bytes

    def __init__(self) -> None:
        self.ports: list[int] = []

    @abstractmethod
    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU seconds of the servers, and of what they keep their members in."""

    @abstractmethod
    def hello(self) -> list[bytes]:
        """Return the frames that connect a client."""

    @abstractmethod
    def join(self, channel: str, number: int) -> bytes:
        """Return the frames with which a client joins, and asks for the members."""

    @abstractmethod
    def joined(self, data: bytes) -> int:
        """Return how many answers to :meth:`join` are in ``data``."""


class Ours(Peer):
    """This project's server."""

    path = "/socket.io/?EIO=4&transport=websocket"
    opened = b'40{"sid"'
    ping, pong = re.compile(rb"\x81\x012"), client_frame(b"3")
    refused = b'"ok":false'

    def __init__(self, processes: list[ServerProcess], postgres: int) -> None:
        super().__init__()
        self._servers = [process.start() for process in processes]
        self.ports = [server.port for server in self._servers]
        self._postgres = postgres

    def cpu_seconds(self) -> tuple[float, float]:
        database = sum(map(machine.process_cpu, (self._postgres, *machine.children(self._postgres))))
        return sum(server.cpu_seconds() for server in self._servers), database

    def hello(self) -> list[bytes]:
        return [client_frame(b"40")]

    def join(self, channel: str, number: int) -> bytes:
        request = {"channel": channel, "presence": {"key": f"person-{number}", "state": {"name": f"n{number}"}}}
        return client_frame(f'421["subscribe",{json.dumps(request, separators=(",", ":"))}]'.encode())

    def joined(self, data: bytes) -> int:
        return data.count(b'431[{"ok":true')


class Centrifugo(Peer):
    """Nodes of a Centrifugo, on a Redis if there are several."""

    path = "/connection/websocket"
    opened = b'"connect":{'
    ping, pong = re.compile(rb"\x81\x02\{\}"), client_frame(b"{}")
    refused = b'"error":{'

    def __init__(self, program: Path, nodes: int, stack: contextlib.ExitStack) -> None:
        super().__init__()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._redis: int | None = None
        engine: dict[str, Any] = {"type": "memory"}
        if nodes > 1:
            port = free_port()
            self._redis = start(["redis-server", "--port", str(port), "--save", "", "--bind", _FREE], stack)
            wait_open(port)
            engine = {"type": "redis", "redis": {"address": f"{_FREE}:{port}"}}
        self._pids = []
        for number in range(nodes):
            port = free_port()
            config = {
                "http_server": {"address": _FREE, "port": port},
                # A busy generator answers late; 8 s is the default.
                "client": {"insecure": True, "allowed_origins": ["*"], "pong_timeout": "20s"},
                "channel": {"without_namespace": {"presence": True, "join_leave": True, "force_push_join_leave": True}},
                "engine": engine,
                "log": {"level": "error"},
            }
            file = folder / f"{number}.json"
            file.write_text(json.dumps(config))
            self._pids.append(start([str(program), "-c", str(file)], stack))
            wait_open(port)
            self.ports.append(port)

    def cpu_seconds(self) -> tuple[float, float]:
        kept = 0.0 if self._redis is None else machine.process_cpu(self._redis)
        return sum(map(machine.process_cpu, self._pids)), kept

    def hello(self) -> list[bytes]:
        return [client_frame(b'{"id":1,"connect":{}}')]

    def join(self, channel: str, number: int) -> bytes:
        subscribe = client_frame(json.dumps({"id": 2, "subscribe": {"channel": channel}}).encode())
        return subscribe + client_frame(json.dumps({"id": 3, "presence": {"channel": channel}}).encode())

    def joined(self, data: bytes) -> int:
        return data.count(b'"id":3,"presence":')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_FREE, 0))
        return int(probe.getsockname()[1])


def start(command: list[str], stack: contextlib.ExitStack) -> int:
    """Start a process, which ends with ``stack``. Return its id."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def stop() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()

    stack.callback(stop)
    return process.pid


def wait_open(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection((_FREE, port), 1):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing listens at {port}")
        time.sleep(0.05)


@dataclass
class Received:
    """What the clients have received: bytes, answers to their joins, and when the last data arrived (monotonic)."""

    size: int = 0
    joined: int = 0
    at: float = 0.0


class Clients:
    """Clients on raw WebSockets, each connected to one of the server's ports."""

    def __init__(self, peer: Peer, count: int) -> None:
        self._peer = peer
        self._epoll = select.epoll()
        self._sockets: list[socket.socket] = []
        self._by_fd: dict[int, socket.socket] = {}
        self.received = Received()
        self.refused: list[bytes] = []
        #: Connections that the server has closed.
        self.lost = 0
        for first in range(0, count, TOGETHER):
            self._connect(range(first, min(count, first + TOGETHER)))
            self.read(0)  # pings

    def _connect(self, numbers: range) -> None:
        opened = []
        for number in numbers:
            port = self._peer.ports[number % len(self._peer.ports)]
            one = socket.create_connection((_FREE, port), 30)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sendall(
                f"GET {self._peer.path} HTTP/1.1\r\nHost: {_FREE}:{port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_KEY}\r\n\r\n".encode()
            )
            opened.append(one)
        for one in opened:
            read_until(one, b"\r\n\r\n")
            one.sendall(b"".join(self._peer.hello()))
        for one in opened:
            read_until(one, self._peer.opened)
            one.setblocking(False)
            self._sockets.append(one)
            self._by_fd[one.fileno()] = one
            self._epoll.register(one.fileno(), select.EPOLLIN)

    def join(self, channels: list[str], seconds: float) -> None:
        """Let all join within ``seconds``, and read until nothing more arrives."""
        began = time.monotonic()
        number, count = 0, len(self._sockets)
        while number < count:
            due = min(count, int((time.monotonic() - began) / seconds * count) + 1)
            while number < due:
                # Neighbours are in different rooms, and each room has clients of all nodes.
                channel = channels[number // len(self._peer.ports) % len(channels)]
                self._sockets[number].sendall(self._peer.join(channel, number))
                number += 1
            self.read(0.002)
        deadline = time.monotonic() + DEADLINE
        while self.received.joined + self.lost < count or time.monotonic() - self.received.at < QUIET_SECONDS:
            self.read(0.1)
            if time.monotonic() > deadline:
                refused = f", {len(self.refused)} were refused: {self.refused[:1]}" if self.refused else ""
                raise RuntimeError(f"{self.received.joined} of {count} clients have joined{refused}")

    def rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(left)

    def read(self, seconds: float) -> None:
        received, peer = self.received, self._peer
        for fd, _ in self._epoll.poll(seconds, 1024):
            data = self._by_fd[fd].recv(262_144)
            if not data:
                self._epoll.unregister(fd)
                self.lost += 1
                continue
            if peer.ping.search(data):
                self._by_fd[fd].sendall(peer.pong)
            else:
                received.at = time.monotonic()
            received.size += len(data)
            received.joined += peer.joined(data)
            if peer.refused in data:
                self.refused.append(data[data.index(peer.refused) :][:200])

    def close(self) -> None:
        for one in self._sockets:
            one.close()


def read_until(one: socket.socket, marker: bytes) -> None:
    data = b""
    while marker not in data:
        more = one.recv(65536)
        if not more:
            raise RuntimeError(f"the server has closed a connection: {data[-300:]!r}")
        data += more


def measure(peer: Peer, options: argparse.Namespace, rooms: int) -> dict[str, float]:
    with contextlib.closing(Clients(peer, options.clients)) as clients:
        clients.rest(2)
        clients.received = Received(at=time.monotonic())
        cpu, kept = peer.cpu_seconds()
        began = time.monotonic()
        clients.join([f"room-{number}" for number in range(rooms)], options.seconds)
        after, kept_after = peer.cpu_seconds()
        found = {
            "seconds": clients.received.at - began,
            "server": after - cpu,
            "kept": kept_after - kept,
            "mb": clients.received.size / 1e6,
        }
        clients.rest(1)
        before = clients.received.size
        cpu, kept = peer.cpu_seconds()
        clients.rest(options.rest)
        after, kept_after = peer.cpu_seconds()
        rest = max(options.rest, 1e-9)
        return found | {
            "lost": clients.lost,
            "rest_server": (after - cpu) / rest,
            "rest_kept": (kept_after - kept) / rest,
            "rest_kb": (clients.received.size - before) / rest / 1e3,
        }


@contextlib.contextmanager
def ours(options: argparse.Namespace, nodes: int, cores: machine.Cores) -> Iterator[Peer]:
    settings = {
        "AUTH": "off", "AUTO_INIT": "1", "TEST_PAGE": "0", "MAX_CONNECTIONS": str(options.clients + 1_000),
        "MAX_PENDING_PER_ADDRESS": "0",
    }  # fmt: skip
    with database.running(cores) as (url, _), contextlib.ExitStack() as stack:
        with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW data_directory")
            [folder] = cursor.fetchone() or ()
        postmaster = int((Path(folder) / "postmaster.pid").read_text().splitlines()[0])
        for pid in (postmaster, *machine.children(postmaster)):
            os.sched_setaffinity(pid, os.sched_getaffinity(0))
        processes = [
            stack.enter_context(contextlib.closing(ServerProcess(options.server, url, None, **settings)))
            for _ in range(nodes)
        ]
        yield Ours(processes, postmaster)


@contextlib.contextmanager
def centrifugo(options: argparse.Namespace, nodes: int) -> Iterator[Peer]:
    with contextlib.ExitStack() as stack:
        yield Centrifugo(options.centrifugo, nodes, stack)


ROWS = {
    "seconds": "seconds until all know all", "server": "CPU of the servers, s", "kept": "CPU of PostgreSQL or Redis, s",
    "mb": "bytes to the clients, MB", "rest_server": "at rest: CPU of the servers, s/s",
    "lost": "connections that the server has closed",
    "rest_kept": "at rest: CPU of PostgreSQL or Redis, s/s", "rest_kb": "at rest: bytes to the clients, KB/s",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rooms", type=int, nargs="*", default=[100, 1])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="within which all join")
    parser.add_argument("--rest", type=float, default=30.0, help="seconds of rest afterwards")
    parser.add_argument("--server", choices=("ours", "gevent"), default="ours")
    parser.add_argument("--centrifugo", type=Path, help="the program to compare with")
    parser.add_argument("--only", choices=("ours", "centrifugo"))
    parser.add_argument("--log", type=Path, help="append the figures to this file, as JSON")
    options = parser.parse_args()
    machine.raise_file_limit(options.clients + 1_000)
    if options.centrifugo and len(options.nodes) > 1 and shutil.which("redis-server") is None:
        parser.error("two nodes of a Centrifugo need redis-server")
    cores = machine.choose_cores()
    for nodes in options.nodes:
        for rooms in options.rooms:
            for name in ("ours", "centrifugo"):
                if options.only not in (None, name) or (name == "centrifugo" and not options.centrifugo):
                    continue
                running = ours(options, nodes, cores) if name == "ours" else centrifugo(options, nodes)
                with running as peer:
                    found = measure(peer, options, rooms)
                print(f"{name}, {nodes} node(s), {options.clients} clients in {rooms} room(s)")
                for key, label in ROWS.items():
                    print(f"    {label:42}{found[key]:12.3f}")
                if options.log:
                    with options.log.open("a") as log:
                        log.write(json.dumps([name, nodes, rooms, options.clients, found]) + "\n")


if __name__ == "__main__":
    main()
