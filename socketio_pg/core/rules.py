"""Rules for channels: patterns with columns, and what they give for a channel. Pure, no I/O.

The rules of the table ``socketio_pg.rule`` and of the setting CHANNEL_RULES make one list. For each column the most
specific pattern counts that matches the channel and sets the column (:func:`specificity`); of two rules with the same
pattern, that of the table. What no rule sets comes from the settings.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from socketio_pg.core.channels import MAX_CHANNEL_BYTES, RESERVED_PREFIX, match_pattern, validate_channel
from socketio_pg.core.errors import InvalidChannelError
from socketio_pg.core.patterns import covers, is_pattern, overlap

#: The limits of the columns; sql/1_rules.sql has them too.
MAX_AGE_SECONDS = 315_576_000  # ten years
MAX_MESSAGES = 100_000
MAX_BYTES = 1_000_000_000
MAX_PER_SECOND = 1_000_000
MAX_KEY_CHARACTERS = 256
#: The maximum number of rules of the table.
MAX_RULES = 10_000


@dataclass(frozen=True, slots=True)
class Rule:
    """The columns of a rule; None: not set. Those of :meth:`Rules.of` have the defaults."""

    #: Whether messages go through the log, unless their publisher says otherwise. Default: DURABLE_CHANNELS.
    durable: bool | None = None
    #: Whether clients may replay: `since`, `history`, pages. Default: yes.
    history: bool | None = None
    #: Whether clients may join, and see who is there. Default: yes.
    presence: bool | None = None
    #: Whether clients may send ephemeral messages. Default: yes.
    ephemeral: bool | None = None
    #: Seconds for which the log keeps messages. Default: LOG_RETENTION.
    max_age: float | None = None
    #: The number of newest messages that the log keeps of each channel. Default: no limit for each channel.
    max_messages: int | None = None
    #: Maximum bytes of a payload as JSON. Default: MAX_PAYLOAD.
    max_bytes: int | None = None
    #: Messages per second that each client may publish into the channel. Default: no limit.
    rate: float | None = None
    #: Whether the log keeps the newest message, and subscribers get it first. Default: no.
    retained: bool | None = None
    #: Messages per second, of each conflation key, that each subscriber gets at most. Default: no limit.
    max_rate: float | None = None
    #: The path of the conflation key in the payload. Default: none, the whole channel is one key.
    conflate_key: str | None = None

    def set_columns(self) -> dict[str, Any]:
        """Return the columns that are set."""
        return {name: value for name in COLUMNS if (value := getattr(self, name)) is not None}


#: The columns, in the order of the table.
COLUMNS = tuple(one.name for one in dataclasses.fields(Rule))
#: What the columns are where neither a rule nor a setting sets them.
DEFAULTS = Rule(history=True, presence=True, ephemeral=True, retained=False)


def specificity(pattern: str) -> tuple[int, int, int, str]:
    """Return a sort key by which the most specific pattern comes first.

    More characters that are not ``*``; then fewer ``*``; then more characters before the first ``*``; then the first
    pattern by code points. So a channel's own name comes before each pattern.
    """
    literal = pattern.replace("*", "")
    return -len(literal), len(pattern) - len(literal), -len(pattern.partition("*")[0]), pattern


def validate_pattern(pattern: object) -> str:
    """Return ``pattern`` if it can match a channel. Raises ValueError with one sentence."""
    if not isinstance(pattern, str) or not pattern:
        raise ValueError("a pattern must be a channel name, or one with '*' for any characters")
    if "**" in pattern:
        raise ValueError(f"the pattern {pattern!r} has '**': '*' stands for any characters already")
    try:
        if len(pattern.encode()) > MAX_CHANNEL_BYTES:
            raise ValueError(f"the pattern {pattern!r} has more than {MAX_CHANNEL_BYTES} bytes")
        validate_channel(pattern.replace("*", "x"))
    except UnicodeEncodeError:
        raise ValueError("a pattern must be valid Unicode, without lone surrogates") from None
    except InvalidChannelError as error:
        raise ValueError(f"the pattern {pattern!r} matches no channel: {error}") from None
    return pattern


def parse_rule(pattern: str, columns: object) -> Rule:
    """Return the rule of an object of columns. Raises ValueError with a sentence that names the pattern and column."""
    if not isinstance(columns, Mapping):
        raise ValueError(f"the rule {pattern!r} must be an object of columns")
    values = {}
    for name, value in columns.items():
        if name not in _PARSERS:
            raise ValueError(f"the rule {pattern!r} has the unknown column {name!r}; columns are {', '.join(COLUMNS)}")
        try:
            values[name] = None if value is None else _PARSERS[name](value)
        except ValueError as error:
            raise ValueError(f"{name} of the rule {pattern!r} must be {error}") from None
    return Rule(**values)


def parse_rules(value: object) -> dict[str, Rule]:
    """Return the rules of a JSON object, pattern → columns, or of its text. Raises ValueError."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError:
            raise ValueError('a JSON object like {"chat:*": {"max_messages": 100}}') from None
    if not isinstance(value, Mapping):
        raise ValueError('a JSON object like {"chat:*": {"max_messages": 100}}')
    return {validate_pattern(pattern): parse_rule(pattern, columns) for pattern, columns in value.items()}


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a value: the rule with this ``pattern`` of the table or the setting, or a setting's name."""

    source: str
    pattern: str | None = None


