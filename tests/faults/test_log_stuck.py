"""A relay that does not work and does not know it: every node, the metrics and the doctor report it."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support.cli import doctor
from tests.support.clients import SocketClient
from tests.support.log import Log, numbers, wait_installed
from tests.support.metrics import TOKEN, scrape, wait_for
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

APP = "tests.support.watchful_app:app"
#: The same message must be seen for 5 s, at looks 0.5 s (in production 2 s) apart. The rest is for a busy machine.
WITHIN = 40.0
STUCK = "messages have been waiting in the outbox for"


@pytest.fixture(scope="module")
def log(breakable: Cluster) -> Iterator[Log]:
    made = Log(breakable, "stuck", app=APP, AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def second(log: Log) -> Iterator[ServerProcess]:
    """A node that does not lead."""
    until(lambda: log.sql("SELECT 1 FROM socketio_pg.nodes WHERE relay"), "a leader")
    made = ServerProcess(log.url, app=APP, DRAIN_SECONDS="0.2", METRICS_TOKEN=TOKEN)
    yield made
    made.close()


def part(server: ServerProcess) -> Any:
    return json.loads(server.get("/readyz")[1])["parts"]["relay"]


@pytest.mark.parametrize("row", ["head", pytest.param("outbox", marks=pytest.mark.nightly)])
def test_each_node_reports_a_stuck_relay(log: Log, second: ServerProcess, channel: str, row: str) -> None:
    """Another session locks the head, or the oldest message."""
    with (
        SocketClient(second.url) as client,
        contextlib.closing(psycopg2.connect(log.url)) as head,
        contextlib.closing(psycopg2.connect(log.url)) as outbox,
    ):
        assert "position" in client.call("subscribe", {"channel": channel})
        head.cursor().execute("SELECT FROM socketio_pg.head FOR UPDATE")
        log.publish(channel, 1, 1)
        if row == "outbox":
            outbox.cursor().execute("SELECT FROM socketio_pg.outbox ORDER BY id LIMIT 1 FOR UPDATE")
            head.rollback()
        began = time.monotonic()
        for server in (second, log.server):
            server.wait_for("/readyz", 503, STUCK, WITHIN)
        assert time.monotonic() - began < WITHIN
        assert part(second).startswith(STUCK)
        assert scrape(second)["outbox_stuck_seconds"] > 5
        assert scrape(second)['ready{part="relay"}'] == 0
        found = doctor(log.url, 1)["relay"]
        assert found["level"] == "error", found
        assert "waiting in the outbox" in found["found"]
        assert "start a server" not in found["remedy"]
        head.rollback()
        outbox.rollback()
        assert numbers(client, 1) == [1]
    for server in (second, log.server):
        server.wait_ready()
    wait_for(second, lambda now: now["outbox_stuck_seconds"] == 0 and now['ready{part="relay"}'] == 1)
    assert "the relay is stuck, or none is running" in second.log


@pytest.mark.nightly
def test_late_commit_is_no_problem(log: Log, second: ServerProcess, channel: str) -> None:
    """A transaction publishes at its beginning and commits later than a message may wait."""
    with contextlib.closing(psycopg2.connect(log.url)) as slow, slow.cursor() as cursor:
        cursor.execute("SELECT socketio_pg.publish(%s, '[1]')", [channel])
        deadline = time.monotonic() + 8.0  # time must pass: this is the subject
        number = 1
        while time.monotonic() < deadline:
            number += 1
            log.publish(channel, number, number)
            assert second.get("/readyz")[0] == 200, second.get("/readyz")
            time.sleep(0.1)
        slow.commit()
    until(lambda: not log.sql("SELECT id FROM socketio_pg.outbox"), "the late message is moved")
    assert second.get("/readyz")[0] == 200
    assert doctor(log.url)["relay"]["level"] == "ok"
