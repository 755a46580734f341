"""The log on a real database: publishing, the doorbell, and how the relay numbers, fences and trims."""

import contextlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from socketio_pg.client import Client
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import ClusterKeyError, DatabaseError, InvalidChannelError
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.log.epochs import Cluster, check
from socketio_pg.log.history import _CHANNEL_PAGES
from socketio_pg.log.lease import Lease
from socketio_pg.log.low_water import LowWater
from socketio_pg.log.moves import Moved, move
from socketio_pg.log.positions import Batch, decode_batch
from socketio_pg.log.relay import Relay
from socketio_pg.postgres.database import Database, is_usable
from tests.support.log_database import MAX_PAYLOAD, LogDatabase, move_everything, prepare
from tests.support.patience import until
from tests.support.postgres import in_thread

pytestmark = pytest.mark.majors

# -- publish -----------------------------------------------------------------------------------------------------------


def test_messages_are_numbered_in_the_order_of_publishing(log: LogDatabase) -> None:
    log.publish("a", "1", "2")
    log.publish("b", '{"x": [1.10, "\u00e9"]}')
    assert log.move() == 3
    log.publish("a", "4")
    assert (log.move(), log.move()) == (1, 0)
    assert log.log() == [(1, "a", 1), (2, "a", 2), (3, "b", {"x": [1.10, "\u00e9"]}), (4, "a", 4)]
    assert log.sql("SELECT count(*) FROM socketio_pg.outbox") == [(0,)]


def test_rollback_leaves_no_trace(log: LogDatabase) -> None:
    with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; SELECT socketio_pg.publish('a', '1'); SAVEPOINT s; SELECT socketio_pg.publish('a', '2')")
        cursor.execute("ROLLBACK TO s; SELECT socketio_pg.publish('a', '3'); COMMIT")
        cursor.execute("BEGIN; SELECT socketio_pg.publish('a', '4'); ROLLBACK")
    log.publish("a", "5")
    log.move()
    assert log.log() == [(1, "a", 1), (2, "a", 3), (3, "a", 5)], "positions have no holes; ids may have some"


def test_null_payload_is_json_null(log: LogDatabase) -> None:
    log.sql("SELECT socketio_pg.publish('a', NULL), socketio_pg.publish('a', 'null')")
    log.move()
    assert log.sql("SELECT payload::text FROM socketio_pg.log") == [("null",), ("null",)]
    with pytest.raises(psycopg2.Error) as caught:
        log.sql("SELECT socketio_pg.publish(NULL, '1')")
    assert caught.value.pgcode == "SG001"


def test_payload_size_is_limited(log: LogDatabase) -> None:
    log.publish("a", f'"{"x" * (MAX_PAYLOAD - 2)}"')
    with pytest.raises(psycopg2.Error, match=f"payload has {MAX_PAYLOAD + 1} bytes of UTF-8") as caught:
        log.publish("a", f'"{"x" * (MAX_PAYLOAD - 1)}"')
    assert caught.value.pgcode == "SG002"


LETTERS = "ax*_:\u00e9\u65e5\U0001f600 \t\n\x7f\x85\xa0\u1680\u2003\u2028\u3000\u200b"
EDGES = ["socketio_pg", "socketio_pg_x", "socketio", "x" * 63, "x" * 64, "\u65e5" * 21, "\u65e5" * 22]


