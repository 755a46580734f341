"""The checker's faults, with order and times drawn from a seed."""

import contextlib
import heapq
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import psycopg2

from tests.support.checker_world import Node, World
from tests.support.patience import PATIENCE
from tests.support.proxy import Proxy

Undo = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its start, its duration (if any), and which of two targets it hits."""

    at: float
    kind: str
    seconds: float
    target: int


def plan_faults(random: Random, seconds: float, pause: float, workers: int = 1) -> list[Fault]:
    """Return faults for ``seconds``, about ``pause`` seconds apart. Faults overlap; each round has all kinds.

    ``workers`` is their number in each node.
    """
    possible = KINDS if workers == 1 else KINDS | WORKER_KINDS
    faults: list[Fault] = []
    at = pause
    while True:
        kinds = list(possible)
        random.shuffle(kinds)
        for kind in kinds:
            if at >= seconds:
                return faults
            shortest, longest = possible[kind][1]
            faults.append(Fault(at, kind, random.uniform(shortest, longest), random.randrange(2)))
            at += random.uniform(0.3, 1.7) * pause


def _wake(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


class Breaker:
    """Executes the faults on ``world``, in the calling thread."""

    def __init__(self, world: World, faults: Sequence[Fault], tell: Callable[[str], None]) -> None:
        self._world = world
        self._faults = faults
        self._tell = tell
        #: How often each kind was executed.
        self.done: Counter[str] = Counter()
        #: Nodes that ended unexpectedly.
        self.problems: list[str] = []
        self._down: set[Node] = set()
        #: Nodes that are frozen, or whose proxy causes a fault. Never both: a proxy that is blocked by a frozen process
        #: does not react to commands.
        self._occupied: set[Node] = set()
        #: Sessions of PostgreSQL that are stopped.
        self._stopped: set[int] = set()

    def run(self, seconds: float) -> None:
        """Execute all faults that begin within ``seconds``. At the end, all are repaired or being repaired."""
        began = time.monotonic()
        steps: list[tuple[float, int, Callable[[], None]]] = []
        numbers = itertools.count()

        def begin(fault: Fault) -> None:
            undo = self._begin(fault)
            if undo is not None:
                heapq.heappush(steps, (time.monotonic() - began + fault.seconds, next(numbers), undo))

        for fault in self._faults:
            heapq.heappush(steps, (fault.at, next(numbers), lambda fault=fault: begin(fault)))  # type: ignore[misc]
        while steps and steps[0][0] < seconds:
            at, _, step = heapq.heappop(steps)
            time.sleep(max(0.0, began + at - time.monotonic()))  # waits for the planned time
            step()
            self._look_after_nodes()
        for _, _, undo in sorted(steps):
            undo()
        time.sleep(max(0.0, began + seconds - time.monotonic()))

    def _begin(self, fault: Fault) -> Undo | None:
        try:
            undo = (KINDS | WORKER_KINDS)[fault.kind][0](self, fault)
        except psycopg2.OperationalError:
            return None  # the leader cannot be queried now
        self.done[fault.kind] += 1  # also if the target was already broken
        return undo

    def _look_after_nodes(self) -> None:
        for node in self._world.nodes:
            if not node.up and node not in self._down:
                self.problems.append(f"{node.name} ended unexpectedly with {node.server.process.returncode}")
                node.server.start()

    def _leader(self, fault: Fault) -> Node:
        leader = self._world.leader()
        return self._world.nodes[fault.target] if leader is None else leader[0]

    # -- the kinds -----------------------------------------------------------------------------------------------------

    def _kill(self, node: Node, how: Callable[[], object]) -> Undo | None:
        if node in self._down:
            return None
        self._down.add(node)
        how()
        self._tell(f"{node.name} killed")

        def start() -> None:
            node.server.process.wait(PATIENCE)
            node.server.start()
            self._down.discard(node)
            self._tell(f"{node.name} started")

        return start

    def kill_leader(self, fault: Fault) -> Undo | None:
        node = self._leader(fault)
        return self._kill(node, node.server.kill)

    def kill_other(self, fault: Fault) -> Undo | None:
        node = self._world.other(self._leader(fault))
        return self._kill(node, node.server.kill)

    def retire(self, fault: Fault) -> Undo | None:
        """Send SIGTERM, as in a rolling update."""
        node = self._world.nodes[fault.target]
        return self._kill(node, node.server.process.terminate)

    def kill_leading_worker(self, fault: Fault) -> None:
        node = self._leader(fault)
        # The node may be ending.
        with contextlib.suppress(AssertionError, FileNotFoundError):
            self._kill_worker(node, node.leading_pid())

    def kill_following_worker(self, fault: Fault) -> None:
        node = self._world.nodes[fault.target]
        if node.up:
            with contextlib.suppress(AssertionError):
                leading = node.leading_pid()
                for pid in node.server.worker_pids():
                    if pid != leading:
                        self._kill_worker(node, pid)
                        return

    def _kill_worker(self, node: Node, pid: int) -> None:
        if node not in self._down:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._tell(f"worker {pid} of {node.name} killed")

    def recycle(self, fault: Fault) -> None:
        """Send SIGHUP: all workers are replaced."""
        node = self._world.nodes[fault.target]
        if node not in self._down:
            node.server.process.send_signal(signal.SIGHUP)
            self._tell(f"workers of {node.name} recycled")

    def freeze(self, fault: Fault) -> Undo | None:
        """Stop the worker that leads, with its session and the lease."""
        node = self._leader(fault)
        if node in self._down | self._occupied:
            return None
        try:
            pid = node.leading_pid()
            os.kill(pid, signal.SIGSTOP)
        except (AssertionError, OSError):
            return None  # it was just started and has no worker yet
        self._occupied.add(node)
        self._tell(f"{node.name} frozen")

        def thaw() -> None:
            with contextlib.suppress(ProcessLookupError):  # killed meanwhile
                os.kill(pid, signal.SIGCONT)
            self._occupied.discard(node)
            self._tell(f"{node.name} thawed")

        return thaw

    def freeze_session(self, fault: Fault) -> Undo | None:
        """Stop the leader's session of PostgreSQL while it is idle: in a transaction, it would keep locks."""
        leader = self._world.leader()
        if leader is None:
            return None
        pid = leader[1]
        for _ in range(50):
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                return None
            self._stopped.add(pid)
            # In a commit it may have a lock that each new connection needs, that of this query too.
            waking = threading.Timer(2.0, _wake, (pid,))
            waking.start()
            try:
                idle = self._world.cluster.sql(
                    "SELECT pid FROM pg_stat_activity WHERE pid = %s AND state = 'idle'", pid
                )
            finally:
                waking.cancel()
            if idle:
                self._tell(f"session of {leader[0].name} stopped")
                return lambda: self._continue_sessions(pid)
            self._continue_sessions(pid)
        return None

    def _continue_sessions(self, *pids: int) -> None:
        for pid in self._stopped.intersection(pids):
            _wake(pid)
            self._stopped.discard(pid)
            self._tell(f"session {pid} continued")

    def terminate_relay(self, fault: Fault) -> None:
        leader = self._world.leader()
        if leader is not None:
            self._world.cluster.sql("SELECT pg_terminate_backend(%s)", leader[1])
            self._tell(f"relay's backend of {leader[0].name} terminated")

    def terminate_servers(self, fault: Fault) -> None:
        self._terminate("socketio_pg%: node-%")

    def terminate_writers(self, fault: Fault) -> None:
        self._terminate("writer-%")

    def _terminate(self, names: str) -> None:
        self._world.cluster.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s", names
        )
        self._tell(f"all backends of {names} terminated")

    def crash_postgres(self, fault: Fault) -> None:
        self._continue_sessions(*self._stopped)  # PostgreSQL could not end it
        self._world.cluster.restart("immediate")
        self._tell("PostgreSQL crashed and started")

    def stop_postgres(self, fault: Fault) -> Undo:
        self._continue_sessions(*self._stopped)
        # Not "smart", which waits for all clients.
        self._world.cluster.stop("fast")
        self._tell("PostgreSQL stopped")
        time.sleep(fault.seconds)  # the length of the outage; other faults wait
        self._world.cluster.start()
        self._tell("PostgreSQL started")
        return lambda: None

    def cut(self, fault: Fault) -> Undo | None:
        return self._interrupt(self._world.nodes[fault.target], "connections cut", Proxy.cut)

    def black_hole(self, fault: Fault) -> Undo | None:
        return self._interrupt(self._world.nodes[fault.target], "black hole", Proxy.black_hole)

    def refuse(self, fault: Fault) -> Undo | None:
        return self._interrupt(self._world.nodes[fault.target], "connections refused", Proxy.refuse)

    def _interrupt(self, node: Node, what: str, begin: Callable[[Proxy], None]) -> Undo | None:
        if node in self._occupied:
            return None
        self._occupied.add(node)
        begin(node.proxy)
        self._tell(f"{node.name} to PostgreSQL: {what}")

        def restore() -> None:
            node.proxy.restore()
            self._occupied.discard(node)
            self._tell(f"{node.name} to PostgreSQL: restored")

        return restore