class Settings(Protocol):
    """The settings that are defaults of columns, and that with rules."""

    @property
    def log_retention(self) -> float: ...
    @property
    def max_payload(self) -> int: ...
    @property
    def durable_channels(self) -> Sequence[str]: ...
    @property
    def channel_rules(self) -> Mapping[str, Rule] | None: ...


class Rules:
    """The rules that count now. One object for all parts of a process, which ask it for each channel.

    ``settings``: what LOG_RETENTION, MAX_PAYLOAD set. ``durable_channels``: the setting's patterns. ``configured``: the
    setting CHANNEL_RULES. The rules of the table follow with :meth:`replace`.
    """

    #: The number of channels whose rules are remembered.
    max_cached = 20_000

    def __init__(
        self,
        settings: Rule = DEFAULTS,
        durable_channels: Sequence[str] = ("*",),
        configured: Mapping[str, Rule] | None = None,
    ) -> None:
        self._settings = settings
        self._durable_channels = tuple(durable_channels)
        self._configured = dict(configured or {})
        self._table: dict[str, Rule] = {}
        self._cache: dict[str, Rule] = {}
        self._ordered: list[_Sourced] = []
        self._watchers: list[Callable[[], None]] = []
        #: Counts the changes.
        self.version = 0
        #: Whether the rules of the table are known, or known to be none.
        self.known = False
        self._order()

    @classmethod
    def of_settings(cls, settings: Settings) -> "Rules":
        """Return the rules of the settings, without those of the table."""
        values = Rule(max_age=settings.log_retention, max_bytes=settings.max_payload)
        return cls(values, settings.durable_channels, settings.channel_rules)

    def replace(self, table: Mapping[str, Rule]) -> bool:
        """Set the rules of the table. Return whether they have changed; then the watchers are called."""
        known, self.known = self.known, True
        if table == self._table:
            if not known:
                self.version += 1
            return False
        self._table = dict(table)
        self._order()
        for watcher in self._watchers:
            watcher()
        return True

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher()`` after each change. It must not wait."""
        self._watchers.append(watcher)

    def of(self, channel: str) -> Rule:
        """Return what counts for a channel: each column of the most specific rule that sets it, then the defaults.

        For a subscription to a pattern: whether all channels that it may match have a history.
        """
        found = self._cache.get(channel)
        if found is None:
            if len(self._cache) >= self.max_cached:
                self._cache.clear()
            if is_pattern(channel):
                found = replace(DEFAULTS, history=self._all_have_history(channel))
            else:
                found = Rule(**{name: value for name, (value, _) in self._resolve(channel).items()})
            self._cache[channel] = found
        return found

    def explain(self, channel: str) -> dict[str, tuple[Any, Origin]]:
        """Return each column's value for a channel, and where it comes from."""
        return self._resolve(channel)

    def patterns(self) -> list[str]:
        """Return all patterns, the most specific first."""
        return list(dict.fromkeys(one.pattern for one in self._ordered))

    def sourced(self) -> "list[_Sourced]":
        """Return all rules with their patterns and sources, in the order in which they count."""
        return list(self._ordered)

    def own_retention(self) -> list[str]:
        """Return the patterns whose channels the log keeps in another way than all others, in order."""
        names = {one.pattern for one in self._ordered if one.pattern != "*" and _sets_retention(one.rule)}
        if any(one.rule.retained or one.rule.max_messages for one in self._ordered if one.pattern == "*"):
            # The mark of the whole log says nothing about single channels.
            names.add("*")
        return sorted(names)

    @property
    def default_max_age(self) -> float | None:
        """Seconds for which the log keeps messages of channels without a rule of their own."""
        age: float | None = self._column("max_age", "", [one for one in self._ordered if one.pattern == "*"])[0]
        return age

    @property
    def greatest_max_age(self) -> float:
        """Seconds after which no rule keeps a message any more, unless it is retained."""
        return max((one.rule.max_age or 0.0 for one in self._ordered), default=0.0) or self._settings.max_age or 0.0

    def _all_have_history(self, pattern: str) -> bool:
        for one in self._ordered:
            if one.rule.history is False and overlap(one.pattern, pattern):
                return False
            if one.rule.history and covers(one.pattern, pattern):
                break  # less specific rules do not count
        return True

    def _order(self) -> None:
        self._cache.clear()
        self.version += 1
        found = [_Sourced("table", pattern, rule) for pattern, rule in self._table.items()]
        found += [_Sourced("CHANNEL_RULES", pattern, rule) for pattern, rule in self._configured.items()]
        # Stable: the table's rule comes before that of the setting with the same pattern.
        self._ordered = sorted(found, key=lambda one: specificity(one.pattern))

    def _resolve(self, channel: str) -> dict[str, tuple[Any, Origin]]:
        # The server's own channels have no rules.
        reserved = channel.startswith(RESERVED_PREFIX)
        matching = [one for one in self._ordered if match_pattern(one.pattern, channel)] if not reserved else []
        return {name: self._column(name, channel, matching) for name in COLUMNS}

    def _column(self, name: str, channel: str, matching: "Sequence[_Sourced]") -> tuple[Any, Origin]:
        for one in matching:
            value = getattr(one.rule, name)
            if value is not None:
                return value, Origin(one.source, one.pattern)
        if name == "durable":
            durable = any(match_pattern(pattern, channel) for pattern in self._durable_channels)
            return durable, Origin(_SETTINGS[name])
        value = getattr(self._settings, name)
        if value is None or name not in _SETTINGS:
            return getattr(DEFAULTS, name), Origin("default")
        return value, Origin(_SETTINGS[name])


