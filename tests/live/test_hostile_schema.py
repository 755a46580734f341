"""Servers whose database a login with CREATE has prepared: NOTIFY works, and no code of that login runs."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.hostile import FOREIGN_SCHEMAS, FUNCTIONS, HostileDatabase
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture
def hostile(newest_pg: Cluster) -> Iterator[HostileDatabase]:
    yield HostileDatabase(newest_pg, "live_hostile")
    newest_pg.sql("DROP DATABASE live_hostile WITH (FORCE)")


def test_server_does_not_use_a_foreign_schema(hostile: HostileDatabase) -> None:
    hostile.sql(f"{FOREIGN_SCHEMAS['views']}; {FUNCTIONS}", role="mallory")
    settings = {"AUTO_INIT": "1", "DURABLE_CHANNELS": "durable:*", "METRICS_TOKEN": "secret", "DRAIN_SECONDS": "0"}
    with contextlib.closing(ServerProcess(hostile.url, wait="http", **settings)) as server:
        server.wait_for("/readyz", 503, "the schema socketio_pg is not trusted")
        server.wait_for("/readyz", 503, '"listener":"ok"')  # it connects on its own
        status, body = server.get("/readyz")
        assert (status, json.loads(body)["parts"]["listener"]) == (503, "ok")
        assert "the schema socketio_pg is not trusted" in body
        assert "mallory" not in body
        with SocketClient(server.url) as client:
            client.subscribe("orders")
            hostile.sql("NOTIFY orders, '1'")
            assert client.next("event") == {"channel": "orders", "payload": 1}
            # The log is not used: what need not go through it is a NOTIFY.
            assert client.call("publish", {"channel": "orders", "payload": 2}) == {"ok": True, "channel": "orders"}
            assert client.next("event") == {"channel": "orders", "payload": 2}
            answer = client.call("publish", {"channel": "durable:1", "payload": 1, "durable": True})
            assert answer["ok"] is False
            assert answer["error"]["code"] == "log_not_installed"
            assert "the schema socketio_pg is not trusted" in answer["error"]["message"]
            assert "mallory" not in str(answer)
        lines = [line for line in server.log.splitlines() if "level=error" in line]
        assert len(lines) == len(server.worker_pids()), server.log
        assert "is not trusted: the schema socketio_pg belongs to mallory" in lines[0]
        assert "Traceback" not in server.log
        assert not hostile.attacked
        # Once the schema is gone, the server installs its own and is ready.
        hostile.sql("DROP SCHEMA socketio_pg CASCADE; NOTIFY socketio_pg, 'removed'")
        server.wait_ready()
    assert not hostile.attacked


def test_overloaded_functions_are_not_called(hostile: HostileDatabase) -> None:
    """The search_path of the server's role names a schema of the attacker before pg_catalog."""
    hostile.shadow()
    settings = {"AUTO_INIT": "1", "DURABLE_CHANNELS": "durable:*", "DRAIN_SECONDS": "0"}
    with contextlib.closing(ServerProcess(hostile.url, **settings)) as server, SocketClient(server.url) as client:

        def installed() -> bool:
            client.call("unsubscribe", {"channel": "durable:1"})
            return "position" in client.call("subscribe", {"channel": "durable:1"})

        until(installed, "the log is installed")
        for number in (1, 2, 3):
            assert client.call("publish", {"channel": "durable:1", "payload": number})["ok"] is True
        assert [client.next("event")["payload"] for _ in range(3)] == [1, 2, 3]
        with SocketClient(server.url) as late:
            assert late.call("subscribe", {"channel": "durable:1", "history": 2})["ok"] is True
            assert [late.next("event")["payload"] for _ in range(2)] == [2, 3]
        assert not hostile.attacked
