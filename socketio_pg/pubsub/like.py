"""SQL's ``LIKE``, in a time that is linear in the text. Pure, no I/O."""

import re
from typing import Any

#: Maximum characters of a pattern.
MAX_PATTERN = 100
#: A pattern does not match texts with more characters.
MAX_SEARCHED = 10_000

#: One part of a pattern between two ``%``: characters, and None for each ``_``.
_Part = list[str | None]


class Like:
    """A pattern: ``%`` stands for any characters, ``_`` for one; a backslash precedes either as a character.

    The text is searched once for each part between two ``%``, and never again before the end of the last hit. A part
    without ``_`` is found in one pass (CPython's ``re`` uses Knuth-Morris-Pratt for literals), and ``_`` at an edge of
    a part only shifts the place where the search begins. Only a ``_`` in the middle of a part takes time proportional
    to the part's length for each character of the text: :attr:`inner` is the length of the longest such part.
    """

    __slots__ = ("_end_gap", "_first", "_last", "_last_length", "_middle", "inner", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        parts: list[_Part] = [[]]
        for token in re.findall(r"\\.|\\$|[^\\]", pattern, re.DOTALL):
            if token == "%":
                parts.append([])
            else:
                parts[-1].append(None if token == "_" else token[-1])
        first, *rest = parts
        self._first = _compile(first)
        #: (characters to skip, the expression, steps for each character of the text)
        self._middle: list[tuple[int, re.Pattern[str], int]] = []
        self._last: re.Pattern[str] | None = None
        self._last_length = self._end_gap = self.inner = 0
        if not rest:
            return
        *middle, last = rest
        self._last, self._last_length = _compile(last), len(last)
        gap = 0
        for part in middle:
            # `%_x_%` is the same as `%x%` with a character before and after the hit.
            begin = next((index for index, token in enumerate(part) if token is not None), len(part))
            gap += begin
            core = part[begin:]
            behind = 0
            while core and core[-1] is None:
                core.pop()
                behind += 1
            if core:
                inner = len(core) if None in core else 0
                self.inner = max(self.inner, inner)
                # Measured: at most 3 ns a character for literals, 1 ns a character of the part and 6 ns otherwise.
                self._middle.append((gap, _compile(core), inner + 6 if inner else 3))
                gap = 0
            gap += behind
        self._end_gap = gap

    def __call__(self, found: Any) -> bool:
        """Return whether ``found``, any JSON value, is a text that matches."""
        return self.search(found)[0]

    def search(self, found: Any) -> tuple[bool, int]:
        """Return the same, and an upper bound of the steps that it took. A step takes about a nanosecond."""
        if not isinstance(found, str) or len(found) > MAX_SEARCHED:
            return False, 0
        if self._last is None:
            return self._first.fullmatch(found) is not None, 0
        begin = self._first.match(found)
        if begin is None:
            return False, 0
        position, steps = begin.end(), 0
        for gap, part, cost in self._middle:
            position += gap
            hit = part.search(found, position)
            if hit is None:
                return False, steps + cost * max(0, len(found) - position)
            steps += cost * (hit.end() - position)
            position = hit.end()
        end = len(found) - self._last_length
        return position + self._end_gap <= end and self._last.fullmatch(found, end) is not None, steps


def _compile(part: _Part) -> re.Pattern[str]:
    return re.compile("".join("." if token is None else re.escape(token) for token in part), re.DOTALL)
