"""The doorbell: whether publishers notify the relay when they commit, or the relay looks at the outbox more often.

PostgreSQL cannot prepare a transaction that has executed NOTIFY (``PREPARE TRANSACTION``). So publishers do not notify
where transactions may be prepared, unless the setting ``socketio_pg.doorbell`` decides otherwise: ``ring()`` in
``postgres/sql/2_functions.sql``.
"""

from typing import Any

from socketio_pg.log.low_water import LowWater
from socketio_pg.log.moves import BOUND
from socketio_pg.postgres.database import fetch_as_is

#: The maximum number of prepared transactions, and whether all publishers ring the doorbell. The settings of databases
#: and roles are read from the catalog. One in postgresql.conf is that of this session, unless its role has its own. A
#: setting of another session is not visible.
RINGS = """
WITH catalog AS (
    SELECT setrole = 0 AS of_everyone, lower(substr(entry, 22)) AS value
    FROM pg_catalog.pg_db_role_setting CROSS JOIN unnest(setconfig) AS entry
    WHERE starts_with(entry, 'socketio_pg.doorbell=')
        AND setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
), setting AS (
    SELECT * FROM catalog UNION ALL SELECT true, lower(current_setting('socketio_pg.doorbell', true))
    WHERE NOT EXISTS (SELECT FROM catalog WHERE NOT of_everyone)
)
SELECT most,
    (most = 0 OR EXISTS (SELECT FROM setting WHERE of_everyone AND value = 'on'))
    AND NOT EXISTS (SELECT FROM setting WHERE value = 'off') AS rings
FROM (SELECT current_setting('max_prepared_transactions')::int AS most) AS known
"""

#: Prepares the statement of :func:`has_rows`: one round trip, where moving nothing takes two.
PREPARE = f"""
PREPARE socketio_pg_look (bigint, xid8[], bigint[]) AS SELECT EXISTS (
    SELECT FROM socketio_pg.outbox WHERE id > ({BOUND.format(floor="$1", xids="$2", lows="$3")}))
"""

_LOOK = "EXECUTE socketio_pg_look(%s::bigint, %s::text[]::xid8[], %s::bigint[])"


def rings(connection: Any, seconds: float) -> bool:
    """Return whether the relay can rely on the doorbell. Raises as :func:`fetch`."""
    [(_, reliable)] = fetch_as_is(connection, RINGS, seconds=seconds)
    return bool(reliable)


def has_rows(connection: Any, low: LowWater, seconds: float) -> bool:
    """Return whether the outbox has a row that `low` expects. Raises as :func:`fetch`."""
    xids, lows = [str(xid) for xid in low.open], list(low.open.values())
    [(found,)] = fetch_as_is(connection, _LOOK, low.floor, xids, lows, seconds=seconds)
    return bool(found)
