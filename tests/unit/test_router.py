"""engine/router: the worker that serves a request, by the head of the request."""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.engine.router import Router, _as_json, _from_json
from socketio_pg.workers.node import NO_LOAD, Node
from socketio_pg.workers.peers import Peers
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
        self.peers.start()

    def slot_for(self, head: str) -> int | None:
        return self.router._slot_for(head.encode("latin-1"))


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    monkeypatch.setattr(Node, "fresh", PATIENCE)  # most tests tell loads once
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
        one.node.set_load(sessions)
    chosen = [workers[0].slot_for(f"{line}\r\n\r\n") for _ in range(300)]
    # Counted at once, before the chosen worker tells its load.
    loads = [workers[0].node.loads({slot})[slot] for slot in range(3)]
    assert sum(loads) == 500 + 400 + 450 + len(chosen)
    assert max(loads) - min(loads) <= 20


def test_a_worker_keeps_new_sessions_while_it_has_hardly_more_than_others(workers: list[Worker]) -> None:
    workers[0].node.set_load(3)
    assert workers[0].slot_for(HANDSHAKE.format("websocket")) == 0


@pytest.mark.parametrize(
    "line",
    ["GET / HTTP/1.1", "GET /healthz HTTP/1.1", "POST /api/publish HTTP/1.1", "GET /socket.io/ HTTP/1.1", "x"],
)
def test_the_worker_that_has_accepted_it_serves_any_other_request(workers: list[Worker], line: str) -> None:
    workers[0].node.set_load(1000)
    assert workers[0].slot_for(f"{line}\r\n\r\n") is None


def test_a_draining_worker_passes_requests_on_and_gets_none(workers: list[Worker]) -> None:
    workers[0].draining = True
    workers[0].router.start()
    until(lambda: green.sleep() or not workers[1].node.loads({0}), "the others know")
    for line in (HANDSHAKE.format("polling"), "GET /healthz HTTP/1.1\r\n\r\n"):
        assert workers[0].slot_for(line) in (1, 2)
    workers[1].node.set_load(1000)
    assert workers[1].slot_for(HANDSHAKE.format("polling")) == 2


def test_a_worker_without_others_serves_everything_also_while_it_drains(workers: list[Worker]) -> None:
    for one in workers[1:]:
        one.node.set_load(NO_LOAD)
    workers[0].draining = True
    assert workers[0].slot_for(HANDSHAKE.format("polling")) is None


def test_a_worker_tells_its_sessions(workers: list[Worker]) -> None:
    workers[2].sessions = 7
    workers[2].router.start()
    until(lambda: green.sleep() or workers[0].node.loads({2}) == {2: 7}, "the load is told")


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 5000), ("::1", 5000, 0, 0), "", "/run/server.socket", b"\0server", b"\xff\xfe"], ids=repr
)
def test_addresses_arrive_as_they_were(address: Any) -> None:
    assert _from_json(json.loads(json.dumps(_as_json(address)))) == address
