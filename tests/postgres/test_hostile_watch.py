"""Owners of watched tables, and roles that may watch, cannot run code with the privileges of the schema's owner."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from socketio_pg.postgres import schema
from tests.support.hostile import HostileDatabase
from tests.support.log_database import MAX_PAYLOAD
from tests.support.postgres import Cluster

#: Types of the attacker. Casts to json and text call a function of the attacker, where the type is converted.
TYPES = """
CREATE TYPE evil.mood AS ENUM ('ok', 'sad');
CREATE FUNCTION evil.mood_json(evil.mood) RETURNS json LANGUAGE sql IMMUTABLE AS
    $$ SELECT pg_catalog.to_json(evil.attack()) $$;
CREATE FUNCTION evil.mood_text(evil.mood) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT evil.attack()::pg_catalog.text $$;
CREATE CAST (evil.mood AS json) WITH FUNCTION evil.mood_json(evil.mood);
CREATE CAST (evil.mood AS text) WITH FUNCTION evil.mood_text(evil.mood) AS IMPLICIT;
CREATE DOMAIN evil.mood_domain AS evil.mood;
CREATE DOMAIN evil.number AS integer;
CREATE TYPE evil.pair AS (a evil.mood, b integer);
CREATE TYPE evil.span AS RANGE (subtype = evil.mood);
"""

#: The columns of the attacker's table, and their values as JSON.
COLUMNS = {
    "mood": ("evil.mood", "'ok'", "ok"),
    "domain": ("evil.mood_domain", "'ok'", "ok"),
    "moods": ("evil.mood[]", "'{ok,NULL,sad}'", ["ok", None, "sad"]),
    "domains": ("evil.mood_domain[]", "'{ok}'", ["ok"]),
    "pair": ("evil.pair", "'(sad,1)'", "(sad,1)"),
    "empty_pair": ("evil.pair", "NULL", None),
    "nulls": ("evil.pair", "'(,)'", "(,)"),
    "span": ("evil.span", "'[ok,sad]'", "[ok,sad]"),
    "number": ("evil.number", "7", 7),
    "numbers": ("evil.number[]", "'{7,8}'", [7, 8]),
    "plain": ("jsonb", "'{\"a\": 1}'", {"a": 1}),
}
TABLE = "CREATE TABLE evil.t (id int PRIMARY KEY, {}); INSERT INTO evil.t VALUES (1, {})".format(
    ", ".join(f"{name} {kind}" for name, (kind, _, _) in COLUMNS.items()),
    ", ".join(value for _, value, _ in COLUMNS.values()),
)


@pytest.fixture(scope="module")
def shared(postgres: Cluster) -> Iterator[HostileDatabase]:
    made = HostileDatabase(postgres, "hostile_watch")
    yield made
    postgres.sql("DROP DATABASE hostile_watch WITH (FORCE)")


@pytest.fixture
def hostile(shared: HostileDatabase) -> HostileDatabase:
    """``mallory`` may watch; the schema's owner, a superuser, has watched nothing yet."""
    shared.sql("DROP SCHEMA IF EXISTS socketio_pg CASCADE; DROP SCHEMA evil, vault CASCADE")
    shared.sql("DROP TABLE IF EXISTS orders")
    shared.prepare()
    shared.sql(schema.statements(MAX_PAYLOAD, watcher_role="mallory"))
    shared.sql(TYPES, role="mallory")
    return shared


def attempt(hostile: HostileDatabase, statement: str) -> tuple[str, str]:
    """Run ``statement`` as the attacker. Return (SQLSTATE, message); empty texts without an error."""
    try:
        hostile.sql(statement, role="mallory")
    except psycopg2.Error as error:
        return error.pgcode or "", str(error)
    return "", ""


def sent(hostile: HostileDatabase) -> list[dict[str, Any]]:
    rows = hostile.sql("WITH d AS (DELETE FROM socketio_pg.outbox RETURNING *) SELECT payload::text FROM d ORDER BY id")
    return [json.loads(text) for (text,) in rows]


def failures(hostile: HostileDatabase) -> int:
    [(count,)] = hostile.sql("SELECT coalesce(sum(failures), 0)::int FROM socketio_pg.watches")
    return int(count)


ISOLATION = pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])


