"""Prometheus gauges: values that are measured when the metrics are read. Counters are in `core/metrics`."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from socketio_pg.core import green, metrics
from socketio_pg.core.metrics import TRANSPORTS
from socketio_pg.engine.stream import StreamConnection
from socketio_pg.log.backlog import Backlog
from socketio_pg.log.log import Log
from socketio_pg.log.relay import Relay
from socketio_pg.postgres.listener import ChannelListener
from socketio_pg.presence.presence import Presence
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.pubsub import PubSub

#: Name without ``socketio_pg_`` → help text, and label or None.
GAUGES: Mapping[str, tuple[str, str | None]] = {
    "connections": ("Connections of clients, by transport.", "transport"),
    "slow_connections": ("WebSockets and streams with a non-empty send buffer.", None),
    "send_buffer_bytes": ("Bytes in the send buffers of all connections.", None),
    "clients": ("Clients that are connected to the namespace /, and streams.", None),
    "subscriptions": ("Subscriptions of all clients.", None),
    "channels": ("Channels with a subscriber.", None),
    "patterns": ("Distinct patterns with a subscriber.", None),
    "pattern_subscriptions": ("Subscriptions to patterns, of all clients.", None),
    "presence_memberships": (
        "Memberships of this process's clients in channels, also of those that may return within PRESENCE_GRACE.",
        None,
    ),
    "presence_watched_channels": ("Channels whose members this process keeps up to date.", None),
    "listened_channels": ("Channels of LISTEN, with the server's own and those that were left a moment ago.", None),
    "listen_connections": ("Connections for LISTEN; 0 on a node that gets notifications from the leader.", None),
    "largest_room_subscriptions": ("Subscriptions of the largest channel.", None),
    "filtered_subscriptions": ("Subscriptions with a filter.", None),
    "filters": ("Distinct filters, counted for each channel.", None),
    "held_subscriptions": ("Subscriptions with a replay in progress.", None),
    "publish_waiting_messages": ("Published messages that wait for their commit to begin.", None),
    "ready": ("Whether a part of the server is healthy, as in /readyz.", "part"),
    "relay_leading": ("Whether this node moves the outbox to the log.", None),
    "log_position": ("The last position of the log that this node has delivered.", None),
    "log_behind_messages": ("Messages of the log that this node knows of and has not delivered yet.", None),
    "outbox_messages": ("Published messages that the relay has not moved yet, counted up to 100,000.", None),
    "outbox_oldest_age_seconds": ("Age of the oldest message in the outbox in seconds; 0 when it is empty.", None),
    "outbox_stuck_seconds": (
        "Seconds for which this node has seen the same oldest message in the outbox; above 5 the relay is stuck.",
        None,
    ),
    "notify_queue_usage_ratio": ("Usage of PostgreSQL's notification queue; at 1 NOTIFY fails.", None),
}

#: Seconds between two measurements of the delay with which a green thread wakes up.
HUB_LOOK = 0.5
#: Connections that are visited before other green threads run.
SLICE = 1_000


class Gauges:
    """The gauges of one server. ``streams()`` yields the connections of Server-Sent Events, ``health()`` returns the
    problem of each part, None for a healthy one; ``listener()`` the listener whose connections and channels are shown.
    """

    def __init__(
        self,
        server: Server,
        streams: Callable[[], Iterable[StreamConnection]],
        pubsub: PubSub,
        hub: Hub,
        log: Log,
        relay: Relay,
        backlog: Backlog,
        presence: Presence,
        health: Callable[[], Mapping[str, str | None]],
        listener: Callable[[], ChannelListener],
    ) -> None:
        self._server = server
        self._streams = streams
        self._pubsub = pubsub
        self._hub = hub
        self._log = log
        self._relay = relay
        self._backlog = backlog
        self._presence = presence
        self._health = health
        self._listener = listener
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._worker = green.Worker()

    def render(self) -> tuple[bytes, str]:
        """Return all metrics as text, and its content type."""
        return metrics.render(self._registry)

    def start(self) -> None:
        """Start to measure the delay of green threads. Call it after a fork, not before."""
        self._worker.start(_watch_hub)

    def stop(self) -> None:
        """Stop measuring."""
        self._worker.stop()

    def collect(self) -> Iterator[Metric]:
        """Yield all gauges, for the registry."""
        yield from self._connection_gauges()
        yield from self._hub_gauges()
        listener = self._listener()
        yield _gauge("listened_channels", listener.channels)
        yield _gauge("listen_connections", listener.connections)
        yield _gauge("publish_waiting_messages", self._pubsub.publish_waiting)
        yield _labelled("ready", {part: problem is None for part, problem in self._health().items()})
        yield _gauge("relay_leading", self._relay.leading)
        if self._log.installed:
            yield _gauge("log_position", self._log.delivered)
            yield _gauge("log_behind_messages", self._log.behind)
        # Leaves unknown values out: 0 would look healthy.
        reading = self._backlog.reading
        if reading is not None:
            yield _gauge("notify_queue_usage_ratio", reading.queue_usage)
            if reading.outbox_messages is not None and reading.outbox_age is not None:
                yield _gauge("outbox_messages", reading.outbox_messages)
                yield _gauge("outbox_oldest_age_seconds", reading.outbox_age)
                yield _gauge("outbox_stuck_seconds", self._backlog.stuck_seconds)

    def _connection_gauges(self) -> Iterator[Metric]:
        of_transport = dict.fromkeys(TRANSPORTS, 0)
        slow = buffered = 0
        for number, socket in enumerate(list(self._server.eio.sockets.values()), 1):
            if socket.connection is None:
                of_transport["polling"] += 1
            else:
                of_transport["websocket"] += 1
                waits = socket.connection.buffered
                slow += waits > 0
                buffered += waits
            if number % SLICE == 0:
                green.sleep()
        for connection in self._streams():
            of_transport["stream"] += 1
            slow += connection.buffered > 0
            buffered += connection.buffered
        yield _labelled("connections", of_transport)
        yield _gauge("slow_connections", slow)
        yield _gauge("send_buffer_bytes", buffered)

    def _hub_gauges(self) -> Iterator[Metric]:
        hub = self._hub
        sizes = hub.sizes()
        yield _gauge("clients", len(hub))
        yield _gauge("subscriptions", sum(sizes))
        yield _gauge("channels", len(sizes) - len(hub.patterns))
        yield _gauge("patterns", len(hub.patterns))
        yield _gauge("pattern_subscriptions", hub.count_pattern_subscriptions())
        yield _gauge("presence_memberships", self._presence.memberships)
        yield _gauge("presence_watched_channels", self._presence.channels)
        yield _gauge("largest_room_subscriptions", max(sizes, default=0))
        yield _gauge("filtered_subscriptions", hub.count_filtered())
        yield _gauge("filters", hub.count_filters())
        yield _gauge("held_subscriptions", hub.count_held())


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"socketio_pg_{name}", GAUGES[name][0], value=value)


def _labelled(name: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    help, label = GAUGES[name]
    assert label is not None
    family = GaugeMetricFamily(f"socketio_pg_{name}", help, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _watch_hub() -> None:
    while True:
        due = time.monotonic() + HUB_LOOK
        green.sleep(HUB_LOOK)
        metrics.hub_delay.observe(max(0.0, time.monotonic() - due))