@dataclass(frozen=True, slots=True)
class _Sourced:
    """A rule, its pattern, and its source: ``table`` or ``CHANNEL_RULES``."""

    source: str
    pattern: str
    rule: Rule = field(default_factory=Rule)


#: The settings that are the defaults of columns.
_SETTINGS = {"durable": "DURABLE_CHANNELS", "max_age": "LOG_RETENTION", "max_bytes": "MAX_PAYLOAD"}


def _sets_retention(rule: Rule) -> bool:
    return rule.max_age is not None or rule.max_messages is not None or rule.retained is not None


def contradictions(rules: Rules, max_payload: int) -> list[tuple[str, str]]:
    """Return (pattern, sentence) of each rule whose columns have no effect, or contradict each other."""
    found = []
    for one in rules.sourced():
        rule, pattern = one.rule, one.pattern
        if not rule.set_columns():
            found.append((pattern, "sets no column"))
        if rule.retained and rule.durable is False:
            found.append((pattern, "has retained, but durable is false: only messages of the log are retained"))
        if rule.conflate_key is not None and rule.max_rate is None and not _covered(rules, one, "max_rate"):
            found.append((pattern, "has conflate_key without max_rate: nothing is conflated"))
        if rule.max_bytes is not None and rule.max_bytes > max_payload:
            found.append((pattern, f"has max_bytes {rule.max_bytes}, but MAX_PAYLOAD allows {max_payload} only"))
        if rule.durable is False and (rule.max_age is not None or rule.max_messages is not None):
            found.append((pattern, "sets how long the log keeps messages, but durable is false"))
    return found


def _covered(rules: Rules, one: _Sourced, column: str) -> bool:
    """Return whether a rule whose pattern matches the text of ``one``'s pattern sets a column."""
    others = [other for other in rules.sourced() if match_pattern(other.pattern, one.pattern)]
    return any(getattr(other.rule, column) is not None for other in others)


# -- columns -----------------------------------------------------------------------------------------------------------


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _integer(most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"a whole number from 1 to {most}")
        return value

    return parse


def _number(least: float, most: float, unit: str) -> Callable[[object], float]:
    def parse(value: object) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:  # type: ignore[arg-type, operator]
            raise ValueError(f"{unit} from {least:g} to {most:.12g}")
        return float(value)  # type: ignore[arg-type]

    return parse


def _key(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY_CHARACTERS:
        raise ValueError(f"a path of 1 to {MAX_KEY_CHARACTERS} characters, as in a filter")
    return value


_PARSERS: dict[str, Callable[[object], Any]] = {
    "durable": _boolean,
    "history": _boolean,
    "presence": _boolean,
    "ephemeral": _boolean,
    "max_age": _number(1, MAX_AGE_SECONDS, "seconds"),
    "max_messages": _integer(MAX_MESSAGES),
    "max_bytes": _integer(MAX_BYTES),
    "rate": _number(0.001, MAX_PER_SECOND, "a number"),
    "retained": _boolean,
    "max_rate": _number(0.001, 1000, "a number"),
    "conflate_key": _key,
}
