"""Views of a table: clients that see the same columns and rows of it, and what they get of changes. Pure, no I/O."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from socketio_pg.pubsub.filter_index import FilterIndex
from socketio_pg.pubsub.filters import Filter, Reader
from socketio_pg.tables import exact
from socketio_pg.tables.changes import Change, Event, Plain
from socketio_pg.tables.checks import Seer
from socketio_pg.tables.reading import key_text
from socketio_pg.tables.requests import Place

_numbers = itertools.count(1)


class RestartError(Exception):
    """Single changes are not exact any more: clients need the rows again, for a ``reason`` of docs/live-tables.md."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ViewKey:
    """Two clients with the same key share a view.

    ``columns`` is None for all columns of the watch's messages. With a ``seer`` row-level security decides about rows,
    and ``columns`` are its own.
    """

    seer: Seer | None
    columns: tuple[str, ...] | None
    filter: Filter | None


@dataclass(frozen=True, slots=True)
class Form:
    """How clients get events: under the name of their subscription; ``strings``: with numbers as strings."""

    place: Place
    strings: bool


class View:
    """The clients with one :class:`ViewKey` that are up to date: ``members``, each in the room of its form.

    ``keys`` are the keys of the rows that any of them may have, if there is a seer.
    """

    def __init__(self, key: ViewKey) -> None:
        self.key = key
        self.members: set[Hashable] = set()
        self.keys: set[str] = set()
        #: The rooms by form, with the numbers of their members.
        self.rooms: dict[Form, str] = {}
        self._sizes: dict[Form, int] = {}

    def enter(self, form: Form) -> str:
        """Return the room for a new member."""
        self._sizes[form] = self._sizes.get(form, 0) + 1
        return self.rooms.setdefault(form, f"\2{next(_numbers)}")

    def leave(self, form: Form) -> str:
        """Return the room that a member leaves."""
        self._sizes[form] -= 1
        if self._sizes[form]:
            return self.rooms[form]
        del self._sizes[form]
        return self.rooms.pop(form)


class PlainViews:
    """Finds what views without row-level security get of each change.

    ``charge(filter, steps)`` counts the cost of filters.
    """

    #: Steps of a filter that are accounted for together.
    least_due = 100_000

    def __init__(self, charge: Callable[[Filter, int], None]) -> None:
        self._charge = charge
        self._index = FilterIndex()
        self._of_filter: dict[Filter | None, set[View]] = {}

    def add(self, view: View) -> None:
        self._of_filter.setdefault(view.key.filter, set()).add(view)
        if view.key.filter is not None:
            self._index.add(view.key.filter)

    def discard(self, view: View) -> None:
        views = self._of_filter[view.key.filter]
        views.discard(view)
        if not views:
            del self._of_filter[view.key.filter]
        if view.key.filter is not None:
            self._index.discard(view.key.filter)

    def events(self, changes: Iterable[Change], pause: Callable[[], None]) -> dict[View, list[Event]]:
        """Return what each view gets of ``changes``. Raises :class:`RestartError`."""
        found: dict[View, list[Event]] = {}
        for change in changes:
            if not is_usable(change):
                continue
            old, new = self._matching(change.old_reader, pause), self._matching(change.new_reader, pause)
            old_known = change.old_reader is not None or change.op == "INSERT"
            forms: dict[tuple[str, ...] | None, Plain] = {}
            for filter, views in self._of_filter.items() if not old_known else self._views_of(old | new | {None}):
                matches = {
                    "old_matches": filter is None or not old_known or filter in old,
                    "new_matches": filter is None or filter in new,
                }
                for view in views:
                    columns = view.key.columns
                    if columns not in forms:
                        forms[columns] = Plain(change, columns)
                    event = forms[columns].event(**matches)
                    if event is not None:
                        found.setdefault(view, []).append(event)
            pause()
        return found

    def _views_of(self, filters: Iterable[Filter | None]) -> Iterable[tuple[Filter | None, set[View]]]:
        return [(filter, self._of_filter[filter]) for filter in filters if filter in self._of_filter]

    def _matching(self, reader: Reader | None, pause: Callable[[], None]) -> set[Filter | None]:
        if reader is None or not self._index:
            return set()
        reader.pause = pause
        found: set[Filter | None] = set(self._index.matching(reader))
        for filter, steps in self._index.due(reader, self.least_due):
            self._charge(filter, steps)
        return found


def is_usable(change: Change) -> bool:
    """Return whether a change is one of a watch. Raises :class:`RestartError` if it stands for rows that it lacks."""
    if change.valid and change.truncated is not None:
        raise RestartError(change.truncated if change.truncated in ("many_rows", "too_large") else "no_json")
    return change.valid


class Touched:
    """The rows that changes have touched: each counts at its last change only, because it is selected as it is now.

    ``keys`` are their keys, to be selected.
    """

    def __init__(self, changes: Iterable[Change]) -> None:
        last: dict[str, int] = {}
        pks: dict[str, dict[str, Any]] = {}
        #: Each change with the keys that it touches, as texts.
        touched: list[tuple[Change, list[str]]] = []
        for change in changes:
            if not is_usable(change):
                continue
            texts = []
            for pk in () if change.op == "TRUNCATE" else (change.old_pk, change.pk):
                text = key_text([pk[name] for name in change.key])
                if text not in texts:
                    texts.append(text)
                pks[text] = pk
                last[text] = len(touched)
            touched.append((change, texts))
        self.texts = list(pks)
        self.keys = list(pks.values())
        self._number = {text: number for number, text in enumerate(pks)}
        self._touched = [
            (change, [text for text in texts if last[text] == index]) for index, (change, texts) in enumerate(touched)
        ]

    def events(
        self, seen: Mapping[int, str], keys: set[str], filter: Filter | None, charge: Callable[[Filter, int], None]
    ) -> list[Event]:
        """Return what a client gets that has the rows with ``keys`` (which is updated), and sees the rows ``seen``."""
        found = []
        for change, texts in self._touched:
            if change.op == "TRUNCATE":
                keys.clear()
                found.append(change.event(change.message.payload_json))
            for text in texts:
                number = self._number[text]
                row = seen.get(number)
                if row is not None and filter is not None and not _holds(filter, row, charge):
                    row = None
                if row is not None:
                    found.append(_present(change, self.keys[number], row, entered=text not in keys))
                    keys.add(text)
                elif text in keys:
                    keys.discard(text)
                    found.append(change.left(self.keys[number]))
        return found


def _holds(filter: Filter, row: str, charge: Callable[[Filter, int], None]) -> bool:
    reader = Reader(row)
    matches = filter.holds(reader, reader.values)
    for spent, steps in reader.spent:
        charge(spent, steps)
    return matches


def _present(change: Change, pk: Mapping[str, object], row: str, *, entered: bool) -> Event:
    """Return the event for a row as a client sees it now."""
    op = "INSERT" if entered else "UPDATE"
    more = ', "entered": true' if entered and change.op != "INSERT" else ""
    return change.event(
        f'{{"op": "{op}", {change.envelope}, "pk": {exact.dumps(pk)}, "new": {row}, "old": null{more}}}'
    )
