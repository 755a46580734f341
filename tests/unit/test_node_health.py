"""gateway/node_health: each worker tells the health of the whole node."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from socketio_pg.core import green
from socketio_pg.core.problems import Problem
from socketio_pg.gateway.node_health import NodeHealth, State, merge
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from tests.support.patience import PATIENCE, until
from tests.support.peers import meet

HEALTHY: dict[str, Problem | None] = {"process": None, "listener": None, "relay": None}


class Worker:
    """A worker of the node in this process."""

    def __init__(self, node: Node, clients: int = 0) -> None:
        self.node = Node(node.directory, node._key)
        self.peers = Peers(self.node)
        self.parts = dict(HEALTHY)
        self.health = NodeHealth(self.node, self.peers, self.tell, lambda: clients)
        self.health.fresh = 0.0
        self.told = 0
        self.peers.start()

    def tell(self) -> dict[str, Problem | None]:
        self.told += 1
        return self.parts

    def stop(self) -> None:
        self.health.stop()
        self.peers.stop()


@pytest.fixture
def workers(node: Node) -> Iterator[list[Worker]]:
    node.wanted = 3
    made = [Worker(node, clients) for clients in (4, 5, 6)]
    meet(*made)
    yield made
    for worker in made:
        worker.stop()


# -- merging -----------------------------------------------------------------------------------------------------------


def test_a_problem_of_all_workers_is_told_once() -> None:
    states = [State(slot, 1, 0, HEALTHY | {"listener": Problem("no database")}) for slot in range(3)]
    assert merge(states) == HEALTHY | {"listener": "no database"}


def test_a_problem_of_some_workers_names_them() -> None:
    problems = [Problem("late"), None, Problem("late"), Problem("lost")]
    states = [State(slot, 1, 0, HEALTHY | {"listener": problem}) for slot, problem in enumerate(problems)]
    assert merge(states) == HEALTHY | {"listener": "workers 0, 2: late; worker 3: lost"}


def test_details_are_compared_and_not_their_references() -> None:
    """Each worker has a reference of its own for the same detail."""
    problems = [Problem("no table orders", f"refused (reference {number})") for number in range(2)]
    states = [State(slot, 1, 0, HEALTHY | {"relay": problem}) for slot, problem in enumerate([*problems, None])]
    found = merge(states)["relay"]
    assert found is not None
    assert (found, found.public) == ("workers 0, 1: no table orders", "workers 0, 1: refused (reference 0)")


# -- several workers ---------------------------------------------------------------------------------------------------


def test_a_node_is_healthy_when_all_its_workers_are(workers: list[Worker]) -> None:
    assert [worker.health.parts() for worker in workers] == [HEALTHY] * 3
    workers[1].parts["relay"] = Problem("secret", "stuck")
    for worker in workers:
        found = worker.health.parts()
        assert found == HEALTHY | {"relay": "worker 1: secret"}
        assert found["relay"] is not None
        assert found["relay"].public == "worker 1: stuck"


def test_many_questions_at_once_are_one(workers: list[Worker]) -> None:
    """Anyone may read /readyz."""
    one, other, _ = workers
    one.health.fresh = PATIENCE
    assert green.run_together([one.health.parts] * 50) == [HEALTHY] * 50
    assert (one.told, other.told) == (1, 1)
    other.parts["relay"] = Problem("stuck")
    assert one.health.parts() == HEALTHY
    one.health.fresh = 0.0
    assert one.health.parts() == HEALTHY | {"relay": "worker 1: stuck"}
    assert other.told == 2


def test_missing_workers_are_told(node: Node, workers: list[Worker]) -> None:
    node.wanted = 5
    assert workers[0].health.parts() == HEALTHY | {"process": "workers 3, 4: not running"}
    workers.pop(1).stop()
    assert workers[0].health.parts() == HEALTHY | {"process": "workers 1, 3, 4: not running"}
    node.wanted = 2
    assert workers[0].health.parts() == HEALTHY


def test_workers_that_shut_down_do_not_matter_when_enough_stay(node: Node, workers: list[Worker]) -> None:
    """At SIGHUP gunicorn starts all successors first."""
    workers[0].parts["process"] = Problem("shutting down")
    assert workers[1].health.parts() == HEALTHY | {"process": "worker 0: shutting down"}
    node.wanted = 2
    assert [worker.health.parts() for worker in workers] == [HEALTHY] * 3


def test_workers_are_described_for_operators(node: Node, workers: list[Worker]) -> None:
    node.wanted = 4
    workers[2].parts["relay"] = Problem("secret", "stuck")
    one = workers[1].health
    assert (one.workers, one.clients) == ([], 5)
    one.start()
    until(lambda: green.sleep() or one.workers, "the first answers")
    assert one.clients == 15
    assert one.workers == [
        {"slot": 0, "pid": os.getpid(), "clients": 4, "listens": False, "problem": None},
        {"slot": 1, "pid": os.getpid(), "clients": 5, "listens": True, "problem": None},
        {"slot": 2, "pid": os.getpid(), "clients": 6, "listens": False, "problem": "relay: stuck"},
        {"slot": 3, "pid": None, "clients": 0, "listens": False, "problem": "process: not running"},
    ]


_WORKER = """
import sys
from pathlib import Path
from socketio_pg.core import green
from socketio_pg.gateway.node_health import NodeHealth
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
node = Node(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
peers = Peers(node)
NodeHealth(node, peers, dict, lambda: 0)
peers.start()
while True:
    green.sleep(60)
"""


def test_a_worker_that_does_not_answer_is_told(node: Node, workers: list[Worker]) -> None:
    node.wanted = 4
    one = workers[0]
    command = [sys.executable, "-c", _WORKER, str(node.directory), node._key.hex()]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: green.sleep() or one.health.parts() == HEALTHY, "the process answers")
            process.send_signal(signal.SIGSTOP)
            one.health.timeout = 0.1
            # On a busy machine the others may not answer in that time either.
            expected = HEALTHY | {"process": "worker 3: no answer"}
            until(lambda: green.sleep() or one.health.parts() == expected, "the other two answer")
        finally:
            process.kill()
    until(lambda: green.sleep() or one.health.parts()["process"] == "worker 3: not running", "its end is noticed")
