"""The doctor's checks of the schema ``socketio_pg``, its privileges, and the servers that use it."""

import re
import time
from collections.abc import Iterator
from typing import Any

from socketio_pg.access.policies import Policies
from socketio_pg.core import green
from socketio_pg.core.channels import quote_literal
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import UntrustedSchemaError
from socketio_pg.doctor.findings import Finding, error, ok, warning
from socketio_pg.doctor.status import read_consumers, read_nodes, read_relay, read_schema_version
from socketio_pg.log.doorbell import RINGS
from socketio_pg.log.relay import Relay
from socketio_pg.postgres import schema, trust
from socketio_pg.postgres.database import Database, fetch
from socketio_pg.version import __version__

#: Seconds after which a message in the outbox counts as late.
MAX_WAITING = 10.0
#: Seconds for which the same message must be the oldest in the outbox to count as stuck, and seconds between two looks.
STUCK_AFTER = 5.0
LOOK = 0.25

_MISSING = """
SELECT kind, object, privilege FROM unnest(%s::text[], %s::text[], %s::text[]) AS needed (kind, object, privilege)
WHERE NOT CASE kind
    WHEN 'SCHEMA' THEN has_schema_privilege(object, privilege)
    WHEN 'FUNCTION' THEN has_function_privilege(object, privilege)
    WHEN 'SEQUENCE' THEN has_sequence_privilege(object, privilege)
    ELSE has_table_privilege(object, privilege) END
"""

_OLDEST_ID = "SELECT id FROM socketio_pg.outbox ORDER BY id LIMIT 1"

# USAGE is checked first: without it the name of the table cannot be resolved.
_READABLE = """
SELECT CASE WHEN to_regnamespace('socketio_pg') IS NULL THEN true
    WHEN NOT has_schema_privilege('socketio_pg', 'USAGE') THEN false
    WHEN to_regclass('socketio_pg.schema_version') IS NULL THEN true
    ELSE has_table_privilege('socketio_pg.schema_version', 'SELECT') END, current_user
"""


def trusted(database: Database, connection: Any) -> Iterator[Finding]:
    """Check that the schema and all its objects belong to trusted roles, without using any of them."""
    try:
        if trust.present(database, connection):
            yield ok("trust", "the schema socketio_pg belongs to a trusted role")
    except UntrustedSchemaError as refused:
        found, _, remedy = refused.detail.partition("; ")
        yield error("trust", found, remedy)


def readable(connection: Any) -> Iterator[Finding]:
    """Yield an error when this role cannot read the schema at all, so that the other checks are impossible."""
    [[may, role]] = fetch(connection, _READABLE)
    if not may:
        yield _lacking(role, "all privileges on the schema")


def _lacking(role: str, what: str) -> Finding:
    return error(
        "privileges", f"role {role} lacks {what}", f"run socketio-pg init --server-role {role} as the schema's owner"
    )


def installed(connection: Any, settings: Settings) -> Iterator[Finding]:
    """Check that the schema is installed, in this program's version."""
    yield from judge_schema(read_schema_version(connection), settings)


def judge_schema(version: int | None, settings: Settings) -> Iterator[Finding]:
    """Judge the installed ``version`` of the schema; None when it is not installed."""
    needs = settings.names_durable_channels or settings.authorization == "rls"
    if version is None and settings.auto_init:
        yield ok("schema", "not installed yet: the server installs it (AUTO_INIT)")
    elif version is None and needs:
        why = "DURABLE_CHANNELS" if settings.names_durable_channels else "AUTHORIZATION=rls"
        yield error("schema", f"not installed, but {why} needs it", "run socketio-pg init")
    elif version is None:
        yield warning("schema", "not installed: NOTIFY works, the log does not", "run socketio-pg init")
    elif version < schema.VERSION:
        yield error(
            "schema", f"version {version}; this program needs version {schema.VERSION}",
            "run socketio-pg init, which upgrades it, also while servers run",
        )  # fmt: skip
    elif version > schema.VERSION:
        yield error(
            "schema", f"version {version}, which is newer than this program's version {schema.VERSION}",
            "upgrade socketio_pg on this machine",
        )  # fmt: skip
    else:
        yield ok("schema", f"version {version}")


