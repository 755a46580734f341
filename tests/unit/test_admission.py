"""Places of handshakes: taken for the address and for MAX_CONNECTIONS, and free again when a handshake is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.core.config import Settings
from socketio_pg.core.errors import RateLimitedError
from socketio_pg.engine.server import Engine
from socketio_pg.websocket import SocketServer
from socketio_pg.workers.counts import FILE_NAME, SharedCounts
from socketio_pg.workers.local_counts import CLIENTS, LOGINS, Counts, LocalCounts
from tests.support.counting import joined
from tests.unit.conftest import NOWHERE

HANDSHAKE = "/socket.io/?EIO=4&transport=polling"


Serve = Callable[..., SocketServer]


@pytest.fixture
def serve(clean_settings: Path) -> Iterator[Serve]:
    """Makes a server with some settings."""
    servers = []

    def make(counts: Counts | None = None, **settings: Any) -> SocketServer:
        servers.append(SocketServer(dsn=NOWHERE, settings=Settings(**settings), counts=counts))
        return servers[-1]

    yield make
    for server in servers:
        server.socketio.server.eio._watcher.stop()


def get(server: SocketServer, path: str = HANDSHAKE) -> Any:
    # As under the development server.
    return server.app.test_client().get(path, environ_overrides={"eventlet.input": None, "REMOTE_ADDR": "203.0.113.1"})


def connect(server: SocketServer) -> str:
    """Open a session, and return its sid."""
    sid = json.loads(get(server).text[1:])["sid"]
    assert isinstance(sid, str)
    return sid


@pytest.mark.parametrize(
    ("query", "status"),
    [("transport=polling", 400), ("EIO=4&transport=x", 400), ("EIO=4&transport=websocket", 400)],
)
def test_refused_handshake_does_not_count(serve: Serve, query: str, status: int) -> None:
    server = serve(max_connections_per_address=1)
    for _ in range(3):
        assert get(server, f"/socket.io/?{query}").status_code == status
    connect(server)
    assert get(server).status_code == 429


def test_failed_handshake_does_not_count(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(max_connections_per_address=1)
    with monkeypatch.context() as patch:
        patch.setattr(server.socketio.server.eio, "_session_id", lambda: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                get(server)
    connect(server)


def test_closed_session_does_not_count(serve: Serve) -> None:
    server = serve(max_connections_per_address=1)
    for _ in range(3):
        sid = connect(server)
        assert get(server).status_code == 429
        server.socketio.server.eio.sockets[sid].close(wait=False)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SharedCounts]]:
    """The counts of two workers of a node."""
    # A process has no lock against itself, and would take its other objects for those of dead processes.
    monkeypatch.setattr(SharedCounts, "_forget_dead", lambda self: False)
    # Silent sessions make room earlier.
    monkeypatch.setattr(Engine, "silent_share", 2.0)
    counts = [joined(tmp_path / FILE_NAME, slot) for slot in range(2)]
    yield counts
    for each in counts:
        each.leave()


@pytest.fixture
def workers(node: list[SharedCounts], serve: Serve) -> list[SocketServer]:
    """Two workers of a node, which may have three clients."""
    return [serve(each, max_connections=3) for each in node]


def admit(server: SocketServer, sid: str) -> None:
    """Connect a session to a namespace, as far as the engine knows."""
    server.socketio.server.eio.admitted(sid)


def test_limit_of_an_address_holds_for_all_workers_together(node: list[SharedCounts], serve: Serve) -> None:
    one, other = workers = [serve(each, max_connections_per_address=4) for each in node]
    sids = [connect(server) for server in (one, other, one, one)]
    for server in workers:
        assert get(server).status_code == 429
    one.socketio.server.eio.sockets[sids[0]].close(wait=False)
    connect(other)
    for server in workers:
        assert get(server).status_code == 429


def test_worker_makes_room_among_its_own_clients(workers: list[SocketServer]) -> None:
    one, other = workers
    first = connect(one)
    admit(other, connect(other))
    admit(other, connect(other))
    assert get(other).status_code == 503, "its clients are admitted"
    second = connect(one)
    assert list(one.socketio.server.eio.sockets) == [second] != [first]
    assert get(other).status_code == 503
    admit(one, second)
    assert get(one).status_code == 503
    engine = other.socketio.server.eio
    engine.forget(next(iter(engine.sockets.values())))
    connect(one)
    assert get(other).status_code == 503


def test_logins_of_all_workers_are_limited_together(workers: list[SocketServer]) -> None:
    one, other = workers
    engine = other.socketio.server.eio
    sid = connect(other)
    for _ in range(3):
        engine.begin_login(engine.sockets[sid])
    assert get(one).status_code == 503
    engine.end_login(engine.sockets[sid])
    connect(one)


def test_silent_sessions_of_a_worker_have_its_share(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for workers in (1, 4):
        monkeypatch.setattr(LocalCounts, "workers", workers)
        server = serve(max_connections=64)
        for _ in range(30):
            connect(server)
        assert len(server.socketio.server.eio.sockets) == 16 // workers


def test_engine_reports_its_clients(serve: Serve) -> None:
    counts = LocalCounts()
    server = serve(counts)
    engine = server.socketio.server.eio
    socket = engine.sockets[connect(server)]
    assert (counts.sum(CLIENTS), counts.sum(LOGINS)) == (1, 0)
    socket.close(wait=False)
    engine._sweep(0.0)
    assert counts.sum(CLIENTS) == 0


def test_a_stream_counts_from_its_request_until_it_ends(serve: Serve) -> None:
    admission = serve(max_connections_per_address=2)._admission
    places = [admission.open_stream({"REMOTE_ADDR": "203.0.113.1"}) for _ in range(2)]
    with pytest.raises(RateLimitedError):
        admission.open_stream({"REMOTE_ADDR": "203.0.113.1"})
    places[0].admit()
    assert admission.streams == 2
    for place in places:
        place.free()
    assert admission.streams == 0
