"""Streams in stock clients: Chromium's EventSource with a ticket, and Node's."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from playwright.sync_api import Browser

from tests.support.patience import PATIENCE, until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.tokens import mint

APP = "tests.support.streams_app:app"


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    return PolicyDatabase(newest_pg, "live_stream_clients")


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    """Tickets are good for a few seconds without their cookie."""
    with contextlib.closing(ServerProcess(database.server_url, app=APP, TICKET_SECONDS="3", **RLS)) as made:
        yield made


PAGE = """
async ([token, channels]) => {
    const answer = await fetch("/api/tickets", {
        method: "POST",
        headers: {Authorization: `Bearer ${token}`, "Content-Type": "application/json"},
        body: JSON.stringify({channels}),
    });
    const {ticket} = await answer.json();
    window.found = [];
    window.source = new EventSource(`/api/channels/${channels[0]}/stream?ticket=${ticket}`);
    window.opened = new Promise(done => source.onopen = source.onerror = () => done(source.readyState === 1));
    source.onmessage = event => found.push(JSON.parse(event.data).payload);
    source.addEventListener("live", () => found.push("live"));
}
"""


def test_an_event_source_of_a_browser_comes_back_long_after_its_ticket(
    chromium: Browser, server: ServerProcess, database: PolicyDatabase, channel: str
) -> None:
    """Its address does not change, and the ticket in it is old: the cookie of the first answer counts."""
    database.join("alice", channel)
    page = chromium.new_context(bypass_csp=True).new_page()
    try:
        page.goto(f"{server.url}/healthz")

        def opens() -> bool:
            page.evaluate(PAGE, [mint(sub="alice", role="authenticated"), [channel]])
            return bool(page.evaluate("opened"))

        until(opens, "a ticket that is not used too late")
        database.sql("SELECT socketio_pg.publish(%s, '1')", channel)
        page.wait_for_function("found.length === 1", timeout=PATIENCE * 1000)
        url = page.evaluate("source.url")
        until(lambda: requests.head(url, timeout=PATIENCE).status_code == 401, "the ticket alone is no longer good")
        server.stop()
        database.sql("SELECT socketio_pg.publish(%s, '2')", channel)
        server.start()
        page.wait_for_function("found.includes('live')", timeout=PATIENCE * 1000)
        database.sql("SELECT socketio_pg.publish(%s, '3')", channel)
        page.wait_for_function("found.includes(3)", timeout=PATIENCE * 1000)
        assert [one for one in page.evaluate("found") if one != "live"] == [1, 2, 3]
    finally:
        page.context.close()


NODE = """
const source = new EventSource(process.argv[2]);
source.onmessage = event => console.log(event.data);
source.onopen = () => console.log('"open"');
setInterval(() => {}, 1000);  // the timer of an EventSource does not keep the process
"""


@pytest.mark.green
def test_an_event_source_of_node_continues_after_a_worker_was_killed(
    newest_pg: Cluster, channel: str, tmp_path: Path
) -> None:
    program = tmp_path / "source.mjs"
    program.write_text(NODE)
    with contextlib.closing(ServerProcess(newest_pg.url(), "-w", "1", DRAIN_SECONDS="0.2")) as server:
        command = ["node", "--experimental-eventsource", "--no-warnings", str(program)]
        url = f"{server.url}/api/channels/{quote(channel)}/stream"
        with subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True) as node:
            assert node.stdout is not None
            try:
                for payload in (1, 2):
                    assert json.loads(node.stdout.readline()) == "open"
                    newest_pg.notify(channel, str(payload))
                    assert json.loads(node.stdout.readline())["payload"] == payload
                    os.kill(server.worker_pid(), signal.SIGKILL)
            finally:
                node.terminate()
