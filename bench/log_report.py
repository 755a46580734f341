"""Reports the log's trials: medians, targets and doubtful results, as a table and as JSON with all values."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypedDict

from bench.log_trial import Row
from bench.report import Metric


class Measured(TypedDict):
    """One row of one trial. The scenario defines `series`; it is usually the backlog over time."""

    scenario: str
    repeat: int
    case: str
    variant: str
    values: dict[str, float]
    flags: list[str]
    series: list[list[float]]


class Results(TypedDict):
    date: str
    size: str
    repeats: int
    machine: dict[str, str]
    measured: list[Measured]
    failed: list[str]


@dataclass(frozen=True)
class Wanted:
    """A target for variant `log` in the case whose name ends with `case`.

    With `against` it is one for the ratio to that variant: the median of the ratios within the same round.
    """

    title: str
    scenario: str
    case: str
    key: str
    at_least: bool
    limit: float
    against: str | None = None


BUSY = (Metric("node_busy", "node, cores", 2), Metric("relay_busy", "relay SQL, cores", 2))
METRICS: dict[str, tuple[Metric, ...]] = {
    "transactions": (
        Metric("tps", "transactions/s"),
        Metric("transaction_ms", "ms each", 2),
        Metric("flush_ms", "fsync, ms", 2),
        Metric("flushes_each", "flushes each", 2),
        Metric("outbox_first_half", "outbox 1st half"),
        Metric("outbox_second_half", "2nd half"),
        Metric("outbox_end", "at the end"),
        Metric("drain_s", "empty after, s", 3),
        *BUSY,
        Metric("machine_busy", "machine busy", 2),
    ),
    "throughput": (
        Metric("published_per_s", "messages/s"),
        Metric("transaction_ms", "ms each", 2),
        Metric("backlog_max", "backlog, max"),
        Metric("backlog_end", "at the end"),
        Metric("drain_s", "empty after, s", 3),
        Metric("kept_up", "kept up"),
        *BUSY,
        Metric("machine_busy", "machine busy", 2),
    ),
    "latency": (
        Metric("p50_ms", "p50, ms", 2),
        Metric("p99_ms", "p99, ms", 2),
        Metric("max_ms", "max, ms", 2),
        Metric("commit_p50_ms", "commit p50, ms", 2),
        Metric("whole_p50_ms", "both p50, ms", 2),
        Metric("whole_p99_ms", "both p99, ms", 2),
    ),
    "herd": (
        Metric("caught_up_s", "all caught up, s", 2),
        Metric("from_connect_s", "from connect, s", 2),
        Metric("client_p50_s", "a client's p50, s", 2),
        Metric("node_cpu_s", "node CPU, s", 2),
        Metric("node_cpu_ms", "ms per client", 2),
        Metric("clients_cpu_s", "clients' CPU, s", 2),
        Metric("log_queries", "queries on log"),
        Metric("all_statements", "all statements"),
    ),
    "catchup": (
        Metric("caught_up_s", "seconds", 1),
        Metric("messages_per_s", "messages/s"),
        Metric("node_cpu_s", "node CPU, s", 1),
        Metric("rss_mb_before", "RSS before, MB", 1),
        Metric("peak_rss_mb", "peak RSS, MB", 1),
        Metric("peak_more_mb", "more, MB", 1),
        Metric("relayed_per_s", "relayed/s before"),
    ),
}

WANTED = (
    *(
        Wanted(f"log against NOTIFY, flush +{ms} ms", "transactions", f"flush +{ms} ms", "tps", True, 2.0, "notify")
        for ms in ("0.5", "1", "2")
    ),
    Wanted("throughput, 1 a transaction", "throughput", "1 a transaction, sustained", "published_per_s", True, 5e3),
    Wanted("throughput, 10 a transaction", "throughput", "10 a transaction, sustained", "published_per_s", True, 5e3),
    Wanted("throughput, 100 a transaction", "throughput", "100 a transaction, sustained", "published_per_s", True, 2e4),
    Wanted("latency at rest, p50, ms", "latency", "", "p50_ms", False, 5.0),
    Wanted("latency at rest, p99, ms", "latency", "", "p99_ms", False, 20.0),
    *(
        wanted
        for case in ("killed, all missed 100", "killed, missed 90 to 110", "cut, missed 90 to 110")
        for wanted in (
            Wanted(f"herd, {case}: seconds", "herd", case, "caught_up_s", False, 5.0),
            Wanted(f"herd, {case}: queries", "herd", case, "log_queries", False, 50.0),
        )
    ),
)
INFORMATIVE = (
    Wanted("log against NOTIFY, this disk", "transactions", "this disk", "tps", True, 0.0, "notify"),
    Wanted("log against NOTIFY, flush +0.2 ms", "transactions", "flush +0.2 ms", "tps", True, 0.0, "notify"),
    Wanted("log against plain, this disk", "transactions", "this disk", "tps", True, 0.0, "plain"),
)


def measured(scenario: str, repeat: int, row: Row) -> Measured:
    return {
        "scenario": scenario,
        "repeat": repeat,
        "case": row.case,
        "variant": row.variant,
        "values": row.values,
        "flags": row.flags,
        "series": row.series,
    }


def save(results: Results, path: Path) -> None:
    medians = [
        {"scenario": scenario, "case": case, "variant": variant, "values": values(results, scenario, case, variant)}
        for scenario in METRICS
        for case, variant in cases(results, scenario)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**results, "medians": medians, "wanted": list(_judged(results))}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def cases(results: Results, scenario: str) -> list[tuple[str, str]]:
    """Return (case, variant) in the order in which they first ran, grouped by case."""
    found = dict.fromkeys((row["case"], row["variant"]) for row in results["measured"] if row["scenario"] == scenario)
    names = list(dict.fromkeys(case for case, _ in found))
    return sorted(found, key=lambda pair: (names.index(pair[0]), ("plain", "log", "notify").index(pair[1])))


def values(results: Results, scenario: str, case: str, variant: str) -> dict[str, float]:
    """Return the median of each value over the repeats."""
    found = [
        row["values"]
        for row in results["measured"]
        if (row["scenario"], row["case"], row["variant"]) == (scenario, case, variant)
    ]
    keys = dict.fromkeys(key for row in found for key in row)
    return {key: median(row[key] for row in found if key in row) for key in keys}


def _figures(results: Results, wanted: Wanted, case: str) -> list[float]:
    """Return the figure of each repeat, or of each round."""
    of_variant: dict[str, dict[tuple[int, float], float]] = {}
    for row in results["measured"]:
        if (row["scenario"], row["case"]) == (wanted.scenario, case) and wanted.key in row["values"]:
            one = (row["repeat"], row["values"].get("round", 0))
            of_variant.setdefault(row["variant"], {})[one] = row["values"][wanted.key]
    ours = of_variant.get("log", {})
    if wanted.against is None:
        return list(ours.values())
    others = of_variant.get(wanted.against, {})
    return [figure / others[one] for one, figure in ours.items() if others.get(one)]


def _judged(results: Results) -> Iterator[dict[str, object]]:
    for wanted in (*WANTED, *INFORMATIVE):
        case = next((case for case, _ in cases(results, wanted.scenario) if case.endswith(wanted.case)), None)
        figures = [] if case is None else _figures(results, wanted, case)
        if not figures:
            continue
        figure = median(figures)
        yield {
            "wanted": wanted.title,
            "limit": ("≥ " if wanted.at_least else "≤ ") + f"{wanted.limit:,g}" if wanted.limit else "",
            "figure": round(figure, 3),
            "lowest": round(min(figures), 3),
            "highest": round(max(figures), 3),
            "reached": figure >= wanted.limit if wanted.at_least else figure <= wanted.limit,
        }


def table(results: Results) -> str:
    """Return everything as text: medians for each scenario, then targets, then doubtful results."""
    machine = results["machine"]
    lines = [
        f"{results['date']}  {machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}, "
        f"PostgreSQL {machine['postgres']}, fdatasync {machine['fdatasync_us']} µs",
        f"nothing is pinned; medians of {results['repeats']}",
    ]
    for scenario, metrics in METRICS.items():
        found = cases(results, scenario)
        if not found:
            continue
        widths = [max(10, len(metric.title)) + 2 for metric in metrics]
        lines += ["", f"{scenario:58}" + "".join(f"{m.title:>{w}}" for m, w in zip(metrics, widths, strict=True))]
        for case, variant in found:
            figures = values(results, scenario, case, variant)
            cells = (f"{figures[m.key]:,.{m.decimals}f}" if m.key in figures else "-" for m in metrics)
            lines.append(f"  {case:48}{variant:8}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    judged = list(_judged(results))
    if judged:
        lines += ["", f"{'':58}{'wanted':>12}{'median':>12}{'lowest':>12}{'highest':>12}"]
    for entry in judged:
        verdict = ("yes" if entry["reached"] else "NO") if entry["limit"] else ""
        numbers = "".join(f"{entry[key]:>12,}" for key in ("figure", "lowest", "highest"))
        lines.append(f"  {entry['wanted']:56}{entry['limit']:>12}{numbers}  {verdict}")
    doubts = Counter(
        f"{row['scenario']} {row['variant']}, {row['case']}: {flag}"
        for row in results["measured"]
        for flag in row["flags"]
    )
    doubts.update(failed.strip().splitlines()[-1] for failed in results["failed"])
    if doubts:
        lines += ["", "Doubtful (number of repeats):", *(f"  {text} ({times})" for text, times in doubts.items())]
    return "\n".join(lines)
