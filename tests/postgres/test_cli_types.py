"""The command `types`: what it declares accepts the messages of real watches, and refuses others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import typescript
from tests.support.cli import run
from tests.support.postgres import Cluster
from tests.support.watching import WatchDatabase, watch_database

TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'happy 😀', '"; }*/');
CREATE TYPE pair AS (x int, "y z" mood, big bigint[]);
CREATE DOMAIN price AS numeric(10, 2) NOT NULL CHECK (VALUE > 0);
CREATE DOMAIN color AS text CHECK (VALUE IN ('red', 'green'));
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer_id int, status text NOT NULL CHECK (status IN ('open', 'it''s')), note text,
    kind varchar(9) CHECK (kind IN ('a', 'b')), m mood, ms mood[], p pair, ps pair[], d price, c color,
    j jsonb NOT NULL, n numeric, f float8, s smallint NOT NULL, tags text[] NOT NULL, grid int[][],
    at timestamptz NOT NULL DEFAULT now(), b bytea, i interval, u uuid, o oid, yes boolean NOT NULL, r int4range,
    day date, v int2vector, q money, tsv tsvector
);
COMMENT ON TABLE orders IS 'All orders */ export const hacked = 1; /*';
COMMENT ON COLUMN orders.note IS E'two\nlines */';
SELECT socketio_pg.watch('orders');
SELECT socketio_pg.watch('orders', 'orders:{customer_id}', exclude => '{note}');
SELECT socketio_pg.watch('orders', '{status}|{m}|{yes}', columns => '{customer_id}', old => false,
    operations => '{INSERT,UPDATE}');
CREATE TABLE parts (order_id int, number int, "order" text, PRIMARY KEY (order_id, number));
SELECT socketio_pg.watch('parts', 'orders:{order_id}');
SELECT socketio_pg.watch('parts', 'numbers', columns => '{order}', exclude => '{number}');
"""
ROW = """
INSERT INTO orders (id, customer_id, status, note, kind, m, ms, p, ps, d, c, j, n, f, s, tags, grid, b, i, u, o, yes,
    r, day, v, q, tsv)
VALUES (7, 5, 'it''s', 'n', 'b', 'happy 😀', '{sad,NULL}', '(1,sad,"{1,NULL}")', '{"(,,)"}', 1.50, 'red',
    '{"a": [null, {"b": 1.5}]}', 1e20, 0.1, 3, '{}', '{{1,2},{3,NULL}}', '\\x00ff', '1 day', gen_random_uuid(), 7, true,
    '[1,5)', 'infinity', '1 2', 1.5, 'a b');
"""
CHANGES = """
INSERT INTO orders (id, status, j, s, tags, yes, d) VALUES (8, 'open', 'null', 1, '{a,NULL}', false, 2);
UPDATE orders SET status = 'open', m = NULL, d = 3;
UPDATE orders SET id = 9, customer_id = 6, m = 'sad' WHERE id = 7;
UPDATE orders SET n = 2 WHERE id = 9;
DELETE FROM orders WHERE id = 8;
INSERT INTO parts VALUES (5, 1, 'a');
UPDATE parts SET "order" = NULL;
INSERT INTO parts SELECT 6, n FROM generate_series(1, 1001) AS n;
DELETE FROM parts;
INSERT INTO orders (id, customer_id, status, note, j, s, tags, yes, d)
VALUES (10, 5, 'open', repeat('x', 100000), '{}', 1, '{}', true, 1);
TRUNCATE orders;
"""
#: Names that end comments, strings and identifiers, in a schema whose name is none.
HOSTILE = r"""
CREATE SCHEMA "we ird";
CREATE TYPE "we ird"."*/ export const a = 1; //" AS ENUM ('*/', '`${1}`', '\', E'\n');
CREATE TABLE "we ird"."table */ ` ${x}" (
    a int, "__proto__" int, "constructor" text, "new" int, "a b""c\" text, "*/" text, "${1}" bool, "readonly" int,
    "1" int, "é" "we ird"."*/ export const a = 1; //", "toString" text
);
SELECT socketio_pg.watch('"we ird"."table */ ` ${x}"', 'weird "`\/$');
CREATE TABLE "Json" (id int PRIMARY KEY);
CREATE TABLE json (id int PRIMARY KEY, j json);
CREATE TABLE "json_key" ("id" int PRIMARY KEY);
CREATE TABLE "json-key" (id int PRIMARY KEY);
CREATE TABLE channels (id int PRIMARY KEY);
CREATE TABLE "Pick" (id int PRIMARY KEY);
CREATE TABLE "Record" (id int PRIMARY KEY);
CREATE TABLE "Array" (id int[]);
CREATE TABLE "💥" (id int PRIMARY KEY);
CREATE TABLE "订单" ("编号" int PRIMARY KEY);
SELECT socketio_pg.watch(c.oid::regclass)
FROM unnest('{Json,json,json_key,json-key,channels,Pick,Record,Array,💥,订单}'::name[]) AS t (name)
JOIN pg_class AS c ON c.relname = t.name AND c.relnamespace = 'public'::regnamespace;
"""
HOSTILE_CHANGES = """
INSERT INTO "we ird"."table */ ` ${x}" VALUES (1, 2, 'c', 3, 'd', '*/', true, 4, 5, '`${1}`', 'x');
UPDATE "we ird"."table */ ` ${x}" SET "__proto__" = NULL;
INSERT INTO json VALUES (1, '[1]'); INSERT INTO "Array" VALUES ('{1}'); INSERT INTO "订单" VALUES (1);
INSERT INTO "json-key" VALUES (1); INSERT INTO json_key VALUES (2); INSERT INTO "Json" VALUES (3);
"""
#: What the declarations refuse. Each line after a comment has to be an error.
REFUSED = """
declare const change: Channels["table:public.orders"];
declare const moved: Channels["orders:${number}"];
declare const few: Channels["it's|sad|true"];
// @ts-expect-error the row may be missing
change.new.id;
// @ts-expect-error the row may be missing
change.new?.id.toFixed().nothing;
if (!change.truncated) {
  switch (change.op) {
    case "INSERT": { change.new.id satisfies number; change.old satisfies null; break; }
    case "UPDATE": {
      change.new.note satisfies string | null; change.old.status satisfies "open" | "it's";
      change.pk.id satisfies number; change.changed satisfies (keyof Orders)[];
      // @ts-expect-error a nullable column
      change.new.note.length;
      // @ts-expect-error no such label
      change.new.status === "paid";
      // @ts-expect-error no such column
      change.new.nothing;
      break;
    }
    case "DELETE": { change.new satisfies null; change.old.s satisfies number; break; }
    case "TRUNCATE": { change.pk satisfies null; break; }
    default: change satisfies never;
  }
} else if (change.reason === "many_rows") {
  change.count satisfies number;
  // @ts-expect-error many rows have no key
  change.pk.id;
} else {
  change.pk satisfies OrdersKey | null;
  change.new satisfies undefined;
  const op: "INSERT" | "UPDATE" | "DELETE" = change.op;
}
// A channel with two tables, which their names tell apart.
if (!moved.truncated && moved.op === "INSERT") {
  if (moved.table === "parts") moved.new.order_id satisfies number;
  else {
    moved.new.id satisfies number;
    // @ts-expect-error the column is excluded
    moved.new.note;
  }
}
// @ts-expect-error a channel with placeholders has no TRUNCATE
moved.op === "TRUNCATE";
// @ts-expect-error the watch sends no DELETE, but for rows that move, which have no old row
few.op === "DELETE" && few.old.id;
if (few.op === "UPDATE" && !few.truncated) few.old satisfies OrdersKey | null;
// @ts-expect-error no such channel
type Unknown = Channels["orders"];
export const row: Tables["public.orders"]["d"] = 1;
// @ts-expect-error NOT NULL by its domain
export const without: Tables["public.orders"]["d"] = null;
"""


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(newest_pg, "cli_types") as made:
        made.sql(TABLES)
        made.sql(HOSTILE)
        made.taken()
        yield made


