"""The part of a list that somebody wants to see: searched, sorted, limited. Pure, no I/O."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from socketio_pg.core.channels import match_pattern
from socketio_pg.core.patterns import is_pattern

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows with ``search`` in them (empty: all), by the column ``sort``; ``limit`` of them, without the first
    ``offset``.
    """

    search: str = ""
    sort: str = ""
    descending: bool = False
    limit: int = 50
    offset: int = 0

    @property
    def first(self) -> int:
        """The number of first rows that are needed."""
        return self.offset + self.limit

    def to_wire(self) -> dict[str, Any]:
        """Return it as JSON, for :meth:`from_wire`."""
        return asdict(self)

    @classmethod
    def from_wire(cls, found: Any) -> "Listing":
        """Return the listing of a JSON object. Raises TypeError for another version's."""
        return cls(**found)


def matches(search: str, texts: Iterable[str | None]) -> bool:
    """Return whether a search finds one of ``texts``: a part of it in any case, or the whole if it has a ``*``."""
    if not search:
        return True
    wanted = search.casefold()
    if is_pattern(wanted):
        return any(text is not None and match_pattern(wanted, text.casefold()) for text in texts)
    return any(text is not None and wanted in text.casefold() for text in texts)


def ordered(rows: Iterable[Row], key: Callable[[Row], Any], descending: bool, then: Callable[[Row], Any]) -> list[Row]:
    """Return rows in the order of ``key``; those with the key None come last. Equal ones are in the order of ``then``.

    All keys that are not None can be compared with each other.
    """
    known, unknown = [], []
    for row in sorted(rows, key=then):
        value = key(row)
        if value is None:
            unknown.append(row)
        else:
            known.append((value, row))
    known.sort(key=lambda pair: pair[0], reverse=descending)
    return [row for _, row in known] + unknown


def cut(rows: Sequence[Row], listing: Listing) -> list[Row]:
    """Return the wanted part of ordered rows."""
    return list(rows[listing.offset : listing.first])
