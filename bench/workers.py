"""`python bench/workers.py`: what a second worker costs per delivery and per client, and the same of Node's cluster."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

# `python bench/workers.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import database, machine, servers, trial  # noqa: E402
from bench.scenarios import SCENARIOS  # noqa: E402

#: A server with two workers, and the one with a single worker by whose figures its own are divided.
PAIRS = (("workers", "ours"), ("cluster", "node"))
SCENARIO_NAMES = ("live", "burst", "connect")
FIGURES = (("deliveries_per_cpu_s", "deliveries / CPU s", 0), ("cpu_ms_per_client", "CPU ms / client", 3))
QUICK = trial.Size((1_000,), (20,), 2.0, 5, 0, (300,), (), 0.0, ())
NORMAL = trial.Size((1_000,), (5, 20, 50), 5.0, 20, 0, (5_000,), (), 0.0, ())
TRIAL_SECONDS = 600.0

#: (scenario and case, server) → the values of each repeat.
Found = dict[tuple[str, str], list[dict[str, float]]]


def measure(options: argparse.Namespace) -> tuple[Found, list[str]]:
    """Run the scenarios with all servers in turn. Return what was found, and what makes it doubtful."""
    size = QUICK if options.quick else NORMAL
    cores = machine.choose_cores()
    machine.raise_file_limit(needed=12_000)
    os.sched_setaffinity(0, {cores.load})
    found: Found = {}
    doubts: list[str] = []
    with database.running(cores) as (url, _):
        for scenario in options.scenario:
            for repeat in range(options.repeats):
                # The second comes first in every other repeat.
                for name in options.servers[:: -1 if repeat % 2 else 1]:
                    began = time.monotonic()
                    try:
                        with servers.running(name, url, cores.server) as server:
                            rows = trial.run(SCENARIOS[scenario], server, url, cores, size, TRIAL_SECONDS)
                    except (servers.ServerFailed, RuntimeError) as error:
                        doubts.append(f"{scenario} {name}: failed: {str(error).strip().splitlines()[-1]}")
                        continue
                    finally:
                        print(f"{scenario} {repeat + 1} {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
                    for row in rows:
                        case = f"{scenario}, {row.case}"
                        found.setdefault((case, name), []).append({**row.values, "repeat": float(repeat)})
                        doubts += [f"{case} {name}: {flag}" for flag in row.flags]
    return found, doubts


def table(found: Found) -> str:
    """Return medians, and the ratios of two workers to one in the same repeat: their median, lowest and highest."""
    names = [name for pair in PAIRS for name in reversed(pair)]
    lines = [f"{'':44}" + "".join(f"{name:>12}" for name in names) + "".join(f"{'/'.join(pair):>24}" for pair in PAIRS)]
    for case in dict.fromkeys(case for case, _ in found):
        for key, title, decimals in FIGURES:
            by_server = {
                name: {row["repeat"]: row[key] for row in found.get((case, name), ()) if key in row} for name in names
            }
            if not any(by_server.values()):
                continue
            cells = [
                f"{median(values.values()):,.{decimals}f}" if (values := by_server[name]) else "-" for name in names
            ]
            ratios = [_ratios(by_server[two], by_server[one]) for two, one in PAIRS]
            lines.append(
                f"{case}, {title}".ljust(58)
                + "".join(f"{cell:>12}" for cell in cells)
                + "".join(f"{ratio:>24}" for ratio in ratios)
            )
    return "\n".join(lines)


def _ratios(two: dict[float, float], one: dict[float, float]) -> str:
    ratios = sorted(two[repeat] / one[repeat] for repeat in two.keys() & one.keys())
    return f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})" if ratios else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that everything works: 2 minutes")
    parser.add_argument("--repeats", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIO_NAMES, default=SCENARIO_NAMES)
    parser.add_argument("--servers", nargs="+", default=[name for pair in PAIRS for name in reversed(pair)])
    parser.add_argument("--json", type=Path, help="also write all values to this file")
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 5)
    for name in list(options.servers):
        if (reason := servers.missing(name)) is not None:
            options.servers.remove(name)
            print(f"without {name}: {reason}", file=sys.stderr)
    found, doubts = measure(options)
    print(table(found))
    for doubt in dict.fromkeys(doubts):
        print(f"doubtful: {doubt} ({doubts.count(doubt)})")
    if options.json:
        rows = [{"case": case, "server": name, "repeats": values} for (case, name), values in found.items()]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
