"""Client and @publishes choose between the log and NOTIFY, without a risk for the caller's transaction."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from socketio_pg.client import Client
from socketio_pg.core.errors import InvalidRequestError, PayloadTooLargeError
from socketio_pg.core.log_choice import LOG_CHOICE
from socketio_pg.orm import publishes
from tests.support.hostile import FUNCTIONS, HostileDatabase
from tests.support.log_database import LogDatabase
from tests.support.postgres import Cluster


@pytest.fixture(autouse=True)
def forget() -> None:
    """The databases of earlier tests had the same names."""
    LOG_CHOICE.forget()


@pytest.fixture
def log(newest_pg: Cluster) -> LogDatabase:
    return LogDatabase(newest_pg, "client_tier")


@contextlib.contextmanager
def opened(url: str, kind: str) -> Iterator[Any]:
    if kind == "psycopg2":
        with contextlib.closing(psycopg2.connect(url)) as connection:
            yield connection
    elif kind == "psycopg":
        with contextlib.closing(psycopg.connect(url)) as connection:
            yield connection
    else:
        engine = sqlalchemy.create_engine(url.replace("postgresql://", f"postgresql+{kind.partition(' ')[0]}://"))
        with Session(engine) as session:
            yield session
        engine.dispose()


KINDS = ["psycopg2", "psycopg", "psycopg2 session", "psycopg session"]


def notified(url: str, channel: str, publish: Callable[[], object]) -> list[str]:
    """Return the payloads that arrive with NOTIFY while ``publish`` runs."""
    with contextlib.closing(psycopg2.connect(url)) as listener, listener.cursor() as cursor:
        listener.autocommit = True
        cursor.execute(f'LISTEN "{channel}"')
        publish()
        cursor.execute("SELECT 1")
        return [found.payload for found in listener.notifies]


def outbox(log: LogDatabase, channel: str) -> list[Any]:
    return [row[0] for row in log.sql("SELECT payload FROM socketio_pg.outbox WHERE channel = %s ORDER BY id", channel)]


@pytest.mark.parametrize("kind", KINDS)
def test_log_is_used_where_it_is_installed(log: LogDatabase, channel: str, kind: str) -> None:
    def publish() -> None:
        with opened(log.url, kind) as connection:
            client = Client(connection)
            assert client.notify(channel, "lost")
            connection.rollback()
            assert client.notify(channel, 1)
            assert client.publish(channel, "two", id="2")
            assert not client.publish(channel, "two", id="2")
            assert client.notify(channel, 3, durable=True)
            assert client.notify(channel, 4, durable=False)
            assert client.notify(channel, 5, durable=False, id="5")
            assert not client.notify(channel, 6, durable=False, id="5")
            assert client.notify(channel, "x" * 8000)
            with pytest.raises(PayloadTooLargeError):
                client.notify(channel, "x" * 8000, durable=False)
            with pytest.raises(InvalidRequestError, match="id must be"):
                client.notify(channel, 7, id="\n")
            connection.commit()

    assert notified(log.url, channel, publish) == ["4", "5"]
    assert outbox(log, channel) == [1, {"event_name": "two", "params": None}, 3, "x" * 8000]


@pytest.mark.parametrize("kind", KINDS)
def test_notify_is_used_without_a_log(newest_pg: Cluster, channel: str, kind: str) -> None:
    newest_pg.sql("DROP DATABASE IF EXISTS client_without WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE client_without")
    url = newest_pg.url("client_without")

    def publish() -> None:
        with opened(url, kind) as connection:
            Client(connection).notify(channel, 1)
            with pytest.raises(PayloadTooLargeError):
                Client(connection).notify(channel, "x" * 8000)
            connection.commit()

    assert notified(url, channel, publish) == ["1"]


def test_role_that_may_not_publish_through_the_log_notifies(log: LogDatabase, channel: str) -> None:
    log.sql("DROP ROLE IF EXISTS client_guest; CREATE ROLE client_guest LOGIN")
    url = log.url.replace("postgres@", "client_guest@")

    def publish() -> None:
        with opened(url, "psycopg2") as connection:
            Client(connection).notify(channel, 1)
            connection.commit()

    assert notified(log.url, channel, publish) == ["1"]
    log.install(publisher="client_guest")
    LOG_CHOICE.forget()
    assert notified(log.url, channel, publish) == []
    assert outbox(log, channel) == [1]
    log.sql("DROP OWNED BY client_guest; DROP ROLE client_guest")


def test_question_does_not_disturb_the_transaction(log: LogDatabase, channel: str) -> None:
    with opened(log.url, "psycopg2") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE mine (id int); SET LOCAL search_path = mine, public")
        Client(connection).notify(channel, 1)
        cursor.execute("SHOW search_path")
        assert cursor.fetchone() == ("mine, public",)
        connection.commit()
    with opened(log.url, "psycopg2") as connection, connection.cursor() as cursor:
        connection.set_session(readonly=True)
        assert Client(connection)._has_log()
        cursor.execute("SELECT 1")


@pytest.mark.parametrize("shadowed", [False, True])
def test_schema_of_a_stranger_is_not_used(
    newest_pg: Cluster, channel: str, shadowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = HostileDatabase(newest_pg, "hostile_client")
    try:
        hostile.sql(f"CREATE SCHEMA socketio_pg; {FUNCTIONS}", role="mallory")
        if shadowed:
            hostile.shadow()

        def publish() -> None:
            with opened(hostile.url, "psycopg session") as session:
                Client(session).notify(channel, 1)
                Client(session).notify(channel, 2)
                session.commit()

        assert notified(hostile.url, channel, publish) == ["1", "2"]
        assert not hostile.attacked
        assert [record.getMessage() for record in caplog.records if "mallory" in record.getMessage()][1:] == []
        # The caller may trust the role.
        with opened(hostile.url, "psycopg2") as connection:
            assert Client(connection, schema_owner="mallory")._has_log()
    finally:
        newest_pg.sql("DROP DATABASE hostile_client WITH (FORCE)")


def test_log_that_was_removed_is_forgotten(log: LogDatabase, channel: str) -> None:
    with opened(log.url, "psycopg2") as connection:
        Client(connection).notify(channel, 1)
        connection.commit()
        log.sql("DROP SCHEMA socketio_pg CASCADE")
        with pytest.raises(psycopg2.Error):
            Client(connection).notify(channel, 2)
        connection.rollback()
        Client(connection).notify(channel, 3)
        connection.commit()


class Base(DeclarativeBase):
    pass


@publishes("tiers")
class Tier(Base):
    __tablename__ = "tier"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_changes_of_classes_follow_the_same_default(log: LogDatabase) -> None:
    def publish() -> None:
        with opened(log.url, "psycopg2 session") as session:
            session.add_all([Tier(id=1), Tier(id=2)])
            session.commit()
            session.execute(sqlalchemy.text("DROP SCHEMA socketio_pg CASCADE"))
            LOG_CHOICE.forget()
            session.add(Tier(id=3))
            session.commit()

    log.sql("CREATE TABLE tier (id int PRIMARY KEY)")
    with opened(log.url, "psycopg2 session") as session:
        session.add(Tier(id=0))
        session.commit()
    assert [payload["pk"] for payload in outbox(log, "tiers")] == [{"id": 0}]
    assert [payload.count('"id":3') for payload in notified(log.url, "tiers", publish)] == [2]
