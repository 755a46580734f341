"""`python bench/run.py`: runs all scenarios with all servers in turn, on pinned cores; a table, JSON and a chart."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

# `python bench/run.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import chart, database, machine, report, servers, trial  # noqa: E402
from bench.scenarios import SCENARIOS  # noqa: E402

RAW_SCENARIOS = ("live", "publish")
"""Scenarios with a bare loop: of `send()` in `live`, of commits in `publish`."""
TRIAL_SECONDS = 600.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a short run, to see that everything works: 3 minutes")
    size.add_argument("--full", action="store_true", help="also 10,000 clients in one room")
    parser.add_argument("--scenario", nargs="+", choices=[*SCENARIOS, "raw"], help="default: all")
    parser.add_argument("--servers", default="ours,gevent,stock,node,raw", help="default: %(default)s")
    parser.add_argument("--repeat", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--out", type=Path, default=servers.HERE / "results", help="folder for the JSON")
    parser.add_argument("--chart", type=Path, help="also draw a chart (PNG) to this path")
    parser.add_argument("--render", type=Path, help="do not measure: show the table and the chart of this JSON")
    return parser.parse_args()


def plan(options: argparse.Namespace, repeats: int) -> Iterator[tuple[str, int, str]]:
    """Yield (scenario, repeat, server) in the order of execution: the servers alternate within each repeat."""
    chosen: list[str] = options.servers.split(",")
    unknown = set(chosen) - {*servers.ENGINES, "raw"}
    if unknown:
        raise SystemExit(f"unknown servers: {', '.join(sorted(unknown))}")
    for name in list(chosen):
        reason = servers.missing(name)
        if reason:
            chosen.remove(name)
            print(f"without {name}: {reason}", file=sys.stderr)
    only_raw = options.scenario == ["raw"]
    scenarios = ["live"] if only_raw else [name for name in options.scenario or SCENARIOS if name != "raw"]
    for scenario in scenarios:
        for repeat in range(repeats):
            for server in ["raw"] if only_raw else chosen:
                if server != "raw" or scenario in RAW_SCENARIOS:
                    yield scenario, repeat, server


def measure(options: argparse.Namespace) -> report.Results:
    size = trial.QUICK if options.quick else trial.FULL if options.full else trial.NORMAL
    repeats = options.repeat or (1 if options.quick else 5)
    order = list(plan(options, repeats))
    cores = machine.choose_cores()
    files = machine.raise_file_limit(needed=12_000 if not options.quick else 2_000)
    os.sched_setaffinity(0, {cores.load})
    trials: list[report.TrialResult] = []
    started = time.monotonic()
    with database.running(cores) as (url, version):
        for index, (scenario, repeat, name) in enumerate(order):
            print(f"[{time.monotonic() - started:5.0f} s] {index + 1}/{len(order)} {scenario} {name}", file=sys.stderr)
            result = report.TrialResult(scenario=scenario, repeat=repeat, server=name, rows=[], error="")
            try:
                with servers.running(name, url, cores.server) as server:
                    rows = trial.run(SCENARIOS[scenario], server, url, cores, size, TRIAL_SECONDS)
                result["rows"] = [{"case": row.case, "values": row.values, "flags": row.flags} for row in rows]
            except (servers.ServerFailed, RuntimeError) as error:
                # A failure is a result too; the other servers and scenarios still run.
                result["error"] = str(error)
                print(f"{scenario} {name} failed: {error}", file=sys.stderr)
            trials.append(result)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "size": "quick" if options.quick else "full" if options.full else "normal",
        "repeats": repeats,
        "cores": cores.describe(),
        "machine": {**machine.describe(), "postgres": version, "open files": str(files), **servers.node_versions()},
        "trials": trials,
    }


def main() -> None:
    options = arguments()
    if options.render:
        results = report.load(options.render)
    else:
        results = measure(options)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{results['date'][:19].replace(':', '')}-{results['size']}.json"
        report.save(results, path)
        print(f"\nwritten to {path}", file=sys.stderr)
    print(report.table(results))
    if options.chart:
        chart.draw(results, options.chart)


if __name__ == "__main__":
    main()
