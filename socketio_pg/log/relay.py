"""The relay: moves published messages from the outbox to the log, numbers them and notifies all nodes.

One node at a time is the leader:

    stand by (see `lease`) → lead: move batches while there are any → idle until the doorbell rings → trim

Everything happens on one connection: if it is lost, leadership and the transaction in progress end together. A task
that fails while the connection works, such as moving on a full disk, does not stop the others.
"""

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import BELL_CHANNEL, LOG_CHANNEL
from socketio_pg.core.errors import (
    DatabaseError,
    LogNotInstalledError,
    SocketIOPGError,
)
from socketio_pg.core.problems import Problem
from socketio_pg.core.rules import Rules
from socketio_pg.log import doorbell, epochs
from socketio_pg.log.lease import Lease
from socketio_pg.log.low_water import LowWater
from socketio_pg.log.moves import PREPARE, Moved, move
from socketio_pg.log.old_ids import OldIds
from socketio_pg.log.trimming import Trimming
from socketio_pg.postgres.database import Database, fetch_as_is, is_usable, require_writable, translated_errors
from socketio_pg.postgres.trust import verify
from socketio_pg.version import __version__
from socketio_pg.workers.node import Node

logger = logging.getLogger("socketio_pg.relay")

T = TypeVar("T")

# Overrides settings of the role or database that would disturb the relay. With the timeouts and keepalives PostgreSQL
# notices within about 10 s that the leader's machine is gone or stopped, and ends its session and transaction. The
# search_path is for PREPARE; no pooler is in between.
_SESSION = """
SET search_path = pg_catalog, pg_temp;
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE;
SELECT set_config('idle_session_timeout', '10s', false) FROM pg_settings WHERE name = 'idle_session_timeout';
SET lock_timeout = '5s'; SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '10s';
SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = '10s'; SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off;
SET socketio_pg.trimming = on; SET socketio_pg.rules = on;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
"""

_BEAT = """
INSERT INTO socketio_pg.node (id, name, version, relay, position, clients, refused)
VALUES (%s, %s, %s, %s, %s, %s, %s::text[])
ON CONFLICT (id) DO UPDATE SET relay = excluded.relay, position = excluded.position, clients = excluded.clients,
    refused = excluded.refused, seen_at = now()
"""

# Not in the statement above: a node with one worker needs no column that older schemas lack.
_SHOW_WORKERS = "UPDATE socketio_pg.node SET workers = %s::jsonb WHERE id = %s"


