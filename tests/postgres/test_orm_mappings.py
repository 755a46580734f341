"""@publishes with every kind of mapping: relationships, dataclasses, imperative and reflected tables; and asyncio."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    registry,
    relationship,
    scoped_session,
    sessionmaker,
)

from socketio_pg.client import Client
from socketio_pg.orm.hooks import publishes
from tests.support.orm import ONE_BACKEND, PSYCOPG_BACKENDS, OrmDatabase, images, orm_database
from tests.support.postgres import Cluster, in_thread

pytestmark = pytest.mark.majors


class Base(DeclarativeBase):
    pass


# -- relationships -----------------------------------------------------------------------------------------------------


@publishes("parent:{id}")
class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    favourite_id: Mapped[int | None] = mapped_column(sa.ForeignKey("child.id", use_alter=True))
    children: Mapped[list["Child"]] = relationship(
        back_populates="parent", cascade="all, delete-orphan", foreign_keys="Child.parent_id"
    )
    seen: Mapped[list["Child"]] = relationship(viewonly=True, foreign_keys="Child.parent_id")
    favourite: Mapped["Child | None"] = relationship(post_update=True, foreign_keys=favourite_id)


@publishes("parent:{parent_id}")
class Child(Base):
    __tablename__ = "child"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(sa.ForeignKey("parent.id"))
    parent: Mapped[Parent] = relationship(back_populates="children", foreign_keys=parent_id)


# -- other kinds of mapping --------------------------------------------------------------------------------------------


@publishes("points:{x}")
class Point(MappedAsDataclass, Base):
    __tablename__ = "point"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    x: Mapped[int]
    y: Mapped[int] = mapped_column("why", default=0)


mapping = registry(metadata=Base.metadata)


@mapping.mapped_as_dataclass()
@publishes("lines")
class Line:
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    length: Mapped[int]


@publishes("plain:{label}", exclude=["hidden"])
class Plain:
    def __init__(self, label: str) -> None:
        self.label = label


mapping.map_imperatively(
    Plain,
    sa.Table(
        "plain",
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.Text),
        sa.Column("hidden", sa.Text, server_default="secret"),
    ),
    properties={"label": Base.metadata.tables["plain"].c.title},
)


@dataclass
class Pair:
    a: int
    b: int


mapping.map_imperatively(
    Pair,
    sa.Table(
        "pair",
        Base.metadata,
        sa.Column("a", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("b", sa.Integer, primary_key=True, autoincrement=False),
    ),
)
publishes("pairs:{a}:{b}")(Pair)

COLUMNS = 130


@publishes("wide")
class Wide(Base):
    __table__ = sa.Table(
        'Wide "table"',
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(f"c{n}", sa.Integer) for n in range(COLUMNS)),
    )


@publishes("elsewhere")
class Elsewhere(Base):
    __tablename__ = "Else where"
    __table_args__ = {"schema": "Other schema"}
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture(scope="module")
def shared(backend: tuple[Cluster, str]) -> Iterator[OrmDatabase]:
    def prepare(made: OrmDatabase) -> None:
        made.sql('CREATE SCHEMA "Other schema"')

    with orm_database(*backend, "orm_mappings", Base.metadata, prepare) as made:
        yield made


@pytest.fixture
def database(shared: OrmDatabase) -> OrmDatabase:
    return shared.empty(Base.metadata)


def test_foreign_keys_set_by_the_flush_are_sent(database: OrmDatabase, session: Session) -> None:
    first, second = Parent(children=[Child(), Child()]), Parent()
    session.add_all([first, second])
    session.commit()
    assert [(channel, payload["table"]) for channel, payload in database.sent()] == [
        ("parent:1", "parent"), ("parent:2", "parent"), ("parent:1", "child"), ("parent:1", "child"),
    ]  # fmt: skip
    second.children.append(first.children[0])
    session.commit()
    assert [(channel, payload["op"], payload["pk"]) for channel, payload in database.sent()] == [
        ("parent:1", "DELETE", {"id": 1}), ("parent:2", "INSERT", {"id": 1}),
    ]  # fmt: skip


def test_orphans_and_cascaded_deletes_are_sent(database: OrmDatabase, session: Session) -> None:
    parent = Parent(children=[Child(), Child(), Child()])
    session.add(parent)
    session.commit()
    database.sent()
    del parent.children[0]
    session.commit()
    session.delete(parent)
    session.commit()
    sent = database.sent()
    assert [(payload["table"], payload["pk"]["id"]) for _, payload in sent] == [
        ("child", 1), ("child", 2), ("child", 3), ("parent", 1),
    ]  # fmt: skip
    assert {(channel, payload["op"]) for channel, payload in sent} == {("parent:1", "DELETE")}


def test_post_update_is_part_of_the_insert(database: OrmDatabase, session: Session) -> None:
    child = Child()
    parent = Parent(children=[child], favourite=child)
    session.add(parent)
    session.commit()
    sent = {payload["table"]: payload for _, payload in database.sent()}
    assert sent["parent"]["new"] == {"id": 1, "name": "", "favourite_id": 1}
    session.refresh(parent)
    parent.favourite = None
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["op"], payload["changed"]) == ("UPDATE", ["favourite_id"])
    assert (payload["old"]["favourite_id"], payload["new"]["favourite_id"]) == (1, None)


def test_relationship_alone_does_not_change_the_row(database: OrmDatabase, session: Session) -> None:
    parent = Parent()
    session.add(parent)
    session.commit()
    database.sent()
    parent.children.append(Child())
    session.commit()
    assert [payload["table"] for _, payload in database.sent()] == ["child"]


def test_mapped_dataclasses(database: OrmDatabase, session: Session) -> None:
    point = Point(x=1)
    session.add_all([point, Line(length=5)])  # type: ignore[call-arg]
    session.commit()
    assert sorted(images(database.sent())) == [
        ("lines", "INSERT", "line", {"id": 1, "length": 5}),
        ("points:1", "INSERT", "point", {"id": 1, "x": 1, "why": 0}),
    ]
    point.y = 7
    session.commit()
    assert database.sent()[0][1]["changed"] == ["why"]


def test_imperative_mappings(database: OrmDatabase, session: Session) -> None:
    plain, pair = Plain("a"), Pair(1, 2)
    session.add_all([plain, pair])
    session.commit()
    assert sorted(images(database.sent())) == [
        ("pairs:1:2", "INSERT", "pair", {"a": 1, "b": 2}),
        ("plain:a", "INSERT", "plain", {"id": 1, "title": "a"}),
    ]
    plain.label, pair.b = "b", 3
    session.commit()
    sent = sorted((channel, payload["op"], payload["pk"]) for channel, payload in database.sent())
    assert sent == [
        ("pairs:1:2", "DELETE", {"a": 1, "b": 2}), ("pairs:1:3", "INSERT", {"a": 1, "b": 3}),
        ("plain:a", "DELETE", {"id": 1}), ("plain:b", "INSERT", {"id": 1}),
    ]  # fmt: skip


def test_table_with_many_columns(database: OrmDatabase, session: Session) -> None:
    wide = Wide(**{f"c{n}": n for n in range(COLUMNS)})
    session.add(wide)
    session.flush()
    for n in range(COLUMNS):
        setattr(wide, f"c{n}", -1)
    session.commit()
    [(_, insert), (_, update)] = database.sent()
    assert insert["new"] == update["old"] == {"id": 1} | {f"c{n}": n for n in range(COLUMNS)}
    assert update["changed"] == [f"c{n}" for n in range(COLUMNS)]
    assert (insert["schema"], insert["table"]) == ("public", 'Wide "table"')


@pytest.mark.parametrize("backend", ONE_BACKEND, indirect=True)
def test_flush_can_have_more_values_than_a_statement_takes(database: OrmDatabase, session: Session) -> None:
    """PostgreSQL's protocol allows 65,535 parameters. Each row changes a different column."""
    count = 65_535 // COLUMNS + 1
    things = [Wide(id=n, **{f"c{c}": c for c in range(COLUMNS)}) for n in range(count)]
    session.add_all(things)
    session.commit()
    assert len(database.sent()) == count
    session.scalars(sa.select(Wide)).all()  # loads them again
    for n, thing in enumerate(things[:100]):
        setattr(thing, f"c{n}", -1)
    session.commit()
    assert [payload["changed"] for _, payload in database.sent()] == [[f"c{n}"] for n in range(100)]
    session.scalars(sa.select(Wide)).all()
    for thing in things:
        session.delete(thing)
    session.commit()
    assert [payload["old"]["c129"] for _, payload in database.sent()] == [129] * count


