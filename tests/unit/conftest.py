"""For the tests without I/O: settings that depend on nothing outside the test."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2.extensions
import pytest

from socketio_pg.core import config
from socketio_pg.protocol.server import Server
from socketio_pg.websocket import SocketServer
from tests.support.wire import Wire, echo

ROOT = Path(__file__).resolve().parent.parent.parent
#: Nothing listens there. A test that needs an address never connects to it.
NOWHERE = "postgresql://user:password@127.0.0.1:9/nowhere"


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No setting in the environment, and a working folder without ``local.cfg``; returns that folder."""
    for field in dataclasses.fields(config.Settings):
        monkeypatch.delenv(field.name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds of ``time.monotonic()`` pass, which stands still otherwise."""
    now = 1000.0

    def forward(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.monotonic", lambda: now)
    return forward


@pytest.fixture
def socket_server(clean_settings: Path) -> Iterator[SocketServer]:
    """A server that is not started, and whose database nobody asks for anything."""
    # psycopg2's wait callback is process-wide: what another test set up is to find it as it was.
    callback = psycopg2.extensions.get_wait_callback()
    yield SocketServer(dsn=NOWHERE)
    psycopg2.extensions.set_wait_callback(callback)


@pytest.fixture
def server() -> Server:
    server = Server(async_mode="threading", async_handlers=False)
    server.on("echo", echo)
    return server


@pytest.fixture
def wire(server: Server) -> Wire:
    return Wire(server)
