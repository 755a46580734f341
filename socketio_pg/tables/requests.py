"""The request of a client that subscribes to a live table. Pure, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.errors import InvalidRequestError

#: Maximum columns in ``order``, and characters of a name.
MAX_ORDER, MAX_ID, MAX_TABLE = 8, 63, 200


@dataclass(frozen=True, slots=True)
class Order:
    """A column that sorts the rows."""

    column: str
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """The name of a subscription for its client: of the table, and the client's own."""

    table: str
    id: str | None = None

    def to_wire(self) -> dict[str, str]:
        return {"table": self.table} if self.id is None else {"table": self.table, "id": self.id}


def requested_place(request: Mapping[str, Any]) -> Place:
    """Return the subscription that a request names. Raises :class:`InvalidRequestError`."""
    for name in ("channel", "channels"):
        if name in request:
            raise InvalidRequestError(f"table and {name} do not go together")
    table, id = request.get("table"), request.get("id")
    if not isinstance(table, str) or not _is_text(table, MAX_TABLE) or "." not in table[1:-1]:
        raise InvalidRequestError("table must be the name of a table with its schema, like public.orders")
    if id is not None and (not isinstance(id, str) or not _is_text(id, MAX_ID)):
        raise InvalidRequestError(f"id must be a text of 1 to {MAX_ID} characters")
    return Place(table, id)


def requested_order(request: Mapping[str, Any]) -> tuple[Order, ...]:
    """Return the columns by which a request sorts the rows. Raises :class:`InvalidRequestError`."""
    value = request.get("order")
    items = value if isinstance(value, list) else [] if value is None else [value]
    if len(items) > MAX_ORDER:
        raise InvalidRequestError(f"order has {len(items)} columns; at most {MAX_ORDER} are allowed")
    return tuple(map(_order, items))


def requested_limit(request: Mapping[str, Any], most: int) -> int | None:
    """Return the number of rows that a request is limited to. Raises :class:`InvalidRequestError`."""
    limit = request.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= most):
        raise InvalidRequestError(f"limit must be a whole number from 1 to {most}")
    return limit


def _order(item: object) -> Order:
    column, descending = (item.get("column"), item.get("desc", False)) if isinstance(item, dict) else (item, False)
    if not isinstance(column, str) or not isinstance(descending, bool):
        raise InvalidRequestError('order must be a column, or like {"column": "created_at", "desc": true}')
    return Order(column, descending)


def _is_text(text: str, most: int) -> bool:
    """Return whether a name is valid Unicode without control characters, and neither empty nor too long."""
    return 0 < len(text) <= most and text.isprintable()
