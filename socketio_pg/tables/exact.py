"""JSON whose numbers keep all their digits: texts that are not numbers for Python. Pure, no I/O."""

import json
from typing import Any

import orjson


class Number(str):
    """The text of a JSON number."""

    __slots__ = ()


def loads(text: str) -> Any:
    """Parse JSON of PostgreSQL; numbers are :class:`Number`. Raises ValueError or RecursionError."""
    return json.loads(text, parse_int=Number, parse_float=Number)


def dumps(value: Any) -> str:
    """Return the JSON text of what :func:`loads` returned. Raises TypeError over 254 levels."""
    return orjson.dumps(value, default=_number, option=orjson.OPT_PASSTHROUGH_SUBCLASS).decode()


def _number(value: Any) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} is not JSON")
