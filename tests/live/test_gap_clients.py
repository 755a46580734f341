"""Every gap that a client gets reaches the application, and the client continues from the position that the gap names.

socketio_pg.js under Node and the Python Subscriber. Positions may begin again, in the same epoch too: rows of the log
were deleted by hand, or a backup was restored.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.replay_clients import CLIENTS, Client, numbers


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    """A server with a log, whose application emits what a test posts to it."""
    made = Log(newest_pg, "gap_clients", app="tests.support.rooms_app:app", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture(params=CLIENTS)
def client(log: Log, request: pytest.FixtureRequest) -> Iterator[Client]:
    kind: Callable[[str], Client] = CLIENTS[request.param]
    with contextlib.closing(kind(log.server.url)) as made:
        yield made


def test_positions_may_begin_again(log: Log, client: Client, channel: str) -> None:
    client.subscribe("one", channel)
    log.publish(channel, 1, 6)
    assert numbers(client, "one", 6) == [1, 2, 3, 4, 5, 6]
    epoch = client.position("one")["epoch"]

    def emit(event: str, **body: Any) -> None:
        request = {"event": event, "data": {"channel": channel, **body}, "to": channel}
        assert requests.post(f"{log.server.url}/emit", json=request, timeout=PATIENCE).text == "done"

    number = 10
    for reason, gap_epoch, position in (
        ("epoch_changed", epoch, 0),
        ("epoch_changed", "of-a-restored-log", 0),
        ("trimmed", "of-a-restored-log", 1),
        ("epoch_changed", "of-a-restored-log", 0),
        ("epoch_changed", "of-a-restored-log", 0),
        ("trimmed", "of-a-restored-log", 40),
    ):
        where = {"epoch": gap_epoch, "position": position}
        emit("gap", reason=reason, **where)
        gap, at = client.next("gap", "one")
        assert (gap, at) == ({"channel": channel, "tier": "log", "reason": reason, **where}, where)
        for after in (1, 2, 2):
            number += 1
            emit("event", payload=[number], position=position + after, published_at="2026-01-01T00:00:00Z")
        message, at = client.next("message", "one")
        assert (message["payload"], at) == ([number - 2], {"epoch": gap_epoch, "position": position + 1})
        # The third one is a duplicate.
        assert numbers(client, "one", 1) == [number - 1]


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "disconnected"])
def test_deleted_rows_cause_a_gap(log: Log, client: Client, channel: str, connected: bool) -> None:
    client.subscribe("one", channel)
    log.publish(channel, 1, 6)
    assert numbers(client, "one", 6) == [1, 2, 3, 4, 5, 6]
    if not connected:
        log.server.kill()
    log.sql("TRUNCATE socketio_pg.log")
    if not connected:
        log.server.start()
    log.publish(channel, 7, 7)
    while client.next("gap", "one")[0]["tier"] != "log":
        pass
    log.publish(channel, 8, 10)
    found = numbers(client, "one", 1)
    while found[-1] != 10:
        found += numbers(client, "one", 1)
    assert found in ([7, 8, 9, 10], [8, 9, 10])
