"""Installs and upgrades the schema ``socketio_pg`` from ``sql/*.sql``, which is idempotent, and uninstalls it."""

import re
from collections.abc import Sequence

from socketio_pg.core.channels import LOG_CHANNEL, quote_identifier
from socketio_pg.core.errors import DatabaseError
from socketio_pg.postgres import trust
from socketio_pg.postgres.database import FIXED_PATH, Database, transaction

#: The version of the schema. Increase it whenever ``sql/*.sql`` changes more than comments and messages.
VERSION = 7

#: The supported majors of PostgreSQL, with each of which `make test-postgres` tests the schema and what depends on it.
MAJORS = range(13, 19)

#: The notifications on :data:`LOG_CHANNEL` after an installation and a removal: the only ones that are not sealed.
INSTALLED, REMOVED = "installed", "removed"

#: Seconds for :func:`install`, including the wait for a concurrent installation.
TIMEOUT = 30.0

_SERVER_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb), socketio_pg.publish(text, jsonb, text),
    socketio_pg.publish(text, jsonb, boolean, text, text, text), socketio_pg.publish_as(text, text, boolean, text),
    socketio_pg.publish_as(text, text, boolean, text, text, text), socketio_pg.snapshot() TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.publish_with_meta(text, text, boolean, text, jsonb, text),
    socketio_pg.add_with_meta(text, jsonb, jsonb) TO {role};
GRANT SELECT, UPDATE, DELETE ON socketio_pg.published TO {role};
GRANT SELECT, DELETE ON socketio_pg.outbox TO {role};
GRANT SELECT, UPDATE ON SEQUENCE socketio_pg.outbox_id_seq TO {role};
GRANT SELECT, INSERT, DELETE ON socketio_pg.log TO {role};
GRANT SELECT, UPDATE ON socketio_pg.head TO {role};
GRANT SELECT, UPDATE ON SEQUENCE socketio_pg.lease, socketio_pg.busy_until, socketio_pg.newest_position,
    socketio_pg.newest_id, socketio_pg.removed_position TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON socketio_pg.node, socketio_pg.session, socketio_pg.session_owner TO {role};
GRANT SELECT ON socketio_pg.schema_version, socketio_pg.channels, socketio_pg.nodes, socketio_pg.consumers TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON socketio_pg.presence_process, socketio_pg.presence_member,
    socketio_pg.presence_channel TO {role};
GRANT SELECT ON socketio_pg.presence TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.presence_count(text[], integer[], text[], text[], integer[], text),
    socketio_pg.presence_beat(uuid, text, double precision), socketio_pg.presence_sweep(text, boolean),
    socketio_pg.presence_write(uuid, text[], text[], text[], text[], text[], bigint[], text[], text[], text, boolean)
    TO {role};
GRANT SELECT ON socketio_pg.cluster_key, socketio_pg.rule TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON socketio_pg.retention, socketio_pg.channel_trim TO {role};
GRANT SELECT, UPDATE ON SEQUENCE socketio_pg.trim_number TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.trimmed_together(text, bigint), socketio_pg.note_trim(bigint) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.probe_kinds(text[], text[]) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.decide(text[], text[], text[], text[], double precision) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.live_table(text),
    socketio_pg.live_rows(text[], text[], text[], jsonb, double precision) TO {role};
GRANT SELECT ON socketio_pg.watches, socketio_pg.watch_triggers TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.trigger_spec(bytea), socketio_pg.watch_failures(text) TO {role};
"""

_PUBLISHER_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb), socketio_pg.publish(text, jsonb, text),
    socketio_pg.publish(text, jsonb, boolean, text, text, text), socketio_pg.publish_as(text, text, boolean, text),
    socketio_pg.publish_as(text, text, boolean, text, text, text), socketio_pg.snapshot() TO {role};
"""

