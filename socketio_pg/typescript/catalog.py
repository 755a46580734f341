"""Reads from the database what the declarations need: watches, columns of watched tables, and the types of these."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.postgres.database import fetch
from socketio_pg.typescript.checks import permitted_labels

OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, or an attribute of a composite type.

    ``type`` is the oid of its type, ``modifier`` its typmod, ``shown_type`` both as PostgreSQL writes them.
    ``dimensions``: those with which an array was declared. ``required``: it is NOT NULL. ``labels``: the only texts
    that a CHECK constraint permits.
    """

    name: str
    number: int
    type: int
    modifier: int
    dimensions: int
    shown_type: str
    required: bool = False
    comment: str | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Type:
    """A type. ``kind``: ``base``, ``array``, ``domain``, ``composite`` or ``enum``.

    ``inner`` is the type of an array's elements, or a domain's base type. ``builtin``: it is part of PostgreSQL.
    ``trusted``: watches use its owner's casts; otherwise its values are texts. ``has_cast``: a cast to json is its
    owner's, so that the JSON may be anything.
    """

    id: int
    schema: str
    name: str
    kind: str
    inner: int
    modifier: int
    dimensions: int
    required: bool
    builtin: bool
    trusted: bool
    has_cast: bool
    labels: tuple[str, ...] | None
    attributes: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Watch:
    """A watch. ``parts``: the channel as literal text and names of columns in turn, if it has placeholders.

    ``shown`` and ``key`` are names of columns in the order of the table; ``key`` is None if messages have none.
    ``problem``: why the watch sends no rows.
    """

    channel: str
    parts: tuple[str, ...] | None
    operations: tuple[str, ...]
    shown: tuple[str, ...]
    key: tuple[str, ...] | None
    sends_old: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A watched table with its columns and its watches, in the order of their channels."""

    schema: str
    name: str
    comment: str | None
    columns: tuple[Column, ...]
    watches: tuple[Watch, ...]

    @property
    def sent(self) -> tuple[Column, ...]:
        """The columns that are in the messages of a watch, in the order of the table."""
        names = {name for watch in self.watches for name in (*watch.shown, *(watch.key or ()))}
        return tuple(column for column in self.columns if column.name in names)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The watched tables in the order of their names, and all types of their columns by oid."""

    tables: tuple[Table, ...]
    types: Mapping[int, Type]


_WATCHES = """
    SELECT w.relation::bigint, n.nspname::text, c.relname::text, obj_description(c.oid, 'pg_class'),
        w.spec::text, w.operations, ARRAY(SELECT k.number::integer FROM pg_index AS i
            CROSS JOIN unnest((i.indkey::smallint[])[0 : i.indnkeyatts - 1]) AS k (number)
            WHERE i.indrelid = c.oid AND i.indisprimary)
    FROM (
        SELECT t.relation, t.spec, array_agg(t.operation::text) AS operations
        FROM socketio_pg.watch_triggers AS t GROUP BY t.relation, t.spec
    ) AS w JOIN pg_class AS c ON c.oid = w.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
"""

# A column is NOT NULL also while older rows have not been validated (PostgreSQL 18).
_COLUMNS = """
    SELECT a.attrelid::bigint, a.attname::text, a.attnum::integer, a.atttypid::bigint, a.atttypmod, a.attndims::integer,
        format_type(a.atttypid, a.atttypmod), a.attnotnull AND NOT EXISTS (
            SELECT FROM pg_constraint AS k WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND NOT k.convalidated
                AND a.attnum = ANY (k.conkey)),
        col_description(a.attrelid, a.attnum), quote_ident(a.attname),
        ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint AS k
            WHERE k.conrelid = a.attrelid AND k.contype = 'c' AND k.convalidated AND k.conkey = ARRAY[a.attnum]
            ORDER BY k.conname)
    FROM pg_attribute AS a WHERE a.attrelid = ANY (%s::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
"""

# As to_jsonb() and the watch's trigger see types: see socketio_pg.watch_list().
_TYPES = """
    WITH RECURSIVE part (id) AS (
        SELECT unnest(%s::bigint[]::oid[])
        UNION
        SELECT inside.id FROM part AS p JOIN pg_type AS t ON t.oid = p.id CROSS JOIN LATERAL (
            SELECT CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END
            WHERE t.typtype = 'd' OR (t.typelem <> 0 AND t.typlen = -1 AND t.typcategory = 'A')
            UNION ALL
            SELECT a.atttypid FROM pg_attribute AS a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS inside (id)
    )
    SELECT t.oid::bigint, n.nspname::text, t.typname::text,
        CASE WHEN t.typtype = 'd' THEN 'domain' WHEN t.typtype = 'c' THEN 'composite' WHEN t.typtype = 'e' THEN 'enum'
            WHEN t.typelem <> 0 AND t.typlen = -1 AND t.typcategory = 'A' THEN 'array' ELSE 'base' END,
        (CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END)::bigint, t.typtypmod, t.typndims,
        t.typnotnull, t.oid < 16384, t.oid < 16384 OR socketio_pg.trusts(t.typowner),
        t.oid >= 16384 AND EXISTS (SELECT FROM pg_cast AS c
            WHERE c.castsource = t.oid AND c.casttarget = 'json'::regtype AND c.castmethod = 'f'),
        CASE WHEN t.typtype = 'e' THEN ARRAY(
            SELECT e.enumlabel::text FROM pg_enum AS e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) END,
        ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint AS k
            WHERE k.contypid = t.oid AND k.contype = 'c' AND k.convalidated ORDER BY k.conname),
        (SELECT jsonb_agg(jsonb_build_array(a.attname, a.attnum, a.atttypid::bigint, a.atttypmod, a.attndims,
                format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)::text
            FROM pg_attribute AS a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)
    FROM part AS p JOIN pg_type AS t ON t.oid = p.id JOIN pg_namespace AS n ON n.oid = t.typnamespace
"""


