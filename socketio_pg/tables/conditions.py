"""A filter on rows as an SQL condition that all matching rows fulfil, and few others: it saves reading the others.

The filter itself decides, in Python, about rows and changes alike, so both have exactly one meaning. Values reach SQL
as parameters only, names come from the catalog. Pure, no I/O.
"""

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from socketio_pg.pubsub.filters import Filter
from socketio_pg.tables.definition import Column

_INTEGERS = ("smallint", "integer", "bigint")
_TEXTS = ("text", "character varying")
_INDEX = re.compile(r"[-+]?\d+")
_ORDER = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}


class Conditions:
    """The SQL ``text``, in conditions on a row ``r``, and its ``parameters`` by name."""

    def __init__(self, filter: Filter | None, columns: Mapping[str, Column]) -> None:
        self.parameters: dict[str, Any] = {}
        parts = []
        if filter is not None:
            keys_of = {one.path: one.keys for one in filter.conditions}
            # The normal form of a filter: a list of path, operator and operand.
            for path, operator, operand in json.loads(filter.text):
                column, *inside = keys_of[path]
                parts.append(self._condition(columns[column], inside, operator, operand))
        self.text = " AND ".join(f"({part})" for part in parts if part != "true") or "true"

    def _parameter(self, value: Any, type: str) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        # In parentheses, because a cast comes before a minus: -9223372036854775808 would be out of range.
        return f"(%({name})s)::pg_catalog.{type}"

    def _condition(self, column: Column, path: list[str], operator: str, operand: Any) -> str:
        name = f"r.{column.escaped}"
        if not path:
            indexed = self._indexed(column.base, name, operator, operand)
            if indexed is not None:
                return indexed
        elif any("\0" in key or key.isdecimal() or _INDEX.fullmatch(key) for key in path):
            return "true"  # an index of a list, or a key of that name
        value = f"pg_catalog.to_jsonb({name})"
        if path:
            value = f"({value} OPERATOR(pg_catalog.#>) {self._parameter(path, 'text[]')})"
        if operator == "in":
            return " OR ".join(f"({self._equals(value, one)})" for one in operand)
        if operator == "ne":
            return self._differs(value, operand)
        if operator == "like":
            return self._text(value, "~~", operand)
        if isinstance(operand, str):
            return self._text(value, _ORDER[operator], operand)
        return self._number(value, operator, operand)

    def _equals(self, value: str, operand: Any) -> str:
        if operand is None:
            return f"{value} IS NULL OR {value} OPERATOR(pg_catalog.=) 'null'"
        if isinstance(operand, (str, bool)):
            if isinstance(operand, str) and "\0" in operand:
                return "false"  # no text has this character
            return f"{value} OPERATOR(pg_catalog.=) {self._parameter(json.dumps(operand), 'jsonb')}"
        return f"({self._number(value, 'gte', operand)}) AND ({self._number(value, 'lte', operand)})"

    def _differs(self, value: str, operand: Any) -> str:
        if isinstance(operand, str) and "\0" in operand:
            return "true"
        # A number that is equal as a decimal is also equal as it is read, rounded.
        differs = f"{value} OPERATOR(pg_catalog.<>) {self._parameter(json.dumps(operand), 'jsonb')}"
        return differs if operand is None else f"{value} IS NULL OR {differs}"

    def _text(self, value: str, operator: str, operand: str) -> str:
        """Compare the bytes of a text in UTF-8, which have the order of the code points."""
        if "\0" in operand:
            if operator == "~~":
                return "false"
            # No text has this character: it compares like what precedes it, which may be equal.
            operand, operator = operand.partition("\0")[0], "<=" if "<" in operator else ">="
        text = f"({value} OPERATOR(pg_catalog.#>>) '{{}}') COLLATE pg_catalog.\"C\""
        compared = f"{text} OPERATOR(pg_catalog.{operator}) {self._parameter(operand, 'text')}"
        return f"CASE pg_catalog.jsonb_typeof({value}) WHEN 'string' THEN {compared} ELSE false END"

    def _number(self, value: str, operator: str, operand: float) -> str:
        """Compare a number with some tolerance: the filter compares doubles, and integers of 64 bits."""
        bound = _bound(operator, operand)
        compared = "true"
        if bound is not None:
            sign = ">=" if operator.startswith("gt") else "<="
            compared = f"({value})::pg_catalog.numeric OPERATOR(pg_catalog.{sign}) {self._parameter(bound, 'numeric')}"
        return f"CASE pg_catalog.jsonb_typeof({value}) WHEN 'number' THEN {compared} ELSE false END"

    def _indexed(self, type: str, name: str, operator: str, operand: Any) -> str | None:
        """Return a condition that can use an index of the column; None if there is none."""
        if operator == "in" and type in _INTEGERS:
            if any(one is None or (isinstance(one, float) and abs(one) >= 2**53) for one in operand):
                return None
            # The column has integers only: 5.0 is one of them, true and "5" are not.
            wanted = [int(one) for one in operand if type_of(one) == "number" and one == int(one)]
            wanted = [one for one in wanted if -(2**63) <= one < 2**63]
            return f"{name} OPERATOR(pg_catalog.=) ANY ({self._parameter(wanted, 'int8[]')})"
        if operator == "in" and type in _TEXTS and all(isinstance(one, str) for one in operand):
            texts = [one for one in operand if "\0" not in one]
            return f"{name} OPERATOR(pg_catalog.=) ANY ({self._parameter(texts, 'text[]')})"
        if operator in _ORDER and type in (*_INTEGERS, "numeric") and not isinstance(operand, str):
            bound = _bound(operator, operand)
            if bound is None:
                return None
            above = operator.startswith("gt")
            sign = ">=" if above else "<="
            if type == "numeric":
                return f"{name} OPERATOR(pg_catalog.{sign}) {self._parameter(bound, 'numeric')}"
            limit = math.floor(Decimal(bound)) if above else math.ceil(Decimal(bound))
            limit = min(max(limit, -(2**63)), 2**63 - 1)
            return f"{name} OPERATOR(pg_catalog.{sign}) {self._parameter(limit, 'int8')}"
        return None


def type_of(value: Any) -> str:
    """Return the JSON type of a value of a filter."""
    if value is None:
        return "null"
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def _bound(operator: str, value: float) -> str | None:
    """Return a decimal beyond all numbers that are read as ``value``; None if it would exceed the range of doubles."""
    towards = -math.inf if operator.startswith("gt") else math.inf
    near = math.nextafter(math.nextafter(float(value), towards), towards)
    return None if math.isinf(near) else format(Decimal(near), "f")
