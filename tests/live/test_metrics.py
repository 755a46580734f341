"""The metrics of a real server on a real database: each one changes when it should, by the right amount."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support import small_buffers
from tests.support.clients import SocketClient
from tests.support.log import Log, numbers, since, wait_installed
from tests.support.metrics import TOKEN, Moved, scrape, scrape_text, wait_for
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import Swarm


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "metered", AUTO_INIT="1", METRICS_TOKEN=TOKEN, SEND_BUFFER_BYTES="10000")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def server(log: Log) -> ServerProcess:
    """The server, once the clients and messages of the previous test are gone, and once it has read the outbox.

    It does that every 2 s: if the last time was before the log's installation, the outbox has no gauges yet.
    """
    until(lambda: log.sql("SELECT count(*) FROM socketio_pg.outbox") == [(0,)], "the relay has moved all messages")
    [(head,)] = log.sql("SELECT coalesce(max(position), 0) FROM socketio_pg.log")
    wait_for(
        log.server,
        lambda now: (
            now["clients"] == sum(connections(now)) == 0
            and "outbox_stuck_seconds" in now
            # The relay counts a batch after it has committed it.
            and now["relay_batch_messages_sum"] >= now["log_position"] == head
        ),
    )
    return log.server


@pytest.fixture(scope="module")
def slow_log(newest_pg: Cluster) -> Iterator[Log]:
    """A server whose clients become slow consumers after a few kilobytes."""
    made = Log(
        newest_pg, "metered_slow", *small_buffers.OPTIONS, METRICS_TOKEN=TOKEN, SEND_BUFFER_BYTES="10000", **PATIENT
    )
    yield made
    made.server.close()


def connections(now: dict[str, float]) -> list[float]:
    return [now[f'connections{{transport="{name}"}}'] for name in ("websocket", "polling")]


def subscribe(channel: str, *clients: SocketClient, **options: object) -> None:
    for client in clients:
        assert client.call("subscribe", {"channel": channel, **options})["ok"]


def terminate_backends(log: Log) -> None:
    log.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'socketio_pg%' AND datname = 'metered'"
    )


@contextlib.contextmanager
def three_clients(server: ServerProcess) -> Iterator[tuple[SocketClient, SocketClient, SocketClient]]:
    """Two clients with a WebSocket, and one with long-polling."""
    with (
        SocketClient(server.url) as one,
        SocketClient(server.url) as two,
        SocketClient(server.url, transports=("polling",)) as polling,
    ):
        yield one, two, polling


def test_connections_and_subscriptions_are_counted(server: ServerProcess, channel: str) -> None:
    moved = Moved(server)
    with three_clients(server) as (one, two, polling):
        subscribe(channel, one, two, polling)
        subscribe(f"{channel}-2", one, two, filter={"a": 1})
        now = scrape(server)
        assert connections(now) == [2, 1]
        opened = [f'opened_connections_total{{transport="{name}"}}' for name in ("websocket", "polling")]
        assert moved.by(*opened) == [2, 1]
        names = ("clients", "subscriptions", "channels", "largest_room_subscriptions")
        assert [now[name] for name in names] == [3, 5, 2, 3]
        assert [now["filtered_subscriptions"], now["filters"]] == [2, 1]
        one.call("unsubscribe", {"channel": f"{channel}-2"})
        now = scrape(server)
        assert [now["subscriptions"], now["filtered_subscriptions"], now["filters"]] == [4, 1, 1]
    now = wait_for(server, lambda now: now["clients"] == 0 and sum(connections(now)) == 0)
    assert [now[name] for name in (*names, "filtered_subscriptions", "filters")] == [0] * 6


def test_messages_and_deliveries_are_counted(log: Log, server: ServerProcess, channel: str) -> None:
    with three_clients(server) as clients:
        subscribe(channel, *clients)
        subscribe(f"{channel}-f", clients[0], filter={"a": 1})
        moved = Moved(server)
        for number in range(5):
            log.sql("SELECT pg_notify(%s, %s)", channel, str(number))
        for client in clients:
            assert [client.next("event")["payload"] for _ in range(5)] == [0, 1, 2, 3, 4]
        log.sql("SELECT pg_notify(%s, %s)", f"{channel}-f", '{"a": 2}')
        # A frame consists of a two-byte header and the event.
        event = len(f'42["event",{{"channel":"{channel}","payload":0}}]') + 2
        moved.wait(
            {
                "notifications_total": 6,
                'messages_total{tier="notify"}': 6,
                'messages_total{tier="log"}': 0,
                "unheard_messages_total": 1,
                'delivered_frames_total{transport="websocket"}': 10,
                'delivered_frames_total{transport="polling"}': 5,
                'delivered_bytes_total{transport="websocket"}': 10 * event,
                'delivered_bytes_total{transport="polling"}': 5 * event,
            }
        )


def test_deliveries_to_several_rooms_are_counted(log: Log, server: ServerProcess, channel: str) -> None:
    """The fan-out handles a transaction for several of a client's channels separately."""
    with three_clients(server) as clients:
        for name in (f"{channel}-1", f"{channel}-2"):
            subscribe(name, *clients)
        moved = Moved(server)
        log.sql(
            "SELECT pg_notify(%s, '1'), pg_notify(%s, '2'), pg_notify(%s, '3')", *[f"{channel}-{n}" for n in (1, 2, 1)]
        )
        for client in clients:
            assert [client.next("event")["payload"] for _ in range(3)] == [1, 2, 3]
        event = len(f'42["event",{{"channel":"{channel}-1","payload":0}}]') + 2
        moved.wait(
            {
                'delivered_frames_total{transport="websocket"}': 6,
                'delivered_frames_total{transport="polling"}': 3,
                'delivered_bytes_total{transport="websocket"}': 6 * event,
            }
        )


