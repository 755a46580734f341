"""Two-phase commit: whatever publishes through the log can be prepared, and arrives after COMMIT PREPARED."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from socketio_pg.client import Client
from socketio_pg.log import doorbell
from socketio_pg.orm import publishes
from socketio_pg.postgres.database import fetch
from tests.support.clients import SocketClient
from tests.support.log import Log, numbers, since, wait_installed
from tests.support.patience import until
from tests.support.postgres import Cluster, cluster


@pytest.fixture(scope="module")
def two_phase() -> Iterator[Cluster]:
    """A cluster in which transactions may be prepared."""
    with cluster() as running:
        running.sql("ALTER SYSTEM SET max_prepared_transactions = 10")
        running.restart("immediate")
        yield running


@pytest.fixture(scope="module")
def log(two_phase: Cluster) -> Iterator[Log]:
    made = Log(two_phase, "two_phase", AUTO_INIT="1")
    wait_installed(made)
    made.sql("CREATE TABLE item (id int PRIMARY KEY, n int); SELECT socketio_pg.watch('item', 'watched')")
    made.sql("CREATE TABLE policy (who text)")
    made.sql(
        "CREATE TRIGGER recheck AFTER INSERT ON policy FOR EACH STATEMENT"
        " EXECUTE FUNCTION socketio_pg.recheck_on_change()"
    )
    yield made
    made.server.close()


@contextlib.contextmanager
def psql(log: Log) -> Iterator[Any]:
    """Yield a cursor in autocommit mode."""
    with contextlib.closing(psycopg2.connect(log.url)) as connection:
        connection.autocommit = True
        yield connection.cursor()


def prepare(log: Log, name: str, *statements: str) -> None:
    """Prepare a transaction, and end its session."""
    with psql(log) as cursor:
        cursor.execute("; ".join(["BEGIN", *statements, f"PREPARE TRANSACTION '{name}'"]))


class Base(DeclarativeBase):
    pass


@publishes("orm", durable=True)
class Item(Base):
    __tablename__ = "orm_item"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def client(log: Log) -> Iterator[SocketClient]:
    with SocketClient(log.server.url) as made:
        for channel in ("published", "watched", "orm", "client"):
            made.call("subscribe", {"channel": channel})
        yield made


def payloads(client: SocketClient, count: int) -> list[Any]:
    return [client.next("event")["payload"] for _ in range(count)]


def test_everything_that_uses_the_log_can_be_prepared(log: Log, client: SocketClient) -> None:
    prepare(
        log,
        "all",
        "SELECT socketio_pg.publish('published', '[1]')",
        "INSERT INTO item VALUES (1, 2)",
        "UPDATE item SET n = 3",
        "INSERT INTO policy VALUES ('alice')",
        "SELECT socketio_pg.recheck('published')",
    )
    log.publish("published", 2, 2)
    assert numbers(client, 1) == [2], "nothing of a prepared transaction, and no message waits for it"
    with psql(log) as cursor:
        cursor.execute("COMMIT PREPARED 'all'")
    first, *changes = payloads(client, 3)
    assert first == [1]
    assert [change["op"] for change in changes] == ["INSERT", "UPDATE"]


def test_two_phase_sessions_of_the_orm_publish(log: Log, client: SocketClient) -> None:
    engine = create_engine(log.url.replace("postgresql://", "postgresql+psycopg2://"))
    Base.metadata.create_all(engine)
    with Session(engine, twophase=True) as session:
        session.add(Item(id=1))
        Client(session).notify("client", [1], durable=True)
        session.commit()
    engine.dispose()
    received = payloads(client, 2)
    assert [1] in received
    assert any(isinstance(payload, dict) and payload["new"] == {"id": 1} for payload in received)


def test_rolled_back_transaction_leaves_no_trace(log: Log, client: SocketClient) -> None:
    prepare(log, "gone", "SELECT socketio_pg.publish('published', '[1]')")
    with psql(log) as cursor:
        cursor.execute("ROLLBACK PREPARED 'gone'")
    log.publish("published", 2, 2)
    assert numbers(client, 1) == [2]


def test_transaction_that_stays_prepared_is_delivered_once_and_in_order(log: Log, two_phase: Cluster) -> None:
    """Across full scans, other messages, another relay and a crash of the database."""
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": "long"})
        prepare(log, "long", *(f"SELECT socketio_pg.publish('long', '[{n}]')" for n in (101, 102)))
        for number in range(1, 6):
            log.publish("long", number, number)
        assert numbers(client, 5) == [1, 2, 3, 4, 5]
    two_phase.restart("immediate")
    log.server.restart()
    with SocketClient(log.server.url, wait=True) as client:
        client.call("subscribe", {"channel": "long", "since": since(answer)})
        assert numbers(client, 5) == [1, 2, 3, 4, 5]
        log.publish("long", 6, 6)
        assert numbers(client, 1) == [6]
        with psql(log) as cursor:
            cursor.execute("COMMIT PREPARED 'long'")
        log.publish("long", 7, 7)
        assert numbers(client, 3) == [101, 102, 7], "after its commit, before what was published later"
    assert log.sql("SELECT count(*) FROM socketio_pg.outbox") == [(0,)]


def test_notify_cannot_be_prepared(log: Log) -> None:
    """PostgreSQL's own rule. It applies to the log when the setting makes publishers notify the relay."""
    for statement in ("NOTIFY published", "SET LOCAL socketio_pg.doorbell = on; SELECT socketio_pg.publish('a', '1')"):
        with pytest.raises(psycopg2.errors.FeatureNotSupported, match="NOTIFY"):
            prepare(log, "never", statement)


def rings(log: Log) -> bool:
    """Return what the relay finds, from a session of its own."""
    with contextlib.closing(psycopg2.connect(log.url)) as connection:
        return bool(fetch(connection, doorbell.RINGS)[0][1])


def heard(log: Log, statement: str) -> bool:
    """Return whether a transaction with ``statement`` rings the doorbell, when the relay is at rest."""
    found: list[bool] = []

    def at_rest() -> bool:
        return log.sql("SELECT last_value FROM socketio_pg.busy_until") == [(0,)]

    def publish() -> bool:
        with psql(log) as listener, psql(log) as cursor:
            listener.execute("LISTEN socketio_pg_bell")
            before = at_rest()
            cursor.execute(f"BEGIN; {statement}; SELECT socketio_pg.publish('bell', '1'); COMMIT")
            listener.execute("SELECT 1")
            found[:] = [bool(listener.connection.notifies)]
        return before and at_rest()

    until(publish, "the relay was at rest")
    return found[0]


def test_setting_decides_who_rings(log: Log) -> None:
    assert not heard(log, "SELECT 1")
    assert heard(log, "SET LOCAL socketio_pg.doorbell = on")
    assert not rings(log)
    try:
        log.sql("ALTER DATABASE two_phase SET socketio_pg.doorbell = on")
        assert rings(log)
        assert heard(log, "SELECT 1")
        assert not heard(log, "SET LOCAL socketio_pg.doorbell = off")
        log.sql("ALTER ROLE postgres IN DATABASE two_phase SET socketio_pg.doorbell = off")
        assert not rings(log), "one role does not ring: the relay looks for its messages"
        assert not heard(log, "SELECT 1")
    finally:
        log.sql("ALTER DATABASE two_phase RESET socketio_pg.doorbell")
        log.sql("ALTER ROLE postgres IN DATABASE two_phase RESET socketio_pg.doorbell")
