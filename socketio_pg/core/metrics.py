"""What is counted, for Prometheus. Names and labels after its conventions; the values of a label are few and known.

Counts are the process's, whatever the number of servers in it. What is measured when somebody asks is in `gauges`.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from socketio_pg.core.errors import wire_codes
from socketio_pg.version import __version__

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

TIERS = ("notify", "log")
TRANSPORTS = ("websocket", "polling")
#: Messages.
_BATCHES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


def _counter(name: str, help: str, label: str | None = None, values: Iterable[str] = ()) -> Counter:
    """A counter whose label has ``values``: each is there from the start, as 0, so that its first increase is seen."""
    counter = Counter(f"socketio_pg_{name}", help, [label] if label else [], registry=REGISTRY)
    for value in values:
        counter.labels(value)
    return counter


# -- clients -----------------------------------------------------------------------------------------------------------

opened_connections = _counter(
    "opened_connections", "Connections of clients that were opened, by their first transport.", "transport", TRANSPORTS
)
#: Besides the reasons here: the code of a CONNECT_ERROR.
refused_connections = _counter(
    "refused_connections", "Connections that were not let in.", "reason",
    ("draining", "too_many_connections", "address_connections", "address_attempts"),
)  # fmt: skip
#: By code: docs/protocol.md, "Error codes".
errors = _counter(
    "errors", "Requests of clients that were answered with an error, by its code.", "code", sorted(wire_codes())
)
cut_off = _counter(
    "cut_off", "Clients that the server has disconnected.", "reason",
    ("expired", "idle_timeout", "rate_limited", "connect_timeout", "slow_consumer"),
)  # fmt: skip

# -- messages ----------------------------------------------------------------------------------------------------------

gaps = _counter(
    "gaps", "Times that messages of a channel, or of the log, may have been missed by all subscribers.", "reason",
    ("database_connection_lost", "trimmed", "epoch_changed"),
)  # fmt: skip
replays = _counter(
    "replays", "Replays that began: for since, for history, or because a client did not keep up (lagging).", "cause",
    ("since", "history", "lagging"),
)  # fmt: skip
replayed_messages = _counter("replayed_messages", "Messages that were sent to a client in a replay.")
unrecovered = _counter(
    "unrecovered", "Subscriptions that could not be brought up to date from the log.", "reason",
    ("trimmed", "epoch_changed", "position_unknown", "not_installed"),
)  # fmt: skip

# -- publishing, and the relay -----------------------------------------------------------------------------------------

publish_seconds = Histogram(
    "socketio_pg_publish_duration_seconds", "From publish() to its commit, without what failed, by tier.", ["tier"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), registry=REGISTRY,
)  # fmt: skip
for _tier in TIERS:
    publish_seconds.labels(_tier)
commit_messages = Histogram(
    "socketio_pg_commit_messages", "Messages that were published together, in one commit.",
    buckets=_BATCHES, registry=REGISTRY,
)  # fmt: skip
failed_commits = _counter("failed_commits", "Commits of published messages that failed as a whole.")
relay_batch_messages = Histogram(
    "socketio_pg_relay_batch_messages", "Messages that the relay of this node has moved to the log, by batch.",
    buckets=_BATCHES, registry=REGISTRY,
)  # fmt: skip
relay_batch_seconds = Histogram(
    "socketio_pg_relay_batch_duration_seconds", "What moving a batch took PostgreSQL.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), registry=REGISTRY,
)  # fmt: skip

# -- the process -------------------------------------------------------------------------------------------------------

reconnects = _counter(
    "database_reconnects", "Connections to PostgreSQL that were made again after one was lost, by what it is for.",
    "connection", ("listener", "relay", "publisher", "history", "follower"),
)  # fmt: skip
hub_delay = Histogram(
    "socketio_pg_hub_delay_seconds", "How much too late a green thread woke up that had slept for half a second.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), registry=REGISTRY,
)  # fmt: skip


class FanOut:
    """What the fan-out counts: plain numbers, which cost it an addition each, once a broadcast."""

    __slots__ = (
        "cut_bytes", "frame_bytes", "frames", "log_messages", "lost_bytes", "notifications", "notify_messages",
        "polled", "polled_bytes", "unheard",
    )  # fmt: skip

    def __init__(self) -> None:
        #: Of PostgreSQL, the relay's own among them; and messages that came with them, or were read from the log.
        self.notifications = self.notify_messages = self.log_messages = 0
        #: To WebSockets: frames, and their bytes. A frame is one event for one client.
        self.frames = self.frame_bytes = 0
        #: The same to clients that poll.
        self.polled = self.polled_bytes = 0
        #: Messages that nobody was to get.
        self.unheard = 0
        #: Bytes that waited for clients when their connections ended, and when the server cut them off.
        self.lost_bytes = self.cut_bytes = 0

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        for name, help, label, values in (
            ("messages", "Messages that came from the database to this node, by tier.", "tier",
             (self.notify_messages, self.log_messages)),
            ("delivered_frames", "Events that were handed to a client's connection, each client's apart.", "transport",
             (self.frames, self.polled)),
            ("delivered_bytes", "Their bytes, with WebSocket framing and without TCP's.", "transport",
             (self.frame_bytes, self.polled_bytes)),
            ("dropped_bytes", "Bytes that waited for a client when its connection ended.", "reason",
             (self.cut_bytes, self.lost_bytes)),
        ):  # fmt: skip
            family = CounterMetricFamily(f"socketio_pg_{name}", help, labels=[label])
            for value, count in zip(_VALUES[label], values, strict=True):
                family.add_metric([value], count)
            yield family
        yield CounterMetricFamily(
            "socketio_pg_notifications", "Notifications that PostgreSQL has sent, the relay's own among them.",
            value=self.notifications,
        )  # fmt: skip
        yield CounterMetricFamily(
            "socketio_pg_unheard_messages", "Messages that nobody gets: no subscriber, or no filter lets them through.",
            value=self.unheard,
        )  # fmt: skip
        info = GaugeMetricFamily("socketio_pg_build_info", "Always 1; which version runs.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


_VALUES = {"tier": TIERS, "transport": TRANSPORTS, "reason": ("slow_consumer", "connection_lost")}
fan_out = FanOut()
REGISTRY.register(fan_out)


def render(*more: CollectorRegistry) -> tuple[bytes, str]:
    """All of it as text, and its content type; with what is in ``more`` registries."""
    return b"".join(map(generate_latest, (REGISTRY, *more))), CONTENT_TYPE_PLAIN_0_0_4
