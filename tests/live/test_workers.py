"""Several workers of one gunicorn serve as one: stock clients, polling and upgrades, publishing, emits, one LISTEN."""

import contextlib
from collections.abc import Iterator

import pytest

from socketio_pg.gunicorn_config import EXIT_CONFIGURATION
from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

pytestmark = pytest.mark.green


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


def test_invalid_setting_ends_all_workers(newest_pg: Cluster) -> None:
    """With the status and the log of one worker."""
    with contextlib.closing(ServerProcess(newest_pg.url(), "-w", "4", wait="nothing", AUTH="on")) as server:
        assert server.process.wait(PATIENCE) == EXIT_CONFIGURATION
        assert "AUTH in the environment is 'on'" in server.log
        assert "Traceback" not in server.log
