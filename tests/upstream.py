"""`python -m tests.upstream`: tries the newest release of each library that requirements.txt pins to a minor release.

One after the other, each in a temporary environment over the one that runs this, with the others as they are. Reports
what has changed in the methods that we override, and which tests fail that pass without the new release. The exit
status is 1 when something broke, or a release could not be tried.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

LIBRARIES = ("python-socketio", "python-engineio", "flask-socketio", "eventlet", "gunicorn")
#: Releases that are known not to work: the first of them, and why. They are tried and reported, but are no failure. The
#: newest release before them is tried as well.
KNOWN = {"gunicorn": ("26", "has no eventlet worker")}
UNIT_TESTS = ("tests/unit",)
#: Tests of real servers and clients that use most of what we override.
LIVE_TESTS = (
    "tests/live/test_socketio_conformance.py",
    "tests/live/test_polling.py",
    "tests/live/test_subscriber.py",
    "tests/live/test_processes.py::test_sigterm_with_200_clients_ends_within_10_seconds_and_they_come_back",
)
#: Fails by design: it compares the pins with what is installed.
NOT_RUN = "tests/unit/test_package.py::test_libraries_with_overridden_internals_are_pinned_to_the_tested_minor_release"
#: Seconds for one run of the tests.
TIMEOUT = 1200
#: Failures that are run again, since some may come from the machine's load and not from the release.
MAX_AGAIN = 50

#: What :mod:`tests.support.overrides` prints: method → its signature and source.
Snapshot = Mapping[str, Mapping[str, str]]


class NotTriedError(Exception):
    """The release could not be installed, or the tests could not be run."""


@dataclass(slots=True)
class Report:
    """What a release changes. ``broken`` are the changes that must be dealt with before the pin is moved."""

    wanted: Requirement
    before: str
    after: str
    changes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.wanted.name

    @property
    def known(self) -> str | None:
        """Why this release is known not to work."""
        first, reason = KNOWN.get(self.name, (None, None))
        return reason if first is not None and Version(self.after) >= Version(first) else None

    @property
    def failed(self) -> bool:
        return bool(self.broken) and self.known is None

    def __str__(self) -> str:
        if self.after == self.before:
            return f"{self.wanted}: {self.before} is the newest release"
        lines = [f"{self.name} {self.before} → {self.after}", *self.changes, *self.broken]
        if self.known is None:
            lines.append("BROKEN" if self.broken else "nothing broke: the pin in requirements.txt can be moved")
        elif self.broken:
            lines.append(f"known: this release {self.known}")
        else:
            lines.append(f"it works, although it is in KNOWN of tests/upstream.py because it {self.known}")
        return "\n    ".join(lines)


def compare(before: Snapshot, after: Snapshot) -> tuple[list[str], list[str]]:
    """(changes, what is broken) of the overridden methods."""
    changes, broken = [], []
    for method, old in before.items():
        new = after.get(method)
        if new is None:
            broken.append(f"vanished: {method}{old['signature']}")
        elif new["signature"] != old["signature"]:
            broken.append(f"signature: {method}{old['signature']} → {new['signature']}")
        elif new["source"] != old["source"]:
            changes.append(f"body: {method}: compare it with our override")
    return changes, broken


class Environment:
    """A virtual environment in ``folder`` that falls back on the packages of the one that runs this."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        site_packages = self._run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        # After the environment's own folder on the path, so that its packages win.
        base = sysconfig.get_path("purelib")
        Path(site_packages, "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")

    def install(self, wanted: Requirement) -> None:
        """Install it, and of the other libraries only what it cannot do without. Raises :class:`NotTriedError`."""
        others = [name for name in LIBRARIES if name != wanted.name]
        try:
            self._install(str(wanted), *(f"{name}=={importlib.metadata.version(name)}" for name in others))
        except NotTriedError:
            self._install(str(wanted))

    def _install(self, *wanted: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", "install"]
        done = subprocess.run([*pip, "--quiet", "--upgrade", *wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotTriedError(f"pip cannot install {wanted[0]}: {done.stderr.strip()}")

    def version(self, name: str) -> str:
        return self._run("-c", f"import importlib.metadata; print(importlib.metadata.version({name!r}))").stdout.strip()

    def snapshot(self) -> Snapshot:
        """The overridden methods as they are installed. Raises :class:`NotTriedError` when they cannot be imported."""
        done = self._run("-W", "ignore", "-m", "tests.support.overrides", "--json", check=False)
        if done.returncode:
            raise NotTriedError(done.stderr.strip().splitlines()[-1])
        found: Snapshot = json.loads(done.stdout)
        return found

    def failures(self, *arguments: str) -> dict[str, str]:
        """Run pytest: the tests that fail, twice if they are few. Raises :class:`NotTriedError`."""
        with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
            found = self._failures(Path(folder), *arguments)
            if 0 < len(found) <= MAX_AGAIN:
                found = self._failures(Path(folder), "--last-failed", *arguments)
            return found

    def _failures(self, folder: Path, *arguments: str) -> dict[str, str]:
        results = folder / "results.xml"
        options = ["-q", "-o", f"cache_dir={folder}", f"--junitxml={results}", f"--deselect={NOT_RUN}"]
        try:
            done = self._run("-m", "pytest", *options, *arguments, check=False, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise NotTriedError(f"the tests took over {TIMEOUT} s") from None
        if not results.exists():
            raise NotTriedError("\n".join((done.stdout + done.stderr).strip().splitlines()[-5:]))
        return read_failures(results)

    def _run(
        self, *arguments: str, check: bool = True, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check, timeout=timeout)


def read_failures(results: Path) -> dict[str, str]:
    """The failed tests of a JUnit file, with a line that says why."""
    failures = {}
    for case in xml.etree.ElementTree.parse(results).iter("testcase"):
        for problem in [*case.findall("failure"), *case.findall("error")]:
            lines = (problem.get("message") or "").strip().splitlines() or [""]
            # The last one of a server that did not start is of its log.
            why = lines[0][:200] if len(lines) == 1 else f"{lines[0][:200]} … {lines[-1].strip()[:200]}"
            failures[f"{case.get('classname')}::{case.get('name')}"] = why
    return failures


def summarize(failures: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the first test that fails for it."""
    by_reason: dict[str, list[str]] = {}
    for test, why in failures.items():
        by_reason.setdefault(why, []).append(test)
    return [
        f"fails: {tests[0]}" + (f" and {len(tests) - 1} more" if len(tests) > 1 else "") + f": {why}"
        for why, tests in by_reason.items()
    ]


class Upstream:
    """Tries releases against the libraries as they are installed now, whose own state is read once, when needed."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._tests = tests
        self._snapshot: Snapshot | None = None
        self._failures: Mapping[str, str] | None = None

    def attempt(self, wanted: Requirement) -> Report:
        """Raises :class:`NotTriedError`."""
        with tempfile.TemporaryDirectory(prefix=f"upstream-{wanted.name}-") as folder:
            environment = Environment(Path(folder))
            environment.install(wanted)
            report = Report(wanted, importlib.metadata.version(wanted.name), environment.version(wanted.name))
            if report.after != report.before:
                self._try(environment, report)
            return report

    def _try(self, environment: Environment, report: Report) -> None:
        if self._snapshot is None:
            with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
                self._snapshot = Environment(Path(folder)).snapshot()
        for name in LIBRARIES:
            before, after = importlib.metadata.version(name), environment.version(name)
            if name != report.name and after != before:
                report.changes.append(f"comes with {name} {before} → {after}")
        try:
            changes, broken = compare(self._snapshot, environment.snapshot())
        except NotTriedError as error:
            report.broken.append(f"cannot be imported: {error}")
            return
        report.changes += changes
        report.broken += broken
        if report.known is not None:
            # One failure is enough to confirm it.
            report.broken += summarize(environment.failures("-x", *LIVE_TESTS))
            return
        known = self._failures_before()
        failures = environment.failures(*self._tests)
        report.broken += summarize({test: why for test, why in failures.items() if test not in known})

    def _failures_before(self) -> Mapping[str, str]:
        if self._failures is None:
            with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
                self._failures = Environment(Path(folder)).failures(*self._tests)
            for test in self._failures:
                print(f"fails without a new release too, and is not counted: {test}", flush=True)
        return self._failures


def newest() -> list[Requirement]:
    """What is tried when nothing is named."""
    before_known = [Requirement(f"{name}<{first}") for name, (first, _) in KNOWN.items()]
    return [*map(Requirement, LIBRARIES), *before_known]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument(
        "library", nargs="*", type=Requirement, help=f"NAME, or NAME==VERSION (default: {', '.join(LIBRARIES)})"
    )
    parser.add_argument("--unit", action="store_true", help="run tests/unit only, without tests/live")
    options = parser.parse_args()
    upstream = Upstream(UNIT_TESTS if options.unit else UNIT_TESTS + LIVE_TESTS)
    failed = []
    for wanted in options.library or newest():
        try:
            report = upstream.attempt(wanted)
        except NotTriedError as error:
            print(f"{wanted}: not tried: {error}", flush=True)
            failed.append(str(wanted))
            continue
        print(report, flush=True)
        if report.failed:
            failed.append(f"{report.name} {report.after}")
    print(f"broken or not tried: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