def test_schema_of_the_table_is_sent(database: OrmDatabase, session: Session) -> None:
    session.add(Elsewhere(name="a"))
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["schema"], payload["table"]) == ("Other schema", "Else where")


def test_translated_schema_is_sent(database: OrmDatabase) -> None:
    database.sql("CREATE SCHEMA IF NOT EXISTS tenant")
    database.sql("CREATE TABLE IF NOT EXISTS tenant.point (LIKE point INCLUDING ALL)")
    engine = database.engine.execution_options(schema_translate_map={None: "tenant"})
    with Session(engine) as session:
        point = Point(x=1)
        session.add(point)
        session.flush()
        point.y = 3
        session.commit()
    sent = [(payload["schema"], payload["new"]["why"]) for _, payload in database.sent()]
    assert sent == [("tenant", 0), ("tenant", 3)]


def test_schema_found_through_the_search_path_is_sent(database: OrmDatabase) -> None:
    database.sql('CREATE TABLE IF NOT EXISTS "Other schema".point (LIKE point INCLUDING ALL)')
    with database.session() as session:
        session.execute(sa.text("""SET LOCAL search_path = no_such, "Other schema", public"""))
        session.add_all([Point(x=1), Line(length=1)])  # type: ignore[call-arg]
        session.commit()
    assert sorted(payload["schema"] for _, payload in database.sent()) == ["Other schema", "public"]


