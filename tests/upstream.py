"""`python -m tests.upstream` tests the newest release of each library that requirements.txt pins to a minor release.

Each release is installed alone, in a temporary environment on top of the current one. Reports changes of the methods
that we override, and tests that fail only with the new release. The exit status is 1 when something broke, or when a
release could not be tested.
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
#: Library → its first release that is known not to work, and the reason. Such releases are tested and reported, but do
#: not count as failures. The newest earlier release is tested as well.
KNOWN = {"gunicorn": ("26", "has no eventlet worker")}
UNIT_TESTS = ("tests/unit",)
#: Tests with real servers and clients that use most of the overridden methods.
LIVE_TESTS = (
    "tests/live/test_socketio_conformance.py",
    "tests/live/test_polling.py",
    "tests/live/test_subscriber.py",
    "tests/live/test_processes.py::test_sigterm_with_200_clients_stops_within_10_seconds_and_clients_reconnect",
)
#: Fails by design: it compares the pins with the installed versions.
NOT_RUN = "tests/unit/test_package.py::test_libraries_with_overridden_internals_are_pinned_to_the_tested_minor_release"
#: Timeout of one test run, in seconds.
TIMEOUT = 1200
#: Up to this many failed tests are run again, since the machine's load may have caused some failures.
MAX_RERUN = 50

#: The output of :mod:`tests.support.overrides`: method → its signature and source.
Snapshot = Mapping[str, Mapping[str, str]]


class NotTestedError(Exception):
    """The release could not be installed, or the tests could not be run."""


@dataclass(slots=True)
class Report:
    """The effects of a release. ``broken`` must be fixed before the pin is moved, ``changes`` need not be."""

    requirement: Requirement
    before: str
    after: str
    changes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.requirement.name

    @property
    def known(self) -> str | None:
        """The reason for which this release is known not to work, or None."""
        first, reason = KNOWN.get(self.name, (None, None))
        return reason if first is not None and Version(self.after) >= Version(first) else None

    @property
    def failed(self) -> bool:
        return bool(self.broken) and self.known is None

    def __str__(self) -> str:
        if self.after == self.before:
            return f"{self.requirement}: {self.before} is the newest release"
        lines = [f"{self.name} {self.before} → {self.after}", *self.changes, *self.broken]
        if self.known is None:
            lines.append("BROKEN" if self.broken else "OK: the pin in requirements.txt can be moved")
        elif self.broken:
            lines.append(f"known failure: this release {self.known}")
        else:
            lines.append(f"works, although KNOWN in tests/upstream.py says that this release {self.known}")
        return "\n    ".join(lines)


def compare(before: Snapshot, after: Snapshot) -> tuple[list[str], list[str]]:
    """Return the changes and the breakages of the overridden methods."""
    changes, broken = [], []
    for method, old in before.items():
        new = after.get(method)
        if new is None:
            broken.append(f"removed: {method}{old['signature']}")
        elif new["signature"] != old["signature"]:
            broken.append(f"signature: {method}{old['signature']} → {new['signature']}")
        elif new["source"] != old["source"]:
            changes.append(f"body: {method}: compare it with our override")
    return changes, broken


class Environment:
    """A virtual environment in ``folder`` that falls back on the packages of the current one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        site_packages = self._run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        # Comes after the environment's own folder on the path, so that its packages take precedence.
        base = sysconfig.get_path("purelib")
        Path(site_packages, "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")

    def install(self, requirement: Requirement) -> None:
        """Install a release. The other libraries keep their versions if possible. Raises :class:`NotTestedError`."""
        others = [name for name in LIBRARIES if name != requirement.name]
        try:
            self._install(str(requirement), *(f"{name}=={importlib.metadata.version(name)}" for name in others))
        except NotTestedError:
            self._install(str(requirement))

    def _install(self, *requirements: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", "install"]
        done = subprocess.run(
            [*pip, "--quiet", "--upgrade", *requirements], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NotTestedError(f"pip cannot install {requirements[0]}: {done.stderr.strip()}")

    def version(self, name: str) -> str:
        return self._run("-c", f"import importlib.metadata; print(importlib.metadata.version({name!r}))").stdout.strip()

    def snapshot(self) -> Snapshot:
        """Return the overridden methods as installed. Raises :class:`NotTestedError` when they cannot be imported."""
        done = self._run("-W", "ignore", "-m", "tests.support.overrides", "--json", check=False)
        if done.returncode:
            raise NotTestedError(done.stderr.strip().splitlines()[-1])
        found: Snapshot = json.loads(done.stdout)
        return found

    def failures(self, *arguments: str) -> dict[str, str]:
        """Run pytest, reruns included. Return the failures: test → reason. Raises :class:`NotTestedError`."""
        with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
            found = self._failures(Path(folder), *arguments)
            if 0 < len(found) <= MAX_RERUN:
                found = self._failures(Path(folder), "--last-failed", *arguments)
            return found

    def _failures(self, folder: Path, *arguments: str) -> dict[str, str]:
        results = folder / "results.xml"
        options = ["-q", "-o", f"cache_dir={folder}", f"--junitxml={results}", f"--deselect={NOT_RUN}"]
        try:
            done = self._run("-m", "pytest", *options, *arguments, check=False, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise NotTestedError(f"the tests took over {TIMEOUT} s") from None
        if not results.exists():
            raise NotTestedError("\n".join((done.stdout + done.stderr).strip().splitlines()[-5:]))
        return read_failures(results)

    def _run(
        self, *arguments: str, check: bool = True, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check, timeout=timeout)


def read_failures(results: Path) -> dict[str, str]:
    """Return the failures in a JUnit file: test → reason, on one line."""
    failures = {}
    for case in xml.etree.ElementTree.parse(results).iter("testcase"):
        for problem in [*case.findall("failure"), *case.findall("error")]:
            lines = (problem.get("message") or "").strip().splitlines() or [""]
            # If a server did not start, the last line is from its log.
            reason = lines[0][:200] if len(lines) == 1 else f"{lines[0][:200]} … {lines[-1].strip()[:200]}"
            failures[f"{case.get('classname')}::{case.get('name')}"] = reason
    return failures


def summarize(failures: Mapping[str, str]) -> list[str]:
    """Return one line per reason, with the first test that failed for it."""
    by_reason: dict[str, list[str]] = {}
    for test, reason in failures.items():
        by_reason.setdefault(reason, []).append(test)
    return [
        f"fails: {tests[0]}" + (f" and {len(tests) - 1} more" if len(tests) > 1 else "") + f": {reason}"
        for reason, tests in by_reason.items()
    ]


class Upstream:
    """Tests releases against the installed libraries. These are examined once, at the first release that needs it."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._tests = tests
        self._snapshot: Snapshot | None = None
        self._failures: Mapping[str, str] | None = None

    def test(self, requirement: Requirement) -> Report:
        """Test one release. Raises :class:`NotTestedError` when it cannot be installed."""
        with tempfile.TemporaryDirectory(prefix=f"upstream-{requirement.name}-") as folder:
            environment = Environment(Path(folder))
            environment.install(requirement)
            report = Report(
                requirement, importlib.metadata.version(requirement.name), environment.version(requirement.name)
            )
            if report.after != report.before:
                self._test(environment, report)
            return report

    def _test(self, environment: Environment, report: Report) -> None:
        if self._snapshot is None:
            with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
                self._snapshot = Environment(Path(folder)).snapshot()
        for name in LIBRARIES:
            before, after = importlib.metadata.version(name), environment.version(name)
            if name != report.name and after != before:
                report.changes.append(f"requires {name} {before} → {after}")
        try:
            changes, broken = compare(self._snapshot, environment.snapshot())
        except NotTestedError as error:
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
        report.broken += summarize({test: reason for test, reason in failures.items() if test not in known})

    def _failures_before(self) -> Mapping[str, str]:
        if self._failures is None:
            with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
                self._failures = Environment(Path(folder)).failures(*self._tests)
            for test in self._failures:
                print(f"ignored, because it fails without a new release, too: {test}", flush=True)
        return self._failures


def newest() -> list[Requirement]:
    """Return the releases that are tested by default."""
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
    for requirement in options.library or newest():
        try:
            report = upstream.test(requirement)
        except NotTestedError as error:
            print(f"{requirement}: not tested: {error}", flush=True)
            failed.append(str(requirement))
            continue
        print(report, flush=True)
        if report.failed:
            failed.append(f"{report.name} {report.after}")
    print(f"broken or not tested: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
