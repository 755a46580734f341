"""Filters with socketio_pg.js and the Python Subscriber: sent again at each reconnect, one per channel."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.postgres import Cluster
from tests.support.replay_clients import CLIENTS, Client, ProxiedLog, Refused, numbers


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[ProxiedLog]:
    made = ProxiedLog(newest_pg, "filter_clients")
    made.install()
    yield made
    made.close()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, log: ProxiedLog) -> Iterator[Client]:
    kind: Callable[[str], Client] = CLIENTS[request.param]
    with contextlib.closing(kind(log.address)) as made:
        yield made
    log.proxy.restore()


def test_filter_applies_to_live_and_replayed_messages(log: ProxiedLog, client: Client, channel: str) -> None:
    client.subscribe("one", channel, filter={"0": {"gt": 2}})
    log.publish(channel, 1, 4)
    assert numbers(client, "one", 2) == [3, 4]
    log.proxy.cut()
    client.wait_disconnected()
    log.publish(channel, 1, 5)
    log.proxy.restore()
    assert numbers(client, "one", 3) == [3, 4, 5]
    log.publish(channel, 2, 3)
    assert numbers(client, "one", 1) == [3]


def test_handlers_of_one_channel_share_one_filter(log: ProxiedLog, client: Client, channel: str) -> None:
    client.subscribe("one", channel, filter={"0": 2})
    client.subscribe("same", channel, filter={"0": 2})
    for name, filter in (("other", {"0": 3}), ("none", None)):
        with pytest.raises(Refused, match=r"another handler of|invalid_request"):
            client.subscribe(name, channel, filter=filter)
    log.publish(channel, 1, 3)
    assert numbers(client, "one", 1) == numbers(client, "same", 1) == [2]
    client.unsubscribe("one")
    client.unsubscribe("same")
    client.subscribe("another", channel, filter={"0": 3})
    log.publish(channel, 2, 3)
    assert numbers(client, "another", 1) == [3]


def test_invalid_filter_is_refused(client: Client, channel: str) -> None:
    with pytest.raises(Refused, match="invalid_request"):
        client.subscribe("one", channel, filter={"0": {"near": 2}})
