"""Classes with @publishes for the tests, and helpers."""

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from socketio_pg.orm.hooks import publishes


class Base(DeclarativeBase):
    pass


@publishes("orders:{customer_id}", exclude=["password_hash"])
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None]
    total: Mapped[Any] = mapped_column(sa.Numeric(10, 2), server_default="0")
    state: Mapped[str] = mapped_column(default="new")
    password_hash: Mapped[str] = mapped_column(server_default="secret")
    with_tax: Mapped[Any] = mapped_column(sa.Numeric(10, 2), sa.Computed("total * 2", persisted=True))
    changes: Mapped[int] = mapped_column(default=0, onupdate=lambda context: 7)
    details: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(pg.JSONB))


@publishes("notes:{owner}", columns=["owner", "text"], durable=False)
class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    body: Mapped[str] = mapped_column("text")
    private: Mapped[str] = mapped_column(default="secret")
    big: Mapped[str | None] = mapped_column(deferred=True)


@publishes("members:{team}", exclude=["user_id"])
class Member(Base):
    """A class with a composite key, half of which is not published."""

    __tablename__ = "members"
    team: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    role: Mapped[str]


@publishes("versioned")
class Versioned(Base):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int] = mapped_column()
    touched: Mapped[str] = mapped_column(server_default="created", onupdate=sa.text("'updated'"))
    __mapper_args__ = {"version_id_col": version}


@publishes("all")
@publishes("one:{id}", columns=["id"])
class Twice(Base):
    __tablename__ = "twice"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def add(session: Session, thing: Any) -> Any:
    """Commit ``thing``, remove its message from the outbox, and load it again."""
    session.add(thing)
    session.flush()
    session.execute(sa.text("DELETE FROM socketio_pg.outbox"))
    session.commit()
    session.refresh(thing)
    return thing


def brief(sent: list[tuple[str, Any]]) -> list[Any]:
    """Return channel, op and key of each message."""
    return [(channel, payload["op"], payload["pk"]) for channel, payload in sent]
