"""tests.upstream: its report on a new release. `make upstream` really installs releases and tests them."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import upstream
from tests.upstream import Report


def snapshot(**methods: tuple[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"signature": signature, "source": source} for name, (signature, source) in methods.items()}


def test_removed_methods_and_new_signatures_are_broken() -> None:
    before = snapshot(same=("(self)", "a"), gone=("(self)", "a"), other=("(self, a)", "a"), body=("(self)", "a"))
    after = snapshot(same=("(self)", "a"), other=("(self, a=1)", "b"), body=("(self)", "b"), new=("(self)", "a"))
    changes, broken = upstream.compare(before, after)
    assert changes == ["body: body: compare it with our override"]
    assert broken == ["removed: gone(self)", "signature: other(self, a) → (self, a=1)"]


@pytest.mark.parametrize(
    ("report", "failed", "words"),
    [
        (Report("eventlet"), False, "| eventlet | none | installed |"),
        (Report("eventlet", {"eventlet": ("1.0", "1.1")}), False, "| eventlet | eventlet 1.0 → 1.1 | works |"),
        (Report("eventlet", {"eventlet": ("1.0", "1.1")}, changes=["body: recv"]), False, "    body: recv"),
        (Report("eventlet", {"eventlet": ("1.0", "1.1")}, broken=["removed: recv"]), True, "    removed: recv"),
        (Report("eventlet", not_tested="no wheel"), True, "## eventlet: NOT TESTED\n\n    no wheel"),
    ],
)
def test_report_names_what_broke(report: Report, failed: bool, words: str) -> None:
    assert report.failed == failed
    text = upstream.markdown("Newest releases", [Report("other"), report])
    assert words in text
    assert ("Broken or not tested: eventlet." in text) is failed
    assert ("Nothing broke." in text) is not failed


def test_failures_are_read_from_junit_xml_and_summarized_by_reason(tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    results.write_text(
        """<testsuites><testsuite><testcase classname="t" name="good"/>
        <testcase classname="t" name="one"><failure message="no attribute">…</failure></testcase>
        <testcase classname="t" name="two"><failure message="no attribute">…</failure></testcase>
        <testcase classname="t" name="three"><error message="no server; log:&#10;it says&#10;why">…</error></testcase>
        </testsuite></testsuites>"""
    )
    failures = upstream.read_failures(results)
    assert failures == {"t::one": "no attribute", "t::two": "no attribute", "t::three": "no server; log: … why"}
    assert upstream.summarize(failures) == [
        "fails: t::one and 1 more: no attribute",
        "fails: t::three: no server; log: … why",
    ]


def test_every_library_is_tested_alone_and_with_the_others() -> None:
    trials = {trial.name: trial for trial in upstream.newest()}
    assert trials.keys() >= set(upstream.LIBRARIES)
    # Each with a green-thread library that has a worker class in the newest gunicorn.
    assert {name: trials[name].green for name in ("eventlet", "gevent", "gunicorn")} == {
        "eventlet": "eventlet", "gevent": "gevent", "gunicorn": "gevent"
    }  # fmt: skip
    together = {
        name: {str(one) for one in trials[f"all together, {name}"].requirements} for name in ("eventlet", "gevent")
    }
    assert together["eventlet"] == set(upstream.LIBRARIES) - {"gevent", "gunicorn"} | {"gunicorn<26"}
    assert together["gevent"] == set(upstream.LIBRARIES) - {"eventlet"}


def test_oldest_versions_are_the_lower_bounds_of_the_requirements(root: Path) -> None:
    eventlet, gevent = upstream.oldest()
    assert (eventlet.green, gevent.green) == ("eventlet", "gevent")
    assert eventlet.requirements == gevent.requirements
    allowed = {
        requirement.name: requirement.specifier
        for line in (root / "requirements.txt").read_text().splitlines()
        if line and not line.startswith(("#", "pytest"))
        for requirement in [Requirement(line)]
    }
    for name, specifier in allowed.items():
        [one] = [requirement for requirement in eventlet.requirements if requirement.name == name]
        [bound] = one.specifier
        assert bound.operator == "=="
        assert specifier.contains(bound.version)


def test_named_tests_exist(root: Path) -> None:
    file, _, name = upstream.NOT_RUN.partition("::")
    assert f"def {name}(" in (root / file).read_text()
    for test in (*upstream.UNIT_TESTS, *upstream.LIVE_TESTS):
        file, _, name = test.partition("::")
        assert (root / file).exists()
        assert not name or f"def {name}(" in (root / file).read_text()
