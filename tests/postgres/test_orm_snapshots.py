"""snapshot_of(): rows and token of one snapshot, in every isolation level."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import ForeignKey, func, select, union
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.log.starts import parse_token
from socketio_pg.orm import snapshot_of
from tests.support.log_database import LogDatabase
from tests.support.postgres import in_thread


class Base(DeclarativeBase): ...


class Basket(Base):
    __tablename__ = "basket"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    items: Mapped[list["Item"]] = relationship()


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    basket_id: Mapped[int] = mapped_column(ForeignKey("basket.id"))


@pytest.fixture(scope="module", params=["psycopg2", "psycopg"])
def engine(request: pytest.FixtureRequest, shared_log: LogDatabase) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(shared_log.url.replace("postgresql://", f"postgresql+{request.param}://"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Basket(id=1, name="a", items=[Item(id=1), Item(id=2)]), Basket(id=2, name="b")])
        session.commit()
    yield engine
    engine.dispose()


def shared(session: Session) -> Session:
    session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    return session


def test_one_statement_in_read_committed(engine: Any) -> None:
    with Session(engine) as session:
        baskets = select(Basket).order_by(Basket.id)
        rows, token = snapshot_of(session, baskets)
        assert [basket.name for basket in rows.scalars()] == ["a", "b"]
        assert parse_token(token)
        rows, _ = snapshot_of(session, baskets.options(joinedload(Basket.items)))
        assert [len(basket.items) for basket in rows.scalars().unique()] == [2, 0]
        rows, _ = snapshot_of(session, select(Basket.name, func.count(Item.id)).outerjoin(Item).group_by(Basket.name))
        assert list(rows.keys()) == ["name", "count"]
        assert sorted(rows.all()) == [("a", 2), ("b", 0)]
        rows, token = snapshot_of(session, baskets.where(Basket.id > 9))
        assert (rows.all(), parse_token(token).position >= 0) == ([], True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert len(snapshot_of(connection, select(Basket.id))[0].all()) == 2


def test_any_query_in_repeatable_read(engine: Any) -> None:
    with shared(Session(engine)) as session:
        rows, token = snapshot_of(session, select(Basket).options(selectinload(Basket.items)).order_by(Basket.id))
        assert [len(basket.items) for basket in rows.scalars()] == [2, 0]
        rows, again = snapshot_of(session, union(select(Basket.id), select(Item.id)).order_by("id"))
        assert (rows.all(), again) == ([(1,), (2,)], token)


@pytest.mark.parametrize(
    "statement",
    [
        select(Basket).options(selectinload(Basket.items)),
        select(Basket).with_for_update(),
        union(select(Basket.id), select(Item.id)),
        sqlalchemy.text("SELECT 1"),
    ],
)
def test_what_cannot_be_exact_is_refused(engine: Any, statement: Any) -> None:
    with Session(engine) as session, pytest.raises(InvalidRequestError, match="REPEATABLE READ"):
        snapshot_of(session, statement)
    with shared(Session(engine)) as session:
        assert snapshot_of(session, statement)[0].all()


def test_changes_of_the_session_are_in_the_rows(engine: Any) -> None:
    with Session(engine, expire_on_commit=False) as session:
        basket = session.get_one(Basket, 1)
        session.commit()
        with engine.begin() as other:
            other.execute(sqlalchemy.update(Basket).where(Basket.id == 1).values(name="c"))
        rows, _ = snapshot_of(session, select(Basket).where(Basket.id == 1))
        assert rows.scalar_one().name == "c", "the object that the session had is refreshed"
        basket.name = "d"
        rows, _ = snapshot_of(session, select(Basket.name).where(Basket.id == 1))
        assert rows.scalar_one() == "d"
        session.rollback()
    with Session(engine, autoflush=False) as session:
        session.get_one(Basket, 1).name = "e"
        with pytest.raises(InvalidRequestError, match="autoflush"):
            snapshot_of(session, select(Basket))


def test_async_session(engine: Any, shared_log: LogDatabase) -> None:
    async def run() -> tuple[list[int], str]:
        asynchronous = create_async_engine(shared_log.url.replace("postgresql://", "postgresql+psycopg://"))
        async with AsyncSession(asynchronous) as session:
            rows, token = await session.run_sync(snapshot_of, select(Basket.id).order_by(Basket.id))
            found = list(rows.scalars())
        await asynchronous.dispose()
        return found, token

    found, token = in_thread(lambda: asyncio.run(run()))
    assert (found, bool(parse_token(token))) == ([1, 2], True)
