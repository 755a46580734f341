"""workers/ending: a worker ends when its master was killed, or when the directory of its node was removed."""

import os
import shutil
import signal

import pytest

from socketio_pg.core import green
from socketio_pg.workers.ending import Ending
from socketio_pg.workers.node import Node
from tests.support.patience import PATIENCE


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> green.Event:
    """Sent when this process would end."""
    event = green.Event()
    monkeypatch.setattr(os, "kill", lambda pid, number: event.send((pid, number)))
    monkeypatch.setattr(Ending, "interval", 0.01)
    return event


def test_a_worker_ends_without_its_master(ended: green.Event) -> None:
    ending = Ending(None)
    ending.start(os.getppid() + 1)
    assert ended.wait(PATIENCE) == (os.getpid(), signal.SIGTERM)
    ending.stop()


def test_a_worker_ends_without_its_directory(ended: green.Event) -> None:
    node = Node.create(os.getuid(), os.getgid())
    worker = Node(node.directory, node._key)
    worker.join()
    (node.directory / "0.socket").touch()
    ending = Ending(worker)
    assert ending._reason(os.getppid()) is None
    ending.start(os.getppid())
    shutil.rmtree(node.directory)
    assert ended.wait(PATIENCE) == (os.getpid(), signal.SIGTERM)
    ending.stop()
    for one in (node, worker):
        one.leave()
