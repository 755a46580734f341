"""`python bench/log.py`: measures cost and capacity of the log, compared with NOTIFY, as a table and JSON."""

import argparse
import signal
import sys
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path

# `python bench/log.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import log_database, log_report, machine, servers  # noqa: E402
from bench.catchup import catchup  # noqa: E402
from bench.herd import herd  # noqa: E402
from bench.log_latency import latency  # noqa: E402
from bench.log_trial import NORMAL, QUICK, Scenario, Trial  # noqa: E402
from bench.log_writing import throughput, transactions  # noqa: E402

SCENARIOS: dict[str, Scenario] = {
    "transactions": transactions,
    "throughput": throughput,
    "latency": latency,
    "herd": herd,
    "catchup": catchup,
}
IDLE = 0.1
"""A machine that is busy for less than this share of the time counts as idle."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="can be repeated; default: all")
    parser.add_argument("--quick", action="store_true", help="short, to see that everything works: 3 minutes")
    parser.add_argument(
        "--patience",
        type=float,
        default=60,
        help="seconds to wait for an idle machine before each scenario: %(default)s",
    )
    parser.add_argument("--json", type=Path, help="default: bench/results/DATE-log.json")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> tuple[log_report.Results, Path]:
    """Run the scenarios. Return the results and their file, which is written after each scenario."""
    size = QUICK if options.quick else NORMAL
    repeats: int = options.repeats or (1 if options.quick else 5)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path: Path = options.json or servers.HERE / "results" / f"{date[:19].replace(':', '')}-log.json"
    files = machine.raise_file_limit(needed=4_000)
    started = time.monotonic()
    with log_database.running() as cluster:
        versions = {
            "postgres": cluster.version_number(),
            "fdatasync_us": f"{cluster.fdatasync_us():.0f}",
            "open files": str(files),
        }
        results: log_report.Results = {
            "date": date,
            "size": "quick" if options.quick else "normal",
            "repeats": repeats,
            "machine": {**machine.describe(), **versions},
            "measured": [],
            "failed": [],
        }
        # Each repeat runs all scenarios, so that drift over an hour affects all of them alike.
        for repeat in range(repeats):
            for name in options.only or SCENARIOS:
                print(f"[{time.monotonic() - started:5.0f} s] {repeat + 1}/{repeats} {name}", file=sys.stderr)
                busy = machine.wait_until_idle(IDLE, options.patience)
                try:
                    with cluster.database(f"{name}_{repeat}") as url:
                        rows = SCENARIOS[name](Trial(cluster, url, size, repeat))
                    if busy >= IDLE:
                        rows[0].flags.append(f"the machine was busy with other processes before ({busy:.0%})")
                    results["measured"] += (log_report.measured(name, repeat, row) for row in rows)
                except Exception as error:
                    # A failure is a result too; the other scenarios still run.
                    results["failed"].append(f"{name}: {type(error).__name__}: {error}")
                    traceback.print_exc()
                log_report.save(results, path)
    return results, path


def main() -> None:
    options = arguments()
    # Raises SystemExit, so that all started processes are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    results, path = measure(options)
    print(f"\nwritten to {path}", file=sys.stderr)
    print(log_report.table(results))


if __name__ == "__main__":
    main()
