"""A short run of the checker: writers and subscribers during faults, then a comparison. Also tests the checker itself.

`make soak` is the long form. A seed determines the actions, not how they interleave.
"""

import dataclasses
import itertools
from collections.abc import Callable
from random import Random

import pytest

from tests.support import checker_past
from tests.support.checker import (
    Delivered,
    Disconnected,
    Forgotten,
    Improper,
    Logged,
    Note,
    Outcome,
    Recovered,
    Sent,
    Subscribed,
    Transaction,
    Unsubscribed,
    digest,
    judge,
)
from tests.support.checker_faults import KINDS, WORKER_KINDS, plan_faults
from tests.support.checker_past import Got, Told
from tests.support.checker_plans import plan_transactions
from tests.support.checker_run import HARMLESS, Size, failures, run

TRACEBACK = "Traceback (most recent call last):\n"


@pytest.mark.parametrize("seed", [1])
def test_messages_arrive_once_and_in_order_despite_faults(seed: int) -> None:
    size = Size(seconds=12, between_faults=1.0, writers=4, restless_subscribers=4, recovering=2, people=2)
    report = run(seed, size, print)
    print(report)
    assert report.problems == []
    assert report.figures["sessions"] >= 1
    # With fewer, the run tests nothing. On a machine that is not busy it is ten times as many.
    assert report.figures["messages in the log"] > 50
    assert report.figures["replayed"] > 20
    assert report.figures["messages of patterns"] > 50
    assert report.figures["changes of presence"] > 5
    assert len(report.faults) >= 5


@pytest.mark.nightly
@pytest.mark.parametrize("seconds", [9, 60])
def test_messages_arrive_once_and_in_order_on_nodes_of_two_workers(seconds: float) -> None:
    # Its first faults include those of workers.
    report = run(19, Size(seconds=seconds, between_faults=1.0, workers=2, writers=4), print)
    print(report)
    assert report.problems == []
    assert report.faults.keys() >= WORKER_KINDS.keys()
    assert report.figures["messages in the log"] > 50
    assert len(report.faults) >= 4


@pytest.mark.nightly
def test_two_phase_commits_arrive_once_and_in_order_despite_faults() -> None:
    report = run(1, Size(seconds=20, between_faults=1.5, two_phase=0.5), print)
    print(report)
    assert report.problems == []
    assert report.figures["messages in the log"] > 300


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_in_silence_when_the_past_of_the_log_changes(seed: int) -> None:
    report = checker_past.run(seed, 2, print)
    print(report)
    assert report.problems == []
    assert report.gaps > 20


GAP = Told("epoch_changed", 4)


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([Got(1, "e", 1), Got(2, "e", 2), Got(3, "e", 3), Got(4, "e", 4), Got(5, "e", 5)], None),
        ([Got(1, "e", 1), GAP, Got(3, "f", 1), Got(2, "f", 2), Got(5, "f", 3)], None),
        ([Got(1, "e", 1), Got(2, "e", 2), Got(3, "e", 3), GAP, Got(5, "e", 2)], None),
        ([Got(1, "e", 1), Got(3, "e", 3), GAP, Got(5, "f", 5)], "lost in silence"),
        ([Got(1, "e", 1), Got(2, "e", 2), Got(2, "e", 3), GAP, Got(5, "f", 5)], "repeated in silence"),
        ([Told("trimmed", 3), Got(5, "f", 5)], "lost in silence"),
        ([GAP, Got(5, "f", 5), Got(4, "f", 6), Got(5, "f", 7)], "repeated in silence"),
        ([GAP, Got(4, "e", 4), Got(5, "f", 5)], "another epoch in silence"),
        ([GAP, Got(4, "e", 4), Got(5, "e", 3)], "position went back in silence"),
        ([GAP, Got(3, "e", 1)], "never delivered"),
    ],
)
def test_judge_of_the_past_excuses_what_was_told(events: list[Got | Told], kind: str | None) -> None:
    problems = checker_past.judge("one", events, 5)
    assert problems == [] if kind is None else any(problem.startswith(kind) for problem in problems), problems


# -- the judge on corrupted histories -------------------------------------------------------------------------------


