"""`socketio_pg.aio.publish` on each kind of asynchronous connection, in the caller's transaction."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from socketio_pg.aio import publish
from socketio_pg.core.errors import (
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
)
from tests.support.log_database import LogDatabase
from tests.support.postgres import Cluster, in_thread

Opened = Callable[[str, bool], contextlib.AbstractAsyncContextManager[Any]]


@contextlib.asynccontextmanager
async def with_asyncpg(url: str, commits: bool) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await (transaction.commit() if commits else transaction.rollback())
    await connection.close()


@contextlib.asynccontextmanager
async def with_psycopg(url: str, commits: bool) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield connection
        await (connection.commit() if commits else connection.rollback())


@contextlib.asynccontextmanager
async def with_session(url: str, commits: bool) -> AsyncIterator[Any]:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    async with AsyncSession(engine) as session:
        yield session
        await (session.commit() if commits else session.rollback())


@contextlib.asynccontextmanager
async def with_connection(url: str, commits: bool) -> AsyncIterator[Any]:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    async with engine.connect() as connection:
        yield connection
        await (connection.commit() if commits else connection.rollback())


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> LogDatabase:
    return LogDatabase(newest_pg, "aio_publishing")


@pytest.fixture(params=[with_asyncpg, with_psycopg, with_session, with_connection])
def opened(request: pytest.FixtureRequest) -> Opened:
    found: Opened = request.param
    return found


def run(work: Callable[[], Any]) -> Any:
    return in_thread(lambda: asyncio.run(work()))


def test_messages_follow_the_transaction(database: LogDatabase, opened: Opened, channel: str) -> None:
    async def work() -> None:
        async with opened(database.url, True) as connection:
            assert await publish(connection, channel, {"text": "ünïcödé 'x' :y %s {0}"})
            assert await publish(connection, channel, "once", id="7")
            assert not await publish(connection, channel, "twice", id="7", exclude="abc")
            assert await publish(connection, channel, "left out", exclude="abc")
        async with opened(database.url, False) as connection:
            assert await publish(connection, channel, "rolled back")
        async with opened(database.url, True) as connection:
            for raised, bad in (
                (InvalidChannelError, publish(connection, "*", 1)),
                (InvalidRequestError, publish(connection, channel, float("nan"))),
                (InvalidRequestError, publish(connection, channel, 1, id="x" * 65)),
                (InvalidRequestError, publish(connection, channel, 1, exclude="abc", durable=False)),
                (PayloadTooLargeError, publish(connection, channel, "x" * 8000, durable=False)),
            ):
                with pytest.raises(raised):
                    await bad
            assert await publish(connection, channel, "x" * 8000)
            assert await publish(connection, channel, "heard, not logged", durable=False)

    run(work)
    database.move()
    found = [payload for _, name, payload in database.log() if name == channel]
    assert found == [{"text": "ünïcödé 'x' :y %s {0}"}, "once", "left out", "x" * 8000]
    metas = database.sql("SELECT meta FROM socketio_pg.log WHERE channel = %s ORDER BY position", channel)
    assert metas == [(None,), (None,), ({"exclude": "abc"},), (None,)]


def test_notifications_and_a_database_without_a_log(newest_pg: Cluster, opened: Opened, channel: str) -> None:
    async def work() -> None:
        async with opened(newest_pg.url("template1"), True) as connection:
            assert await publish(connection, channel, {"a": 1})
            assert await publish(connection, channel, 2, durable=False)
        for options in ({"durable": True}, {"id": "1"}):
            async with opened(newest_pg.url("template1"), False) as connection:
                with pytest.raises(Exception, match='schema "socketio_pg" does not exist'):
                    await publish(connection, channel, 1, **options)

    def heard() -> list[str]:
        listening = psycopg2.connect(newest_pg.url("template1"))
        with contextlib.closing(listening), listening.cursor() as cursor:
            listening.autocommit = True
            cursor.execute(f'LISTEN "{channel}"')
            asyncio.run(work())
            cursor.execute("SELECT 1")
            listening.poll()
            return [one.payload for one in listening.notifies]

    assert in_thread(heard) == ['{"a":1}', "2"]


def test_other_connections_are_refused(database: LogDatabase) -> None:
    async def work() -> None:
        with pytest.raises(TypeError, match="is not a connection"):
            await publish(object(), "a", 1)

    run(work)
