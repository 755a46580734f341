"""Parses ``since`` and ``history`` of requests: they say where a subscription or a page begins. Pure, no I/O."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeAlias

from socketio_pg.core.cursors import MAX_POSITION, SNAPSHOT_PREFIX, format_cursor, parse_cursor
from socketio_pg.core.errors import ForbiddenError, InvalidRequestError
from socketio_pg.core.rules import Rule

#: The maximum of a request's ``history``.
MAX_HISTORY = 1000
#: Limits of a snapshot token: characters, and messages of the outbox. sql/2_functions.sql has them too.
MAX_TOKEN_CHARACTERS, MAX_TOKEN_MESSAGES = 3500, 100_000


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The position of the last message that a client has. The messages after it are to be replayed."""

    epoch: str
    position: int


@dataclass(frozen=True, slots=True)
class LogTime:
    """A time, in UTC. The messages that were logged then or later are to be replayed."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of the database. The messages that were not visible in it are to be replayed.

    Visible are the messages up to ``position``, and those that had an id of ``ids`` in the outbox: ranges from the
    first id to the last one, in order. ``transaction`` is the one that took the snapshot, if it had written before:
    some of the ids may be its own.
    """

    epoch: str
    position: int
    ids: tuple[tuple[int, int], ...] = ()
    transaction: int | None = None

    @property
    def count(self) -> int:
        """The number of ids."""
        return sum(last - first + 1 for first, last in self.ids)

    def to_token(self) -> str:
        """Return it as the SQL function ``socketio_pg.snapshot()`` does."""
        parts, end = [], 0
        for first, last in self.ids:
            parts.append(f"{first - end}.{last - first}" if last > first else f"{first - end}")
            end = last
        fields = [format_cursor(self.epoch, self.position), "_".join(parts)]
        return SNAPSHOT_PREFIX + ":".join(fields + ([] if self.transaction is None else [str(self.transaction)]))


def ranges_of(ids: Collection[int]) -> list[tuple[int, int]]:
    """Return ids, which are in any order, as ranges in order: from the first id to the last one."""
    ranges: list[tuple[int, int]] = []
    for id in sorted(ids):
        if ranges and id == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], id)
        else:
            ranges.append((id, id))
    return ranges


#: Where a subscription or a page begins: after a position, at a time, with what a snapshot does not have (``since``);
#: with this many of the newest messages (``history``); or (None) with the messages that are published from now on.
Start: TypeAlias = LogPosition | LogTime | Snapshot | int | None


def requested_start(request: Mapping[str, Any]) -> Start:
    """Return where a request to subscribe asks to begin, from its ``since`` and ``history``.

    Raises :class:`InvalidRequestError`.
    """
    since, history = request.get("since"), request.get("history")
    if since is not None and history is not None:
        raise InvalidRequestError("since and history do not go together")
    if history is not None:
        if not isinstance(history, int) or isinstance(history, bool) or not 0 <= history <= MAX_HISTORY:
            raise InvalidRequestError(f"history must be a whole number from 0 to {MAX_HISTORY}")
        return history
    return None if since is None else _parse_since(since)


def wants_all(start: Start) -> bool:
    """Return whether a start asks for all messages from a place on, so that it must be told about missing ones."""
    return start is not None and not isinstance(start, int)


def limited_start(start: Start, rule: Rule) -> tuple[Start, str | None]:
    """Return what a rule leaves of a start that a client asks for, and the reason if it leaves no replay.

    Raises :class:`ForbiddenError` for the newest messages of a channel without history.
    """
    if isinstance(start, int):
        if rule.history is False and start:
            raise ForbiddenError("history is not allowed in this channel")
        # Of what this node has in memory, the log may have trimmed some.
        return start if rule.max_messages is None else min(start, rule.max_messages), None
    if rule.history is False and start is not None:
        return None, "history_off"
    return start, None


