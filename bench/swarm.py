"""The load generator: thousands of raw WebSocket clients in one epoll loop with very little work per read.

All messages are counted by a marker byte per read (a read may contain half a frame or fifty frames). A few clients with
a hook are read as soon as they are readable, and fully parsed: order, content and latency. The other clients are read
in slices in between, so that latencies contain little of the generator's own queue even when it is busy.
"""

import json
import select
import socket
import time
from collections.abc import Callable, Sequence

from bench.publisher import MARKER
from bench.wire import PONG, SERVER_PING, Conversation, FrameReader, Handshake, ProtocolError

Hook = Callable[[bytes, int], None]
"""Takes the data that a client read, and the time of the read (CLOCK_MONOTONIC, ns)."""

READ_BYTES = 1 << 18
IN_FLIGHT = 200
SOURCES = 8
SLICE = 64
IP_BIND_ADDRESS_NO_PORT = 24
"""See ip(7); Python defines it since 3.12."""


class Client:
    """One connection; a `Link` during the handshake."""

    def __init__(self, swarm: "Swarm", number: int) -> None:
        self._swarm = swarm
        self.number = number
        self.handshake: Handshake | None = None
        self.socket = self._open()
        self.spare: socket.socket | None = None

    def _open(self) -> socket.socket:
        connection = socket.socket()
        # Several source addresses, so that 10,000 connections to one port do not exhaust the ephemeral ports.
        connection.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((f"127.0.0.{2 + self.number % SOURCES}", 0))
        connection.settimeout(10)
        connection.connect(("127.0.0.1", self._swarm.port))
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._swarm.add(self, connection)
        return connection

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reopen(self) -> None:
        self.spare, self.socket = self.socket, self._open()

    def close_spare(self) -> None:
        if self.spare is not None:
            self._swarm.forget(self.spare)
            self.spare.close()
            self.spare = None


class Sample:
    """Checks and times every frame of a client: numbers increase by one, payloads are complete."""

    def __init__(self) -> None:
        self.latencies: list[int] = []
        self.messages = 0
        self._frames = FrameReader()
        self._next: dict[str, int] = {}

    def feed(self, data: bytes, now: int) -> None:
        for text in self._frames.feed(data):
            if not text.startswith(b'42["event",'):
                continue
            message = json.loads(text[2:])[1]
            channel, body = message["channel"], message["payload"]
            number = body["n"]
            if number != self._next.get(channel, number) or body["m"] != "^" or body["p"].strip("x"):
                raise ProtocolError(f"expected {self._next.get(channel)} on {channel}, got {text[:200]!r}")
            self._next[channel] = number + 1
            self.messages += 1
            self.latencies.append(now - body["t"])


