"""workers/node: the directory of a node, and who may do what in it."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketio_pg.workers.node import Node
from tests.support.patience import PATIENCE, until

#: The user of the workers: another one than the master's, which only the superuser's master can have.
USER = 65534 if os.getuid() == 0 else os.getuid()


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node.create(USER, os.getgid())
    yield made
    made.remove()


def test_the_directory_of_a_killed_master_is_removed(node: Node) -> None:
    os.close(node._locks.pop())
    successor = Node.create(USER, os.getgid())
    assert not node.directory.exists()
    assert successor.directory.exists()
    assert successor.directory.stat().st_mode & 0o777 == 0o700
    assert successor.directory.stat().st_uid == USER
    successor.remove()
    os.close(successor._locks.pop())


def test_what_cleans_tmp_leaves_the_directory_alone(node: Node) -> None:
    """systemd-tmpfiles leaves out what it cannot lock, with everything below (tmpfiles.d(5), "Age")."""
    descriptor = os.open(node.directory, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_the_master_follows_no_link_of_a_worker(node: Node, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    for name in ("wanted", "wanted.new"):
        (node.directory / name).symlink_to(secret)
    (node.directory / "loads").unlink()
    (node.directory / "loads").symlink_to(secret)
    node.wanted = 7
    assert secret.read_text() == "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert node.wanted == 7


def test_all_workers_see_the_number_that_is_wanted(node: Node) -> None:
    worker = Node(node.directory, node._key)
    worker.join()
    node.wanted = 3
    assert worker.wanted == 3
    worker.leave()


def test_a_worker_that_no_longer_tells_its_load_gets_no_clients(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "fresh", 0.05)
    one, other = Node(node.directory, node._key), Node(node.directory, node._key)
    one.join()
    other.join()
    until(lambda: one.loads({0, 1}) == {0: 0}, "the load of the other one is too old")
    one.add_load(1, 5)
    assert one.loads({0, 1}) == {0: 0}
    monkeypatch.setattr(Node, "fresh", PATIENCE)
    other.set_load(7)
    one.add_load(1, 5)
    assert one.loads({0, 1}) == {0: 0, 1: 12}
    one.leave()
    other.leave()
