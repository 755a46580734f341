"""Reads the state of database and log for ``socketio-pg status`` and the doctor, in sections; each is a dictionary.

Read-only; the privileges of a server's role are sufficient.
"""

from typing import Any

from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError, UntrustedSchemaError
from socketio_pg.log.history import HEAD
from socketio_pg.log.lease import LEADER, Lease
from socketio_pg.postgres import trust
from socketio_pg.postgres.database import Database, fetch, fetch_named
from socketio_pg.postgres.schema import VERSION

#: The maximum number of rows to count, and of channels to list.
MAX_COUNTED = 100_000
MAX_CHANNELS = 20

# most_sessions is the setting max_connections, of which PostgreSQL reserves some.
_DATABASE = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_number,
    current_database() AS name, current_user AS role, current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS standby, pg_notification_queue_usage() AS notify_queue,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS sessions,
    current_setting('max_connections')::int AS most_sessions,
    (SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'socketio_pg%' AND pid <> pg_backend_pid()) AS ours
"""

_OUTBOX = f"""
SELECT (SELECT count(*) FROM (SELECT FROM socketio_pg.outbox LIMIT {MAX_COUNTED}) AS counted) AS rows,
    (SELECT extract(epoch FROM clock_timestamp() - published_at)::float FROM socketio_pg.outbox ORDER BY id LIMIT 1)
        AS oldest_seconds
"""

# Schemas before version 5 have no workers.
_NODES = """
SELECT name, version, relay, position, clients, started_at,
    extract(epoch FROM now() - seen_at)::float AS seen_seconds_ago, to_jsonb(nodes) -> 'workers' AS workers
FROM socketio_pg.nodes ORDER BY name
"""

_CHANNELS = f"""
SELECT channel, messages, last_position, extract(epoch FROM age)::float AS age_seconds
FROM socketio_pg.channels ORDER BY last_position DESC LIMIT {MAX_CHANNELS}
"""


_CONSUMERS = """
SELECT name, channels, position, lag, extract(epoch FROM age)::float AS age_seconds, moved_at, failures,
    failed_position, failed_at, error, lost
FROM socketio_pg.consumers ORDER BY name
"""


def read_database(connection: Any) -> dict[str, Any]:
    """Return version, encoding, role, sessions, and the usage of the NOTIFY queue (0 to 1)."""
    return fetch_named(connection, _DATABASE)[0]


def read_schema_version(connection: Any) -> int | None:
    """Return the version of the schema; None when it is not installed."""
    if fetch(connection, "SELECT to_regclass('socketio_pg.schema_version')") == [(None,)]:
        return None
    rows = fetch(connection, "SELECT version FROM socketio_pg.schema_version")
    return int(rows[0][0]) if rows else None


def read_relay(connection: Any) -> dict[str, Any]:
    """Return the leader's session ``pid`` and its ``node``, both None if no node leads, and the ``outbox``.

    ``renewed_seconds_ago`` is the age of its lease; ``expired`` tells if that is too old.
    """
    leader = _head(connection, LEADER)
    leads = leader["connected"]
    return {
        "pid": leader["pid"] if leads else None,
        "node": leader["name"] if leads else None,
        "renewed_seconds_ago": leader["age"] if leads else None,
        "expired": leads and leader["age"] > Lease.duration,
        "outbox": fetch_named(connection, _OUTBOX)[0],
    }


def read_log(connection: Any) -> dict[str, Any]:
    """Return ``epoch``, ``position`` and ``trimmed`` of the log."""
    return _head(connection, HEAD)


def _head(connection: Any, query: str) -> dict[str, Any]:
    rows = fetch_named(connection, query)
    if not rows:
        raise DatabaseError("the log's head is missing: run 'socketio-pg init'")
    return rows[0]


def read_nodes(connection: Any) -> list[dict[str, Any]]:
    """Return the running nodes. ``workers`` is None for a node with one worker, otherwise a list with one for each:
    ``slot``, ``pid``, ``clients``, ``problem``, and whether it ``listens`` to PostgreSQL for the others.
    """
    return fetch_named(connection, _NODES)


def read_channels(connection: Any) -> list[dict[str, Any]]:
    """Return the channels with the newest messages in the log."""
    return fetch_named(connection, _CHANNELS)


def read_consumers(connection: Any) -> list[dict[str, Any]]:
    """Return the durable consumers (docs/consumer.md). Schemas before version 6 have none."""
    if fetch(connection, "SELECT to_regclass('socketio_pg.consumers')") == [(None,)]:
        return []
    return fetch_named(connection, _CONSUMERS)


def read_status(database: Database, connection: Any) -> dict[str, Any]:
    """Return all sections. A section that this role may not read is ``{"problem": …}``."""
    status: dict[str, Any] = {"database": {"address": str(database)} | read_database(connection)}
    try:
        trust.present(database, connection)
    except UntrustedSchemaError as refused:
        return status | {"schema": {"problem": refused.detail}}
    version = _section(read_schema_version, connection)
    status["schema"] = version if isinstance(version, dict) else {"version": version, "expected": VERSION}
    if isinstance(version, int):
        status["log"] = _section(read_log, connection)
        status["relay"] = _section(read_relay, connection)
        status["nodes"] = _section(read_nodes, connection)
        status["channels"] = _section(read_channels, connection)
        status["consumers"] = _section(read_consumers, connection)
    return status


def _section(read: Any, connection: Any) -> Any:
    try:
        return read(connection)
    except DatabaseUnavailableError:
        raise
    except (DatabaseError, LogNotInstalledError) as error:
        return {"problem": str(error)}
