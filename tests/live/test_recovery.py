"""Connection state recovery with the stock JavaScript client: docs/recovery.md."""

from collections.abc import Iterator

import pytest

from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def first(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "recovery", AUTO_INIT="1", DURABLE_CHANNELS="*")
    try:
        wait_installed(made)
        yield made
    finally:
        made.server.close()


def test_a_short_cut_is_recovered(first: Log, channel: str) -> None:
    client = RecoveringClient(first.server.url)
    try:
        assert client.hello["recovery"] == {"recovered": False}
        client.subscribe(channel)
        first.publish(channel, 1, 3)
        assert client.numbers(3) == [1, 2, 3]
        client.send({"desert": True})
        first.publish(channel, 4, 6)
        hello = client.connected()
        assert hello["recovered"] is True
        assert hello["sid"] == client.hello["sid"]
        assert hello["pid"] == client.hello["pid"]
        assert client.numbers(3) == [4, 5, 6]
        first.publish(channel, 7, 7)
        assert client.numbers(1) == [7]
    finally:
        client.close()