def test_publishing_is_measured(server: ServerProcess, channel: str) -> None:
    with SocketClient(server.url) as client:
        moved = Moved(server)
        for durable in (False, True, True):
            assert client.call("publish", {"channel": channel, "payload": 1, "durable": durable})["ok"]
        names = [f'publish_duration_seconds_count{{tier="{tier}"}}' for tier in ("notify", "log")]
        notify, log, messages = moved.by(*names, "commit_messages_sum")
        # The server itself sends a NOTIFY to other processes now and then.
        assert (notify >= 1, log, messages) == (True, 2, notify + log)
        [seconds] = moved.by('publish_duration_seconds_sum{tier="notify"}')
        assert 0 < seconds < PATIENCE
        assert scrape(server)["publish_waiting_messages"] == 0
        assert client.call("publish", {"channel": "", "payload": 1})["error"]["code"] == "invalid_channel"
        assert moved.by('errors_total{code="invalid_channel"}', names[1]) == [1, 2]


def test_relay_is_measured(log: Log, server: ServerProcess, channel: str) -> None:
    moved = Moved(server)
    with SocketClient(server.url) as client:
        subscribe(channel, client)
        log.publish(channel, 1, 7)
        assert numbers(client, 7) == [1, 2, 3, 4, 5, 6, 7]
        [(head,)] = log.sql("SELECT max(position) FROM socketio_pg.log")
        now = wait_for(server, lambda now: now["log_position"] == head)
        assert now["log_behind_messages"] == 0
        assert now["relay_leading"] == 1
        moved.wait(
            {
                "relay_batch_messages_count": 1,
                "relay_batch_messages_sum": 7,
                "relay_batch_duration_seconds_count": 1,
                'messages_total{tier="log"}': 7,
            }
        )


def test_outbox_backlog_is_measured(log: Log, server: ServerProcess, channel: str) -> None:
    """The relay is blocked for a while, so that a backlog builds up."""
    wait_for(server, lambda now: now.get("outbox_messages") == now.get("outbox_oldest_age_seconds", -1) == 0)
    with contextlib.closing(psycopg2.connect(log.url)) as blocking, blocking.cursor() as cursor:
        cursor.execute("SELECT FROM socketio_pg.head FOR UPDATE")
        log.publish(channel, 1, 3)
        waiting = wait_for(server, lambda now: now.get("outbox_messages") == 3)
        assert 0 < waiting["outbox_oldest_age_seconds"] < 2 * PATIENCE
        older = wait_for(
            server, lambda now: now.get("outbox_oldest_age_seconds", 0) > waiting["outbox_oldest_age_seconds"]
        )
        assert older["outbox_messages"] == 3
    now = wait_for(server, lambda now: now.get("outbox_messages") == 0)
    assert now["outbox_oldest_age_seconds"] == 0


def test_notification_queue_usage_is_measured(log: Log, server: ServerProcess) -> None:
    """A listener idle in a transaction keeps the notification queue of the whole cluster from shrinking."""
    with contextlib.closing(psycopg2.connect(log.url)) as holding, holding.cursor() as cursor:
        cursor.execute("LISTEN holding")
        holding.commit()
        cursor.execute("BEGIN; SELECT 1")
        before = scrape(server)["notify_queue_usage_ratio"]
        assert 0 <= before < 1
        log.sql("SELECT pg_notify('nobody', repeat('x', 7000) || n) FROM generate_series(1, 500) AS n")
        wait_for(server, lambda now: now["notify_queue_usage_ratio"] > before)
    wait_for(server, lambda now: now["notify_queue_usage_ratio"] <= before)


