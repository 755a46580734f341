"""Creates the parts of a node that MESSAGE_QUEUE and LISTEN select: client manager, listener, forwarder."""

import importlib.util
from collections.abc import Callable

from socketio_pg.cluster.forwarder import Forwarder
from socketio_pg.cluster.kafka import KafkaCluster
from socketio_pg.cluster.postgres import PostgresCluster
from socketio_pg.cluster.redis import RedisCluster
from socketio_pg.cluster.remote_listener import HEARD, WANTED, RemoteListener
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import ChannelListener, OnGap, OnNotifications
from socketio_pg.postgres.listeners import Listeners
from socketio_pg.protocol import fanout
from socketio_pg.pubsub.pubsub import PubSub

#: The package that each kind of queue needs, as in the extras of setup.py.
REQUIREMENTS = {"redis": "redis>=5", "valkey": "valkey>=6", "kafka": "kafka-python>=2.0.2"}


def check(settings: Settings) -> None:
    """Raise :class:`ConfigurationError` when MESSAGE_QUEUE and LISTEN contradict each other or a package is missing."""
    kind = _kind(settings.message_queue)
    if settings.listen == "leader" and kind not in ("redis", "valkey"):
        raise ConfigurationError("LISTEN=leader needs MESSAGE_QUEUE with the URL of a Redis or Valkey server.")
    if kind is not None and kind != "postgres" and importlib.util.find_spec(kind) is None:
        raise ConfigurationError(
            f"MESSAGE_QUEUE needs a package that is missing: run pip install '{REQUIREMENTS[kind]}'."
        )


class Cluster:
    """Creates the parts of a node that depend on MESSAGE_QUEUE and LISTEN. ``sealing`` seals what they send.

    Raises as :func:`check`.
    """

    def __init__(self, settings: Settings, sealing: Sealing) -> None:
        check(settings)
        self._sealing = sealing
        self._on_postgres = settings.message_queue == "postgres"
        self._leader_listens = settings.listen == "leader"
        self._broker: RedisCluster | KafkaCluster | None = None
        if settings.message_queue is not None and not self._on_postgres:
            broker = KafkaCluster if _kind(settings.message_queue) == "kafka" else RedisCluster
            self._broker = broker(settings.message_queue, settings.message_queue_channel, sealing)

    def create_listener(self, database: Database, on_notifications: OnNotifications, on_gap: OnGap) -> ChannelListener:
        """Return this node's listener: with LISTEN=leader it gets the notifications from the leader."""
        if not self._leader_listens:
            return Listeners(database, on_notifications, on_gap)
        assert self._broker is not None  # see `check`
        listener = RemoteListener(on_notifications, on_gap, self._broker.tell)
        self._broker.receive(HEARD, listener.receive)
        return listener

    def create_manager(self, pubsub: PubSub) -> fanout.Manager:
        """Return the client manager of this node."""
        if self._on_postgres:
            return PostgresCluster(pubsub, sealing=self._sealing)
        return self._broker or fanout.Manager()

    def create_forwarder(self, database: Database) -> Callable[[bool], None] | None:
        """Return a function to call when this node becomes the leader (True) or stops being it; None without Redis.

        The leader listens for nodes with LISTEN=leader whatever its own LISTEN is: during a rolling change nodes have
        different settings.
        """
        if not isinstance(self._broker, RedisCluster):
            return None
        forwarder = Forwarder(database, self._broker.tell, eager=self._leader_listens)
        self._broker.receive(WANTED, forwarder.receive)
        self._broker.receive(HEARD, forwarder.receive_echo)
        return forwarder.lead


def _kind(message_queue: str | None) -> str | None:
    """Return ``postgres``, or the Python package that the queue needs: ``redis``, ``valkey`` or ``kafka``."""
    if message_queue is None:
        return None
    return message_queue.partition("://")[0].partition("+")[0].replace("rediss", "redis").replace("valkeys", "valkey")
