"""`python -m tests.upstream` tests the newest releases of the libraries; with `--oldest`, the oldest that are allowed.

The newest release of each library is tested alone, and all of them together, in temporary environments on top of the
current one, with the green-thread library that they work with (eventlet, or gevent). A trial reports changes of the
methods that we override, and tests that fail only with these releases. The report is Markdown. The exit status is 1
when something broke, or when releases could not be tested.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

from socketio_pg.core import green_library

ROOT = Path(__file__).resolve().parents[1]

#: requirements.txt pins minor releases of those with overridden internals, and major releases of the others.
LIBRARIES = (
    "python-socketio",
    "python-engineio",
    "flask-socketio",
    "eventlet",
    "gevent",
    "gunicorn",
    "flask",
    "werkzeug",
    "sqlalchemy",
    "psycopg2-binary",
    "click",
)
#: Optional libraries, in requirements-dev.txt: their oldest versions are tested too.
OPTIONAL = ("gevent", "psycopg", "redis")
#: Of requirements.txt, but only used by tests.
TEST_TOOLS = ("pytest",)

UNIT_TESTS = ("tests/unit",)
#: Tests with real servers, clients and databases that use most of the overridden methods, and most of SQLAlchemy.
LIVE_TESTS = (
    "tests/live/test_socketio_conformance.py",
    "tests/live/test_polling.py",
    "tests/live/test_subscriber.py",
    "tests/live/test_cluster.py",
    "tests/live/test_processes.py::test_sigterm_with_200_clients_stops_in_time_and_clients_reconnect",
    "tests/postgres/test_orm.py",
    "tests/postgres/test_orm_flask.py",
    "tests/postgres/test_orm_transactions.py",
    "tests/postgres/test_orm_types.py",
)
#: Fails by design: it compares the pins with the installed versions.
NOT_RUN = "tests/unit/test_package.py::test_libraries_with_overridden_internals_are_pinned_to_the_tested_minor_release"
#: Timeout of one test run, in seconds.
TIMEOUT = 1800
#: Up to this many failed tests are run again, since the machine's load may have caused some failures.
MAX_RERUN = 50

#: The output of :mod:`tests.support.overrides`: method → its signature and source.
Snapshot = Mapping[str, Mapping[str, str]]


class NotTestedError(Exception):
    """The releases could not be installed, or the tests could not be run."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Releases that are tested together, with the green-thread library ``green``."""

    name: str
    requirements: tuple[Requirement, ...]
    green: str = green_library.LIBRARIES[0]


@dataclass(slots=True)
class Report:
    """The effects of a trial's releases. ``broken`` must be fixed before a pin is moved, ``changes`` need not be.

    ``versions``: library → its installed version, and that of the trial, where they differ.
    """

    name: str
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    not_tested: str | None = None

    @property
    def failed(self) -> bool:
        return self.not_tested is not None or bool(self.broken)

    @property
    def result(self) -> str:
        if self.not_tested is not None:
            return "NOT TESTED"
        if not self.versions:
            return "installed"
        return "BROKEN" if self.broken else "works"

    def row(self) -> str:
        releases = ", ".join(f"{name} {before} → {after}" for name, (before, after) in self.versions.items())
        return f"| {self.name} | {releases or 'none'} | {self.result} |"

    def details(self) -> str:
        """Return the section of the report, empty if there is nothing to say."""
        lines = [*self.broken, *self.changes] if self.not_tested is None else [self.not_tested]
        # Indented, so that no character of a message is Markdown.
        return "\n".join([f"## {self.name}: {self.result}", "", *(f"    {line}" for line in lines)]) if lines else ""


