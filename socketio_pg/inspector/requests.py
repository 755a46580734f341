"""Reads the parameters of the inspector's requests: texts, numbers, and the order of a list."""

import re
from collections.abc import Collection

from flask import request

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.listing import Listing

#: The maximum number of rows of a list, and how many it has by default.
MAX_LIMIT, DEFAULT_LIMIT = 500, 50
#: The most rows that can be left out: all processes are asked for the rows before, too.
MAX_OFFSET = 2_000
#: The maximum length of a parameter, in characters.
MAX_TEXT = 1_000


def text(name: str, default: str | None = None) -> str | None:
    """Return a parameter of the query. Raises :class:`InvalidRequestError` when it is there twice, or too long."""
    values = request.args.getlist(name)
    if len(values) > 1:
        raise InvalidRequestError(f"{name} must not appear twice")
    if values and len(values[0]) > MAX_TEXT:
        raise InvalidRequestError(f"{name} must have at most {MAX_TEXT} characters")
    return values[0] if values else default


def number(name: str, default: int, low: int, high: int) -> int:
    """Return a whole number of the query. Raises :class:`InvalidRequestError`."""
    found = text(name)
    if found is None or found == "":
        return default
    if not (found.isascii() and found.isdecimal() and len(found) <= 15 and low <= int(found) <= high):
        raise InvalidRequestError(f"{name} must be a whole number from {low} to {high}")
    return int(found)


def seconds(name: str, most: float = 5.0) -> float:
    """Return a number of seconds of the query; 0 without it. Raises :class:`InvalidRequestError`."""
    found = text(name)
    if found is None or found == "":
        return 0.0
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", found) or float(found) > most:
        raise InvalidRequestError(f"{name} must be a number of seconds from 0 to {most:g}")
    return float(found)


def listing(allowed: Collection[str], default: str) -> Listing:
    """Return what the query says of a list: ``search``, ``sort`` (descending with ``-``), ``limit``, ``offset``.

    Raises :class:`InvalidRequestError`.
    """
    sort = text("sort") or default
    name = sort.removeprefix("-")
    if name not in allowed:
        raise InvalidRequestError(f"sort must be one of {', '.join(sorted(allowed))}, with - in front for descending")
    limit = number("limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    offset = number("offset", 0, 0, MAX_OFFSET)
    return Listing((text("search") or "").strip().lower(), name, sort.startswith("-"), limit, offset)
