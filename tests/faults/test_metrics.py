"""/metrics and /readyz while the database is unreachable: they report it and do not wait."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.metrics import TOKEN, Moved, scrape, wait_for
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess

DATABASE_METRIC = "notify_queue_usage_ratio"


@pytest.fixture
def server(proxy: Proxy) -> Iterator[ServerProcess]:
    made = ServerProcess(proxy.url, DRAIN_SECONDS="0.2", METRICS_TOKEN=TOKEN)
    yield made
    made.close()


def test_refused_connections_remove_the_database_metrics_until_restored(
    proxy: Proxy, server: ServerProcess, channel: str
) -> None:
    wait_for(server, lambda now: DATABASE_METRIC in now)
    with SocketClient(server.url) as client:
        client.subscribe(channel)
        moved = Moved(server)
        proxy.refuse()
        now = wait_for(server, lambda now: DATABASE_METRIC not in now and now['ready{part="listener"}'] == 0)
        assert now["clients"] == now["subscriptions"] == 1
        assert client.call("publish", {"channel": channel, "payload": 1})["error"]["code"] == "database_unavailable"
        assert moved.by('errors_total{code="database_unavailable"}', "failed_commits_total") == [1, 1]
        proxy.restore()
        wait_for(server, lambda now: DATABASE_METRIC in now and now['ready{part="listener"}'] == 1)
        moved.wait({'database_reconnects_total{connection="listener"}': 1})


def test_silent_database_does_not_delay_scrapes(proxy: Proxy, server: ServerProcess) -> None:
    wait_for(server, lambda now: DATABASE_METRIC in now)
    proxy.black_hole()
    began = time.monotonic()
    for _ in range(40):
        scrape(server)
    # The timeouts are 2 s for the query and 5 s for connecting: 40 scrapes that waited would take 80 s or more.
    assert time.monotonic() - began < 60
    wait_for(server, lambda now: DATABASE_METRIC not in now)
    proxy.restore()
    wait_for(server, lambda now: DATABASE_METRIC in now)


def test_metrics_are_served_without_a_database(proxy: Proxy, breakable: Cluster) -> None:
    proxy.refuse()
    server = ServerProcess(proxy.url, wait="http", DRAIN_SECONDS="0.2", METRICS_TOKEN=TOKEN)
    try:
        assert DATABASE_METRIC not in scrape(server)
        status, body = server.get("/readyz")
        found = json.loads(body)
        assert (status, found["status"]) == (503, "unavailable")
        assert found["parts"] | {"listener": "…"} == {
            "process": "ok", "listener": "…", "log": "ok", "relay": "ok", "publisher": "ok", "keys": "ok",
            "permissions": "ok",
        }  # fmt: skip
        assert found["reason"] == found["parts"]["listener"] != "ok"
        proxy.restore()
        server.wait_ready()
        wait_for(server, lambda now: DATABASE_METRIC in now)
    finally:
        server.close()
