"""The stock JavaScript client under Node: WebSocket, long-polling alone, and the upgrade between them."""

from collections.abc import Iterator

import pytest

from tests.support.node import NodeClient
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture(params=["websocket", "polling", "polling,websocket"])
def client(request: pytest.FixtureRequest, live_server: ServerProcess) -> Iterator[NodeClient]:
    made = NodeClient(live_server.url, request.param)
    try:
        connected = made.next(event="connect")
        if "," in request.param:
            assert made.next(event="upgrade")["transport"] == "websocket"
        else:
            assert connected["transport"] == request.param
        yield made
    finally:
        made.close()


def test_javascript_client_subscribes_and_publishes(client: NodeClient, newest_pg: Cluster, channel: str) -> None:
    assert client.next(event="server_hello")["argument"]["sid"]
    assert client.call("subscribe", {"channel": channel}) == {"ok": True, "channel": channel}
    newest_pg.sql("SELECT pg_notify(%s, n::text) FROM generate_series(1, 500) AS n", channel)
    received = [client.next(event="event")["argument"] for _ in range(500)]
    assert received == [{"channel": channel, "payload": number} for number in range(1, 501)]
    payload = {"text": "ünïcödé 🐘", "nested": [1, {"deep": None}]}
    assert client.call("publish", {"channel": channel, "payload": payload}) == {"ok": True, "channel": channel}
    assert client.next(event="event")["argument"]["payload"] == payload
    assert client.call("publish", {"channel": channel, "payload": "x" * 8000})["error"]["code"] == "payload_too_large"
    assert client.call("subscribe", 5)["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("transports", ["websocket", "polling"])
def test_javascript_client_reconnects_after_a_server_restart(newest_pg: Cluster, channel: str, transports: str) -> None:
    server = ServerProcess(newest_pg.url(), DRAIN_SECONDS="0.2")
    client = NodeClient(server.url, transports)
    try:
        client.next(event="connect")
        server.restart()
        assert client.next(event="disconnect")["reason"] != "io server disconnect", (
            "this reason would stop the client from reconnecting"
        )
        client.next(event="connect")
        assert client.call("subscribe", {"channel": channel})["ok"] is True
        newest_pg.notify(channel, "1")
        assert client.next(event="event")["argument"]["payload"] == 1
    finally:
        client.close()
        server.close()
