"""Filters of subscriptions: conditions on paths into a payload. Pure, no I/O.

``{"new.customer_id": 5, "new.status": ["open", "paid"], "new.total": {"gt": 100}}``: all must hold. A path that the
payload lacks has the value null. docs/protocol.md defines the operators.
"""

import contextlib
import functools
import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import parse_rounded
from socketio_pg.pubsub.like import MAX_PATTERN, Like

#: Maximum conditions of a filter, values of an ``in``, and bytes of a filter as JSON in UTF-8.
MAX_CONDITIONS, MAX_VALUES, MAX_BYTES = 32, 100, 4_096
#: Maximum characters of a path, and keys in it.
MAX_PATH, MAX_DEPTH = 256, 32
#: Maximum characters, in all ``like`` of a filter together, of parts between two ``%`` that have a ``_`` in the middle.
MAX_INNER = 200
#: The cost of a filter on a message that is not accounted for, in steps of about a nanosecond: without the filter the
#: client would get the message, which costs more.
MAX_UNMETERED = 5_000

#: Steps for a condition, and for a key of a path.
_CONDITION_STEPS, _KEY_STEPS = 150, 50
#: Steps of parsing a condition, and of compiling a regular expression.
_PARSING_STEPS, _COMPILING_STEPS = 20_000, 100_000
#: Steps of parsing a filter that turns out invalid, at most about.
INVALID_STEPS = 5_000_000

_ORDER = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}
_OPERATORS = ("eq", "ne", *_ORDER, "in", "like")


def never_pause() -> None:
    """Do not yield."""


class Reader:
    """A payload, parsed once, and its values at paths, each read once however many filters ask for it.

    ``pause()`` is called after expensive work, and may yield to other green threads.
    """

    __slots__ = ("pause", "payload", "spent", "values")

    def __init__(self, payload_json: str, pause: Callable[[], None] = never_pause) -> None:
        self.payload = parse_rounded(payload_json)
        self.pause = pause
        self.values: dict[str, Any] = {}
        #: Steps that filters took, for filters whose cost is accounted for.
        self.spent: list[tuple[Filter, int]] = []

    @classmethod
    def over(cls, value: Any) -> "Reader":
        """Return a reader of a value that :func:`parse_rounded` has returned, or of a part of it."""
        reader = cls.__new__(cls)
        reader.payload, reader.pause, reader.values, reader.spent = value, never_pause, {}, []
        return reader

    def resolve(self, path: str, keys: Sequence[str]) -> Any:
        """Return the value at a path; None when the payload lacks it."""
        if path in self.values:
            return self.values[path]
        value = self.payload
        for key in keys:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and key.isdecimal() and len(key) < 10 and int(key) < len(value):
                value = value[int(key)]
            else:
                value = None
                break
        self.values[path] = value
        return value


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one path. ``holds(value)`` tests the value at the path, of a type that orjson produces."""

    #: The path in normal form, and its parts: keys of objects, indexes of lists.
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

    def to_wire(self) -> dict[str, Any]:
        """Return the filter as an object that :func:`parse_filter` takes."""
        found: dict[str, Any] = {}
        for path, name, operand in orjson.loads(self.text):
            found.setdefault(path, {})[name] = operand
        for path, operators in found.items():
            if operators.keys() == {"in"}:
                found[path] = operators["in"][0] if len(operators["in"]) == 1 else operators["in"]
        return found

    @property
    def metered(self) -> bool:
        """Whether the cost of the filter counts against the clients that have it."""
        return False

    @property
    def parsing_steps(self) -> int:
        """The cost of parsing the filter, in steps."""
        compiled = sum(one.holds.compiled for one in self.conditions if isinstance(one.holds, Like))
        return _PARSING_STEPS * len(self.conditions) + _COMPILING_STEPS * compiled

    def matches(self, payload_json: str) -> bool:
        """Return whether a payload, JSON text, fulfils all conditions."""
        reader = Reader(payload_json)
        return self.holds(reader, reader.values)

    def holds(self, reader: Reader, values: dict[str, Any]) -> bool:
        """Return whether a payload fulfils all conditions. ``values`` are those of ``reader``."""
        # A hot loop: thousands of filters may be tried on a message.
        for path, keys, holds in self._checks:
            if not holds(values[path] if path in values else reader.resolve(path, keys)):
                return False
        return True


class MeteredFilter(Filter):
    """A filter with a ``like``, or with many keys. Notes its steps in ``reader.spent`` when they are many."""

    __slots__ = ()

    @property
    def metered(self) -> bool:
        return True

    def holds(self, reader: Reader, values: dict[str, Any]) -> bool:
        steps, matched = 0, True
        for path, keys, holds in self._checks:
            if path in values:
                value = values[path]
            else:
                value = reader.resolve(path, keys)
                steps += _KEY_STEPS * len(keys)
            if type(holds) is Like:
                matched, searched = holds.search(value)
                steps += searched
            else:
                matched = holds(value)
            steps += _CONDITION_STEPS
            if not matched:
                break
        if steps > MAX_UNMETERED:
            reader.spent.append((self, steps))
            reader.pause()
        return matched


def parse_filter(value: object) -> Filter | None:
    """Parse a client's filter. Return None for null and for a filter without conditions, which matches all messages.

    Raises :class:`InvalidRequestError`, which names the path and the fault.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequestError('filter must be an object like {"new.status": "open"}')
    _check_size(value)
    #: Normal form → condition: the same condition may be written in several ways.
    conditions: dict[str, Condition] = {}
    for path, wanted in value.items():
        operators = _operators(wanted)
        if not operators:
            raise InvalidRequestError(f"filter: {_shown(path)} has no operator; there are {', '.join(_OPERATORS)}")
        keys = _split(path)
        for name, operand in operators.items():
            condition, normal_operand = _condition(path, keys, name, operand)
            normal = (condition.path, "in" if name == "eq" else name, normal_operand)
            conditions[orjson.dumps(normal).decode()] = condition
    if not conditions:
        return None
    _check_likes(conditions.values())
    text = f"[{','.join(sorted(conditions))}]"
    most = sum(_CONDITION_STEPS + _KEY_STEPS * len(condition.keys) for condition in conditions.values())
    searches = any(isinstance(condition.holds, Like) for condition in conditions.values())
    kind = MeteredFilter if searches or most > MAX_UNMETERED else Filter
    # Cheap conditions first: a text is searched only when they hold.
    ordered = sorted(conditions.values(), key=lambda condition: isinstance(condition.holds, Like))
    return kind(text, ordered)


