"""Reports trials: medians, ratios and targets, as a table and as JSON with all values."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypedDict


class RowResult(TypedDict):
    case: str
    values: dict[str, float]
    flags: list[str]


class TrialResult(TypedDict):
    """One run of a scenario with a server. `error` is empty unless it failed."""

    scenario: str
    repeat: int
    server: str
    rows: list[RowResult]
    error: str


class Results(TypedDict):
    """A whole run, as stored in JSON."""

    date: str
    size: str
    repeats: int
    cores: str
    machine: dict[str, str]
    trials: list[TrialResult]


@dataclass(frozen=True)
class Metric:
    key: str
    title: str
    decimals: int = 0


@dataclass(frozen=True)
class Target:
    """`ours` (divided by `against`, if given) must be at least or at most `limit`. Case "" means the first case."""

    title: str
    scenario: str
    case: str
    key: str
    against: str | None
    at_least: bool
    limit: float


SERVERS = ("ours", "gevent", "stock", "node", "raw")
#: The ratios of the table: a server, and the one by whose figure its own is divided.
RATIOS = (("gevent", "ours"), ("ours", "stock"), ("ours", "node"))
PER_CPU = Metric("deliveries_per_cpu_s", "deliveries / CPU s")
LATENCIES = (Metric("p50_ms", "latency p50, ms", 2), Metric("p99_ms", "latency p99, ms", 2))
METRICS: dict[str, tuple[Metric, ...]] = {
    "live": (PER_CPU, Metric("deliveries_per_s", "deliveries / s"), *LATENCIES),
    "burst": (PER_CPU, Metric("last_client_ms", "last client has all, ms", 1)),
    "rooms": (PER_CPU, *LATENCIES),
    "connect": (Metric("cpu_ms_per_client", "CPU ms / client", 3), Metric("wall_ms_per_client", "wall ms / client", 3)),
    "memory": (Metric("rss_kb_per_client", "RSS KB / client", 1), Metric("rss_mb", "total RSS, MB", 1)),
    "publish": (Metric("acks_per_s", "acknowledged / s"), *LATENCIES),
    "latency": (*LATENCIES, Metric("p999_ms", "latency p99.9, ms", 2)),
    "channels": (
        Metric("subscribe_cpu_ms", "CPU ms / subscribe", 3),
        Metric("cpu_us_per_delivery", "CPU µs / delivery", 1),
        *LATENCIES,
    ),
}

LIVE = "1000 clients, 20/s"
STORM = ("1000 clients, websocket", "5000 clients, websocket")
IDLE = ("1000 idle clients", "5000 idle clients")
PIPELINED = "50 clients, 20 in flight each"
TARGETS = (
    Target("live, deliveries per CPU s", "live", LIVE, "deliveries_per_cpu_s", "stock", True, 5.0),
    Target("live, deliveries per CPU s", "live", LIVE, "deliveries_per_cpu_s", "node", True, 1.9),
    Target("burst of 100, deliveries per CPU s", "burst", "", "deliveries_per_cpu_s", "node", True, 30.0),
    Target("p99 latency at 20/s", "live", LIVE, "p99_ms", "node", False, 0.6),
    *(Target(f"connect, {case}", "connect", case, "cpu_ms_per_client", "stock", False, 0.65) for case in STORM),
    *(Target(f"connect, {case}", "connect", case, "cpu_ms_per_client", "node", False, 1.0) for case in STORM),
    *(Target(f"memory, {case}", "memory", case, "rss_kb_per_client", "stock", False, 0.25) for case in IDLE),
    *(Target(f"memory, {case}", "memory", case, "rss_kb_per_client", "node", False, 0.5) for case in IDLE),
    Target("publish, acknowledged per s", "publish", PIPELINED, "acks_per_s", None, True, 5_000.0),
    # The stock server commits each publish separately.
    Target("publish, acknowledged per s", "publish", PIPELINED, "acks_per_s", "stock", True, 5.0),
    Target("live, CPU per delivery", "live", LIVE, "cpu_us_per_delivery", "raw", False, 1.3),
)


def save(results: Results, path: Path) -> None:
    medians = [
        {"scenario": scenario, "case": case, "server": server, "values": values(results, scenario, case, server)}
        for scenario in METRICS
        for case in cases(results, scenario)
        for server in SERVERS
    ]
    whole = {**results, "medians": [entry for entry in medians if entry["values"]], "targets": list(_judged(results))}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> Results:
    results: Results = json.loads(path.read_text())
    return results


def cases(results: Results, scenario: str) -> list[str]:
    """Return the cases of a scenario in the order in which they first ran."""
    rows = (row for trial in results["trials"] if trial["scenario"] == scenario for row in trial["rows"])
    return list(dict.fromkeys(row["case"] for row in rows))


def values(results: Results, scenario: str, case: str, server: str) -> dict[str, float]:
    """Return the median of each value over the repeats; empty if this server never completed the case."""
    found = [
        row["values"]
        for trial in results["trials"]
        if (trial["scenario"], trial["server"]) == (scenario, server)
        for row in trial["rows"]
        if row["case"] == case
    ]
    keys = dict.fromkeys(key for row in found for key in row)
    return {key: median(row[key] for row in found if key in row) for key in keys}


def judge(results: Results, target: Target) -> float | None:
    """Return the target's figure or ratio, or None if a value for it was not measured."""
    case = target.case or next(iter(cases(results, target.scenario)), "")
    ours = values(results, target.scenario, case, "ours").get(target.key)
    if ours is None or target.against is None:
        return ours
    other = values(results, target.scenario, case, target.against).get(target.key)
    return ours / other if other else None


