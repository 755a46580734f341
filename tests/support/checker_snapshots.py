"""The checker's snapshot client: reads rows with a token at random times, subscribes with it, and counts both."""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.subscriber.subscriber import Live, Message, Subscriber

#: The rows that belong to the messages: the writers insert them in the same transactions.
MIRROR = "CREATE TABLE mirror (channel text, id text)"


@dataclass(slots=True)
class Seen:
    """The rows of one snapshot, and the messages that followed."""

    rows: set[str]
    messages: list[str] = field(default_factory=list)


class SnapshotProgram(threading.Thread):
    """Takes snapshots of all ``channels`` again and again, on changing nodes, until :meth:`calm`; then a last one."""

    def __init__(self, name: str, database: str, ports: Sequence[int], channels: Sequence[str], random: Random) -> None:
        super().__init__(name=name, daemon=True)
        self.channels = channels
        #: By channel; the last one is complete at the end.
        self.seen: dict[str, list[Seen]] = {channel: [] for channel in channels}
        self._database = database
        self._ports = ports
        self._random = random
        self._calm, self._ending = threading.Event(), threading.Event()
        self._positions: dict[str, int] = {}
        self._last = False

    def calm(self) -> None:
        self._calm.set()

    def end(self) -> None:
        self._calm.set()
        self._ending.set()
        self.join()

    def caught_up(self, newest: dict[str, int]) -> bool:
        return self._last and all(self._positions.get(one, -1) >= newest.get(one, 0) for one in self.channels)

    def run(self) -> None:
        while not self._ending.is_set():
            last = self._calm.is_set()
            url = f"http://127.0.0.1:{self._random.choice(self._ports)}"
            with Subscriber(
                url, retry=True, timeout=5.0, retry_delay=0.1, retry_delay_max=0.5, reconnection_delay_max=0.5
            ) as subscriber:
                for channel in self.channels:
                    while not self._subscribe(subscriber, channel) and not self._ending.is_set():
                        self._ending.wait(0.1)
                self._last = last
                (self._ending if last else self._calm).wait(None if last else self._random.expovariate(1.0))
                self._positions.clear()

    def _subscribe(self, subscriber: Subscriber, channel: str) -> bool:
        def on_rows(rows: list[str]) -> None:
            self.seen[channel].append(Seen(set(rows)))

        def handle(message: Message) -> None:
            self.seen[channel][-1].messages.append(message["payload"]["id"])
            self._positions[channel] = message["position"]

        def on_live(live: Live) -> None:
            self._positions[channel] = max(self._positions.get(channel, 0), live.get("position", 0))

        with contextlib.suppress(psycopg.Error, SocketIOPGError, ConnectionError, TimeoutError):
            subscriber.subscribe(channel, handle, load=lambda: self._load(channel), on_rows=on_rows, on_live=on_live)
            return True
        return False

    def _load(self, channel: str) -> tuple[list[str], str]:
        rows = "SELECT coalesce(array_agg(id), '{}') FROM mirror WHERE channel = %s"
        with psycopg.connect(self._database) as connection:
            if self._random.random() < 0.5:
                both: Any = connection.execute(f"SELECT ({rows}), socketio_pg.snapshot()", (channel,)).fetchone()
                return both[0], both[1]
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            token: Any = connection.execute("SELECT socketio_pg.snapshot()").fetchone()
            self._ending.wait(self._random.uniform(0.0, 0.3))
            found: Any = connection.execute(rows, (channel,)).fetchone()
            return found[0], token[0]

    def problems(self, mirror: Mapping[str, set[str]]) -> list[str]:
        """Compare with all rows, by channel."""
        found = []
        for channel, snapshots in self.seen.items():
            everything = mirror.get(channel, set())
            for one in snapshots:
                messages = set(one.messages) & everything
                if len(set(one.messages)) < len(one.messages):
                    found.append(f"{self.name} got messages of {channel} twice")
                both = len(one.rows & messages)
                if both:
                    found.append(f"{self.name} got {both} messages of {channel} that were in the rows")
                if one is snapshots[-1] and one.rows | messages != everything:
                    missing = len(everything - one.rows - messages)
                    found.append(f"{self.name} missed {missing} of {len(everything)} messages of {channel}")
        return found