_CONSUMER_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.consume(text, text[], integer, text), socketio_pg.consumer_move(text, text, text),
    socketio_pg.consumer_failed(text, bigint, text), socketio_pg.consumer_drop(text), socketio_pg.snapshot() TO {role};
GRANT SELECT ON socketio_pg.consumers TO {role};
"""

_EMITTER_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT SELECT ON socketio_pg.cluster_key TO {role};
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
GRANT EXECUTE ON FUNCTION socketio_pg.trusts(oid), socketio_pg.trigger_spec(bytea),
    socketio_pg.trigger_condition(oid, text) TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.watch_begin(), socketio_pg.watch_end(), socketio_pg.watch_sort(),
    socketio_pg.watch_row(), socketio_pg.watch_hook(text, text, boolean), socketio_pg.watch_order(regclass),
    socketio_pg.watch_create(regclass, text, jsonb), socketio_pg.watch_blind(regclass, text) TO {role};
GRANT SELECT ON socketio_pg.watches, socketio_pg.watch_triggers TO {role};
"""

_ADMIN_GRANTS = """\
GRANT USAGE ON SCHEMA socketio_pg TO {role};
GRANT EXECUTE ON FUNCTION socketio_pg.disconnect_user(text), socketio_pg.disconnect_connection(text),
    socketio_pg.unsubscribe_user(text, text), socketio_pg.send_to_user(text, jsonb) TO {role};
"""

#: Drops all objects of the schema by name and without CASCADE: it fails if other objects depend on them, and PostgreSQL
#: names those.
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
    DROP VIEW IF EXISTS socketio_pg.presence, socketio_pg.channels, socketio_pg.nodes, socketio_pg.consumers,
        socketio_pg.watches, socketio_pg.watch_triggers;
    DROP TABLE IF EXISTS socketio_pg.outbox, socketio_pg.published, socketio_pg.log, socketio_pg.head, socketio_pg.node,
        socketio_pg.messages, socketio_pg.cluster_key, socketio_pg.consumer, socketio_pg.watch_failure,
        socketio_pg.schema_version, socketio_pg.session, socketio_pg.session_owner, socketio_pg.presence_process,
        socketio_pg.presence_member, socketio_pg.presence_channel, socketio_pg.rule,
        socketio_pg.retention, socketio_pg.channel_trim;
    DROP SEQUENCE IF EXISTS socketio_pg.lease, socketio_pg.busy_until, socketio_pg.newest_position,
        socketio_pg.newest_id, socketio_pg.removed_position, socketio_pg.trim_number;
    DROP FUNCTION IF EXISTS socketio_pg.publish(text, jsonb), socketio_pg.publish(text, jsonb, boolean, text),
        socketio_pg.publish(text, jsonb, boolean, text, text, text), socketio_pg.publish(text, jsonb, text),
        socketio_pg.publish_as(text, text, boolean, text),
        socketio_pg.publish_as(text, text, boolean, text, text, text),
        socketio_pg.publish_with_meta, socketio_pg.add_with_meta, socketio_pg.chosen_meta, socketio_pg.claim,
        socketio_pg.snapshot,
        socketio_pg.channel_problem, socketio_pg.ring,
        socketio_pg.next_place, socketio_pg.note_sending, socketio_pg.rotate_cluster_key, socketio_pg.sign_head,
        socketio_pg.note_removed, socketio_pg.consume, socketio_pg.consumer_start, socketio_pg.consumer_move,
        socketio_pg.consumer_failed, socketio_pg.consumer_drop,
        socketio_pg.rules_changed, socketio_pg.note_trim, socketio_pg.trimmed_together, socketio_pg.trimmed_after,
        socketio_pg.channel, socketio_pg.probe, socketio_pg.probe_kinds, socketio_pg.decide,
        socketio_pg.live_table, socketio_pg.live_rows,
        socketio_pg.recheck, socketio_pg.recheck_on_change, socketio_pg.presence_count, socketio_pg.presence_beat,
        socketio_pg.presence_write, socketio_pg.presence_sweep,
        socketio_pg.control, socketio_pg.disconnect_user,
        socketio_pg.disconnect_connection, socketio_pg.unsubscribe_user, socketio_pg.send_to_user,
        socketio_pg.watch, socketio_pg.unwatch, socketio_pg.watch_changed, socketio_pg.watch_send,
        socketio_pg.watch_send_row, socketio_pg.watch_send_message, socketio_pg.watch_pick, socketio_pg.watch_key,
        socketio_pg.watch_json, socketio_pg.watch_failed, socketio_pg.watch_channel_problem,
        socketio_pg.watch_tell, socketio_pg.watch_bulk, socketio_pg.watch_condition,
        socketio_pg.watch_rows, socketio_pg.watch_parts, socketio_pg.watch_columns, socketio_pg.watch_channel,
        socketio_pg.watch_prepare, socketio_pg.watch_sweep, socketio_pg.watch_failures, socketio_pg.watch_list,
        socketio_pg.watch_check, socketio_pg.watch_source, socketio_pg.watch_begin, socketio_pg.watch_end,
        socketio_pg.watch_sort, socketio_pg.watch_row, socketio_pg.watch_hook, socketio_pg.watch_order,
        socketio_pg.watch_places, socketio_pg.watch_reorder, socketio_pg.watch_single_row,
        socketio_pg.watch_row_place, socketio_pg.watch_blind, socketio_pg.watch_create, socketio_pg.trusts,
        socketio_pg.trigger_spec, socketio_pg.trigger_condition;
    DROP SCHEMA socketio_pg;
