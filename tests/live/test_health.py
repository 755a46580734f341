"""An outage of the database reaches every kind of client, and a short reconnect none."""

import contextlib
import json
import queue
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from socketio_pg.subscriber.subscriber import Health, Subscriber
from tests.support import asyncapi
from tests.support.clients import SocketClient
from tests.support.demo_page import demo_page
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.replay_clients import JavaScript
from tests.support.server import ROOT, ServerProcess, clean_environment


@pytest.fixture
def database(newest_pg: Cluster) -> Iterator[Proxy]:
    made = Proxy(newest_pg.socket_path)
    yield made
    made.close()


@pytest.fixture
def server(database: Proxy) -> Iterator[ServerProcess]:
    with contextlib.closing(
        ServerProcess(database.url, app="tests.support.outage_app:app", DEBUG="1", DRAIN_SECONDS="0.2")
    ) as made:
        yield made


@pytest.fixture
def command(server: ServerProcess, channel: str) -> "Iterator[subprocess.Popen[str]]":
    """`socketio-pg listen --url`; its standard output and error are one text."""
    arguments = [sys.executable, "-m", "socketio_pg", "listen", channel, "--url", server.url]
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_outage_reaches_every_client(
    chromium: Browser, database: Proxy, server: ServerProcess, command: "subprocess.Popen[str]", channel: str
) -> None:
    reports: queue.Queue[Health] = queue.Queue()
    assert command.stdout is not None
    assert command.stdout.readline() == f"listening to {channel}\n"
    with (
        SocketClient(server.url) as stock,
        contextlib.closing(JavaScript(server.url)) as script,
        Subscriber(server.url, on_health=reports.put) as subscriber,
        demo_page(chromium, server.url) as page,
    ):
        banner = page.page.locator(".outage")
        demo = page.page.context.new_page()
        demo.goto(f"{server.url}/demo/chat.html")
        first = stock.next("server_hello")["health"]
        assert (first["database"], first.keys()) == ("reachable", {"database", "since"})
        assert script.wait_line("health")["health"] == reports.get(timeout=PATIENCE) == first == subscriber.health
        page.start()
        expect(banner).to_be_hidden()
        stock.call("subscribe", {"channel": channel})

        # The LISTEN connection is back within a second, and nobody hears of it.
        database.cut()
        assert stock.next("gap")["reason"] == "database_connection_lost"

        database.refuse()
        outage = stock.next("health")
        asyncapi.check("health", outage)
        assert outage["database"] == "unreachable"
        assert script.wait_line("health") == {"kind": "health", "health": outage, "known": outage}
        assert reports.get(timeout=PATIENCE) == outage == subscriber.health
        page.expect_state("degraded")
        expect(banner).to_contain_text("no connection to its database")
        expect(demo.locator("#status")).to_have_attribute("data-state", "degraded")
        expect(demo.locator(".outage")).to_contain_text("no connection to its database since")
        # Neither an address nor a statement.
        with SocketClient(server.url) as later:
            hello = later.next("server_hello")
            assert hello["health"] == outage
        assert not re.search(r"127\.0\.0\.1|LISTEN|SELECT|postgres", json.dumps([hello, outage]))

        database.restore()
        back = stock.next("health")
        assert (back["database"], back["since"] >= outage["since"]) == ("reachable", True)
        assert script.wait_line("health")["health"] == reports.get(timeout=PATIENCE) == back
        page.expect_state("connected")
        expect(banner).to_be_hidden()
        expect(demo.locator("#status")).to_have_attribute("data-state", "connected")
        expect(demo.locator(".outage")).to_be_hidden()
        demo.close()
        assert (stock.pending("health"), reports.qsize()) == (0, 0)
    lines = list(iter(command.stdout.readline, f"the server's database is reachable since {back['since']}\n"))
    assert [line for line in lines if not line.startswith("gap in ")] == [
        f"the server's database is unreachable since {outage['since']}\n"
    ]
    # A gap for the short reconnect, and one for the outage.
    assert len(lines) == 3