@given(st.text(st.sampled_from(LETTERS), max_size=24) | st.sampled_from(EDGES))
@settings(max_examples=2 * settings().max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sql_and_python_accept_the_same_channels(shared_log: LogDatabase, name: str) -> None:
    try:
        validate_channel(name)
        expected = None
    except InvalidChannelError as error:
        expected = error.message
    found = code = None
    try:
        shared_log.publish(name, "1")
    except psycopg2.Error as refused:
        found, code = str(refused).splitlines()[0], refused.pgcode
    assert code == (None if expected is None else "SG001"), (name, found, expected)


@pytest.mark.parametrize("kind", ["psycopg2", "connection", "session"])
def test_client_publishes_through_the_log(log: LogDatabase, kind: str) -> None:
    engine = create_engine(log.url.replace("postgresql://", "postgresql+psycopg2://"))
    if kind == "psycopg2":
        with contextlib.closing(psycopg2.connect(log.url)) as connection:
            Client(connection).notify("a", ["x" * 20_000], durable=True)
            connection.commit()
            Client(connection).publish("a", "lost", durable=True)
            connection.rollback()
    elif kind == "connection":
        with engine.connect() as connected:
            Client(connected).notify("a", ["x" * 20_000], durable=True)
            connected.commit()
            Client(connected).publish("a", "lost", durable=True)
            connected.rollback()
    else:
        with Session(engine) as session:
            Client(session).notify("a", ["x" * 20_000], durable=True)
            session.commit()
            Client(session).publish("a", "lost", durable=True)
            session.rollback()
    engine.dispose()
    log.move()
    assert log.log() == [(1, "a", ["x" * 20_000])]


# -- the relay ---------------------------------------------------------------------------------------------------------


def notifications(connection: Any) -> list[Batch]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")  # reads the notifications that arrive before the result
    batches = [decode_batch(found.payload) for found in connection.notifies]
    connection.notifies.clear()
    assert None not in batches
    return [batch for batch in batches if batch is not None]


def test_notifications_cover_every_position(log: LogDatabase) -> None:
    sizes = [10, 3000, 3800, 3900, 5000, 10, 90_000, 20, 7000, 1] + [50] * 300
    with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LISTEN socketio_pg")
        log.publish("a", *(f'"{"x" * size}"' for size in sizes))
        log.move(200)
        log.move(200)
        batches = notifications(connection)
    assert [(batch.first, batch.last) for batch in batches] == [
        (1 if index == 0 else batches[index - 1].last + 1, batch.last) for index, batch in enumerate(batches)
    ], "the ranges are consecutive"
    assert batches[-1].last == len(sizes)
    inline = {message.position: message for batch in batches for message in batch.messages or ()}
    rows = log.sql("SELECT position, payload::text, (published_at AT TIME ZONE 'UTC')::date::text FROM socketio_pg.log")
    for position, text, day in rows:
        if position in inline:
            assert inline[position].payload_json == text
            assert (inline[position].published_at or "").startswith(day)
    assert len(inline) > 290, "small messages are sent inline"
    assert 7 not in inline


def test_concurrent_relays_are_safe(log: LogDatabase) -> None:
    """They are, even if several believe that they lead in the same term."""
    failures: list[DatabaseError] = []
    done = threading.Event()

    def relay() -> None:
        with contextlib.closing(log.connect()) as connection:
            prepare(connection)
            while True:
                last = done.is_set()
                try:
                    moved = log.move(7, connection)
                except DatabaseError as error:
                    failures.append(error)
                    return
                if last and not moved:
                    return

    def publish(writer: int) -> None:
        with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:
            for number in range(150):
                cursor.execute("SELECT socketio_pg.publish('a', %s::jsonb)", (f"[{writer}, {number}]",))

    relays = [threading.Thread(target=relay) for _ in range(4)]
    writers = [threading.Thread(target=publish, args=(writer,)) for writer in range(4)]
    for thread in relays + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in relays:
        thread.join()
    found = log.log()
    assert [position for position, _, _ in found] == list(range(1, 601))
    for writer in range(4):
        assert [payload[1] for _, _, payload in found if payload[0] == writer] == list(range(150))
    assert failures == [], "the row's lock lets one relay move at a time"


def test_relay_of_an_earlier_term_moves_nothing(log: LogDatabase) -> None:
    """Whether it lost its term before its batch, or after it had looked at the outbox and waited for the row's lock."""
    log.publish("a", "1", "2", "3")
    with contextlib.closing(log.connect()) as old, contextlib.closing(log.connect()) as new:
        prepare(old)
        assert move_everything(old, 1, 0).count == 1
        new.cursor().execute("BEGIN; UPDATE socketio_pg.head SET term = 1")
        results: list[Moved] = []
        late = threading.Thread(target=lambda: results.append(move_everything(old, 1, 0)))
        late.start()
        until(
            lambda: log.sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"), "it waits for the lock"
        )
        new.cursor().execute("COMMIT")
        late.join()
        results.append(move_everything(old, 1, 0))
        assert [(moved.count, moved.term) for moved in results] == [(0, 1), (0, 1)]
        assert move_everything(old, 9, 1).count == 2
    assert log.log() == [(1, "a", 1), (2, "a", 2), (3, "a", 3)]


def test_batch_that_cannot_be_sealed_is_rolled_back(log: LogDatabase) -> None:
    log.publish("a", "1")

    def fail(channel: str, text: str) -> str:
        raise ClusterKeyError("no key")

    with contextlib.closing(log.connect()) as connection:
        prepare(connection)
        past, _ = in_thread(check, connection, 0, Cluster(None, None), None, 30.0)
        with pytest.raises(ClusterKeyError):
            in_thread(move, connection, 0, 10, LowWater(), past, fail, 30.0, True)
        assert is_usable(connection)
        assert log.log() == []
        assert move_everything(connection, 10).count == 1
    assert log.log() == [(1, "a", 1)]


def test_leader_that_keeps_its_lease_stays(log: LogDatabase) -> None:
    one, two = (Lease(str(uuid.uuid4()), name, 30.0) for name in ("one", "two"))

    def become_leader(lease: Lease, connection: Any) -> int | None:
        leader = lease.leader(connection)
        return lease.take_over(connection, leader) if lease.is_vacant(leader) else None

    with contextlib.closing(log.connect()) as first, contextlib.closing(log.connect()) as second:
        assert in_thread(become_leader, one, first) == 1
        assert in_thread(become_leader, two, second) is None
        assert in_thread(one.renew, first, 1) is True
        log.sql("SELECT setval('socketio_pg.lease', last_value - 10100) FROM socketio_pg.lease")
        assert in_thread(become_leader, two, second) == 2, "the lease has expired"
        with pytest.raises(psycopg2.OperationalError):
            first.cursor().execute("SELECT 1")  # terminated, since it counts as stuck
    with contextlib.closing(log.connect()) as third:
        assert in_thread(become_leader, one, third) == 3, "the session of the leader has ended"
        assert in_thread(two.renew, third, 2) is False


@pytest.fixture
def relay(log: LogDatabase) -> Iterator[Relay]:
    rules = Rules(Rule(max_age=3600.0))
    rules.replace({})
    made = Relay(Database(log.url), rules, 5, lambda: (0, 0), lambda channel, text: text)
    made._trimming.size = 3
    yield made
    made.stop()


def test_trimming_by_count(log: LogDatabase, relay: Relay) -> None:
    log.publish("a", *map(str, range(1, 21)))
    log.move()
    with contextlib.closing(log.connect()) as connection:
        for _ in range(7):
            relay._trimming.next = 0.0
            in_thread(relay._trimming.run, connection, 0)
    assert [position for position, _, _ in log.log()] == [16, 17, 18, 19, 20]
    assert log.sql("SELECT trimmed FROM socketio_pg.head") == [(15,)]
    log.publish("a", "21")
    log.move()
    assert log.log()[-1] == (21, "a", 21)


def test_trimming_by_age_keeps_the_newest(log: LogDatabase, relay: Relay) -> None:
    log.publish("a", "1", "2", "3")
    log.move()
    log.sql("UPDATE socketio_pg.log SET logged_at = now() - interval '2 hours'")
    with contextlib.closing(log.connect()) as connection:
        in_thread(relay._trimming.run, connection, 0)
    assert log.log() == [(3, "a", 3)], "the next position follows the newest"
    log.publish("a", "4")
    log.move()
    assert log.log()[-1] == (4, "a", 4)


# -- the doorbell ------------------------------------------------------------------------------------------------------


def test_bell_rings_at_commit_unless_the_relay_is_busy(log: LogDatabase) -> None:
    lease = Lease(str(uuid.uuid4()), "one", 30.0)
    with contextlib.closing(log.connect()) as relay, contextlib.closing(log.connect()) as publisher:
        listening, publishing = relay.cursor(), publisher.cursor()
        listening.execute("LISTEN socketio_pg_bell")
        publishing.execute("BEGIN; SELECT socketio_pg.publish('a', '1'), socketio_pg.publish('a', '2')")
        listening.execute("SELECT 1")
        assert relay.notifies == []
        publishing.execute("COMMIT")
        listening.execute("SELECT 1")
        assert [found.channel for found in relay.notifies] == ["socketio_pg_bell"]
        relay.notifies.clear()
        in_thread(lease.set_busy, relay, True)
        publishing.execute("SELECT socketio_pg.publish('a', '3')")
        listening.execute("SELECT 1")
        assert relay.notifies == []
        in_thread(lease.set_busy, relay, False)
        publishing.execute("SELECT socketio_pg.publish('a', '4')")
        listening.execute("SELECT 1")
        assert len(relay.notifies) == 1


@pytest.mark.parametrize("seconds", [-0.001, 3600])
def test_busy_time_that_is_past_or_impossible_does_not_silence_the_bell(log: LogDatabase, seconds: float) -> None:
    """The relay was killed while it was busy, or the clock has been set back."""
    log.sql("SELECT setval('socketio_pg.busy_until', (extract(epoch FROM now()) * 1000 + %s)::bigint)", 1000 * seconds)
    with contextlib.closing(log.connect()) as relay:
        relay.cursor().execute("LISTEN socketio_pg_bell")
        log.publish("a", "1")
        relay.cursor().execute("SELECT 1")
        assert len(relay.notifies) == 1


def test_open_transaction_that_has_rung_does_not_block_the_relay(log: LogDatabase) -> None:
    lease = Lease(str(uuid.uuid4()), "one", 30.0)
    with contextlib.closing(log.connect()) as relay, contextlib.closing(log.connect()) as publisher:
        publishing = publisher.cursor()
        publishing.execute("BEGIN; SELECT socketio_pg.publish('a', '1'); SET CONSTRAINTS ALL IMMEDIATE")
        in_thread(lease.set_busy, relay, True)
        log.publish("a", "2")
        assert log.move() == 1
        publishing.execute("COMMIT")
        assert log.move() == 1
        assert log.log() == [(1, "a", 2), (2, "a", 1)]


def test_relay_finds_every_row_without_full_scans(log: LogDatabase, relay: Relay) -> None:
    """With real snapshots and a real sequence: from the first id on, and rows of transactions that commit late."""
    relay._next_full_scan = float("inf")  # so that no row is found only by a full scan
    with contextlib.closing(log.connect()) as moving, contextlib.closing(log.connect()) as late:
        prepare(moving)

        def move() -> int:
            moved: Moved = in_thread(relay._move, moving, 0)
            return moved.count

        assert move() == move() == 0
        log.publish("a", "1")
        assert move() == 1
        late.cursor().execute("BEGIN; SAVEPOINT s; SELECT socketio_pg.publish('a', '20')")
        for number in range(2, 12):
            log.publish("a", str(number))
            assert move() == 1
        assert relay._low.floor > 5
        late.cursor().execute("COMMIT")
        log.publish("a", "21")
        assert move() == 2, "both in one batch, or the later one would be numbered first"
    assert [payload for _, _, payload in log.log()] == [*range(1, 12), 20, 21]


def test_rare_channel_is_read_through_its_index(log: LogDatabase) -> None:
    log.sql(
        "INSERT INTO socketio_pg.log (position, channel, payload, size, published_at)"
        " SELECT n, CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END, '0', 1, now() FROM generate_series(1, 50000) AS n"
    )
    log.sql("ANALYZE socketio_pg.log")
    rows = log.sql("EXPLAIN " + _CHANNEL_PAGES, ["a", "rare"], [0, 0], [50_000, 50_000], 500, 64_000)
    plan = "\n".join(row[0] for row in rows)
    assert "log_channel_position" in plan
    assert "log_pkey" not in plan, plan