def markdown(title: str, reports: Sequence[Report]) -> str:
    """Return the whole report."""
    table = ["| tested | releases | result |", "|---|---|---|", *(report.row() for report in reports)]
    failed = [report.name for report in reports if report.failed]
    summary = f"Broken or not tested: {', '.join(failed)}." if failed else "Nothing broke."
    sections = [details for report in reports if (details := report.details())]
    return "\n\n".join([f"# {title}, Python {platform.python_version()}", "\n".join(table), summary, *sections]) + "\n"


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

    def __init__(self, folder: Path, green: str) -> None:
        self._variables = os.environ | {green_library.SETTING: green}
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        site_packages = self._run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        # Comes after the environment's own folder on the path, so that its packages take precedence.
        base = sysconfig.get_path("purelib")
        Path(site_packages, "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")

    def install(self, requirements: Sequence[Requirement]) -> None:
        """Install releases. The other libraries keep their versions if possible. Raises :class:`NotTestedError`."""
        named = {requirement.name for requirement in requirements}
        others = [f"{name}=={importlib.metadata.version(name)}" for name in LIBRARIES if name not in named]
        try:
            self._install(*map(str, requirements), *others)
        except NotTestedError:
            if not others:
                raise
            self._install(*map(str, requirements))

    def _install(self, *requirements: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", "install"]
        options = ["--quiet", "--upgrade", "--only-binary", ":all:"]
        done = subprocess.run([*pip, *options, *requirements], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotTestedError(f"pip cannot install them: {done.stderr.strip()}")

    def changed(self) -> dict[str, tuple[str, str]]:
        """Return the libraries of which this environment has another version than the current one."""
        code = (
            "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
        )
        here: dict[str, str] = {}
        for name, version in json.loads(self._run("-c", code).stdout):
            here.setdefault(_canonical(name), version)  # the first on the path
        found = {}
        for distribution in importlib.metadata.distributions():
            name = _canonical(distribution.name)
            if here.get(name, distribution.version) != distribution.version:
                found[name] = (distribution.version, here[name])
        return dict(sorted(found.items()))

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
            found = self._failures(Path(folder), "-n", "auto", "--dist", "loadfile", *arguments)
            if 0 < len(found) <= MAX_RERUN:
                found = self._failures(Path(folder), "--last-failed", *arguments)
            return found

    def _failures(self, folder: Path, *arguments: str) -> dict[str, str]:
        results = folder / "results.xml"
        options = [
            "-q",
            "--hypothesis-profile=check",
            "-o",
            f"cache_dir={folder}",
            f"--junitxml={results}",
            f"--deselect={NOT_RUN}",
        ]
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
        return subprocess.run(
            command, cwd=ROOT, env=self._variables, capture_output=True, text=True, check=check, timeout=timeout
        )


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


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
    """Tests releases against the installed libraries. These are examined once, at the first trial that needs it."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._tests = tests
        self._snapshot: Snapshot | None = None
        #: Green-thread library → the failures with the installed libraries.
        self._failures: dict[str, Mapping[str, str]] = {}

    def test(self, trial: Trial) -> Report:
        """Test one trial's releases."""
        report = Report(trial.name)
        with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
            environment = Environment(Path(folder), trial.green)
            try:
                environment.install(trial.requirements)
                report.versions = environment.changed()
                if report.versions:
                    self._test(environment, report, trial.green)
            except NotTestedError as error:
                report.not_tested = str(error)
        return report

    def _test(self, environment: Environment, report: Report, green: str) -> None:
        if self._snapshot is None:
            with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
                self._snapshot = Environment(Path(folder), green).snapshot()
        try:
            changes, broken = compare(self._snapshot, environment.snapshot())
        except NotTestedError as error:
            report.broken.append(f"cannot be imported: {error}")
            return
        report.changes += changes
        report.broken += broken
        failures = environment.failures(*self._tests)
        if failures:
            before = self._failures_before(green)
            report.changes += [f"fails without these releases, too: {test}" for test in failures if test in before]
            report.broken += summarize({test: reason for test, reason in failures.items() if test not in before})

    def _failures_before(self, green: str) -> Mapping[str, str]:
        if green not in self._failures:
            with tempfile.TemporaryDirectory(prefix="upstream-") as folder:
                self._failures[green] = Environment(Path(folder), green).failures(*self._tests)
        return self._failures[green]


def newest() -> Iterator[Trial]:
    """Yield the trials of the newest releases: each library alone, then all together with each green-thread library."""
    for name in LIBRARIES:
        if name not in green_library.LIBRARIES:
            yield trial_of(Requirement(name))
    for green in green_library.LIBRARIES:
        yield trial_of(Requirement(green))
        others = [name for name in LIBRARIES if name not in green_library.LIBRARIES]
        yield Trial(f"all together, {green}", tuple(_newest(name, green) for name in (green, *others)), green)


def trial_of(requirement: Requirement) -> Trial:
    """Return the trial of one library, with a green-thread library that its newest release works with."""
    limited = requirement.name == "gunicorn"
    green = next(one for one in green_library.LIBRARIES if not limited or one not in green_library.LAST_GUNICORN)
    return Trial(
        str(requirement), (requirement,), requirement.name if requirement.name in green_library.LIBRARIES else green
    )


def _newest(name: str, green: str) -> Requirement:
    """Return a requirement for the newest release that has what ``green`` needs."""
    last = green_library.LAST_GUNICORN.get(green) if name == "gunicorn" else None
    return Requirement(name if last is None else f"{name}<{last + 1}")


def oldest() -> Iterator[Trial]:
    """Yield the trials of the oldest versions that the requirements allow."""
    found = []
    for file, names in (("requirements.txt", None), ("requirements-dev.txt", OPTIONAL)):
        for line in (ROOT / file).read_text("utf-8").splitlines():
            if line and not line.startswith(("#", "-r ")):
                requirement = Requirement(line)
                if requirement.name in names if names is not None else requirement.name not in TEST_TOOLS:
                    found.append(_oldest(requirement))
    for green in green_library.LIBRARIES:
        yield Trial(f"oldest versions, {green}", tuple(found), green)


def _oldest(requirement: Requirement) -> Requirement:
    """Return a requirement for the lower bound of ``requirement``."""
    [bound] = [one.version for one in requirement.specifier if one.operator == ">="]
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return Requirement(f"{requirement.name}{extras}=={bound}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument(
        "library", nargs="*", type=Requirement, help=f"NAME, or NAME==VERSION (default: {', '.join(LIBRARIES)})"
    )
    parser.add_argument("--oldest", action="store_true", help="test the oldest allowed versions")
    parser.add_argument("--unit", action="store_true", help="run tests/unit only, without real servers and databases")
    parser.add_argument("--report", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    found = map(trial_of, options.library) if options.library else oldest() if options.oldest else newest()
    upstream = Upstream(UNIT_TESTS if options.unit else UNIT_TESTS + LIVE_TESTS)
    reports = []
    for trial in found:
        reports.append(upstream.test(trial))
        print(reports[-1].row(), file=sys.stderr, flush=True)
    text = markdown("Oldest allowed versions" if options.oldest else "Newest releases", reports)
    print(text)
    if options.report:
        options.report.write_text(text, "utf-8")
    return 1 if any(report.failed for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
