"""Reads what the database knows of channels, for people: the newest message of each, and how many members there are.

All functions take a connection on which the schema was verified, and raise :class:`DatabaseUnavailableError`,
:class:`LogNotInstalledError` and :class:`DatabaseError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.channels import RESERVED_PREFIX
from socketio_pg.postgres.database import fetch

#: Channels of the log that are found at most, and messages of one channel that are counted at most.
MAX_CHANNELS, MAX_STORED = 20_000, 10_000
_SECONDS = 2.0

# One step in the index (channel, position) for each channel, from the last name to the first: each step finds the
# newest message of the next channel. A GROUP BY would read the whole log.
_ALL = f"""
WITH RECURSIVE newest AS (
    (SELECT channel, position FROM socketio_pg.log ORDER BY channel DESC, position DESC LIMIT 1)
    UNION ALL
    SELECT found.channel, found.position FROM newest CROSS JOIN LATERAL (
        SELECT l.channel, l.position FROM socketio_pg.log AS l WHERE l.channel < newest.channel
        ORDER BY l.channel DESC, l.position DESC LIMIT 1) AS found
)
SELECT channel, position FROM newest LIMIT {MAX_CHANNELS + 1}
"""

# Compares pairs: see `history`.
_NEWEST = """
SELECT wanted.channel, found.position, extract(epoch FROM found.published_at)::float, found.size
FROM unnest(%s::text[]) AS wanted (channel) CROSS JOIN LATERAL (
    SELECT position, published_at, size FROM socketio_pg.log AS l
    WHERE (l.channel, l.position) >= (wanted.channel, 0) AND (l.channel, l.position) <= (wanted.channel, %s)
    ORDER BY l.channel DESC, l.position DESC LIMIT 1) AS found
"""

_STORED = f"""
SELECT count(*), min(position), extract(epoch FROM (
    SELECT published_at FROM socketio_pg.log AS l
    WHERE (l.channel, l.position) >= (%(channel)s, 0) AND (l.channel, l.position) <= (%(channel)s, %(most)s)
    ORDER BY l.channel, l.position LIMIT 1))::float
FROM (
    SELECT position FROM socketio_pg.log AS l
    WHERE (l.channel, l.position) >= (%(channel)s, 0) AND (l.channel, l.position) <= (%(channel)s, %(most)s)
    ORDER BY l.channel, l.position LIMIT {MAX_STORED + 1}) AS counted
"""

_MEMBERS = "SELECT channel, metas FROM socketio_pg.presence_channel WHERE channel = ANY (%s::text[]) AND metas > 0"
_MOST_MEMBERS = """
SELECT channel, metas FROM socketio_pg.presence_channel WHERE metas > 0 ORDER BY metas DESC, channel LIMIT %s
"""
_GREATEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest message of a channel: its position, when it was published (seconds since 1970), bytes of JSON."""

    position: int
    published_at: float
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The messages of a channel in the log: up to ``MAX_STORED`` are counted. ``oldest_…``: None if there is none."""

    count: int
    more: bool
    oldest_position: int | None
    oldest_at: float | None


def read_all(connection: Any) -> tuple[dict[str, int], bool]:
    """Return the newest position of each channel of the log, and whether these are all channels."""
    rows = fetch(connection, _ALL, seconds=_SECONDS)
    found = {channel: position for channel, position in rows[:MAX_CHANNELS] if not channel.startswith(RESERVED_PREFIX)}
    return found, len(rows) <= MAX_CHANNELS


def read_newest(connection: Any, channels: Sequence[str]) -> dict[str, Newest]:
    """Return the newest message of each of ``channels`` that has one."""
    rows = fetch(connection, _NEWEST, list(channels), _GREATEST, seconds=_SECONDS)
    return {channel: Newest(*found) for channel, *found in rows}


def read_stored(connection: Any, channel: str) -> Stored:
    """Return the number of a channel's messages, and the oldest one."""
    named: Mapping[str, Any] = {"channel": channel, "most": _GREATEST}
    [(count, position, at)] = fetch(connection, _STORED, dict(named), seconds=_SECONDS)
    return Stored(min(count, MAX_STORED), count > MAX_STORED, position, at)


def count_members(connection: Any, channels: Sequence[str]) -> dict[str, int]:
    """Return the number of members' connections in each of ``channels`` that has some."""
    return dict(fetch(connection, _MEMBERS, list(channels), seconds=_SECONDS))


def most_members(connection: Any, limit: int) -> dict[str, int]:
    """Return the channels with the most members' connections, at most ``limit``."""
    return dict(fetch(connection, _MOST_MEMBERS, limit, seconds=_SECONDS))
