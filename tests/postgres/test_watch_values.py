"""watch(): values of all types in messages, independent of the session's settings."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.postgres import Cluster
from tests.support.watching import WatchDatabase, watch_database


@pytest.fixture(scope="module")
def shared(postgres: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(postgres, "watch_values") as made:
        yield made


@pytest.fixture
def database(shared: WatchDatabase) -> WatchDatabase:
    """A database without tables, with user-defined types."""
    shared.sql(
        """DROP SCHEMA public CASCADE; CREATE SCHEMA public;
        CREATE TYPE mood AS ENUM ('sad', 'happy 😀');
        CREATE TYPE pair AS (x int, "y z" mood);
        CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
        -- Like PostGIS: a type with its own cast to JSON.
        CREATE TYPE place AS ENUM ('7.5 -1');
        CREATE FUNCTION place_json(place) RETURNS json LANGUAGE sql AS
            $$ SELECT json_build_object('type', 'Point', 'coordinates', string_to_array($1::text, ' ')::float8[]) $$;
        CREATE CAST (place AS json) WITH FUNCTION place_json(place)"""
    )
    shared.taken()
    return shared


@pytest.mark.parametrize(
    ("kind", "literal", "expected"),
    [
        ("boolean", "true", True),
        ("bigint", "9223372036854775807", 9223372036854775807),
        ("numeric", "'1234567890123456789012345678901234567890'", 1234567890123456789012345678901234567890),
        ("numeric", "'NaN'", "NaN"),
        ("float8", "0.1::float8 + 0.2", 0.30000000000000004),
        ("float8", "'-infinity'", "-Infinity"),
        ("text", "E'\\u00e9\\n\"\\\\\\u0001'", 'é\n"\\\x01'),
        ("char(3)", "'a'", "a  "),
        ("bytea", "'\\x00ff'", "\\x00ff"),
        ("uuid", "'00000000-0000-0000-0000-00000000000a'", "00000000-0000-0000-0000-00000000000a"),
        ("date", "'infinity'", "infinity"),
        ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
        ("timestamp", "'2026-01-02 03:04:05.678'", "2026-01-02T03:04:05.678"),
        ("timestamptz", "'2026-01-02 03:04:05.678+09'", "2026-01-01T18:04:05.678+00:00"),
        ("timestamptz", "'-infinity'", "-infinity"),
        ("interval", "'1 day -2 hours'", "1 day -02:00:00"),
        ("daterange", "'[2026-01-02,2026-02-03)'", "[2026-01-02,2026-02-03)"),
        ("json", "'{\"b\": 1.50, \"a\": [null]}'", {"a": [None], "b": 1.50}),
        ("int[]", "'{{1,2},{3,NULL}}'", [[1, 2], [3, None]]),
        ("mood", "'happy 😀'", "happy 😀"),
        ("mood[]", "'{sad}'", ["sad"]),
        ("pair", "(1, 'sad')", {"x": 1, "y z": "sad"}),
        ("pair[]", "ARRAY[(1, NULL)::public.pair]", [{"x": 1, "y z": None}]),
        ("positive", "1.50", 1.50),
        ("place", "'7.5 -1'", {"type": "Point", "coordinates": [7.5, -1]}),
        ("inet", "'::1/64'", "::1/64"),
        ("tsvector", "'b a'", "'a' 'b'"),
    ],
)  # fmt: skip
def test_values_have_the_expected_json(database: WatchDatabase, kind: str, literal: str, expected: Any) -> None:
    database.sql(f"CREATE TABLE things (id int PRIMARY KEY, v {kind})")
    database.watch("things")
    # The session's settings have no effect.
    database.sql(
        "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'; SET bytea_output = 'escape';"
        " SET extra_float_digits = -15;"
        "SET IntervalStyle = 'iso_8601'; SET search_path = public"
    )
    inserted, empty, updated = database.payloads(
        f"INSERT INTO things VALUES (1, {literal}); INSERT INTO things VALUES (2);"
        " UPDATE things SET v = NULL WHERE id = 1"
    )
    database.sql("RESET ALL")
    assert (inserted["new"]["v"], empty["new"]["v"], updated["old"]["v"], updated["new"]["v"]) == (
        expected,
        None,
        expected,
        None,
    )


def test_json_null_equals_null(database: WatchDatabase) -> None:
    database.sql("CREATE TABLE things (id int PRIMARY KEY, v jsonb); INSERT INTO things VALUES (1, 'null')")
    database.watch("things")
    assert database.sent("UPDATE things SET v = NULL") == []


def test_values_in_a_channel_are_text(database: WatchDatabase) -> None:
    database.sql("CREATE TABLE things (t text, n numeric(5, 2), b boolean, d date, j jsonb, m mood)")
    database.watch("things", "{t}|{n}|{b}|{d}|{j}|{m}")
    [(channel, _)] = database.sent("INSERT INTO things VALUES ('a\"b', 1.5, true, '2026-01-02', '[1]', 'sad')")
    assert channel == 'a"b|1.50|true|2026-01-02|[1]|sad'


def test_smallest_change_of_a_float_is_sent(database: WatchDatabase) -> None:
    database.sql("CREATE TABLE things (id int PRIMARY KEY, f float8); INSERT INTO things VALUES (1, 0.1)")
    database.watch("things")
    database.sql("SET extra_float_digits = -15")
    [payload] = database.payloads("UPDATE things SET f = 0.1::float8 + 1e-16")
    database.sql("RESET ALL")
    assert payload["changed"] == ["f"]


@pytest.mark.parametrize("per", ["statement", "row"])
def test_generated_columns_are_sent(database: WatchDatabase, per: str) -> None:
    """Also virtual ones (PostgreSQL 18), which have no value in a trigger: in rows, channels and conditions."""
    virtual = "VIRTUAL" if database.version >= 18 else "STORED"
    database.sql(
        "CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,"
        f" s int GENERATED ALWAYS AS (a * 2) STORED, v int GENERATED ALWAYS AS (a * 3) {virtual})"
    )
    database.watch("things", per=per)
    database.watch("things", "v{v}", per=per, columns=["v"], when="new.v > 3 OR old.v > 3")
    database.watch("things", "bulk{v}", bulk_limit=0, when="new.v > 3")
    for isolation in ("READ COMMITTED", "REPEATABLE READ"):
        sent = database.sent(
            f"BEGIN ISOLATION LEVEL {isolation}; INSERT INTO things (a) VALUES (1), (2); UPDATE things SET a = 5;"
            " DELETE FROM things WHERE a = 5; COMMIT"
        )
        rows = [payload for channel, payload in sent if channel == "table:public.things"]
        assert [(row["new"] or row["old"])["v"] for row in rows] == [3, 6, 15, 15, 15, 15]
        assert rows[2]["changed"] == ["a", "s", "v"]
        assert [(channel, payload["op"]) for channel, payload in sent if channel.startswith("v")] == [
            ("v6", "INSERT"), ("v3", "DELETE"), ("v15", "INSERT"), ("v6", "DELETE"), ("v15", "INSERT"),
            ("v15", "DELETE"), ("v15", "DELETE"),
        ]  # fmt: skip
        assert {payload["new"]["v"] for channel, payload in sent if channel == "v6" and payload["new"]} == {6}
        assert sorted(channel for channel, _ in sent if "bulk" in channel) == ["bulk15", "bulk3", "bulk6", "bulk6"]
        assert database.failures("public.things") == [0, 0, 0]
    if database.version >= 18:
        # Added later, and one that cannot be computed for some rows.
        database.sql("SELECT socketio_pg.unwatch('things', 'v{v}'), socketio_pg.unwatch('things', 'bulk{v}')")
        database.sql("ALTER TABLE things ADD d int GENERATED ALWAYS AS (100 / a)")
        sent = database.sent("INSERT INTO things (a) VALUES (50), (0)")
        rows = [payload for channel, payload in sent if channel == "table:public.things"]
        assert [row.get("reason") for row in rows] == (["no_json"] * 2 if per == "statement" else [None, "no_json"])
        assert all(row["pk"]["id"] for row in rows)
        assert database.failures("public.things") == [0]


NO_JSON = """
CREATE TYPE odd AS ENUM ('good', 'bad');
CREATE FUNCTION odd_json(odd) RETURNS json LANGUAGE plpgsql AS
    $$ BEGIN IF $1 = 'bad' THEN RAISE 'private'; END IF; RETURN to_json($1::text || '!'); END $$;
CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd);
CREATE TABLE things (id int, o odd, j json, k text DEFAULT '', PRIMARY KEY (id, o));
"""


@pytest.mark.parametrize("per", ["statement", "row"])
def test_row_without_json_is_sent_with_its_key(database: WatchDatabase, per: str) -> None:
    """The other rows of the statement are complete. A value in the key or the channel that has no JSON is a text."""
    database.sql(NO_JSON)
    database.watch("things", "all", per=per)
    database.watch("things", "c{o}", per=per, exclude=["j"], when="new.id < 4")
    database.watch("things", "k{k}", per=per, columns=["k"], old=False)
    zero = "'\"\\u0000\"'"
    sent = database.sent(
        f"INSERT INTO things VALUES (1, 'good', '1'), (2, 'good', {zero}), (3, 'bad', '3'), (4, 'good', NULL)"
    )
    assert database.warnings == []
    found = [payload for channel, payload in sent if channel == "all"]
    assert [(row["pk"]["id"], row.get("reason")) for row in found] == [
        (1, None),
        (2, "no_json"),
        (3, "no_json"),
        (4, None),
    ]
    assert found[0]["new"] == {"id": 1, "o": "good!", "j": 1, "k": ""}
    assert set(found[1]) == {"op", "schema", "table", "pk", "truncated", "reason", "at", "txid"}
    assert (found[1]["pk"], found[1]["truncated"]) == ({"id": 2, "o": "good!"}, True)
    assert found[2]["pk"] == {"id": 3, "o": "bad"}
    # An excluded value is not needed.
    ids = [(channel, row.get("reason"), (row.get("new") or {}).get("id")) for channel, row in sent if channel[0] == "c"]
    assert ids == [("cgood!", None, 1), ("cgood!", None, 2), ("cbad", "no_json", None)]
    assert [row.get("new") for channel, row in sent if channel[0] == "k"] == [{"k": ""}] * 4
    # The only change is one between values without JSON.
    sent = database.sent("UPDATE things SET j = '\"\\u0000 2\"' WHERE id = 2; UPDATE things SET j = '2' WHERE id = 2")
    assert [(channel, row["op"], row.get("reason")) for channel, row in sent] == [("all", "UPDATE", "no_json")] * 2
    sent = database.sent("UPDATE things SET k = 'x' WHERE id = 3; DELETE FROM things")
    operations = [(row["op"], row["pk"]["id"], row.get("reason")) for channel, row in sent if channel == "all"]
    assert (operations[0], sorted(operations[1:])) == (
        ("UPDATE", 3, "no_json"),
        [("DELETE", 1, None), ("DELETE", 2, None), ("DELETE", 3, "no_json"), ("DELETE", 4, None)],
    )
    assert database.failures("public.things") == [0, 0, 0]


def test_many_rows_without_json_are_summarised(database: WatchDatabase) -> None:
    database.sql(NO_JSON)
    database.watch(
        "things", "c{o}", bulk_limit=1, exclude=["k"], when="coalesce(new.id, old.id) < 6 AND new.o >= 'good'"
    )
    sent = database.sent(
        "INSERT INTO things VALUES (1, 'bad'), (2, 'good'), (3, 'bad'), (4, 'good'), (5, 'bad'), (6, 'bad');"
        " UPDATE things SET k = 'x'; UPDATE things SET j = '1' WHERE id < 4"
    )
    assert sorted((row["op"], channel, row["count"], row["reason"]) for channel, row in sent) == [
        ("INSERT", "cbad", 3, "many_rows"), ("INSERT", "cgood!", 2, "many_rows"),
        ("UPDATE", "cbad", 2, "many_rows"), ("UPDATE", "cgood!", 1, "many_rows"),
    ]  # fmt: skip
    assert database.failures("public.things") == [0]


def test_unchanged_toasted_values_are_sent(database: WatchDatabase) -> None:
    """The UPDATE does not rewrite them; they are read for the message."""
    database.sql(
        "CREATE TABLE things (id int PRIMARY KEY, n int, big text); ALTER TABLE things ALTER big SET STORAGE EXTERNAL"
    )
    database.sql("INSERT INTO things VALUES (1, 1, repeat('x', 20000))")
    database.watch("things")
    [payload] = database.payloads("UPDATE things SET n = 2")
    assert (len(payload["new"]["big"]), len(payload["old"]["big"]), payload["changed"]) == (20_000, 20_000, ["n"])


@pytest.mark.parametrize("columns", [1, 300])
def test_number_of_columns(database: WatchDatabase, columns: int) -> None:
    names = [f"c{number}" for number in range(columns)]
    database.sql(f"CREATE TABLE things ({' int, '.join(names)} int)")
    database.watch("things", exclude=names[1:2] or None)
    values = ", ".join(str(number) for number in range(columns))
    [payload] = database.payloads(f"INSERT INTO things VALUES ({values})")
    assert payload["new"] == {f"c{number}": number for number in range(columns) if number != 1}


@pytest.mark.parametrize("kind", ["int", "mood"])
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_columns_can_have_names_of_internal_variables(database: WatchDatabase, kind: str, isolation: str) -> None:
    """Also with a type that is not built in, and above READ COMMITTED: the trigger then reads rows in other ways."""
    names = [
        "new", "old", "new_rows", "old_rows", "r", "share", "passed", "kept", "number", "n", "o", "p__", "c", "spec",
        "key", "relation", "op", "olds", "news", "channel", "payload", "id", "size", "tier", "row", "unsent", "l", "k",
        "name",
    ]  # fmt: skip
    database.sql("CREATE TABLE things (" + ", ".join(f'"{name}" int' for name in names) + f", other {kind})")
    for per in ("statement", "row"):
        database.watch("things", per, per=per, when="new.share = 1 OR old.new = 1")
        database.watch("things", per + "{n}", per=per, exclude=["key"], bulk_limit=1)
    values = ", ".join("1" for _ in names)
    statement = f"INSERT INTO things VALUES ({values}); INSERT INTO things VALUES ({values}), ({values})"
    sent = database.sent(
        f"BEGIN ISOLATION LEVEL {isolation}; {statement}; UPDATE things SET n = 2; DELETE FROM things; COMMIT"
    )
    assert database.warnings == []
    assert {channel for channel, _ in sent} == {"statement", "row", "statement1", "statement2", "row1", "row2"}
    whole = {**dict.fromkeys(names, 1), "other": None}
    shown = [whole, {name: value for name, value in whole.items() if name != "key"}]
    inserted = [payload for _, payload in sent if payload["op"] == "INSERT" and not payload.get("truncated")]
    assert inserted
    # A row that moves to another channel is inserted there with its new values.
    assert all({**payload["new"], "n": 1} in shown for payload in inserted)
