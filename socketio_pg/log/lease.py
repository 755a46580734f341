"""The leader's lease: elects the one node that moves messages. The relay uses it on its own connection.

The row of ``socketio_pg.head`` names the leader; only the server's role can write it. Any role that may connect could
take an advisory lock instead. Another node becomes the leader when the leader's session no longer exists, or when its
lease has expired. Each election increases the term, the fencing number of every batch.
"""

from dataclasses import dataclass
from typing import Any

from socketio_pg.core.errors import DatabaseError, DatabaseRefusedError
from socketio_pg.postgres.database import fetch_as_is

#: Milliseconds since 1970 by the database's clock, which all nodes share.
NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

#: The current leader. Other roles' sessions do not show `backend_start`. A lease that was renewed in the future is one
#: of before the clock was set back.
LEADER = f"""
SELECT term, leader::text, leader_name AS name, session_pid AS pid, session_started::text AS started,
    EXISTS (
        SELECT FROM pg_catalog.pg_stat_get_activity(session_pid) AS session
        WHERE session.pid = session_pid AND coalesce(session.backend_start = session_started, true)
            AND session.datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    ) AS connected,
    abs({NOW} - lease.last_value) / 1000.0::float AS age
FROM socketio_pg.head CROSS JOIN socketio_pg.lease
"""

_ELECT = f"""
UPDATE socketio_pg.head SET term = term + 1, leader = %s, leader_name = %s, session_pid = pg_backend_pid(),
    session_started = (SELECT backend_start FROM pg_catalog.pg_stat_get_activity(pg_backend_pid()))
WHERE term = %s
RETURNING term, setval('socketio_pg.lease', {NOW})
"""

# A lease that a crash of the database loses has expired anyway, so the commit does not wait for the disk.
_RENEW = f"""
SELECT set_config('synchronous_commit', 'off', true), setval('socketio_pg.lease', {NOW})
FROM socketio_pg.head WHERE term = %s
"""

_TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_get_activity(%s)
WHERE pid = %s AND backend_start = %s::timestamptz
"""

_BUSY = f"""
SELECT set_config('synchronous_commit', 'off', true),
    setval('socketio_pg.busy_until', CASE WHEN %s THEN {NOW} + 1000 ELSE 0 END)
"""


@dataclass(frozen=True, slots=True)
class Leader:
    """A row of :data:`LEADER`: ``connected`` if its session exists, ``age`` seconds since it renewed the lease."""

    term: int
    id: str | None
    name: str | None
    pid: int | None
    started: str | None
    connected: bool
    age: float


class Lease:
    """Elections and renewals for the node ``id``. All methods raise as :func:`fetch`."""

    #: Seconds after which a lease that was not renewed expires; longer than the relay waits for a statement.
    duration = 10.0

    def __init__(self, id: str, name: str, seconds: float) -> None:
        self._id = id
        self._name = name
        self._seconds = seconds

    def leader(self, connection: Any) -> Leader:
        """Return the current leader; its id is None before the first election."""
        rows = fetch_as_is(connection, LEADER, seconds=self._seconds)
        if not rows:
            raise DatabaseRefusedError("the log's head is missing: run 'socketio-pg init'")
        return Leader(*rows[0])

    def is_vacant(self, leader: Leader) -> bool:
        """Return True if this node may take over from ``leader``, which may be an earlier connection of this node."""
        return not leader.connected or leader.id == self._id or leader.age > self.duration

    def take_over(self, connection: Any, leader: Leader) -> int | None:
        """Try to become the leader after ``leader``. Return the new term, or None if another node was faster.

        Terminates the session of a leader that is stuck, if this role may: its transaction may hold the row's lock. The
        election fails with lock_not_available (55P03) while it does.
        """
        if leader.connected:
            try:
                fetch_as_is(connection, _TERMINATE, leader.pid, leader.pid, leader.started, seconds=self._seconds)
            except DatabaseError as error:
                if error.sqlstate != "42501":  # insufficient_privilege
                    raise
        rows = fetch_as_is(connection, _ELECT, self._id, self._name, leader.term, seconds=self._seconds)
        return int(rows[0][0]) if rows else None

    def renew(self, connection: Any, term: int) -> bool:
        """Renew the lease. Return False if another node has been elected."""
        return bool(fetch_as_is(connection, _RENEW, term, seconds=self._seconds))

    def set_busy(self, connection: Any, busy: bool) -> None:
        """Tell publishers that they need not ring the doorbell for a second, or that they must again."""
        fetch_as_is(connection, _BUSY, busy, seconds=self._seconds)