EXCEPTION WHEN dependent_objects_still_exist THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
        MESSAGE = 'other objects depend on the schema socketio_pg: ' || replace(detail, chr(10), ', ');
END $$
"""


def statements(
    max_payload: int,
    server_role: str | None = None,
    publisher_role: str | None = None,
    client_roles: Sequence[str] = (),
    watcher_role: str | None = None,
    emitter_role: str | None = None,
    consumer_role: str | None = None,
    admin_role: str | None = None,
    *,
    schema_owner: str | None = None,
) -> str:
    """Return the SQL that installs or upgrades the schema, without BEGIN and COMMIT.

    ``max_payload`` is the maximum size of a payload in bytes, in PostgreSQL's text form of jsonb. ``server_role``,
    ``publisher_role`` and ``client_roles`` (the roles that tokens name) must exist; they get only the privileges that a
    server, a publisher and the evaluation of policies need. ``watcher_role`` may watch tables that it owns
    (docs/watch.md). ``emitter_role`` may read the cluster key, for programs that emit with :class:`PostgresManager`: it
    can send anything to all clients. ``consumer_role`` may use durable consumers (docs/consumer.md): it may read all
    channels, and move all consumers. ``admin_role`` may disconnect users and send to them (docs/identity.md).
    ``schema_owner`` is trusted as the owner of an existing schema.
    """
    values = {"MAX_PAYLOAD": max_payload, "OLDEST": MAJORS[0]}
    parts = [
        "-- Other schemas may overload functions and operators. The end restores the search_path for your migrations.\n"
        "SELECT pg_catalog.set_config('socketio_pg.search_path', pg_catalog.current_setting('search_path'), true);\n"
        f"{FIXED_PATH};\n",
        trust.installation(schema_owner),
        *(path.read_text("utf-8") for path in sorted(trust.FOLDER.glob("*.sql"))),
        f"INSERT INTO socketio_pg.schema_version (version) VALUES ({VERSION})\n"
        "    ON CONFLICT (only_row) DO UPDATE SET version = greatest(schema_version.version, excluded.version);\n",
    ]
    granted = [(server_role, _SERVER_GRANTS), (publisher_role, _PUBLISHER_GRANTS), (watcher_role, _WATCHER_GRANTS)]
    granted += [(emitter_role, _EMITTER_GRANTS), (consumer_role, _CONSUMER_GRANTS), (admin_role, _ADMIN_GRANTS)]
    granted += [(role, _CLIENT_GRANTS) for role in client_roles]
    parts += [grants.format(role=quote_identifier(role)) for role, grants in granted if role is not None]
    parts.append(f"-- Notifies running servers, which start to use the schema.\nNOTIFY {LOG_CHANNEL}, '{INSTALLED}';\n")
    parts.append("SELECT set_config('search_path', current_setting('socketio_pg.search_path'), true);\n")
    return re.sub(r"@([A-Z_]+)@", lambda found: str(values[found[1]]), "\n".join(parts))


def install(
    database: Database,
    max_payload: int,
    server_role: str | None = None,
    publisher_role: str | None = None,
    client_roles: Sequence[str] = (),
    watcher_role: str | None = None,
    emitter_role: str | None = None,
    consumer_role: str | None = None,
    admin_role: str | None = None,
    *,
    again: bool = True,
) -> None:
    """Install or upgrade the schema, in one transaction. The role needs CREATE on the database.

    Without ``again`` it does nothing if this version is installed already.

    Raises :class:`UntrustedSchemaError`, :class:`DatabaseError`, :class:`DatabaseUnavailableError`.
    """
    connection = database.connect("init")
    try:
        with transaction(connection, TIMEOUT) as cursor:
            # Fixes the search_path as well.
            trust.present(database, connection)
            cursor.execute("SELECT current_setting('server_encoding'), to_regclass('socketio_pg.schema_version')")
            encoding, versions = cursor.fetchone()
            if versions is not None:
                cursor.execute("SELECT version FROM socketio_pg.schema_version")
                installed = cursor.fetchone()
                if installed is not None and installed[0] == VERSION and not again:
                    return
                if installed is not None and installed[0] > VERSION:
                    raise DatabaseError(
                        f"the schema has version {installed[0]}, but this program has {VERSION}: upgrade the program"
                    )
            if encoding != "UTF8":
                raise DatabaseError(f"the log needs a database with encoding UTF8; this one has {encoding}")
            # Suppresses notices about objects that exist already.
            cursor.execute("SET LOCAL client_min_messages = warning")
            # While this transaction waits for a lock, the relay and publishers queue behind it.
            cursor.execute("SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '20s'")
            cursor.execute(
                statements(
                    max_payload,
                    server_role,
                    publisher_role,
                    client_roles,
                    watcher_role,
                    emitter_role,
                    consumer_role,
                    admin_role,
                    schema_owner=database.schema_owner,
                )
            )
    finally:
        connection.close()


def uninstall(database: Database) -> bool:
    """Remove the schema in one transaction: the log, watches on other tables, policies on ``socketio_pg.messages``.

    If the schema contains other objects, or other objects depend on it, nothing is removed. Other tables remain
    unchanged. Returns False if the schema is not installed. The role must own the schema and the watched tables.

    Raises :class:`UntrustedSchemaError`, :class:`DatabaseError`, whose message names the dependent objects,
    :class:`DatabaseUnavailableError`.
    """
    connection = database.connect("drop")
    try:
        with transaction(connection, TIMEOUT) as cursor:
            if not trust.present(database, connection):
                return False
            cursor.execute("SELECT to_regclass('socketio_pg.schema_version')")
            if cursor.fetchone()[0] is None:
                return False
            cursor.execute("SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '20s'")
            cursor.execute("LOCK TABLE socketio_pg.schema_version IN ACCESS EXCLUSIVE MODE")
            # Suppresses notices about objects that an older version did not have.
            cursor.execute("SET LOCAL client_min_messages = warning")
            cursor.execute(_UNINSTALL)
            # Servers must not use a schema that another role creates afterwards.
            cursor.execute(f"NOTIFY {LOG_CHANNEL}, '{REMOVED}'")
            return True
    finally:
        connection.close()
