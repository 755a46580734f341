"""Verifies that the schema ``socketio_pg`` belongs to a trusted role, before anything in it is read or called.

A role with CREATE on the database can create the schema first, with views, functions and triggers that run code with
the rights of the role that uses them. The check reads the system catalogs only.
"""

import functools
import logging
import re
from pathlib import Path
from typing import Any

from socketio_pg.core import schema_trust
from socketio_pg.core.channels import quote_literal
from socketio_pg.core.errors import LogNotInstalledError, UntrustedSchemaError
from socketio_pg.postgres.database import FIXED_PATH, Database, translated_errors

logger = logging.getLogger("socketio_pg.trust")

#: The SQL of the schema.
FOLDER = Path(__file__).parent / "sql"

_REMEDY = (
    "drop it as a superuser with DROP SCHEMA socketio_pg CASCADE, which runs nothing of it; or, if that role has "
    "installed it for this program, set SCHEMA_OWNER to the role's name"
)


def query(owner: str | None) -> str:
    """Return the SQL of the check: one row, ``present`` and ``problems`` (text[]).

    ``owner`` is the setting SCHEMA_OWNER.
    """
    return schema_trust.query(None if owner is None else quote_literal(owner), _kinds())


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