def read(connection: Any, schemas: Sequence[str] | None) -> Catalog:
    """Return the watched tables of ``schemas``, or of all schemas.

    Raises as :func:`~socketio_pg.postgres.database.fetch`.
    """
    found: dict[int, tuple[str, str, str | None, list[tuple[dict[str, Any], list[str], list[int]]]]] = {}
    for relation, schema, name, comment, spec, operations, key in fetch(connection, _WATCHES):
        parsed = _watch_spec(spec)
        if parsed is not None and (schemas is None or schema in schemas):
            found.setdefault(relation, (schema, name, comment, []))[3].append((parsed, operations, key))
    columns: dict[int, list[Column]] = {relation: [] for relation in found}
    for relation, name, number, kind, modifier, dimensions, shown, required, comment, quoted, checks in fetch(
        connection, _COLUMNS, list(found)
    ):
        labels = permitted_labels(checks, quoted)
        columns[relation].append(Column(name, number, kind, modifier, dimensions, shown, required, comment, labels))
    tables = [
        Table(schema, name, comment, tuple(columns[relation]), _watches(relation, columns[relation], watches))
        for relation, (schema, name, comment, watches) in found.items()
    ]
    types = {column.type for one in columns.values() for column in one}
    return Catalog(tuple(sorted(tables, key=lambda table: (table.schema, table.name))), _types(connection, types))


def _watch_spec(text: str | None) -> dict[str, Any] | None:
    """Return the definition of a watch; None for a trigger that a role has made itself with something else."""
    spec = json.loads(text) if text is not None else None
    if not isinstance(spec, dict) or not isinstance(spec.get("channel"), str):
        return None
    lists = [spec.get(name) for name in ("parts", "columns", "exclude", "numbers")]
    return spec if all(one is None or isinstance(one, list) for one in lists) else None


def _watches(
    relation: int, columns: Sequence[Column], found: Sequence[tuple[dict[str, Any], list[str], list[int]]]
) -> tuple[Watch, ...]:
    made = [_watch(relation, columns, *one) for one in found]
    return tuple(sorted(made, key=lambda watch: watch.channel))


def _watch(
    relation: int, columns: Sequence[Column], spec: Mapping[str, Any], operations: Sequence[str], key: Sequence[int]
) -> Watch:
    """Return a watch with the columns that ``socketio_pg.watch_columns()`` would return."""
    wanted, excluded = spec.get("columns"), spec.get("exclude") or ()
    names, problem = {column.name for column in columns}, None
    # A column that was renamed stays excluded, by its number, which is meaningless after a dump and restore.
    is_original = spec.get("relation") in (relation, str(relation))
    numbers = set(spec.get("numbers") or ()) if is_original else set()
    if not is_original and not names.issuperset(excluded):
        problem = "an excluded column no longer exists, or was renamed: call watch() again"
    usable = [column for column in columns if column.name not in excluded and column.number not in numbers]
    shown = tuple(column.name for column in usable if wanted is None or column.name in wanted)
    parts = tuple(map(str, spec.get("parts") or ())) or None
    if parts and not {column.name for column in usable}.issuperset(parts[1::2]):
        problem = "a placeholder of the channel is an excluded column, or no column any more: call watch() again"
    return Watch(
        spec["channel"], parts, tuple(one for one in OPERATIONS if one in operations), shown,
        tuple(column.name for column in usable if column.number in key) or None, spec.get("old") is not False, problem,
    )  # fmt: skip


def _types(connection: Any, ids: set[int]) -> dict[int, Type]:
    types = {}
    for *head, labels, checks, attributes in fetch(connection, _TYPES, sorted(ids)):
        id, schema, name, kind, inner, modifier, dimensions, required, builtin, trusted, has_cast = head
        permitted = tuple(labels) if labels is not None else permitted_labels(checks, "VALUE")
        inside = tuple(Column(*one) for one in json.loads(attributes or "[]"))
        types[id] = Type(
            id, schema, name, kind, inner, modifier, dimensions, required, builtin, trusted, has_cast, permitted, inside
        )
    return types
