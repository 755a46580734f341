"""A change of a watched table, as a client gets it that sees some columns, and rows that match its filter. Pure.

The message of the watch is parsed once for all clients, and only if its text cannot be sent as it is.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.messages import EncodedMessage, parse_rounded
from socketio_pg.pubsub.filters import Reader
from socketio_pg.tables import exact

_OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


@dataclass(frozen=True, slots=True)
class Event:
    """A change as a client gets it: the text of the payload, and the message's place in the log."""

    payload: str
    position: int
    published_at: str | None


class Change:
    """A message of a watch. ``key`` names the columns of the primary key; ``sends_old``: the watch sends old rows.

    A message that a watch has not sent is not :attr:`valid`, and says nothing.
    """

    def __init__(self, message: EncodedMessage, key: Sequence[str], *, sends_old: bool) -> None:
        assert message.position is not None
        self.message = message
        self.position: int = message.position
        self.key = key
        self._sends_old = sends_old
        try:
            # For filters, with numbers as they read them.
            self._read: Any = parse_rounded(message.payload_json)
        except (ValueError, RecursionError):
            self._read = None
        found = self._read if isinstance(self._read, dict) else {}
        if isinstance(self._read, str) and message.payload_json.startswith("{"):  # nested too deeply
            found = {"op": "UPDATE", "truncated": True, "reason": "no_json"}
        self.op: str = found.get("op") if found.get("op") in _OPERATIONS else ""  # type: ignore[assignment]
        #: Why the message does not have the row; None if it does.
        self.truncated: str | None = str(found.get("reason")) if found.get("truncated") is True else None
        self.valid = bool(self.op) and (self.truncated is not None or self._is_complete(found))
        changed = found.get("changed")
        self._changed: list[Any] = changed if isinstance(changed, list) else []

    def _is_complete(self, found: dict[str, Any]) -> bool:
        if self.op == "TRUNCATE":
            return True
        pk, new, old = found.get("pk"), found.get("new"), found.get("old")
        if not isinstance(pk, dict) or not all(name in pk for name in self.key):
            return False
        return (isinstance(new, dict) or self.op == "DELETE") and (old is None or isinstance(old, dict))

    @property
    def changes_key(self) -> bool:
        """Whether an UPDATE has changed the primary key."""
        return self.op == "UPDATE" and any(name in self._changed for name in self.key)

    def changes_any(self, columns: Sequence[str]) -> bool:
        """Return whether an UPDATE has changed one of ``columns``."""
        return any(name in columns for name in self._changed)

    @functools.cached_property
    def exact(self) -> dict[str, Any]:
        """The message with numbers as :class:`exact.Number`. Raises ValueError or RecursionError."""
        found: dict[str, Any] = exact.loads(self.message.payload_json)
        return found

    @property
    def pk(self) -> dict[str, Any]:
        """The key of the row, after the change if it still exists. Exact."""
        pk: dict[str, Any] = self.exact["pk"]
        return pk

    @property
    def old_pk(self) -> dict[str, Any]:
        """The key of the row before the change. Exact."""
        old = self.exact.get("old")
        if not self.changes_key or old is None:
            return self.pk
        return {name: old.get(name) for name in self.key}

    @functools.cached_property
    def old_reader(self) -> Reader | None:
        """Reads the row before the change; None if it is not known, or there was none."""
        old = self._read.get("old")
        return Reader.over(old) if self._sends_old and old is not None else None

    @functools.cached_property
    def new_reader(self) -> Reader | None:
        """Reads the row after the change; None if there is none."""
        new = self._read.get("new")
        return None if new is None else Reader.over(new)

    @functools.cached_property
    def envelope(self) -> str:
        """The fields of the message that do not depend on the row, as JSON without braces."""
        fields = {name: self.exact.get(name) for name in ("schema", "table", "at", "txid")}
        return exact.dumps(fields | {"changed": []})[1:-1]

    def event(self, payload: str) -> Event:
        return Event(payload, self.position, self.message.published_at)

    def built(self, **fields: Any) -> Event:
        """Return the message with other ``fields``."""
        return self.event(exact.dumps(self.exact | fields))

    def left(self, pk: dict[str, Any]) -> Event:
        """Return the event for a client that does not see a row any more, by its key alone."""
        more = {} if self.op == "DELETE" else {"left": True}
        return self.built(op="DELETE", pk=pk, new=None, old=None, changed=[], **more)


class Plain:
    """Makes what clients get of ``change`` without row-level security: they see ``columns``; None for all of them."""

    def __init__(self, change: Change, columns: Sequence[str] | None) -> None:
        self._change = change
        self._columns = columns

    def event(self, *, old_matches: bool, new_matches: bool) -> Event | None:
        """Return what a client gets of the change; None if nothing.

        ``old_matches``: the row fulfilled the client's filter before, or this is not known. ``new_matches``: now.
        """
        change = self._change
        if change.op == "TRUNCATE":
            return change.event(change.message.payload_json)
        if change.op == "INSERT":
            return self._same if new_matches else None
        if change.op == "DELETE":
            return self._same if old_matches else None
        if new_matches:
            return self._same if old_matches else self._entered
        return self._left if old_matches else None

    @functools.cached_property
    def _same(self) -> Event | None:
        change = self._change
        if self._columns is None and not change.changes_key:
            return change.event(change.message.payload_json)
        columns = self._columns
        if columns is not None and change.op == "UPDATE" and not change.changes_any(columns):
            return None
        more: dict[str, Any] = {"old_pk": change.old_pk} if change.changes_key else {}
        if change.op == "UPDATE":
            more["changed"] = [name for name in change.exact["changed"] if self._shows(name)]
        return change.built(new=self._pick("new"), old=self._pick("old"), **more)

    @functools.cached_property
    def _entered(self) -> Event:
        return self._change.built(op="INSERT", new=self._pick("new"), old=None, changed=[], entered=True)

    @functools.cached_property
    def _left(self) -> Event:
        return self._change.left(self._change.old_pk)

    def _shows(self, name: str) -> bool:
        return self._columns is None or name in self._columns

    def _pick(self, field: str) -> dict[str, Any] | None:
        row = self._change.exact.get(field)
        return None if row is None else {name: value for name, value in row.items() if self._shows(name)}
