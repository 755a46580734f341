"""Client publishes in the caller's transaction, on every kind of connection."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from socketio_pg.client import Client
from socketio_pg.core.errors import InvalidChannelError, InvalidRequestError, PayloadTooLargeError
from tests.support.postgres import Cluster


class Receiver:
    """A session with LISTEN: returns the notifications that were really sent."""

    def __init__(self, postgres: Cluster, channel: str, database: str = "postgres") -> None:
        self._connection = psycopg.connect(postgres.url(database), autocommit=True)
        self._connection.execute(f'LISTEN "{channel}"')

    def received(self) -> list[Any]:
        # PostgreSQL sends notifications before the result of the session's next statement.
        self._connection.execute("SELECT 1")
        return [json.loads(found.payload) for found in self._connection.notifies(timeout=0)]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def receiver(postgres: Cluster, channel: str) -> Iterator[Receiver]:
    made = Receiver(postgres, channel)
    yield made
    made.close()


Opener = Callable[[Cluster], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def open_psycopg2(postgres: Cluster) -> Iterator[Any]:
    connection = psycopg2.connect(postgres.url())
    yield connection
    connection.close()


@contextlib.contextmanager
def open_psycopg3(postgres: Cluster) -> Iterator[Any]:
    with contextlib.closing(psycopg.connect(postgres.url())) as connection:
        yield connection


def _engine(postgres: Cluster, driver: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(postgres.url().replace("postgresql://", f"postgresql+{driver}://"))


@contextlib.contextmanager
def open_sqlalchemy_connection(postgres: Cluster) -> Iterator[Any]:
    engine = _engine(postgres, "psycopg2")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextlib.contextmanager
def open_sqlalchemy_psycopg3(postgres: Cluster) -> Iterator[Any]:
    engine = _engine(postgres, "psycopg")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextlib.contextmanager
def open_session(postgres: Cluster) -> Iterator[Any]:
    engine = _engine(postgres, "psycopg2")
    with Session(engine) as session:
        yield session
    engine.dispose()


@contextlib.contextmanager
def open_scoped_session(postgres: Cluster) -> Iterator[Any]:
    engine = _engine(postgres, "psycopg2")
    registry = scoped_session(sessionmaker(engine))
    yield registry
    registry.remove()
    engine.dispose()


@pytest.fixture(
    params=[
        open_psycopg2,
        open_psycopg3,
        open_sqlalchemy_connection,
        open_sqlalchemy_psycopg3,
        open_session,
        open_scoped_session,
    ],
    ids=lambda opener: opener.__name__.removeprefix("open_"),
)
def connection(request: pytest.FixtureRequest, postgres: Cluster) -> Iterator[Any]:
    opener: Opener = request.param
    with opener(postgres) as opened:
        yield opened


def test_messages_are_sent_at_commit(connection: Any, receiver: Receiver, channel: str) -> None:
    Client(connection).publish(channel, "created", {"id": 1, "text": "%s é '; --"})
    assert receiver.received() == []
    connection.commit()
    assert receiver.received() == [{"event_name": "created", "params": {"id": 1, "text": "%s é '; --"}}]


def test_rollback_sends_nothing(connection: Any, receiver: Receiver, channel: str) -> None:
    Client(connection).publish(channel, "created")
    connection.rollback()
    Client(connection).notify(channel, ["any", "value", None])
    connection.commit()
    assert receiver.received() == [["any", "value", None]]


def test_refused_messages_do_not_affect_the_transaction(connection: Any, receiver: Receiver, channel: str) -> None:
    client = Client(connection)
    client.publish(channel, "before")
    with pytest.raises(InvalidChannelError):
        client.notify("socketio_pg", 1)
    with pytest.raises(PayloadTooLargeError):
        client.notify(channel, "x" * 8000)
    with pytest.raises(InvalidRequestError):
        client.notify(channel, float("nan"))
    with pytest.raises(TypeError):
        client.publish(channel, 5)  # type: ignore[arg-type]
    connection.commit()
    assert receiver.received() == [{"event_name": "before", "params": None}]
