"""socketio_pg.snapshot(), and subscriptions that begin with its tokens: each message is in the rows, or arrives."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psycopg2
import pytest

from socketio_pg import PubSub
from socketio_pg.core import green
from socketio_pg.log.skipping import Skipping
from socketio_pg.log.starts import Snapshot, parse_token
from tests.support.log_database import LogDatabase
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, cluster
from tests.support.snapshots import SCHEMA, History


@pytest.fixture(scope="module")
def tables(shared_log: LogDatabase) -> LogDatabase:
    shared_log.sql(SCHEMA)
    return shared_log


@pytest.mark.parametrize("seed", sampled(range(200), lambda seed: seed < 2))
def test_rows_and_messages_are_everything_once(tables: LogDatabase, seed: int) -> None:
    readers = History(tables, Random(seed)).run(150)
    assert readers


def token(log: LogDatabase) -> str:
    [(found,)] = log.sql("SELECT socketio_pg.snapshot()")
    assert isinstance(found, str)
    return found


@pytest.fixture
def pubsub(log: LogDatabase) -> Iterator[PubSub]:
    made = PubSub(log.url)
    made.position()
    yield made
    made.disconnect()


def test_token_names_what_the_statement_sees(log: LogDatabase) -> None:
    [(epoch,)] = log.sql("SELECT epoch::text FROM socketio_pg.head")
    assert parse_token(token(log)) == Snapshot(epoch, 0)
    log.publish("a", "1", "2", "3")
    with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; SELECT socketio_pg.publish('a', '4')")
        log.publish("a", "5")
        assert parse_token(token(log)) == Snapshot(epoch, 0, ((1, 3), (5, 5)))
        cursor.execute("SELECT socketio_pg.snapshot(), pg_current_xact_id()::text::bigint")
        own, transaction = cursor.fetchone()
        assert parse_token(own) == Snapshot(epoch, 0, ((1, 5),), transaction)
        cursor.execute("COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT socketio_pg.snapshot()")
        before = cursor.fetchone()
        log.move(2)
        assert parse_token(token(log)) == Snapshot(epoch, 2, ((3, 5),))
        cursor.execute("SELECT socketio_pg.snapshot()")
        assert cursor.fetchone() == before
        assert parse_token(before[0]) == Snapshot(epoch, 0, ((1, 5),))


def test_a_backlog_that_a_token_cannot_describe_is_an_error(log: LogDatabase) -> None:
    fill = "INSERT INTO socketio_pg.outbox (channel, payload, size) SELECT 'a', '1', 1 FROM generate_series(1, %s)"
    log.sql(fill, 100_000)
    assert parse_token(token(log)).count == 100_000
    log.sql("DELETE FROM socketio_pg.outbox WHERE id %% 40 = 0", ())
    with pytest.raises(psycopg2.Error, match="97500, with many gaps") as raised:
        token(log)
    assert raised.value.pgcode == "SG009"
    log.sql(fill, 2501)
    with pytest.raises(psycopg2.Error, match="more than 100000") as raised:
        token(log)
    assert raised.value.pgcode == "SG009"


def test_subscription_waits_for_messages_without_a_position(log: LogDatabase, pubsub: PubSub) -> None:
    """No server relays, and the snapshot's own transaction is open: what is in the snapshot is known only later."""
    log.publish("a", "1")
    queue: Any = green.Queue()
    with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; SELECT socketio_pg.publish('a', '2'); SELECT socketio_pg.snapshot()")
        [own] = cursor.fetchone()
        subscription = pubsub.subscribe("a", queue, since=own, on_gap=queue.put, on_live=queue.put)
        log.publish("a", "3")
        log.move()
        assert not subscription.live.is_set()
        cursor.execute("COMMIT")
    log.publish("a", "4")
    log.move()
    assert [queue.get(timeout=PATIENCE)["payload"] for _ in range(2)] == [3, 4]
    live = queue.get(timeout=PATIENCE)
    assert live == {"channel": "a", **(pubsub.position() or {})}
    assert subscription.live.is_set()
    log.publish("a", "5")
    log.move()
    assert queue.get(timeout=PATIENCE)["payload"] == 5


