"""Removes old messages from the log, for the relay on the node that leads: in small steps, between its batches.

Most channels are trimmed together: one mark, ``head.trimmed``, says how far. The channels that rules keep in another
way (the table ``retention`` has their patterns) are trimmed each for itself: ``channel_trim`` has their marks.

    together: everything up to a position, except messages of these channels; and what is left of former ones
    apart: these channels, one after the other, by an index; a pass over all of them every few seconds
    marks: those that no position can need any more are deleted

Each step is one transaction with its mark, so readers see both or neither.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import metrics
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.patterns import prefix_of, to_like
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.log.history import HEAD
from socketio_pg.log.positions import ChannelState, Head, channel_trim_upto, trim_upto
from socketio_pg.postgres.database import fetch_as_is

logger = logging.getLogger("socketio_pg.trimming")

_OLDEST = """
SELECT position, extract(epoch FROM now() - logged_at)::float, channel FROM socketio_pg.log WHERE position > %s
ORDER BY position LIMIT %s
"""

_PATTERNS = "SELECT pattern FROM socketio_pg.retention"

# A statement after this one, of the same transaction, does something in the leader's term only, and sees what the last
# holder of the row's lock has committed.
_FENCE = "SELECT FROM socketio_pg.head WHERE term = %(term)s FOR UPDATE;"
_FENCED = "EXISTS (SELECT FROM socketio_pg.head WHERE term = %(term)s AND xmax = pg_current_xact_id_if_assigned()::xid)"

# A former leader must not remove channels that its successor keeps apart.
_TRIM = f"""
{_FENCE}
WITH gone AS (
    DELETE FROM socketio_pg.log
    WHERE position > %(after)s AND position <= %(upto)s AND channel <> ALL (%(own)s::text[]) AND {_FENCED}
)
UPDATE socketio_pg.head SET trimmed = %(upto)s WHERE trimmed < %(upto)s AND term = %(term)s
"""

_SET_PATTERNS = f"""
{_FENCE}
DELETE FROM socketio_pg.retention WHERE pattern <> ALL (%(patterns)s::text[]) AND {_FENCED};
INSERT INTO socketio_pg.retention (pattern, expression, since)
SELECT wanted.pattern, wanted.expression, head.trimmed
FROM socketio_pg.head CROSS JOIN unnest(%(patterns)s::text[], %(expressions)s::text[]) AS wanted (pattern, expression)
WHERE {_FENCED}
ON CONFLICT DO NOTHING
"""

# What is left of channels without a rule of their own.
_LEFT = """
SELECT position, channel FROM socketio_pg.log WHERE position > %s AND position <= %s ORDER BY position LIMIT %s
"""
_REMOVE = f"{_FENCE} DELETE FROM socketio_pg.log WHERE position = ANY (%(positions)s::bigint[]) AND {_FENCED}"

# The next channels of a prefix, with their oldest message and their newest one. One probe of the index for each.
_CHANNELS = """
WITH RECURSIVE found (channel, number) AS (
    (SELECT channel, 1 FROM socketio_pg.log WHERE channel {operator} %(start)s ORDER BY channel, position LIMIT 1)
    UNION ALL
    SELECT following.channel, number + 1 FROM found CROSS JOIN LATERAL (
        SELECT log.channel FROM socketio_pg.log WHERE log.channel > found.channel ORDER BY log.channel, position LIMIT 1
    ) AS following WHERE number < %(most)s AND starts_with(found.channel, %(prefix)s)
)
SELECT found.channel, oldest.position, oldest.age, newest.position, newest.cleared
FROM found CROSS JOIN LATERAL (
    SELECT position, extract(epoch FROM now() - logged_at)::float AS age FROM socketio_pg.log
    WHERE (log.channel, position) > (found.channel, 0) ORDER BY log.channel, position LIMIT 1
) AS oldest CROSS JOIN LATERAL (
    SELECT position, CASE WHEN size = 4 THEN payload = 'null' ELSE false END AS cleared FROM socketio_pg.log
    WHERE (log.channel, position) < (found.channel, 9223372036854775807)
    ORDER BY log.channel DESC, position DESC LIMIT 1
) AS newest
WHERE starts_with(found.channel, %(prefix)s)
ORDER BY found.channel
"""

# Of each channel: its oldest messages, and the newest one that has so many newer ones.
_STATES = """
SELECT wanted.number, CASE WHEN wanted.messages IS NOT NULL THEN (
        SELECT position FROM socketio_pg.log
        WHERE (log.channel, position) > (wanted.channel, 0)
            AND (log.channel, position) <= (wanted.channel, wanted.newest)
        ORDER BY log.channel DESC, position DESC OFFSET wanted.messages LIMIT 1) END,
    oldest.positions, oldest.ages
