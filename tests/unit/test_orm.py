"""@publishes without a database: errors when a class is decorated or configured, and imports."""

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
    """Return a mapped class without the decorator."""

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        customer: Mapped[int] = mapped_column("customer_id")
        a: Mapped[int] = mapped_column("b")
        b: Mapped[int] = mapped_column("c")

    return Order


def test_import_loads_neither_flask_nor_green_threads(root: Path) -> None:
    program = "import sys, json, socketio_pg.orm; json.dump(sorted(sys.modules), sys.stdout)"
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", program],
        cwd=root, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    imported = {name.split(".")[0] for name in json.loads(result.stdout)}
    assert not imported & {*NOT_NEEDED, "psycopg2", "psycopg"}


def test_package_exports_publishes() -> None:
    assert socketio_pg.publishes is publishes


def test_decorator_returns_the_same_class() -> None:
    plain = order()
    assert publishes("orders:{customer}:{customer_id}")(plain) is plain


@pytest.mark.parametrize("channel", ["{}", "a{", "a}", "a:{b", "{{a}}", "{a{b}}", "a:{b}}"])
def test_invalid_template_is_refused(channel: str) -> None:
    with pytest.raises(ConfigurationError, match="a placeholder must be the name of a column in braces"):
        publishes(channel)


@pytest.mark.parametrize("channel", ["", "x" * 64, "socketio_pg", "a*", " a"])
def test_invalid_channel_is_refused(channel: str) -> None:
    with pytest.raises(InvalidChannelError):
        publishes(channel)


def test_missing_channel_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs the name of a channel"):
        publishes(order())  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["columns", "exclude"])
def test_string_instead_of_a_list_is_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}='id'.: must be a list of names"):
        publishes("orders", **{option: "id"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(["orders:{no}"], {}), (["orders"], {"columns": ["id", "no"]}), (["orders"], {"exclude": ["no"]})],
    ids=["channel", "columns", "exclude"],
)
def test_unknown_column_is_refused(arguments: list[str], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="@publishes on Order: the class has no column 'no'"):
        publishes(*arguments, **options)(order())


def test_ambiguous_name_is_refused() -> None:
    """An excluded column must not depend on a guess."""
    with pytest.raises(ConfigurationError, match="'b' is ambiguous: it matches the attributes a, b"):
        publishes("orders", exclude=["b"])(order())
    publishes("orders", exclude=["a", "c"])(order())


def test_duplicate_column_name_is_refused() -> None:
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


def test_class_mapped_to_a_query_is_refused() -> None:
    class Base(DeclarativeBase):
        pass

    table = sa.Table("things", Base.metadata, sa.Column("id", sa.Integer, primary_key=True))

    class Thing(Base):
        __table__ = sa.select(table).subquery()

    with pytest.raises(ConfigurationError, match="not mapped to a table"):
        publishes("things")(Thing)


def test_class_mapped_later_is_checked_then() -> None:
    @publishes("things:{no}")
    class Thing:
        pass

    mapping = registry()
    mapping.map_imperatively(Thing, sa.Table("things", mapping.metadata, sa.Column("id", sa.Integer, primary_key=True)))
    with pytest.raises(ConfigurationError, match="@publishes on Thing: the class has no column 'no'"):
        configure_mappers()
    mapping.dispose()


def test_decorating_does_not_configure_mappers() -> None:
    """Classes can refer by name to classes that are defined later."""

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
