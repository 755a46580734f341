"""@publishes without a database: what it refuses when a class is decorated or configured, and what it imports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column, registry, relationship

import socketio_pg
from socketio_pg.core.errors import ConfigurationError, InvalidChannelError
from socketio_pg.orm.hooks import publishes
from tests.unit.test_client import NOT_NEEDED


def order() -> type[Any]:
    """A mapped class that is not decorated."""

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        customer: Mapped[int] = mapped_column("customer_id")
        a: Mapped[int] = mapped_column("b")
        b: Mapped[int] = mapped_column("c")

    return Order


def test_importing_it_brings_neither_flask_nor_eventlet(root: Path) -> None:
    program = "import sys, json, socketio_pg.orm; json.dump(sorted(sys.modules), sys.stdout)"
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", program],
        cwd=root, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    imported = {name.split(".")[0] for name in json.loads(result.stdout)}
    assert not imported & {*NOT_NEEDED, "psycopg2", "psycopg"}


def test_the_package_has_it() -> None:
    assert socketio_pg.publishes is publishes


def test_the_class_is_what_it_was() -> None:
    plain = order()
    assert publishes("orders:{customer}:{customer_id}")(plain) is plain


@pytest.mark.parametrize("channel", ["{}", "a{", "a}", "a:{b", "{{a}}", "{a{b}}", "a:{b}}"])
def test_a_template_that_cannot_be_read(channel: str) -> None:
    with pytest.raises(ConfigurationError, match="a placeholder must be the name of a column in braces"):
        publishes(channel)


@pytest.mark.parametrize("channel", ["", "x" * 64, "socketio_pg", "a*", " a"])
def test_a_fixed_name_that_is_not_allowed(channel: str) -> None:
    with pytest.raises(InvalidChannelError):
        publishes(channel)


def test_a_decorator_without_a_channel() -> None:
    with pytest.raises(ConfigurationError, match="needs the name of a channel"):
        publishes(order())  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["columns", "exclude"])
def test_a_text_is_no_list_of_names(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}='id'.: must be a list of names"):
        publishes("orders", **{option: "id"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(["orders:{no}"], {}), (["orders"], {"columns": ["id", "no"]}), (["orders"], {"exclude": ["no"]})],
    ids=["channel", "columns", "exclude"],
)
def test_a_column_that_is_not_there(arguments: list[str], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="@publishes on Order: the class has no column 'no'"):
        publishes(*arguments, **options)(order())


def test_a_name_that_may_be_two() -> None:
    """What is to be excluded must not depend on a guess."""
    with pytest.raises(ConfigurationError, match="'b' is ambiguous: it matches the attributes a, b"):
        publishes("orders", exclude=["b"])(order())
    publishes("orders", exclude=["a", "c"])(order())


def test_two_columns_of_one_name() -> None:
    class Base(DeclarativeBase):
        pass

    first = sa.Table("first", Base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("at", sa.Text))
    second = sa.Table(
        "second", Base.metadata, sa.Column("id", sa.ForeignKey(first.c.id), primary_key=True), sa.Column("at", sa.Text)
    )

    class First(Base):
        __table__ = first

    class Second(First):
        __table__ = second
        at_second = second.c.at

    with pytest.raises(ConfigurationError, match="several columns 'at'"):
        publishes("second")(Second)
    publishes("second", exclude=["at_second"])(Second)


def test_a_class_that_is_mapped_to_a_query() -> None:
    class Base(DeclarativeBase):
        pass

    table = sa.Table("things", Base.metadata, sa.Column("id", sa.Integer, primary_key=True))

    class Thing(Base):
        __table__ = sa.select(table).subquery()

    with pytest.raises(ConfigurationError, match="not mapped to a table"):
        publishes("things")(Thing)


def test_a_class_that_is_mapped_later_is_checked_then() -> None:
    @publishes("things:{no}")
    class Thing:
        pass

    mapping = registry()
    mapping.map_imperatively(Thing, sa.Table("things", mapping.metadata, sa.Column("id", sa.Integer, primary_key=True)))
    with pytest.raises(ConfigurationError, match="@publishes on Thing: the class has no column 'no'"):
        configure_mappers()
    mapping.dispose()


def test_decorating_does_not_configure_what_is_not_there_yet() -> None:
    """Classes refer to one another by name, to some that come later."""

    class Base(DeclarativeBase):
        pass

    @publishes("children:{parent_id}")
    class Child(Base):
        __tablename__ = "child"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(sa.ForeignKey("parent.id"))
        parent: Mapped["Parent"] = relationship("Parent")

    class Parent(Base):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)

    Base.registry.configure()
    assert Child.parent.property.mapper.class_ is Parent
