"""Creates the parts of a node that depend on MESSAGE_QUEUE, on LISTEN, and on whether the node has several workers.

They are the client manager, the listener, the forwarder, the publisher and the reader of the cluster keys.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

from socketio_pg.cluster.bus import Bus
from socketio_pg.cluster.carriers import BrokerCarrier, NotifyCarrier
from socketio_pg.cluster.forwarder import Forwarder
from socketio_pg.cluster.kafka import KafkaCluster
from socketio_pg.cluster.postgres import PostgresCluster
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.cluster.redis import RedisCluster
from socketio_pg.cluster.remote_listener import HEARD, WANTED, RemoteListener
from socketio_pg.cluster.workers import WorkersCluster, WorkersKeys, WorkersPublisher, WorkersQueue
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.key_reader import ClusterKeys, KeyReader
from socketio_pg.postgres.listener import ChannelListener, OnGap, OnNotifications
from socketio_pg.postgres.listeners import Listeners
from socketio_pg.postgres.publisher import MessagePublisher, Publisher
from socketio_pg.protocol import fanout
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.workers.workers import Workers

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
    """Creates these parts. ``sealing`` seals what they send to other nodes; ``workers`` are those of this node, of
    which one is elected; None when it has one.

    Of several workers the elected one listens and publishes for all; each has its own connection to MESSAGE_QUEUE.

    Raises as :func:`check`.
    """

    def __init__(self, settings: Settings, sealing: Sealing, workers: Workers | None = None) -> None:
        check(settings)
        self._sealing = sealing
        self._workers = workers
        self._workers_queue = None if workers is None else WorkersQueue(workers.peers)
        #: The listener of the node with LISTEN=leader, while this process has it.
        self._remote: RemoteListener | None = None
        self._workers_forwarder: Forwarder | None = None
        self._on_postgres = settings.message_queue == "postgres"
        self._leader_listens = settings.listen == "leader"
        self._broker: RedisCluster | KafkaCluster | None = None
        if settings.message_queue is not None and not self._on_postgres:
            broker = KafkaCluster if _kind(settings.message_queue) == "kafka" else RedisCluster
            self._broker = broker(settings.message_queue, settings.message_queue_channel, sealing)
        if self._leader_listens:
            assert self._broker is not None  # see `check`
            self._broker.receive(HEARD, self._receive_from_leader)

    def _receive_from_leader(self, command: Command) -> None:
        if self._remote is not None:
            self._remote.receive(command)

    def create_listener(self, database: Database, on_notifications: OnNotifications, on_gap: OnGap) -> ChannelListener:
        """Return the listener of this process: of several workers it gets the notifications from the elected one."""
        if self._workers_queue is None:
            return self._create_node_listener(database, on_notifications, on_gap)
        listener = RemoteListener(on_notifications, on_gap, self._workers_queue.tell, "the sockets of the workers")
        self._workers_queue.receive(HEARD, listener.receive)
        return listener

    def _create_node_listener(
        self, database: Database, on_notifications: OnNotifications, on_gap: OnGap
    ) -> ChannelListener:
        """Return the listener of the node: with LISTEN=leader it gets the notifications from the leader."""
        if not self._leader_listens:
            return Listeners(database, on_notifications, on_gap, self._sealing)
        assert self._broker is not None
        self._remote = RemoteListener(on_notifications, on_gap, self._broker.tell)
        return self._remote

    def create_publisher(self, database: Database) -> MessagePublisher:
        """Return the publisher of this process."""
        local = Publisher(database, self._sealing)
        return local if self._workers is None else WorkersPublisher(local, self._workers)

    def create_keys(self, reader: KeyReader) -> ClusterKeys:
        """Return what gives this process the cluster keys."""
        return reader if self._workers is None else WorkersKeys(reader, self._workers, self._sealing)

    def create_workers_forwarder(self, database: Database) -> Callable[[bool], None]:
        """Return a function to call when this worker is elected (True) or resigns. It does nothing for a single one."""
        if self._workers_queue is None:
            return lambda leading: None
        forwarder = Forwarder(partial(self._create_node_listener, database), self._workers_queue.tell, eager=True)
        self._workers_forwarder = forwarder
        self._workers_queue.receive(WANTED, forwarder.receive)
        self._workers_queue.receive(HEARD, forwarder.receive_echo)
        return forwarder.lead

    @property
    def workers_listener(self) -> ChannelListener | None:
        """The listener that the elected one of several workers has for all; None on others, and on a single one."""
        return None if self._workers_forwarder is None else self._workers_forwarder.listener

    def create_manager(self, pubsub: PubSub) -> fanout.Manager:
        """Return the client manager of this node."""
        if self._on_postgres:
            return PostgresCluster(pubsub, sealing=self._sealing)
        if self._broker is None and self._workers is not None:
            return WorkersCluster(self._workers.peers, sealing=self._sealing)
        return self._broker or fanout.Manager()

    def create_bus(self, pubsub: PubSub) -> Bus:
        """Return the messages and questions between all processes. Raises nothing: without a key they stay here."""
        broker = self._broker
        carrier = NotifyCarrier(pubsub) if broker is None else BrokerCarrier(broker, self._sealing)
        return Bus(carrier, self._workers)

    def create_forwarder(self, database: Database) -> Callable[[bool], None] | None:
        """Return a function to call when this node becomes the leader (True) or stops being it; None without Redis.

        The leader listens for nodes with LISTEN=leader whatever its own LISTEN is: during a rolling change nodes have
        different settings.
        """
        if not isinstance(self._broker, RedisCluster):
            return None
        listeners = partial(Listeners, database, sealing=self._sealing)
        forwarder = Forwarder(listeners, self._broker.tell, eager=self._leader_listens)
        self._broker.receive(WANTED, forwarder.receive)
        self._broker.receive(HEARD, forwarder.receive_echo)
        return forwarder.lead


def _kind(message_queue: str | None) -> str | None:
    """Return ``postgres``, or the Python package that the queue needs: ``redis``, ``valkey`` or ``kafka``."""
    if message_queue is None:
        return None
    return message_queue.partition("://")[0].partition("+")[0].replace("rediss", "redis").replace("valkeys", "valkey")
