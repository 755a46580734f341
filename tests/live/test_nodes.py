"""Three nodes on one database behind nginx with deploy/nginx.conf: transports, deploys, failover, addresses."""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.clients import SocketClient
from tests.support.nightly import sampled
from tests.support.node import NodeClient
from tests.support.nodes import Nginx, Nodes, assert_no_traceback, under_load
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.replay_clients import CLIENTS, Client
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm

NODES = 3


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    with contextlib.closing(Nodes(newest_pg, "nodes", NODES)) as made:
        yield made


# -- load balancing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transports", [("polling",), ("polling", "websocket"), ("websocket",)], ids="+".join)
def test_every_transport_works_through_nginx(nodes: Nodes, channel: str, transports: tuple[str, ...]) -> None:
    """Uses enough clients that without sticky sessions one of them would reach the wrong node."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(SocketClient(nodes.address, transports)) for _ in range(6)]
        for client in clients:
            assert client.call("subscribe", {"channel": channel})["ok"] is True
        for number, client in enumerate(clients):
            assert client.call("publish", {"channel": channel, "payload": number})["ok"] is True
        for client in clients:
            assert sorted(client.next("event")["payload"] for _ in clients) == list(range(6))
            assert client.io.transport() == transports[-1]
            assert client.pending("disconnect") == 0


@pytest.mark.parametrize("transports", sampled(["polling", "polling,websocket"], lambda names: names == "polling"))
def test_stock_client_keeps_its_sticky_cookie(nodes: Nodes, channel: str, transports: str) -> None:
    """Node needs the option withCredentials; a browser does not on the server's own pages."""
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = NodeClient(nodes.address, transports, "client.mjs", '{"withCredentials": true}')
            stack.callback(client.close)
            client.next(event="connect")
            assert client.call("subscribe", {"channel": channel})["ok"] is True
            if "websocket" in transports:
                assert client.next(event="upgrade")["transport"] == "websocket"
            for _ in range(5):
                assert client.call("publish", {"channel": channel, "payload": 1})["ok"] is True
            assert not any(line.get("event") == "disconnect" for line in client.lines)


def test_websockets_go_to_the_least_loaded_node(nodes: Nodes) -> None:
    # Not by the number of lines: nginx logs a WebSocket when it has ended, and those of earlier tests may end late.
    start = time.time()
    with Swarm("127.0.0.1", nodes.port) as swarm:
        swarm.connect(90)
    by_node: Counter[str] = Counter()

    def logged() -> bool:
        nonlocal by_node
        sockets = [one for one in nodes.requests() if one.status == 101 and one.began >= start - 0.001]
        by_node = Counter(one.node for one in sockets)
        return by_node.total() == 90

    until(logged, "nginx has logged all connections")
    assert sorted(by_node) == sorted(f"127.0.0.1:{node.port}" for node in nodes.nodes)
    # nginx's processes share the connection counts, but each has its own position in the round robin.
    assert max(by_node.values()) <= 2 * min(by_node.values())


# -- deploys and failover ----------------------------------------------------------------------------------------------


def clients_of_all_kinds(nodes: Nodes) -> list[Client]:
    """Return two clients of each kind."""
    return [make(nodes.address) for make in [*CLIENTS.values()] * 2]


def test_rolling_restart_loses_and_repeats_nothing(nodes: Nodes, channel: str) -> None:
    clients = clients_of_all_kinds(nodes)
    with under_load(nodes, channel, clients):
        for node in nodes.nodes:
            node.restart()
        # Every client was connected to a node that was restarted.
        for client in clients:
            assert client.next("gap", "one")[0]["tier"] == "notify"
    assert_no_traceback(nodes)


def test_dead_leader_is_replaced(nodes: Nodes, channel: str) -> None:
    leader = nodes.wait_leader()
    with under_load(nodes, channel, clients_of_all_kinds(nodes)):
        leader.kill()
        until(lambda: nodes.leader() not in (None, leader), "another node leads")
        leader.start()
    assert nodes.wait_leader() is not leader, "a restarted node does not take over the leadership"


def is_draining(node: ServerProcess) -> bool:
    try:
        return node.get("/healthz")[0] == 503
    except OSError:
        return True


@pytest.mark.nightly  # half a minute; the tests above restart nodes, too
def test_new_clients_are_not_affected_by_a_deploy(nodes: Nodes) -> None:
    """nginx sends them to neither a draining nor a stopped node."""
    with contextlib.ExitStack() as stack:
        for node in nodes.nodes:
            stopping = threading.Thread(target=node.stop)
            stopping.start()
            # Connections opened just before the drain would be closed by it.
            until(lambda node=node: is_draining(node), "the node is_draining")  # type: ignore[misc]
            for _ in range(10):
                for transports in (("websocket",), ("polling",)):
                    client = stack.enter_context(SocketClient(nodes.address, transports, reconnection=False))
                    assert client.call("subscribe", {"channel": "anything"})["ok"] is True
            stopping.join()
            node.start()