def needed_privileges(settings: Settings) -> list[tuple[str, str, str]]:
    """Return (kind, object, privilege) of each privilege of a server's role, parsed from the GRANT statements."""
    granted = re.findall(
        r'^GRANT (.+?) ON (SCHEMA |FUNCTION |SEQUENCE |TABLE |)([^;]+?)\s+TO "doctor";$',
        schema.statements(settings.max_payload, server_role="doctor"),
        re.MULTILINE,
    )
    return [
        (kind.strip(), object, privilege)
        for privileges, kind, objects in granted
        # Does not split at commas between a function's argument types.
        for object in re.split(r",\s+(?![^(]*\))", objects)
        for privilege in privileges.split(", ")
    ]


def privileges(connection: Any, settings: Settings) -> Iterator[Finding]:
    """Check the privileges of DATABASE_URL's role on the schema."""
    if read_schema_version(connection) != schema.VERSION:
        return
    needed = needed_privileges(settings)
    # USAGE is checked first: without it the other names cannot be resolved.
    usage = [entry for entry in needed if entry[0] == "SCHEMA"]
    missing = fetch(connection, _MISSING, *zip_lists(usage)) or fetch(connection, _MISSING, *zip_lists(needed))
    [[role]] = fetch(connection, "SELECT current_user")
    if missing:
        listed = ", ".join(f"{privilege} on {object}" for _, object, privilege in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        yield _lacking(role, f"{listed}{more}")
    else:
        yield ok("privileges", f"role {role} has all privileges that a server needs")


def zip_lists(rows: list[tuple[str, str, str]]) -> list[list[str]]:
    """Return the columns of ``rows``."""
    return [list(column) for column in zip(*rows, strict=True)]


def relay(connection: Any) -> Iterator[Finding]:
    """Check that a server relays messages from the outbox to the log, and keeps up."""
    if read_schema_version(connection) is None:
        return
    found = read_relay(connection)
    stuck = found["pid"] is not None and _is_stuck(connection)
    if stuck or found["outbox"]["rows"]:
        found = read_relay(connection)  # messages may have been moved meanwhile
    outbox = found["outbox"]
    expired = found["renewed_seconds_ago"] if found["expired"] else None
    running = len(read_nodes(connection)) if found["pid"] is None else 1
    yield from judge_relay(
        found["pid"],
        found["node"],
        outbox["rows"],
        outbox["oldest_seconds"],
        stuck=stuck,
        expired=expired,
        running=running,
    )


def _is_stuck(connection: Any) -> bool:
    """Return whether the oldest message of the outbox stays the same for some seconds. Waits while it does.

    Its age alone is no sign: a transaction may commit long after it has published.
    """
    deadline = time.monotonic() + STUCK_AFTER
    first = fetch(connection, _OLDEST_ID)
    while first and fetch(connection, _OLDEST_ID) == first:
        if time.monotonic() > deadline:
            return True
        green.sleep(LOOK)
    return False


def judge_relay(
    pid: int | None,
    node: str | None,
    rows: int,
    oldest: float | None,
    *,
    stuck: bool = False,
    expired: float | None = None,
    running: int = 0,
) -> Iterator[Finding]:
    """Judge the relay: ``rows`` messages wait in the outbox, the oldest for ``oldest`` seconds.

    ``stuck``: the same message has been the oldest for some seconds, so no message is moved, whoever leads. ``expired``
    is the age of an expired lease, in seconds: no node has taken over from the leader. ``running``: the number of
    servers that were alive in the last seconds.
    """
    late = oldest is not None and oldest > MAX_WAITING
    waiting = f"{rows} waiting in the outbox, the oldest for {oldest or 0:.0f} s"
    if pid is None and rows and running:
        yield error(
            "relay", f"none of {running} running servers relays the log: {waiting}",
            "check their logs; a lock on the log's tables also blocks them: "
            "SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE pg_blocking_pids(pid) <> '{}'",
        )  # fmt: skip
    elif pid is None and rows:
        yield error(
            "relay", f"no server relays the log: {waiting}", "start a server on this database: socketio-pg serve"
        )
    elif pid is None:
        yield warning("relay", "no server is running on this database", "start one: socketio-pg serve")
    elif expired is not None:
        yield error(
            "relay", f"the leader, {node} (session {pid}), has not renewed its lease for {expired:.0f} s: {waiting}",
            "continue or end it: another server cannot take over while its session is stopped inside a transaction",
        )  # fmt: skip
    elif stuck:
        yield error(
            "relay", f"the relay ({node or pid}) is stuck: {waiting}",
            "check that server's log, then restart it; a lock on the log's tables also blocks it: "
            f"SELECT pid, query FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids({pid}))",
        )  # fmt: skip
    elif late:
        yield error(
            "relay", f"the relay ({node or pid}) lags: {waiting}",
            "check that server's log; the backlog of a burst drains automatically",
        )  # fmt: skip
    else:
        yield ok("relay", f"{node or f'session {pid}'} leads, {rows} waiting")


def doorbell(connection: Any) -> Iterator[Finding]:
    """Tell how the relay finds new messages."""
    if read_schema_version(connection) is not None:
        [(most, rings)] = fetch(connection, RINGS)
        yield judge_doorbell(most, rings=rings)


def judge_doorbell(max_prepared: int, *, rings: bool) -> Finding:
    """Describe the doorbell: ``rings`` if all publishers notify the relay."""
    prepared = f"max_prepared_transactions is {max_prepared}"
    if rings and max_prepared:
        return ok("doorbell", f"publishers notify the relay: they cannot use PREPARE TRANSACTION, although {prepared}")
    if rings:
        return ok("doorbell", "publishers notify the relay when they commit")
    return ok(
        "doorbell", f"the relay looks for messages every {Relay.unrung[1] * 1000:.0f} ms: {prepared}, or "
        "socketio_pg.doorbell is off",
    )  # fmt: skip


_EPOCH = """
SELECT reason, extract(epoch FROM now() - began_at)::float FROM socketio_pg.head
WHERE reason IS NOT NULL AND began_at > now() - interval '1 day'
"""


def epoch(connection: Any) -> Iterator[Finding]:
    """Report that the log's past has changed within the last day, which ends its epoch."""
    if read_schema_version(connection) != schema.VERSION:
        return
    for reason, seconds in fetch(connection, _EPOCH):
        yield warning(
            "epoch", f"a new epoch of the log began {seconds / 60:.0f} min ago: {reason}",
            "subscribers got a gap; if nobody has restored the database, find out who changes the log's tables",
        )  # fmt: skip


def nodes(connection: Any) -> Iterator[Finding]:
    """Check the versions of the running servers."""
    if read_schema_version(connection) is not None:
        yield from judge_nodes({node["name"]: node["version"] for node in read_nodes(connection)})


#: Reason for which a node has refused texts of others (core/seal.py) → finding, and remedy.
_REFUSED = {
    "foreign": (
        "gets messages of another installation", "give each installation its own MESSAGE_QUEUE_CHANNEL or Redis",
    ),
    "stale": (
        "gets old messages: clocks differ by over a minute, or a recording is sent again", "synchronize all clocks",
    ),
    "unknown_key": ("gets messages that were sealed with another key", "set the same CLUSTER_KEY on all nodes"),
    "unsealed": ("gets messages that are not sealed", "find the program, an older node or an attacker"),
    "forged": ("gets forged messages", "find the session that sends them: an attacker, or a proxy that damages them"),
    "replayed": ("gets messages again that it had before", "find the session that sends them: an attacker"),
}  # fmt: skip


def refused(connection: Any) -> Iterator[Finding]:
    """Check that no node gets messages that other nodes of this installation did not send."""
    if read_schema_version(connection) == schema.VERSION:
        rows = fetch(connection, "SELECT name, unnest(refused) FROM socketio_pg.nodes")
        yield from judge_refused([(name, reason) for name, reason in rows])


def judge_refused(rows: list[tuple[str, str]]) -> Iterator[Finding]:
    """Yield a finding for each reason. ``rows``: names of nodes, and reasons."""
    for reason in sorted({reason for _, reason in rows}):
        found, remedy = _REFUSED.get(reason, (f"refuses messages: {reason}", "see the node's log"))
        names = ", ".join(sorted(name for name, why in rows if why == reason))
        yield warning("messages", f"{names} {found} (during the last minute)", remedy)


def judge_nodes(versions: dict[str, str]) -> Iterator[Finding]:
    """Judge the ``versions`` of the servers, by server name."""
    different = set(versions.values())
    if len(different) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        yield warning("nodes", f"servers have different versions: {listed}", "upgrade the older ones")
    elif different and different != {__version__}:
        yield warning(
            "nodes",
            f"the servers have version {different.pop()}, this program has {__version__}",
            "upgrade the older one",
        )
    elif versions:
        yield ok("nodes", f"{len(versions)} with version {__version__}")


def roles(database: Database, settings: Settings) -> Iterator[Finding]:
    """Check that the server can use the clients' roles, and that these may evaluate policies (AUTHORIZATION=rls)."""
    names = {*settings.allowed_roles, *filter(None, [settings.anonymous_role])}
    if settings.authorization != "rls" or not names:
        return
    policies = Policies(database, settings.permission_timeout)
    try:
        problems = policies.problems(names)
    finally:
        policies.stop()
    for role, problem in problems.items():
        yield error(
            "roles", f"the server refuses clients of role {role}: {problem}",
            f"GRANT {role} TO the server's role, and run socketio-pg init --client-role {role}",
        )  # fmt: skip
    if not problems:
        yield ok("roles", f"{', '.join(sorted(names))}: policies can be evaluated")


def times(count: int) -> str:
    """Return a count of failures in words."""
    return "once" if count == 1 else f"{count:,} times"


def watches(connection: Any) -> Iterator[Finding]:
    """Find watches that have failed."""
    if fetch(connection, "SELECT to_regclass('socketio_pg.watches')") == [(None,)]:
        return
    # As JSON: an older schema does not keep the last error.
    rows = fetch(connection, "SELECT table_name::text, to_jsonb(w) FROM socketio_pg.watches AS w WHERE failures > 0")
    for name, row in rows:
        what = f"the watch of {name} for {row['channel']} has failed {times(row['failures'])}"
        reason = row.get("last_error")
        yield warning(
            "watches", f"{what}: these changes were not sent" + (f"; the last error: {reason}" if reason else ""),
            ("" if reason else "PostgreSQL's log has the reason; ")
            + f"run socketio-pg watch {name} again to reset the counter",
        )  # fmt: skip
    if not rows:
        yield ok("watches", "no watch has failed")


def consumers(connection: Any, settings: Settings) -> Iterator[Finding]:
    """Find durable consumers that have stopped, fail or lag."""
    if read_schema_version(connection) == schema.VERSION:
        yield from judge_consumers(read_consumers(connection), settings.log_retention)


def judge_consumers(rows: list[dict[str, Any]], retention: float) -> Iterator[Finding]:
    """Judge the consumers. Those that lag lose messages once these are older than ``retention`` seconds."""
    for row in rows:
        name, age, quoted = row["name"], row["age_seconds"], quote_literal(row["name"])
        what = f"consumer {name} at position {row['position']}"
        behind = f"{row['lag']} positions behind, its oldest message is {(age or 0) / 60:.0f} min old"
        if row["lost"] is not None:
            why = (
                "the log has a new epoch"
                if row["lost"] == "epoch_changed"
                else "messages were removed that it has not got"
            )
            yield error(
                "consumers", f"{what} cannot continue: {why}",
                f"check its data, then SELECT socketio_pg.consumer_move({quoted}, 'now'), or consumer_drop({quoted})",
            )  # fmt: skip
        elif row["failures"]:
            yield warning(
                "consumers", f"{what} has failed {times(row['failures'])}: {row['error']}; {behind}",
                "fix its program; the messages after this one wait",
            )  # fmt: skip
        elif age is not None and age > retention / 2:
            yield warning(
                "consumers", f"{what} lags: {behind}; messages are kept for {retention / 60:.0f} min",
                f"start its program, or SELECT socketio_pg.consumer_drop({quoted}) if it is not used any more",
            )  # fmt: skip
    if rows and not any(row["lost"] or row["failures"] for row in rows):
        yield ok("consumers", f"{len(rows)} registered")
