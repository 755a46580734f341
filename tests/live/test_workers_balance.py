"""New clients go to the worker with the fewest, so that workers share them evenly, also when one is replaced."""

import contextlib
import os
import signal

import pytest

from tests.support.metrics import TOKEN, Samples, wait_for
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import Swarm

CLIENTS = 400
#: Of all clients, the most that one of two workers may have.
LARGEST_SHARE = 0.55


def _shares(samples: Samples) -> list[float]:
    return [value for name, value in samples.items() if name.startswith("worker_clients{")]


def _assert_balanced(server: ServerProcess) -> None:
    samples = wait_for(server, lambda now: sum(_shares(now)) == CLIENTS)
    assert len(_shares(samples)) == 2
    assert max(_shares(samples)) <= LARGEST_SHARE * CLIENTS, _shares(samples)


@pytest.mark.parametrize("at_once", [1, pytest.param(200, marks=pytest.mark.green)])
def test_clients_of_a_worker_that_ends_fill_its_successor(newest_pg: Cluster, at_once: int) -> None:
    with (
        contextlib.closing(ServerProcess(newest_pg.url(), "-w", "2", METRICS_TOKEN=TOKEN, **PATIENT)) as server,
        Swarm("127.0.0.1", server.port) as swarm,
    ):
        swarm.connect(CLIENTS, at_once=at_once)
        _assert_balanced(server)
        ended, other = server.worker_pids()
        os.kill(ended, signal.SIGKILL)
        until(lambda: len(server.worker_pids()) == 2 and ended not in server.worker_pids(), "a successor")
        server.wait_ready()
        # The successor has no clients yet: all counted ones are those of the other worker.
        remaining = sum(_shares(wait_for(server, lambda now: len(_shares(now)) == 2 and min(_shares(now)) == 0)))
        lost = CLIENTS - int(remaining)
        swarm.run_until(lambda: sum(client.closed for client in swarm.clients) == lost)
        swarm.connect(lost, at_once=at_once)
        _assert_balanced(server)
        assert other in server.worker_pids()
