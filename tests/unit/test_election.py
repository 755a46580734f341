"""workers/election: one worker leads, and another one as soon as it resigns or ends."""

import signal
import subprocess
import sys

from socketio_pg.core import green
from socketio_pg.workers.election import Election
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from tests.support.patience import PATIENCE, until


class Worker:
    """A worker of the node in this process."""

    def __init__(self, node: Node) -> None:
        self.node = Node(node.directory, node._key)
        self.peers = Peers(self.node)
        self.told: list[bool] = []
        self.election = Election(self.node, self.peers, self.told.append)
        self.peers.start()
        self.election.start()

    def stop(self) -> None:
        self.election.resign()
        self.peers.stop()


def all_follow(workers: list[Worker], slot: int) -> None:
    until(lambda: green.sleep() or all(one.election.leader == slot for one in workers), f"worker {slot} leads")
    assert [one.election.leading for one in workers] == [one.node.slot == slot for one in workers]


def test_the_first_worker_leads_and_the_others_know_it(node: Node) -> None:
    workers = [Worker(node) for _ in range(3)]
    all_follow(workers, 0)
    assert [one.told for one in workers] == [[True], [], []]
    assert workers[2].election.wait_leader(0) == 0
    for one in workers:
        one.stop()


def test_another_worker_leads_when_the_leader_resigns(node: Node) -> None:
    workers = [Worker(node) for _ in range(3)]
    all_follow(workers, 0)
    workers[0].election.resign()
    until(lambda: green.sleep() or workers[0].election.leader in (1, 2), "another worker leads")
    leader = workers[0].election.leader
    assert leader is not None
    all_follow(workers, leader)
    assert workers[0].told == [True, False]
    assert workers[leader].told == [True]
    for one in workers:
        one.stop()


def test_no_worker_leads_when_all_resign(node: Node) -> None:
    workers = [Worker(node) for _ in range(2)]
    all_follow(workers, 0)
    for one in reversed(workers):
        one.election.resign()
    until(lambda: green.sleep() or all(one.election.leader is None for one in workers), "nobody leads")
    assert workers[1].election.wait_leader(0.05) is None
    assert [one.told for one in workers] == [[True, False], []]
    for one in workers:
        one.stop()


_LEADER = """
import sys
from pathlib import Path
from socketio_pg.core import green
from socketio_pg.workers.election import Election
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
node = Node(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
peers = Peers(node)
election = Election(node, peers, lambda leading: print("leading", flush=True))
peers.start()
election.start()
green.sleep(600)
"""


def test_another_worker_leads_when_the_leader_is_killed(node: Node) -> None:
    command = [sys.executable, "-c", _LEADER, str(node.directory), node._key.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "leading\n"
        workers = [Worker(node) for _ in range(2)]
        all_follow(workers, 0)
        process.send_signal(signal.SIGKILL)
        with green.timeout(PATIENCE):
            while not any(one.told for one in workers):
                green.sleep()
    all_follow(workers, 1 if workers[0].told else 2)
    assert sorted(one.told for one in workers) == [[], [True]]
    for one in workers:
        one.stop()


def test_each_leader_has_a_higher_term_than_the_last_one(node: Node) -> None:
    one = Worker(node)
    assert one.node.term == 1
    one.stop()
    other = Worker(node)
    assert other.node.term == 2
    other.stop()


def test_a_late_word_of_a_former_leader_is_ignored(node: Node) -> None:
    """A worker that starts while the leader changes reads the words of both in any order."""
    peers = Peers(Node(node.directory, node._key))
    election = Election(node, peers, lambda leading: None)
    for slot, kind, body in ((2, "leading", b"2"), (0, "leading", b"1"), (0, "resigned", b"")):
        peers._dispatch(slot, kind, body, [])
    assert election.leader == 2


def test_a_leader_that_connects_again_is_known_again(node: Node) -> None:
    peers = Peers(Node(node.directory, node._key))
    election = Election(node, peers, lambda leading: None)
    peers._dispatch(2, "leading", b"2", [])
    election._on_change(2, False)
    assert election.leader is None
    peers._dispatch(2, "leading", b"2", [])
    assert election.leader == 2
