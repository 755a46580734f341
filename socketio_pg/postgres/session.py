"""The settings that each session of this package needs, whatever ALTER ROLE or postgresql.conf say. Only text, no I/O.

Changes only values that differ, so that sessions of an ordinary role stay as they are: a pooler in transaction mode
passes them on to other programs. Leaves ``search_path`` (statements set it themselves), ``standard_conforming_strings``
(psycopg2 reads it when it connects, and quotes accordingly), and settings that need a superuser.
"""

from collections.abc import Mapping

#: Name → the value as SHOW returns it. Names that a version of PostgreSQL does not know are left out.
NEEDED: Mapping[str, str] = {
    # The log is written to, and its readers rely on seeing what was committed before each statement.
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # Each part limits its statements itself, and detects lost connections by its own heartbeat.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # An error ends a statement, not the session.
    "exit_on_error": "off",
    # Off, every query of a table with policies fails.
    "row_security": "on",
    # The views of the schema.
    "restrict_nonsystem_relation_kind": "",
    # Text of numbers, arrays and conditions.
    "extra_float_digits": "1",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # Messages of levels that nobody reads here.
    "client_min_messages": "notice",
    # Without indexes and nested loops every read of the log scans all of it.
    "enable_indexscan": "on",
    "enable_bitmapscan": "on",
    "enable_nestloop": "on",
    "enable_sort": "on",
    "plan_cache_mode": "auto",
}


def session_sql(settings: Mapping[str, str] | None = None) -> str:
    """Return statements for the start of a session, in one round trip: :data:`NEEDED`, with ``settings`` over it."""
    wanted = {**NEEDED, **(settings or {})}
    first = wanted.pop("statement_timeout")
    rows = ", ".join(f"('{name}', '{value}')" for name, value in wanted.items())
    return (
        "SET LOCAL search_path = pg_catalog, pg_temp; "
        # Apart and first: the smallest limits would end the longer statement.
        f"SELECT set_config('statement_timeout', '{first}', false) "
        f"WHERE current_setting('statement_timeout') <> '{first}'; "
        "SELECT set_config(name, value, false) "
        # NULL for a name that this version does not know. Not from pg_settings, which takes some milliseconds.
        f"FROM (VALUES {rows}) AS needed (name, value) WHERE current_setting(name, true) <> value "
        # A message that was acknowledged survives a crash.
        "UNION ALL SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
