"""The doctor's checks of PostgreSQL: version, clock, LISTEN and NOTIFY, sessions."""

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.channels import RESERVED_PREFIX
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError
from socketio_pg.doctor.findings import Finding, error, ok, warning
from socketio_pg.doctor.status import read_database
from socketio_pg.postgres.database import Database, fetch, session, translated_errors
from socketio_pg.postgres.listeners import Listeners
from socketio_pg.postgres.schema import MAJORS

#: Maximum difference between the clocks of this machine and the database, in seconds.
MAX_SKEW = 5.0
#: Usage of the NOTIFY queue, from 0 to 1, from which on it is reported.
QUEUE_USED = 0.05
#: Seconds after which a session that is idle in a transaction is reported.
MAX_IDLE = 60.0
#: The SQLSTATE of a commit with a NOTIFY while the queue is full.
QUEUE_FULL = "54000"
#: The SQLSTATE of LISTEN and NOTIFY on a hot standby.
READ_ONLY = "25006"
#: Seconds to wait for a notification's round trip.
PATIENCE = 5.0


def server(connection: Any) -> Iterator[Finding]:
    """Check version and encoding, and that the server is not a hot standby."""
    found = read_database(connection)
    yield from judge_server(found["version"], found["version_number"], found["encoding"], standby=found["standby"])


