"""Thousands of raw WebSocket clients in one epoll loop that does next to nothing per read: the load generator's half.

Every client's messages are counted by a marker byte, whole reads at a time (one read may hold half a frame or fifty).
A few clients, those with a hook, are read the moment they are readable and parsed in full: order, content and latency.
The others are read in slices in between, so that latencies hold little of the generator's own queue even while it is
busy.
"""

import json
import select
import socket
import time
from collections.abc import Callable, Sequence

from bench.publisher import MARKER
from bench.wire import PONG, SERVER_PING, Conversation, FrameReader, Handshake, ProtocolError

Hook = Callable[[bytes, int], None]
"""Takes what a client read and the time (CLOCK_MONOTONIC, ns) at which it did."""

READ_BYTES = 1 << 18
IN_FLIGHT = 200
SOURCES = 8
SLICE = 64
IP_BIND_ADDRESS_NO_PORT = 24
"""ip(7); Python has no name for it before 3.12."""


class Client:
    """One connection; a `Link` while it shakes hands."""

    def __init__(self, swarm: "Swarm", number: int) -> None:
        self._swarm = swarm
        self.number = number
        self.handshake: Handshake | None = None
        self.socket = self._open()
        self.spare: socket.socket | None = None

    def _open(self) -> socket.socket:
        connection = socket.socket()
        # Several source addresses, so that ten thousand connections to one port do not exhaust the ephemeral ports.
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
    """A client whose every frame is checked (numbers rise by one, payloads are whole) and timed."""

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
    """The clients of one server. Used from one thread; bounded by a deadline wherever it waits."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Client] = []
        self.samples: list[Sample] = []
        self.counts: dict[int, int] = {}
        self.total = 0
        self.lost: list[str] = []
        # The clients with a hook are in the first; all others in the second, which is itself one entry of the first.
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
        """Reads this client before the others and hands everything that it reads to `hook` as well."""
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
        """TCP only, for the raw server."""
        self.clients += [Client(self, len(self.clients) + number) for number in range(clients)]

    def connect(self, channels: Sequence[tuple[str, ...]], seconds: float, polling: bool = False) -> None:
        """Connects one client for each entry, subscribed to its channels, IN_FLIGHT at a time.

        Raises TimeoutError when they are not all subscribed after `seconds`.
        """
        deadline = time.monotonic() + seconds
        waiting = list(enumerate(channels))[::-1]
        shaking = 0
        while waiting or shaking:
            while waiting and shaking < IN_FLIGHT:
                number, names = waiting.pop()
                client = Client(self, number)
                conversation = Conversation(client, names)
                client.handshake = conversation.polling() if polling else conversation.websocket()
                next(client.handshake)
                self.clients.append(client)
                shaking += 1
            for fd, _ in self._crowd.poll(0.2, 1024):
                shaking -= self._advance(self._by_fd[fd]) if fd in self._by_fd else 0
            if time.monotonic() > deadline:
                raise TimeoutError(f"{shaking + len(waiting)} of {len(channels)} clients did not get subscribed")

    def _advance(self, client: Client) -> int:
        """1 if this read ended the client's handshake."""
        try:
            data = client.socket.recv(65536)
        except BlockingIOError:
            # What was readable is its first connection, which the server closes after the upgrade.
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
        """Reads until `until` messages have been counted in all, or for `seconds`; True if the count was reached."""
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
        """The hot loop: about 3 µs a read, most of it in the kernel."""
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
        """The sampled latencies since the last call, in nanoseconds."""
        taken = [latency for sample in self.samples for latency in sample.latencies]
        for sample in self.samples:
            sample.latencies = []
        return taken

    def uneven(self) -> int:
        """How many clients have not counted as many messages as the first (for rooms that hold everybody)."""
        counts = list(self.counts.values())
        return sum(count != counts[0] for count in counts)

    def close(self) -> None:
        for client in self.clients:
            client.close_spare()
            client.socket.close()
        self._epoll.close()
        self._crowd.close()