def generated(database: WatchDatabase, *options: str) -> str:
    done = run("types", *options, url=database.url)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def key_of(channel: str, keys: list[str]) -> str:
    """Return the key of the map of channels that stands for a channel: its own, else that of the pattern."""
    if channel in keys:
        return channel
    [key] = [key for key in keys if re.fullmatch(re.escape(key).replace(r"\$\{number\}", r"\d+"), channel)]
    return key


def as_assignments(messages: list[tuple[str, dict[str, Any]]], text: str) -> str:
    """Return a program that assigns each message to the type of its channel."""
    block = text[text.index("export interface Channels {") :].split("\n}")[0]
    keys = [json.loads(f'"{one}"') for one in re.findall(r'^  "(.*)": ', block, re.MULTILINE)]
    keys += re.findall(r"^  (\w+): ", block, re.MULTILINE)
    return "\n".join(
        f"export const m{n}: Channels[{json.dumps(key_of(channel, keys))}] = {typescript.expression(payload)};"
        for n, (channel, payload) in enumerate(messages)
    )


def test_messages_of_real_watches_have_the_declared_types(database: WatchDatabase, tmp_path: Path) -> None:
    messages = database.sent(ROW)
    for statement in (CHANGES, HOSTILE_CHANGES):
        messages += database.sent(statement)
    assert {payload["op"] for _, payload in messages} == {"INSERT", "UPDATE", "DELETE", "TRUNCATE"}
    assert {payload.get("reason") for _, payload in messages} == {None, "many_rows", "too_large"}
    assert any(payload.get("moved") for _, payload in messages)
    text = generated(database)
    for name, content in {
        "tables.ts": text,
        "messages.ts": 'import type { Channels } from "./tables.js";\n' + as_assignments(messages, text),
        "refused.ts": 'import type { Channels, Orders, OrdersKey, Tables } from "./tables.js";\n' + REFUSED,
        "bigint.ts": generated(database, "--integers", "bigint"),
        "string.ts": generated(database, "--integers", "string", "--non-finite"),
        "integers.ts": """
            import type { Json as BigJson, Orders as Big } from "./bigint.js";
            import type { Orders as Texts } from "./string.js";
            export const big: Big["id"][] = [1, 9007199254740993n], whole: Big["n"] = 9007199254740993n;
            export const json: BigJson = { a: [9007199254740993n] };
            export const text: Texts["id"] = "9007199254740993";
            export const nan: Texts["f"] = "NaN", infinite: Texts["n"] = "-Infinity";
            // @ts-expect-error never more than 2^53
            export const small: Big["s"] = 1n;
            // @ts-expect-error numeric(10, 2) is never that large
            export const price: Big["d"] = 1n;
            // @ts-expect-error and never infinite
            export const infinity: Texts["d"] = "Infinity";
        """,
    }.items():
        (tmp_path / name).write_text(content)
    paths = {"socketio-pg": [str(typescript.PACKAGE / "src/changes.ts")]}
    assert typescript.errors(tmp_path, paths=paths) == []