class History:
    """The result of a correct run: six transactions of two writers in two channels, and two subscribers."""

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []
        self.log: list[Logged] = []
        clock, positions = itertools.count(), itertools.count(1)
        for number in range(6):
            transaction = Transaction(f"t{number}", outcome=Outcome.COMMITTED)
            for channel in ("a", "b", "a"):
                name = f"m{next(clock)}"
                sent = Sent(name, channel, digest(name), float(next(clock)))
                transaction.messages.append(sent)
                self.log.append(Logged(next(positions), channel, name, sent.digest, f"at {name}"))
            transaction.acknowledged = float(next(clock))
            self.transactions.append(transaction)
        rolled_back = Transaction("t6", [Sent("gone", "a", 0, 0.0)], outcome=Outcome.ROLLED_BACK)
        unknown = Transaction("t7", [Sent("perhaps", "a", 0, 0.0)], outcome=Outcome.UNKNOWN)
        self.transactions += [rolled_back, unknown]
        self.transactions[0].discarded.append(Sent("back", "a", 0, 0.0))
        # One was subscribed from the beginning; the other connected later and reconnected once.
        self.one: list[Note] = [Subscribed("a", 0), Subscribed("b", 0), *self.delivered(1, 18)]
        self.two: list[Note] = [
            Subscribed("a", 4),
            *self.delivered(5, 9, "a"),
            Disconnected(),
            Subscribed("a", 9, since=9, recovered=True),
            *self.delivered(10, 18, "a"),
        ]

    def delivered(self, first: int, last: int, channels: str = "ab") -> list[Delivered]:
        return [
            Delivered(row.channel, row.position, row.id, row.digest, row.published_at)
            for row in self.log[first - 1 : last]
            if row.channel in channels
        ]

    def swap_in_log(self, first: int, second: int) -> None:
        """Swap the messages at two positions, for the subscribers too."""
        rows = self.log[first - 1], self.log[second - 1]
        for to, moved in zip(rows, reversed(rows), strict=True):
            self.log[to.position - 1] = dataclasses.replace(moved, position=to.position)
        self.one[2:] = self.delivered(1, 18)
        self.two[1:4] = self.delivered(5, 9, "a")
        self.two[6:] = self.delivered(10, 18, "a")

    def problems(self, left_in_outbox: int = 0) -> list[str]:
        subscribers = {"one": (("a", "b"), self.one), "two": (("a",), self.two)}
        return judge(self.transactions, self.log, subscribers, left_in_outbox)


def test_correct_history_has_no_problems() -> None:
    assert History().problems() == []


def _append(history: History, identifier: str) -> None:
    history.log.append(Logged(19, "a", identifier, 0, "then"))
    for notes in (history.one, history.two):
        notes.append(Delivered("a", 19, identifier, 0, "then"))


def _in_log_twice(history: History) -> None:
    _append(history, "m0")


def _swap_within_transaction(history: History) -> None:
    history.swap_in_log(4, 6)


def _swap_transactions(history: History) -> None:
    history.swap_in_log(4, 7)


def _lose_in_log(history: History) -> None:
    """Remove a message without a gap, as if it had never been published."""
    del history.log[4]
    history.log = [dataclasses.replace(row, position=number) for number, row in enumerate(history.log, 1)]
    history.one[2:] = history.delivered(1, 17)
    history.two[:] = [Subscribed("a", 4), *history.delivered(5, 17, "a")]


def _other_digest(history: History) -> None:
    history.log[3] = dataclasses.replace(history.log[3], digest=0)
    history.one[2:] = history.delivered(1, 18)


