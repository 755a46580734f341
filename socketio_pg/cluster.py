"""The client manager of a server that is one of several nodes: the fan-out of `fanout`, with a queue to the others."""

import importlib.util
import logging
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import socketio

from socketio_pg import fanout, green
from socketio_pg.channels import QUEUE_CHANNEL
from socketio_pg.complaints import Complaints
from socketio_pg.errors import ConfigurationError
from socketio_pg.forwarder import Forwarder
from socketio_pg.parts import Assembler, split
from socketio_pg.publisher import Outgoing
from socketio_pg.pubsub import PubSub
from socketio_pg.queue_manager import Command, QueueManager
from socketio_pg.relay import Relay
from socketio_pg.remote_listener import HEARD, WANTED, RemoteListener

logger = logging.getLogger("socketio_pg.cluster")
_complain = Complaints(logger)

#: A cut cable is found in about 15 s.
_REDIS_OPTIONS = {
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "socket_keepalive_options": {
        socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 15_000,
    },
}  # fmt: skip


class ClusterManager(QueueManager, fanout.Manager):
    """The rooms of one node, and the way to the other nodes'."""

    _green: green.GreenThread | None = None

    def stop(self) -> None:
        """Hear nothing more from other nodes."""
        thread, self._green = self._green, None
        if thread is not None:
            thread.kill()

    def _thread(self) -> None:
        self._green = green.current()
        super()._thread()


class _OwnConnections(socketio.PubSubManager):  # type: ignore[misc]
    """A queue on the two connections to PostgreSQL that a server has anyway."""

    name = "postgres"

    def __init__(self, pubsub: PubSub) -> None:
        super().__init__(channel=QUEUE_CHANNEL)
        self._pubsub = pubsub
        self._assembler = Assembler()
        # Bounded: what does not fit waits in PostgreSQL.
        self._received = green.Queue(1000)

    def initialize(self) -> None:
        self._pubsub.receive_reserved(QUEUE_CHANNEL, self._receive, self._missed)
        super().initialize()

    def _publish(self, data: Command) -> None:
        self._pubsub.publisher.publish([Outgoing(QUEUE_CHANNEL, part) for part in split(self.json.dumps(data))])

    def _receive(self, parts: Sequence[str]) -> None:
        for part in parts:
            text = self._assembler.add(part)
            if text is not None:
                self._received.put(text)

    def _missed(self) -> None:
        logger.warning("emits, disconnects and callbacks of other nodes may have been missed")

    def _listen(self) -> Iterator[Any]:
        while True:
            yield self._received.get()


class _PostgresCluster(ClusterManager, _OwnConnections):
    pass


class _RedisCluster(ClusterManager, socketio.RedisManager):  # type: ignore[misc]
    """Gives up on a Redis that stands still, as the stock manager does on one that is away: with a line in the log."""

    #: Seconds that publishing may take.
    publish_timeout = 5.0

    def __init__(self, url: str, channel: str) -> None:
        super().__init__(url, channel, redis_options=_REDIS_OPTIONS)

    def _publish(self, data: Command) -> None:
        try:
            with green.timeout(self.publish_timeout):
                super()._publish(data)
        except green.TimedOut:
            self.connected = False
            _complain(logging.ERROR, "nothing can be published on the message queue: it does not answer")


def create_manager(message_queue: str | None, channel: str, pubsub: PubSub) -> fanout.Manager:
    """The manager for MESSAGE_QUEUE, None for a node on its own, and MESSAGE_QUEUE_CHANNEL.

    Raises :class:`ConfigurationError` when a package is missing.
    """
    if message_queue is None:
        return fanout.Manager()
    if message_queue == "postgres":
        return _PostgresCluster(pubsub)
    package = "valkey" if message_queue.startswith("valkey") else "redis"
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(f"MESSAGE_QUEUE needs the package {package}: pip install 'socketio_pg[{package}]'.")
    return _RedisCluster(message_queue, channel)


def listen_through_leader(manager: fanout.Manager, pubsub: PubSub, relay: Relay) -> None:
    """Have ``pubsub`` hear what the node that relays hears, over the queue of ``manager``.

    Raises :class:`ConfigurationError` when there is no such queue.
    """
    if not isinstance(manager, _RedisCluster) or not isinstance(pubsub.listener, RemoteListener):
        raise ConfigurationError("LISTEN=leader needs MESSAGE_QUEUE with the address of a Redis or Valkey.")
    forwarder = Forwarder(pubsub.database, manager.tell)
    pubsub.listener.tell = manager.tell
    manager.receivers |= {WANTED: forwarder.receive, HEARD: pubsub.listener.receive}
    relay.on_leading = forwarder.lead