def test_replays_are_counted(log: Log, server: ServerProcess, channel: str) -> None:
    with SocketClient(server.url) as client:
        start = client.call("subscribe", {"channel": channel})
        log.publish(channel, 1, 5)
        assert numbers(client, 5) == [1, 2, 3, 4, 5]
    moved = Moved(server)
    with SocketClient(server.url) as client:
        subscribe(channel, client, since=since(start))
        assert numbers(client, 5) == [1, 2, 3, 4, 5]
    with SocketClient(server.url) as client:
        subscribe(channel, client, history=2)
        assert numbers(client, 2) == [4, 5]
        answer = client.call("subscribe", {"channel": channel, "since": {"epoch": "another", "position": 1}})
        assert answer["recovered"] is False
    moved.wait(
        {
            'replays_total{cause="since"}': 1,
            'replays_total{cause="history"}': 1,
            'replays_total{cause="lagging"}': 0,
            "replayed_messages_total": 7,
            'unrecovered_total{reason="epoch_changed"}': 1,
        }
    )
    wait_for(server, lambda now: now["held_subscriptions"] == 0)


def test_slow_consumers_are_counted(slow_log: Log, channel: str) -> None:
    """Data for a slow client is buffered first; then the server disconnects it."""
    server = slow_log.server
    with contextlib.closing(Swarm("127.0.0.1", server.port)) as swarm:
        [slow] = swarm.connect(1, receive_buffer=2048)
        slow.emit("subscribe", {"channel": channel}, 1)
        swarm.run_until(lambda: bool(slow.events("subscribed")))
        moved = Moved(server)
        payload, seen, deadline = "x" * 1_000, False, time.monotonic() + 2 * PATIENCE
        with SocketClient(server.url) as witness:
            subscribe(channel, witness)
            while moved.by('cut_off_total{reason="slow_consumer"}') == [0]:
                slow_log.sql("SELECT pg_notify(%s, %s || n) FROM generate_series(1, 5) AS n", channel, payload)
                for _ in range(5):  # a server that is behind would get too many at once
                    witness.next("event")
                now = scrape(server)
                seen = seen or (now["slow_connections"] == 1 and 0 < now["send_buffer_bytes"] < 20_000)
                assert time.monotonic() < deadline
        assert seen
        wait_for(server, lambda _: moved.by('dropped_bytes_total{reason="slow_consumer"}') != [0])
        [cut, lost] = moved.by(
            'dropped_bytes_total{reason="slow_consumer"}', 'dropped_bytes_total{reason="connection_lost"}'
        )
        assert 10_000 < cut < 30_000
        assert lost == 0
        wait_for(server, lambda now: now["slow_connections"] == now["send_buffer_bytes"] == 0)
        assert moved.by('cut_off_total{reason="slow_consumer"}') == [1]


def test_dropped_bytes_of_lost_connections_are_counted(slow_log: Log, channel: str) -> None:
    server = slow_log.server
    with contextlib.closing(Swarm("127.0.0.1", server.port)) as swarm:
        [slow] = swarm.connect(1, receive_buffer=2048)
        slow.emit("subscribe", {"channel": channel}, 1)
        swarm.run_until(lambda: bool(slow.events("subscribed")))
        moved = Moved(server)
        # Sends less at a time than the send buffer holds, so that the server does not disconnect the client.
        with SocketClient(server.url) as witness:
            subscribe(channel, witness)
            while not scrape(server)["send_buffer_bytes"]:
                slow_log.sql("SELECT pg_notify(%s, %s || clock_timestamp())", channel, "x" * 5_000)
                witness.next("event")
        swarm.leave(slow, reset=True)
        wait_for(server, lambda now: sum(connections(now)) == 0)
        wait_for(server, lambda _: moved.by('dropped_bytes_total{reason="connection_lost"}') != [0])
        assert moved.by('dropped_bytes_total{reason="slow_consumer"}', 'cut_off_total{reason="slow_consumer"}') == [
            0,
            0,
        ]


