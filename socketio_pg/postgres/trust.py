"""Verifies that the schema ``socketio_pg`` belongs to a trusted role, before anything in it is read or called.

A role with CREATE on the database can create the schema first, with views, functions and triggers that run code with
the rights of the role that uses them. The check reads the system catalogs only.
"""

import functools
import logging
import re
from pathlib import Path
from typing import Any

from socketio_pg.core.channels import quote_literal
from socketio_pg.core.errors import LogNotInstalledError, UntrustedSchemaError
from socketio_pg.postgres.database import FIXED_PATH, Database, translated_errors

logger = logging.getLogger("socketio_pg.trust")

#: The SQL of the schema.
FOLDER = Path(__file__).parent / "sql"

#: Maximum number of problems in a message.
MAX_SHOWN = 3

_REMEDY = (
    "drop it as a superuser with DROP SCHEMA socketio_pg CASCADE, which runs nothing of it; or, if that role has "
    "installed it for this program, set SCHEMA_OWNER to the role's name"
)

# Each row of `found` names a role whose code could run here. Casts and operators on built-in types are not checked:
# nobody but a superuser can create the former, and a fixed search_path does not find the latter.
_QUERY = """
WITH here AS (
    SELECT oid, nspowner, nspacl FROM pg_namespace WHERE nspname = 'socketio_pg'
), found (place, what, owner) AS (
    SELECT 1, 'the schema socketio_pg belongs to', nspowner FROM here
    UNION ALL SELECT 2, 'CREATE on the schema socketio_pg is granted to', a.grantee
    FROM here CROSS JOIN aclexplode(here.nspacl) AS a WHERE a.privilege_type = 'CREATE'
    UNION ALL SELECT 3, format('socketio_pg.%I belongs to', c.relname), c.relowner
    FROM pg_class AS c WHERE c.relnamespace IN (SELECT oid FROM here)
    UNION ALL SELECT 4, format('the function socketio_pg.%I belongs to', p.proname), p.proowner
    FROM pg_proc AS p WHERE p.pronamespace IN (SELECT oid FROM here)
    UNION ALL SELECT 5, format('the type socketio_pg.%I belongs to', t.typname), t.typowner
    FROM pg_type AS t WHERE t.typnamespace IN (SELECT oid FROM here) AND t.typrelid = 0 AND t.typelem = 0
    UNION ALL SELECT 6, format('the operator socketio_pg.%s belongs to', o.oprname), o.oprowner
    FROM pg_operator AS o WHERE o.oprnamespace IN (SELECT oid FROM here)
    UNION ALL SELECT 7, format('the function of the trigger %I on socketio_pg.%I belongs to', t.tgname, c.relname),
        p.proowner
    FROM pg_class AS c JOIN pg_trigger AS t ON t.tgrelid = c.oid JOIN pg_proc AS p ON p.oid = t.tgfoid
    WHERE c.relnamespace IN (SELECT oid FROM here)
), us AS (
    SELECT bool_or(rolsuper) AS super FROM pg_roles WHERE rolname IN (current_user, session_user)
), owners AS MATERIALIZED (
    SELECT f.owner, EXISTS (
        SELECT FROM pg_roles AS r CROSS JOIN us
        WHERE r.oid = f.owner AND (
            r.rolname IN (current_user, session_user) OR r.rolname = @OWNER@
            OR EXISTS (SELECT FROM pg_roles AS s WHERE s.rolsuper AND pg_has_role(r.oid, s.oid, 'MEMBER'))
            -- The database's owner has fewer rights than a superuser, and could obtain them.
            OR NOT us.super AND EXISTS (
                SELECT FROM pg_database AS d
                WHERE d.datname = current_database() AND pg_has_role(r.oid, d.datdba, 'MEMBER'))
        )
    ) AS trusted
    FROM (SELECT DISTINCT owner FROM found) AS f
)
SELECT EXISTS (SELECT FROM here) AS present, ARRAY(
    SELECT f.what || ' ' || CASE WHEN f.owner = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(f.owner) END
    FROM found AS f JOIN owners AS o ON o.owner = f.owner WHERE NOT o.trusted ORDER BY f.place, f.what LIMIT @MAX_SHOWN@
) || ARRAY(
    SELECT format('socketio_pg.%I is not a %s', e.name, e.kind)
    FROM (VALUES @KINDS@) AS e (name, kind) JOIN pg_class AS c ON c.relname = e.name
    WHERE c.relnamespace IN (SELECT oid FROM here)
        AND c.relkind <> CASE e.kind WHEN 'table' THEN 'r' WHEN 'view' THEN 'v' ELSE 'S' END LIMIT @MAX_SHOWN@
) AS problems
"""


