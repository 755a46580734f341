"""The checker's Socket.IO clients: raw WebSockets, run by one thread, that reconnect after every disconnect."""

import heapq
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.support.patience import PATIENCE
from tests.support.swarm import RawClient, Swarm

#: Seconds within which a server that accepts connections must connect a client, and within which it must answer.
CONNECT_SECONDS, ANSWER_SECONDS = 60.0, 90.0


class Connections(Swarm):
    """Raw clients on several ports, run in steps."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", 0)

    def open_at(self, port: int, receive_buffer: int | None) -> RawClient:
        """Return a client that has sent its handshake. Raises OSError when no server listens."""
        self._address = ("127.0.0.1", port)
        (client,) = self.open(1, receive_buffer)
        self.clients.clear()  # the caller owns it
        return client

    def step(self, seconds: float) -> None:
        """Wait up to ``seconds``, then read from all readable clients."""
        for key, _ in self._selector.select(seconds):
            client: RawClient = key.data
            try:
                client.feed()
            except OSError:  # answering a ping
                client.closed = True
            except AssertionError:
                if client.shaken:
                    raise
                client.closed = True  # a node that shuts down answers the handshake with 503
            if client.closed:
                self._selector.unregister(client.socket)
                client.socket.close()


class Loop(threading.Thread):
    """Runs all clients and their timers."""

    def __init__(self) -> None:
        super().__init__(name="clients", daemon=True)
        self.connections = Connections()
        self.clients: list[Client] = []
        self.problems: list[str] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._ending = threading.Event()

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` in this thread after ``seconds``."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), callback))

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                self._run_once()
        except BaseException as error:
            self.problems.append(f"the clients' thread ended with {error!r}")
            raise
        finally:
            self.connections.close()

    def _run_once(self) -> None:
        wait = self._timers[0][0] - time.monotonic() if self._timers else 0.05
        self.connections.step(max(0.0, min(wait, 0.05)))
        for client in self.clients:
            client.look()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def end(self) -> None:
        self._ending.set()
        self.join()


class Client:
    """A client that connects to a node, and reconnects after every disconnect. Its methods run in the loop's thread."""

    def __init__(self, loop: Loop, name: str, ports: Sequence[int], random: Random) -> None:
        self.name = name
        self._loop = loop
        self._ports = ports
        self._random = random
        self._port = random.choice(ports)
        #: Size of the kernel's receive buffer; the smaller, the sooner the server notices that we do not read.
        self._receive_buffer = random.choice((None, None, 65_536))
        self._raw: RawClient | None = None
        self._up = False
        self._paused = False
        self._ids = itertools.count(1)
        self._answers: dict[int, Callable[[dict[str, Any]], None]] = {}
        #: How often it connected, and how often the connection was lost involuntarily.
        self.connects = self.cuts = 0

    def start(self) -> None:
        """Connect. Call it before the loop's thread runs, or in that thread."""
        self._loop.clients.append(self)
        self._connect()

    def look(self) -> None:
        """Handle received packets."""
        raw = self._raw
        if raw is None:
            return
        while raw.packets and raw is self._raw:
            self._on_packet(raw.packets.popleft())
        if raw.closed and raw is self._raw:
            self.cuts += 1
            self._lost(self._random.uniform(0.0, 0.3))

    def leave(self, seconds: float, port: int | None = None) -> None:
        """Close the connection, with or without a reset. Reconnect after ``seconds``, to ``port`` if given."""
        if port is not None:
            self._port = port
        raw = self._raw
        if raw is not None:
            self._resume()
            if not raw.closed:
                self._loop.connections.leave(raw, reset=self._random.random() < 0.5)
            self._lost(seconds)

    def desert(self, seconds: float, port: int | None = None) -> None:
        """Give the connection up; the server does not notice it. Otherwise like :meth:`leave`."""
        raw = self._raw
        if raw is None or raw.closed:
            return
        if not self._paused:
            self._loop.connections.pause(raw)
        self._loop.later(ANSWER_SECONDS, raw.socket.close)
        raw.closed = True
        self._port = self._port if port is None else port
        self._lost(seconds)

    def pause(self, seconds: float) -> None:
        """Stop reading."""
        if self._raw is not None and not self._raw.closed and not self._paused:
            self._paused = True
            self._loop.connections.pause(self._raw)
            raw = self._raw
            self._loop.later(seconds, lambda: self._resume() if raw is self._raw else None)

    def request(self, event: str, argument: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        """Send ``event``. ``answered`` gets the acknowledgement, unless the connection is lost before it comes."""
        raw = self._raw
        if raw is None or not self._up:
            return
        number = next(self._ids)
        self._answers[number] = answered
        self._loop.later(ANSWER_SECONDS, lambda: self._never_answered(event, number))

        def send() -> None:
            # A large request must not be sent partially.
            raw.socket.settimeout(PATIENCE)
            try:
                raw.emit(event, argument, number)
            finally:
                raw.socket.setblocking(False)

        self._guarded(send)

    # -- callbacks of subclasses ---------------------------------------------------------------------------------------

    def _auth(self) -> dict[str, Any] | None:
        """Return the data of the next CONNECT."""
        return None

    def _on_connected(self, answer: dict[str, Any]) -> None:
        """Called when the client is connected, with the data of the answer to its CONNECT."""

    def _on_event(self, event: str, argument: Any) -> None:
        """Called for each event of the server, with its arguments."""

    def _on_lost(self) -> None:
        """Called when the connection is lost; pending requests will not be answered."""

    def _improper(self, text: str) -> None:
        """Called when something happens that never should."""

    # -- private -------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        try:
            raw = self._raw = self._loop.connections.open_at(self._port, self._receive_buffer)
        except OSError:  # the node is down
            self._loop.later(0.2, self._connect)
            return
        raw.auth = self._auth()

        def still_waiting() -> None:
            if raw is self._raw and not self._up:
                self._improper(f"was not connected within {CONNECT_SECONDS:g} s")
                self.leave(1.0)

        self._loop.later(CONNECT_SECONDS, still_waiting)

    def _lost(self, seconds: float) -> None:
        self._raw, self._up, self._paused = None, False, False
        self._answers.clear()
        self._on_lost()
        self._loop.later(seconds, self._connect)

    def _resume(self) -> None:
        if self._paused and self._raw is not None:
            self._paused = False
            self._loop.connections.resume(self._raw)

    def _on_packet(self, packet: str) -> None:
        if packet.startswith("0"):
            self._up = True
            self.connects += 1
            self._guarded(lambda: self._on_connected(json.loads(packet[1:])))
        elif packet.startswith("2["):
            self._on_event(*json.loads(packet[1:]))
        elif packet.startswith("3"):
            start = packet.index("[")
            answered = self._answers.pop(int(packet[1:start]), None)
            if answered is None:
                self._improper(f"got an unexpected acknowledgement: {packet[:100]}")
            else:
                answered(json.loads(packet[start:])[0])

    def _never_answered(self, event: str, number: int) -> None:
        if number in self._answers:
            self._improper(f"got no answer to {event} within {ANSWER_SECONDS:g} s")
            self.leave(0.5)

    def _guarded(self, send: Callable[[], None]) -> None:
        """Call ``send``. If the connection is lost meanwhile, mark it closed; the loop handles it."""
        raw = self._raw
        try:
            send()
        except OSError:
            if raw is not None and not raw.closed:
                self._resume()
                self._loop.connections.leave(raw)
                raw.closed = True
