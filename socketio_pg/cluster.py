"""The client manager of a server that is one of several nodes: the fan-out of `fanout`, with a queue to the others."""

import contextlib
import importlib
import importlib.util
import logging
import random
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import socketio

from socketio_pg import fanout, green
from socketio_pg.channels import QUEUE_CHANNEL
from socketio_pg.complaints import Complaints
from socketio_pg.errors import ConfigurationError, PayloadTooLargeError
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
    #: Seconds to the first attempt to hear Redis again; doubles up to the second value.
    backoff = (0.1, 2.0)

    def __init__(self, url: str, channel: str) -> None:
        super().__init__(url, channel, redis_options=dict(_REDIS_OPTIONS))

    def _redis_connect(self) -> None:
        # A publication that is repeated, because only its answer was lost, would arrive twice.
        module = self._get_redis_module()
        self.redis_options["retry"] = module.retry.Retry(module.backoff.NoBackoff(), 0)
        super()._redis_connect()

    def _publish(self, data: Command) -> None:
        try:
            with green.timeout(self.publish_timeout):
                if not self.connected:
                    self._redis_connect()
                self.redis.publish(self.channel, self.json.dumps(data))
        except green.TimedOut:
            self._not_published("it does not answer")
        except (OSError, self._redis_error()) as error:
            self._not_published(error)

    def _not_published(self, problem: object) -> None:
        self.connected = False
        _complain(logging.ERROR, "nothing can be published on the message queue: %s", problem)

    def _redis_listen_with_retries(self) -> Iterator[Any]:
        # As the stock manager's, which waits for up to a minute.
        delay = self.backoff[0]
        while True:
            try:
                self._redis_connect()
                self.pubsub.subscribe(self.channel)
                delay = self.backoff[0]
                yield from self.pubsub.listen()
            except (OSError, self._redis_error()) as error:
                _complain(logging.ERROR, "nothing is heard over the message queue: %s", error)
            green.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, self.backoff[1])

    def _redis_error(self) -> type[Exception]:
        module = self._get_redis_module()
        return module.ValkeyError if module.__name__ == "valkey" else module.RedisError  # type: ignore[no-any-return]


class _LaterKafka(socketio.KafkaManager):  # type: ignore[misc]
    """Connects when it is used: nothing does at import, and a broker may be away for a while."""

    def __init__(self, url: str, channel: str) -> None:
        super(socketio.KafkaManager, self).__init__(channel=channel)
        self.kafka_urls = url.removeprefix("kafka://").split(",")


class _KafkaCluster(ClusterManager, _LaterKafka):
    """Gives up on what cannot be published as that of Redis does."""

    #: Seconds that publishing may take.
    publish_timeout = 5.0
    #: Seconds to the first attempt to hear Kafka again; doubles up to the second value.
    backoff = (0.1, 2.0)

    def __init__(self, url: str, channel: str) -> None:
        super().__init__(url, channel)
        self._kafka = importlib.import_module("kafka")
        self._producer: Any = None
        self._connecting = green.Lock()

    def _publish(self, data: Command) -> None:
        # As bytes: the stock manager hands on text, which the package does not take.
        value = self.json.dumps(data).encode()
        try:
            with green.timeout(self.publish_timeout):
                with self._connecting:
                    if self._producer is None:
                        self._producer = self._kafka.KafkaProducer(bootstrap_servers=self.kafka_urls)
                # One partition is one order.
                self._producer.send(self.channel, value=value, partition=0).get()
        except self._kafka.errors.MessageSizeTooLargeError as error:
            raise PayloadTooLargeError(f"the message is too large for Kafka: {error}") from error
        except (green.TimedOut, OSError, self._kafka.errors.KafkaError) as error:
            _complain(logging.ERROR, "nothing can be published on the message queue: %s", error)

    def _kafka_listen(self) -> Iterator[Any]:
        delay = self.backoff[0]
        while True:
            try:
                consumer = self._kafka.KafkaConsumer(
                    self.channel,
                    bootstrap_servers=self.kafka_urls,
                    # A topic that is created, or found again, later is noticed so soon.
                    metadata_max_age_ms=5000,
                )
                with contextlib.closing(consumer):
                    delay = self.backoff[0]
                    yield from consumer
            except (OSError, self._kafka.errors.KafkaError) as error:
                _complain(logging.ERROR, "nothing is heard over the message queue: %s", error)
            green.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, self.backoff[1])


def create_manager(message_queue: str | None, channel: str, pubsub: PubSub) -> fanout.Manager:
    """The manager for MESSAGE_QUEUE, None for a node on its own, and MESSAGE_QUEUE_CHANNEL.

    Raises :class:`ConfigurationError` when a package is missing.
    """
    if message_queue is None:
        return fanout.Manager()
    if message_queue == "postgres":
        return _PostgresCluster(pubsub)
    scheme = message_queue.partition("://")[0].partition("+")[0].removesuffix("s")
    package, module = {"kafka": ("kafka-python", "kafka"), "valkey": ("valkey",) * 2}.get(scheme, ("redis",) * 2)
    if importlib.util.find_spec(module) is None:
        raise ConfigurationError(f"MESSAGE_QUEUE needs the package {package}: pip install 'socketio_pg[{module}]'.")
    return (_KafkaCluster if module == "kafka" else _RedisCluster)(message_queue, channel)


def listen_for_others(manager: fanout.Manager, pubsub: PubSub, relay: Relay) -> None:
    """Have the node that relays listen for those that do not, over the queue of ``manager``.

    It does so whether it would listen itself or not: settings are changed on one node after the other.
    Raises :class:`ConfigurationError` when this node does not listen, and there is no such queue.
    """
    listener = pubsub.listener
    remote = isinstance(listener, RemoteListener)
    if not isinstance(manager, _RedisCluster):
        if remote:
            raise ConfigurationError("LISTEN=leader needs MESSAGE_QUEUE with the address of a Redis or Valkey.")
        return
    forwarder = Forwarder(pubsub.database, manager.tell, eager=remote)
    relay.on_leading = forwarder.lead
    manager.receivers |= {WANTED: [forwarder.receive], HEARD: [forwarder.hear_itself]}
    if isinstance(listener, RemoteListener):
        listener.tell = manager.tell
        manager.receivers[HEARD].append(listener.receive)
