"""Judges the NOTIFY tier: what a subscriber may miss, and only with a gap that tells so. Pure, like `checker`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.support.checker import Outcome


@dataclass(frozen=True, slots=True)
class Passed:
    """A publication of the NOTIFY tier. Wall-clock times, as in a gap."""

    number: int
    began: float
    acknowledged: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of the NOTIFY tier that a subscriber got. ``sent`` and ``at``: by this process's monotonic clock."""

    source: str
    number: int
    sent: float
    at: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap that was told. Wall-clock times."""

    since: float
    until: float


#: None: the connection was lost.
Event = Heard | Gap | None


def judge_passed(name: str, events: Sequence[Event], sources: Mapping[str, Sequence[Passed]]) -> list[str]:
    """Return what is wrong with the messages of the NOTIFY tier that a subscriber got.

    Each acknowledged one arrives, once and in the order of its source, unless a gap covers the time when it was sent,
    or the subscriber was not connected.
    """
    problems: list[str] = []
    gaps = [event for event in events if isinstance(event, Gap)]
    #: By source: the last number, and whether the connection was lost since.
    last, cut = dict.fromkeys(sources, -1), dict.fromkeys(sources, False)

    def look_for_losses(source: str, before: float) -> None:
        for one in sources[source]:
            if last[source] < one.number < before and one.outcome is Outcome.COMMITTED and not cut[source]:
                told = any(gap.since <= one.acknowledged and one.began <= gap.until for gap in gaps)
                if not told:
                    problems.append(f"{name} lost {source}-{one.number} in silence")

    refused = {
        (source, one.number) for source, passed in sources.items() for one in passed
        if one.outcome is Outcome.ROLLED_BACK
    }  # fmt: skip
    for event in events:
        if event is None:
            cut = dict.fromkeys(sources, True)
        elif isinstance(event, Heard):
            if event.number <= last[event.source]:
                problems.append(f"{name} got {event.source}-{event.number} after {last[event.source]}")
            if (event.source, event.number) in refused:
                problems.append(f"{name} got {event.source}-{event.number}, which was refused")
            look_for_losses(event.source, event.number)
            last[event.source] = max(last[event.source], event.number)
            cut[event.source] = False
    for source in sources:
        look_for_losses(source, math.inf)
    return problems
