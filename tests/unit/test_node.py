"""workers/node: the directory of a node, and who may do what in it."""

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketio_pg.workers.node import Node
from tests.support.patience import PATIENCE

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


def _joined(node: Node) -> Node:
    """Return a worker of the node, as if forked from its master, with its socket."""
    worker = Node(node.directory, node._key)
    worker.loads._words = node.loads._words
    worker.join()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(worker.socket_path(worker.slot))
    return worker


@pytest.fixture
def own() -> Iterator[Node]:
    """A node whose master has the user of its workers."""
    made = Node.create(os.getuid(), os.getgid())
    yield made
    made.remove()
    made.leave()


def test_a_worker_that_has_not_joined_yet_misses_nothing(own: Node) -> None:
    """With MESSAGE_QUEUE it reads the cluster key first."""
    assert own.intact


def test_a_worker_notices_that_the_directory_is_gone_and_its_successor_makes_it_again(own: Node) -> None:
    worker = _joined(own)
    assert worker.intact
    shutil.rmtree(own.directory)
    assert not worker.intact
    assert not worker.try_lead()
    successors = [_joined(own), _joined(own)]
    assert [one.slot for one in successors] == [0, 1]
    assert [one.intact for one in successors] == [True, True]
    assert not worker.intact
    assert own.directory.stat().st_mode & 0o777 == 0o700
    # Another gunicorn that starts leaves it alone.
    other = Node.create(os.getuid(), os.getgid())
    assert own.directory.exists()
    other.remove()
    for one in (worker, other, *successors):
        one.leave()


@pytest.mark.parametrize("name", ["0.lock", "0.socket", "leader"])
def test_a_worker_notices_that_one_of_its_files_is_gone(own: Node, name: str) -> None:
    worker = _joined(own)
    assert worker.try_lead()
    assert worker.intact
    (own.directory / name).unlink()
    assert not worker.intact
    worker.leave()


def test_a_directory_that_others_may_enter_is_not_used(own: Node) -> None:
    shutil.rmtree(own.directory)
    own.directory.mkdir()
    own.directory.chmod(0o755)
    own.leave()  # a worker that is forked from the master has its lock
    worker = Node(own.directory, own._key)
    with pytest.raises(PermissionError):
        worker._make_again()
    worker.leave()


def test_a_link_in_place_of_the_directory_is_not_followed(own: Node, tmp_path: Path) -> None:
    shutil.rmtree(own.directory)
    own.directory.symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        own.join()
    own.directory.unlink()


def test_files_in_use_do_not_look_old(own: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = _joined(own)
    files = [own.directory, *own.directory.iterdir()]
    for path in files:
        os.utime(path, (0, 0))
    monkeypatch.setattr(Node, "touch_interval", 0.0)
    assert worker.intact
    assert all(time.time() - path.stat().st_mtime < PATIENCE for path in files)
    worker.leave()
