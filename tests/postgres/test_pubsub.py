"""PubSub in this process, on each version of PostgreSQL, with real LISTEN and NOTIFY."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import pytest

from socketio_pg import PayloadTooLargeError, PubSub
from socketio_pg.core import green
from socketio_pg.core.channels import LOG_CHANNEL
from socketio_pg.core.errors import ConfigurationError, InvalidChannelError, InvalidRequestError
from socketio_pg.postgres.listener import NotifyGap
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, in_thread, own_listener


@pytest.fixture
def pubsub(postgres: Cluster) -> Iterator[PubSub]:
    made = PubSub(dsn=postgres.url())
    own_listener(made).unlisten_grace = 0.2
    yield made
    made.disconnect()


def listening(pubsub: PubSub) -> list[str]:
    """Return the channels of the LISTEN connection, as PostgreSQL has confirmed them to the listener's thread."""
    return sorted(own_listener(pubsub)._listening - {LOG_CHANNEL})


def statements(postgres: Cluster, pattern: str) -> int:
    rows = postgres.sql(
        "SELECT query FROM pg_stat_activity WHERE application_name LIKE 'socketio_pg%%' AND query LIKE %s", pattern
    )
    return len(rows)


def test_subscriber_receives_published_payloads(pubsub: PubSub, channel: str) -> None:
    queue: Any = green.Queue()
    pubsub.subscribe(channel, queue)
    pubsub.publish(channel, {"number": 1})
    pubsub.publish(channel)
    assert queue.get(timeout=PATIENCE) == {"channel": channel, "payload": {"number": 1}}
    assert queue.get(timeout=PATIENCE) == {"channel": channel, "payload": None}


def test_connections_show_their_part_and_the_operators_name(postgres: Cluster, channel: str) -> None:
    pubsub = PubSub(f"{postgres.url()}&application_name={channel}")
    try:
        pubsub.subscribe(channel, green.Queue())
        pubsub.publish(channel, 1)
        rows = postgres.sql(
            "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE %s", f"%{channel}"
        )
    finally:
        pubsub.disconnect()
    assert {f"socketio_pg listen: {channel}", f"socketio_pg publish: {channel}"} <= {name for (name,) in rows}


def test_calls_of_another_thread_are_refused(pubsub: PubSub, channel: str) -> None:
    """A call whose answer the server's green threads give would wait for ever: they cannot wake another thread."""
    pubsub.start()
    queue: Any = green.Queue()
    for call in (
        lambda: pubsub.publish(channel, 1),
        lambda: pubsub.publish_together([]),
        lambda: pubsub.subscribe(channel, queue),
    ):
        with pytest.raises(RuntimeError, match=r"in another thread .* use socketio_pg\.client\.Client"):
            in_thread(call)
    pubsub.publish(channel, 2)


def test_each_queue_gets_its_own_copy(pubsub: PubSub, channel: str) -> None:
    one, two = green.Queue(), green.Queue()
    pubsub.subscribe(channel, one)
    pubsub.subscribe(channel, two)
    pubsub.publish(channel, {"list": []})
    first, second = one.get(timeout=PATIENCE), two.get(timeout=PATIENCE)
    first["payload"]["list"].append(1)
    assert second["payload"] == {"list": []}


def test_last_unsubscribe_unlistens_after_the_grace_time(pubsub: PubSub, postgres: Cluster, channel: str) -> None:
    subscriptions = [pubsub.subscribe(channel, green.Queue()) for _ in range(2)]
    assert listening(pubsub) == [channel]
    pubsub.unsubscribe(subscriptions[0])
    green.sleep(0.5)
    assert listening(pubsub) == [channel]
    pubsub.unsubscribe(subscriptions[1])
    assert listening(pubsub) == [channel], "not before the grace time"
    with green.timeout(PATIENCE):
        while listening(pubsub):
            green.sleep(0.02)
    assert statements(postgres, f'UNLISTEN "{channel}"') == 1
    assert pubsub.hub.channels() == set()


def test_resubscribe_within_the_grace_time_needs_no_listen(pubsub: PubSub, channel: str) -> None:
    pubsub.unsubscribe(pubsub.subscribe(channel, green.Queue()))
    queue: Any = green.Queue()
    pubsub.subscribe(channel, queue)
    green.sleep(0.5)
    pubsub.publish(channel, 1)
    assert queue.get(timeout=PATIENCE)["payload"] == 1