def query(owner: str | None) -> str:
    """Return the SQL of the check: one row, ``present`` and ``problems`` (text[]). It needs :data:`FIXED_PATH`.

    ``owner`` is the setting SCHEMA_OWNER.
    """
    trusted = "NULL" if owner is None else quote_literal(owner)
    return (
        _QUERY.strip().replace("@KINDS@", _kinds()).replace("@MAX_SHOWN@", str(MAX_SHOWN)).replace("@OWNER@", trusted)
    )


@functools.cache
def _kinds() -> str:
    """Return the tables, views and sequences of the schema as rows (name, kind)."""
    text = "\n".join(path.read_text("utf-8") for path in sorted(FOLDER.glob("*.sql")))
    pattern = r"^ *CREATE (?:OR REPLACE )?(TABLE|VIEW|SEQUENCE)(?: IF NOT EXISTS)? socketio_pg\.(\w+)"
    found = re.findall(pattern, text, re.MULTILINE)
    return ", ".join(f"('{name}', '{kind.lower()}')" for kind, name in found)


def installation(owner: str | None) -> str:
    """Return SQL that creates the schema, or raises SG007 when it exists and is not trusted."""
    return f"""\
-- Not CREATE SCHEMA IF NOT EXISTS, which accepts a schema of any role. The second of two concurrent installations
-- waits, and then verifies what the first one has created.
DO $trust$
DECLARE
    answer record;
    grantee text;
BEGIN
    FOR attempt IN 1 .. 3 LOOP
        SELECT * INTO answer FROM (
{query(owner)}
        ) AS checked;
        EXIT WHEN answer.present;
        BEGIN
            CREATE SCHEMA socketio_pg;
            -- Default privileges may have granted other roles to create objects in it.
            FOR grantee IN
                SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
                FROM pg_namespace AS n CROSS JOIN aclexplode(n.nspacl) AS a
                WHERE n.nspname = 'socketio_pg' AND a.grantee <> n.nspowner
            LOOP
                EXECUTE format('REVOKE ALL ON SCHEMA socketio_pg FROM %s', grantee);
            END LOOP;
        EXCEPTION WHEN unique_violation OR duplicate_schema THEN
            NULL;
        END;
    END LOOP;
    IF NOT answer.present OR answer.problems <> '{{}}' THEN
        RAISE EXCEPTION USING ERRCODE = 'SG007', HINT = {quote_literal(_REMEDY)},
            MESSAGE = 'the schema socketio_pg is not trusted: ' || array_to_string(answer.problems, ', ');
    END IF;
END $trust$;
"""


def present(database: Database, connection: Any, seconds: float = 10.0) -> bool:
    """Return whether the schema exists. Within a transaction, also fix its search_path until the end.

    Raises :class:`UntrustedSchemaError`, and as :func:`translated_errors`. Logs a change of the result once for
    ``database``, and stores the problem in ``database.schema_problem``.
    """
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(f"{FIXED_PATH}; {query(database.schema_owner)}")
        [(exists, problems)] = cursor.fetchall()
    if problems or not exists:
        database.verified.clear()
    if not problems:
        if database.schema_problem is not None:
            logger.info("the schema socketio_pg is trusted or gone")
        database.schema_problem = None
        return bool(exists)
    error = UntrustedSchemaError(f"the schema socketio_pg is not trusted: {', '.join(problems)}; {_REMEDY}")
    if database.schema_problem != error.detail:
        logger.error("the log is not used: %s", error.detail)
    database.schema_problem = error.detail
    raise error


def verify(database: Database, connection: Any, seconds: float = 10.0) -> None:
    """Verify the schema before the first use on ``connection``; call it before each use.

    Once is enough: while the schema exists, a role without trust can neither replace it nor add objects.

    Raises :class:`LogNotInstalledError` without the schema, otherwise as :func:`present`.
    """
    if connection in database.verified:
        return
    if not present(database, connection, seconds):
        raise LogNotInstalledError("the log is not installed in the database: run 'socketio-pg init'")
    database.verified.add(connection)
