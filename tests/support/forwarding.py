"""A queue that loses chosen messages, and leaders and nodes on it, in this process on a real PostgreSQL."""

import json
from functools import partial
from typing import Any

from socketio_pg.cluster.forwarder import Forwarder
from socketio_pg.cluster.remote_listener import HEARD, WANTED, RemoteListener
from socketio_pg.core import green
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.postgres.listeners import Listeners
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster

#: Seconds after which a silent leader, node or queue counts as lost: long enough for a pause of this process on a busy
#: machine, which would otherwise cause gaps that no test expects.
TIMEOUT = 3.0


class Wire:
    """A queue like Redis: it delivers in order to all receivers, or loses a message."""

    def __init__(self) -> None:
        self.receivers: list[tuple[str, Any]] = []
        #: Numbers, from 1, of messages that are lost, and of messages that arrive after the next one.
        self.lost: set[int] = set()
        self.late: set[int] = set()
        self._overtaken: list[str] = []
        self.sent = 0
        self._waiting: Any = green.Queue()
        self._thread = green.spawn(self._run)

    def tell(self, command: dict[str, Any]) -> None:
        self.sent += 1
        if self.sent in self.late:
            self._overtaken.append(json.dumps(command))
        elif self.sent not in self.lost:
            self._waiting.put(json.dumps(command))
            while self._overtaken:
                self._waiting.put(self._overtaken.pop())

    def _run(self) -> None:
        while True:
            text = self._waiting.get()
            for method, receive in self.receivers:
                command = json.loads(text)
                if command["method"] == method:
                    receive(command)

    def close(self) -> None:
        self._thread.kill()


class Node:
    """A node that only listens, and records what it receives, in order: notifications and gaps."""

    def __init__(self, wire: Wire) -> None:
        self.received: list[tuple[str, str]] = []
        self.listener = RemoteListener(self.received.extend, self._gap, wire.tell)
        self.listener.retry_interval = 0.05
        self.listener.beat_interval = 0.1
        self.listener.leader_timeout = TIMEOUT
        wire.receivers.append((HEARD, self.listener.receive))
        self.listener.start()

    def _gap(self, gap: NotifyGap) -> None:
        self.received.append((gap.channel, "gap"))

    def wait(self, *received: tuple[str, str]) -> None:
        """Wait until these are the last ones received."""
        with green.timeout(PATIENCE):
            while tuple(self.received[-len(received) :]) != received:
                green.sleep(0.005)

    def wait_ready(self) -> None:
        with green.timeout(PATIENCE):
            while not self.listener.ready:
                green.sleep(0.005)


class World:
    """A queue with its leaders and nodes."""

    def __init__(self, postgres: Cluster, database: str = "postgres") -> None:
        self.database = Database(postgres.url(database))
        self.wire = Wire()
        self.leaders: list[Forwarder] = []
        self.nodes: list[Node] = []

    def leader(self, *, eager: bool = True) -> Forwarder:
        made = Forwarder(partial(Listeners, self.database), self.wire.tell, eager=eager)
        made.beat_interval, made.node_timeout, made.echo_timeout = 0.05, TIMEOUT, TIMEOUT
        self.wire.receivers += [(WANTED, made.receive), (HEARD, made.receive_echo)]
        self.leaders.append(made)
        made.lead(True)
        return made

    def node(self) -> Node:
        self.nodes.append(Node(self.wire))
        return self.nodes[-1]

    def close(self) -> None:
        for leader in self.leaders:
            leader.lead(False)
        for node in self.nodes:
            node.listener.stop()
        self.wire.close()


def listen(node: Node, *channels: str) -> None:
    for channel in channels:
        node.listener.acquire(channel)
    for channel in channels:
        node.listener.wait(channel, PATIENCE)
