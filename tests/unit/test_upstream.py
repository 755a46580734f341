"""tests.upstream: what it makes of a new release. Installing one and running the tests is `make upstream`."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import upstream
from tests.upstream import Report


def snapshot(**methods: tuple[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"signature": signature, "source": source} for name, (signature, source) in methods.items()}


def test_a_method_that_vanished_or_takes_other_parameters_is_broken_and_a_new_body_is_a_change() -> None:
    before = snapshot(same=("(self)", "a"), gone=("(self)", "a"), other=("(self, a)", "a"), body=("(self)", "a"))
    after = snapshot(same=("(self)", "a"), other=("(self, a=1)", "b"), body=("(self)", "b"), new=("(self)", "a"))
    changes, broken = upstream.compare(before, after)
    assert changes == ["body: body: compare it with our override"]
    assert broken == ["vanished: gone(self)", "signature: other(self, a) → (self, a=1)"]


@pytest.mark.parametrize(
    ("name", "after", "broken", "failed", "word"),
    [
        ("eventlet", "1.0", [], False, "is the newest release"),
        ("eventlet", "1.1", [], False, "the pin in requirements.txt can be moved"),
        ("eventlet", "1.1", ["vanished: recv(self)"], True, "BROKEN"),
        ("gunicorn", "26.1", ["fails: a test"], False, "known: this release has no eventlet worker"),
        ("gunicorn", "26.1", [], False, "it works, although"),
        ("gunicorn", "25.9", ["fails: a test"], True, "BROKEN"),
    ],
)
def test_a_release_has_failed_unless_that_is_known(
    name: str, after: str, broken: list[str], failed: bool, word: str
) -> None:
    report = Report(Requirement(name), "1.0", after, broken=broken)
    assert report.failed == failed
    assert word in str(report)
    assert all(line in str(report) for line in broken)


def test_failures_are_read_from_pytests_file_and_summarized_by_reason(tmp_path: Path) -> None:
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


def test_every_pinned_library_is_tried_and_below_known_releases_too() -> None:
    assert {wanted.name for wanted in upstream.newest()} == set(upstream.LIBRARIES)
    assert Requirement("gunicorn<26") in upstream.newest()


def test_the_test_that_is_left_out_exists(root: Path) -> None:
    file, _, name = upstream.NOT_RUN.partition("::")
    assert f"def {name}(" in (root / file).read_text()
    for test in (*upstream.UNIT_TESTS, *upstream.LIVE_TESTS):
        file, _, name = test.partition("::")
        assert (root / file).exists()
        assert not name or f"def {name}(" in (root / file).read_text()
