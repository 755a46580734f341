"""Parts of the inspector without a server: runs of the doctor, and the channels of a watch's template."""

from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.doctor.findings import Finding, ok
from socketio_pg.inspector.doctor import DoctorApi
from socketio_pg.inspector.watches import as_pattern


def test_doctor_makes_one_run_at_a_time() -> None:
    runs: list[green.Event] = []

    def examine() -> Iterator[Finding]:
        runs.append(green.Event())
        yield ok("first", "fine")
        runs[-1].wait(30)
        yield ok("second", "fine")

    api = DoctorApi(examine)
    assert api.last() == {"findings": None, "running": False}
    answers: list[dict[str, Any]] = []
    waiting = [green.spawn(lambda: answers.append(api.run({}))) for _ in range(3)]
    while not runs:
        green.sleep(0.01)
    assert api.last()["running"]
    runs[0].send()
    for one in waiting:
        one.wait()
    assert len(runs) == 1
    assert [one["check"] for one in answers[0]["findings"]] == ["first", "second"]
    assert answers == [answers[0]] * 3
    assert api.last() == answers[0] | {"running": False}


def test_doctor_ends_in_time_and_after_a_bug() -> None:
    def endless() -> Iterator[Finding]:
        yield ok("first", "fine")
        green.Event().wait(60)

    def failing() -> Iterator[Finding]:
        yield ok("first", "fine")
        raise KeyError("a bug")

    api = DoctorApi(endless)
    api.seconds = 0.05
    late = api.run({})
    assert [one["check"] for one in late["findings"]] == ["first", "doctor"]
    assert not late["complete"]
    broken = DoctorApi(failing).run({})
    assert ([one["check"] for one in broken["findings"]], broken["complete"]) == (["first"], False)


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("orders", "orders"),
        ("orders:{id}", "orders:*"),
        ("a:{x}:{y}/b", "a:*:*/b"),
        ("{x}{y}", "*"),
        ("table:public.orders", "table:public.orders"),
    ],
)
def test_templates_of_watches_are_patterns(template: str, pattern: str) -> None:
    assert as_pattern(template) == pattern
