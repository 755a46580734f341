"""The TypeScript type of a value as it arrives in JSON, which is that of ``to_jsonb()``. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass

from socketio_pg.typescript.catalog import Catalog, Column, Type
from socketio_pg.typescript.names import Identifiers, comment, declared_name, property_name, string, union

JSON = "Json"
#: Numbers that have no JSON: they arrive as these strings.
NON_FINITE = ('"NaN"', '"Infinity"', '"-Infinity"')
#: The most decimal digits with which every integer is at most 2^53 - 1.
SAFE_DIGITS = 15

_SMALL = ("int2", "int4")
_FLOATS = ("float4", "float8")


@dataclass(frozen=True, slots=True)
class Options:
    """``integers``: how the client reads integers above 2^53, ``number``, ``string`` or ``bigint``.

    ``non_finite``: types of numbers that may be NaN or infinite include these strings.
    """

    integers: str = "number"
    non_finite: bool = False


class Values:
    """The types of values, and the declarations that they need: one for each enum and each composite type."""

    def __init__(self, catalog: Catalog, identifiers: Identifiers, options: Options) -> None:
        self._types = catalog.types
        self._options = options
        self._names = self._named((column.type for table in catalog.tables for column in table.sent), identifiers)
        #: Whether a type that was asked for contains :data:`JSON`.
        self.needs_json = False

    def type(self, column: Column) -> str:
        """Return the type of a column's values, with ``null`` unless it cannot be."""
        text, nullable = self._column(column)
        return text if column.required or not nullable else union([text, "null"])

    def placeholder(self, column: Column) -> list[str]:
        """Return what may stand for a placeholder in a channel: texts, or ``${number}`` or ``${string}``."""
        base = self._base(column.type)
        labels = column.labels or self._types[column.type].labels or base.labels
        if labels and (base.kind == "enum" or _is_text(base)) and not any("${" in label for label in labels):
            return list(labels)
        if base.builtin and base.name in (*_SMALL, "int8", "numeric", *_FLOATS):
            return ["${number}"]
        return ["true", "false"] if base.builtin and base.name == "bool" else ["${string}"]

    def declarations(self) -> list[str]:
        """Return the declarations of enums and composite types, in the order of their names in the database."""
        made = []
        for id, name in self._names.items():
            one = self._types[id]
            title = f"/** {comment(f'{one.schema}.{one.name}')} */"
            if one.kind == "enum":
                made.append(f"{title}\nexport type {name} = {union(map(string, one.labels or ()))};")
            else:
                lines = [self.property(attribute) for attribute in one.attributes]
                made.append("\n".join([title, f"export interface {name} {{", *lines, "}"]))
        return made

    def property(self, column: Column) -> str:
        """Return the lines of an interface for a column, or for an attribute of a composite type."""
        note = comment(column.shown_type)
        if column.comment:
            note = f"{comment(column.comment)} ({note})"
        return f"  /** {note} */\n  {property_name(column.name)}: {self.type(column)};"

    # -- types ---------------------------------------------------------------------------------------------------------

    def _column(self, column: Column) -> tuple[str, bool]:
        """Return the type of a value, and whether a column of this type may be NULL."""
        one = self._types[column.type]
        if column.labels is not None and _is_text(self._base(column.type)):
            return union(map(string, column.labels)), not one.required
        return self._value(one, column.modifier, column.dimensions)

    def _value(self, one: Type, modifier: int, dimensions: int) -> tuple[str, bool]:
        if one.kind == "domain":
            inner = self._types[one.inner]
            text, nullable = self._value(inner, one.modifier, one.dimensions)
            if one.labels is not None and _is_text(self._base(one.inner)):
                text = union(map(string, one.labels))
            return text, nullable and not one.required
        if one.kind == "array":
            element, nullable = self._value(self._types[one.inner], -1, 0)
            text = union([element, "null"]) if nullable else element
            return (f"({text})" if " | " in text else text) + "[]" * max(1, dimensions), True
        return self._scalar(one, modifier), True

    def _scalar(self, one: Type, modifier: int) -> str:
        if one.id in self._names:
            return self._names[one.id]
        if self._is_text_of_another_role(one):
            return union(map(string, one.labels)) if one.labels is not None else "string"
        if one.has_cast or (one.builtin and one.name in ("json", "jsonb")):
            self.needs_json = True
            return JSON
        if not one.builtin:
            return "string"
        if one.name == "bool":
            return "boolean"
        if one.name in _SMALL:
            return "number"
        if one.name == "int8":
            return self._integer()
        if one.name in _FLOATS:
            return self._float()
        if one.name == "numeric":
            return self._numeric(modifier)
        return "string"

    def _integer(self) -> str:
        return union(["number", self._options.integers])

    def _float(self) -> str:
        return union(["number", *(NON_FINITE if self._options.non_finite else ())])

    def _numeric(self, modifier: int) -> str:
        precision, scale = ((modifier - 4) >> 16 & 0xFFFF, (modifier - 4) & 0x7FF) if modifier >= 4 else (None, 0)
        scale = scale - 2048 if scale > 1023 else scale
        is_safe = precision is not None and (scale > 0 or precision - scale <= SAFE_DIGITS)
        special = NON_FINITE if precision is None else NON_FINITE[:1]
        return union(["number" if is_safe else self._integer(), *(special if self._options.non_finite else ())])

    def _base(self, id: int) -> Type:
        """Return a type, or the base type of a domain."""
        one = self._types[id]
        return self._base(one.inner) if one.kind == "domain" else one

    def _is_text_of_another_role(self, one: Type) -> bool:
        """Return whether the watch sends a text in place of JSON, because the type has code of a role without trust."""
        if one.builtin:
            return False
        if one.kind in ("domain", "array"):
            return self._is_text_of_another_role(self._types[one.inner])
        inside = (self._types[attribute.type] for attribute in one.attributes)
        return not one.trusted or any(map(self._is_text_of_another_role, inside))

    def _named(self, ids: Iterable[int], identifiers: Identifiers) -> dict[int, str]:
        """Return the names of the enums and composite types in values of these types, in the order of their names."""
        found: dict[int, Type] = {}
        waiting = list(ids)
        while waiting:
            one = self._types[waiting.pop()]
            if one.kind in ("domain", "array"):
                waiting.append(one.inner)
            elif one.id not in found and (
                (one.kind == "enum" and not one.has_cast)
                or (one.kind == "composite" and not self._is_text_of_another_role(one))
            ):
                found[one.id] = one
                waiting.extend(attribute.type for attribute in one.attributes)
        ordered = sorted(found.values(), key=lambda one: (one.schema, one.name))
        return {one.id: identifiers.take(declared_name(one.schema, one.name)) for one in ordered}


def _is_text(one: Type) -> bool:
    return one.builtin and one.name in ("text", "varchar")
