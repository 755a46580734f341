"""One client of many that come at once: its connection, and the handshake that is driven while it is read."""

import select
import socket
import time
from collections.abc import Sequence

from bench.swarm import IP_BIND_ADDRESS_NO_PORT, SOURCES
from bench.wire import PONG, SERVER_PING, Conversation, Handshake

WAIT_SECONDS = 60.0


class Member:
    """Connected when it is made; :meth:`begin` starts the handshake. Subclasses say when they have all they want."""

    def __init__(self, number: int, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        self.socket.bind((f"127.0.0.{2 + number % SOURCES}", 0))
        self.socket.settimeout(WAIT_SECONDS)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self._handshake: Handshake | None = None

    def begin(self, conversation: Conversation) -> None:
        self._handshake = conversation.websocket()
        next(self._handshake)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reopen(self) -> None:
        raise NotImplementedError("only long-polling needs it")

    def read(self) -> bool:
        """True when this read brought the last of what it wants."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._handshake is None:
            if SERVER_PING in data:
                self.send(PONG)
            return self.received(data)
        try:
            self._handshake.send(data)
        except StopIteration:
            self._handshake = None
            return self.subscribed()
        return False

    def subscribed(self) -> bool:
        """The handshake has ended; returns what :meth:`read` does."""
        raise NotImplementedError

    def received(self, data: bytes) -> bool:
        """What came after the handshake; returns what :meth:`read` does."""
        raise NotImplementedError


def read_all(members: Sequence[Member]) -> None:
    """Until each has what it wants. Raises TimeoutError."""
    by_fd = {member.socket.fileno(): member for member in members}
    deadline = time.monotonic() + WAIT_SECONDS
    left = len(members)
    with select.epoll() as epoll:
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)
        while left:
            left -= sum(by_fd[fd].read() for fd, _ in epoll.poll(1.0))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} of {len(members)} clients have not got all within {WAIT_SECONDS:.0f} s")
