"""The SQL that finds out whether the schema ``socketio_pg`` belongs to trusted roles. Only text, no I/O.

It reads the system catalogs only, and runs in any session: all its names and operators are qualified, because the
session's search_path may contain schemas that overload them.
"""

#: Maximum number of problems in a message.
MAX_SHOWN = 3

# Each row of `found` names a role whose code could run here. Casts and operators on built-in types are not checked:
# nobody but a superuser can create the former, and qualified names do not find the latter.
_QUERY = """
WITH here AS (
    SELECT oid, nspowner, nspacl FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) 'socketio_pg'
), found (place, what, owner) AS (
    SELECT 1, 'the schema socketio_pg belongs to', nspowner FROM here
    UNION ALL SELECT 2, 'CREATE on the schema socketio_pg is granted to', a.grantee
    FROM here CROSS JOIN LATERAL pg_catalog.aclexplode(here.nspacl) AS a
    WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'
    UNION ALL SELECT 3, pg_catalog.format('socketio_pg.%I belongs to', c.relname), c.relowner
    FROM pg_catalog.pg_class AS c JOIN here ON c.relnamespace OPERATOR(pg_catalog.=) here.oid
    UNION ALL SELECT 4, pg_catalog.format('the function socketio_pg.%I belongs to', p.proname), p.proowner
    FROM pg_catalog.pg_proc AS p JOIN here ON p.pronamespace OPERATOR(pg_catalog.=) here.oid
    UNION ALL SELECT 5, pg_catalog.format('the type socketio_pg.%I belongs to', t.typname), t.typowner
    FROM pg_catalog.pg_type AS t JOIN here ON t.typnamespace OPERATOR(pg_catalog.=) here.oid
    WHERE t.typrelid OPERATOR(pg_catalog.=) 0 AND t.typelem OPERATOR(pg_catalog.=) 0
    UNION ALL SELECT 6, pg_catalog.format('the operator socketio_pg.%s belongs to', o.oprname), o.oprowner
    FROM pg_catalog.pg_operator AS o JOIN here ON o.oprnamespace OPERATOR(pg_catalog.=) here.oid
    UNION ALL SELECT 7, pg_catalog.format(
        'the function of the trigger %I on socketio_pg.%I belongs to', t.tgname, c.relname), p.proowner
    FROM pg_catalog.pg_class AS c JOIN here ON c.relnamespace OPERATOR(pg_catalog.=) here.oid
        JOIN pg_catalog.pg_trigger AS t ON t.tgrelid OPERATOR(pg_catalog.=) c.oid
        JOIN pg_catalog.pg_proc AS p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid
), us AS (
    SELECT pg_catalog.bool_or(r.rolsuper) AS super FROM pg_catalog.pg_roles AS r
    WHERE r.rolname OPERATOR(pg_catalog.=) current_user OR r.rolname OPERATOR(pg_catalog.=) session_user
), owners AS MATERIALIZED (
    SELECT f.owner, EXISTS (
        SELECT FROM pg_catalog.pg_roles AS r CROSS JOIN us
        WHERE r.oid OPERATOR(pg_catalog.=) f.owner AND (
            r.rolname OPERATOR(pg_catalog.=) current_user OR r.rolname OPERATOR(pg_catalog.=) session_user
            OR r.rolname OPERATOR(pg_catalog.=) @OWNER@
            OR EXISTS (
                SELECT FROM pg_catalog.pg_roles AS s
                WHERE s.rolsuper AND pg_catalog.pg_has_role(r.oid, s.oid, 'MEMBER'))
            -- The database's owner has fewer rights than a superuser, and could obtain them.
            OR NOT us.super AND EXISTS (
                SELECT FROM pg_catalog.pg_database AS d
                WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
                    AND pg_catalog.pg_has_role(r.oid, d.datdba, 'MEMBER'))
        )
    ) AS trusted
    FROM (SELECT DISTINCT owner FROM found) AS f
)
SELECT EXISTS (SELECT FROM here) AS present, ARRAY(
    SELECT f.what OPERATOR(pg_catalog.||) ' ' OPERATOR(pg_catalog.||) CASE WHEN f.owner OPERATOR(pg_catalog.=) 0
        THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(f.owner) END
    FROM found AS f JOIN owners AS o ON o.owner OPERATOR(pg_catalog.=) f.owner WHERE NOT o.trusted
    ORDER BY f.place, f.what LIMIT @MAX_SHOWN@
)@KINDS@ AS problems
"""

# The objects that are not of the kind that this package creates.
_KINDS = """ OPERATOR(pg_catalog.||) ARRAY(
    SELECT pg_catalog.format('socketio_pg.%I is not a %s', e.name, e.kind)
    FROM (VALUES @ROWS@) AS e (name, kind) JOIN pg_catalog.pg_class AS c ON c.relname OPERATOR(pg_catalog.=) e.name
        JOIN here ON c.relnamespace OPERATOR(pg_catalog.=) here.oid
    WHERE c.relkind OPERATOR(pg_catalog.<>) CASE WHEN e.kind OPERATOR(pg_catalog.=) 'table' THEN 'r'
        WHEN e.kind OPERATOR(pg_catalog.=) 'view' THEN 'v' ELSE 'S' END LIMIT @MAX_SHOWN@
)"""

# Whether the caller may call publish() in all its forms; NULL or false if not.
_USABLE = """
SELECT answer.present, answer.problems, (
    SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND (
        SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE'))
        FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace OPERATOR(pg_catalog.=) n.oid AND p.proname OPERATOR(pg_catalog.=) 'publish')
    FROM pg_catalog.pg_namespace AS n WHERE n.nspname OPERATOR(pg_catalog.=) 'socketio_pg'
) AS usable
FROM ({query}) AS answer
"""


def query(owner: str | None, kinds: str | None = None) -> str:
    """Return the SQL of the check: one row, ``present`` and ``problems`` (text[]).

    ``owner`` is the setting SCHEMA_OWNER, as an SQL literal. ``kinds`` are the expected objects, as rows (name, kind).
    """
    expected = "" if kinds is None else _KINDS.replace("@ROWS@", kinds)
    sql = _QUERY.strip().replace("@KINDS@", expected).replace("@MAX_SHOWN@", str(MAX_SHOWN))
    return sql.replace("@OWNER@", owner or "NULL")


def usable(owner: str | None) -> str:
    """Return the SQL whether the caller may publish through the log: ``present``, ``problems`` and ``usable``."""
    return _USABLE.replace("{query}", query(owner))
