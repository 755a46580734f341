"""Splits a text of any size into parts that fit into NOTIFY when they are sealed, and joins them again. Pure.

Each part is sealed on its own, so that others cannot put parts in between.
"""

import json
import uuid
from collections.abc import Iterator

from socketio_pg.core.errors import PayloadTooLargeError
from socketio_pg.core.seal import MAX_TEXT_BYTES

#: Characters of a part without its header, which has up to 60; all are ASCII.
PART_CHARACTERS = MAX_TEXT_BYTES - 60
#: The maximum length of a text; a receiver keeps an incomplete text in memory.
MAX_CHARACTERS = 50_000_000


def _ascii(text: str) -> str:
    """Return the same JSON with all other characters escaped."""
    # Line ends occur between values only. dumps() escapes quotes and backslashes a second time, which is undone.
    # These calls run in C; a loop over the characters takes a second for a few megabytes.
    text = text.replace("\n", " ").replace("\r", " ").replace("\t", " ")
    return json.dumps(text)[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def split(text: str, size: int = PART_CHARACTERS) -> Iterator[str]:
    """Yield the parts of ``text``, which is JSON, with ``size`` characters each. They must be notified in order and in
    one transaction.

    Then no other parts arrive in between. Raises :class:`PayloadTooLargeError`.
    """
    if not text.isascii():
        text = _ascii(text)
    if len(text) > MAX_CHARACTERS:
        raise PayloadTooLargeError(f"the message has {len(text)} characters of JSON; the maximum is {MAX_CHARACTERS}")
    name, count = uuid.uuid4().hex, max(1, -(-len(text) // size))
    for index in range(count):
        yield f"{name} {index + 1}/{count} {text[index * size : (index + 1) * size]}"


class Assembler:
    """Joins the parts of texts. Ignores invalid parts, and texts of which a part is missing."""

    def __init__(self) -> None:
        self._next: tuple[str, int, int] | None = None
        self._pieces: list[str] = []

    def add(self, part: str) -> str | None:
        """Take a part. Return the whole text if ``part`` completes it, otherwise None."""
        name, _, rest = part.partition(" ")
        place, _, piece = rest.partition(" ")
        index, _, count = place.partition("/")
        if not (index.isdecimal() and count.isdecimal() and len(place) < 20):
            return None
        here = (name, int(index), int(count))
        if here[1] == 1:
            self._pieces = []
        elif here != self._next:
            self._next, self._pieces = None, []
            return None
        self._pieces.append(piece)
        if here[1] == here[2]:
            text = "".join(self._pieces)
            self._next, self._pieces = None, []
            return text
        self._next = (name, here[1] + 1, here[2])
        if here[2] > MAX_CHARACTERS // PART_CHARACTERS + 1:
            self._next, self._pieces = None, []
        return None