def _judged(results: Results) -> Iterator[dict[str, object]]:
    for target in TARGETS:
        figure = judge(results, target)
        if figure is not None:
            reached = figure >= target.limit if target.at_least else figure <= target.limit
            against = f", against {target.against}" if target.against else ""
            sign = "≥" if target.at_least else "≤"
            yield {
                "target": f"{target.title}{against}",
                "wanted": f"{sign} {target.limit:,g}",
                "figure": round(figure, 3),
                "reached": reached,
            }


def table(results: Results) -> str:
    """Return everything as text: medians with ratios for each scenario, then targets, then doubtful results."""
    machine = results["machine"]
    lines = [
        f"{results['date']}  {machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}, "
        f"PostgreSQL {machine.get('postgres', '?')}",
        f"{results['cores']}; medians of {results['repeats']}",
    ]
    for scenario, metrics in METRICS.items():
        if not cases(results, scenario):
            continue
        lines += ["", f"{scenario:60}" + "".join(f"{name:>12}" for name in (*SERVERS, *map("/".join, RATIOS)))]
        for case in cases(results, scenario):
            by_server = {server: values(results, scenario, case, server) for server in SERVERS}
            for metric in metrics:
                if any(metric.key in found for found in by_server.values()):
                    lines.append(_line(case, metric, by_server))
    judged = list(_judged(results))
    if judged:
        lines += ["", f"{'target':60}{'wanted':>12}{'figure':>12}"]
        lines += [
            f"{entry['target']:60}{entry['wanted']:>12}{entry['figure']:>12,}  {'yes' if entry['reached'] else 'NO'}"
            for entry in judged
        ]
    doubts = list(_doubts(results))
    if doubts:
        lines += ["", "Doubtful (number of repeats):", *doubts]
    if any("*" in line for line in lines):
        lines += ["", "* the server was saturated: it could not keep up with this rate"]
    return "\n".join(lines)


def _line(case: str, metric: Metric, by_server: dict[str, dict[str, float]]) -> str:
    cells = []
    for server in SERVERS:
        figure = by_server[server].get(metric.key)
        mark = "*" if by_server[server].get("saturated") else ""
        cells.append("-" if figure is None else f"{figure:,.{metric.decimals}f}{mark}")
    for one, other in RATIOS:
        figure, divisor = by_server[one].get(metric.key), by_server[other].get(metric.key)
        cells.append(f"{figure / divisor:.2f}" if figure is not None and divisor else "-")
    return f"  {case:32}  {metric.title:24}" + "".join(f"{cell:>12}" for cell in cells)


def _doubts(results: Results) -> Iterator[str]:
    counted: Counter[str] = Counter()
    for trial in results["trials"]:
        if trial["error"]:
            counted[f"{trial['scenario']} {trial['server']}: failed: {trial['error'].strip().splitlines()[-1]}"] += 1
        for row in trial["rows"]:
            for flag in row["flags"]:
                counted[f"{trial['scenario']} {trial['server']}, {row['case']}: {flag}"] += 1
    for text, times in counted.items():
        yield f"  {text} ({times})"