@pytest.mark.parametrize(
    ("corrupt", "kind"),
    [
        (lambda history: history.one.pop(7), "skipped: one: m"),
        (lambda history: history.one.pop(), "never delivered: one: m"),
        (lambda history: history.one.insert(8, history.one[7]), "twice or too late: one: m"),
        (lambda history: history.one.append(history.one[5]), "twice or too late: one: m"),
        (lambda history: history.one.insert(7, history.one.pop(5)), "twice or too late: one: m"),
        (lambda history: history.two.insert(6, history.two[3]), "twice or too late: two: m"),
        (lambda history: history.two.pop(3), "skipped: two: a continues after 9"),
        (lambda history: history.two.insert(5, history.two[6]), "not subscribed, yet delivered: two: m"),
        (lambda history: history.one.insert(4, Unsubscribed("a")), "not subscribed, yet delivered: one: m"),
        (lambda history: history.one.append(Delivered("a", 99, "m1", 0, "then")), "delivered, yet not in the log: one"),
        (lambda history: history.one.append(Delivered("a", None, "m1", 0, None)), "delivered, yet not in the log: one"),
        (
            lambda history: history.one.__setitem__(5, dataclasses.replace(history.one[5], digest=1)),
            "changed in transit: one: m",
        ),
        (
            lambda history: history.one.__setitem__(5, dataclasses.replace(history.one[5], published_at="later")),
            "changed in transit: one: m",
        ),
        (lambda history: history.two.__setitem__(5, Subscribed("a", 10, 9, True)), "not recovered: two: a since 9"),
        (lambda history: history.two.__setitem__(5, Subscribed("a", 9, 9, False)), "not recovered: two: a since 9"),
        (lambda history: history.two.__setitem__(5, Subscribed("a", 9, 9, None)), "not recovered: two: a since 9"),
        (lambda history: history.one.__setitem__(1, Disconnected()), "never subscribed: one: b"),
        (lambda history: history.two.__setitem__(slice(5, 7), [Recovered(("a",))]), "skipped: two: m"),
        (lambda history: history.two.__setitem__(slice(5, 6), [Recovered(("b",))]), "not subscribed, yet delivered: t"),
        (
            lambda history: history.two.__setitem__(slice(5, 6), [Recovered(("a",)), history.two[3]]),
            "twice or too late: two: m",
        ),
        (lambda history: history.one.append(Improper("a gap")), "improper: one: a gap"),
        (lambda history: _append(history, "gone"), "rolled back, yet in the log: gone at 19"),
        (lambda history: _append(history, "back"), "rolled back, yet in the log: back, by its savepoint, at 19"),
        (lambda history: _append(history, "unknown"), "never published: unknown"),
        (_in_log_twice, "twice in the log: m0 at 1 and 19"),
        (_swap_within_transaction, "order within a transaction: t1: [6, 5, 4]"),
        (_swap_transactions, "order of commits: "),
        (_lose_in_log, "lost before the log: m"),
        (_other_digest, "changed in the log: m"),
        (lambda history: history.log.pop(3), "positions: 5 instead of 4"),
    ],
)
def test_each_kind_of_problem_is_found(corrupt: Callable[[History], object], kind: str) -> None:
    history = History()
    corrupt(history)
    assert any(problem.startswith(kind) for problem in history.problems()), history.problems()


def test_message_with_unknown_outcome_may_arrive_once_or_never() -> None:
    history = History()
    _append(history, "perhaps")
    assert history.problems() == []


def test_messages_left_in_the_outbox_are_found() -> None:
    assert History().problems(left_in_outbox=3) == ["outbox: 3 messages were never moved to the log"]


def test_requested_repetition_is_not_a_problem() -> None:
    history = History()
    history.one.insert(12, Subscribed("a", 4, since=4, recovered=True))
    history.one[13:13] = history.delivered(5, 10, "a")
    assert history.problems() == []


def test_recovered_sessions_go_on_and_others_begin_anew() -> None:
    history = History()
    recovered = [*history.two[:5], Recovered(("a",)), *history.two[6:]]
    forgotten = [*history.two[:5], Forgotten(("a",)), Subscribed("a", 12), *history.delivered(13, 18, "a")]
    for notes in (recovered, forgotten):
        history.two = notes
        assert history.problems() == []


def test_many_problems_of_one_kind_are_summarized() -> None:
    history = History()
    history.two.clear()
    history.one.clear()
    assert history.problems() == ["never subscribed: one: a", "never subscribed: one: b", "never subscribed: two: a"]
    history.one += [Subscribed("a", 0), Subscribed("b", 0)]
    assert "never delivered: and 8 more" in history.problems()


def test_equal_seeds_yield_equal_plans() -> None:
    def plans(seed: int) -> list[object]:
        return list(itertools.islice(plan_transactions(Random(seed), ["a", "b"], 0.1), 50))

    assert plans(1) == plans(1) != plans(2)
    assert plan_faults(Random(1), 60, 2) == plan_faults(Random(1), 60, 2) != plan_faults(Random(2), 60, 2)
    assert {fault.kind for fault in plan_faults(Random(1), 60, 2)} == KINDS.keys()
    assert {fault.kind for fault in plan_faults(Random(1), 60, 2, workers=2)} == KINDS.keys() | WORKER_KINDS.keys()


def test_tracebacks_are_found_in_the_log_of_a_server() -> None:
    log = (
        "12:00 INFO all is well\n12:01 ERROR it failed\nTraceback (most recent call last):\n"
        '  File "x.py", line 1, in f\n    g()\n    ^^^\n\n  File "y.py", line 2, in g\nValueError: no\n12:02 INFO on\n'
    )
    assert failures(log) == ["12:01 ERROR it failed: ValueError: no"]
    assert failures(f"12:00 ERROR {HARMLESS.replace(': ', chr(10) + TRACEBACK, 1)}\n") == []
