"""The metrics of a node with several workers: the one that is asked answers for all.

Counters and histograms are the sums over all workers, also over those that have ended (`workers/samples`). Gauges are
the sums over the workers that answer, except for :data:`RULES`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from socketio_pg.core import green, metrics
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from socketio_pg.workers.samples import CounterFiles, Report, Rule, merge

#: Gauges that are not the sum over the workers, by name without ``socketio_pg_``. What describes the node or the
#: database is the same in all workers, or known only to the one that listens; the node is as far as its slowest worker.
GAUGE_RULES: Mapping[str, Rule] = {
    "listened_channels": max,
    "listen_connections": max,
    "ready": min,
    "relay_leading": max,
    "log_position": min,
    "log_behind_messages": max,
    "outbox_messages": max,
    "outbox_oldest_age_seconds": max,
    "outbox_stuck_seconds": max,
    "notify_queue_usage_ratio": max,
    "build_info": max,
}
RULES: Mapping[str, Rule] = {f"socketio_pg_{name}": rule for name, rule in GAUGE_RULES.items()} | {
    "process_start_time_seconds": min
}

#: The metrics that only a node with several workers has. Name without ``socketio_pg_`` → type, help text and label.
NODE_METRICS: Mapping[str, tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, str]] = {
    "workers": (GaugeMetricFamily, "Workers of this node: those wanted, and those that answered this scrape.", "state"),
    "worker_clients": (GaugeMetricFamily, "Clients that are connected to the namespace /, by worker.", "worker"),
    "worker_cpu_seconds": (CounterMetricFamily, "CPU time, by worker; starts again with its successor.", "worker"),
}


class NodeMetrics:
    """The metrics of the ``node`` of this worker, which itself has ``gauges()`` and the counters of ``registry``.

    Make it before :meth:`Peers.start`.
    """

    #: Seconds for the other workers to answer.
    timeout = 2.0

    def __init__(
        self,
        node: Node,
        peers: Peers,
        gauges: Callable[[], Iterable[Metric]],
        registry: CollectorRegistry = metrics.REGISTRY,
    ) -> None:
        self._node = node
        self._peers = peers
        self._gauges = gauges
        self._counters = registry
        self._files = CounterFiles(node)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        peers.answer("metrics", lambda body: self._report().encode())

    def render(self) -> tuple[bytes, str]:
        """Return the metrics of the node as text, and its content type. Waits for the other workers."""
        return metrics.as_text(self._registry)

    def keep(self) -> None:
        """Keep the counters of this worker, which is about to end."""
        self._files.write(self._counters.collect())

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, for the registry."""
        reports = {self._node.slot: self._report()}
        for slot, text in self._peers.ask("metrics", b"", self.timeout).items():
            reports[slot] = Report.decode(text)
            green.sleep()
        wanted = self._node.wanted
        yield from merge(self._parts(reports, len(reports) < wanted), RULES)
        yield _family("workers", {"wanted": wanted, "answering": len(reports)})
        for name, of in (("worker_clients", "socketio_pg_clients"), ("worker_cpu_seconds", "process_cpu_seconds")):
            yield _family(name, {str(slot): _value(report, of) for slot, report in sorted(reports.items())})

    def _parts(self, reports: Mapping[int, Report], missing: bool) -> Iterator[Iterable[Metric]]:
        for report in self._files.complete(reports):
            yield report.families
            green.sleep()
        if missing:  # as in /readyz
            yield [_labelled(GaugeMetricFamily("socketio_pg_ready", "", labels=["part"]), {"process": 0})]

    def _report(self) -> Report:
        # Measuring gauges yields to other green threads. Not so the rest: an older state must not replace a newer one.
        gauges = list(self._gauges())
        counters = list(self._counters.collect())
        self._files.write(counters)
        return Report(self._files.generation, counters + gauges)


def _family(name: str, values: Mapping[str, float]) -> Metric:
    kind, help, label = NODE_METRICS[name]
    return _labelled(kind(f"socketio_pg_{name}", help, labels=[label]), values)


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _value(report: Report, name: str) -> float:
    return next(family.samples[0].value for family in report.families if family.name == name)
