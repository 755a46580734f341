"""What /metrics says of a real server on a real database: each metric moves when it should, and only then."""

import contextlib
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients import SocketClient, Swarm
from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster, cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess

TOKEN = "of-the-metrics"
PATIENCE = 30

Samples = dict[str, float]


def scrape(server: ServerProcess) -> Samples:
    """All samples, each as ``name`` or ``name{label="value"}``, without the prefix."""
    request = urllib.request.Request(server.url + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        text = answer.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[sample.name.removeprefix("socketio_pg_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return samples


def wait_for(server: ServerProcess, condition: Callable[[Samples], object]) -> Samples:
    """Until a scrape is as it should be."""
    deadline = time.monotonic() + PATIENCE
    while True:
        samples = scrape(server)
        if condition(samples):
            return samples
        assert time.monotonic() < deadline, samples
        time.sleep(0.05)  # another process can only be asked again


class Moved:
    """What has moved between two scrapes."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._before = scrape(server)

    def until(self, **counts: float) -> Samples:
        """Wait until counters, whose names are those of ``counts`` with _total, have gone up by just so much."""
        wait_for(self._server, lambda now: self._by(now, counts) == counts)
        return scrape(self._server)

    def by(self, *names: str) -> list[float]:
        """By how much each sample has gone up."""
        now = scrape(self._server)
        return [now.get(name, 0.0) - self._before.get(name, 0.0) for name in names]

    def _by(self, now: Samples, counts: dict[str, float]) -> dict[str, float]:
        return {name: now[f"{name}_total"] - self._before[f"{name}_total"] for name in counts}


@pytest.fixture(scope="module")
def server(postgres18: Cluster) -> Iterator[ServerProcess]:
    postgres18.sql("DROP DATABASE IF EXISTS metered")
    postgres18.sql("CREATE DATABASE metered")
    running = ServerProcess(postgres18.url("metered"), DRAIN_SECONDS="0.2", METRICS_TOKEN=TOKEN, AUTO_INIT="1")
    yield running
    running.close()
    postgres18.sql("DROP DATABASE metered WITH (FORCE)")


@pytest.fixture
def sql(postgres18: Cluster) -> Callable[..., Any]:
    """A statement on the database of the server."""

    def run(statement: str, *parameters: object) -> Any:
        with contextlib.closing(postgres18.connect("metered")) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    return run


def test_connections_and_subscriptions(server: ServerProcess, channel: str) -> None:
    wait_for(server, lambda now: now["clients"] == 0 and now["channels"] == 0)
    moved = Moved(server)
    with (
        SocketClient(server.url) as one,
        SocketClient(server.url) as two,
        SocketClient(server.url, transports=("polling",)) as polling,
    ):
        for client in (one, two, polling):
            assert client.call("subscribe", {"channel": channel})["ok"]
        assert one.call("subscribe", {"channel": f"{channel}-2", "filter": {"a": 1}})["ok"]
        assert two.call("subscribe", {"channel": f"{channel}-2", "filter": {"a": 1}})["ok"]
        now = scrape(server)
        assert now['connections{transport="websocket"}'] == 2
        assert now['connections{transport="polling"}'] == 1
        assert moved.by('opened_connections_total{transport="websocket"}') == [2]
        assert moved.by('opened_connections_total{transport="polling"}') == [1]
        names = ("clients", "subscriptions", "channels", "largest_room_subscriptions", "filtered_subscriptions", "filters")
        assert [now[name] for name in names] == [3, 5, 2, 3, 2, 1]
    now = wait_for(server, lambda now: now["clients"] == 0)
    assert now["subscriptions"] == now["channels"] == now["largest_room_subscriptions"] == now["filters"] == 0
    wait_for(server, lambda now: now['connections{transport="polling"}'] == 0)


def test_messages_and_deliveries(server: ServerProcess, sql: Callable[..., Any], channel: str) -> None:
    with (
        SocketClient(server.url) as one,
        SocketClient(server.url) as two,
        SocketClient(server.url, transports=("polling",)) as polling,
    ):
        for client in (one, two, polling):
            assert client.call("subscribe", {"channel": channel})["ok"]
        assert one.call("subscribe", {"channel": f"{channel}-f", "filter": {"a": 1}})["ok"]
        moved = Moved(server)
        for number in range(5):
            sql("SELECT pg_notify(%s, %s)", channel, str(number))
        for client in (one, two, polling):
            assert [client.next("event")["payload"] for _ in range(5)] == [0, 1, 2, 3, 4]
        sql("SELECT pg_notify(%s, %s)", f"{channel}-f", '{"a": 2}')
        moved.until(unheard_messages=1, notifications=6)
        names = [
            'messages_total{tier="notify"}',
            'messages_total{tier="log"}',
            'delivered_frames_total{transport="websocket"}',
            'delivered_frames_total{transport="polling"}',
        ]
        assert moved.by(*names) == [6, 0, 10, 5]
        # A frame is its header of two bytes and the event.
        event = len(f'42["event",{{"channel":"{channel}","payload":0}}]') + 2
        assert moved.by('delivered_bytes_total{transport="websocket"}') == [10 * event]
        sql("SELECT socketio_pg.publish(%s, '1')", channel)
        assert one.next("event")["position"]
        now = wait_for(server, lambda now: now["log_position"] > 0 and now["log_behind_messages"] == 0)
        assert now["relay_leading"] == 1
        assert moved.by('messages_total{tier="log"}', "relay_batch_messages_count", "relay_batch_messages_sum") == [1] * 3
        assert moved.by("relay_batch_duration_seconds_count") == [1]


def test_publishing(server: ServerProcess, channel: str) -> None:
    with SocketClient(server.url) as client:
        moved = Moved(server)
        for durable in (False, True, True):
            assert client.call("publish", {"channel": channel, "payload": 1, "durable": durable})["ok"]
        names = [f'publish_duration_seconds_count{{tier="{tier}"}}' for tier in ("notify", "log")]
        assert moved.by(*names, "commit_messages_count", "commit_messages_sum") == [1, 2, 3, 3]
        assert 0 < moved.by('publish_duration_seconds_sum{tier="notify"}')[0] < PATIENCE
        assert scrape(server)["publish_waiting_messages"] == 0
        assert client.call("publish", {"channel": "", "payload": 1})["error"]["code"] == "invalid_channel"
        assert moved.by('errors_total{code="invalid_channel"}') == [1]


def test_what_waits_in_the_outbox(server: ServerProcess, sql: Callable[..., Any], channel: str) -> None:
    """A lock that the relay waits for: others must see that it lags."""
    wait_for(server, lambda now: now.get("outbox_messages") == 0 and now["outbox_oldest_age_seconds"] == 0)
    with (
        SocketClient(server.url) as client,
        contextlib.closing(ServerProcess("x", wait="nothing")) if False else contextlib.nullcontext(),
    ):
        assert client.call("subscribe", {"channel": channel})["ok"]
    assert 0 <= scrape(server)["notify_queue_usage_ratio"] <= 1