class Swarm:
    """The clients of one server. Used from one thread; every wait has a deadline."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Client] = []
        self.samples: list[Sample] = []
        self.counts: dict[int, int] = {}
        self.total = 0
        self.lost: list[str] = []
        # Clients with a hook are in the first; all others are in the second, which is an entry of the first.
        self._epoll = select.epoll()
        self._crowd = select.epoll()
        self._epoll.register(self._crowd.fileno(), select.EPOLLIN)
        self._by_fd: dict[int, Client] = {}
        self._receive: dict[int, Callable[[bytearray], int]] = {}
        self._hooks: dict[int, Hook] = {}
        self._buffer = bytearray(READ_BYTES)

    def add(self, client: Client, connection: socket.socket) -> None:
        fd = connection.fileno()
        self._by_fd[fd] = client
        self._receive[fd] = connection.recv_into
        self.counts[fd] = 0
        self._crowd.register(fd, select.EPOLLIN)

    def forget(self, connection: socket.socket) -> None:
        fd = connection.fileno()
        (self._epoll if fd in self._hooks else self._crowd).unregister(fd)
        for table in (self._by_fd, self._receive, self.counts, self._hooks):
            table.pop(fd, None)

    def hook(self, client: Client, hook: Hook) -> None:
        """Read this client before the others, and also pass all its data to `hook`."""
        fd = client.socket.fileno()
        if fd not in self._hooks:
            self._crowd.unregister(fd)
            self._epoll.register(fd, select.EPOLLIN)
        self._hooks[fd] = hook

    def sample(self, clients: Sequence[Client]) -> None:
        for client in clients:
            sample = Sample()
            self.samples.append(sample)
            self.hook(client, sample.feed)

    def connect_bare(self, clients: int) -> None:
        """Connect clients with TCP only, for the raw server."""
        self.clients += [Client(self, len(self.clients) + number) for number in range(clients)]

    def connect(self, channels: Sequence[tuple[str, ...]], seconds: float, polling: bool = False) -> None:
        """Connect one client for each entry and subscribe it to its channels, IN_FLIGHT clients at a time.

        Raises TimeoutError when not all clients are subscribed after `seconds`.
        """
        deadline = time.monotonic() + seconds
        waiting = list(enumerate(channels))[::-1]
        connecting = 0
        while waiting or connecting:
            while waiting and connecting < IN_FLIGHT:
                number, names = waiting.pop()
                client = Client(self, number)
                conversation = Conversation(client, names)
                client.handshake = conversation.polling() if polling else conversation.websocket()
                next(client.handshake)
                self.clients.append(client)
                connecting += 1
            for fd, _ in self._crowd.poll(0.2, 1024):
                connecting -= self._advance(self._by_fd[fd]) if fd in self._by_fd else 0
            if time.monotonic() > deadline:
                raise TimeoutError(f"{connecting + len(waiting)} of {len(channels)} clients are not subscribed")

    def _advance(self, client: Client) -> int:
        """Return 1 if this read completed the client's handshake, otherwise 0."""
        try:
            data = client.socket.recv(65536)
        except BlockingIOError:
            # The first connection was readable: the server closes it after the upgrade.
            client.close_spare()
            return 0
        if client.handshake is None:
            if SERVER_PING in data:
                client.send(PONG)
            return 0
        if not data:
            raise ProtocolError("the server closed a connection during the handshake")
        try:
            client.handshake.send(data)
            return 0
        except StopIteration:
            client.handshake = None
            client.close_spare()
            return 1

    def pump(self, until: int | None, seconds: float) -> bool:
        """Read until `until` messages were counted in total, or for `seconds`. Return whether the count was reached."""
        deadline = time.monotonic() + seconds
        crowd = self._crowd.fileno()
        target = until if until is not None else 1 << 62
        while self.total < target:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            ready = self._epoll.poll(left, SLICE)
            self._read([event for event in ready if event[0] != crowd])
            if any(fd == crowd for fd, _ in ready):
                self._read(self._crowd.poll(0, SLICE))
        return True

    def _read(self, ready: list[tuple[int, int]]) -> None:
        """Read ready sockets. The hot loop: about 3 µs per read, most of it in the kernel."""
        receive, hooks, counts, buffer, marker = self._receive, self._hooks, self.counts, self._buffer, MARKER[0]
        total = 0
        for fd, _ in ready:
            try:
                size = receive[fd](buffer)
            except BlockingIOError:
                continue
            except ConnectionError as error:
                self._lose(fd, str(error))
                continue
            if not size:
                self._lose(fd, "closed by the server")
                continue
            hook = hooks.get(fd)
            if hook is not None:
                hook(bytes(memoryview(buffer)[:size]), time.monotonic_ns())
            count = buffer.count(marker, 0, size)
            counts[fd] += count
            total += count
            if buffer.find(SERVER_PING, 0, size) >= 0:
                self._by_fd[fd].send(PONG)
        self.total += total

    def _lose(self, fd: int, reason: str) -> None:
        client = self._by_fd[fd]
        self.lost.append(f"client {client.number}: {reason}")
        self.forget(client.socket)
        client.socket.close()

    def take_latencies(self) -> list[int]:
        """Return the sampled latencies since the last call, in nanoseconds."""
        taken = [latency for sample in self.samples for latency in sample.latencies]
        for sample in self.samples:
            sample.latencies = []
        return taken

    def uneven(self) -> int:
        """Return how many clients counted another number of messages than the first, for rooms with all clients."""
        counts = list(self.counts.values())
        return sum(count != counts[0] for count in counts)

    def close(self) -> None:
        for client in self.clients:
            client.close_spare()
            client.socket.close()
        self._epoll.close()
        self._crowd.close()