def test_equal_messages_are_not_merged(pubsub: PubSub, channel: str) -> None:
    queue: Any = green.Queue()
    pubsub.subscribe(channel, queue)
    # Each twice: within one transaction PostgreSQL would merge equal notifications.
    expected = [number // 2 for number in range(600)]
    threads = [green.spawn(pubsub.publish, channel, number) for number in expected]
    for thread in threads:
        thread.wait()
    assert [queue.get(timeout=PATIENCE)["payload"] for _ in expected] == expected


def test_waiting_messages_share_a_transaction(pubsub: PubSub, postgres: Cluster, channel: str) -> None:
    # Each commit takes the next transaction ID.
    connection = postgres.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")
            threads = [green.spawn(pubsub.publish, channel, number) for number in range(500)]
            for thread in threads:
                thread.wait()
            cursor.execute("SELECT pg_current_xact_id()::text::bigint - %s::text::bigint", (only_value(cursor),))
            # Servers that other tests use may have taken some.
            assert only_value(cursor) <= 50
    finally:
        connection.close()


def only_value(cursor: Any) -> Any:
    (row,) = cursor.fetchall()
    return row[0]


def test_unsubscribed_queue_gets_nothing(pubsub: PubSub, channel: str) -> None:
    gone, stays = green.Queue(), green.Queue()
    subscription = pubsub.subscribe(channel, gone)
    pubsub.subscribe(channel, stays)
    pubsub.unsubscribe(subscription)
    pubsub.unsubscribe(subscription)
    pubsub.publish(channel, 1)
    stays.get(timeout=PATIENCE)
    assert gone.empty()


def test_failing_queue_does_not_affect_others(pubsub: PubSub, channel: str) -> None:
    class Broken:
        def put(self, item: dict[str, Any]) -> None:
            raise RuntimeError("broken")

    queue: Any = green.Queue()
    pubsub.subscribe(channel, Broken())
    pubsub.subscribe(channel, queue)
    pubsub.publish(channel, 1)
    pubsub.publish(channel, 2)
    assert [queue.get(timeout=PATIENCE)["payload"] for _ in range(2)] == [1, 2]


def test_subscribe_after_disconnect_listens_again(pubsub: PubSub, channel: str) -> None:
    before, after = green.Queue(), green.Queue()
    pubsub.subscribe(channel, before)
    pubsub.disconnect()
    pubsub.subscribe(channel, after)
    pubsub.publish(channel, 1)
    assert after.get(timeout=PATIENCE)["payload"] == 1
    assert before.get(timeout=PATIENCE)["payload"] == 1


def test_gap_begins_before_the_unread_notifications(pubsub: PubSub, postgres: Cluster, channel: str) -> None:
    gaps: Any = green.Queue()
    received: list[str] = []

    class Slow:
        def receive_messages(self, messages: Any) -> None:
            received.extend(message.payload_json for message in messages)
            green.sleep(0.1)

        def charge(self, costs: Any) -> None: ...

        def receive_gap(self, gap: NotifyGap) -> None:
            gaps.put(gap)

        def receive_log_gap(self, reason: str) -> None: ...

        def receive_trims(self, trims: Mapping[str, int]) -> None: ...

    pubsub.add_receiver(Slow())
    pubsub.subscribe(channel, green.Queue())
    began = datetime.now(timezone.utc)
    payload = "x" * 2000
    postgres.sql("SELECT pg_notify(%s, %s || n) FROM generate_series(1, 4000) AS n", channel, payload)
    green.sleep(2)
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'socketio_pg%'")
    gap = gaps.get(timeout=PATIENCE)
    assert len(received) < 4000, "the backend should have been killed in the middle"
    assert gap.since <= began


def test_invalid_arguments_are_refused(pubsub: PubSub) -> None:
    with pytest.raises(InvalidChannelError):
        pubsub.subscribe("", green.Queue())
    with pytest.raises(InvalidChannelError):
        pubsub.publish("x" * 64, 1)
    with pytest.raises(PayloadTooLargeError):
        pubsub.publish("a", "x" * 8000)
    with pytest.raises(InvalidRequestError):
        pubsub.publish("a", object())


def test_from_app_takes_the_address_of_sqlalchemy(postgres: Cluster, channel: str) -> None:
    from flask import Flask

    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = postgres.url().replace("postgresql://", "postgresql+psycopg2://")
    pubsub = PubSub.from_app(app)
    try:
        queue: Any = green.Queue()
        pubsub.subscribe(channel, queue)
        postgres.notify(channel, "1")  # in the application's database, not in another one
        assert queue.get(timeout=PATIENCE) == {"channel": channel, "payload": 1}
    finally:
        pubsub.disconnect()


def test_missing_address_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match=r"DATABASE_URL.*local\.cfg"):
        PubSub()


def test_notifications_arrive_in_commit_order(pubsub: PubSub, postgres: Cluster, channel: str) -> None:
    queue: Any = green.Queue()
    pubsub.subscribe(channel, queue)
    postgres.sql("SELECT pg_notify(%s, n::text) FROM generate_series(1, 10000) AS n", channel)
    assert [queue.get(timeout=PATIENCE)["payload"] for _ in range(10_000)] == list(range(1, 10_001))


@pytest.fixture
def odd_database(postgres: Cluster, request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, str]]:
    """A database with an encoding other than UTF-8."""
    name = f"odd_{request.param.lower()}"
    postgres.sql(f"CREATE DATABASE {name} ENCODING '{request.param}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    yield postgres, name
    postgres.sql(f"DROP DATABASE {name} (FORCE)")


@pytest.mark.parametrize("odd_database", ["SQL_ASCII", "LATIN1"], indirect=True)
def test_other_encodings(odd_database: tuple[Cluster, str]) -> None:
    postgres, name = odd_database
    pubsub = PubSub(dsn=postgres.url(name))
    try:
        queue: Any = green.Queue()
        pubsub.subscribe("naïve", queue)
        pubsub.publish("naïve", "é")
        assert queue.get(timeout=PATIENCE) == {"channel": "naïve", "payload": "é"}
        if "ascii" in name:
            # Such a database accepts bytes that are not text; they do no harm.
            with postgres.connect(name) as raw, raw.cursor() as cursor:
                raw.set_client_encoding("SQL_ASCII")
                cursor.execute(b"NOTIFY \"na\xc3\xafve\", E'\\xff'")
            assert queue.get(timeout=PATIENCE) == {"channel": "naïve", "payload": "\ufffd"}
        else:
            with pytest.raises(InvalidChannelError, match="refuses this name"):
                pubsub.subscribe("日本", green.Queue())
            with pytest.raises(InvalidRequestError, match="does not accept this payload"):
                pubsub.publish("a", "日本")
        pubsub.publish("naïve", "still works")
        assert queue.get(timeout=PATIENCE)["payload"] == "still works"
    finally:
        pubsub.disconnect()
