"""The cluster keys in the database: the queries, and which key is used when. No connections, no green threads.

A key seals once it is :data:`SEALS_AFTER` seconds old, by the database's clock: all nodes have read it by then. It
opens until its successor has been sealing for :data:`OPENS_FOR` seconds. `sql/2_functions.sql` deletes older ones.
"""

from collections.abc import Sequence
from typing import Any

from socketio_pg.core.seal import Key

#: Seconds.
SEALS_AFTER = 20.0
OPENS_FOR = 60.0

#: Returns whether every role may read the system identifier, and the database's oid. A node must not use what another
#: program's role cannot read, since all need the same identity.
INSTALLATION = """
SELECT pg_catalog.has_function_privilege('public', 'pg_catalog.pg_control_system()', 'EXECUTE'),
    (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""
SYSTEM = "SELECT system_identifier FROM pg_catalog.pg_control_system()"
#: Returns the keys and their ages in seconds, the newest first.
KEYS = """
SELECT key, extract(epoch FROM pg_catalog.clock_timestamp() - created_at)::double precision
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


def identity(system_identifier: int | None, database_oid: int) -> str:
    """Return the identity of an installation; without a system identifier it is unique in its cluster only."""
    return f"{system_identifier or 0}/{database_oid}"


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
