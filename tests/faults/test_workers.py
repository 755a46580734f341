"""Workers that are killed under load: what clients notice, what is lost, and how soon another worker takes over."""

import math
import os
import signal
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.support.checker import Outcome
from tests.support.log import Log
from tests.support.nightly import sampled
from tests.support.passed import Event, Gap, Heard, Passed, judge_passed
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.workers import APP, load_on

pytestmark = pytest.mark.green

#: Seconds within which another worker leads; about a second on a machine that is not busy.
TAKES_OVER_WITHIN = 30.0


@pytest.fixture
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "workers", "-w", "2", app=APP, AUTO_INIT="1")
    yield made
    made.server.close()


@pytest.mark.parametrize("kills", sampled([2, 10], lambda kills: kills == 2))
def test_killed_workers_lose_nothing_in_silence_and_clients_of_the_others_never_notice(
    log: Log, kills: int, load_pause: float
) -> None:
    server = log.server
    seconds: dict[str, list[float]] = {"leading": [], "following": []}
    with load_on(server, log.url, load_pause) as load:
        for number in range(kills):
            where = load.spread()
            until(server.leading_pid, "a worker leads")
            leading = server.leading_pid()
            assert leading is not None
            which = "leading" if number % 2 == 0 else "following"
            victim = leading if which == "leading" else next(pid for pid in where.values() if pid != leading)
            survivors = [one for one in load.members if where[one] != victim]
            watching = [one for one in load.watchers if where[one] != victim]
            cuts, gaps = [len(one.cuts) for one in survivors], [one.gaps() for one in watching]
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            seconds[which].append(min(load.wait_heard(killed, watching)))
            load.wait_heard(killed, load.watchers)
            until(lambda victim=victim: victim not in server.worker_pids(), "the worker has ended")  # type: ignore[misc]
            load.spread()
            assert [len(one.cuts) for one in survivors] == cuts, survivors
            if which == "following":
                assert [one.gaps() for one in watching] == gaps
        problems = load.finish()
        print(load.figures())
        for which, measured in seconds.items():
            print(f"{which}: median {statistics.median(measured):.3f} s, max {max(measured):.3f} s, {measured}")
    assert problems == []
    assert max(seconds["leading"]) < TAKES_OVER_WITHIN


def _source(*outcomes: Outcome) -> dict[str, list[Passed]]:
    """A source whose message n is sent at the time n and acknowledged half a second later."""
    return {
        "one": [
            Passed(number, number, number + 0.5 if outcome is Outcome.COMMITTED else math.inf, outcome)
            for number, outcome in enumerate(outcomes)
        ]
    }


def _heard(*numbers: int) -> list[Event]:
    return [Heard("one", number, 0.0, 0.0) for number in numbers]


SENT, MAYBE, REFUSED = Outcome.COMMITTED, Outcome.UNKNOWN, Outcome.ROLLED_BACK


@pytest.mark.parametrize(
    ("events", "outcomes", "problem"),
    [
        (_heard(0, 1, 2), [SENT, SENT, SENT], None),
        (_heard(0, 2), [SENT, SENT, SENT], "lost one-1 in silence"),
        (_heard(0, 1), [SENT, SENT, SENT], "lost one-2 in silence"),
        (_heard(0, 1, 1, 2), [SENT, SENT, SENT], "got one-1 after 1"),
        (_heard(0, 2, 1), [SENT, SENT, SENT], "got one-1 after 2"),
        ([*_heard(0), Gap(1.4, 1.6), *_heard(2)], [SENT, SENT, SENT], None),
        ([*_heard(0, 2), Gap(0.6, 1.1)], [SENT, SENT, SENT], None),
        ([*_heard(0), Gap(1.6, 1.9), *_heard(2)], [SENT, SENT, SENT], "lost one-1 in silence"),
        ([*_heard(0), None, *_heard(2)], [SENT, SENT, SENT], None),
        ([*_heard(0), None, *_heard(0, 1, 2)], [SENT, SENT, SENT], "got one-0 after 0"),
        (_heard(0, 2), [SENT, MAYBE, SENT], None),
        (_heard(0, 1, 2), [SENT, MAYBE, SENT], None),
        (_heard(0, 2), [SENT, REFUSED, SENT], None),
        (_heard(0, 1, 2), [SENT, REFUSED, SENT], "got one-1, which was refused"),
    ],
)
def test_judge_of_the_notify_tier_excuses_what_was_told(
    events: list[Event], outcomes: list[Outcome], problem: str | None
) -> None:
    problems = judge_passed("a", events, _source(*outcomes))
    assert problems == [] if problem is None else f"a {problem}" in problems