def test_reflected_table(database: OrmDatabase) -> None:
    database.sql("CREATE TABLE IF NOT EXISTS reflected (id serial PRIMARY KEY, spot point, name text)")

    class Reflected(DeferredReflection):
        __abstract__ = True

    other = registry()

    class Spot(Reflected, other.generate_base()):  # type: ignore[misc]
        __tablename__ = "reflected"

    with pytest.warns(sa.exc.SAWarning, match="Did not recognize type 'point'"):
        Reflected.prepare(database.engine)
    publishes("spots:{name}")(Spot)  # SQLAlchemy accepts no listener before prepare()
    with database.session() as session:
        spot = Spot(spot="(1,2)", name="a")
        session.add(spot)
        session.flush()
        session.refresh(spot)
        session.delete(spot)
        session.commit()
    [(_, insert), (_, delete)] = database.sent()
    assert insert["new"] == delete["old"] == {"id": insert["pk"]["id"], "spot": "(1,2)", "name": "a"}
    other.dispose()


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_scoped_session(database: OrmDatabase) -> None:
    sessions = scoped_session(sessionmaker(database.engine))
    sessions.add(Point(x=1))
    Client(sessions).notify("points:1", {"op": "client", "table": "", "new": 1}, durable=True)
    sessions.add(Point(x=2))
    sessions.commit()
    sessions.remove()
    assert [payload["op"] for _, payload in database.sent()] == ["INSERT", "client", "INSERT"]


# psycopg2 does not support asyncio.
@pytest.mark.parametrize("backend", PSYCOPG_BACKENDS, indirect=True)
def test_async_session(database: OrmDatabase) -> None:
    async def run() -> None:
        engine = create_async_engine(database.url)
        async with AsyncSession(engine) as session:
            point = Point(x=1)
            session.add(point)
            await session.flush()
            session.add(Point(x=2))
            await session.run_sync(lambda own: Client(own).notify("points:1", {"op": "client"}, durable=True))
            point.x = 3
            await session.commit()
            for wrong in (session, await session.connection()):
                with pytest.raises(TypeError, match="run_sync"):
                    Client(wrong).notify("points:1", 1)
        await engine.dispose()

    # In another thread: Playwright, used by other tests, may have left an event loop running in this one.
    in_thread(asyncio.run, run())
    assert [(channel, payload["op"]) for channel, payload in database.sent()] == [
        ("points:1", "INSERT"), ("points:2", "INSERT"), ("points:1", "client"),
        ("points:1", "DELETE"), ("points:3", "INSERT"),
    ]  # fmt: skip
