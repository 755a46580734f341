"""The client manager of a node with the server's own PostgreSQL connections as the message queue."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import socketio

from socketio_pg.cluster.chunks import Assembler, split
from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.core import green
from socketio_pg.core.channels import QUEUE_CHANNEL
from socketio_pg.pubsub.pubsub import PubSub

logger = logging.getLogger("socketio_pg.cluster")


class _OwnConnections(socketio.PubSubManager):  # type: ignore[misc]
    """A queue on the LISTEN connection and the publishing connection that every server has."""

    name = "postgres"

    def __init__(self, pubsub: PubSub) -> None:
        super().__init__(channel=QUEUE_CHANNEL)
        self._pubsub = pubsub
        self._assembler = Assembler()
        # Bounded: while it is full, further messages wait in PostgreSQL.
        self._received = green.Queue(1000)

    def initialize(self) -> None:
        self._pubsub.receive_reserved(QUEUE_CHANNEL, self._receive, self._missed)
        super().initialize()

    def _publish(self, data: Command) -> None:
        self._pubsub.publish_reserved(QUEUE_CHANNEL, map(self._seal, split(self.json.dumps(data))))

    def _receive(self, parts: Sequence[str]) -> None:
        for sealed in parts:
            part = self._sealing.open(QUEUE_CHANNEL, sealed)
            text = None if part is None else self._assembler.add(part)
            if text is not None:
                self._received.put(text)

    def _missed(self) -> None:
        logger.warning("emits, disconnects and callbacks from other nodes may have been missed")

    def _listen(self) -> Iterator[Any]:
        while True:
            yield self._received.get()


class PostgresCluster(ClusterManager, _OwnConnections):
    """The rooms of one node, with a queue on the connections of ``pubsub``. Emitting raises as publishing does."""

    def _open(self, text: str | bytes | None) -> str | None:
        # Its parts have been opened.
        return str(text)
