"""Filters of subscriptions: conditions on paths into a payload, and the index of a channel's filters. Pure, no I/O.

``{"new.customer_id": 5, "new.status": ["open", "paid"], "new.total": {"gt": 100}}``: all must hold. A path that the
payload lacks has the value null. docs/protocol.md defines the operators.
"""

import contextlib
import functools
import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from socketio_pg.core.errors import InvalidRequestError

#: Maximum conditions of a filter, values of an ``in``, characters of a ``like``, and characters of a filter as JSON.
MAX_CONDITIONS, MAX_VALUES, MAX_PATTERN, MAX_CHARACTERS = 20, 100, 100, 4_000
#: ``like`` is false for texts with more characters.
MAX_SEARCHED = 10_000

_ORDER = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}
_OPERATORS = ("eq", "ne", *_ORDER, "in", "like")


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one path. ``holds(value)`` tests the value at the path, of a type that orjson produces."""

    #: The path as written, and its parts: keys of objects, indexes of lists.
    path: str
    keys: Sequence[str]
    #: The allowed values of ``eq`` and ``in``; None for other operators.
    one_of: frozenset[Any] | None
    holds: Callable[[Any], bool]


class Filter:
    """All ``conditions`` together. ``text`` is their normal form; filters with the same text are equal."""

    __slots__ = ("_checks", "conditions", "text")

    def __init__(self, text: str, conditions: Sequence[Condition]) -> None:
        self.text = text
        self.conditions = conditions
        self._checks = [(condition.path, condition.keys, condition.holds) for condition in conditions]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def matches(self, payload_json: str) -> bool:
        """Return whether a payload, strict JSON text, fulfils all conditions."""
        return self.holds(orjson.loads(payload_json), {})

    def holds(self, payload: Any, values: dict[str, Any]) -> bool:
        """Return the same for a parsed payload. ``values`` caches values by path, for the next filter."""
        # A hot loop: thousands of filters may be tried on a message.
        for path, keys, holds in self._checks:
            if path in values:
                value = values[path]
            else:
                value = values[path] = _resolve(payload, keys)
            if not holds(value):
                return False
        return True


def parse_filter(value: object) -> Filter | None:
    """Parse a client's filter. Return None for null and for a filter without conditions, which matches all messages.

    Raises :class:`InvalidRequestError`, which names the path and the fault.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequestError('filter must be an object like {"new.status": "open"}')
    normal: list[tuple[str, str, Any]] = []
    conditions: list[Condition] = []
    for path, wanted in value.items():
        operators = wanted if isinstance(wanted, dict) else {"in" if isinstance(wanted, list) else "eq": wanted}
        if not operators:
            raise InvalidRequestError(f"filter: {_shown(path)} has no operator; there are {', '.join(_OPERATORS)}")
        keys = _split(path)
        for name, operand in operators.items():
            condition, normal_operand = _condition(path, keys, name, operand)
            conditions.append(condition)
            normal.append((path, "in" if name == "eq" else name, normal_operand))
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidRequestError(f"filter has {len(conditions)} conditions; at most {MAX_CONDITIONS} are allowed")
    text = orjson.dumps(sorted(normal, key=orjson.dumps)).decode()
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequestError(f"filter has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    return Filter(text, conditions) if conditions else None


class FilterIndex:
    """The filters of one channel, each with the number of its subscriptions.

    Filters with an equality are found by the payload's value, so a message is cheap even if each of thousands of
    clients follows its own rows. All other filters are tried one by one.
    """

    def __init__(self) -> None:
        self._counts: dict[Filter, int] = {}
        #: Path → value → filters that require this value.
        self._by_value: dict[_Path, dict[Any, dict[Filter, None]]] = {}
        self._others: dict[Filter, None] = {}
        #: Size → number of groups in `_by_value` of that size; and the largest size.
        self._sizes: Counter[int] = Counter()
        self._largest = 0

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[Filter]:
        return iter(self._counts)

    @property
    def max_tried(self) -> int:
        """An upper bound, approximately, of the filters that are tried on one message."""
        return len(self._others) + len(self._by_value) + self._largest

    def add(self, filter: Filter) -> None:
        """Add a subscription with ``filter``."""
        self._counts[filter] = self._counts.get(filter, 0) + 1
        if self._counts[filter] > 1:
            return
        found = _indexed(filter)
        if found is None:
            self._others[filter] = None
            return
        path, values = found
        by_value = self._by_value.setdefault(path, {})
        for value in values:
            filters = by_value.setdefault(value, {})
            filters[filter] = None
            self._resized(len(filters) - 1, len(filters))

    def discard(self, filter: Filter) -> None:
        """Remove a subscription with ``filter``."""
        self._counts[filter] -= 1
        if self._counts[filter]:
            return
        del self._counts[filter]
        found = _indexed(filter)
        if found is None:
            del self._others[filter]
            return
        path, values = found
        by_value = self._by_value[path]
        for value in values:
            filters = by_value[value]
            del filters[filter]
            self._resized(len(filters) + 1, len(filters))
            if not filters:
                del by_value[value]
        if not by_value:
            del self._by_value[path]

    def _resized(self, before: int, size: int) -> None:
        """Note that a group has grown or shrunk by one filter."""
        if size:
            self._sizes[size] += 1
        if before:
            self._sizes[before] -= 1
            if not self._sizes[before]:
                del self._sizes[before]
        # Sizes change by one: when the only largest group shrinks, its new size is the largest.
        if size > self._largest or self._largest not in self._sizes:
            self._largest = size

    def matching(self, payload_json: str) -> list[Filter]:
        """Return the filters that a payload, strict JSON text, fulfils."""
        payload = orjson.loads(payload_json)
        values: dict[str, Any] = {}
        tried = [self._others]
        for (path, keys), by_value in self._by_value.items():
            values[path] = _resolve(payload, keys)
            tried.append(by_value.get(_key(values[path]), {}))
        return [filter for filters in tried for filter in filters if filter.holds(payload, values)]


#: A path as written, and its parts.
_Path = tuple[str, Sequence[str]]


def _indexed(filter: Filter) -> tuple[_Path, frozenset[Any]] | None:
    """Return path and values of the condition that indexes ``filter``: the equality with the fewest values."""
    found = [((one.path, one.keys), one.one_of) for one in filter.conditions if one.one_of is not None]
    return min(found, key=lambda pair: len(pair[1]), default=None)


def _resolve(payload: Any, keys: Sequence[str]) -> Any:
    """Return the value at a path; None when the payload lacks it."""
    for key in keys:
        if isinstance(payload, dict):
            payload = payload.get(key)
        elif isinstance(payload, list) and key.isdecimal() and len(key) < 10 and int(key) < len(payload):
            payload = payload[int(key)]
        else:
            return None
    return payload


class _NoScalar:
    """Stands for a list or an object, which equals no value of a filter."""


def _key(value: Any) -> Any:
    """Return a key that compares like JSON values: 1 equals 1.0, but not true."""
    if isinstance(value, bool):
        return (bool, value)
    return _NoScalar if isinstance(value, (dict, list)) else value


_KEY = r"(?:\\.|[^.\\])+"


def _split(path: str) -> Sequence[str]:
    """Split a path at its dots. A backslash precedes a dot that belongs to a key."""
    _scalar(path, path)  # valid Unicode
    if not re.fullmatch(rf"{_KEY}(?:\.{_KEY})*", path, re.DOTALL):
        raise InvalidRequestError(f"filter: {_shown(path)} is not a path like new.status")
    return tuple(re.sub(r"\\(.)", r"\1", key, flags=re.DOTALL) for key in re.findall(_KEY, path, re.DOTALL))


def _condition(path: str, keys: Sequence[str], name: str, operand: object) -> tuple[Condition, Any]:
    """Return the condition, and its operand in normal form."""
    if name not in _OPERATORS:
        raise InvalidRequestError(
            f"filter: {_shown(path)}: unknown operator {_shown(name)}; there are {', '.join(_OPERATORS)}"
        )
    if name == "like":
        if not isinstance(operand, str) or len(operand) > MAX_PATTERN:
            raise InvalidRequestError(f"filter: {_shown(path)}: like takes a text of at most {MAX_PATTERN} characters")
        return Condition(path, keys, None, _like(_scalar(path, operand))), operand
    if name == "in":
        if not isinstance(operand, list) or not 1 <= len(operand) <= MAX_VALUES:
            raise InvalidRequestError(f"filter: {_shown(path)}: in takes a list of 1 to {MAX_VALUES} values")
        return _one_of(path, keys, [_scalar(path, value) for value in operand])
    value = _scalar(path, operand)
    if name == "eq":
        return _one_of(path, keys, [value])
    if name == "ne":
        return Condition(path, keys, None, functools.partial(_differs, _key(value))), value
    if isinstance(value, bool) or value is None:
        raise InvalidRequestError(f"filter: {_shown(path)}: {name} takes a number or a text")
    return Condition(path, keys, None, _compares(_ORDER[name], value)), value


def _scalar(path: str, value: object) -> Any:
    """Parse ``value`` like a payload: numbers beyond 64 bits are rounded in both."""
    if value is None or isinstance(value, (str, int, float)):
        with contextlib.suppress(ValueError):
            return orjson.loads(json.dumps(value, allow_nan=False))
    raise InvalidRequestError(f"filter: {_shown(path)}: values are texts, numbers, true, false and null")


def _one_of(path: str, keys: Sequence[str], values: Sequence[Any]) -> tuple[Condition, list[Any]]:
    one_of = frozenset(map(_key, values))
    normal = sorted({orjson.dumps(value): value for value in values}.items())
    return Condition(path, keys, one_of, lambda found: _key(found) in one_of), [value for _, value in normal]


def _differs(key: Any, found: Any) -> bool:
    return bool(_key(found) != key)


def _compares(compare: Callable[[Any, Any], bool], value: Any) -> Callable[[Any], bool]:
    # Compares exact types, because a bool is an int too.
    types = (str,) if isinstance(value, str) else (int, float)
    return lambda found: type(found) in types and compare(found, value)


def _like(pattern: str) -> Callable[[Any], bool]:
    """SQL's LIKE: ``%`` for any characters, ``_`` for one, a backslash before either."""
    # Searches once for each part of fixed length: one regular expression would take exponential time with many %.
    parts: list[str] = [""]
    for token in re.findall(r"\\.|\\$|[^\\]", pattern, re.DOTALL):
        if token == "%":
            parts.append("")
        else:
            parts[-1] += "." if token == "_" else re.escape(token[-1])
    first, *rest = [re.compile(part, re.DOTALL) for part in parts]
    if not rest:
        return lambda found: (
            isinstance(found, str) and len(found) <= MAX_SEARCHED and first.fullmatch(found) is not None
        )
    *middle, last = rest
    last_length = len(re.findall(r"\\.|.", parts[-1], re.DOTALL))

    def holds(found: Any) -> bool:
        if not isinstance(found, str) or len(found) > MAX_SEARCHED:
            return False
        begin = first.match(found)
        if begin is None:
            return False
        position, end = begin.end(), len(found) - last_length
        for part in middle:
            hit = part.search(found, position)
            if hit is None:
                return False
            position = hit.end()
        return position <= end and last.fullmatch(found, end) is not None

    return holds


def _shown(text: str) -> str:
    """Return ``text``, shortened, for an error message."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
