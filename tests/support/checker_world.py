"""The checker's environment: a cluster, and two gunicorn nodes that connect to it through a proxy each."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.extras

from tests.support.checker import Logged, digest
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess

#: Selects the leader's backend and its application_name.
LEADER = """
SELECT split_part(application_name, ': ', 2), pid FROM socketio_pg.head
JOIN pg_stat_activity ON pid = session_pid AND backend_start = session_started
"""


class Node:
    """One gunicorn. The application_name of its connections ends with its name."""

    def __init__(self, number: int, running: Cluster, workers: int, **settings: str) -> None:
        self.workers = workers
        self.name = f"node-{number}"
        self.proxy = Proxy(running.socket_path)
        self.server = ServerProcess(
            f"{self.proxy.url}?application_name={self.name}",
            "-w",
            str(workers),
            wait="nothing",
            AUTO_INIT="1",
            **settings,
        )

    def close(self) -> None:
        self.server.close()
        self.proxy.close()

    def leading_pid(self) -> int:
        """Return the process id of the worker that relays. Raises AssertionError while there is none."""
        if self.workers == 1:
            return self.server.worker_pid()
        pid = self.server.leading_pid()
        assert pid is not None
        return pid

    @property
    def up(self) -> bool:
        """True while the process runs."""
        return self.server.process.poll() is None


class World:
    """The cluster and its nodes; created by :func:`world`."""

    def __init__(self, running: Cluster, nodes: list[Node]) -> None:
        self.cluster = running
        self.nodes = nodes

    @property
    def ports(self) -> list[int]:
        return [node.server.port for node in self.nodes]

    def leader(self) -> tuple[Node, int] | None:
        """Return the node that relays and the process id of its relay's backend; None if no node relays."""
        rows = self.cluster.sql(LEADER)
        if not rows:
            return None
        name, pid = rows[0]
        return next(node for node in self.nodes if node.name == name), pid

    def wait_leader(self, seconds: float = PATIENCE) -> Node:
        found: tuple[Node, int] = wait_for(self.leader, seconds, "a leader")
        return found[0]

    def other(self, node: Node) -> Node:
        return next(other for other in self.nodes if other is not node)

    def publish(self, channel: str, payload: Any = None) -> None:
        """Publish one message in its own transaction."""
        self.cluster.sql("SELECT socketio_pg.publish(%s, %s::jsonb)", channel, psycopg2.extras.Json(payload))

    def epoch(self) -> str:
        return str(self.cluster.sql("SELECT epoch FROM socketio_pg.head")[0][0])

    def in_outbox(self) -> int:
        return int(self.cluster.sql("SELECT count(*) FROM socketio_pg.outbox")[0][0])

    def newest(self) -> dict[str, int]:
        """Return the last position of each channel."""
        return dict(self.cluster.sql("SELECT channel, max(position) FROM socketio_pg.log GROUP BY channel"))

    def room(self, channel: str) -> dict[str, list[str]]:
        """Return the members of a channel with their states, each as JSON."""
        rows = self.cluster.sql("SELECT key, state FROM socketio_pg.presence WHERE channel = %s", channel)
        found: dict[str, list[str]] = {}
        for key, state in rows:
            found.setdefault(key, []).append(json.dumps(state))
        return {key: sorted(states) for key, states in found.items()}

    def log(self) -> list[Logged]:
        """Return the whole log, in order."""
        return in_pages(self.cluster.connect())

    def ready(self) -> None:
        """Start stopped nodes, and wait until all nodes serve and one of them relays."""
        for node in self.nodes:
            if not node.up:
                node.server.start()
        for node in self.nodes:
            node.server.wait_ready()
        self.wait_leader()


@contextlib.contextmanager
def world(max_prepared: int = 0, workers: int = 1, **settings: str) -> Iterator[World]:
    """Run two nodes of ``workers`` with ``settings`` on a new cluster, with the log installed and relayed.

    ``max_prepared`` is the number of transactions that may be prepared.
    """
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(cluster(durable=True))
        if max_prepared:
            running.sql(f"ALTER SYSTEM SET max_prepared_transactions = {max_prepared}")
            running.restart("fast")
        nodes = []
        for number in (1, 2):
            node = Node(number, running, workers, **{"DRAIN_SECONDS": "0.3"} | settings)
            stack.callback(node.close)
            nodes.append(node)
        made = World(running, nodes)
        for node in nodes:
            node.server.wait_ready()
        wait_for(lambda: running.sql("SELECT to_regclass('socketio_pg.log')")[0][0], PATIENCE, "the log's schema")
        made.wait_leader()
        yield made


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll ``condition``, which depends on other processes. Return its first true value."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psycopg2.OperationalError):
            found = condition()
            if found:
                return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def in_pages(connection: Any) -> list[Logged]:
    """Read the log in small pages, because some payloads are large."""
    rows: list[Logged] = []
    with contextlib.closing(connection), connection.cursor() as cursor:
        while True:
            cursor.execute(
                "SELECT position, channel, payload, "
                "to_char(published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') "
                "FROM socketio_pg.log WHERE position > %s ORDER BY position LIMIT 500",
                (rows[-1].position if rows else -1,),
            )
            page = [
                Logged(position, channel, payload["id"], digest(payload), published_at)
                for position, channel, payload, published_at in cursor.fetchall()
            ]
            if not page:
                return rows
            rows += page
