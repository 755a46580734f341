"""A text of any size as payloads of NOTIFY, which takes 7,999 bytes, and back. Pure."""

import json
import uuid
from collections.abc import Iterator

from socketio_pg.core.errors import PayloadTooLargeError

#: Characters of a part without its head; all are ASCII, so that every encoding of a database has them.
PART_CHARACTERS = 7_900
#: The longest text; what others begin to send is kept until it is whole.
MAX_CHARACTERS = 50_000_000


def _ascii(text: str) -> str:
    """The same JSON without other characters."""
    # Line ends stand between values only. dumps() escapes quotes and backslashes once more than they are: undone again.
    # All of it in C: what looks at each character takes a second for some megabytes.
    text = text.replace("\n", " ").replace("\r", " ").replace("\t", " ")
    return json.dumps(text)[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def split(text: str) -> Iterator[str]:
    """The parts of ``text``, which is JSON, to be notified in their order and in one transaction.

    Nobody else's come in between then. No two are equal, ever: PostgreSQL would fold those of one transaction.
    Raises :class:`PayloadTooLargeError`.
    """
    if not text.isascii():
        text = _ascii(text)
    if len(text) > MAX_CHARACTERS:
        raise PayloadTooLargeError(f"the message has {len(text)} characters of JSON; at most {MAX_CHARACTERS} are sent")
    name, count = uuid.uuid4().hex, max(1, -(-len(text) // PART_CHARACTERS))
    for index in range(count):
        yield f"{name} {index + 1}/{count} {text[index * PART_CHARACTERS : (index + 1) * PART_CHARACTERS]}"


class Assembler:
    """Puts together what comes in parts. What is no part, or has lost one, is left out."""

    def __init__(self) -> None:
        self._next: tuple[str, int, int] | None = None
        self._pieces: list[str] = []

    def add(self, part: str) -> str | None:
        """The whole text when ``part`` was the last one of it."""
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
