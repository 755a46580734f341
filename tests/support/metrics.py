"""Reads /metrics like Prometheus."""

import time
import urllib.request
from collections.abc import Callable, Iterable

from prometheus_client.parser import text_string_to_metric_families

from socketio_pg.core.metrics import REGISTRY
from socketio_pg.gateway.gauges import GAUGES
from socketio_pg.gateway.node_metrics import NODE_METRICS
from tests.support.patience import PATIENCE
from tests.support.server import ServerProcess

TOKEN = "of-the-metrics"

Samples = dict[str, float]


def scrape_text(server: ServerProcess) -> str:
    request = urllib.request.Request(server.url + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def scrape(server: ServerProcess) -> Samples:
    """Return all samples, each as ``name`` or ``name{label="value"}``, without the prefix ``socketio_pg_``."""
    return samples_in(scrape_text(server))


def samples_in(text: str) -> Samples:
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            name = sample.name.removeprefix("socketio_pg_") + (f"{{{labels}}}" if labels else "")
            assert name not in samples, name
            samples[name] = sample.value
    return samples


def wait_for(server: ServerProcess, condition: Callable[[Samples], object]) -> Samples:
    """Scrape until ``condition`` holds. Return the samples."""
    deadline = time.monotonic() + PATIENCE
    while True:
        samples = scrape(server)
        if condition(samples):
            return samples
        assert time.monotonic() < deadline, samples
        time.sleep(0.05)  # another process can only be polled


class Moved:
    """The increase of counters since its creation."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._before = scrape(server)

    def by(self, *names: str) -> list[float]:
        """Return the increase of each counter until now."""
        return self._by(scrape(self._server), names)

    def wait(self, counts: dict[str, float]) -> None:
        """Wait until the counters have increased by exactly these values."""
        wait_for(self._server, lambda now: self._by(now, counts) == list(counts.values()))

    def _by(self, now: Samples, names: Iterable[str]) -> list[float]:
        # A counter with labels without known values does not exist before its first count.
        return [now.get(name, 0.0) - self._before.get(name, 0.0) for name in names]


def described() -> list[tuple[str, str, str, str]]:
    """Return (name, type, labels, help) of each of our metrics; counters with ``_total``, as in queries."""
    rows = []
    for family in REGISTRY.collect():
        # In a family with labels, all known values exist from the start.
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append((name, family.type, ", ".join(labels), family.documentation))
    rows += [(f"socketio_pg_{name}", "gauge", label or "", help) for name, (help, label) in GAUGES.items()]
    for short, (made, help, label) in NODE_METRICS.items():
        family = made(f"socketio_pg_{short}", help)
        rows.append((family.name + ("_total" if family.type == "counter" else ""), family.type, label, help))
    return [row for row in rows if row[0].startswith("socketio_pg_")]


def series() -> set[str]:
    """Return all names that a query may use."""
    names = {family.name for family in REGISTRY.collect() if family.type == "gauge"}
    names |= {f"{family.name}_total" for family in REGISTRY.collect() if family.type == "counter"}
    for family in REGISTRY.collect():
        if family.type == "histogram":
            names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
    names |= {name for name, *_ in described()}
    return names