class Relay:
    """The relay of this node. It leads or stands by.

    ``rules`` say how long the log keeps messages; ``max_messages`` is LOG_MAX_MESSAGES, or None. ``describe()`` returns
    (position, clients) of this node for the view ``socketio_pg.nodes``. ``seal(channel, text)`` returns a notification
    as other nodes open it, or raises :class:`SocketIOPGError` while it cannot: then this node does not lead.
    ``on_leading(leading)`` is called when this node starts or stops leading. ``refused()`` returns the reasons for
    which this node has refused texts of other nodes lately. ``node`` and ``workers()``, for the same view, are those of
    a node with several workers.
    """

    #: Seconds between attempts to become the leader.
    election_interval = 0.5
    #: Seconds between renewals of the leader's lease.
    renew_interval = 2.5
    #: Maximum messages in a batch.
    batch_size = 1000
    #: Seconds to wait after a batch that was not full: the next one moves more messages at the same cost. And the same
    #: while it is busy, when a batch costs more than its messages.
    pause = (0.002, 0.003)
    #: Seconds between scans of the outbox while the doorbell does not ring; doubles up to the second value. Finds the
    #: rows of publishers that did not ring because the relay was busy, but committed when it was idle.
    idle = (0.005, 1.0)
    #: Seconds between looks at the outbox where publishers do not ring the doorbell (`doorbell`), likewise doubled; the
    #: second value costs 2 % of a core here and 1 % in PostgreSQL. And seconds for which it looks before it scans.
    unrung = (0.002, 0.02)
    look_for = 1.0
    #: Seconds without messages after which the relay is no longer busy; seconds of messages after which it is; and
    #: seconds between the writes that tell publishers so. While it is busy they need not ring the doorbell.
    quiet = 0.02
    busy_after = 0.05
    busy_interval = 0.5
    #: The doorbell may ring this often in a row without a message; from then on, the relay looks at the outbox only so
    #: many seconds after the last time. Any role may ring the doorbell.
    max_false_bells = 5
    bell_pause = 0.005
    #: Seconds between scans of the outbox from its beginning: see `low_water`.
    full_scan_interval = 10.0
    #: Seconds between writes of the evidence of the log's past: see `epochs`.
    memory_interval = 0.1
    #: Seconds between heartbeats in ``socketio_pg.node``; and while a worker has a problem, which may soon be over.
    beat_interval = 10.0
    problem_interval = 2.0
    #: Seconds after which a statement without a response counts as a lost connection.
    timeout = 8.0
    #: Seconds before the first attempt to reconnect, or to move again; doubles up to the second value.
    backoff = (0.1, 5.0)
    #: The same while the schema is missing: a dump may be restored.
    missing = (1.0, 60.0)
    #: Seconds of failed moves after which another node may lead: its role may have privileges that this one's lacks.
    give_up_after = 15.0

    def __init__(
        self,
        database: Database,
        rules: Rules,
        max_messages: int | None,
        describe: Callable[[], tuple[int, int]],
        seal: Callable[[str, str], str],
        on_leading: Callable[[bool], None] | None = None,
        refused: Callable[[], list[str]] = list,
        node: Node | None = None,
        workers: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._database = database
        self._trimming = Trimming(rules, max_messages, self.timeout)
        self._describe = describe
        self._seal = seal
        self._refused = refused
        # Another worker of the node that takes over continues its row, and need not wait for the lease to expire.
        self._id = str(uuid.uuid4() if node is None else node.id)
        self._name = f"{socket.gethostname()}:{os.getpid() if node is None else node.master}"
        self._workers = workers
        self._lease = Lease(self._id, self._name, self.timeout)
        self._worker = green.Worker()
        self._installed = green.Event()
        self._next_renewal = self._next_beat = self._next_full_scan = self._next_memory = 0.0
        self._low = LowWater()
        self._old_ids = OldIds()
        #: None when it must be read: at first, and when a commit was not confirmed.
        self._past: epochs.Past | None = None
        #: The position and id that were last written down for the next leader.
        self._remembered = (0, 0)
        self._cluster = epochs.Cluster(None, None)
        #: Whether all publishers ring the doorbell.
        self._rings = True
        #: True while this node leads.
        self.leading = False
        self._on_leading = on_leading or (lambda leading: None)
        #: Why it neither moves messages nor stands by, for the operator; None if it does either.
        self.problem: Problem | None = Problem("the relay is starting")
        #: True if a move has succeeded since the last failure; and if the next connection is a reconnection.
        self._worked = self._lost = False
        #: The tasks that have failed the last time.
        self._failing: set[str] = set()

    def start(self) -> None:
        """Start the green thread; call it after a fork."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread and close the connection, so that another node can take over immediately."""
        self._worker.stop()

    def look(self) -> None:
        """Check again whether the schema is installed."""
        self._installed.send()

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        missing = Backoff(*self.missing)
        #: The reasons that were logged since the relay last worked: the first one seldom is the cause.
        logged: set[str] = set()
        while True:
            connection = None
            self._installed = green.Event()
            try:
                # Not through a pooler: leadership and LISTEN need a session.
                connection = self._database.connect("relay", listen=True)
                require_writable(connection, self.timeout)
                verify(self._database, connection, self.timeout)
                self._execute(connection, _SESSION)
                self._execute(connection, PREPARE)
                self._execute(connection, doorbell.PREPARE)
                if self._lost:
                    metrics.reconnects.labels("relay").inc()
                self._lost = True
                while True:
                    self._lead(connection, self._stand_by(connection))
                    self._stop_leading()
            except LogNotInstalledError as error:
                if self._worked:
                    self._worked = False
                    missing.reset()
                self._database.verified.clear()
                self._lost, self.problem = False, Problem.of(error)
                self._stop_leading()
                if connection is not None:
                    connection.close()
                    connection = None
                self._wait_installed(missing.next())
            except DatabaseError as error:
                if self._worked:
                    self._worked = False
                    logged.clear()
                    backoff.reset()
                    missing.reset()
                self.problem = Problem.of(error, "not relaying: ")
                known = str(error) in logged
                logger.log(logging.DEBUG if known else logging.WARNING, "not relaying: %s; retrying", error)
                logged.add(str(error))
            except Exception as error:
                self.problem = Problem.of(error, "not relaying: ")
                # A bug. The outbox keeps the messages that are published meanwhile.
                logger.exception("the relay failed; retrying")
            finally:
                self._stop_leading()
                if connection is not None:
                    connection.close()
            green.sleep(backoff.next())

    def _stop_leading(self) -> None:
        if self.leading:
            self.leading = False
            self._on_leading(False)

    def _wait_installed(self, seconds: float) -> None:
        try:
            self._installed.wait(seconds)
        except green.TimedOut:
            return

    # -- standing by ---------------------------------------------------------------------------------------------------

    def _stand_by(self, connection: Any) -> int:
        """Wait until this node becomes the leader. Return the term."""
        while True:
            try:
                # A leader that cannot notify the other nodes could move nothing.
                self._seal(LOG_CHANNEL, "")
                term = self._try_to_lead(connection)
                if term is not None:
                    return term
                self._set_problem(None)
            except DatabaseError as error:
                if error.sqlstate != "55P03":  # lock_not_available
                    raise
                self._set_problem(Problem.of(error, "the last leader's session has not ended its transaction: "))
            except LogNotInstalledError:
                raise
            except SocketIOPGError as error:
                self._set_problem(Problem.of(error))
            self._attempt(connection, "the heartbeat", self._beat)
            green.sleep(self.election_interval)

    def _try_to_lead(self, connection: Any) -> int | None:
        leader = self._lease.leader(connection)
        if not self._lease.is_vacant(leader):
            return None
        term = self._lease.take_over(connection, leader)
        if term is not None and leader.connected and leader.id != self._id:
            logger.warning("took over from %s, which has not renewed its lease for %.0f s", leader.name, leader.age)
        return term

    def _set_problem(self, problem: Problem | None) -> None:
        if problem is not None:
            problem = Problem(f"not relaying: {problem}", f"not relaying: {problem.public}")
        if problem is not None and problem != self.problem:
            logger.warning("%s; retrying", problem)
        self.problem = problem

    # -- leading -------------------------------------------------------------------------------------------------------

    def _lead(self, connection: Any, term: int) -> None:
        """Move messages until another node leads."""
        self.leading = True
        self._on_leading(True)
        self._execute(connection, f"LISTEN {BELL_CHANNEL}")
        self._past = None
        self._cluster = epochs.read_cluster(connection, self.timeout)
        self._lease.set_busy(connection, False)
        logger.info("relaying the log on %s, term %d", self._database, term)
        self._next_beat = self._next_full_scan = 0.0
        self._trimming.reset()
        self._next_renewal = time.monotonic() + self.renew_interval
        self._rings = doorbell.rings(connection, self.timeout)
        self._low = LowWater()
        self._move_until_deposed(connection, term)
        logger.warning("another node has taken over the log: standing by")
        self._execute(connection, f"UNLISTEN {BELL_CHANNEL}")

    def _move_until_deposed(self, connection: Any, term: int) -> None:
        idle, retry = Backoff(*self.idle, jitter=0.0), Backoff(*self.backoff)
        unrung = Backoff(*self.unrung, jitter=0.0)
        #: When the current run of messages began and when moving began to fail, if so; when the last message was moved,
        #: when the next write that announces the run is due, and when to try again to move.
        began: float | None = None
        failing: float | None = None
        last = next_announcement = next_move = 0.0
        busy = rung = False
        false_bells = 0

        def trim(connection: Any) -> None:
            self._trimming.run(connection, term)

        while self._renew(connection, term):
            now = time.monotonic()
            if now < next_move:
                green.sleep(min(next_move, max(now, self._trimming.next)) - now)
            else:
                moved = self._attempt(connection, "moving messages", lambda connection: self._move(connection, term))
                now = time.monotonic()
                if moved is None:
                    failing = now if failing is None else failing
                    if now - failing > self.give_up_after:
                        raise DatabaseError("no message can be moved", detail=self.problem)
                    next_move = now + retry.next()
                elif moved.term != term:
                    return
                else:
                    failing = None
                    self.problem = None
                    retry.reset()
                    if moved.count:
                        false_bells = 0
                        idle.reset()
                        unrung.reset()
                        began = now if began is None else began
                        last = now
                        if now - began > self.busy_after and now >= next_announcement:
                            self._lease.set_busy(connection, True)
                            busy, next_announcement = True, now + self.busy_interval
                    elif rung:
                        false_bells += 1
                    quiet = not moved.count and now - last > self.quiet
                    began = None if quiet else began
                    rung = False
                    if moved.more:
                        green.sleep()
                    elif moved.count or (busy and not quiet):
                        green.sleep(self.pause[busy])
                    elif busy:
                        self._lease.set_busy(connection, False)
                        busy, next_announcement = False, 0.0
                        continue  # scan once more, now that publishers ring the bell again
                    else:
                        if false_bells > self.max_false_bells:
                            green.sleep(self.bell_pause)
                        if self._rings:
                            rung = self._wait_for_bell(connection, idle.next())
                        else:
                            rung = self._wait_for_row(connection, unrung)
            self._attempt(connection, "the heartbeat", self._beat)
            self._attempt(connection, "trimming the log", trim)
            self._attempt(connection, "removing old ids", self._remove_ids)

    def _renew(self, connection: Any, term: int) -> bool:
        """Renew the lease if it is time; return False if another node leads."""
        now = time.monotonic()
        if now < self._next_renewal:
            return True
        self._next_renewal = now + self.renew_interval
        if not self._lease.renew(connection, term):
            return False
        self._rings = doorbell.rings(connection, self.timeout)
        return True

    def _attempt(self, connection: Any, task: str, run: Callable[[Any], T]) -> T | None:
        """Run a task and return its result, or None if it fails while the connection works."""
        try:
            result = run(connection)
        except LogNotInstalledError:
            raise
        except SocketIOPGError as error:
            if not is_usable(connection):
                raise
            logger.log(logging.DEBUG if task in self._failing else logging.WARNING, "%s failed: %s", task, error)
            self._failing.add(task)
            if task in ("moving messages", "looking for messages"):
                self.problem = Problem.of(error, "not relaying: ")
            return None
        self._failing.discard(task)
        return result

    def _move(self, connection: Any, term: int) -> Moved:
        """Move at most one batch."""
        past = self._past or self._check_past(connection, term)
        began = time.monotonic()
        full = began >= self._next_full_scan
        # Bells that have rung so far are answered by this scan.
        connection.notifies.clear()
        self._past = None
        moved, past = move(connection, term, self.batch_size, self._low, past, self._seal, self.timeout, full)
        self._past = past
        if moved.term == term and not moved.unchanged:
            self._check_past(connection, term)
            return replace(moved, more=True)
        if moved.count:
            metrics.relay_batch_messages.observe(moved.count)
            metrics.relay_batch_seconds.observe(time.monotonic() - began)
        if full:
            # Full scans take at most a twentieth of the relay's time.
            now = time.monotonic()
            self._next_full_scan = now + max(self.full_scan_interval, 20 * (now - began))
        now = time.monotonic()
        if (past.position, past.id) != self._remembered and now >= self._next_memory:
            epochs.remember(connection, past, self.timeout)
            self._remembered, self._next_memory = (past.position, past.id), now + self.memory_interval
        self._worked = True
        return moved

    def _wait_for_bell(self, connection: Any, seconds: float) -> bool:
        """Wait for up to ``seconds``. Return True if the doorbell has rung."""
        if not connection.notifies and green.select([connection], seconds):
            with translated_errors(self.timeout):
                # poll() does not raise after a FATAL notice; the next statement does.
                connection.poll()
        return bool(connection.notifies)

    def _wait_for_row(self, connection: Any, pause: Backoff) -> bool:
        """Look for rows of the outbox until there are any, or for a while. Return True if the doorbell has rung."""
        deadline = time.monotonic() + self.look_for
        while time.monotonic() < deadline:
            if self._wait_for_bell(connection, pause.next()):
                return True
            if self._attempt(connection, "looking for messages", self._has_rows) is not False:
                break
        return False

    def _has_rows(self, connection: Any) -> bool:
        return doorbell.has_rows(connection, self._low, self.timeout)

    def _check_past(self, connection: Any, term: int) -> epochs.Past:
        """Return the evidence of the log's past. Ends the epoch first if the past has changed."""
        past, epoch = epochs.check(connection, term, self._cluster, self._past, self.timeout)
        self._past = past
        if epoch is not None:
            # Whoever has restored the schema may own it now.
            self._database.verified.clear()
            verify(self._database, connection, self.timeout)
            self._low = LowWater()
            self._next_full_scan = 0.0
            self._execute(connection, "SELECT pg_notify(%s, %s)", LOG_CHANNEL, self._seal(LOG_CHANNEL, "epoch"))
        return past

    def _remove_ids(self, connection: Any) -> None:
        self._old_ids.remove(connection, self.timeout)

    def _beat(self, connection: Any) -> None:
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + self.beat_interval
        position, clients = self._describe()
        values = (self._id, self._name, __version__, self.leading, position, clients, self._refused())
        self._execute(connection, _BEAT, *values)
        workers = self._workers()
        if workers:
            self._execute(connection, _SHOW_WORKERS, json.dumps(workers), self._id)
        if any(worker["problem"] for worker in workers):
            self._next_beat = time.monotonic() + self.problem_interval
        if self.leading:
            self._execute(connection, "DELETE FROM socketio_pg.node WHERE seen_at < now() - interval '1 minute'")

    def _execute(self, connection: Any, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return fetch_as_is(connection, sql, *parameters, seconds=self.timeout)
