"""The client manager of a server: on its own, or one of several nodes; and who of those listens to PostgreSQL."""

import importlib.util

from socketio_pg.cluster.forwarder import Forwarder
from socketio_pg.cluster.kafka import KafkaCluster
from socketio_pg.cluster.postgres import PostgresCluster
from socketio_pg.cluster.redis import RedisCluster
from socketio_pg.cluster.remote_listener import HEARD, WANTED, RemoteListener
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.log.relay import Relay
from socketio_pg.protocol import fanout
from socketio_pg.pubsub.pubsub import PubSub


def check(settings: Settings) -> None:
    """Raises :class:`ConfigurationError` when MESSAGE_QUEUE and LISTEN do not go together, or a package is missing."""
    kind = _kind(settings.message_queue)
    if settings.listen == "leader" and kind not in ("redis", "valkey"):
        raise ConfigurationError("LISTEN=leader needs MESSAGE_QUEUE with the address of a Redis or Valkey.")
    if kind is not None and kind != "postgres" and importlib.util.find_spec(kind) is None:
        package = "kafka-python" if kind == "kafka" else kind
        raise ConfigurationError(f"MESSAGE_QUEUE needs the package {package}: pip install 'socketio_pg[{kind}]'.")


def create_manager(settings: Settings, pubsub: PubSub) -> fanout.Manager:
    """The client manager of a node. Raises as :func:`check`."""
    check(settings)
    kind = _kind(settings.message_queue)
    if settings.message_queue is None:
        return fanout.Manager()
    if kind == "postgres":
        return PostgresCluster(pubsub)
    queue = KafkaCluster if kind == "kafka" else RedisCluster
    return queue(settings.message_queue, settings.message_queue_channel)


def _kind(message_queue: str | None) -> str | None:
    """``postgres``, or the module that it takes: ``redis``, ``valkey`` or ``kafka``."""
    if message_queue is None:
        return None
    return message_queue.partition("://")[0].partition("+")[0].replace("rediss", "redis").replace("valkeys", "valkey")


def listen_for_others(manager: fanout.Manager, pubsub: PubSub, relay: Relay) -> None:
    """Have the node that relays listen for those that do not, over the queue of ``manager``.

    It does so whether it would listen itself or not: settings are changed on one node after the other.
    """
    if not isinstance(manager, RedisCluster):
        return
    listener = pubsub.listener
    forwarder = Forwarder(pubsub.database, manager.tell, eager=isinstance(listener, RemoteListener))
    relay.on_leading = forwarder.lead
    manager.receivers |= {WANTED: [forwarder.receive], HEARD: [forwarder.hear_itself]}
    if isinstance(listener, RemoteListener):
        listener.tell = manager.tell
        manager.receivers[HEARD].append(listener.receive)