def _parse_since(since: object) -> LogPosition | LogTime | Snapshot:
    if isinstance(since, str):
        return _parse_text(since)
    if isinstance(since, datetime):
        return _as_time(since)
    epoch, position = (since.get("epoch"), since.get("position")) if isinstance(since, dict) else (None, None)
    if not isinstance(epoch, str) or not isinstance(position, int) or isinstance(position, bool):
        raise InvalidRequestError(
            'since must be like {"epoch": "…", "position": 0}, "EPOCH:POSITION", a time, or a snapshot token'
        )
    if not 0 <= position <= MAX_POSITION:
        raise InvalidRequestError("since.position must be a whole number from 0 to 2^63 - 1")
    return LogPosition(epoch, position)


def _parse_text(text: str) -> LogPosition | LogTime | Snapshot:
    if text.startswith(SNAPSHOT_PREFIX):
        return parse_token(text)
    if _LIKE_A_TIME.match(text):
        return _parse_time(text)
    cursor = parse_cursor(text)
    if cursor is None:
        raise InvalidRequestError("since must be EPOCH:POSITION, a time as ISO 8601, or a snapshot token")
    return LogPosition(**cursor)


# -- times -------------------------------------------------------------------------------------------------------------

_LIKE_A_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2})(:[0-9]{2})?(\.[0-9]{1,9})?"
    r"(?:([Zz])|([+-][0-9]{2}):?([0-9]{2})?)"
)


def _parse_time(text: str) -> LogTime:
    """Parse ISO 8601 with a zone. Python before 3.11 knows few of its forms."""
    found = _TIME.fullmatch(text)
    if found is not None:
        day, minutes, seconds, fraction, utc, hours_ahead, minutes_ahead = found.groups()
        zone = "+00:00" if utc else f"{hours_ahead}:{minutes_ahead or '00'}"
        microseconds = f".{fraction[1:7]:0<6}" if fraction else ""
        try:
            return _as_time(datetime.fromisoformat(f"{day}T{minutes}{seconds or ':00'}{microseconds}{zone}"))
        except ValueError:  # there is no such day, or time
            pass
    raise InvalidRequestError(
        "since must be a time with its zone, like 2026-11-24T12:00:00Z or 2026-11-24T13:00:00+01:00 (in a URL %2B "
        "stands for +)"
    )


def _as_time(at: datetime) -> LogTime:
    if at.tzinfo is None or at.utcoffset() is None:
        raise InvalidRequestError("since must be a time with its zone: this one has none")
    try:
        return LogTime(at.astimezone(timezone.utc))
    except OverflowError:
        raise InvalidRequestError("since must be a time between the years 1 and 9999") from None


# -- snapshots ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"snapshot:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([0-9]{1,19}):([0-9._]*)(?::([0-9]{1,19}))?"
)
_RANGE = re.compile(r"([1-9][0-9]{0,18})(?:\.([1-9][0-9]{0,18}))?")


def parse_token(token: str) -> Snapshot:
    """Parse a token of the SQL function ``socketio_pg.snapshot()``. Raises :class:`InvalidRequestError`."""
    found = _TOKEN.fullmatch(token) if len(token) <= MAX_TOKEN_CHARACTERS else None
    if found is not None:
        epoch, position, ranges, transaction = found.groups()
        snapshot = Snapshot(epoch, int(position), _parse_ranges(ranges), int(transaction) if transaction else None)
        numbers = [snapshot.position, snapshot.transaction or 0, *(last for _, last in snapshot.ids[-1:])]
        if max(numbers) <= MAX_POSITION and snapshot.count <= MAX_TOKEN_MESSAGES and bool(ranges) == bool(snapshot.ids):
            return snapshot
    raise InvalidRequestError("since is not a valid snapshot token: pass on what socketio_pg.snapshot() returned")


def _parse_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Parse the ranges of ids: each is its distance from the one before, and after a dot how many more ids follow.

    Returns none if one of them is not valid.
    """
    ids, end = [], 0
    for part in text.split("_") if text else ():
        found = _RANGE.fullmatch(part)
        if found is None:
            return ()
        first = end + int(found[1])
        end = first + int(found[2] or 0)
        ids.append((first, end))
    return tuple(ids)
