"""What socketio_pg.js does beyond subscriptions: rows with `load`, publishing once, live tables. In Node.

Connections go through a proxy, which cuts them and swallows answers.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.replay_clients import JavaScript, ProxiedLog
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[ProxiedLog]:
    made = ProxiedLog(newest_pg, "javascript_helper")
    made.install()
    yield made
    made.close()


@pytest.fixture
def client(log: ProxiedLog) -> Iterator[JavaScript]:
    with contextlib.closing(JavaScript(log.address)) as made:
        yield made
    log.proxy.restore()


def texts(client: JavaScript, name: str, last: object) -> list[Any]:
    """Return what a subscription gets, up to the message with the payload ``last``: rows and payloads, in order."""
    found: list[Any] = []
    while not found or found[-1] != last:
        found.append(client.next("message", name)[0]["payload"])
    return found


# -- publish -----------------------------------------------------------------------------------------------------------
def test_a_message_is_published_once_however_often_the_connection_is_lost(
    log: ProxiedLog, client: JavaScript, channel: str
) -> None:
    client.subscribe("one", channel)
    client.call("publish", number=1, channel=channel, payload=1)
    first = client.wait("published", number=1)["answer"]
    position = client.next("message", "one")[1]
    assert first == {"channel": channel, **position}
    assert "duplicate" not in first

    # The server publishes, but its answer is lost.
    log.proxy.swallow_answers()
    client.call("publish", number=2, channel=channel, payload=2)
    until(lambda: log.sql("SELECT count(*) FROM socketio_pg.log WHERE channel = %s", channel) == [(2,)], "published")
    log.proxy.refuse()
    for number in (3, 4, 5):  # not connected
        client.call("publish", number=number, channel=channel, payload=number)
    log.proxy.restore()
    answers = [client.wait("published", number=number)["answer"] for number in (2, 3, 4, 5)]
    assert [answer.get("duplicate", False) for answer in answers] == [True, False, False, False]
    assert texts(client, "one", 5) == [2, 3, 4, 5]
    assert answers[-1] == {"channel": channel, **client.position("one")}

    # The application's own id, in another transaction.
    log.sql("SELECT socketio_pg.publish(%s, '6', id => 'six')", channel)
    client.call("publish", number=6, channel=channel, payload=6, options={"id": "six", "wait": False})
    assert client.wait("published", number=6)["answer"]["duplicate"] is True
    client.call("publish", number=7, channel=channel, payload=7, options={"durable": False})
    assert client.wait("published", number=7)["answer"] == {"channel": channel}
    assert sorted(texts(client, "one", 7)) == [6, 7]


def test_failures_to_publish_say_whether_the_message_may_have_been_published(
    log: ProxiedLog, client: JavaScript, channel: str
) -> None:
    client.call("publish", number=1, channel="", payload=1)
    assert client.wait("published", number=1)["error"] == "invalid_channel"
    log.proxy.swallow_answers()
    client.call("publish", number=2, channel=channel, payload=2, options={"timeout": 300})
    refused = client.wait("published", number=2)
    assert (refused["error"], refused["uncertain"]) == ("no_answer", True)
    log.proxy.refuse()
    client.wait_disconnected()
    client.call("publish", number=3, channel=channel, payload=3, options={"timeout": 100})
    refused = client.wait("published", number=3)
    assert (refused["error"], refused["uncertain"]) == ("no_answer", False)
    # NOTIFY has no id: it is not repeated.
    log.proxy.restore()
    client.subscribe("one", channel)
    log.proxy.swallow_answers()
    client.call("publish", number=4, channel=channel, payload=4, options={"durable": False})
    log.proxy.refuse()
    refused = client.wait("published", number=4)
    assert (refused["error"], refused["uncertain"]) == ("no_answer", True)
    assert client.call("timers") == 0


def test_a_database_without_a_log_needs_no_ids(live_server: ServerProcess, channel: str) -> None:
    with contextlib.closing(JavaScript(live_server.url)) as client:
        client.subscribe("one", channel)
        client.call("live", name="one")
        client.call("publish", number=1, channel=channel, payload=1)
        assert client.wait("published", number=1)["answer"] == {"channel": channel}
        assert texts(client, "one", 1) == [1]
        for number, options in enumerate(({"id": "one"}, {"durable": True}), start=2):
            client.call("publish", number=number, channel=channel, payload=1, options=options)
            assert client.wait("published", number=number)["error"] == "log_not_installed"
