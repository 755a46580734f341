"""cluster/bus over PostgreSQL: several nodes in this process, an outage, and texts of others."""

import contextlib
from collections.abc import Iterator

import pytest

from socketio_pg.cluster.carriers import NotifyCarrier
from socketio_pg.core import metrics
from socketio_pg.core.channels import NODES_CHANNEL
from socketio_pg.pubsub.pubsub import PubSub
from tests.support.bus import Quick, know, wait
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy

KEY = "a cluster key that is long enough for this"


class OnPostgres(Quick):
    """A bus whose beats may be late: the machine is busy."""

    interval, settle_seconds = 1.0, 1.0

    def __init__(self, url: str, key: str = KEY) -> None:
        self.pubsub = PubSub(f"{url}{'&' if '?' in url else '?'}application_name=bus", cluster_key=(key,))
        self.pubsub.start()
        super().__init__(NotifyCarrier(self.pubsub))

    def die(self) -> None:
        super().die()
        self.pubsub.disconnect()


@pytest.fixture
def proxy(newest_pg: Cluster) -> Iterator[Proxy]:
    made = Proxy(newest_pg.socket_path)
    yield made
    made.close()


def test_nodes_on_one_database_survive_its_outages(newest_pg: Cluster, proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        buses = one, two, behind = [OnPostgres(url) for url in (newest_pg.url(), newest_pg.url(), proxy.url)]
        for bus in buses:
            stack.callback(bus.die)
        know(*buses)
        large = "é" * 200_000
        for body in (1, large, 3):
            one.tell("word", body)
        wait(lambda: len(two.received) == len(behind.received) == 3, "large messages arrive too")
        assert [body for _, body in two.received] == [1, large, 3]
        assert one.ask("double", large, 180.0) == {bus.own.id: large * 2 for bus in (two, behind)}
        # All connections end, and soon come back.
        gaps = [bus.gaps for bus in buses]
        newest_pg.terminate_backends("bus")
        wait(lambda: all(bus.gaps > before for bus, before in zip(buses, gaps, strict=True)), "all know")
        know(*buses)
        assert [bus.departed for bus in buses] == [[], [], []]
        # One node is cut off, and does not notice at first.
        proxy.black_hole()
        wait(lambda: behind.own in one.departed, "the others do")
        proxy.restore()
        know(*buses)
        assert not behind.departed
        two.tell("word", "after")
        wait(lambda: behind.received[-1:] == [(two.own.id, "after")], "messages arrive again")
        behind.close()
        know(one, two)


def test_texts_that_other_roles_send_are_refused(newest_pg: Cluster) -> None:
    def refused(reason: str) -> float:
        return metrics.REGISTRY.get_sample_value("socketio_pg_refused_messages_total", {"reason": reason}) or 0.0

    with contextlib.ExitStack() as stack:
        one, two, stranger = (OnPostgres(newest_pg.url(), key) for key in (KEY, KEY, f"another {KEY}"))
        for bus in (one, two, stranger):
            stack.callback(bus.die)
        know(one, two)
        before = {reason: refused(reason) for reason in ("unsealed", "unknown_key", "replayed")}
        newest_pg.notify(NODES_CHANNEL, '[[["a","b","c",null,0],1,1,false,false],[["message",1,"word",666]]]')
        stranger.tell("word", 666)
        genuine = one.pubsub.sealing.seal(NODES_CHANNEL, "not a part")
        newest_pg.notify(NODES_CHANNEL, genuine)
        newest_pg.notify(NODES_CHANNEL, genuine)
        wait(lambda: all(refused(reason) > before[reason] for reason in before), "all are refused")
        one.tell("word", 1)
        wait(lambda: two.received == [(one.own.id, 1)], "only the genuine one arrives")
        assert not stranger.processes