#: Kind → function and range of durations in seconds. Detecting a black hole takes a while.
KINDS: dict[str, tuple[Callable[[Breaker, Fault], Undo | None], tuple[float, float]]] = {
    "kill_leader": (Breaker.kill_leader, (0.2, 4.0)),
    "kill_other": (Breaker.kill_other, (0.2, 4.0)),
    "retire": (Breaker.retire, (1.0, 3.0)),
    "freeze": (Breaker.freeze, (0.5, 4.0)),
    # Longer than the leader's lease.
    "freeze_long": (Breaker.freeze, (16.0, 20.0)),
    "freeze_session": (Breaker.freeze_session, (4.0, 16.0)),
    "terminate_relay": (Breaker.terminate_relay, (0.0, 0.0)),
    "terminate_servers": (Breaker.terminate_servers, (0.0, 0.0)),
    "terminate_writers": (Breaker.terminate_writers, (0.0, 0.0)),
    "crash_postgres": (Breaker.crash_postgres, (0.0, 0.0)),
    "stop_postgres": (Breaker.stop_postgres, (0.5, 2.0)),
    "cut": (Breaker.cut, (0.0, 0.0)),
    "black_hole": (Breaker.black_hole, (2.0, 12.0)),
    "refuse": (Breaker.refuse, (0.5, 4.0)),
}
#: Those of nodes with several workers.
WORKER_KINDS: dict[str, tuple[Callable[[Breaker, Fault], Undo | None], tuple[float, float]]] = {
    "kill_leading_worker": (Breaker.kill_leading_worker, (0.0, 0.0)),
    "kill_following_worker": (Breaker.kill_following_worker, (0.0, 0.0)),
    "recycle": (Breaker.recycle, (0.0, 0.0)),
}
