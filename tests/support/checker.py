"""Checks the histories of a run of the log tier: published messages, the log, and each subscriber's messages.

Pure: histories in, problems out. `checker_writers`, `checker_subscribers` and `checker_run` record the histories;
tests/faults/test_log_checker.py checks with manipulated histories that each kind of fault is found.
"""

import json
import math
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

#: Problems of each kind that are reported in full.
SHOWN = 10


class Outcome(Enum):
    """The outcome of a transaction. UNKNOWN is only for Socket.IO publishers: published completely or not at all."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that was passed to publish(). ``began`` is the time, by this process's monotonic clock."""

    id: str
    channel: str
    digest: int
    began: float


@dataclass(slots=True)
class Transaction:
    """The messages of one transaction. ``discarded`` were removed by ROLLBACK TO SAVEPOINT.

    ``acknowledged`` is the time when its COMMIT was known to have succeeded.
    """

    name: str
    messages: list[Sent] = field(default_factory=list)
    discarded: list[Sent] = field(default_factory=list)
    outcome: Outcome = Outcome.ROLLED_BACK
    acknowledged: float = math.inf


@dataclass(frozen=True, slots=True)
class Logged:
    """A row of the log."""

    position: int
    channel: str
    id: str
    digest: int
    published_at: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The server's answer to a subscribe request; ``since`` is the requested position, if any."""

    channel: str
    position: int | None
    since: int | None = None
    recovered: bool | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message that reached a subscriber."""

    channel: str
    position: int | None
    id: str
    digest: int
    published_at: str | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The server's answer to an unsubscribe; from here on no messages of the channel may arrive."""

    channel: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection and all its subscriptions are lost."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The session was recovered: its subscriptions go on where they were."""

    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The session was not recovered, and the subscriber begins anew with these channels: it knows what that means."""

    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Improper:
    """An event that must never happen: a gap, an error other than an outage, or a missing answer."""

    text: str


Note: TypeAlias = Subscribed | Delivered | Unsubscribed | Disconnected | Recovered | Forgotten | Improper


def digest(payload: Any) -> int:
    """Return a checksum that is equal for equal JSON values, regardless of formatting."""
    return zlib.crc32(json.dumps(payload, sort_keys=True).encode())


def judge(
    transactions: Sequence[Transaction],
    log: Sequence[Logged],
    subscribers: Mapping[str, tuple[Sequence[str], Sequence[Note]]],
    left_in_outbox: int = 0,
) -> list[str]:
    """Return all problems. ``subscribers``: name → (channels, notes). ``log`` is in the order of positions."""
    problems = _Problems()
    if left_in_outbox:
        problems.add("outbox", f"{left_in_outbox} messages were never moved to the log")
    _judge_positions(log, problems)
    _judge_messages(transactions, log, problems)
    _judge_times(transactions, log, problems)
    by_channel: dict[str, list[Logged]] = {}
    for row in log:
        by_channel.setdefault(row.channel, []).append(row)
    for name, (channels, notes) in subscribers.items():
        _Walk(name, channels, by_channel, problems).walk(notes)
    return problems.report()


def judge_subscriber(
    name: str, channels: Sequence[str], notes: Sequence[Note], log: Mapping[str, Sequence[Logged]]
) -> list[str]:
    """Return all problems with one subscriber's messages. ``log`` is by channel."""
    problems = _Problems()
    _Walk(name, channels, log, problems).walk(notes)
    return problems.report()


class _Problems:
    def __init__(self) -> None:
        self._kinds: dict[str, list[str]] = {}

    def add(self, kind: str, text: str) -> None:
        self._kinds.setdefault(kind, []).append(f"{kind}: {text}")

    def report(self) -> list[str]:
        lines: list[str] = []
        for kind, texts in self._kinds.items():
            lines += texts[:SHOWN]
            if len(texts) > SHOWN:
                lines.append(f"{kind}: and {len(texts) - SHOWN} more")
        return lines


def _judge_positions(log: Sequence[Logged], problems: _Problems) -> None:
    for expected, row in enumerate(log, 1):
        if row.position != expected:
            problems.add("positions", f"{row.position} instead of {expected}")
            return


