"""Draws the chart of docs/benchmarks.md: one panel per question, with the same servers and colours in each."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.report import IDLE, LIVE, PIPELINED, STORM, Results, cases, values

NAMES = {
    "ours": "socketio_pg",
    "gevent": "socketio_pg on gevent",
    "node": "Node socket.io",
    "stock": "Flask-SocketIO",
    "raw": "bare send() loop",
}
COLOURS = {"ours": "#1f6feb", "gevent": "#6ea8fe", "node": "#8c959f", "stock": "#c3c9d0", "raw": "#e3e6ea"}


@dataclass(frozen=True)
class Panel:
    """One bar chart. If `case` was not measured (or is ""), it shows the first case of the scenario."""

    title: str
    unit: str
    scenario: str
    case: str
    key: str
    more_is_better: bool
    decimals: int = 0
    raw: bool = False


PER_CPU = "deliveries per CPU second"
PANELS = (
    Panel("Live fan-out", PER_CPU, "live", LIVE, "deliveries_per_cpu_s", True, raw=True),
    Panel("Burst in one transaction", PER_CPU, "burst", "", "deliveries_per_cpu_s", True),
    Panel("Latency p99, commit to client", "ms", "live", LIVE, "p99_ms", False, 1),
    Panel("Connect and subscribe", "CPU ms per client", "connect", STORM[1], "cpu_ms_per_client", False, 2),
    Panel("Memory per client", "KB", "memory", IDLE[1], "rss_kb_per_client", False, 1),
    Panel("Publish from clients", "acknowledged per second", "publish", PIPELINED, "acks_per_s", True),
)


def draw(results: Results, path: Path) -> None:
    """Write the PNG. Panels without measurements say "not measured"."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    for index, panel in enumerate(PANELS):
        _bars(figure.add_subplot(2, 3, index + 1), results, panel)
    machine = results["machine"]
    figure.supxlabel(
        f"{results['date'][:10]} · {machine['cpu']}, one core for the server · medians of {results['repeats']} · "
        f"PostgreSQL {machine.get('postgres', '?')}, Node {machine['node']}, Python {machine['python']}",
        fontsize=9,
        color="#57606a",
    )
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(w_pad=0.15, h_pad=0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, results: Results, panel: Panel) -> None:
    measured = cases(results, panel.scenario)
    case = panel.case if panel.case in measured else next(iter(measured), "")
    names = [name for name in NAMES if name != "raw" or panel.raw][::-1]
    figures = [values(results, panel.scenario, case, name).get(panel.key) for name in names]
    axes.set_title(panel.title, fontsize=11, fontweight="bold", loc="left")
    better = "more" if panel.more_is_better else "less"
    axes.set_xlabel(
        f"{case or 'not measured'}\n{panel.unit} ({better} is better)", fontsize=9, color="#57606a", loc="left"
    )
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xticks([])
    bars = axes.barh(
        [NAMES[name] for name in names],
        [figure or 0.0 for figure in figures],
        color=[COLOURS[name] for name in names],
        height=0.7,
    )
    labels = ["not measured" if figure is None else f"{figure:,.{panel.decimals}f}" for figure in figures]
    axes.bar_label(bars, labels, padding=4, fontsize=10)
    axes.set_xlim(0, 1.35 * max(figure or 0.0 for figure in figures) or 1.0)
    axes.tick_params(axis="y", length=0, labelsize=10)
