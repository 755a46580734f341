"""The schema ``socketio_pg`` in the database: applies ``sql/*.sql``, as often as anybody likes; removes it again."""

import re
from collections.abc import Sequence
from pathlib import Path

from socketio_pg.core.channels import LOG_CHANNEL, quote_identifier
from socketio_pg.core.errors import DatabaseError
from socketio_pg.postgres.database import Database, transaction

#: Raised with each change of ``sql/*.sql``.
VERSION = 3

#: The relay's advisory locks: a class of ours ("SoPG"), one that the relay holds, one while it is busy.
LOCK_CLASS = 1399803975
RELAY_LOCK, BUSY_LOCK, INIT_LOCK = 1, 2, 3

#: Seconds that :func:`install` may take: it waits for another one that runs at the same time.
TIMEOUT = 30.0

_FOLDER = Path(__file__).parent / "sql"

_SERVER_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb) TO {role};
GRANT SELECT, DELETE ON socketio_pg.outbox TO {role};
GRANT SELECT ON SEQUENCE socketio_pg.outbox_id_seq TO {role};
GRANT SELECT, INSERT, DELETE ON socketio_pg.log TO {role};
GRANT SELECT, UPDATE ON socketio_pg.head TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON socketio_pg.node TO {role};
GRANT SELECT ON socketio_pg.schema_version, socketio_pg.channels, socketio_pg.nodes TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.probe(text[]) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.decide(text[], text[], text[], text[], double precision) TO {role};
"""

_PUBLISHER_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb) TO {role};
"""

_CLIENT_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT SELECT, INSERT ON socketio_pg.messages TO {role};
"""

_WATCHER_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.watch(regclass, text, text[], text[], text[], text, boolean, text, text, integer)
    TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.unwatch(regclass, text) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.watch_prepare(regclass, text, text, text) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.watch_sweep() TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.watch_failures(text) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.watch_changed() TO {role};
GRANT SELECT ON socketio_pg.watches, socketio_pg.watch_triggers TO {role};
"""

#: All that is ours, by name and without CASCADE: what is somebody else's stands in the way, and PostgreSQL says what.
_UNINSTALL = """\
DO $$
DECLARE
    detail text;
BEGIN
    IF to_regclass('socketio_pg.watches') IS NOT NULL THEN
        PERFORM socketio_pg.unwatch(t.relation::regclass)
        FROM (SELECT DISTINCT relation FROM socketio_pg.watch_triggers) AS t;
        PERFORM socketio_pg.watch_sweep();
    END IF;
    DROP VIEW IF EXISTS socketio_pg.channels, socketio_pg.nodes, socketio_pg.watches, socketio_pg.watch_triggers;
    DROP TABLE IF EXISTS socketio_pg.outbox, socketio_pg.log, socketio_pg.head, socketio_pg.node, socketio_pg.messages,
        socketio_pg.schema_version;
    DROP FUNCTION IF EXISTS socketio_pg.publish, socketio_pg.channel_problem, socketio_pg.ring,
        socketio_pg.channel, socketio_pg.probe, socketio_pg.decide, socketio_pg.recheck, socketio_pg.recheck_on_change,
        socketio_pg.watch, socketio_pg.unwatch, socketio_pg.watch_changed, socketio_pg.watch_send,
        socketio_pg.watch_tell, socketio_pg.watch_bulk, socketio_pg.watch_condition,
        socketio_pg.watch_rows, socketio_pg.watch_parts, socketio_pg.watch_columns, socketio_pg.watch_channel,
        socketio_pg.watch_prepare, socketio_pg.watch_sweep, socketio_pg.watch_failures;
    DROP SCHEMA socketio_pg;
EXCEPTION WHEN dependent_objects_still_exist THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
        MESSAGE = 'what is not ours still uses the schema socketio_pg: ' || replace(detail, chr(10), ', ');
END $$
"""


