"""@publishes with inheritance: joined tables, a single table, concrete tables, mixins."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
)

from socketio_pg.orm.hooks import publishes
from tests.support.orm import OrmDatabase, images, orm_database
from tests.support.postgres import Cluster


class Base(DeclarativeBase):
    pass


@publishes("staff:{id}")
class Employee(Base):
    __tablename__ = "employee"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}


class Engineer(Employee):
    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(sa.ForeignKey("employee.id"), primary_key=True)
    secret_skill: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer"}


@publishes("managers")
class Manager(Employee):
    __tablename__ = "manager"
    id: Mapped[int] = mapped_column(sa.ForeignKey("employee.id"), primary_key=True)
    budget: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "manager"}


@publishes("animals")
class Animal(Base):
    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


@publishes("dogs")
class Dog(Animal):
    tricks: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Cat(Animal):
    moods: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "cat"}


@publishes("places")
class Place(ConcreteBase, Base):
    __tablename__ = "place"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "place", "concrete": True}


class City(Place):
    __tablename__ = "city"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    people: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "city", "concrete": True}


@publishes("mixed:{id}")
class Named:
    """A mixin without a table: its subclasses have tables."""

    name: Mapped[str]


class One(Named, Base):
    __tablename__ = "one"
    id: Mapped[int] = mapped_column(primary_key=True)


class Two(Named, Base):
    __tablename__ = "two"
    id: Mapped[int] = mapped_column(primary_key=True)
    more: Mapped[int] = mapped_column(default=2)


@pytest.fixture(scope="module")
def shared(backend: tuple[Cluster, str]) -> Iterator[OrmDatabase]:
    with orm_database(*backend, "orm_inheritance", Base.metadata) as made:
        yield made


@pytest.fixture
def database(shared: OrmDatabase) -> OrmDatabase:
    return shared.empty(Base.metadata)


def test_joined_subclass_is_sent_as_its_decorated_base(database: OrmDatabase, session: Session) -> None:
    engineer = Engineer(name="E", secret_skill="juggling")
    session.add(engineer)
    session.commit()
    image = {"id": 1, "name": "E", "kind": "engineer"}
    assert images(database.sent()) == [("staff:1", "INSERT", "employee", image)]
    engineer.secret_skill = "magic"
    session.commit()
    assert database.sent() == []
    engineer.name = "F"
    session.commit()
    session.delete(engineer)
    session.commit()
    image = image | {"name": "F"}
    assert images(database.sent()) == [
        ("staff:1", "UPDATE", "employee", image), ("staff:1", "DELETE", "employee", image),
    ]  # fmt: skip


def test_decorated_joined_subclass_includes_both_tables(database: OrmDatabase, session: Session) -> None:
    manager = Manager(name="M", budget=1)
    session.add(manager)
    session.commit()
    session.refresh(manager)
    manager.budget = 2
    session.commit()
    small, whole = {"id": 1, "name": "M", "kind": "manager"}, {"id": 1, "name": "M", "kind": "manager", "budget": 1}
    sent = database.sent()
    assert sorted(images(sent[:2])) == [
        ("managers", "INSERT", "manager", whole),
        ("staff:1", "INSERT", "employee", small),
    ]
    [(_, payload)] = sent[2:]
    assert (payload["table"], payload["old"], payload["changed"]) == ("manager", whole, ["budget"])
    assert payload["new"] == whole | {"budget": 2}


def test_single_table_inheritance(database: OrmDatabase, session: Session) -> None:
    session.add_all([Animal(), Dog(tricks=3), Cat(moods=5)])
    session.commit()
    assert sorted(images(database.sent()), key=str) == [
        ("animals", "INSERT", "animal", {"id": 1, "kind": "animal"}),
        ("animals", "INSERT", "animal", {"id": 2, "kind": "dog"}),
        ("animals", "INSERT", "animal", {"id": 3, "kind": "cat"}),
        ("dogs", "INSERT", "animal", {"id": 2, "kind": "dog", "tricks": 3}),
    ]


def test_concrete_table_inheritance(database: OrmDatabase, session: Session) -> None:
    session.add_all([Place(name="Moon"), City(name="Rome", people=3)])
    session.commit()
    assert sorted(images(database.sent()), key=str) == [
        ("places", "INSERT", "city", {"id": 1, "name": "Rome", "people": 3}),
        ("places", "INSERT", "place", {"id": 1, "name": "Moon"}),
    ]


def test_decorated_mixin_applies_to_its_subclasses(database: OrmDatabase, session: Session) -> None:
    session.add_all([One(name="1"), Two(name="2")])
    session.commit()
    assert sorted(images(database.sent()), key=str) == [
        ("mixed:1", "INSERT", "one", {"id": 1, "name": "1"}),
        ("mixed:1", "INSERT", "two", {"id": 1, "name": "2", "more": 2}),
    ]