FROM unnest(%(channels)s::text[], %(newest)s::bigint[], %(messages)s::integer[])
    WITH ORDINALITY AS wanted (channel, newest, messages, number)
CROSS JOIN LATERAL (
    SELECT array_agg(position ORDER BY position) AS positions, array_agg(age ORDER BY position) AS ages FROM (
        SELECT position, extract(epoch FROM now() - logged_at)::float AS age FROM socketio_pg.log
        WHERE (log.channel, position) > (wanted.channel, 0)
            AND (log.channel, position) <= (wanted.channel, wanted.newest)
        ORDER BY log.channel, position LIMIT %(most)s) AS found
) AS oldest
ORDER BY wanted.number
"""

_TRIM_CHANNELS = f"""
{_FENCE}
WITH one AS MATERIALIZED (SELECT nextval('socketio_pg.trim_number') AS number), gone AS (
    DELETE FROM socketio_pg.log WHERE position = ANY (%(positions)s::bigint[]) AND {_FENCED} RETURNING channel, position
), marked AS (
    INSERT INTO socketio_pg.channel_trim AS t (channel, position, number)
    SELECT channel, max(position), (SELECT number FROM one) FROM gone GROUP BY channel
    ON CONFLICT (channel) DO UPDATE SET position = greatest(t.position, excluded.position), number = excluded.number,
        trimmed_at = excluded.trimmed_at
)
SELECT count(*) FROM gone
"""

# Without a mark, a channel that has no messages left is complete from the position on before which nothing is left of
# any channel (`since`). A channel that has some is looked at again later.
_FORGET = f"""
{_FENCE}
WITH old AS MATERIALIZED (
    SELECT channel, EXISTS (
        SELECT FROM socketio_pg.log AS l
        WHERE (l.channel, l.position) > (t.channel, 0) AND (l.channel, l.position) <= (t.channel, 9223372036854775807)
    ) AS used
    FROM socketio_pg.channel_trim AS t
    WHERE trimmed_at < now() - make_interval(secs => %(seconds)s) AND position <= (SELECT trimmed FROM socketio_pg.head)
        AND {_FENCED}
    ORDER BY trimmed_at LIMIT %(most)s
), gone AS (
    DELETE FROM socketio_pg.channel_trim WHERE channel = ANY (ARRAY(SELECT channel FROM old WHERE NOT used))
    RETURNING position
), kept AS (
    UPDATE socketio_pg.channel_trim SET trimmed_at = now()
    WHERE channel = ANY (ARRAY(SELECT channel FROM old WHERE used))
), raised AS (
    UPDATE socketio_pg.retention SET since = (SELECT max(position) FROM gone)
    WHERE since < (SELECT max(position) FROM gone)
)
SELECT count(*) FROM old
"""


def prefixes(patterns: Sequence[str]) -> list[str]:
    """Return the texts with which the channels of patterns begin, without those that begin with another of them."""
    found: list[str] = []
    for prefix in sorted(set(map(prefix_of, patterns))):
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return found


@dataclass(slots=True)
class _Pass:
    """A pass over the channels: the prefixes that are left, the last channel of the first one, its duration so far."""

    prefixes: list[str]
    after: str | None = None
    seconds: float = 0.0


class Trimming:
    """Trims the log by ``rules``, and by LOG_MAX_MESSAGES: ``max_messages``, None for no limit.

    Its methods need the leader's connection, outside a transaction, and raise as :func:`fetch`.
    """

    #: Seconds between trims, and maximum messages that one statement removes.
    interval = 10.0
    size = 1000
    #: Seconds between two steps while there is more to do: new messages are moved between them.
    pause = 0.05
    #: Seconds for which rules keep each message: for nodes and consumers that are a little behind.
    min_age = 5.0
    #: Maximum channels of a step.
    channels = 100
    #: Maximum messages that a step counts: the sum of `max_messages` of the channels that it looks at more closely.
    count_at_once = 20_000
    #: A pass over the channels takes at most this part of the time, however many there are.
    share = 0.05
    #: Seconds between removals of old marks, and the maximum of one.
    forget_interval = 60.0
    forget_size = 500

    def __init__(self, rules: Rules, max_messages: int | None, seconds: float) -> None:
        self._rules = rules
        self._max_messages = max_messages
        #: The time limit of a statement.
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Begin to lead: forget what another node may have changed."""
        self.next = self._next_pass = self._next_forget = 0.0
        #: The patterns in the database, and the version of the rules that they follow.
        self._patterns: list[str] | None = None
        self._version = -1
        #: What was found out about channels: whether a pattern matches; and their newest message when they had no
        #: surplus.
        self._own: dict[str, bool] = {}
        self._checked: dict[str, int] = {}
        #: Up to which position of `head.trimmed` nothing is left to remove.
        self._removed = 0
        self._pass: _Pass | None = None

    def run(self, connection: Any, term: int) -> None:
        """Do the next step if it is time."""
        now = time.monotonic()
        if now < self.next or not self._rules.known:
            return
        self.next = now + self.interval
        if self._version != self._rules.version:
            self._follow_rules(connection, term)
        more = self._trim_together(connection, term)
        if self._patterns:
            more = self._trim_apart(connection, term) or more
            self._forget(connection, term)
        if more:
            self.next = time.monotonic() + self.pause

    # -- patterns ------------------------------------------------------------------------------------------------------

    def _follow_rules(self, connection: Any, term: int) -> None:
        version, wanted = self._rules.version, self._rules.own_retention()
        if self._patterns is None:
            self._patterns = sorted(pattern for (pattern,) in self._execute(connection, _PATTERNS))
        if wanted != self._patterns:
            expressions = [to_like(pattern) for pattern in wanted]
            values = {"term": term, "patterns": wanted, "expressions": expressions}
            self._execute(connection, _SET_PATTERNS, values)
            # Another node leads if it has not changed; then the next renewal of the lease fails.
            self._patterns = sorted(pattern for (pattern,) in self._execute(connection, _PATTERNS))
            self._removed = 0
        self._version = version
        self._own.clear()
        self._checked.clear()
        self._pass, self._next_pass = None, 0.0

    def _is_own(self, channel: str) -> bool:
        """Return whether a channel is trimmed apart from others."""
        found = self._own.get(channel)
        if found is None:
            if len(self._own) > 100_000:
                self._own.clear()
            found = self._own[channel] = any(match_pattern(pattern, channel) for pattern in self._patterns or ())
        return found

    # -- together ------------------------------------------------------------------------------------------------------

    def _trim_together(self, connection: Any, term: int) -> bool:
        """Trim the channels without a rule of their own. Return whether there may be more to do."""
        head = Head(*self._execute(connection, HEAD)[0])
        more = self._remove_left(connection, term, head.trimmed)
        found = self._execute(connection, _OLDEST, head.trimmed, self.size)
        age = self._rules.default_max_age
        retention = math.inf if age is None else age
        upto = trim_upto([(position, age) for position, age, _ in found], head.position, retention, self._max_messages)
        if upto is None:
            return more
        own = {channel for position, _, channel in found if position <= upto and self._is_own(channel)}
        values = {"term": term, "after": head.trimmed, "upto": upto, "own": sorted(own)}
        self._execute(connection, _TRIM, values)
        if self._removed == head.trimmed:
            self._removed = upto
        return more or upto == found[-1][0]

    def _remove_left(self, connection: Any, term: int, trimmed: int) -> bool:
        """Remove what is left up to ``trimmed`` of channels whose rule was deleted. Return whether to go on."""
        if self._removed >= trimmed:
            return False
        found = self._execute(connection, _LEFT, self._removed, trimmed, self.size)
        due = [position for position, channel in found if not self._is_own(channel)]
        if due:
            self._execute(connection, _REMOVE, {"term": term, "positions": due})
        self._removed = found[-1][0] if len(found) == self.size else trimmed
        return self._removed < trimmed

    # -- apart ---------------------------------------------------------------------------------------------------------

    def _trim_apart(self, connection: Any, term: int) -> bool:
        """Trim the next channels that have a rule of their own. Return whether the pass goes on."""
        began = time.monotonic()
        if self._pass is None:
            if began < self._next_pass:
                self.next = min(self.next, self._next_pass)
                return False
            self._pass = _Pass(prefixes(self._patterns or ()))
        one = self._pass
        prefix = one.prefixes[0]
        sql = _CHANNELS.format(operator=">=" if one.after is None else ">")
        values = {"prefix": prefix, "start": prefix if one.after is None else one.after, "most": self.channels}
        found = self._execute(connection, sql, values)
        head = Head(*self._execute(connection, HEAD)[0])
        done = self._trim_channels(connection, term, found, head.position)
        one.after = found[done - 1][0] if done else one.after
        if done == len(found) < self.channels:
            one.prefixes.pop(0)
            one.after = None
        now = time.monotonic()
        one.seconds += now - began
        if one.prefixes:
            return True
        self._pass, self._next_pass = None, now + max(self.interval, one.seconds / self.share)
        return False

    def _trim_channels(self, connection: Any, term: int, found: Sequence[tuple[Any, ...]], head: int) -> int:
        """Trim channels of :data:`_CHANNELS` in order, up to :attr:`size` messages. Return how many are done."""
        candidates: list[tuple[int, str, Rule, int, bool]] = []
        done, counted = len(found), 0
        for number, (channel, oldest, age, newest, cleared) in enumerate(found):
            rule = self._rules.of(channel)
            if self._is_own(channel) and self._may_be_due(channel, rule, oldest, age, newest, head):
                candidates.append((number, channel, rule, newest, cleared))
                counted += rule.max_messages or 0
                if counted > self.count_at_once:
                    done = number + 1
                    break
        if not candidates:
            return done
        most = max(2, self.size // len(candidates))
        due: list[int] = []
        checked: dict[str, int] = {}
        states = self._states(connection, candidates, most)
        for (number, channel, rule, newest, cleared), (surplus, some) in zip(candidates, states, strict=True):
            state = ChannelState(some, newest, surplus, cleared)
            upto = channel_trim_upto(state, rule, head, self._max_messages, self.min_age)
            due += [position for position, _ in some if position <= (upto or 0)]
            if upto is not None and upto == some[-1][0] and len(some) == most:
                # It may have more: the next step begins with the first such channel.
                done = min(done, number)
            elif surplus <= (upto or 0):
                checked[channel] = newest
        if due:
            [(count,)] = self._execute(connection, _TRIM_CHANNELS, {"term": term, "positions": due})
            metrics.rule_trimmed_messages.inc(count)
        if len(self._checked) > 100_000:
            self._checked.clear()
        self._checked |= checked
        return done

    def _may_be_due(self, channel: str, rule: Rule, oldest: int, age: float, newest: int, head: int) -> bool:
        if age <= self.min_age:
            return False
        if rule.max_age is not None and age > rule.max_age:
            return True
        if rule.max_messages is None:
            return self._max_messages is not None and head - oldest >= self._max_messages
        return newest - oldest >= rule.max_messages and self._checked.get(channel) != newest

    def _states(
        self, connection: Any, candidates: Sequence[tuple[int, str, Rule, int, bool]], most: int
    ) -> list[tuple[int, list[tuple[int, float]]]]:
        """Return for each channel the position up to which it has a surplus (0 for none), and its oldest messages."""
        values = {
            "channels": [channel for _, channel, _, _, _ in candidates],
            "newest": [newest for _, _, _, newest, _ in candidates],
            "messages": [rule.max_messages for _, _, rule, _, _ in candidates],
            "most": most,
        }
        return [
            (surplus or 0, list(zip(positions or (), ages or (), strict=True)))
            for _, surplus, positions, ages in self._execute(connection, _STATES, values)
        ]

    # -- marks ---------------------------------------------------------------------------------------------------------

    def _forget(self, connection: Any, term: int) -> None:
        """Delete marks of messages that would have been trimmed by now under any rule."""
        now = time.monotonic()
        if now < self._next_forget:
            return
        self._next_forget = now + self.forget_interval
        seconds = max(3600.0, self._rules.greatest_max_age)
        values = {"term": term, "seconds": seconds, "most": self.forget_size}
        [(count,)] = self._execute(connection, _FORGET, values)
        if count == self.forget_size:
            self._next_forget = now + self.interval

    # -- statements ----------------------------------------------------------------------------------------------------

    def _execute(self, connection: Any, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return fetch_as_is(connection, sql, *parameters, seconds=self._seconds)