def test_drain_spreads_reconnecting_clients_over_time(newest_pg: Cluster) -> None:
    """Clients reconnect immediately, but DRAIN_SECONDS determines the rate at which a node disconnects them."""
    clients, drain, window = 300, 5.0, 0.1
    with contextlib.closing(Nodes(newest_pg, "nodes_herd", NODES, DRAIN_SECONDS=str(drain))) as nodes:
        with Swarm("127.0.0.1", nodes.port) as swarm:
            first = swarm.connect(clients)
            stopping = threading.Thread(target=nodes.nodes[0].stop)
            stopping.start()
            gone: set[int] = set()

            def reconnect_closed() -> bool:
                for index, client in enumerate(first):
                    if client.closed and index not in gone:
                        gone.add(index)
                        swarm.open(1)
                return not stopping.is_alive()

            swarm.run_until(reconnect_closed)
            reconnected = swarm.clients[clients:]
            swarm.run_until(lambda: all(client.connected for client in reconnected))
        assert len(reconnected) == len(gone)
        opened: list[Any] = []

        def logged() -> bool:
            opened[:] = [request for request in nodes.requests() if request.status == 101]
            return len(opened) == clients + len(reconnected)

        until(logged, "nginx has logged all connections")
        gone_to = f"127.0.0.1:{nodes.nodes[0].port}"
        returned = sorted(opened, key=lambda request: request.began)[clients:]
        assert len(returned) >= clients / NODES / 2
        assert gone_to not in {request.node for request in returned}
        for node in nodes.nodes[1:]:
            times = [request.began for request in returned if request.node == f"127.0.0.1:{node.port}"]
            busiest = max(sum(start <= at < start + window for at in times) for start in times)
            print(f"{len(times)} connected to a node in {max(times) - min(times):.1f} s, {busiest} within 100 ms")
            # Normally one or two. A machine that freezes for a second makes it many, though not all.
            assert busiest <= len(times) / 2
            assert max(times) - min(times) > drain / 2


# -- addresses and origins ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(newest_pg.url(), DRAIN_SECONDS="0.2", TRUSTED_PROXIES="1", MAX_CONNECTIONS_PER_ADDRESS="1")
    yield made
    made.close()


@pytest.fixture(scope="module")
def nginx(limited: ServerProcess, certificate: tuple[str, str]) -> Iterator[Nginx]:
    """nginx in front of one node, because each node counts its own limits."""
    with contextlib.closing(Nginx([limited.port], certificate)) as made:
        yield made


def handshake(port: int, source: str = "127.0.0.1", **headers: str) -> tuple[int, socket.socket]:
    """Return the response status of a WebSocket handshake from ``source``, and the connection."""
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))
    lines = {
        "Host": f"127.0.0.1:{port}", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    } | {name.replace("_", "-"): value for name, value in headers.items()}  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection.sendall(f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n{head}\r\n".encode())
    answer = connection.recv(65536)
    return int(answer.split()[1]), connection


def test_limits_use_the_address_seen_by_nginx(nginx: Nginx) -> None:
    with contextlib.ExitStack() as stack:

        def status(source: str, **headers: str) -> int:
            found, connection = handshake(nginx.port, source, **headers)
            stack.callback(connection.close)
            return found

        assert status("127.0.0.2") == 101
        assert status("127.0.0.2") == 429
        assert status("127.0.0.2", X_Forwarded_For="192.0.2.1") == 429
        assert status("127.0.0.3", X_Forwarded_For="127.0.0.2") == 101


def test_same_origin_is_the_address_of_nginx(nginx: Nginx, limited: ServerProcess) -> None:
    own = f"127.0.0.1:{nginx.port}"

    def status(source: str, **headers: str) -> int:
        found, connection = handshake(nginx.port, source, **headers)
        connection.close()
        return found

    assert status("127.0.0.4", Origin=f"http://{own}") == 101
    assert status("127.0.0.5", Origin=f"https://{own}") == 400
    assert status("127.0.0.5", Origin="http://elsewhere.example") == 400
    assert status("127.0.0.5", Origin="http://elsewhere.example", X_Forwarded_Host="elsewhere.example") == 400
    assert status("127.0.0.5", Origin=f"https://{own}", X_Forwarded_Proto="https") == 400
    # The node's own address is not the origin of any page.
    assert status("127.0.0.5", Origin=f"http://127.0.0.1:{limited.port}") == 400


def test_tls_can_terminate_in_nginx(nginx: Nginx, certificate: tuple[str, str]) -> None:
    address = f"https://127.0.0.1:{nginx.tls_port}"
    session = requests.Session()
    session.trust_env, session.verify = False, certificate[1]
    # For the WebSocket, the client sends an https origin on its own.
    with SocketClient(address, ("polling", "websocket"), http_session=session) as client:
        assert client.io.transport() == "websocket"
        assert client.call("subscribe", {"channel": "anything"})["ok"] is True


def test_nginx_does_not_expose_metrics(nodes: Nodes) -> None:
    assert requests.get(f"{nodes.address}/readyz", timeout=PATIENCE).status_code == 200
    assert requests.get(f"{nodes.address}/metrics", timeout=PATIENCE).status_code == 404
