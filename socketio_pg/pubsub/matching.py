"""Prepares messages for their receivers: tries filters, and writes numbers as strings for those who want that.

Yields to other green threads in between, and accounts for what each filter costs.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage, with_numbers_as_strings
from socketio_pg.pubsub.filter_index import FilterIndex
from socketio_pg.pubsub.filters import Filter, Reader, never_pause
from socketio_pg.pubsub.hub import Hub

#: A channel or pattern, a filter of its subscriptions, and the steps that it took.
FilterCost: TypeAlias = tuple[str, Filter, int]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The filters that a message fulfils, of those that the index had up to the number ``newest``."""

    message: EncodedMessage
    index: FilterIndex
    newest: int
    reader: Reader
    matched: list[Filter]


class Matching:
    """Finds the filters that messages fulfil, in two steps.

    :meth:`prepare` does the work, and yields; :meth:`matching` returns the result, without a break between it and the
    delivery, and tries the filters that were added in between. So expensive filters delay no other green thread, and
    the set of receivers is still determined at one moment.
    """

    #: Seconds of trying filters before other green threads run.
    slice_seconds = 0.002
    #: Steps of a filter that are accounted for together.
    least_due = 100_000

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        #: By the id of the message, and the name of the subscriptions: its channel, or a pattern.
        self._prepared: dict[int, dict[str, _Prepared]] = {}
        #: Payloads with numbers as strings, by the id of the message.
        self._strings: dict[int, tuple[EncodedMessage, str]] = {}
        self._due: list[FilterCost] = []
        self._selecting = green.Lock()

    def prepare(self, messages: Sequence[EncodedMessage]) -> None:
        """Prepare ``messages``, which :meth:`finish` must follow. May yield."""
        if not self._hub.has_filters and not self._hub.any_strings:
            return
        pause = self._pause()
        try:
            for message in messages:
                names = self._hub.names(message.channel)
                if any(map(self._hub.has_strings, names)):
                    self._strings[id(message)] = message, with_numbers_as_strings(message.payload_json, pause)
                reader: Reader | None = None
                for name in names:
                    index = self._hub.filters(name)
                    if index is not None:
                        reader = reader or Reader(message.payload_json, pause)
                        newest, matched = index.newest, self._try(name, index, reader)
                        found = _Prepared(message, index, newest, reader, matched)
                        self._prepared.setdefault(id(message), {})[name] = found
                        pause()
        except BaseException:
            self.finish(messages)
            raise

    def matching(self, message: EncodedMessage, name: str | None = None) -> Sequence[Filter]:
        """Return the filters of the message's channel that it fulfils, as of now. Does not yield.

        ``name``: those of a pattern that matches the channel.
        """
        name = name or message.channel
        index = self._hub.filters(name)
        if index is None:
            return ()
        prepared = self._prepared.get(id(message), {}).get(name)
        if prepared is None or prepared.message is not message or prepared.index is not index:
            return self._try(name, index, Reader(message.payload_json))
        if prepared.newest == index.newest:
            return prepared.matched
        prepared.reader.pause = never_pause
        added = index.matching_since(prepared.newest, prepared.reader)
        self._account(name, index, prepared.reader)
        return list(dict.fromkeys([*prepared.matched, *added]))

    def reader(self, message: EncodedMessage) -> Reader:
        """Return a reader of a message's payload: that of :meth:`prepare`, or a new one."""
        for prepared in self._prepared.get(id(message), {}).values():
            if prepared.message is message:
                return prepared.reader
        return Reader(message.payload_json)

    def strings(self, message: EncodedMessage) -> str:
        """Return the payload of a message with numbers as strings: that of :meth:`prepare`, or a new one."""
        prepared = self._strings.get(id(message))
        if prepared is None or prepared[0] is not message:
            return with_numbers_as_strings(message.payload_json, never_pause)
        return prepared[1]

    def finish(self, messages: Sequence[EncodedMessage]) -> None:
        """Forget prepared messages."""
        if self._prepared or self._strings:
            for message in messages:
                self._prepared.pop(id(message), None)
                self._strings.pop(id(message), None)

    @property
    def has_due(self) -> bool:
        """Whether :meth:`take_due` returns anything."""
        return bool(self._due)

    def take_due(self) -> list[FilterCost]:
        """Return what metered filters have cost since the last call."""
        due, self._due = self._due, []
        return due

    @contextlib.contextmanager
    def selecting(self) -> Iterator[Callable[[], None]]:
        """Admit one replay at a time, however many there are, to prepare a page. Yields the pause for its messages."""
        with self._selecting:
            yield self._pause()

    def select(
        self,
        filter: Filter,
        messages: Sequence[EncodedMessage],
        charge: Callable[[int], None],
        current: Callable[[], bool] = lambda: True,
    ) -> list[EncodedMessage]:
        """Return the messages of a replay that fulfil ``filter``, and call ``charge(steps)``. Yields.

        Ends early when ``current()`` is False.
        """
        selected = []
        with self.selecting() as pause:
            for message in messages:
                reader = Reader(message.payload_json, pause)
                if filter.holds(reader, reader.values):
                    selected.append(message)
                for _, steps in reader.spent:
                    charge(steps)
                pause()
                if not current():
                    break
        return selected

    def written_with_strings(self, messages: Sequence[EncodedMessage]) -> dict[int | None, str]:
        """Return the payloads of a replay with numbers as strings, by position. Yields."""
        found = {}
        with self.selecting() as pause:
            for message in messages:
                found[message.position] = with_numbers_as_strings(message.payload_json, pause)
                pause()
        return found

    def _try(self, channel: str, index: FilterIndex, reader: Reader) -> list[Filter]:
        matched = index.matching(reader)
        self._account(channel, index, reader)
        return matched

    def _account(self, channel: str, index: FilterIndex, reader: Reader) -> None:
        if reader.spent:
            self._due += [(channel, filter, steps) for filter, steps in index.due(reader, self.least_due)]

    def _pause(self) -> Callable[[], None]:
        """Return a function that yields when a slice of time is over."""
        ends = time.monotonic() + self.slice_seconds

        def pause() -> None:
            nonlocal ends
            if time.monotonic() > ends:
                green.sleep()
                ends = time.monotonic() + self.slice_seconds

        return pause
