"""Fixtures for tests without I/O: settings that are independent of the environment."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from socketio_pg.core import config
from socketio_pg.core.variables import PREFIX
from socketio_pg.protocol.server import Server
from socketio_pg.websocket import SocketServer
from socketio_pg.workers.node import Node
from tests.support.wire import Wire, echo

ROOT = Path(__file__).resolve().parent.parent.parent
#: An address where nothing listens. Tests that need an address never connect to it.
NOWHERE = "postgresql://user:password@127.0.0.1:9/nowhere"


@pytest.fixture
def root() -> Path:
    """The root folder of the checkout."""
    return ROOT


@pytest.fixture
def node() -> Iterator[Node]:
    """A node, of which the test's own process or others become workers."""
    made = Node.create(os.getuid(), os.getgid())
    yield made
    made.remove()


@pytest.fixture(params=["eventlet", "gevent"])
def library(request: pytest.FixtureRequest) -> Any:
    """The two modules of each green-thread library, as one; also of the library that this run does not use."""
    modules = [importlib.import_module(f"socketio_pg.core.{part}_{request.param}") for part in ("green", "wsgi")]
    return SimpleNamespace(**(vars(modules[0]) | vars(modules[1])))


@pytest.fixture
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Remove all settings from the environment, and use an empty working folder. Return the folder."""
    for name in config.NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(PREFIX + name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop ``time.monotonic()``. Return a function that moves it forward by some seconds."""
    now = 1000.0

    def forward(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.monotonic", lambda: now)
    return forward


@pytest.fixture
def socket_server(clean_settings: Path) -> SocketServer:
    """A server that is not started and never connects to its database."""
    return SocketServer(dsn=NOWHERE)


@pytest.fixture
def server() -> Server:
    server = Server(async_mode="threading", async_handlers=False)
    server.on("echo", echo)
    return server


@pytest.fixture
def wire(server: Server) -> Wire:
    return Wire(server)
