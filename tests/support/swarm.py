"""Many concurrent Socket.IO clients on raw WebSockets, run by the calling thread."""

import base64
import json
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.support.patience import PATIENCE


class RawClient:
    """One WebSocket of a :class:`Swarm`. :attr:`packets` has the received packets without their Engine.IO type."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.packets: deque[Any] = deque()
        #: Whether Engine.IO's OPEN has arrived, and whether Socket.IO's CONNECT was answered.
        self.opened = self.connected = False
        #: Engine.IO packets other than messages.
        self.raw: list[str] = []
        self.closed = False
        self.close_code: int | None = None
        self.answers_pings = True
        #: Whether Socket.IO's CONNECT is sent, and its data.
        self.answers_connect = True
        self.auth: object = None
        self.answers_calls = False
        self._buffer = b""
        self.shaken = False

    def send(self, text: str) -> None:
        """Send an Engine.IO packet as one text frame."""
        self.socket.sendall(self._frame(text))

    def send_binary(self, data: bytes) -> None:
        """Send an attachment as one binary frame."""
        head = struct.pack("!BBQ", 0x82, 0xFF, len(data)) if len(data) > 125 else bytes((0x82, 0x80 | len(data)))
        self.socket.sendall(head + b"\0\0\0\0" + data)

    def send_all(self, *texts: str) -> None:
        """Send many text frames in one segment."""
        self.socket.sendall(b"".join(map(self._frame, texts)))

    def _frame(self, text: str) -> bytes:
        data = text.encode()
        if len(data) < 126:
            head = struct.pack("!BB", 0x81, 0x80 | len(data))
        elif len(data) < 65536:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, len(data))
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, len(data))
        # A mask of zeros is valid and leaves the bytes unchanged.
        return head + b"\0\0\0\0" + data

    def emit(self, event: str, argument: object, id: int | None = None) -> None:
        self.send(f"42{'' if id is None else id}{json.dumps([event, argument])}")

    def events(self, name: str) -> list[Any]:
        """Return the arguments of all received events ``name``."""
        prefix = f'2["{name}",'
        return [json.loads(packet[1:])[1] for packet in self.packets if packet.startswith(prefix)]

    def feed(self) -> None:
        """Read and parse available data."""
        try:
            data = self.socket.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        self._buffer += data
        if not self.shaken:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            assert b" 101 " in head.split(b"\r\n")[0], head
            self.shaken, self._buffer = True, rest
        self._parse()

    def _parse(self) -> None:
        buffer, position = self._buffer, 0
        while len(buffer) - position >= 2:
            size, start = buffer[position + 1] & 0x7F, position + 2
            if size == 126:
                if len(buffer) < start + 2:
                    break
                size, start = int.from_bytes(buffer[start : start + 2], "big"), start + 2
            elif size == 127:
                if len(buffer) < start + 8:
                    break
                size, start = int.from_bytes(buffer[start : start + 8], "big"), start + 8
            if len(buffer) < start + size:
                break
            assert buffer[position] in (0x81, 0x82, 0x88), f"unexpected frame {buffer[position]:#x}"
            if buffer[position] == 0x81:
                self._packet(buffer[start : start + size].decode())
            elif buffer[position] == 0x82:
                self.packets.append(buffer[start : start + size])
            else:
                self.close_code = int.from_bytes(buffer[start : start + 2], "big")
            position = start + size
        self._buffer = buffer[position:]

    def _packet(self, packet: str) -> None:
        if packet == "2":
            if self.answers_pings:
                self.send("3")
        elif packet.startswith("0"):
            self.opened = True
            if self.answers_connect:
                self.send("40" + ("" if self.auth is None else json.dumps(self.auth)))
        elif packet.startswith("4"):
            if packet.startswith("40"):
                self.connected = True
            self.packets.append(packet[1:])
            if self.answers_calls and packet[2:3].isdigit() and packet[1] == "2":
                self.send(f'43{packet[2 : packet.index("[")]}["yes"]')
        else:
            self.raw.append(packet)


class Swarm:
    """Many raw WebSocket clients, run by the calling thread."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._selector = selectors.DefaultSelector()
        self.clients: list[RawClient] = []

    def connect(
        self, number: int, seconds: float = PATIENCE, at_once: int = 200, receive_buffer: int | None = None
    ) -> list[RawClient]:
        """Connect ``number`` more clients, including Socket.IO's CONNECT. ``receive_buffer``: SO_RCVBUF in bytes."""
        new: list[RawClient] = []
        deadline = time.monotonic() + seconds
        while len(new) < number:
            group = self.open(min(at_once, number - len(new)), receive_buffer)
            new += group
            self.run_until(lambda group=group: all(client.connected for client in group), deadline - time.monotonic())  # type: ignore[misc]
        return new

    def open(self, number: int, receive_buffer: int | None = None) -> list[RawClient]:
        """Open ``number`` more clients that have only sent their handshake."""
        return [self._open("", receive_buffer) for _ in range(number)]

    def upgrade(self, sid: str) -> RawClient:
        """Open a WebSocket for the polling Engine.IO session ``sid``."""
        return self._open(f"&sid={sid}", None)

    def run_until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Let the clients read until ``condition`` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                closed = sum(client.closed for client in self.clients)
                raise AssertionError(
                    f"condition not met within {seconds:.0f} s; {closed} of {len(self.clients)} clients are closed"
                )
            for key, _ in self._selector.select(min(left, 1.0)):
                client: RawClient = key.data
                client.feed()
                if client.closed:
                    self._selector.unregister(client.socket)
                    client.socket.close()

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()
        self._selector.close()

    def __enter__(self) -> "Swarm":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pause(self, client: RawClient) -> None:
        """Stop reading from ``client``."""
        self._selector.unregister(client.socket)

    def resume(self, client: RawClient) -> None:
        self._selector.register(client.socket, selectors.EVENT_READ, client)

    def leave(self, client: RawClient, *, reset: bool = False) -> None:
        """Close ``client``'s connection without a close frame; ``reset``: with a TCP reset."""
        self._selector.unregister(client.socket)
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        client.closed = True

    def _open(self, query: str, receive_buffer: int | None) -> RawClient:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE)
        connection.connect(self._address)
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET /socket.io/?EIO=4&transport=websocket{query} HTTP/1.1\r\n"
            f"Host: {self._address[0]}:{self._address[1]}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        connection.setblocking(False)
        client = RawClient(connection)
        self._selector.register(connection, selectors.EVENT_READ, client)
        self.clients.append(client)
        return client
