"""Recent log messages in memory, so that returning clients do not need a query each. Pure, no I/O.

Keeps the tail of the log (the last delivered messages of all channels) and the pages of single channels read last.
"""

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.patterns import is_pattern, matches


@dataclass(frozen=True, slots=True)
class Page:
    """All messages of a channel with ``after < position <= end``, in order."""

    after: int
    end: int
    messages: Sequence[EncodedMessage]

    def part(self, after: int, upto: int) -> "Page":
        """Return the part with ``after < position <= upto``."""
        positions = _positions(self.messages)
        found = self.messages[bisect_right(positions, after) : bisect_right(positions, upto)]
        return Page(after, min(upto, self.end), found)


#: The messages of one channel in the tail, and their positions in a list of their own for binary search.
_Part: TypeAlias = tuple[list[int], list[EncodedMessage]]


class Recent:
    """The tail and the pages, each limited to about ``max_bytes`` (counted in characters)."""

    #: Characters counted for a message in addition to its payload.
    overhead = 300
    #: Maximum messages of a page, and about the maximum bytes of payload.
    page_messages = 500
    page_bytes = 64_000
    #: Messages of the tail that are looked at for a page of a pattern: some milliseconds.
    scan_messages = 10_000

    def __init__(self, max_bytes: int = 16_000_000) -> None:
        self._max_bytes = max_bytes
        #: The tail has every message after this position, up to the last one appended.
        self.start = 0
        self._tail: deque[EncodedMessage] = deque()
        self._tail_size = 0
        self._parts: dict[str, _Part] = {}
        self._pages: dict[str, list[Page]] = {}
        #: The pages in the order in which they were read; the oldest are evicted first.
        self._kept: deque[tuple[str, Page]] = deque()
        self._kept_size = 0
        #: How often everything was dropped: a page that was read before does not belong here.
        self.resets = 0

    def reset(self, position: int) -> None:
        """Drop everything; the messages after ``position`` will be appended next."""
        self.start = position
        self.resets += 1
        self._tail.clear()
        self._parts.clear()
        self._pages.clear()
        self._kept.clear()
        self._tail_size = self._kept_size = 0

    def append(self, messages: Sequence[EncodedMessage]) -> None:
        """Add the next messages of the log, of all channels, without a hole."""
        for message in messages:
            positions, part = self._parts.setdefault(message.channel, ([], []))
            positions.append(_position(message))
            part.append(message)
            self._tail_size += self._size(message)
        self._tail.extend(messages)
        evicted: dict[str, int] = {}
        while self._tail_size > self._max_bytes:
            gone = self._tail.popleft()
            self._tail_size -= self._size(gone)
            self.start = _position(gone)
            evicted[gone.channel] = evicted.get(gone.channel, 0) + 1
        for channel, count in evicted.items():
            positions, part = self._parts[channel]
            del positions[:count], part[:count]
            if not part:
                del self._parts[channel]

    def newest(self, after: int, count: int) -> list[EncodedMessage]:
        """Return up to ``count`` of the newest messages after a position, the newest one first."""
        found: list[EncodedMessage] = []
        for message in reversed(self._tail):
            if len(found) == count or _position(message) <= after:
                break
            found.append(message)
        return found

    def page(self, channel: str, after: int, upto: int) -> Page | None:
        """Return the next page of a channel, or pattern, after a position, at most ``upto``; None to read the log.

        That of a pattern may have no messages and end before ``upto``.
        """
        if after >= self.start:
            if is_pattern(channel):
                return self._scan(channel, after, upto)
            return self._cut(after, upto, *self._parts.get(channel, ([], [])))
        for page in self._pages.get(channel, ()):
            if page.after <= after < page.end:
                return page.part(after, upto)
        return None

    def keep(self, channel: str, page: Page) -> None:
        """Keep a page that was read from the log, for other clients."""
        self._pages.setdefault(channel, []).append(page)
        self._kept.append((channel, page))
        self._kept_size += self._page_size(page)
        while self._kept_size > self._max_bytes:
            channel, gone = self._kept.popleft()
            self._kept_size -= self._page_size(gone)
            pages = self._pages[channel]
            pages.remove(gone)
            if not pages:
                del self._pages[channel]

    def before_newest(self, channel: str, count: int, upto: int) -> int | None:
        """Return the position after which ``channel`` has ``count`` messages up to ``upto``; None if not in memory."""
        if is_pattern(channel):
            return self._newest_of_pattern(channel, count, upto)
        positions = self._parts.get(channel, ([], []))[0]
        if len(positions) < count:
            # Add the messages of a page that reaches the tail, if there is one.
            page = next((page for page in self._pages.get(channel, ()) if page.end >= self.start), None)
            if page is not None:
                positions = [found for found in _positions(page.messages) if found <= self.start] + positions
        found = bisect_right(positions, upto)
        if found < count:
            return None
        return positions[found - count] - 1 if count else upto

    def _cut(self, after: int, upto: int, positions: Sequence[int], messages: Sequence[EncodedMessage]) -> Page:
        begin, end = bisect_right(positions, after), bisect_right(positions, upto)
        size = 0
        for index in range(begin, end):
            size += len(messages[index].payload_json)
            if index + 1 - begin == self.page_messages or size >= self.page_bytes:
                if index + 1 < end:
                    return Page(after, positions[index], messages[begin : index + 1])
                break
        return Page(after, upto, messages[begin:end])

    def _scan(self, pattern: str, after: int, upto: int) -> Page:
        """Return a page of the messages in the tail whose channel matches a pattern."""
        matching: dict[str, bool] = {}
        found: list[EncodedMessage] = []
        size = 0
        # The positions of the tail have no holes.
        begin = after - self.start
        for message in itertools.islice(self._tail, begin, min(upto - self.start, begin + self.scan_messages)):
            after = _position(message)
            if message.channel not in matching:
                matching[message.channel] = matches(pattern, message.channel)
            if matching[message.channel]:
                found.append(message)
                size += len(message.payload_json)
                if len(found) == self.page_messages or size >= self.page_bytes:
                    return Page(begin + self.start, after, found)
        return Page(begin + self.start, min(upto, max(after, begin + self.start + self.scan_messages)), found)

    def _newest_of_pattern(self, pattern: str, count: int, upto: int) -> int | None:
        matching: dict[str, bool] = {}
        if not count:
            return upto
        for message in itertools.islice(reversed(self._tail), self.scan_messages):
            if message.channel not in matching:
                matching[message.channel] = matches(pattern, message.channel)
            if matching[message.channel] and _position(message) <= upto:
                count -= 1
                if not count:
                    return _position(message) - 1
        return None

    def _size(self, message: EncodedMessage) -> int:
        return len(message.payload_json) + self.overhead + (0 if message.meta is None else message.meta.size)

    def _page_size(self, page: Page) -> int:
        return sum(map(self._size, page.messages)) + self.overhead


def _positions(messages: Sequence[EncodedMessage]) -> list[int]:
    return [_position(message) for message in messages]


def _position(message: EncodedMessage) -> int:
    assert message.position is not None, "only messages of the log are kept"
    return message.position
