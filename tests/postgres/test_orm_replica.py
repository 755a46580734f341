"""@publishes: a replica that applies the messages of each channel equals the table, after random work of a session."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from socketio_pg.orm.hooks import publishes
from tests.support.nightly import sampled
from tests.support.orm import DRIVERS, OrmDatabase, orm_database
from tests.support.postgres import Cluster

STEPS = 60


class Base(DeclarativeBase):
    pass


@publishes("things:{group}", exclude=["secret"])
class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    group: Mapped[int | None]
    number: Mapped[Any] = mapped_column(sa.Numeric, server_default="1")
    text: Mapped[str] = mapped_column(default="")
    secret: Mapped[str] = mapped_column(default="secret")
    double: Mapped[Any] = mapped_column(sa.Numeric, sa.Computed("number * 2", persisted=True))
    writes: Mapped[int] = mapped_column(default=0, onupdate=sa.text("writes + 1"))


@pytest.fixture(scope="module", params=DRIVERS)
def database(request: pytest.FixtureRequest, newest_pg: Cluster) -> Iterator[OrmDatabase]:
    with orm_database(newest_pg, request.param, "orm_replica", Base.metadata) as made:
        yield made


def work(session: Session, things: list[Thing], choose: random.Random) -> None:
    """Do one random step, on an object or on the transaction."""
    alive = [thing for thing in things if thing in session and thing not in session.deleted]
    thing = choose.choice(alive) if alive else None
    step = choose.choice(["add", "add", "set", "set", "set", "move", "move", "key", "delete", "expire", "expression",
                          "secret", "again", "flush", "commit", "rollback", "savepoint"])  # fmt: skip
    if step == "add" or thing is None:
        things.append(Thing(group=choose.choice([None, 1, 2, 3]), text=str(choose.random())))
        session.add(things[-1])
    elif step == "set":
        thing.text = choose.choice(["", "a", "b"])
        thing.number = choose.randrange(3)
    elif step == "move":
        thing.group = choose.choice([None, 1, 2, 3])
    elif step == "key":
        thing.id = choose.randrange(10**6, 10**9)
    elif step == "delete":
        session.flush()
        session.delete(thing)
    elif step == "expire":
        session.flush()
        session.expire(thing)
    elif step == "expression":
        session.flush()
        thing.number = Thing.number + 1
    elif step == "secret":
        thing.secret = str(choose.random())
    elif step == "again":
        session.flush()
        number = thing.id
        session.delete(thing)
        things.append(Thing(id=number, group=choose.choice([None, 1, 2]), text="again"))
        session.add(things[-1])
    elif step == "savepoint":
        with session.begin_nested() as savepoint:
            thing.group, thing.text = choose.choice([None, 1, 2, 3]), "in a savepoint"
            session.flush()
            if choose.random() < 0.5:
                savepoint.rollback()
    else:
        getattr(session, step)()


def apply_message(replica: dict[str, dict[int, Any]], channel: str, payload: dict[str, Any]) -> None:
    rows = replica.setdefault(channel, {})
    known = payload["pk"]["id"]
    if payload["op"] == "INSERT":
        assert known not in rows
        rows[known] = payload["new"]
        return
    before = payload["old"]
    old = rows.pop(before["id"])
    # The old image may be incomplete, but its values are correct.
    assert {name: old[name] for name in before} == before
    if payload["op"] == "DELETE":
        assert known == before["id"]
        return
    rows[known] = payload["new"]
    assert {name for name in old if old[name] != payload["new"][name]} <= set(payload["changed"])


@pytest.mark.parametrize("seed", sampled(range(12), lambda seed: seed < 6))
def test_replica_equals_the_table(database: OrmDatabase, seed: int) -> None:
    database.sql("TRUNCATE things, socketio_pg.outbox RESTART IDENTITY")
    choose = random.Random(seed)
    replica: dict[str, dict[int, Any]] = {}
    things: list[Thing] = []
    with database.session() as session:
        for _ in range(STEPS):
            work(session, things, choose)
            for channel, payload in database.sent():
                apply_message(replica, channel, payload)
        session.commit()
        for channel, payload in database.sent():
            apply_message(replica, channel, payload)
    rows = database.sql('SELECT "group", to_jsonb(t) - \'secret\' FROM things AS t WHERE "group" IS NOT NULL')
    expected: dict[str, dict[int, Any]] = {}
    for group, row in rows:
        expected.setdefault(f"things:{group}", {})[row["id"]] = row
    assert {channel: rows for channel, rows in replica.items() if rows} == expected
