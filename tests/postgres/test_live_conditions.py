"""The SQL condition of a filter lets all rows through that the filter lets through, whatever types and values are."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from socketio_pg.pubsub.filters import Reader, parse_filter
from socketio_pg.tables.definition import Column, Definition, Rights
from socketio_pg.tables.reading import Query, select
from tests.support.postgres import Cluster

TYPES = {
    "i2": "smallint", "i4": "integer", "i8": "bigint", "n": "numeric", "f4": "real", "f8": "double precision",
    "t": "text", "v": "character varying", "c": "character(5)", "b": "boolean", "d": "date",
    "z": "timestamp with time zone", "j": "jsonb", "a": "integer[]", "50%$ \"é\\": "text",
}  # fmt: skip
VALUES: dict[str, list[str]] = {
    "i2": ["0", "5", "-3", "32767"], "i4": ["0", "5", "2147483647"],
    "i8": ["0", "5", "9007199254740993", "9007199254740992", "-9223372036854775808"],
    "n": ["0", "5", "5.00", "0.1", "0.1000000000000000055", "1e400", "-1e-400", "NaN", "9007199254740993", "1e22"],
    "f4": ["0.1", "5", "NaN", "Infinity"], "f8": ["0.1", "5", "-0", "1e308", "NaN"],
    "t": ["", "a", "A", "ä", "\U0001f600", "￿", "5", "a%", "line\nline", "true"],
    "v": ["", "a", "ab"], "c": ["a", "ab"], "b": ["true", "false"], "d": ["2026-11-24", "infinity"],
    "z": ["2026-11-24 10:00:00.5+02"],
    "j": ['{"k": 5, "l": [1, {"m": "x"}]}', '"a"', "5", "null", "[5]", '{"k": null}', '{"0": "a", "k.k": 1}'],
    "a": ["{5,6}", "{}"], "50%$ \"é\\": ["a"],
}  # fmt: skip
SCALARS = [None, True, False, 0, 5, 5.0, -0.0, 0.1, 5.5, 2**53, 2**53 + 1, 2**63, 1e22, 1e308, -1e308, 5e-324, -3,
           "", "a", "A", "ä", "\U0001f600", "￿", "5", "a\0b", "2026-11-24", "2026-11-24T08:00:00.5+00:00"]  # fmt: skip
PATTERNS = ["%", "a", "a%", "_", "%n%", "\\%", "a\0", ""]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture(scope="module")
def table(postgres: Cluster) -> Iterator[Any]:
    postgres.sql("DROP TABLE IF EXISTS live_conditions")
    columns = ", ".join(f"{quoted(name)} {type}" for name, type in TYPES.items())
    connection = postgres.connect()
    with connection.cursor() as cursor:
        cursor.execute(f"SET TimeZone = 'UTC'; CREATE TABLE live_conditions (id serial PRIMARY KEY, {columns})")
        cursor.execute("INSERT INTO live_conditions DEFAULT VALUES")
        for name, values in VALUES.items():
            cursor.executemany(
                f"INSERT INTO live_conditions ({quoted(name).replace('%', '%%')}) VALUES (%s)",
                [[value] for value in values],
            )
    yield connection
    connection.close()


ESCAPED = {name: name.replace("\\", "\\\\").replace(".", "\\.") for name in TYPES}
PATHS = st.sampled_from([*ESCAPED.values(), "j.k", "j.l", "j.l.1.m", "j.0", "j.k\\.k", "a.0", "t.x"])
CONDITIONS = st.one_of(
    st.sampled_from(SCALARS),
    st.lists(st.sampled_from(SCALARS), min_size=1, max_size=3),
    st.dictionaries(
        st.sampled_from(["ne", "eq"]), st.sampled_from(SCALARS), min_size=1),
    st.dictionaries(st.sampled_from(["lt", "lte", "gt", "gte"]),
        st.sampled_from([one for one in SCALARS if one is not None and not isinstance(one, bool)]), min_size=1),
    st.sampled_from(PATTERNS).map(lambda pattern: {"like": pattern}),
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(PATHS, CONDITIONS, min_size=1, max_size=2))
def test_no_matching_row_is_left_out(table: Any, where: dict[str, Any]) -> None:
    bases = {"character(5)": "character"}
    columns = [Column("id", '"id"', 1, "integer", "integer")]
    for number, (name, type) in enumerate(TYPES.items(), 2):
        columns.append(Column(name, quoted(name), number, type, bases.get(type, type)))
    definition = Definition("x", 1, "ONLY live_conditions", "x", ("id",), tuple(columns), True, True, True, "")
    rights = Rights(tuple(column.name for column in columns), True, False)
    filter = parse_filter(where)
    assert filter is not None

    def rows(filter: Any) -> dict[int, str]:
        statement, parameters = select(definition, Query(filter, (), None), rights, None)
        with table.cursor() as cursor:
            cursor.execute(statement, parameters)
            return {json.loads(key)[0]: row for row, key in cursor.fetchall()}

    def holds(row: str) -> bool:
        reader = Reader(row)
        return filter.holds(reader, reader.values)

    everything, found = rows(None), rows(filter)
    matching = {id for id, row in everything.items() if holds(row)}
    assert matching <= found.keys(), (where, [everything[id] for id in matching - found.keys()])
