"""Exchanges ephemeral messages with the other processes over the bus: those of this process in batches."""

import math
from collections.abc import Callable
from typing import Any

from socketio_pg.cluster.bus import Bus
from socketio_pg.cluster.processes import Process, ProcessId
from socketio_pg.core import metrics
from socketio_pg.ephemeral.messages import EphemeralMessage, from_batch, to_batch
from socketio_pg.ephemeral.rounds import Round

#: The kind of the bus's messages. A body has the messages of each channel.
KIND = "ephemeral"
#: Seconds between two batches; the first after a pause is sent at once.
PAUSE = 0.05

_received = metrics.ephemeral_messages.labels("processes")


class Exchange:
    """The messages between this process and the others. ``accept(message)`` gets those of the others."""

    def __init__(self, bus: Bus, accept: Callable[[EphemeralMessage], None]) -> None:
        self._bus = bus
        self._accept = accept
        self._others = 0
        self._round = Round(-math.inf)
        #: Messages that a newer one has replaced before they were sent, so far.
        self.replaced = 0
        bus.receive(KIND, self._hear)
        bus.on_joined(self._count)
        bus.on_left(self._count)

    def add(self, message: EphemeralMessage) -> float:
        """Have a message sent to the other processes. Return the time of its batch (monotonic), infinity for none."""
        if not self._others:
            return math.inf
        self.replaced += self._round.add(message)
        return self._round.due

    def next_due(self) -> float | None:
        """Return the time of the next batch; None when nothing waits."""
        return self._round.due if self._round else None

    def send_due(self, now: float) -> None:
        """Send the batch if it is due. Does not wait."""
        if not self._round or self._round.due > now:
            return
        self._round.due = now + PAUSE
        # While earlier ones are on their way the newest messages wait here, instead of all of them there.
        if self._bus.idle:
            self._bus.tell(KIND, to_batch(self._round.take()))

    def _hear(self, sender: ProcessId, body: Any) -> None:
        for message in from_batch(body):
            _received.inc()
            self._accept(message)

    def _count(self, process: Process) -> None:
        self._others = len(self._bus.processes)
