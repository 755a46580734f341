"""Processes of a cluster in the test's own process, and a wire between their nodes that can be cut."""

from collections.abc import Callable, Sequence
from typing import Any

from socketio_pg.cluster.bus import Bus
from socketio_pg.cluster.processes import Process
from socketio_pg.core import green
from socketio_pg.workers.node import Node
from socketio_pg.workers.workers import Workers
from tests.support.patience import until


class Wire:
    """Carries the texts of all its ends to all of them, in one order."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.texts = 0

    def end(self) -> "End":
        self.ends.append(End(self))
        return self.ends[-1]

    def deliver(self, text: str) -> None:
        for end in self.ends:
            if end.up:
                end.inject(text)


class End:
    """One node's carrier. It is cut while it is not ``up``."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._texts = green.Queue()
        self._worker = green.Worker()
        self._receive: Callable[[str], None] = lambda text: None
        self._on_gap: Callable[[], None] = lambda: None
        self.up = True

    def start(self, receive: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        self._receive, self._on_gap = receive, on_gap
        self._worker.start(self._run)

    def wait(self, seconds: float) -> bool:
        return self.up

    def send(self, texts: Sequence[str]) -> bool:
        green.sleep()
        if self.up:
            self._wire.texts += len(texts)
            for text in texts:
                self._wire.deliver(text)
        return self.up

    def inject(self, text: str) -> None:
        """Receive a text of anybody."""
        self._texts.put(text)

    def restore(self) -> None:
        self.up = True
        self._on_gap()

    def stop(self) -> None:
        self.up = False
        self._worker.stop()

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            if self.up:
                self._receive(text)


class Quick(Bus):
    """A bus whose times are short, with what it has received."""

    interval, settle_seconds = 0.05, 0.2

    def __init__(self, carrier: Any, node: Node | None = None) -> None:
        self.worker_node = None if node is None else Node(node.directory, node._key)
        self.made = None if self.worker_node is None else Workers(self.worker_node, lambda leading: None)
        super().__init__(carrier, self.made)
        self._sending.settle_seconds = self.settle_seconds
        self._sending.greet_seconds = self._sending.retry_seconds = (0.02, self.interval)
        self.carrier = carrier
        self.received: list[tuple[str, Any]] = []
        self.joined: list[Process] = []
        self.departed: list[Process] = []
        self.gaps = 0
        self.receive("word", lambda sender, body: self.received.append((sender, body)))
        self.answer("double", lambda sender, body: body * 2)
        self.on_joined(self.joined.append)
        self.on_left(self.departed.append)
        self.on_gap(self._note_gap)
        if self.made is not None:
            self.made.start()
        self.start()

    def _note_gap(self) -> None:
        self.gaps += 1

    def die(self) -> None:
        """End without a word, as a process that is killed."""
        self._sending._worker.stop()
        self._beater.stop()
        if isinstance(self.carrier, End):
            self.carrier.stop()
        if self.made is not None:
            self.made.stop()

    def close(self) -> None:
        self.stop()
        self.die()


def know(*buses: Bus) -> None:
    """Wait until each of them knows exactly the others, and has settled."""
    ids = {bus.own.id for bus in buses}
    many = len({bus.own.node for bus in buses}) > 1
    wait(
        lambda: all(
            {process.id for process in bus.processes} == ids - {bus.own.id} and bus.has_other_nodes is many
            for bus in buses
        ),
        "all processes know each other",
    )


def wait(condition: Callable[[], object], what: str) -> None:
    until(lambda: green.sleep(0.002) or condition(), what)
