"""The index of a channel's filters: finds those that a message fulfils, and what they have cost. Pure, no I/O."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from socketio_pg.pubsub.filters import Filter, Reader, scalar_key


class FilterIndex:
    """The filters of one channel, each with the number of its subscriptions.

    Filters with an equality are found by the payload's value, so a message is cheap even if each of thousands of
    clients follows its own rows. All other filters are tried one by one.
    """

    #: Filters that are tried between two pauses.
    slice_filters = 100

    def __init__(self) -> None:
        self._counts: dict[Filter, int] = {}
        #: Filter → its number, which grows with each filter that is added; in that order.
        self._numbers: dict[Filter, int] = {}
        #: The number of the newest filter.
        self.newest = 0
        #: Steps of metered filters that :meth:`due` has not returned yet.
        self._spent: Counter[Filter] = Counter()
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
        self.newest += 1
        self._numbers[filter] = self.newest
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
        del self._counts[filter], self._numbers[filter]
        self._spent.pop(filter, None)
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

    def matching(self, reader: Reader) -> list[Filter]:
        """Return the filters that a payload fulfils. While ``reader`` pauses, filters may be added and discarded."""
        tried = list(self._others)
        for number, ((path, keys), by_value) in enumerate(list(self._by_value.items()), 1):
            tried += by_value.get(scalar_key(reader.resolve(path, keys)), ())
            if not number % self.slice_filters:
                reader.pause()
        values = reader.values
        if len(tried) <= self.slice_filters:
            return [filter for filter in tried if filter.holds(reader, values)]
        matched: list[Filter] = []
        for start in range(0, len(tried), self.slice_filters):
            matched += [filter for filter in tried[start : start + self.slice_filters] if filter.holds(reader, values)]
            reader.pause()
        return matched

    def matching_since(self, newest: int, reader: Reader) -> list[Filter]:
        """Return the same, of the filters that were added when :attr:`newest` already was ``newest``."""
        added = itertools.takewhile(lambda filter: self._numbers[filter] > newest, reversed(self._numbers))
        return [filter for filter in added if filter.holds(reader, reader.values)]

    def due(self, reader: Reader, least: int) -> list[tuple[Filter, int]]:
        """Account for what ``reader`` has spent. Return the metered filters that have spent ``least`` steps or more."""
        found = []
        for filter, steps in reader.spent:
            if filter in self._counts:
                self._spent[filter] += steps
                if self._spent[filter] >= least:
                    found.append((filter, self._spent.pop(filter)))
        reader.spent.clear()
        return found


#: A path in normal form, and its parts.
_Path = tuple[str, Sequence[str]]


def _indexed(filter: Filter) -> tuple[_Path, frozenset[Any]] | None:
    """Return path and values of the condition that indexes ``filter``: the equality with the fewest values."""
    found = [((one.path, one.keys), one.one_of) for one in filter.conditions if one.one_of is not None]
    return min(found, key=lambda pair: len(pair[1]), default=None)
