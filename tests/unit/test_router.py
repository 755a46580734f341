"""engine/router: the worker that serves a request, by the head of the request."""

import base64
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.engine.front import Connection
from socketio_pg.engine.router import Router, _as_json, _from_json
from socketio_pg.workers import peers
from socketio_pg.workers.loads import Loads
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from socketio_pg.workers.sockets import PART
from tests.support.patience import PATIENCE, until
from tests.support.peers import meet

HANDSHAKE = "GET /socket.io/?EIO=4&transport={} HTTP/1.1\r\n\r\n"


class Worker:
    """A worker of the node in this process, with a number of sessions."""

    def __init__(self, directory: Node) -> None:
        self.node = Node(directory.directory, directory._key)
        self.peers = Peers(self.node)
        self.sessions, self.draining = 0, False
        self.router = Router(self.node, self.peers, lambda: self.sessions, lambda: self.draining)
        self.router.serve_with(self)  # type: ignore[arg-type]
        #: Whether the connections that arrive become sessions.
        self.accepts = True
        self.served = 0
        self.peers.start()

    def slot_for(self, head: str) -> int | None:
        return self.router._slot_for(head.encode("latin-1"))[0]

    def get(self, head: str) -> bool:
        """Get a connection with this request. Return whether it was passed on."""
        here, there = socket.socketpair()
        there.close()
        passed = self.router.route(head.encode(), Connection(here, ("127.0.0.1", 1), ("127.0.0.1", 2), head.encode()))
        here.close()
        self.sessions += not passed
        return passed

    def serve(self, descriptor: int, received: bytes, address: Any, listener: Any) -> None:
        """Serve a connection, in place of a :class:`Front`."""
        os.close(descriptor)
        self.served += 1
        self.sessions += self.accepts

    def loads(self) -> dict[int, int]:
        """Return the loads of all workers, as this one sees them."""
        return self.node.loads.of(range(3), range(3))


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    monkeypatch.setattr(Loads, "fresh", PATIENCE)  # most tests tell loads once
    node = Node.create(os.getuid(), os.getgid())
    made = [Worker(node) for _ in range(3)]
    meet(*made)
    yield made
    for one in made:
        one.router.stop()
        one.peers.stop()


@pytest.mark.parametrize("before", ["", "http://example.com", "https://[::1]:80", "/prefix"])
@pytest.mark.parametrize("path", ["/socket.io/", "/socket.io"])
def test_requests_of_a_session_go_to_its_worker(workers: list[Worker], before: str, path: str) -> None:
    for owner in workers:
        sid = owner.router.new_session_id()
        for method in ("GET", "POST", "OPTIONS"):
            head = f"{method} {before}{path}?EIO=4&transport=polling&sid={sid}&t=x HTTP/1.1\r\n\r\n"
            assert workers[0].slot_for(head) == owner.node.slot


def test_ids_of_sessions_differ_and_do_not_show_the_worker(workers: list[Worker]) -> None:
    made = [one.router.new_session_id() for one in workers for _ in range(200)]
    assert len(set(made)) == 600
    assert {len(sid) for sid in made} == {24}
    # Each byte of the sealed name takes many values, though there are only three names.
    ends = [base64.urlsafe_b64decode(sid)[-4:] for sid in made]
    assert all(len({end[index] for end in ends}) > 100 for index in range(4))


@pytest.mark.parametrize(
    "sid", ["", "a", "ä", "%00", "%ff%fe", "x" * 24, "x" * 5000, "AAAAAAAAAAAAAAAAAAAAAAAA", "../../../../../../etc/p"]
)
def test_no_worker_has_a_session_with_another_id(workers: list[Worker], sid: str) -> None:
    assert workers[0].slot_for(f"GET /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\n\r\n") is None


@pytest.mark.parametrize(
    "line",
    [
        "GET /socket.io/?EIO=4&transport=polling HTTP/1.1",
        "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1",
        "GET /api/channels/a%2Fb/stream?since=x HTTP/1.1",
        "GET /prefix/api/stream?channel=a HTTP/1.1",
    ],
)
def test_new_sessions_go_to_the_worker_with_the_fewest(workers: list[Worker], line: str) -> None:
    for one, sessions in zip(workers, (500, 400, 450), strict=True):
        one.sessions = sessions
        one.router._tell(0)
    for number in range(300):
        workers[number % 2].get(f"{line}\r\n\r\n")
        # Tells its sessions, but not those on their way to it.
        workers[2].router._tell(0)
    # No other green thread has run, so none has arrived yet.
    assert [one.served for one in workers] == [0, 0, 0]
    found = workers[2].loads()
    assert sum(found.values()) == 500 + 400 + 450 + 300
    assert max(found.values()) - min(found.values()) <= 20
    until(lambda: green.sleep() or sum(one.sessions for one in workers) == 1650, "all have arrived")
    for one in workers:
        one.router._tell(0)
    assert workers[2].loads() == {slot: one.sessions for slot, one in enumerate(workers)}


