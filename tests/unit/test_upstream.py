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
    ("name", "after", "broken", "failed", "word"),
    [
        ("eventlet", "1.0", [], False, "is the newest release"),
        ("eventlet", "1.1", [], False, "the pin in requirements.txt can be moved"),
        ("eventlet", "1.1", ["removed: recv(self)"], True, "BROKEN"),
        ("gunicorn", "26.1", ["fails: a test"], False, "known failure: this release has no eventlet worker"),
        ("gunicorn", "26.1", [], False, "works, although"),
        ("gunicorn", "25.9", ["fails: a test"], True, "BROKEN"),
    ],
)
def test_broken_release_fails_unless_that_is_known(
    name: str, after: str, broken: list[str], failed: bool, word: str
) -> None:
    report = Report(Requirement(name), "1.0", after, broken=broken)
    assert report.failed == failed
    assert word in str(report)
    assert all(line in str(report) for line in broken)


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


def test_newest_has_every_library_and_releases_before_known_ones() -> None:
    assert {requirement.name for requirement in upstream.newest()} == set(upstream.LIBRARIES)
    assert Requirement("gunicorn<26") in upstream.newest()


def test_named_tests_exist(root: Path) -> None:
    file, _, name = upstream.NOT_RUN.partition("::")
    assert f"def {name}(" in (root / file).read_text()
    for test in (*upstream.UNIT_TESTS, *upstream.LIVE_TESTS):
        file, _, name = test.partition("::")
        assert (root / file).exists()
        assert not name or f"def {name}(" in (root / file).read_text()