def _judge_messages(transactions: Sequence[Transaction], log: Sequence[Logged], problems: _Problems) -> None:
    """Check that the log has all messages of committed transactions, once and in order, and no others."""
    rows: dict[str, Logged] = {}
    for row in log:
        if row.id in rows:
            problems.add("twice in the log", f"{row.id} at {rows[row.id].position} and {row.position}")
        rows[row.id] = row
    published: set[str] = set()
    for transaction in transactions:
        published.update(sent.id for sent in (*transaction.messages, *transaction.discarded))
        for sent in transaction.discarded:
            if sent.id in rows:
                problems.add("rolled back, yet in the log", f"{sent.id}, by its savepoint, at {rows[sent.id].position}")
        there = [sent for sent in transaction.messages if sent.id in rows]
        if transaction.outcome is Outcome.ROLLED_BACK:
            for sent in there:
                problems.add("rolled back, yet in the log", f"{sent.id} at {rows[sent.id].position}")
        elif there or transaction.outcome is Outcome.COMMITTED:
            for sent in transaction.messages:
                if sent.id not in rows:
                    problems.add("lost before the log", f"{sent.id} of {transaction.outcome.value} {transaction.name}")
        for sent in there:
            if (rows[sent.id].channel, rows[sent.id].digest) != (sent.channel, sent.digest):
                problems.add("changed in the log", f"{sent.id} at {rows[sent.id].position}")
        positions = [rows[sent.id].position for sent in there]
        if positions != sorted(positions):
            problems.add("order within a transaction", f"{transaction.name}: {positions}")
    for identifier, count in Counter(row.id for row in log if row.id not in published).items():
        problems.add("never published", f"{identifier}, {count} times in the log")


def _judge_times(transactions: Sequence[Transaction], log: Sequence[Logged], problems: _Problems) -> None:
    """Check that no message precedes another whose commit was acknowledged before its own publish began."""
    times = {
        sent.id: (sent.began, transaction.acknowledged) for transaction in transactions for sent in transaction.messages
    }
    earliest, which = math.inf, ""
    for row in reversed(log):
        began, acknowledged = times.get(row.id, (math.inf, math.inf))
        if earliest < began < math.inf:
            problems.add(
                "order of commits",
                f"{row.id} at {row.position} is before {which}, acknowledged {began - earliest:.3f} s before it began",
            )
        if acknowledged < earliest:
            earliest, which = acknowledged, row.id


class _Walk:
    """Compares one subscriber's notes with the log."""

    def __init__(
        self, name: str, channels: Sequence[str], log: Mapping[str, Sequence[Logged]], problems: _Problems
    ) -> None:
        self._name = name
        self._channels = channels
        self._problems = problems
        self._log = {channel: log.get(channel, []) for channel in channels}
        self._positions = {channel: [row.position for row in rows] for channel, rows in self._log.items()}
        #: For each channel that was subscribed to, the index of the row that must come next.
        self._next: dict[str, int] = {}
        self._subscribed: set[str] = set()

    def walk(self, notes: Sequence[Note]) -> None:
        for note in notes:
            if isinstance(note, Delivered):
                self._delivered(note)
            elif isinstance(note, Subscribed):
                self._answered(note)
            elif isinstance(note, Unsubscribed):
                self._subscribed.discard(note.channel)
            elif isinstance(note, Disconnected):
                self._subscribed.clear()
            elif isinstance(note, Recovered):
                self._subscribed.update(note.channels)
            elif isinstance(note, Forgotten):
                for channel in note.channels:
                    self._next.pop(channel, None)
            else:
                self._add("improper", note.text)
        for channel in self._channels:
            if channel not in self._next:
                self._add("never subscribed", channel)
            else:
                for row in self._log[channel][self._next[channel] :]:
                    self._add("never delivered", f"{row.id} of {channel} at {row.position}")

    def _answered(self, note: Subscribed) -> None:
        if note.position is None:
            self._add("improper", f"subscribed to {note.channel} without a position")
            return
        if note.since is not None and (note.recovered is not True or note.position != note.since):
            self._add("not recovered", f"{note.channel} since {note.since}: {note.recovered}, {note.position}")
        index = bisect_right(self._positions[note.channel], note.position)
        if index > self._next.get(note.channel, index):
            self._add("skipped", f"{note.channel} continues after {note.position}, which it had not reached")
        self._next[note.channel] = index
        self._subscribed.add(note.channel)

    def _delivered(self, note: Delivered) -> None:
        where = f"{note.id} of {note.channel} at {note.position}"
        if note.channel not in self._subscribed:
            self._add("not subscribed, yet delivered", where)
            return
        rows, positions = self._log[note.channel], self._positions[note.channel]
        found = bisect_left(positions, note.position or 0)
        # A recovered session may have a subscription whose answer was lost: it began anywhere.
        index = self._next.get(note.channel, found)
        if found == len(positions) or positions[found] != note.position:
            self._add("delivered, yet not in the log", where)
            return
        row = rows[found]
        if (row.id, row.digest, row.published_at) != (note.id, note.digest, note.published_at):
            self._add("changed in transit", f"{where}; the log has {row.id}")
        kind = "replayed" if note.replayed else "live"
        if found < index:
            self._add("twice or too late", f"{where}, {kind}, after {rows[index - 1].position}")
            return
        for missing in rows[index:found]:
            self._add(
                "skipped", f"{missing.id} of {note.channel} at {missing.position}, before {note.position}, {kind}"
            )
        self._next[note.channel] = found + 1

    def _add(self, kind: str, text: str) -> None:
        self._problems.add(kind, f"{self._name}: {text}")
