"""The cluster keys in the database: the queries, and which key is used when. No connections, no green threads.

A key seals once it is :data:`SEALS_AFTER` seconds old, by the database's clock: all nodes have read it by then. It
opens until its successor has been sealing for :data:`OPENS_FOR` seconds. `sql/2_functions.sql` deletes older ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

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
    (SELECT CAST(oid AS bigint) FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
    (SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
     FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
     WHERE n.nspname = 'socketio_pg' AND c.relname = 'cluster_key'),
    pg_catalog.quote_ident(current_user)
"""
SYSTEM = "SELECT system_identifier FROM pg_catalog.pg_control_system()"
#: Returns the keys and their ages in seconds, the newest first.
KEYS = """
SELECT key, CAST(extract(epoch FROM pg_catalog.clock_timestamp() - created_at) AS double precision)
FROM socketio_pg.cluster_key ORDER BY id DESC
"""

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
        raise ConfigurationError("the cluster key cannot be read", detail=not_permitted(role))
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
