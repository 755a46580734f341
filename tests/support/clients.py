"""Socket.IO clients for the tests: one with python-socketio, and many at once over raw WebSockets."""

import base64
import json
import os
import queue
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import engineio
import socketio

from tests.support.patience import PATIENCE


class _InOrder(engineio.Client):  # type: ignore[misc]
    """Handles packets one after the other: python-engineio's client starts a thread for each, and they overtake."""

    def _trigger_event(self, event: str, *arguments: Any, **options: Any) -> Any:
        return super()._trigger_event(event, *arguments, **options | {"run_async": False})


class _InOrderClient(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[engineio.Client]:
        return _InOrder


class SocketClient:
    """python-socketio's own client, whose events can be waited for, in the order in which they came.

    ``wait``: try until the server is there.
    """

    EVENTS = (
        "server_hello",
        "subscribed",
        "unsubscribed",
        "published",
        "event",
        "gap",
        "error",
        "disconnect",
        "connect",
        "connect_error",
        "authenticated",
        "token_expiring",
    )

    def __init__(
        self,
        url: str,
        transports: tuple[str, ...] = ("websocket",),
        wait: bool = False,
        auth: Any = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._events: dict[str, queue.Queue[Any]] = {name: queue.Queue() for name in self.EVENTS}
        options = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.5} | options
        self.io = _InOrderClient(**options)
        for name in self.EVENTS:
            self.io.on(name, self._recorder(name))
        self.io.connect(
            url, transports=list(transports), wait_timeout=PATIENCE, retry=wait, auth=auth, headers=headers or {}
        )

    def next(self, event: str, seconds: float = PATIENCE) -> Any:
        """The argument of the next ``event``, in the order of their arrival."""
        try:
            return self._events[event].get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"no event {event!r} within {seconds} s") from None

    def pending(self, event: str) -> int:
        """How many of ``event`` have arrived and were not taken by :meth:`next`."""
        return self._events[event].qsize()

    def call(self, event: str, argument: Any = None, seconds: float = PATIENCE) -> Any:
        """Send ``event``; returns its acknowledgement."""
        return self.io.call(event, argument, timeout=seconds)

    def subscribe(self, channel: str) -> None:
        answer = self.call("subscribe", {"channel": channel})
        assert answer == {"ok": True, "channel": channel}

    def close(self) -> None:
        """Leave, and wait until none of the client's threads runs any more.

        Its own `shutdown()` misses a connection that is being lost at the same time: it would go on coming back.
        """
        self.io.reconnection = False
        reading = self.io.eio.read_loop_task
        self._let_posts_end()
        if self.io.eio.state == "connected":
            self.io.disconnect()
        if reading is not None:
            reading.join(PATIENCE)
        coming_back = self.io._reconnect_task
        while coming_back is not None and coming_back.is_alive():
            if self.io._reconnect_abort is not None:
                self.io._reconnect_abort.set()  # the thread clears it when it starts: so again and again
            coming_back.join(0.05)
        if self.io.connected:
            self.io.disconnect()

    def _let_posts_end(self) -> None:
        """python-engineio's client forgets to say good-bye while a POST is under way, and its last poll then waits."""
        if self.io.eio.current_transport == "polling" and self.io.eio.state == "connected":
            sending = self.io.eio.queue
            with sending.all_tasks_done:
                sending.all_tasks_done.wait_for(lambda: not sending.unfinished_tasks, timeout=5)

    def __enter__(self) -> "SocketClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recorder(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._events[name].put(arguments[0] if arguments else None)


def code(answer: dict[str, Any]) -> str | None:
    """The code of an acknowledgement's error, None when all is well."""
    assert answer["ok"] is ("error" not in answer)
    found: str | None = answer["error"]["code"] if "error" in answer else None
    return found


def refused(url: str, **options: Any) -> Any:
    """What a client is told that the server does not let in; ``options`` as of :class:`SocketClient`."""
    told: queue.Queue[Any] = queue.Queue()

    class Client(SocketClient):
        def _recorder(self, name: str) -> Callable[..., None]:
            return told.put if name == "connect_error" else super()._recorder(name)

    try:
        Client(url, reconnection=False, **options).close()
    except socketio.exceptions.ConnectionError:
        return told.get(timeout=PATIENCE)
    raise AssertionError("the client was let in")


class RawClient:
    """One WebSocket of a :class:`Swarm`: what arrives is in :attr:`packets`, without its Engine.IO type."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.packets: deque[Any] = deque()
        #: Engine.IO's OPEN has come; Socket.IO's CONNECT has been answered.
        self.opened = self.connected = False
        #: Packets that are not Socket.IO's.
        self.raw: list[str] = []
        self.closed = False
        self.close_code: int | None = None
        self.answers_pings = True
        #: Whether Socket.IO's CONNECT is sent, and with what.
        self.answers_connect = True
        self.auth: object = None
        self.answers_calls = False
        self._buffer = b""
        self.shaken = False

    def send(self, text: str) -> None:
        """One text frame: an Engine.IO packet."""
        self.socket.sendall(self._frame(text))

    def send_binary(self, data: bytes) -> None:
        """One binary frame: an attachment."""
        head = struct.pack("!BBQ", 0x82, 0xFF, len(data)) if len(data) > 125 else bytes((0x82, 0x80 | len(data)))
        self.socket.sendall(head + b"\0\0\0\0" + data)

    def send_all(self, *texts: str) -> None:
        """Many text frames in one segment."""
        self.socket.sendall(b"".join(map(self._frame, texts)))

    def _frame(self, text: str) -> bytes:
        data = text.encode()
        if len(data) < 126:
            head = struct.pack("!BB", 0x81, 0x80 | len(data))
        elif len(data) < 65536:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, len(data))
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, len(data))
        # A mask of zeros is a mask: the bytes stay as they are.
        return head + b"\0\0\0\0" + data

    def emit(self, event: str, argument: object, id: int | None = None) -> None:
        self.send(f"42{'' if id is None else id}{json.dumps([event, argument])}")

    def events(self, name: str) -> list[Any]:
        """The arguments of the events ``name`` that have arrived."""
        prefix = f'2["{name}",'
        return [json.loads(packet[1:])[1] for packet in self.packets if packet.startswith(prefix)]

    def feed(self) -> None:
        """Read what there is."""
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
        self, number: int, seconds: float = 60.0, at_once: int = 200, receive_buffer: int | None = None
    ) -> list[RawClient]:
        """``number`` more clients, each past Socket.IO's CONNECT. ``receive_buffer``: bytes that the kernel keeps."""
        new: list[RawClient] = []
        deadline = time.monotonic() + seconds
        while len(new) < number:
            group = self.open(min(at_once, number - len(new)), receive_buffer)
            new += group
            self.run_until(lambda group=group: all(client.connected for client in group), deadline - time.monotonic())  # type: ignore[misc]
        return new

    def open(self, number: int, receive_buffer: int | None = None) -> list[RawClient]:
        """``number`` more clients that have sent their handshake."""
        return [self._open("", receive_buffer) for _ in range(number)]

    def upgrade(self, sid: str) -> RawClient:
        """A WebSocket for the Engine.IO session ``sid``, which so far is polling."""
        return self._open(f"&sid={sid}", None)

    def run_until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Let the clients read until ``condition``."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                closed = sum(client.closed for client in self.clients)
                raise AssertionError(
                    f"not so within {seconds:.0f} s; {closed} of {len(self.clients)} clients are closed"
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
        """Close ``client``'s connection without a word; ``reset``: with a TCP reset."""
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
