"""The client manager of a server: on its own, or one of several nodes; and who of those listens to PostgreSQL."""

import importlib.util

from socketio_pg import fanout
from socketio_pg.cluster_kafka import KafkaCluster
from socketio_pg.cluster_postgres import PostgresCluster
from socketio_pg.cluster_redis import RedisCluster
from socketio_pg.errors import ConfigurationError
from socketio_pg.forwarder import Forwarder
from socketio_pg.pubsub import PubSub
from socketio_pg.relay import Relay
from socketio_pg.remote_listener import HEARD, WANTED, RemoteListener


def create_manager(message_queue: str | None, channel: str, pubsub: PubSub) -> fanout.Manager:
    """The manager for MESSAGE_QUEUE, None for a node on its own, and MESSAGE_QUEUE_CHANNEL.

    Raises :class:`ConfigurationError` when a package is missing.
    """
    if message_queue is None:
        return fanout.Manager()
    if message_queue == "postgres":
        return PostgresCluster(pubsub)
    scheme = message_queue.partition("://")[0].partition("+")[0].removesuffix("s")
    package, module = {"kafka": ("kafka-python", "kafka"), "valkey": ("valkey",) * 2}.get(scheme, ("redis",) * 2)
    if importlib.util.find_spec(module) is None:
        raise ConfigurationError(f"MESSAGE_QUEUE needs the package {package}: pip install 'socketio_pg[{module}]'.")
    return (KafkaCluster if module == "kafka" else RedisCluster)(message_queue, channel)


def listen_for_others(manager: fanout.Manager, pubsub: PubSub, relay: Relay) -> None:
    """Have the node that relays listen for those that do not, over the queue of ``manager``.

    It does so whether it would listen itself or not: settings are changed on one node after the other.
    Raises :class:`ConfigurationError` when this node does not listen, and there is no such queue.
    """
    listener = pubsub.listener
    remote = isinstance(listener, RemoteListener)
    if not isinstance(manager, RedisCluster):
        if remote:
            raise ConfigurationError("LISTEN=leader needs MESSAGE_QUEUE with the address of a Redis or Valkey.")
        return
    forwarder = Forwarder(pubsub.database, manager.tell, eager=remote)
    relay.on_leading = forwarder.lead
    manager.receivers |= {WANTED: [forwarder.receive], HEARD: [forwarder.hear_itself]}
    if isinstance(listener, RemoteListener):
        listener.tell = manager.tell
        manager.receivers[HEARD].append(listener.receive)