def _operators(wanted: object) -> dict[str, Any]:
    return wanted if isinstance(wanted, dict) else {"in" if isinstance(wanted, list) else "eq": wanted}


def _check_size(value: dict[Any, Any]) -> None:
    """Check all limits of a filter before anything in it is parsed, in a time that they bound."""
    count = len(value) if len(value) > MAX_CONDITIONS else sum(len(_operators(wanted)) for wanted in value.values())
    if count > MAX_CONDITIONS:
        raise InvalidRequestError(f"filter has {count} conditions; at most {MAX_CONDITIONS} are allowed")
    characters = 0
    for path, wanted in value.items():
        if not isinstance(path, str):
            raise InvalidRequestError("filter: a path is a text like new.status")
        if len(path) > MAX_PATH:
            raise InvalidRequestError(f"filter: {_shown(path)} has over {MAX_PATH} characters")
        characters += len(path)
        for name, operand in _operators(wanted).items():
            characters += len(name)
            if isinstance(operand, list):
                if len(operand) > MAX_VALUES:
                    raise InvalidRequestError(f"filter: {_shown(path)}: in takes a list of 1 to {MAX_VALUES} values")
                characters += sum(_size(path, one) for one in operand)
            else:
                characters += _size(path, operand)
    # A text has at least as many bytes as characters: the exact size is only measured when it may be small enough.
    if characters <= MAX_BYTES:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        characters = len(text.encode("utf-8", "surrogatepass"))
    if characters > MAX_BYTES:
        raise InvalidRequestError(f"filter has over {MAX_BYTES} bytes as JSON")


def _size(path: str, value: object) -> int:
    """Return the least number of characters that a value of a filter has as JSON."""
    if isinstance(value, str):
        return len(value)
    if value is None or isinstance(value, (bool, float)):
        return 1
    if isinstance(value, int):
        return value.bit_length() // 4 + 1
    raise _not_a_scalar(path)


def _check_likes(conditions: Iterable[Condition]) -> None:
    inner = sum(condition.holds.inner for condition in conditions if isinstance(condition.holds, Like))
    if inner > MAX_INNER:
        raise InvalidRequestError(
            f"filter: parts of like between two % that have a _ in the middle have {inner} characters; at most "
            f"{MAX_INNER} are allowed"
        )