def judge_server(version: str, number: int, encoding: str, *, standby: bool) -> Iterator[Finding]:
    """Judge the version (``number`` is ``server_version_num``), the encoding, and whether it is a standby."""
    major, oldest, newest = number // 10_000, MAJORS[0], MAJORS[-1]
    if major < oldest:
        yield error("version", f"PostgreSQL {version} is too old", f"PostgreSQL {oldest} or later is needed")
    elif major > newest:
        yield warning(
            "version", f"PostgreSQL {version} is newer than the versions that this release was tested with",
            f"look for a newer release of socketio_pg; this one was tested with PostgreSQL {oldest} to {newest}",
        )  # fmt: skip
    else:
        yield ok("version", f"PostgreSQL {version}")
    if encoding != "UTF8":
        yield warning(
            "encoding", f"the database has encoding {encoding}: it rejects some names and payloads, and has no log",
            "use a UTF8 database: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )  # fmt: skip
    if standby:
        yield error(
            "standby", "this is a hot standby, which supports neither LISTEN nor NOTIFY",
            "set DATABASE_URL to the primary's address (libpq: target_session_attrs=read-write)",
        )  # fmt: skip


def clock(connection: Any) -> Iterator[Finding]:
    """Compare the clocks of this machine and the database."""
    before = time.time()
    [[there]] = fetch(connection, "SELECT extract(epoch FROM clock_timestamp())::float")
    after = time.time()
    yield from judge_clock(there - (before + after) / 2, (after - before) / 2)


def judge_clock(skew: float, doubt: float) -> Iterator[Finding]:
    """Judge the ``skew`` of the clocks, measured with an uncertainty of ``doubt``; both in seconds."""
    if abs(skew) > MAX_SKEW + doubt:
        yield warning(
            "clock", f"the database's clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}",
            "synchronize the clocks (NTP): times of messages, gaps and tokens depend on them",
        )  # fmt: skip
    else:
        yield ok("clock", f"{abs(skew):.2f} s between this machine and the database")


def round_trip(database: Database, *, separate: bool) -> Iterator[Finding]:
    """Check that a NOTIFY on DATABASE_URL reaches a LISTEN on the listening address, on a random channel.

    ``separate``: LISTEN_DATABASE_URL is set.
    """
    name = f"{RESERVED_PREFIX}_{secrets.token_hex(8)}"
    remedy = "set LISTEN_DATABASE_URL to PostgreSQL's own address, bypassing the pooler"
    try:
        listening = database.connect("doctor", listen=True)
    except DatabaseUnavailableError as unavailable:
        where = "LISTEN_DATABASE_URL" if separate else "DATABASE_URL"
        yield error("LISTEN", f"{where} is unreachable: {unavailable}", f"correct {where}")
        return
    try:
        fetch(listening, f"LISTEN {name}")
        with session(database, "doctor") as other:
            began = time.monotonic()
            fetch(other, f"NOTIFY {name}")
        arrived = _arrives(listening, name)
    except DatabaseError as refused:
        if refused.sqlstate == QUEUE_FULL:
            yield error("LISTEN", str(refused), "empty the NOTIFY queue: see the next finding")
            return
        if refused.sqlstate == READ_ONLY:
            yield error("LISTEN", str(refused), "set DATABASE_URL, and LISTEN_DATABASE_URL, to the primary's address")
            return
        if isinstance(refused, DatabaseUnavailableError):
            raise
        yield error("LISTEN", f"PostgreSQL refuses LISTEN or NOTIFY: {refused}", remedy)
        return
    finally:
        listening.close()
    if arrived:
        yield ok("LISTEN", f"a notification arrives after {(time.monotonic() - began) * 1000:.1f} ms")
    elif separate:
        yield error(
            "LISTEN", "a NOTIFY does not reach a LISTEN: LISTEN_DATABASE_URL is a pooler or another database",
            "set LISTEN_DATABASE_URL to PostgreSQL's own address, with the same database",
        )  # fmt: skip
    else:
        yield error("LISTEN", "a NOTIFY does not reach a LISTEN: a pooler in transaction mode is in between", remedy)


def _arrives(connection: Any, name: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    with translated_errors(PATIENCE + 5.0):
        while not any(notification.channel == name for notification in connection.notifies):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if green.select([connection], left):
                connection.poll()
    return True


def notify_queue(connection: Any) -> Iterator[Finding]:
    """Check the usage of the NOTIFY queue: when it is full, every commit with a NOTIFY fails."""
    usage = read_database(connection)["notify_queue"]
    yield from judge_queue(usage, _oldest_transactions(connection) if usage >= QUEUE_USED else ())


def _oldest_transactions(connection: Any) -> list[str]:
    """Describe the sessions of all databases with the oldest transactions, as far as the role may see them."""
    rows = fetch(
        connection,
        "SELECT pid, coalesce(nullif(application_name, ''), usename), datname, state,"
        " extract(epoch FROM now() - xact_start)::float"
        " FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' ORDER BY xact_start LIMIT 3",
    )
    return [f"{pid} ({name}, database {database}, {state} for {age:.0f} s)" for pid, name, database, state, age in rows]


def judge_queue(usage: float, oldest: Sequence[str] = ()) -> Iterator[Finding]:
    """Judge the queue's ``usage``, from 0 to 1. ``oldest`` are the sessions with the oldest transactions."""
    if usage < QUEUE_USED:
        yield ok("NOTIFY queue", f"{usage:.1%} full")
        return
    found = f"{usage:.0%} full: a listening session does not receive its notifications"
    if oldest:
        found += f". The oldest transactions are those of the sessions {', '.join(oldest)}"
    remedy = (
        "terminate sessions that LISTEN and are idle in a transaction: SELECT pid, state, xact_start, query FROM "
        "pg_stat_activity WHERE state LIKE 'idle in transaction%' ORDER BY xact_start; then pg_terminate_backend(pid)"
    )
    yield (error if usage >= 0.5 else warning)("NOTIFY queue", found, remedy)


def idle_in_transaction(connection: Any, seconds: float = MAX_IDLE) -> Iterator[Finding]:
    """Find sessions that have been idle in a transaction for over ``seconds``.

    Such a session gets no notifications, so if it listens the queue fills up. PostgreSQL does not show which sessions
    listen.
    """
    rows = fetch(
        connection,
        "SELECT pid, coalesce(nullif(application_name, ''), usename), extract(epoch FROM now() - state_change)::float"
        " FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%' AND datname = current_database()"
        " AND now() - state_change > make_interval(secs => %s) ORDER BY state_change LIMIT 5",
        seconds,
    )
    for pid, name, idle in rows:
        yield warning(
            "transactions", f"session {pid} ({name}) has been idle in a transaction for {idle:.0f} s",
            f"if it listens, the NOTIFY queue fills up: let it commit, or SELECT pg_terminate_backend({pid}); "
            "idle_in_transaction_session_timeout prevents it",
        )  # fmt: skip
    if not rows:
        yield ok("transactions", f"no session is idle in a transaction for over {seconds:.0f} s")


def sessions(connection: Any, max_channels: int) -> Iterator[Finding]:
    """Check that enough sessions are free for a server, also when its clients use ``max_channels``."""
    found = read_database(connection)
    yield from judge_sessions(found["sessions"], found["most_sessions"], Listeners.connections_for(max_channels) - 1)


def judge_sessions(used: int, limit: int, further: int = 0) -> Iterator[Finding]:
    """Judge how many of ``limit`` sessions are ``used``. A server needs up to nine, and ``further`` ones for LISTEN."""
    if limit - used < 10:
        yield warning(
            "sessions", f"{used} of {limit} sessions are in use",
            "raise max_connections, or connect applications through a pooler",
        )  # fmt: skip
    elif limit - used < 10 + further:
        yield warning(
            "sessions",
            f"{used} of {limit} sessions are in use, and MAX_CHANNELS allows {further} further LISTEN connections",
            "raise max_connections, or lower MAX_CHANNELS: LISTEN takes a connection for each 10,000 channels",
        )  # fmt: skip
    else:
        yield ok("sessions", f"{used} of {limit} are in use")
