"""/metrics and /readyz while the database is away: they say so, and wait for nobody."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.metrics import TOKEN, Moved, scrape, wait_for
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess

OF_THE_DATABASE = "notify_queue_usage_ratio"


@pytest.fixture
def server(proxy: Proxy) -> Iterator[ServerProcess]:
    made = ServerProcess(proxy.url, DRAIN_SECONDS="0.2", METRICS_TOKEN=TOKEN)
    yield made
    made.close()


def test_the_database_refuses_then_is_back(proxy: Proxy, server: ServerProcess, channel: str) -> None:
    wait_for(server, lambda now: OF_THE_DATABASE in now)
    with SocketClient(server.url) as client:
        client.subscribe(channel)
        moved = Moved(server)
        proxy.refuse()
        now = wait_for(server, lambda now: OF_THE_DATABASE not in now and now['ready{part="listener"}'] == 0)
        assert now["clients"] == now["subscriptions"] == 1
        assert client.call("publish", {"channel": channel, "payload": 1})["error"]["code"] == "database_unavailable"
        assert moved.by('errors_total{code="database_unavailable"}', "failed_commits_total") == [1, 1]
        proxy.restore()
        wait_for(server, lambda now: OF_THE_DATABASE in now and now['ready{part="listener"}'] == 1)
        moved.wait({'database_reconnects_total{connection="listener"}': 1})


def test_a_database_that_is_silent_holds_up_no_scrape(proxy: Proxy, server: ServerProcess) -> None:
    wait_for(server, lambda now: OF_THE_DATABASE in now)
    proxy.black_hole()
    began = time.monotonic()
    for _ in range(40):
        scrape(server)
    # The query's time is 2 s, connecting's 5 s: had each waited for it, it would have been 80 s and more.
    assert time.monotonic() - began < 20
    wait_for(server, lambda now: OF_THE_DATABASE not in now)
    proxy.restore()
    wait_for(server, lambda now: OF_THE_DATABASE in now)


def test_the_database_is_not_there_at_the_start(proxy: Proxy, breakable: Cluster) -> None:
    proxy.refuse()
    server = ServerProcess(proxy.url, wait="http", DRAIN_SECONDS="0.2", METRICS_TOKEN=TOKEN)
    try:
        assert OF_THE_DATABASE not in scrape(server)
        status, body = server.get("/readyz")
        found = json.loads(body)
        assert (status, found["status"]) == (503, "unavailable")
        assert found["parts"] | {"listener": "…"} == {
            "process": "ok", "listener": "…", "log": "ok", "relay": "ok", "permissions": "ok",
        }  # fmt: skip
        assert found["reason"] == found["parts"]["listener"] != "ok"
        proxy.restore()
        server.wait_ready()
        wait_for(server, lambda now: OF_THE_DATABASE in now)
    finally:
        server.close()