class _NoScalar:
    """Stands for a list or an object, which equals no value of a filter."""


def scalar_key(value: Any) -> Any:
    """Return a key that compares like JSON values: 1 equals 1.0, but not true."""
    if isinstance(value, bool):
        return (bool, value)
    return _NoScalar if isinstance(value, (dict, list)) else value


_KEY = re.compile(r"(?:\\.|[^.\\])+", re.DOTALL)
_PATH = re.compile(rf"{_KEY.pattern}(?:\.{_KEY.pattern})*", re.DOTALL)
_ESCAPED, _TO_ESCAPE = re.compile(r"\\(.)", re.DOTALL), re.compile(r"([.\\])")


def path_keys(path: str) -> Sequence[str]:
    """Return the keys of a path, for :meth:`Reader.resolve`. Raises :class:`InvalidRequestError`."""
    return _split(path)


def _split(path: str) -> Sequence[str]:
    """Split a path at its dots. A backslash precedes a dot that belongs to a key."""
    _scalar(path, path)  # valid Unicode
    if not _PATH.fullmatch(path):
        raise InvalidRequestError(f"filter: {_shown(path)} is not a path like new.status")
    keys = tuple(_ESCAPED.sub(r"\1", key) for key in _KEY.findall(path))
    if len(keys) > MAX_DEPTH:
        raise InvalidRequestError(f"filter: {_shown(path)} has {len(keys)} keys; at most {MAX_DEPTH} are allowed")
    return keys


def _joined(keys: Sequence[str]) -> str:
    """Return the normal form of a path: backslashes only where they are needed."""
    return ".".join(_TO_ESCAPE.sub(r"\\\1", key) for key in keys)


def _condition(written: str, keys: Sequence[str], name: str, operand: object) -> tuple[Condition, Any]:
    """Return the condition, and its operand in normal form."""
    path = _joined(keys)
    if name not in _OPERATORS:
        raise InvalidRequestError(
            f"filter: {_shown(written)}: unknown operator {_shown(name)}; there are {', '.join(_OPERATORS)}"
        )
    if name == "like":
        if not isinstance(operand, str) or len(operand) > MAX_PATTERN:
            raise InvalidRequestError(
                f"filter: {_shown(written)}: like takes a text of at most {MAX_PATTERN} characters"
            )
        return Condition(path, keys, None, Like(_scalar(written, operand))), operand
    if name == "in":
        if not isinstance(operand, list) or not 1 <= len(operand) <= MAX_VALUES:
            raise InvalidRequestError(f"filter: {_shown(written)}: in takes a list of 1 to {MAX_VALUES} values")
        return _one_of(path, keys, [_scalar(written, value) for value in operand])
    value = _scalar(written, operand)
    if name == "eq":
        return _one_of(path, keys, [value])
    if name == "ne":
        return Condition(path, keys, None, functools.partial(_differs, scalar_key(value))), value
    if isinstance(value, bool) or value is None:
        raise InvalidRequestError(f"filter: {_shown(written)}: {name} takes a number or a text")
    return Condition(path, keys, None, _compares(_ORDER[name], value)), value


def _scalar(path: str, value: object) -> Any:
    """Parse ``value`` like a payload: numbers beyond 64 bits are rounded in both."""
    if value is None or isinstance(value, (str, int, float)):
        with contextlib.suppress(ValueError):
            return orjson.loads(json.dumps(value, allow_nan=False))
    raise _not_a_scalar(path)


def _not_a_scalar(path: str) -> InvalidRequestError:
    return InvalidRequestError(f"filter: {_shown(path)}: values are texts, numbers, true, false and null")


def _one_of(path: str, keys: Sequence[str], values: Sequence[Any]) -> tuple[Condition, list[Any]]:
    one_of = frozenset(map(scalar_key, values))
    normal = sorted({orjson.dumps(value): value for value in values}.items())
    return Condition(path, keys, one_of, lambda found: scalar_key(found) in one_of), [value for _, value in normal]


def _differs(key: Any, found: Any) -> bool:
    return bool(scalar_key(found) != key)


def _compares(compare: Callable[[Any, Any], bool], value: Any) -> Callable[[Any], bool]:
    # Compares exact types, because a bool is an int too.
    types = (str,) if isinstance(value, str) else (int, float)
    return lambda found: type(found) in types and compare(found, value)


def _shown(text: str) -> str:
    """Return ``text``, shortened, for an error message."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
