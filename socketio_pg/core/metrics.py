"""Prometheus counters and histograms. Names follow its conventions; each label has a small, fixed set of values.

They count per process, even with several servers in it. `gateway.gauges` measures at the time of a scrape.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from socketio_pg.core.errors import wire_codes
from socketio_pg.core.seal import REASONS
from socketio_pg.version import __version__

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

TIERS = ("notify", "log")
TRANSPORTS = ("websocket", "polling", "stream")
#: Buckets in messages.
_BATCHES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


def _counter(name: str, help: str, label: str | None = None, values: Iterable[str] = ()) -> Counter:
    """Return a counter whose label ``values`` all start as 0, so that Prometheus sees their first increase."""
    counter = Counter(f"socketio_pg_{name}", help, [label] if label else [], registry=REGISTRY)
    for value in values:
        counter.labels(value)
    return counter


# -- clients -----------------------------------------------------------------------------------------------------------

opened_connections = _counter(
    "opened_connections", "Client connections opened, by their first transport.", "transport", TRANSPORTS
)
#: Further reasons are the codes of CONNECT_ERROR.
refused_connections = _counter(
    "refused_connections", "Connections refused by admission control.", "reason",
    ("draining", "host", "too_many_connections", "address_connections", "address_pending", "address_attempts"),
)  # fmt: skip
#: Codes: docs/protocol.md, "Error codes".
errors = _counter("errors", "Client requests answered with an error, by error code.", "code", sorted(wire_codes()))
expensive_filters = _counter(
    "expensive_filters", "Subscriptions that the server ended because their client's filters cost too much."
)
cut_off = _counter(
    "cut_off", "Clients disconnected by the server.", "reason",
    ("expired", "idle_timeout", "rate_limited", "connect_timeout", "not_connected", "slow_consumer",
     "ended_by_server"),
)  # fmt: skip

# -- messages ----------------------------------------------------------------------------------------------------------

gaps = _counter(
    "gaps", "Gaps: times that all subscribers of a channel or of the log may have missed messages.", "reason",
    ("database_connection_lost", "trimmed", "epoch_changed"),
)  # fmt: skip
replays = _counter(
    "replays", "Replays started: for since, history, a retained message, or because a client fell behind (lagging).",
    "cause",
    ("since", "history", "retained", "lagging"),
)  # fmt: skip
pattern_channels = _counter(
    "pattern_channels",
    "Permissions asked for a channel that a client hears through a pattern, with AUTHORIZATION=rls.",
    "decision",
    ("allowed", "refused", "failed"),
)
replayed_messages = _counter("replayed_messages", "Messages sent to clients in replays.")
unrecovered = _counter(
    "unrecovered", "Subscriptions that the log could not bring up to date.", "reason",
    (
        "trimmed", "epoch_changed", "position_unknown", "not_installed", "history_off", "snapshot_unknown",
        "permission_unknown",
    ),
)  # fmt: skip

rule_trimmed_messages = _counter(
    "rule_trimmed_messages", "Messages that this node's relay has removed from the log because of a rule for channels."
)
conflated_messages = _counter(
    "conflated_messages", "Messages that rooms did not get because a newer one of the same key has replaced them."
)

#: Reasons: docs/recovery.md.
RECOVERIES = (
    "recovered", "busy", "database_unavailable", "epoch_changed", "failed", "invalid_pid", "not_installed", "notify",
    "off", "other_client", "position_unknown", "replaying", "trimmed", "unknown_offset", "unknown_session",
)  # fmt: skip
recoveries = _counter(
    "recoveries", "Clients that came back with the pid of a session: recovered, or the reason why not.", "result",
    RECOVERIES,
)  # fmt: skip
live_table_snapshots = _counter(
    "live_table_snapshots", "SELECTs of the rows of live tables, each for all clients that wanted the same rows."
)
live_table_rows = _counter("live_table_rows", "Rows of live tables that were sent to clients as snapshots.")
live_table_restarts = _counter(
    "live_table_restarts", "Subscriptions to live tables that got their rows again, by reason.", "reason",
    (
        "many_rows", "too_large", "no_json", "trimmed", "epoch_changed", "definition_changed", "claims_changed",
        "recheck", "lagging",
    ),
)  # fmt: skip
live_table_checked_rows = _counter(
    "live_table_checked_rows", "Changed rows that were selected as a client, because of row-level security."
)
live_table_check_seconds = Histogram(
    "socketio_pg_live_table_check_duration_seconds", "Time to select the changed rows of a batch as all clients.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), registry=REGISTRY,
)  # fmt: skip

presence_changes = _counter(
    "presence_changes",
    "Memberships of this process's clients that began, changed or ended: by leaving, after a lost connection (expire), "
    "or because the person has returned with another connection (return).",
    "change", ("join", "update", "leave", "expire", "return"),
)  # fmt: skip
presence_writes = _counter("presence_writes", "Changes of memberships written to the database.")
presence_reads = _counter("presence_reads", "Channels whose members were read from the database.")
presence_missed = _counter(
    "presence_missed", "Channels whose members were read again because changes of other processes had been missed."
)
presence_swept = _counter("presence_swept", "Dead processes whose members this process has removed.")
ephemeral_messages = _counter(
    "ephemeral_messages", "Ephemeral messages accepted by this process, from its clients or from other processes.",
    "source", ("clients", "processes"),
)  # fmt: skip
ephemeral_dropped = _counter(
    "ephemeral_dropped",
    "Ephemeral messages dropped: for a newer one before their round, for a slow reader (counted once per client), or "
    "because of a limit.",
    "reason", ("replaced", "slow_reader", "rate_limited"),
)  # fmt: skip

epoch_changes = _counter(
    "epoch_changes", "Epochs of the log that this node has ended, because the log's past had changed.", "reason",
    ("database", "tables", "log", "outbox"),
)  # fmt: skip

#: Reasons: `core.seal.SealError`.
refused_messages = _counter(
    "refused_messages", "Texts on the channels between nodes that could not be opened, by reason.", "reason", REASONS
)

bus_messages = _counter(
    "bus_messages", "Messages, questions and beats between processes: sent to other nodes, or received.", "direction",
    ("sent", "received"),
)  # fmt: skip
bus_dropped = _counter(
    "bus_dropped", "Messages between processes that were not sent, or not understood.", "reason",
    ("not_sent", "too_many", "invalid"),
)  # fmt: skip

# -- publishing, and the relay -----------------------------------------------------------------------------------------

publish_seconds = Histogram(
    "socketio_pg_publish_duration_seconds", "Time from publish() to its commit, without failures, by tier.", ["tier"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), registry=REGISTRY,
)  # fmt: skip
for _tier in TIERS:
    publish_seconds.labels(_tier)
commit_messages = Histogram(
    "socketio_pg_commit_messages", "Messages published together in one commit.",
    buckets=_BATCHES, registry=REGISTRY,
)  # fmt: skip
failed_commits = _counter("failed_commits", "Failed commits of published messages.")
duplicates = _counter("duplicates", "Messages that were not published because their id was published before.")
unplaced = _counter("unplaced", "Messages of the log whose publisher was answered before their position was known.")
relay_batch_messages = Histogram(
    "socketio_pg_relay_batch_messages", "Messages per batch that this node's relay has moved to the log.",
    buckets=_BATCHES, registry=REGISTRY,
)  # fmt: skip
relay_batch_seconds = Histogram(
    "socketio_pg_relay_batch_duration_seconds", "Time that PostgreSQL took to move a batch.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), registry=REGISTRY,
)  # fmt: skip

# -- the process -------------------------------------------------------------------------------------------------------

reconnects = _counter(
    "database_reconnects", "Reconnects to PostgreSQL after a lost connection, by its purpose.",
    "connection", ("listener", "relay", "publisher", "history", "follower", "sessions", "presence"),
)  # fmt: skip
hub_delay = Histogram(
    "socketio_pg_hub_delay_seconds", "Delay with which a green thread wakes up after sleeping for half a second.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), registry=REGISTRY,
)  # fmt: skip


class FanOut:
    """The fan-out's counters. Plain numbers, because each broadcast adds to them."""

    __slots__ = (
        "cut_bytes", "frame_bytes", "frames", "log_messages", "lost_bytes", "notifications", "notify_messages",
        "polled", "polled_bytes", "streamed", "streamed_bytes", "unheard",
    )  # fmt: skip

    def __init__(self) -> None:
        #: Notifications from PostgreSQL, including the relay's own; messages of NOTIFY; messages read from the log.
        self.notifications = self.notify_messages = self.log_messages = 0
        #: Frames sent to WebSockets, and their bytes. A frame is one event for one client.
        self.frames = self.frame_bytes = 0
        #: The same for clients that poll.
        self.polled = self.polled_bytes = 0
        #: The same for streams of Server-Sent Events.
        self.streamed = self.streamed_bytes = 0
        #: Messages without a recipient.
        self.unheard = 0
        #: Unsent bytes when a connection ended, and when the server disconnected a slow client.
        self.lost_bytes = self.cut_bytes = 0

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called by the registry."""
        for name, help, label, values in (
            ("messages", "Messages received by this node from the database, by tier.", "tier",
             (self.notify_messages, self.log_messages)),
            ("delivered_frames",
             "Events handed to client connections, counted once per client; each message of a batch counts.",
             "transport", (self.frames, self.polled, self.streamed)),
            ("delivered_bytes", "Bytes of these events, with WebSocket framing but without TCP headers.", "transport",
             (self.frame_bytes, self.polled_bytes, self.streamed_bytes)),
            ("dropped_bytes", "Unsent bytes in send buffers of connections that ended.", "reason",
             (self.cut_bytes, self.lost_bytes)),
        ):  # fmt: skip
            family = CounterMetricFamily(f"socketio_pg_{name}", help, labels=[label])
            for value, count in zip(_VALUES[label], values, strict=True):
                family.add_metric([value], count)
            yield family
        yield CounterMetricFamily(
            "socketio_pg_notifications", "Notifications received from PostgreSQL, including the relay's own.",
            value=self.notifications,
        )  # fmt: skip
        yield CounterMetricFamily(
            "socketio_pg_unheard_messages", "Messages for no Socket.IO client: no subscriber, or no filter matches.",
            value=self.unheard,
        )  # fmt: skip
        info = GaugeMetricFamily(
            "socketio_pg_build_info", "Always 1; the label has the running version.", labels=["version"]
        )
        info.add_metric([__version__], 1)
        yield info


_VALUES = {"tier": TIERS, "transport": TRANSPORTS, "reason": ("slow_consumer", "connection_lost")}
fan_out = FanOut()
REGISTRY.register(fan_out)


def total(metric: Counter | Histogram) -> float:
    """Return the value of a counter, or the sum of what a histogram has observed, over all labels."""
    [family] = metric.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith(("_total", "_sum")))


def render(*more: CollectorRegistry) -> tuple[bytes, str]:
    """Return all metrics, including those of ``more`` registries, as text, and the content type."""
    return as_text(REGISTRY, *more)


def as_text(*registries: CollectorRegistry) -> tuple[bytes, str]:
    """Return the metrics of ``registries`` as text, and the content type."""
    return b"".join(map(generate_latest, registries)), CONTENT_TYPE_PLAIN_0_0_4
