"""SQL's ``LIKE``, in a time that is linear in the text. Pure, no I/O."""

import itertools
import re
from typing import Any

#: Maximum characters of a pattern.
MAX_PATTERN = 100
#: A pattern does not match texts with more characters.
MAX_SEARCHED = 10_000

#: Longer literals are searched with a regular expression: CPython's ``re`` uses Knuth-Morris-Pratt for literals, and
#: ``str.find`` compares up to half of a literal at each place. For short ones it is as fast, and needs no compiling.
_LONG_LITERAL = 16
#: Steps for each character of the text: for a short and a long literal, and beside the length of another part. Steps
#: for a part. Measured with the worst texts.
_SHORT_STEPS, _LONG_STEPS, _INNER_STEPS, _PART_STEPS = 6, 3, 6, 150

#: One part of a pattern between two ``%``: characters, and None for each ``_``.
_Part = list[str | None]


class Like:
    """A pattern: ``%`` stands for any characters, ``_`` for one; a backslash precedes either as a character.

    The text is searched once for each part between two ``%``, and never again before the end of the last hit. ``_`` at
    an edge of a part only shifts the place where the search begins, and a part without other ``_`` is a literal. Only
    a ``_`` in the middle of a part takes time proportional to the part's length for each character of the text:
    :attr:`inner` is the length of all such parts together. :attr:`compiled` is the number of regular expressions.
    """

    __slots__ = ("_end_gap", "_first", "_last", "_middle", "compiled", "inner", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        parts: list[_Part] = [[]]
        for token in re.findall(r"\\.|\\$|[^\\]", pattern, re.DOTALL):
            if token == "%":
                parts.append([])
            else:
                parts[-1].append(None if token == "_" else token[-1])
        first, *middle = parts
        self._first = _Anchored(first)
        self._last = _Anchored(middle.pop()) if middle else None
        #: (characters to skip, literal or regular expression, its length, steps for each character of the text)
        self._middle: list[tuple[int, str | re.Pattern[str], int, int]] = []
        self.inner = self.compiled = gap = 0
        for part in middle:
            # `%_x_%` is the same as `%x%` with a character before and after the hit.
            before = next((index for index, token in enumerate(part) if token is not None), len(part))
            gap += before
            core = part[before:]
            behind = 0
            while core and core[-1] is None:
                core.pop()
                behind += 1
            if core:
                self._middle.append((gap, *self._part(core)))
                gap = 0
            gap += behind
        self._end_gap = gap

    def _part(self, core: _Part) -> tuple[str | re.Pattern[str], int, int]:
        size, inner = len(core), None in core
        if not inner and size <= _LONG_LITERAL:
            return "".join(token for token in core if token is not None), size, _SHORT_STEPS
        self.compiled += 1
        expression = "".join("." if token is None else re.escape(token) for token in core)
        if inner:
            self.inner += size
        return re.compile(expression, re.DOTALL), size, size + _INNER_STEPS if inner else _LONG_STEPS

    def __call__(self, found: Any) -> bool:
        """Return whether ``found``, any JSON value, is a text that matches."""
        return self.search(found)[0]

    def search(self, found: Any) -> tuple[bool, int]:
        """Return the same, and an upper bound of the steps that it took. A step takes about a nanosecond."""
        if not isinstance(found, str) or len(found) > MAX_SEARCHED:
            return False, 0
        first, last = self._first, self._last
        if last is None:
            return len(found) == first.size and first.is_at(found, 0), 0
        if first.size and not first.is_at(found, 0):
            return False, 0
        position, steps, size = first.size, 0, len(found)
        for gap, part, length, cost in self._middle:
            position += gap
            if isinstance(part, str):
                at = found.find(part, position)
            else:
                hit = part.search(found, position)
                at = -1 if hit is None else hit.start()
            if at < 0:
                return False, steps + _PART_STEPS + cost * max(0, size - position)
            at += length
            steps += _PART_STEPS + cost * (at - position)
            position = at
        end = size - last.size
        return position + self._end_gap <= end and (not last.size or last.is_at(found, end)), steps


class _Anchored:
    """A part of a pattern at a known place of the text."""

    __slots__ = ("_begin", "_literals", "size")

    def __init__(self, part: _Part) -> None:
        self.size = len(part)
        #: The literal at its beginning, and (offset, literal) for the others.
        self._begin = ""
        self._literals: list[tuple[int, str]] = []
        for is_literal, run in itertools.groupby(enumerate(part), key=lambda pair: pair[1] is not None):
            if is_literal:
                tokens = list(run)
                self._literals.append((tokens[0][0], "".join(str(token) for _, token in tokens)))
        if self._literals and self._literals[0][0] == 0:
            self._begin = self._literals.pop(0)[1]

    def is_at(self, text: str, position: int) -> bool:
        """Return whether ``text`` has this part at ``position``."""
        if position < 0 or position + self.size > len(text) or not text.startswith(self._begin, position):
            return False
        for offset, literal in self._literals:  # noqa: SIM110 - all() takes longer, and this is called for each message
            if not text.startswith(literal, position + offset):
                return False
        return True
