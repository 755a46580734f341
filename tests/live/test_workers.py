"""Several workers of one gunicorn serve as one: stock clients, polling and upgrades, publishing, emits, one LISTEN."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest

from socketio_pg.gunicorn_config import EXIT_CONFIGURATION
from tests.support.clients import SocketClient
from tests.support.log import Log, wait_installed
from tests.support.node import NodeClient
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

pytestmark = pytest.mark.green

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(newest_pg.url(), "-w", "3", DRAIN_SECONDS="0.5")
    yield made
    made.close()


@pytest.mark.parametrize("transports", [("polling",), ("websocket",), ("polling", "websocket")])
def test_clients_of_all_workers_get_what_one_publishes(server: ServerProcess, transports: tuple[str, ...]) -> None:
    clients = [SocketClient(server.url, transports=transports) for _ in range(12)]
    try:
        for client in clients:
            client.subscribe("everyone")
        for number, client in enumerate(clients):
            assert client.call("publish", {"channel": "everyone", "payload": number})["ok"]
        for client in clients:
            assert [client.next("event")["payload"] for _ in clients] == list(range(12))
    finally:
        for client in clients:
            client.close()


@pytest.mark.nightly
@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_sender_that_is_left_out_is_so_on_its_worker(server: ServerProcess, channel: str, transport: str) -> None:
    """Without a log and a cluster key: the worker that publishes and listens seals for itself."""
    clients = [SocketClient(server.url, transports=(transport,)) for _ in range(9)]
    try:
        for client in clients:
            client.subscribe(channel)
        for number, client in enumerate(clients):
            request = {"channel": channel, "payload": number, "echo": False, "traceparent": TRACE}
            assert client.call("publish", request)["ok"]
        for own, client in enumerate(clients):
            found = [client.next("event") for _ in range(8)]
            assert [event["payload"] for event in found] == [number for number in range(9) if number != own]
            assert {event["traceparent"] for event in found} == {TRACE}
    finally:
        for client in clients:
            client.close()


def test_position_and_id_of_a_publication_are_those_of_the_node(newest_pg: Cluster, channel: str) -> None:
    """One worker publishes for all; each waits for the positions itself. The stock JavaScript client is one of them."""
    log = Log(newest_pg, "workers_places", "-w", "3", AUTO_INIT="1")
    with contextlib.ExitStack() as stack:
        stack.callback(log.server.close)
        wait_installed(log)
        clients: list[Any] = [stack.enter_context(SocketClient(log.server.url)) for _ in range(9)]
        stock = NodeClient(log.server.url, "websocket")
        stack.callback(stock.close)
        stock.next(event="connect")
        assert clients[0].call("subscribe", {"channel": channel})["ok"]
        answers = [client.call("publish", {"channel": channel, "payload": 1}) for client in (*clients, stock)]
        events = [clients[0].next("event") for _ in answers]
        assert [answer["position"] for answer in answers] == [event["position"] for event in events]
        assert len({answer["epoch"] for answer in answers}) == 1
        # All at the same time: one of them publishes.
        request = {"channel": channel, "payload": 2, "id": "once"}
        with ThreadPoolExecutor(len(clients)) as pool:
            together = list(pool.map(lambda client: client.call("publish", request), clients))
        again = stock.call("publish", request)
        event = clients[0].next("event")
        assert event["payload"] == 2
        assert sorted(answer.get("duplicate", False) for answer in together) == [False] + [True] * 8
        assert {answer["position"] for answer in (*together, again)} == {event["position"]}
        assert again["duplicate"] is True
        quick = clients[1].call("publish", {"channel": channel, "payload": 3, "wait": False})
        assert quick == {"ok": True, "channel": channel}
        assert clients[0].next("event")["payload"] == 3
        # Without a relay, an answer does not wait for ever.
        with contextlib.closing(psycopg2.connect(log.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM socketio_pg.head FOR UPDATE")
            late = clients[2].call("publish", {"channel": channel, "payload": 4})
            assert late == {"ok": True, "channel": channel, "epoch": None, "position": None}
        assert clients[0].next("event")["payload"] == 4


def test_invalid_setting_ends_all_workers(newest_pg: Cluster) -> None:
    """With the status and the log of one worker."""
    with contextlib.closing(ServerProcess(newest_pg.url(), "-w", "4", wait="nothing", AUTH="on")) as server:
        assert server.process.wait(PATIENCE) == EXIT_CONFIGURATION
        assert "AUTH in the environment is 'on'" in server.log
        assert "Traceback" not in server.log
