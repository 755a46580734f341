"""The cluster keys in the database: the queries, and which key is used when. No connections, no green threads.

A key seals once it is :data:`SEALS_AFTER` seconds old, by the database's clock: all nodes have read it by then. It
opens until its successor has been sealing for :data:`OPENS_FOR` seconds. `sql/2_functions.sql` deletes older ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

from socketio_pg.core.channels import quote_literal
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.seal import Key

#: Seconds.
SEALS_AFTER = 20.0
OPENS_FOR = 60.0

#: Returns whether every role may read the system identifier, the database's oid, whether this role may read the keys
#: (NULL without the schema), and its quoted name. No statement fails for a role without rights, since it may be part of
#: a caller's transaction; and no program uses what another one's role cannot read, since all need the same identity.
INSTALLATION = """
SELECT pg_catalog.has_function_privilege('public', 'pg_catalog.pg_control_system()', 'EXECUTE'),
    (SELECT CAST(oid AS bigint) FROM pg_catalog.pg_database
     WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()),
    (SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
     FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n
         ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
     WHERE n.nspname OPERATOR(pg_catalog.=) CAST('socketio_pg' AS pg_catalog.name)
         AND c.relname OPERATOR(pg_catalog.=) CAST('cluster_key' AS pg_catalog.name)),
    pg_catalog.quote_ident(current_user)
"""
SYSTEM = "SELECT system_identifier FROM pg_catalog.pg_control_system()"
#: Returns the keys and their ages in seconds, the newest first.
KEYS = """
SELECT key, CAST(extract(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) created_at) AS double precision)
FROM socketio_pg.cluster_key ORDER BY id DESC
"""

# The owners of the schema and of the table who are not trusted, by the rules of `trust`; for connections of a program,
# whose search_path may contain schemas of others: all names are qualified.
_FOREIGN_OWNERS = """
SELECT pg_catalog.pg_get_userbyid(o.owner)::pg_catalog.text
FROM (
    SELECT n.nspowner FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname OPERATOR(pg_catalog.=) 'socketio_pg'::pg_catalog.name
    UNION ALL
    SELECT c.relowner FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE n.nspname OPERATOR(pg_catalog.=) 'socketio_pg'::pg_catalog.name
        AND c.relname OPERATOR(pg_catalog.=) 'cluster_key'::pg_catalog.name
) AS o (owner)
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) o.owner AND (
        r.rolname OPERATOR(pg_catalog.=) current_user OR r.rolname OPERATOR(pg_catalog.=) session_user
        OR r.rolname OPERATOR(pg_catalog.=) @OWNER@::pg_catalog.name
        OR EXISTS (
            SELECT FROM pg_catalog.pg_roles AS s
            WHERE s.rolsuper AND pg_catalog.pg_has_role(r.oid, s.oid, 'MEMBER'::pg_catalog.text))
        OR EXISTS (
            SELECT FROM pg_catalog.pg_database AS d
            WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
                AND pg_catalog.pg_has_role(r.oid, d.datdba, 'MEMBER'::pg_catalog.text)
        ) AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_roles AS u WHERE u.rolsuper AND (
                u.rolname OPERATOR(pg_catalog.=) current_user OR u.rolname OPERATOR(pg_catalog.=) session_user))
    )
)
"""

UNREADABLE = "the cluster key cannot be read"
WAYS_OUT = (
    "install the schema with 'socketio-pg init' (or AUTO_INIT=1), or set CLUSTER_KEY to the same random text of at "
    "least 32 characters everywhere"
)
NOT_INSTALLED = f"there is no cluster key, with which nodes seal what they send each other: {WAYS_OUT}"


def not_permitted(role: str) -> str:
    """Return the sentence for a role, a quoted identifier, that may not read the keys."""
    return (
        f"the role {role} may not read the cluster key, with which nodes seal what they send each other: run "
        f"'GRANT USAGE ON SCHEMA socketio_pg TO {role}; GRANT SELECT ON socketio_pg.cluster_key TO {role}', or set "
        "CLUSTER_KEY to the same random text of at least 32 characters everywhere"
    )


def foreign_owners(schema_owner: str | None) -> str:
    """Return the query for the owners who are not trusted; ``schema_owner`` is the setting SCHEMA_OWNER."""
    return _FOREIGN_OWNERS.replace("@OWNER@", "NULL" if schema_owner is None else quote_literal(schema_owner))


def read(
    fetch: Callable[[str], Sequence[Sequence[Any]]], given: Sequence[Key], verify: Callable[[], None] = lambda: None
) -> tuple[str, list[Key]]:
    """Return the identity of the installation, and its keys, the one that seals first.

    ``fetch`` runs a query and returns its rows. ``given``: the keys of CLUSTER_KEY, which replace the database's.
    ``verify`` is called before the table of the schema is read. Raises :class:`ConfigurationError` when there are none
    or this role may not read them.
    """
    all_may, oid, may_read, role = fetch(INSTALLATION)[0]
    # Without the system identifier, which some hosted databases hide, only the keys tell database clusters apart.
    system = fetch(SYSTEM)[0][0] if all_may else 0
    if not given and may_read is False:
        raise ConfigurationError(UNREADABLE, detail=not_permitted(role))
    keys = list(given)
    if not keys and may_read:
        verify()
        keys = choose([(key, age) for key, age in fetch(KEYS)])
    if not keys:
        raise ConfigurationError(NOT_INSTALLED)
    return f"{system}/{oid}", keys


def choose(rows: Sequence[tuple[Any, float]]) -> list[Key]:
    """Return the keys to use, the one that seals first. ``rows`` is the result of :data:`KEYS`."""
    keys = []
    for index, (key, _) in enumerate(rows):
        if index == 0 or rows[index - 1][1] < SEALS_AFTER + OPENS_FOR:
            keys.append(Key.from_bytes(bytes(key)))
    old_enough = (index for index, (_, age) in enumerate(rows) if age >= SEALS_AFTER)
    # The oldest one if all are new: the others may not be known everywhere.
    sealing = min(next(old_enough, len(rows) - 1), len(keys) - 1)
    return [keys[sealing], *keys[:sealing], *keys[sealing + 1 :]] if keys else []
