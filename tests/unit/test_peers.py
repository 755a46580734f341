"""workers/peers: messages, questions and descriptors between workers, and how they notice that one has ended."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from socketio_pg.workers.sockets import PART, unix_socket
from tests.support.patience import PATIENCE, until
from tests.support.peers import meet


class Worker:
    """A worker of the node in this process, and what it has received."""

    def __init__(self, node: Node) -> None:
        self.node = Node(node.directory, node._key)
        self.peers = Peers(self.node)
        self.received = green.Queue()
        self.changes = green.Queue()
        self.peers.receive("word", lambda slot, body: self.received.put((slot, body)))
        self.peers.receive_descriptors("file", lambda slot, body, fd: self.received.put((slot, body, fd)))
        self.peers.answer("name", lambda body: self.node.name + body)
        self.peers.watch(lambda slot, here: self.changes.put((slot, here)))
        self.peers.start()


def next_of(queue: green.Queue) -> Any:
    with green.timeout(PATIENCE):
        return queue.get()


@pytest.fixture
def two(node: Node) -> Iterator[tuple[Worker, Worker]]:
    one, other = Worker(node), Worker(node)
    assert next_of(one.changes) == (1, True)
    assert next_of(other.changes) == (0, True)
    yield one, other
    one.peers.stop()
    other.peers.stop()


def test_workers_take_the_lowest_free_slots(two: tuple[Worker, Worker]) -> None:
    assert [worker.node.slot for worker in two] == [0, 1]
    assert [list(worker.peers.slots) for worker in two] == [[1], [0]]


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3_000_000])
def test_messages_of_all_sizes_arrive_in_order(two: tuple[Worker, Worker], size: int) -> None:
    one, other = two
    body = os.urandom(size)
    one.peers.tell("word", body)
    one.peers.send(1, "word", b"next")
    assert next_of(other.received) == (0, body)
    assert next_of(other.received) == (0, b"next")


def test_a_descriptor_is_passed_between_large_messages(two: tuple[Worker, Worker]) -> None:
    one, other = two
    here, there = socket.socketpair()
    large = os.urandom(1_000_000)
    one.peers.tell("word", large)
    assert one.peers.pass_descriptor(1, "file", b"head", there.fileno())
    one.peers.tell("word", b"after")
    there.close()
    assert next_of(other.received) == (0, large)
    slot, body, descriptor = next_of(other.received)
    assert (slot, body) == (0, b"head")
    with socket.socket(fileno=descriptor) as passed:
        passed.sendall(b"hello")
        assert here.recv(10) == b"hello"
    assert here.recv(10) == b""  # no other copy is open
    assert next_of(other.received) == (0, b"after")


def test_a_closed_descriptor_is_not_passed_and_the_next_message_is(two: tuple[Worker, Worker]) -> None:
    one, other = two
    here, there = socket.socketpair()
    descriptor = there.fileno()
    there.close()
    assert not one.peers.pass_descriptor(1, "file", b"", descriptor)
    one.peers.tell("word", b"after")
    assert next_of(other.received) == (0, b"after")
    here.close()


def test_a_question_is_answered(two: tuple[Worker, Worker]) -> None:
    one, other = two
    assert one.peers.ask("name", b"!\n?", PATIENCE) == {1: other.node.name + b"!\n?"}
    assert one.peers.ask("name", b"", PATIENCE, slots=[5]) == {}
    assert one.peers.ask("unknown", b"", 0.05) == {}


def test_a_name_leads_to_its_worker(two: tuple[Worker, Worker]) -> None:
    one, other = two
    made = other.node.new_session_id()
    assert other.node.name not in made
    assert one.peers.slot_of(one.node.worker_of(made).hex()) == 1
    assert one.peers.slot_of(one.node.worker_of(one.node.new_session_id()).hex()) == 0
    assert one.peers.slot_of(one.node.worker_of(os.urandom(18)).hex()) is None
    assert one.peers.slot_of(one.node.worker_of(b"").hex()) is None


def test_a_name_leads_to_its_worker_before_the_two_have_met(node: Node) -> None:
    """A worker that has just started accepts connections of clients of the others, and they those of its clients."""
    one = Worker(node)
    other = Worker(node)
    here, there = socket.socketpair()
    # No other green thread has run since, so neither has read what the other says.
    for sender, receiver, slot in ((other, one, 0), (one, other, 1)):
        assert sender.changes.empty()
        assert sender.peers.slot_of(receiver.node.name.hex()) == slot
        assert sender.peers.pass_descriptor(slot, "file", b"head", there.fileno())
        assert sender.changes.empty()
    for receiver, slot in ((one, 1), (other, 0)):
        sender_slot, body, descriptor = next_of(receiver.received)
        assert (sender_slot, body) == (slot, b"head")
        os.close(descriptor)
        assert next_of(receiver.changes) == (slot, True)
    assert [list(worker.peers.slots) for worker in (one, other)] == [[1], [0]]
    other.peers.stop()
    gone = other.node.name.hex()
    assert one.peers.slot_of(gone) in (1, None)
    assert next_of(one.changes) == (1, False)
    assert one.peers.slot_of(gone) is None
    successor = Worker(node)
    assert one.peers.slot_of(gone) is None
    assert one.peers.slot_of(successor.node.name.hex()) == successor.node.slot == 1
    for name in ("", "00", "00000000", "00" * 5):
        assert one.peers.slot_of(name) is None
    for worker in (one, successor):
        worker.peers.stop()
    here.close()
    there.close()


def test_a_name_leads_to_a_successor_before_its_predecessor_is_missed(node: Node) -> None:
    one, other = Worker(node), Worker(node)
    meet(one, other)
    assert next_of(one.changes) == (1, True)
    other.peers.stop()
    successor = Worker(node)
    # No other green thread has run: the first worker still has its connection to the predecessor.
    assert one.changes.empty()
    assert one.peers.slot_of(successor.node.name.hex()) == 1
    one.peers.tell("word", b"hello")
    assert next_of(successor.received) == (0, b"hello")
    assert next_of(one.changes) == (1, False)
    assert next_of(one.changes) == (1, True)
    for worker in (one, successor):
        worker.peers.stop()


def test_a_worker_that_leaves_is_noticed_and_its_slot_is_used_again(node: Node, two: tuple[Worker, Worker]) -> None:
    one, other = two
    other.peers.stop()
    assert next_of(one.changes) == (1, False)
    assert not one.peers.send(1, "word", b"lost")
    successor = Worker(node)
    assert successor.node.slot == 1
    assert next_of(one.changes) == (1, True)
    one.peers.tell("word", b"for the successor")
    assert next_of(successor.received) == (0, b"for the successor")
    successor.peers.stop()


def test_a_successor_is_met_after_a_connection_to_its_ending_predecessor(node: Node) -> None:
    """A worker that ends still has its socket for a moment, to which others can connect; it never answers them."""
    one, ending = Worker(node), Node(node.directory, node._key)
    ending.join()
    with contextlib.closing(unix_socket()) as listening:
        listening.bind(node.socket_path(ending.slot))
        listening.listen()
        one.peers._connect_all()
        assert list(one.peers.slots) == [ending.slot]
    ending.leave()
    successor = Worker(node)
    assert successor.node.slot == ending.slot
    assert next_of(one.changes) == (1, True)
    assert one.peers.send(1, "word", b"for the successor")
    assert next_of(successor.received) == (0, b"for the successor")
    for worker in (one, successor):
        worker.peers.stop()


def test_workers_meet_when_only_one_of_them_can_connect_at_first(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peers, "interval", 0.01)
    one, other = Worker(node), Worker(node)
    # No other green thread has run: the first worker does not know the second one yet.
    path = Path(node.socket_path(1))
    hidden = path.rename(path.with_suffix(".hidden"))
    until(lambda: green.sleep() or 1 in one.peers._incoming, "the other worker has connected")
    assert list(one.peers.slots) == []
    hidden.rename(path)
    meet(one, other)
    assert next_of(one.changes) == (1, True)
    assert next_of(other.changes) == (0, True)
    for worker in (one, other):
        worker.peers.stop()


_WORKER = """
import sys
from pathlib import Path
from socketio_pg.core import green
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
node = Node(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
peers = Peers(node)
peers.start()
print(node.slot, node.try_lead(), flush=True)
while True:
    green.sleep(60)
"""


@pytest.fixture
def process(node: Node) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own, in slot 0, which leads."""
    command = [sys.executable, "-c", _WORKER, str(node.directory), node._key.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "0 True\n"
        yield started
        started.kill()


def test_a_killed_worker_is_noticed_at_once_and_another_leads(node: Node, process: subprocess.Popen[str]) -> None:
    one = Worker(node)
    assert next_of(one.changes) == (0, True)
    assert not one.node.try_lead()
    process.send_signal(signal.SIGKILL)
    assert next_of(one.changes) == (0, False)
    process.wait()
    assert one.node.try_lead()
    one.peers.stop()


def test_a_worker_that_does_not_read_is_disconnected_and_connected_again(
    node: Node, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peers, "max_waiting", 1_000_000)
    monkeypatch.setattr(Peers, "interval", 0.05)
    one = Worker(node)
    assert next_of(one.changes) == (0, True)
    process.send_signal(signal.SIGSTOP)
    for _ in range(100):
        one.peers.tell("word", b"x" * 50_000)
    assert next_of(one.changes) == (0, False)
    process.send_signal(signal.SIGCONT)
    assert next_of(one.changes) == (0, True)
    one.peers.stop()


def test_a_worker_that_connects_again_before_its_old_connection_is_read_to_the_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peers, "interval", 0.01)
    monkeypatch.setattr(Peers, "max_waiting", 1_000_000)
    one, go_on = Worker(node), green.Event()
    one.peers.receive("word", lambda slot, body: go_on.wait())
    other = Worker(node)
    assert next_of(one.changes) == (1, True)
    assert next_of(other.changes) == (0, True)
    while other.peers.send(0, "word", b"x" * 50_000):
        green.sleep()
    assert next_of(other.changes) == (0, False)
    assert next_of(one.changes) == (1, True)  # connected again
    go_on.send()
    with green.timeout(PATIENCE):
        while other.peers.slot_of(one.node.name.hex()) != 0:
            green.sleep()
        other.peers.send(0, "word", b"last")
        while next_of(one.received) != (1, b"last"):
            pass
    assert one.peers.ask("name", b"", PATIENCE) == {1: other.node.name}
    assert one.peers.slot_of(other.node.name.hex()) == 1
    assert other.peers.slot_of(one.node.name.hex()) == 0
    one.peers.stop()
    other.peers.stop()


def test_a_descriptor_that_is_not_taken_in_time_is_withdrawn_and_all_messages_arrive(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peers, "pass_timeout", 0.05)
    one, go_on = Worker(node), green.Event()
    one.peers.receive("word", lambda slot, body: go_on.wait())
    other = Worker(node)
    assert next_of(other.changes) == (0, True)
    large = os.urandom(3_000_000)
    other.peers.send(0, "word", large)
    other.peers.send(0, "word", large)
    here, there = socket.socketpair()
    assert not other.peers.pass_descriptor(0, "file", b"", there.fileno())
    there.close()
    assert here.recv(10) == b""
    here.close()
    other.peers.send(0, "word", b"last")
    go_on.send()
    assert [next_of(one.received) for _ in range(3)] == [(1, large), (1, large), (1, b"last")]
    one.peers.stop()
    other.peers.stop()


def test_a_message_larger_than_what_may_wait_arrives(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peers, "max_waiting", 1_000_000)
    one, other = Worker(node), Worker(node)
    assert next_of(other.changes) == (0, True)
    large = os.urandom(3_000_000)
    assert other.peers.send(0, "word", large)
    assert next_of(one.received) == (1, large)
    one.peers.stop()
    other.peers.stop()


def test_an_answer_to_a_predecessor_answers_no_question_of_its_successor(node: Node) -> None:
    one, other = Worker(node), Worker(node)
    assert next_of(one.changes) == (1, True)
    assert next_of(other.changes) == (0, True)
    begun = green.Queue()
    finish = {b"old": green.Event(), b"new": green.Event()}

    def answer(body: bytes) -> bytes:
        begun.put(body)
        finish[body].wait()
        return body

    one.peers.answer("slow", answer)
    green.run_soon(other.peers.ask, "slow", b"old", PATIENCE)
    assert next_of(begun) == b"old"
    other.peers.stop()
    assert next_of(one.changes) == (1, False)
    successor = Worker(node)
    assert next_of(one.changes) == (1, True)
    found = green.Queue()
    green.run_soon(lambda: found.put(successor.peers.ask("slow", b"new", PATIENCE)))
    assert next_of(begun) == b"new"
    finish[b"old"].send()
    assert one.peers.send(1, "word", b"after")
    assert next_of(successor.received) == (0, b"after")
    finish[b"new"].send()
    assert next_of(found) == {0: b"new"}
    one.peers.stop()
    successor.peers.stop()


def test_a_descriptor_beyond_which_there_is_no_room_is_closed(two: tuple[Worker, Worker]) -> None:
    one, other = two
    here, there = socket.socketpair()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(there.fileno())
    os.close(lowest)
    try:
        # One descriptor is left, and the passed one takes it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
        assert one.peers.pass_descriptor(1, "file", b"", there.fileno())
        until(lambda: green.sleep() or not other.peers.takes_descriptors, "the worker notices")
        assert next_of(other.received) == (0, b"", None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    there.close()
    assert here.recv(1) == b"", "nobody holds the connection"
    here.close()
    one.peers.tell("word", b"after")
    assert next_of(other.received) == (0, b"after")