def test_database_reconnects_are_counted(log: Log, server: ServerProcess, channel: str) -> None:
    with SocketClient(server.url) as client:
        subscribe(channel, client)
        # Opens each of the database connections.
        assert client.call("publish", {"channel": channel, "payload": 1})["ok"]
        subscribe(f"{channel}-2", client, history=1)
        moved = Moved(server)
        terminate_backends(log)
        assert client.next("gap")["reason"] == "database_connection_lost"
        assert client.call("publish", {"channel": channel, "payload": 2})["ok"]
        names = [f'database_reconnects_total{{connection="{name}"}}' for name in ("listener", "relay", "publisher")]
        moved.wait(dict.fromkeys(names, 1.0))
        wait_for(server, lambda now: now['ready{part="relay"}'] == now['ready{part="listener"}'] == 1)
        # One gap for each subscribed channel.
        moved.wait({'gaps_total{reason="database_connection_lost"}': 2})


def test_hub_delay_is_measured(server: ServerProcess) -> None:
    before = scrape(server)
    now = wait_for(server, lambda now: now["hub_delay_seconds_count"] > before["hub_delay_seconds_count"] + 2)
    assert now["hub_delay_seconds_sum"] >= before["hub_delay_seconds_sum"] >= 0


def test_process_and_version_are_reported(server: ServerProcess) -> None:
    now = scrape(server)
    assert now["process_resident_memory_bytes"] > 10_000_000
    [info] = [name for name in now if name.startswith("build_info")]
    assert now[info] == 1


def test_number_of_samples_does_not_depend_on_channels(log: Log, server: ServerProcess, channel: str) -> None:
    # On a busy machine the metrics of the database are missing for a moment.
    before = wait_for(server, lambda now: "notify_queue_usage_ratio" in now and "outbox_messages" in now)
    with SocketClient(server.url) as client:
        for number in range(500):
            client.io.emit("subscribe", {"channel": f"{channel}-{number}", "filter": {"number": number}})
        wait_for(server, lambda now: now["channels"] == 500)
        names = [f"{channel}-{number}" for number in range(500)]
        log.sql("SELECT pg_notify(name, '{\"number\": 7}') FROM unnest(%s) AS name", names)
        log.sql("SELECT socketio_pg.publish(name, '{\"number\": 7}') FROM unnest(%s) AS name", names)
        assert client.next("event")["channel"] == f"{channel}-7"
        text = scrape_text(server)
        assert channel not in text
        until(lambda: len(scrape(server)) == len(before), "as many samples as before")
        assert len(text) < 50_000


def test_scrapes_rarely_query_postgresql(log: Log, server: ServerProcess) -> None:
    """A node queries every 2 s, whatever the number of scrapes. Counts queries by the start time of the last one."""

    def last_queries() -> set[Any]:
        scrape(server)
        return set(
            log.sql(
                "SELECT pid, query_start FROM pg_stat_activity WHERE datname = 'metered'"
                " AND query LIKE '%outbox_id_seq%' AND pid <> pg_backend_pid()"
            )
        )

    until(last_queries, "the first query")  # earlier tests may have closed the connection
    began, starts = time.monotonic(), set()
    for _ in range(50):
        starts |= last_queries()
    assert 1 <= len(starts) <= 2 + (time.monotonic() - began) / 1.5


def test_readyz_reports_each_part(log: Log, server: ServerProcess) -> None:
    parts = ("keys", "listener", "log", "permissions", "process", "publisher", "relay")
    server.wait_ready()  # an earlier test has ended its connections
    assert json.loads(server.get("/readyz")[1]) == {"status": "ready", "parts": dict.fromkeys(parts, "ok")}
    assert [scrape(server)[f'ready{{part="{part}"}}'] for part in parts] == [1] * len(parts)
    # The relay prepares its statement when it connects; reading the log needs no outbox.
    log.sql("ALTER TABLE socketio_pg.outbox RENAME TO elsewhere")
    try:
        terminate_backends(log)
        server.wait_for("/readyz", 503, '"relay":"the log of this version is not installed')
        server.wait_for("/readyz", 503, '"listener":"ok"')
        wait_for(server, lambda now: now['ready{part="relay"}'] == 0 and now['ready{part="log"}'] == 1)
        # The unreadable outbox is not reported as empty.
        wait_for(server, lambda now: "outbox_messages" not in now and "notify_queue_usage_ratio" in now)
    finally:
        log.sql("ALTER TABLE socketio_pg.elsewhere RENAME TO outbox")
        log.sql("NOTIFY socketio_pg, 'installed'")
    server.wait_ready()
    wait_for(server, lambda now: now.get("outbox_messages") == 0)
