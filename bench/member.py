"""One of many clients that connect at the same time: its connection and its handshake, driven by reads."""

import select
import socket
import time
from collections.abc import Sequence

from bench.swarm import IP_BIND_ADDRESS_NO_PORT, SOURCES
from bench.wire import PONG, SERVER_PING, Conversation, Handshake

WAIT_SECONDS = 60.0


class Member:
    """Connects when it is created; :meth:`begin` starts the handshake. Subclasses decide when they are done."""

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
        raise NotImplementedError("only long-polling uses this")

    def read(self) -> bool:
        """Read once. Return True when the client now has all that it waits for."""
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
        """Handle the end of the handshake. Return the result of :meth:`read`."""
        raise NotImplementedError

    def received(self, data: bytes) -> bool:
        """Handle data after the handshake. Return the result of :meth:`read`."""
        raise NotImplementedError


def read_all(members: Sequence[Member]) -> None:
    """Read until each client has all that it waits for. Raises TimeoutError."""
    by_fd = {member.socket.fileno(): member for member in members}
    deadline = time.monotonic() + WAIT_SECONDS
    left = len(members)
    with select.epoll() as epoll:
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)
        while left:
            left -= sum(by_fd[fd].read() for fd, _ in epoll.poll(1.0))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} of {len(members)} clients were not done within {WAIT_SECONDS:.0f} s")