def test_names_are_identifiers_and_do_not_collide(database: WatchDatabase) -> None:
    text = generated(database)
    declared = re.findall(r"^export (?:interface|type) (\S+)", text, re.MULTILINE)
    assert len(declared) == len(set(declared))
    assert all(name.isidentifier() for name in declared)
    assert {"Orders", "OrdersKey", "OrdersChange", "Json2", "Channels2", "Pick2", "WeIrdTableX", "订单"} < set(declared)
    assert "hacked" not in re.sub(r"/\*\*.*?\*/", "", text)
    assert text.isascii() or all(character.isprintable() or character == "\n" for character in text)


def test_schema_selects_tables(database: WatchDatabase) -> None:
    text = generated(database, "--schema", "we ird")
    assert "WeIrdTableX" in text
    assert "Orders" not in text
    done = run("types", "--schema", "nothing", url=database.url)
    assert done.returncode == 0
    assert "no table is watched in nothing" in done.stderr
    assert "export interface Channels {\n}" in done.stdout


def test_check_compares_the_file(database: WatchDatabase, tmp_path: Path) -> None:
    make = "CREATE TABLE checked.{0} (id int PRIMARY KEY); SELECT socketio_pg.watch('checked.{0}');"
    database.sql("CREATE SCHEMA checked;" + make.format("b") + make.format("a"))
    file = tmp_path / "tables.ts"

    def types(*options: str) -> tuple[int, str, str]:
        done = run("types", "--schema", "checked", *options, url=database.url, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    code, out, err = types("--check")
    assert (code, "--output" in err) == (2, True)
    code, out, err = types("-o", "tables.ts", "--check")
    assert (code, "does not exist" in err, file.exists()) == (1, True, False)
    assert types("-o", "tables.ts") == (0, "", "wrote tables.ts\n")
    first = file.read_text()
    # Tables and watches that are made in another order have the same text.
    database.sql("DROP TABLE checked.a, checked.b;" + make.format("a") + make.format("b"))
    assert types("-o", "tables.ts", "--check") == (0, "", "tables.ts is up to date\n")
    database.sql("ALTER TABLE checked.a ADD name text NOT NULL")
    code, out, err = types("-o", "tables.ts", "--check")
    assert (code, "+  name: string;" in out, "run 'socketio-pg types --output tables.ts'" in err) == (1, True, True)
    assert file.read_text() == first


def test_types_of_roles_without_trust_are_texts(database: WatchDatabase) -> None:
    """As the watch sends them: see socketio_pg.watch_list()."""
    database.cluster.sql("CREATE ROLE types_other")
    try:
        database.sql(
            "CREATE SCHEMA others; SET search_path = others;"
            "CREATE TYPE theirs AS (a int); ALTER TYPE theirs OWNER TO types_other;"
            "CREATE TYPE level AS ENUM ('low', 'high'); ALTER TYPE level OWNER TO types_other;"
            "CREATE TYPE place AS ENUM ('1 2');"
            "CREATE FUNCTION place_json(place) RETURNS json LANGUAGE sql AS $$ SELECT '{}'::json $$;"
            "CREATE CAST (place AS json) WITH FUNCTION place_json(place);"
            "CREATE TABLE things (id int PRIMARY KEY, v theirs, vs theirs[], l level, p place);"
            "SELECT socketio_pg.watch('things')"
        )
        [payload] = database.payloads("INSERT INTO things VALUES (1, ROW(1), ARRAY[ROW(2)::theirs], 'low', '1 2')")
        assert payload["new"] == {"id": 1, "v": "(1)", "vs": ["(2)"], "l": "low", "p": {}}
        text = run("types", "--schema", "others", url=database.url).stdout
        for line in ("v: string | null;", "vs: (string | null)[] | null;", "l: OthersLevel | null;", "p: Json | null;"):
            assert f"  {line}\n" in text
    finally:
        database.sql("RESET search_path; DROP OWNED BY types_other CASCADE")
        database.cluster.sql("DROP ROLE types_other")


def test_renamed_columns_stay_excluded(database: WatchDatabase) -> None:
    database.sql(
        "CREATE SCHEMA renamed; CREATE TABLE renamed.a (id int PRIMARY KEY, secret text);"
        "SELECT socketio_pg.watch('renamed.a', exclude => '{secret}'); ALTER TABLE renamed.a RENAME secret TO hidden;"
        "CREATE TABLE renamed.b (id int PRIMARY KEY, x int); SELECT socketio_pg.watch('renamed.b', 'b:{x}');"
        "ALTER TABLE renamed.b RENAME x TO y"
    )
    done = run("types", "--schema", "renamed", url=database.url)
    assert (done.returncode, "hidden" in done.stdout, "secret" in done.stdout) == (0, False, False)
    assert "note: the watch of renamed.b for b:{x} sends no rows: a placeholder" in done.stderr
    assert '"b:' not in done.stdout
