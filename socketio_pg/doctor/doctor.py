"""Runs all checks. The checks are in `checks_names`, `checks_settings`, `checks_database` and `checks_log`."""

import os
from collections.abc import Iterator
from typing import Any

from socketio_pg.core import loading
from socketio_pg.core.config import NO_DATABASE_REMEDY, Settings
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.doctor import checks_database, checks_log, checks_names, checks_rules, checks_settings
from socketio_pg.doctor.findings import Finding, error, warning
from socketio_pg.postgres.database import Database, session, wait_green


def examine(settings: Settings, serving: Database | None = None) -> Iterator[Finding]:
    """Run all checks and yield each finding immediately. The checks are independent of one another.

    ``serving``: the database of the running server that asks, whose port is in use.
    """
    yield from checks_names.names(loading.given())
    yield from checks_settings.configuration(settings)
    yield from checks_settings.safety(settings)
    yield from checks_settings.key_set(settings)
    yield from checks_settings.message_queue(settings)
    yield from checks_settings.programs(settings, os.environ)
    yield from checks_settings.drivers(os.environ)
    yield from checks_settings.workers(settings, os.environ)
    yield from checks_settings.descriptors(settings)
    if serving is None:
        yield from checks_settings.port(settings)
        if settings.database_url is None:
            if not settings.debug:
                yield error("database", "no database is configured", NO_DATABASE_REMEDY)
            return
        wait_green()
    database = serving or _database(settings)
    try:
        with session(database, "doctor") as connection:
            yield from _examine_database(settings, database, connection)
    except DatabaseUnavailableError as unavailable:
        yield error(
            "database", str(unavailable),
            "start PostgreSQL, or correct DATABASE_URL; a firewall or pg_hba.conf may block the connection",
        )  # fmt: skip


def _database(settings: Settings) -> Database:
    assert settings.database_url is not None
    return Database(settings.database_url, settings.listen_database_url, settings.schema_owner)


def _examine_database(settings: Settings, database: Database, connection: Any) -> Iterator[Finding]:
    of_database = {
        "database": checks_database.server(connection),
        "clock": checks_database.clock(connection),
        "LISTEN": checks_database.round_trip(database, separate=settings.listen_database_url is not None),
        "NOTIFY queue": checks_database.notify_queue(connection),
        "transactions": checks_database.idle_in_transaction(connection),
        "sessions": checks_database.sessions(connection, settings.max_channels),
    }
    of_log = {
        "schema": checks_log.installed(connection, settings),
        "privileges": checks_log.privileges(connection, settings),
        "relay": checks_log.relay(connection),
        "epoch": checks_log.epoch(connection),
        "doorbell": checks_log.doorbell(connection),
        "nodes": checks_log.nodes(connection),
        "messages": checks_log.refused(connection),
        "roles": checks_log.roles(database, settings),
        "watches": checks_log.watches(connection),
        "rules": checks_rules.rules(connection, settings),
        "consumers": checks_log.consumers(connection, settings),
    }
    for name, findings in of_database.items():
        yield from _guarded(name, findings)
    # First: the other checks would run the code of a schema that another role has created.
    foreign = list(_guarded("trust", checks_log.trusted(database, connection)))
    yield from foreign
    if any(finding.level == "error" for finding in foreign):
        return
    unreadable = list(_guarded("privileges", checks_log.readable(connection)))
    yield from unreadable
    if not unreadable:
        for name, findings in of_log.items():
            yield from _guarded(name, findings)


def _guarded(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check. If the check itself fails, that is a finding, and the other checks still run."""
    try:
        yield from findings
    except DatabaseUnavailableError:
        raise
    except (DatabaseError, LogNotInstalledError) as failed:
        yield warning(name, f"the check failed: {failed}", "run the doctor with a role that has the privileges")