@pytest.mark.parametrize("problem", ["rolled back", "stays open", "numbered by a server of version 5", "made up"])
def test_snapshot_whose_messages_cannot_be_told_is_a_gap(
    log: LogDatabase, pubsub: PubSub, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    queue: Any = green.Queue()
    with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; SELECT socketio_pg.publish('a', '1'); SELECT socketio_pg.snapshot()")
        [own] = cursor.fetchone()
        if problem == "stays open":
            monkeypatch.setattr(Skipping, "patience", 0.1)
        else:
            cursor.execute("ROLLBACK" if problem == "rolled back" else "COMMIT")
        log.publish("a", "2")
        log.move()
        if problem == "numbered by a server of version 5":
            log.sql("UPDATE socketio_pg.log SET id = NULL")
        if problem == "made up":  # its transaction has not begun
            monkeypatch.setattr(Skipping, "patience", 10 * PATIENCE)
            own = f"{own.rpartition(':')[0]}:{2**62}".replace(":1:", ":1000:")
        pubsub.subscribe("a", queue, since=own, on_gap=queue.put)
        assert queue.get(timeout=PATIENCE)["reason"] == "snapshot_unknown"
        page = pubsub.read_page("a", since=own) if problem != "stays open" else None
        assert page is None or page.recovery == {"recovered": False, "reason": "snapshot_unknown"}
        assert page is None or page.next == f"{page.epoch}:{page.position}"


def test_old_snapshots_are_unrecoverable(log: LogDatabase, pubsub: PubSub) -> None:
    queue: Any = green.Queue()
    log.publish("a", "1")
    trimmed = token(log)
    for n in ("2", "3"):
        log.move()
        log.publish("a", n)
    log.move()
    log.sql("DELETE FROM socketio_pg.log WHERE position < 3; UPDATE socketio_pg.head SET trimmed = 2")
    fresh = PubSub(log.url)  # without messages in memory
    try:
        page = fresh.read_page("a", since=trimmed)
        assert page.recovery == {"recovered": False, "reason": "trimmed"}
    finally:
        fresh.disconnect()
    pubsub.subscribe("a", queue, on_gap=queue.put)
    log.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
    pubsub._follower.look()
    assert queue.get(timeout=PATIENCE)["reason"] == "epoch_changed"
    other: Any = green.Queue()
    pubsub.subscribe("a", other, since=trimmed, on_gap=other.put)
    assert other.get(timeout=PATIENCE)["reason"] == "epoch_changed"


@pytest.fixture(scope="module")
def two_phase() -> Iterator[LogDatabase]:
    with cluster() as running:
        running.sql("ALTER SYSTEM SET max_prepared_transactions = 50")
        running.restart("immediate")
        log = LogDatabase(running)
        log.sql(SCHEMA)
        yield log


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(50))
def test_transactions_may_be_prepared(two_phase: LogDatabase, seed: int) -> None:
    History(two_phase, Random(seed), two_phase=True).run(200)


@pytest.fixture(scope="module")
def replicated() -> Iterator[tuple[LogDatabase, str]]:
    """A log, and the address of its database on a hot standby."""
    with cluster() as primary:
        log = LogDatabase(primary)
        log.sql(SCHEMA)
        primary.stop()
        folder = Path(tempfile.mkdtemp(prefix="standby-"))
        try:
            # With its owners: PostgreSQL may run as another user.
            subprocess.run(["cp", "-a", f"{primary.data_dir}/.", str(folder)], check=True)
            subprocess.run(["cp", "-a", folder / "PG_VERSION", folder / "standby.signal"], check=True)
            standby = Cluster(folder, version=primary.version)
            standby.configure(f"primary_conninfo = 'host={primary.data_dir} user=postgres'")
            standby.configure("max_standby_streaming_delay = -1")
            primary.start()
            standby.start()
            try:
                yield log, standby.url(log.name)
            finally:
                standby.stop("immediate")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(50))
def test_snapshots_of_a_hot_standby(replicated: tuple[LogDatabase, str], seed: int) -> None:
    """It is behind by a random time, and its snapshots do not list open transactions."""
    log, standby = replicated
    assert log.cluster.sql("SELECT count(*) FROM pg_stat_replication") == [(1,)]
    History(log, Random(seed), standby=standby).run(200)
