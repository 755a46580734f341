"""A database in which a login with CREATE has made objects that run its code with the rights of whoever uses them."""

import contextlib
from typing import Any

import psycopg2

from tests.support.postgres import Cluster, in_thread

#: Code that proves that another role has run it: only superusers, and roles that a test names, may call nextval() here.
#: A rollback does not undo it.
_PROOF = """
CREATE SCHEMA vault;
CREATE SEQUENCE vault.proof;
GRANT USAGE ON SCHEMA vault TO PUBLIC;
CREATE SCHEMA evil AUTHORIZATION mallory;
SET SESSION AUTHORIZATION mallory;
CREATE FUNCTION evil.attack() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.nextval('vault.proof'::pg_catalog.regclass);
    RETURN 4;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN 4;
END $$;
GRANT ALL ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.attack(); RETURN NEW; END $$;
"""

#: Functions of the schema, made by the attacker.
FUNCTIONS = """
CREATE FUNCTION socketio_pg.publish(text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT evil.attack()';
CREATE FUNCTION socketio_pg.decide(text[], text[], text[], text[], float8) RETURNS SETOF text LANGUAGE sql AS
    'SELECT evil.attack()::text';
"""

_COLUMNS = "position bigint, channel text, payload jsonb, size integer, published_at timestamptz, logged_at timestamptz"

#: Objects under the names of the schema, made by the attacker before the schema is installed.
FOREIGN_SCHEMAS = {
    "views": f"""
        CREATE SCHEMA socketio_pg;
        CREATE VIEW socketio_pg.schema_version AS SELECT true AS only_row, evil.attack() AS version;
        CREATE VIEW socketio_pg.head AS SELECT gen_random_uuid() AS epoch, evil.attack()::bigint AS trimmed;
        CREATE TABLE socketio_pg.log ({_COLUMNS});
        CREATE VIEW socketio_pg.watch_triggers AS SELECT evil.attack()::oid AS relation;
        CREATE VIEW socketio_pg.watches AS
            SELECT ''::text AS table_name, ''::text AS channel, evil.attack() AS failures;
        CREATE VIEW socketio_pg.outbox AS SELECT evil.attack() AS id, now() AS published_at;""",
    "functions": f"""
        CREATE SCHEMA socketio_pg;
        CREATE TABLE socketio_pg.schema_version (only_row boolean PRIMARY KEY, version integer);
        {FUNCTIONS}""",
    "trigger": """
        CREATE SCHEMA socketio_pg;
        CREATE TABLE socketio_pg.schema_version (only_row boolean PRIMARY KEY DEFAULT true, version integer);
        CREATE TRIGGER mine BEFORE INSERT ON socketio_pg.schema_version FOR EACH ROW EXECUTE FUNCTION evil.fire();""",
    "rule": """
        CREATE SCHEMA socketio_pg;
        CREATE TABLE socketio_pg.schema_version (only_row boolean PRIMARY KEY DEFAULT true, version integer);
        CREATE RULE mine AS ON INSERT TO socketio_pg.schema_version DO ALSO SELECT evil.attack();""",
    "default": """
        CREATE SCHEMA socketio_pg;
        CREATE TABLE socketio_pg.head (only_row boolean PRIMARY KEY DEFAULT true, epoch uuid,
            trimmed bigint DEFAULT evil.attack(), system_identifier bigint, timeline integer, log_oid oid);""",
}

#: Functions that shadow or overload the built-in ones that programs call, where a search_path names the schema first.
OVERLOADS = "\n".join(
    f"CREATE FUNCTION public.{name}({arguments}) RETURNS {result} LANGUAGE sql AS"
    f" $$ SELECT evil.attack(); SELECT pg_catalog.{call} $$;"
    for name, arguments, result, call in (
        ("to_regclass", "text", "regclass", "to_regclass($1)"),
        ("current_setting", "text", "text", "current_setting($1)"),
        ("pg_advisory_xact_lock", "integer, integer", "void", "pg_advisory_xact_lock($1, $2)"),
        ("pg_notify", "text, text", "void", "pg_notify($1, $2)"),
        ("now", "", "timestamptz", "now()"),
        ("clock_timestamp", "", "timestamptz", "clock_timestamp()"),
        ("unnest", "text[]", "SETOF text", "unnest($1)"),
        ("to_char", "timestamp, text", "text", "to_char($1, $2)"),
        ("pg_notification_queue_usage", "", "double precision", "pg_notification_queue_usage()"),
        ("pg_is_in_recovery", "", "boolean", "pg_is_in_recovery()"),
        ("pg_current_snapshot", "", "pg_snapshot", "pg_current_snapshot()"),
        ("octet_length", "text", "integer", "octet_length($1)"),
        ("strpos", "text, text", "integer", "strpos($1, $2)"),
        ("concat_ws", "text, text, text, text", "text", "concat_ws($1, $2, $3, $4)"),
    )
) + """
CREATE FUNCTION public.equal(text, text) RETURNS boolean LANGUAGE sql AS
    'SELECT evil.attack(); SELECT $1 OPERATOR(pg_catalog.=) $2';
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.equal);
CREATE FUNCTION public.above(bigint, bigint) RETURNS boolean LANGUAGE sql AS
    'SELECT evil.attack(); SELECT $1 OPERATOR(pg_catalog.>) $2';
CREATE OPERATOR public.> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = public.above);
"""  # fmt: skip


class HostileDatabase:
    """A database where the role ``mallory`` has CREATE. ``url`` is a superuser's address, the victim's."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.url = cluster.url(name)
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        if not cluster.sql("SELECT 1 FROM pg_roles WHERE rolname = 'mallory'"):
            cluster.sql("CREATE ROLE mallory LOGIN")
        cluster.sql(f"CREATE DATABASE {name}")
        self.prepare()

    def prepare(self) -> None:
        """Give the attacker rights, functions, and the sequence of the proof."""
        self.sql(f"GRANT CREATE ON DATABASE {self.name} TO mallory; GRANT CREATE ON SCHEMA public TO mallory; {_PROOF}")

    def address(self, role: str) -> str:
        return self.url.replace("postgres@", f"{role}@")

    def sql(self, statement: str, *parameters: object, role: str = "postgres") -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = in_thread(self._sql, statement, parameters, role)
        return rows

    def _sql(self, statement: str, parameters: tuple[object, ...], role: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(psycopg2.connect(self.address(role))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return list(cursor.fetchall()) if cursor.description else []

    def shadow(self) -> None:
        """Overload built-in functions and operators in a schema that the search_path of all roles names first."""
        self.sql(OVERLOADS, role="mallory")
        self.sql(f"ALTER DATABASE {self.name} SET search_path = public, pg_catalog")

    @property
    def attacked(self) -> bool:
        """True if code of the attacker has run with another role's rights."""
        [(called,)] = self.sql("SELECT is_called FROM vault.proof")
        return bool(called)
