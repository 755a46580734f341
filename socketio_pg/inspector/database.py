"""PostgreSQL's figures for the inspector: sessions, notification queue, log and outbox. Read while somebody looks."""

import logging
import time
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseError, LogNotInstalledError, UntrustedSchemaError
from socketio_pg.log.history import HEAD
from socketio_pg.postgres.database import Database, fetch_named
from socketio_pg.postgres.trust import verify

logger = logging.getLogger("socketio_pg.inspector")

#: The maximum number of sessions that are listed, the longest idle last.
MAX_SESSIONS = 200

_SERVER = """
SELECT current_setting('server_version') AS version, current_database() AS name, pg_is_in_recovery() AS standby,
    pg_notification_queue_usage()::float AS notify_queue,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS all,
    current_setting('max_connections')::int AS most
"""

# Other roles' sessions show no address, state or times without pg_read_all_stats.
_SESSIONS = f"""
SELECT pid, substr(application_name, 13) AS part, host(client_addr) AS address, state, wait_event AS wait,
    extract(epoch FROM clock_timestamp() - backend_start)::float AS age,
    extract(epoch FROM clock_timestamp() - state_change)::float AS in_state
FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'socketio\\_pg %' AND pid <> pg_backend_pid()
ORDER BY part, pid LIMIT {MAX_SESSIONS}
"""

# Looks at each file of the database.
_SIZE = "SELECT pg_database_size(current_database())::bigint AS size"

_LOG = f"""
SELECT head.*, pg_total_relation_size('socketio_pg.log')::bigint AS bytes,
    (SELECT extract(epoch FROM published_at)::float FROM socketio_pg.log ORDER BY position LIMIT 1) AS oldest_at,
    (SELECT count(*) FROM (SELECT FROM socketio_pg.outbox LIMIT 10000) AS found) AS outbox_messages,
    coalesce((SELECT extract(epoch FROM clock_timestamp() - published_at)::float FROM socketio_pg.outbox
        ORDER BY id LIMIT 1), 0) AS outbox_age
FROM ({HEAD}) AS head
"""


class DatabaseFigures:
    """Reads the figures on a connection of its own, which it closes when nobody has looked for a while.

    ``retention`` and ``max_messages`` are LOG_RETENTION and LOG_MAX_MESSAGES.
    """

    #: Seconds for which the size of the database is used again: many tables make it slow.
    size_interval = 120.0
    #: Seconds for which an answer is used again, and after a failure; for an answer; until the connection is closed.
    fresh, retry, timeout, linger = 4.5, 2.0, 2.0, 30.0

    def __init__(self, database: Database, retention: float, max_messages: int | None) -> None:
        self._database = database
        self._retention = retention
        self._max_messages = max_messages
        self._connection: Any = None
        self._found: dict[str, Any] = {}
        self._until = 0.0
        self._looked = 0.0
        self._unreachable_since: float | None = None
        self._reading: green.Event | None = None
        self._size: int | None = None
        self._size_due = 0.0
        self._closing = green.Worker()

    def stop(self) -> None:
        """Close the connection."""
        self._closing.stop()
        self._hang_up()

    def read(self) -> dict[str, Any]:
        """Return the figures, as docs/inspector.md describes them. Waits for two seconds at most, and raises nothing.

        While PostgreSQL is unreachable it does not wait, and tries again in the background.
        """
        self._looked = time.monotonic()
        if self._looked >= self._until:
            if self._reading is None:
                self._reading = green.Event()
                green.run_soon(self._read, self._reading)
            if self._unreachable_since is None:
                try:
                    self._reading.wait(self.timeout)
                except green.TimedOut:
                    self._fail("PostgreSQL does not answer")
        return self._found

    def _read(self, done: green.Event) -> None:
        try:
            with green.timeout(2 * self.timeout):
                if self._connection is None:
                    self._connection = self._database.connect("inspector", settings={"jit": "off"})
                    self._closing.start(self._close_later)
                self._found = self._look(self._connection)
            self._unreachable_since = None
            self._until = time.monotonic() + self.fresh
        except (DatabaseError, green.TimedOut) as error:
            self._fail(str(error))
            self._hang_up()
        except Exception:  # a bug: the page shows that, and the next look may succeed
            logger.exception("reading the figures of PostgreSQL failed")
            self._fail("reading failed: see the server's log")
            self._hang_up()
        finally:
            self._reading = None
            done.send()

    def _look(self, connection: Any) -> dict[str, Any]:
        [server] = fetch_named(connection, _SERVER, self.timeout)
        sessions = fetch_named(connection, _SESSIONS, self.timeout)
        log, outbox = self._look_at_log(connection)
        if time.monotonic() >= self._size_due:
            [found] = fetch_named(connection, _SIZE, self.timeout)
            self._size, self._size_due = found["size"], time.monotonic() + self.size_interval
        return {
            "reachable": True,
            "since": None,
            "problem": None,
            "version": server["version"],
            "name": server["name"],
            "standby": server["standby"],
            "size": self._size,
            "notify_queue": server["notify_queue"],
            "backends": {"ours": len(sessions) + 1, "all": server["all"], "most": server["most"]},
            "sessions": sessions,
            "log": log,
            "outbox": outbox,
        }

    def _look_at_log(self, connection: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        configured = {"retention": self._retention, "max_messages": self._max_messages}
        try:
            verify(self._database, connection, self.timeout)
            [head] = fetch_named(connection, _LOG, self.timeout)
        except UntrustedSchemaError as error:
            return configured | {"installed": False, "problem": str(error)}, None
        except LogNotInstalledError:
            self._database.verified.discard(connection)
            return configured | {"installed": False, "problem": None}, None
        except DatabaseError as error:
            if error.sqlstate != "42501":
                raise
            return configured | {"installed": True, "problem": "this role may not read the log"}, None
        outbox = {"messages": head.pop("outbox_messages"), "age": max(0.0, head.pop("outbox_age"))}
        messages = max(0, head["position"] - head["trimmed"])
        return configured | {"installed": True, "problem": None, "messages": messages} | head, outbox

    def _fail(self, problem: str) -> None:
        if self._unreachable_since is None:
            self._unreachable_since = time.time()
        names = ("version", "name", "standby", "size", "notify_queue", "backends", "log", "outbox")
        self._found = {"reachable": False, "since": self._unreachable_since, "problem": problem, "sessions": []}
        self._found |= dict.fromkeys(names)
        self._until = time.monotonic() + self.retry

    def _close_later(self) -> None:
        while time.monotonic() - self._looked < self.linger:
            green.sleep(self.linger / 4)
        self._hang_up()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