def test_connections_that_become_no_sessions_do_not_count(workers: list[Worker]) -> None:
    workers[0].sessions = 1000
    workers[1].accepts = workers[2].accepts = False
    for _ in range(10):
        assert workers[0].get(HANDSHAKE.format("websocket"))
    assert sorted(workers[0].loads().values()) == [5, 5, 1000]
    until(lambda: green.sleep() or workers[1].served + workers[2].served == 10, "all have arrived")
    for one in workers:
        one.router._tell(0)
    assert workers[0].loads() == {0: 1000, 1: 0, 2: 0}


def test_a_connection_that_cannot_be_passed_does_not_count(workers: list[Worker]) -> None:
    workers[0].sessions = 1000
    for one in workers[1:]:
        workers[0].peers._outgoing[one.node.slot]._connection.shutdown(socket.SHUT_RDWR)
    assert workers[0].get(HANDSHAKE.format("websocket"))
    assert workers[0].loads() == {0: 1000, 1: 0, 2: 0}
    too_long = f"GET /socket.io/?EIO=4&transport=polling&x={'x' * PART} HTTP/1.1\r\n\r\n"
    assert not workers[0].get(too_long)
    assert workers[0].loads() == {0: 1001, 1: 0, 2: 0}


def test_a_worker_without_room_for_a_connection_gets_no_more(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_has_room", lambda descriptor: False)
    workers[0].sessions = 1000
    assert workers[0].get(HANDSHAKE.format("websocket"))
    until(lambda: green.sleep() or len(workers[0].loads()) == 2, "the worker says that it has no room")
    monkeypatch.setattr(Peers, "pause", 0.0)
    for one in workers:
        one.router._tell(0)
    assert workers[0].loads() == {0: 1000, 1: 0, 2: 0}


def test_a_worker_keeps_new_sessions_while_it_has_hardly_more_than_others(workers: list[Worker]) -> None:
    workers[0].sessions = 3
    assert workers[0].slot_for(HANDSHAKE.format("websocket")) == 0


@pytest.mark.parametrize(
    "line",
    ["GET / HTTP/1.1", "GET /healthz HTTP/1.1", "POST /api/publish HTTP/1.1", "GET /socket.io/ HTTP/1.1", "x"],
)
def test_the_worker_that_has_accepted_it_serves_any_other_request(workers: list[Worker], line: str) -> None:
    workers[0].sessions = 1000
    assert workers[0].slot_for(f"{line}\r\n\r\n") is None


def test_a_draining_worker_passes_requests_on_and_gets_none(workers: list[Worker]) -> None:
    workers[0].draining = True
    workers[0].router.start()
    until(lambda: green.sleep() or 0 not in workers[1].loads(), "the others know")
    for line in (HANDSHAKE.format("polling"), "GET /healthz HTTP/1.1\r\n\r\n"):
        assert workers[0].slot_for(line) in (1, 2)
    workers[1].sessions = 1000
    assert workers[1].slot_for(HANDSHAKE.format("polling")) == 2


def test_a_worker_without_others_serves_everything_also_while_it_drains(workers: list[Worker]) -> None:
    for one in workers[1:]:
        one.node.loads.tell(None)
    workers[0].draining = True
    assert workers[0].slot_for(HANDSHAKE.format("polling")) is None


def test_a_worker_tells_its_sessions(workers: list[Worker]) -> None:
    workers[2].sessions = 7
    workers[2].router.start()
    until(lambda: green.sleep() or workers[0].loads()[2] == 7, "the load is told")


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 5000), ("::1", 5000, 0, 0), "", "/run/server.socket", b"\0server", b"\xff\xfe"], ids=repr
)
def test_addresses_arrive_as_they_were(address: Any) -> None:
    assert _from_json(json.loads(json.dumps(_as_json(address)))) == address
