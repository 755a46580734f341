"""A frozen relay: its process is stopped while its connection stays open and its lock is held."""

import os
import signal

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


def leaders(cluster: Cluster) -> list[tuple[str]]:
    return cluster.sql("SELECT name FROM socketio_pg.nodes WHERE relay")


def test_frozen_leader_is_replaced(breakable: Cluster, channel: str) -> None:
    leader = ServerProcess(breakable.url(), AUTO_INIT="1", DRAIN_SECONDS="0.2")
    other = None
    try:
        until(lambda: breakable.sql("SELECT to_regclass('socketio_pg.nodes')")[0][0] and leaders(breakable), "a leader")
        other = ServerProcess(breakable.url(), DRAIN_SECONDS="0.2")
        with SocketClient(other.url) as client:
            assert "position" in client.call("subscribe", {"channel": channel})
            breakable.sql("SELECT socketio_pg.publish(%s, '1')", channel)
            assert client.next("event")["payload"] == 1
            os.kill(leader.worker_pid(), signal.SIGSTOP)
            breakable.sql("SELECT socketio_pg.publish(%s, '2')", channel)
            assert client.next("event", 2 * PATIENCE)["payload"] == 2, "PostgreSQL must end the silent session"
            os.kill(leader.worker_pid(), signal.SIGCONT)
            breakable.sql("SELECT socketio_pg.publish(%s, '3')", channel)
            assert client.next("event")["payload"] == 3
    finally:
        leader.close()
        if other is not None:
            other.close()
