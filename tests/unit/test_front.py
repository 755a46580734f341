"""engine/front: a connection that was accepted while the worker ends."""

import socket
from types import SimpleNamespace
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

from socketio_pg.core import green
from socketio_pg.engine.front import Front


def test_a_connection_of_a_closed_listener_is_closed_and_the_worker_goes_on() -> None:
    cfg = Config()
    worker: Any = SimpleNamespace(cfg=cfg, log=Logger(cfg))
    Front(worker, None).install()
    listener = socket.create_server(("127.0.0.1", 0))
    ours, theirs = green.socket_pair()
    listener.close()
    worker.handle(listener, ours, ("127.0.0.1", 1))
    assert theirs.recv(1) == b""
    theirs.close()