@pytest.mark.parametrize(
    ("isolation", "options"),
    [
        ("read committed", ""), ("repeatable read", "per => 'row'"),
        ("read committed", "bulk_limit => 0"), ("repeatable read", "channel => 't:{mood}'"),
        pytest.param("repeatable read", "", marks=pytest.mark.nightly),
        pytest.param("read committed", "per => 'row'", marks=pytest.mark.nightly),
        pytest.param("repeatable read", "bulk_limit => 0", marks=pytest.mark.nightly),
        pytest.param("read committed", "channel => 't:{mood}'", marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_values_of_foreign_types_are_sent_without_their_casts(
    hostile: HostileDatabase, isolation: str, options: str
) -> None:
    hostile.sql(TABLE, role="mallory")
    hostile.sql(f"SELECT socketio_pg.watch('evil.t'{options and ', ' + options})", role="mallory")
    begin = f"BEGIN ISOLATION LEVEL {isolation}"
    hostile.sql(f"{begin}; UPDATE evil.t SET id = 2; DELETE FROM evil.t; COMMIT")
    found = sent(hostile)
    assert not hostile.attacked
    assert failures(hostile) == 0
    assert [message["op"] for message in found] == ["UPDATE", "DELETE"]
    if "bulk" not in options:
        values = {name: value for name, (_, _, value) in COLUMNS.items()}
        assert found[0]["new"] == {"id": 2, **values}
        assert found[0]["old"] == {"id": 1, **values}
        assert found[0]["changed"] == ["id"]


@ISOLATION
def test_foreign_types_within_types_of_trusted_owners(hostile: HostileDatabase, isolation: str) -> None:
    """A composite type of the schema's owner has an attribute of another role's type."""
    hostile.sql("DROP TYPE IF EXISTS inner_pair, plain_pair CASCADE")
    hostile.sql("CREATE TYPE inner_pair AS (a evil.mood_domain[]); CREATE TYPE plain_pair AS (a int, b text)")
    hostile.sql("CREATE TABLE orders (id int PRIMARY KEY, i inner_pair, o inner_pair[], p plain_pair)")
    hostile.sql("INSERT INTO orders VALUES (1, ROW('{ok}'), ARRAY[ROW('{sad}')::inner_pair], ROW(1, 'x'))")
    hostile.sql("SELECT socketio_pg.watch('orders')")
    hostile.sql(f"BEGIN ISOLATION LEVEL {isolation}; UPDATE orders SET id = 2; COMMIT")
    [message] = sent(hostile)
    assert not hostile.attacked
    assert message["new"] == {"id": 2, "i": "({ok})", "o": ["({sad})"], "p": {"a": 1, "b": "x"}}


@pytest.mark.parametrize("per", ["statement", "row"])
def test_column_changed_after_the_snapshot(hostile: HostileDatabase, per: str) -> None:
    """The catalog in the transaction's snapshot shows an integer, but the value has the attacker's type."""
    hostile.sql("CREATE TABLE evil.t (id int PRIMARY KEY, v int)", role="mallory")
    hostile.sql(f"SELECT socketio_pg.watch('evil.t', per => '{per}')", role="mallory")
    with contextlib.closing(psycopg2.connect(hostile.url)) as victim, victim.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        hostile.sql("ALTER TABLE evil.t DROP v, ADD v evil.mood; ALTER TABLE evil.t ADD w evil.mood", role="mallory")
        cursor.execute("INSERT INTO evil.t VALUES (1, 'ok', 'sad')")
        victim.commit()
    assert not hostile.attacked
    # The message has the columns of the snapshot.
    [message] = sent(hostile)
    assert (message["op"], message["pk"], message["new"]["v"]) == ("INSERT", {"id": 1}, "ok")


#: Conditions that would run code of the attacker, or read tables, with the rights of the schema's owner.
REFUSED = {
    "evil.attack() > 0": "SG006",
    "new.m = 'ok'": "SG006",
    "new.m::text || evil.attack() = 'ok'": "SG006",
    "new.v::evil.number > 0": "SG006",
    "nextval('vault.proof') > 0": "SG006",
    "pg_read_file('postgresql.conf') <> ''": "SG006",
    "query_to_xml('SELECT evil.attack()', true, true, '') IS NOT NULL": "SG006",
    "table_to_xml('pg_authid', true, true, '') IS NOT NULL": "SG006",
    "set_config('role', 'postgres', false) = 'x'": "SG006",
    "current_setting('config_file') <> ''": "SG006",
    "ts_rewrite('a'::tsquery, 'SELECT evil.attack()') IS NOT NULL": "SG006",
    "(SELECT evil.attack()) > 0": "SG005",
    # A WHEN condition may use system columns, but the rows of a statement have none.
    "new.ctid IS NOT NULL": "SG005",
    "EXISTS (SELECT FROM pg_authid)": "SG005",
    "true), false)) FROM (VALUES (1)) AS x; SELECT evil.attack(); --": "SG005",
}


def test_condition_of_another_owner_runs_built_in_functions_only(hostile: HostileDatabase) -> None:
    for number, (condition, expected) in enumerate(REFUSED.items()):
        table = f"evil.t{number}"
        hostile.sql(f"CREATE TABLE {table} (id int PRIMARY KEY, v int, m evil.mood)", role="mallory")
        code, _ = attempt(hostile, f"SELECT socketio_pg.watch('{table}', \"when\" => $c${condition}$c$)")
        assert code == expected, condition
        assert not hostile.attacked, condition
        # Nor with the trigger that watch() would create.
        spec = {"channel": "x", "relation": 1, "when": condition, "old": True, "tier": "log", "per": "row"}
        argument = json.dumps(spec | {"counter": "c"})
        hostile.sql(f"CREATE TRIGGER t AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION socketio_pg.watch_changed("
            f"$t${argument}$t$); INSERT INTO {table} VALUES (1, 2, 'ok')", role="mallory")  # fmt: skip
        assert not hostile.attacked, condition
        assert sent(hostile) == [], condition


@ISOLATION
def test_useful_conditions_of_other_owners_work(hostile: HostileDatabase, isolation: str) -> None:
    hostile.sql("CREATE TYPE evil.plain AS ENUM ('ok', 'sad')", role="mallory")
    hostile.sql("CREATE TABLE evil.t (id int PRIMARY KEY, v int, m evil.plain, at timestamptz)", role="mallory")
    conditions = [
        "new.v IS DISTINCT FROM old.v",
        "length(new.v::text) > 1 AND new.id IN (1, 2) -- a comment",
        "new.m IS DISTINCT FROM old.m",
        "new.m::text = 'ok'",
        "new.at < now() - interval '1 hour' AND date_part('year', new.at) > 2000",
        "new IS DISTINCT FROM old",
    ]
    for number, condition in enumerate(conditions):
        for per in ("row", "statement"):
            statement = "SELECT socketio_pg.watch('evil.t', %s, \"when\" => %s, per => %s, operations => '{INSERT}')"
            hostile.sql(statement, f"{per}{number}", condition, per, role="mallory")
    hostile.sql(f"BEGIN ISOLATION LEVEL {isolation}; INSERT INTO evil.t VALUES (1, 22, 'ok', '2020-01-01'); COMMIT")
    assert len(sent(hostile)) == 2 * len(conditions)
    assert failures(hostile) == 0
    assert not hostile.attacked
    hostile.sql("INSERT INTO evil.t VALUES (3, 2, 'sad', now())")
    assert len(sent(hostile)) == 2 * 3
    # An implicit cast of the attacker, to what the condition compares with.
    hostile.sql("CREATE FUNCTION evil.plain_text(evil.plain) RETURNS text IMMUTABLE LANGUAGE sql AS"
        " 'SELECT evil.attack()::text'; CREATE CAST (evil.plain AS text) WITH FUNCTION evil.plain_text AS IMPLICIT",
        role="mallory")  # fmt: skip
    hostile.sql("INSERT INTO evil.t VALUES (5, 2, 'ok', now())")
    assert len(sent(hostile)) == 2 * 4
    hostile.sql("ALTER TABLE evil.t ALTER v TYPE evil.mood USING 'ok'", role="mallory")
    hostile.sql("INSERT INTO evil.t VALUES (4, 'ok', 'sad', now())")
    assert not hostile.attacked


def test_approval_is_for_one_table_and_one_condition(hostile: HostileDatabase) -> None:
    """The condition of a trusted owner is not approved for the attacker's tables, whatever triggers they have."""
    hostile.sql("CREATE TABLE orders (id int, v int); GRANT TRIGGER ON orders TO mallory")
    hostile.sql("SELECT socketio_pg.watch('orders', \"when\" => 'new.id > 0 OR evil.attack() > 100')")
    hostile.sql("SELECT setval('vault.proof', 1, false)")
    assert not hostile.attacked
    [(argument,)] = hostile.sql("SELECT DISTINCT spec::text FROM socketio_pg.watch_triggers")
    hostile.sql("CREATE TABLE evil.t (id int, v int)", role="mallory")
    create = "CREATE TRIGGER t AFTER INSERT ON {} FOR EACH ROW EXECUTE FUNCTION socketio_pg.watch_changed($t${}$t$)"
    hostile.sql(create.format("evil.t", argument), role="mallory")
    hostile.sql("INSERT INTO evil.t VALUES (-1, 1)", role="mallory")
    assert not hostile.attacked
    # With the right to create triggers on a trusted owner's table, which is not the right to comment on them.
    spec = json.loads(argument) | {"when": "evil.attack() > 0"}
    hostile.sql(create.format("orders", json.dumps(spec)), role="mallory")
    hostile.sql("ALTER TABLE orders DISABLE TRIGGER USER; ALTER TABLE orders ENABLE TRIGGER t")
    hostile.sql("INSERT INTO orders VALUES (1)")
    assert not hostile.attacked
    code, message = attempt(hostile, "SELECT socketio_pg.watch('orders', \"when\" => 'evil.attack() > 0')")
    assert (code, "only its owner may watch it" in message) == ("42501", True)
    counter = "watch_" + "0" * 32
    hostile.sql(f"CREATE TRIGGER {counter} AFTER INSERT ON orders EXECUTE FUNCTION socketio_pg.watch_changed()",
        role="mallory")  # fmt: skip
    code, _ = attempt(hostile, f"SELECT socketio_pg.watch_prepare('orders', 'x', 'evil.attack() > 0', '{counter}')")
    assert code == "SG006"
    assert not hostile.attacked


def test_crafted_triggers_do_no_harm(hostile: HostileDatabase) -> None:
    """A role that may watch can create triggers with any argument."""
    hostile.sql("CREATE TABLE evil.t (id int); CREATE TABLE orders (id int); SELECT socketio_pg.watch('orders')")
    hostile.sql("ALTER TABLE evil.t OWNER TO mallory; SELECT socketio_pg.publish('orders', '1')")
    create = (
        "CREATE TRIGGER t{} AFTER INSERT ON evil.t FOR EACH ROW EXECUTE FUNCTION socketio_pg.watch_changed($t${}$t$)"
    )
    good = {"channel": "x", "relation": 1, "old": True, "tier": "log", "per": "row", "counter": "outbox_id_seq"}
    crafted = ["no JSON", "[]", "{}", json.dumps(good | {"channel": "x\tforged\n"}), json.dumps(good | {"parts": 1})]
    for number, argument in enumerate(crafted):
        hostile.sql(create.format(number, argument), role="mallory")
    [(before,)] = hostile.sql("SELECT last_value FROM socketio_pg.outbox_id_seq")
    hostile.sql("INSERT INTO evil.t VALUES (1)", role="mallory")
    assert hostile.sql("SELECT last_value FROM socketio_pg.outbox_id_seq") == [(before,)]
    assert sent(hostile) == [1]  # type: ignore[comparison-overlap]
    # Others can still list and remove their watches.
    assert ("public.orders",) in hostile.sql("SELECT table_name FROM socketio_pg.watches")
    assert hostile.sql("SELECT socketio_pg.unwatch('orders')") == [(1,)]
    for counter in ("lease", "watch_x", "x'; DROP TABLE orders"):
        code, _ = attempt(hostile, f"SELECT socketio_pg.watch_prepare('evil.t', 'x', NULL, $c${counter}$c$)")
        assert code == "SG005"
    assert hostile.sql("SELECT socketio_pg.watch_failures('outbox_id_seq')", role="mallory") == [(None,)]


def test_upgrade_approves_the_conditions_of_trusted_owners(hostile: HostileDatabase) -> None:
    hostile.sql("CREATE TABLE evil.t (id int); CREATE TABLE orders (id int)")
    hostile.sql("ALTER TABLE evil.t OWNER TO mallory")
    for table in ("orders", "evil.t"):
        hostile.sql("SELECT socketio_pg.watch(%s, \"when\" => 'new.id > 0')", table)
    # As an older version has left it.
    for (counter,) in hostile.sql("SELECT DISTINCT spec ->> 'counter' FROM socketio_pg.watch_triggers"):
        hostile.sql(f"COMMENT ON SEQUENCE socketio_pg.{counter} IS NULL")
    hostile.sql("UPDATE socketio_pg.schema_version SET version = 3")
    hostile.sql(schema.statements(MAX_PAYLOAD))
    hostile.sql("INSERT INTO orders VALUES (1); INSERT INTO evil.t VALUES (1)")
    assert [message["table"] for message in sent(hostile)] == ["orders"]
    assert hostile.sql("SELECT table_name FROM socketio_pg.watches WHERE failures > 0") == [("evil.t",)]
    hostile.sql("SELECT socketio_pg.watch('evil.t', \"when\" => 'new.id > 0')", role="mallory")
    hostile.sql("INSERT INTO evil.t VALUES (1); ALTER TABLE evil.t RENAME TO u; INSERT INTO evil.u VALUES (1)")
    assert [message["table"] for message in sent(hostile)] == ["t", "u"]
