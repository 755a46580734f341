"""`python -m tests.soak`: runs the checker in many rounds, each with its own seed, which reproduces it."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support import checker_past
from tests.support.checker_run import Report, Size, run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the first round; increases by one")
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)g")
    parser.add_argument("--round", type=float, default=90.0, help="seconds of faults in a round (default: %(default)g)")
    parser.add_argument("--quiet", action="store_true", help="do not print each fault")
    return parser.parse_args()


def tell(line: str) -> None:
    print(f"    {line}", flush=True)


def keep_logs(report: Report | checker_past.PastReport, seed: int) -> Path:
    """Save the servers' logs of a failed round. Return their folder."""
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{seed}-"))
    for number, text in enumerate(report.server_logs, 1):
        (folder / f"node-{number}.log").write_text(text)
    return folder


def main() -> int:
    options = arguments()
    deadline = time.monotonic() + options.minutes * 60
    seed, bad = options.seed, []
    while True:
        print(f"round with --seed {seed}", flush=True)
        left = max(10.0, deadline - time.monotonic())
        # Every second round also commits in two phases; every third one has nodes of two workers.
        size = Size(seconds=min(options.round, left), two_phase=0.3 if seed % 2 else 0.0, workers=1 if seed % 3 else 2)
        report: Report | checker_past.PastReport
        say = (lambda line: None) if options.quiet else tell
        try:
            # Every fourth round changes the past of the log: about 10 s for each time that all its faults happen.
            report = run(seed, size, say) if seed % 4 else checker_past.run(seed, max(1, int(size.seconds / 10)), say)
        except AssertionError as error:
            report = Report(seed, 0.0, [f"the nodes did not start: {error}"])
        print(report, flush=True)
        if report.problems:
            bad.append(seed)
            print(f"  the servers' logs are in {keep_logs(report, seed)}", flush=True)
        seed += 1
        # The next round would be too short.
        if time.monotonic() > deadline - 15:
            break
    print(f"{seed - options.seed} rounds; with problems: {', '.join(map(str, bad)) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
