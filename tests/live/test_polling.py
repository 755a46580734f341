"""Long-polling: a session lives as long as its client polls, and no request waits forever."""

import time
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.postgres import Cluster
from tests.support.raw_http import http, open_session
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm

pytestmark = pytest.mark.green


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(
        newest_pg.url(), "--worker-connections", "20", app="tests.support.slow_app:app",
        DRAIN_SECONDS="0.2", PING_INTERVAL="1", PING_TIMEOUT="6", MAX_CONNECTIONS="1000",
    )  # fmt: skip
    yield made
    made.close()


#: Seconds after which a session without a pong ends: ping interval plus ping timeout.
SESSION_TIMEOUT = 1 + 6


def sid_of(path: str) -> str:
    return path.rpartition("&sid=")[2]


def wait_for_sockets(server: ServerProcess, number: int) -> None:
    server.wait_for("/state", 200, f'"sockets":{number},')


def test_idle_client_is_pinged_and_stays_connected(server: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    """Also one that has upgraded to a WebSocket."""
    sid = sid_of(open_session(server))
    with (
        SocketClient(server.url, ("polling",), reconnection=False) as client,
        Swarm("127.0.0.1", server.port) as swarm,
    ):
        client.subscribe(channel)
        one = swarm.upgrade(sid)
        swarm.run_until(lambda: one.shaken)
        one.send("2probe")
        one.send("5")
        one.send("40")
        swarm.run_until(lambda: one.connected)
        began = time.monotonic()
        swarm.run_until(lambda: time.monotonic() - began > SESSION_TIMEOUT + 2)
        assert not one.closed
        newest_pg.notify(channel, "1")
        assert client.next("event")["payload"] == 1
        assert client.pending("disconnect") == 0
    wait_for_sockets(server, 0)


def test_session_of_a_vanished_client_is_removed(server: ServerProcess) -> None:
    for _ in range(5):
        path = open_session(server)
        assert http(server, "POST", path, body=b"40").status == 200
    wait_for_sockets(server, 0)
    server.wait_for("/state", 200, '"subscribers":0')


@pytest.mark.parametrize("body", [b"2", b"9", b"", b"abc", b"\xff", b"\x1e".join([b"3"] * 17)])
def test_invalid_posts_do_not_occupy_the_worker(server: ServerProcess, body: bytes) -> None:
    for _ in range(30):  # more than the worker serves concurrently
        path = open_session(server)
        assert http(server, "POST", path, body=body).status in (200, 400)
    assert server.get("/healthz")[0] == 200
    wait_for_sockets(server, 0)
    assert "Traceback" not in server.log


def test_second_upgrade_is_refused(server: ServerProcess) -> None:
    sid = sid_of(open_session(server))
    with Swarm("127.0.0.1", server.port) as swarm:
        first = swarm.upgrade(sid)
        swarm.run_until(lambda: first.shaken)
        second = swarm.upgrade(sid)
        with pytest.raises(AssertionError, match=" 400 "):
            swarm.run_until(lambda: second.shaken)
    assert "Traceback" not in server.log


def test_handler_may_call_its_client_while_other_events_are_handled(server: ServerProcess) -> None:
    with Swarm("127.0.0.1", server.port) as swarm:
        (one,) = swarm.connect(1)
        one.answers_calls = True
        # Sent together: an unrequested acknowledgement, an event whose handler calls the client, and another event.
        one.send_all('43999["x"]', '420["call_me"]', '421["unsubscribe",{"channel":"a"}]')
        swarm.run_until(lambda: any(text.startswith("31[") for text in one.packets))
        swarm.run_until(lambda: any(text.startswith("30[") for text in one.packets))
        assert next(text for text in one.packets if text.startswith("30[")) == '30["called back: yes"]'