def statements(
    max_payload: int,
    server_role: str | None = None,
    publisher_role: str | None = None,
    client_roles: Sequence[str] = (),
    watcher_role: str | None = None,
) -> str:
    """The SQL that installs or upgrades the schema, without BEGIN and COMMIT.

    ``max_payload`` is the most bytes of a payload as PostgreSQL writes it. ``server_role``, ``publisher_role`` and
    ``client_roles`` (those that tokens name), which must exist, get what a server, a publisher and a client's policies
    need and nothing else. ``watcher_role`` may watch the tables that it owns: through a condition it acts with the
    rights of the schema's owner (docs/watch.md).
    """
    values = {"MAX_PAYLOAD": max_payload, "LOCK_CLASS": LOCK_CLASS, "BUSY_LOCK": BUSY_LOCK}
    parts = [
        "-- One at a time: two that create the same thing at once would fail.\n"
        f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {INIT_LOCK});\n",
        *(path.read_text("utf-8") for path in sorted(_FOLDER.glob("*.sql"))),
        f"INSERT INTO socketio_pg.schema_version (version) VALUES ({VERSION})\n"
        "    ON CONFLICT (only_row) DO UPDATE SET version = greatest(schema_version.version, excluded.version);\n",
    ]
    granted = [(server_role, _SERVER_GRANTS), (publisher_role, _PUBLISHER_GRANTS), (watcher_role, _WATCHER_GRANTS)]
    granted += [(role, _CLIENT_GRANTS) for role in client_roles]
    parts += [grants.format(role=quote_identifier(role)) for role, grants in granted if role is not None]
    parts.append(f"-- Servers that run already begin to use it.\nNOTIFY {LOG_CHANNEL}, 'installed';\n")
    return re.sub(r"@([A-Z_]+)@", lambda found: str(values[found[1]]), "\n".join(parts))


def install(
    database: Database,
    max_payload: int,
    server_role: str | None = None,
    publisher_role: str | None = None,
    client_roles: Sequence[str] = (),
    watcher_role: str | None = None,
    *,
    again: bool = True,
) -> None:
    """Install or upgrade the schema, in one transaction. The role needs CREATE on the database.

    Without ``again`` nothing is done where this version is installed already.

    Raises :class:`DatabaseError`, :class:`DatabaseUnavailableError`.
    """
    connection = database.connect()
    try:
        with transaction(connection, TIMEOUT) as cursor:
            cursor.execute("SELECT current_setting('server_encoding'), to_regclass('socketio_pg.schema_version')")
            encoding, versions = cursor.fetchone()
            if versions is not None:
                cursor.execute("SELECT version FROM socketio_pg.schema_version")
                installed = cursor.fetchone()
                if installed is not None and installed[0] == VERSION and not again:
                    return
                if installed is not None and installed[0] > VERSION:
                    raise DatabaseError(
                        f"the schema is of version {installed[0]}, and this program of {VERSION}: upgrade it"
                    )
            if encoding != "UTF8":
                raise DatabaseError(f"the log tier needs a database in the encoding UTF8; this one is in {encoding}")
            # Without the notices about what exists already.
            cursor.execute("SET LOCAL client_min_messages = warning")
            # Whoever waits for a lock stands before the relay and the publishers.
            cursor.execute("SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '20s'")
            cursor.execute(statements(max_payload, server_role, publisher_role, client_roles, watcher_role))
    finally:
        connection.close()


def uninstall(database: Database) -> bool:
    """Remove all that is ours, in one transaction: the log, watches on the tables of others, policies on our own table.

    Nothing else: what others have put into the schema, or made to depend on it, stops it, and nothing is removed. Other
    tables stay as they were. False when there was nothing to remove. The role must own the schema and what is watched.

    Raises :class:`DatabaseError`, whose message names what stands in the way, :class:`DatabaseUnavailableError`.
    """
    connection = database.connect()
    try:
        with transaction(connection, TIMEOUT) as cursor:
            cursor.execute("SELECT to_regclass('socketio_pg.schema_version')")
            if cursor.fetchone()[0] is None:
                return False
            cursor.execute("SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '20s'")
            cursor.execute(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {INIT_LOCK})")
            # Without the notices about what an older version did not have.
            cursor.execute("SET LOCAL client_min_messages = warning")
            cursor.execute(_UNINSTALL)
            return True
    finally:
        connection.close()
