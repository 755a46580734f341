"""@publishes: what is sent for inserts, updates and deletes, when, in which order, and what it costs."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.attributes import flag_modified

from socketio_pg.client import Client
from socketio_pg.errors import (
    InvalidChannelError,
    InvalidRequestError,
    LogNotInstalledError,
    PayloadTooLargeError,
)
from socketio_pg.orm import BATCH, publishes
from tests.postgres.test_client import Ear
from tests.support.orm import DRIVERS, OrmDatabase, orm_database
from tests.support.postgres import Cluster


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
    """A composite key, half of which stays in the database."""

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


@pytest.fixture(scope="module", params=DRIVERS)
def shared(request: pytest.FixtureRequest, postgres: Cluster) -> Iterator[OrmDatabase]:
    with orm_database(postgres, "orm", request.param, Base.metadata) as made:
        yield made


@pytest.fixture
def database(shared: OrmDatabase) -> OrmDatabase:
    shared.sql(f"TRUNCATE {', '.join(Base.metadata.tables)}, socketio_pg.outbox RESTART IDENTITY")
    return shared


@pytest.fixture
def session(database: OrmDatabase) -> Iterator[Session]:
    with database.session() as made:
        yield made


def add(session: Session, thing: Any) -> Any:
    """``thing``, committed and loaded again, and its message taken away."""
    session.add(thing)
    session.flush()
    session.execute(sa.text("DELETE FROM socketio_pg.outbox"))
    session.commit()
    session.refresh(thing)
    return thing


def brief(sent: list[tuple[str, Any]]) -> list[Any]:
    """Channel, op and key of each message."""
    return [(channel, payload["op"], payload["pk"]) for channel, payload in sent]


def order(**values: Any) -> dict[str, Any]:
    """An order's image."""
    common = {
        "id": 1, "customer_id": 5, "total": 0.0, "state": "new", "with_tax": 0.0, "changes": 0, "details": None,
    }  # fmt: skip
    return common | values


# -- messages ----------------------------------------------------------------------------------------------------------


def test_an_insert_with_what_only_the_database_knows(database: OrmDatabase, session: Session) -> None:
    session.add(Order(customer_id=5))
    session.commit()
    assert database.sent() == [
        (
            "orders:5",
            {
                "op": "INSERT", "schema": "public", "table": "orders", "pk": {"id": 1},
                "new": order(), "old": None, "changed": [],
            },
        )
    ]  # fmt: skip


def test_an_update_with_the_row_before(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    found.total = 3
    session.commit()
    assert database.sent() == [
        (
            "orders:5",
            {
                "op": "UPDATE", "schema": "public", "table": "orders", "pk": {"id": 1},
                "new": order(total=3.0, with_tax=6.0, changes=7), "old": order(),
                "changed": ["total", "with_tax", "changes"],
            },
        )
    ]  # fmt: skip


def test_a_delete_with_the_row_that_was(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    session.delete(found)
    session.commit()
    assert database.sent() == [
        (
            "orders:5",
            {
                "op": "DELETE", "schema": "public", "table": "orders", "pk": {"id": 1},
                "new": None, "old": order(), "changed": [],
            },
        )
    ]  # fmt: skip


def test_a_row_that_changes_its_channel(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    found.customer_id, found.state = 6, "moved"
    session.commit()
    common = {"schema": "public", "table": "orders", "pk": {"id": 1}, "changed": [], "moved": True}
    assert database.sent() == [
        ("orders:5", common | {"op": "DELETE", "new": None, "old": order()}),
        ("orders:6", common | {"op": "INSERT", "new": order(customer_id=6, state="moved", changes=7), "old": None}),
    ]


def test_the_old_channel_is_known_of_an_object_that_had_expired(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    session.expire(found)
    found.customer_id = 6
    session.commit()
    assert brief(database.sent()) == [("orders:5", "DELETE", {"id": 1}), ("orders:6", "INSERT", {"id": 1})]
    session.delete(found)
    session.commit()
    [(channel, payload)] = database.sent()
    assert (channel, payload["old"]) == ("orders:6", order(customer_id=6, changes=7))


def test_a_row_without_a_channel_is_not_sent(database: OrmDatabase, session: Session) -> None:
    found = Order(customer_id=None)
    session.add(found)
    session.commit()
    found.state = "still nowhere"
    session.commit()
    assert database.sent() == []
    found.customer_id = 5
    session.commit()
    found.customer_id = None
    session.commit()
    session.delete(found)
    session.commit()
    sent = database.sent()
    assert brief(sent) == [("orders:5", "INSERT", {"id": 1}), ("orders:5", "DELETE", {"id": 1})]
    assert [payload["moved"] for _, payload in sent] == [True, True]


def test_a_column_of_the_key_that_is_excluded_is_nowhere(database: OrmDatabase, session: Session) -> None:
    team = uuid.UUID(int=7)
    member = Member(team=team, user_id=424242, role="reader")
    session.add(member)
    session.commit()
    member.role = "writer"
    session.commit()
    member.user_id = 434343
    session.commit()
    session.delete(member)
    session.commit()
    sent = database.sent()
    assert [(channel, payload["op"], payload["pk"]) for channel, payload in sent] == [
        (f"members:{team}", operation, {"team": str(team)}) for operation in ("INSERT", "UPDATE", "DELETE")
    ]
    assert sent[1][1]["changed"] == ["role"]
    assert "4242" not in str(sent)
    assert "user_id" not in str(sent)


def test_what_is_excluded_is_nowhere(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5, password_hash="hash 1"))
    found.password_hash, found.state = "hash 2", "paid"
    session.flush()
    session.delete(found)
    session.commit()
    sent = database.sent()
    assert [payload["op"] for _, payload in sent] == ["UPDATE", "DELETE"]
    assert "hash" not in str(sent)


def test_what_comes_along_with_a_change_that_is_excluded(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    found.password_hash = "hash"
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["changed"], payload["new"]["changes"]) == (["changes"], 7)
    session.refresh(found)
    found.password_hash = "another hash"  # and 7 stays 7
    session.commit()
    assert database.sent() == []


def test_an_update_in_which_nothing_visible_changes_is_not_sent(database: OrmDatabase, session: Session) -> None:
    twice = add(session, Twice(name="a"))
    twice.name = "b"
    session.commit()
    # The other hook shows only the id.
    assert [channel for channel, _ in database.sent()] == ["all"]
    session.refresh(twice)
    twice.name = "c"
    twice.name = "b"
    session.commit()
    session.refresh(twice)
    flag_modified(twice, "name")  # an UPDATE, and nobody knows what the name was
    session.commit()
    assert [(channel, payload["changed"]) for channel, payload in database.sent()] == [("all", ["name"])]


def test_several_hooks_on_a_class(database: OrmDatabase, session: Session) -> None:
    session.add(Twice(name="a"))
    session.commit()
    assert {channel: payload["new"] for channel, payload in database.sent()} == {
        "all": {"id": 1, "name": "a"},
        "one:1": {"id": 1},
    }


def test_a_changed_value_that_was_not_loaded_is_not_in_old(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    session.expire(found)
    found.state = "paid"
    session.commit()
    [(_, payload)] = database.sent()
    assert set(order()) - set(payload["old"]) == {"state", "with_tax", "changes"}
    assert payload["changed"] == ["state", "with_tax", "changes"]
    session.expire(found)
    _ = found.customer_id  # loads all of it
    found.state = "sent"
    session.commit()
    [(_, payload)] = database.sent()
    assert payload["old"] == order(state="paid", changes=7)
    assert payload["changed"] == ["state"]


def test_old_is_what_the_session_had_loaded(database: OrmDatabase, session: Session) -> None:
    """What others have changed since is not undone in it, apart from the columns that this session changes."""
    found = add(session, Order(customer_id=5))
    _ = found.state
    database.sql("UPDATE orders SET total = 9, state = 'other'")
    found.state = "mine"
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["old"]["state"], payload["old"]["total"], payload["new"]["total"]) == ("new", 9, 9)


def test_values_that_are_expressions(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5, total=1))
    found.total = Order.total + 1
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["old"]["total"], payload["new"]["total"], payload["new"]["with_tax"]) == (1, 2, 4)
    found.customer_id = sa.select(sa.literal(8)).scalar_subquery()
    session.commit()
    assert brief(database.sent()) == [("orders:5", "DELETE", {"id": 1}), ("orders:8", "INSERT", {"id": 1})]
    session.add(Order(customer_id=sa.select(sa.literal(9)).scalar_subquery()))
    session.commit()
    assert brief(database.sent()) == [("orders:9", "INSERT", {"id": 2})]


def test_a_value_that_is_changed_in_place(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5, details={"a": 1}))
    assert found.details is not None
    found.details["b"] = 2
    session.commit()
    [(_, payload)] = database.sent()
    assert payload["new"]["details"] == {"a": 1, "b": 2}
    assert "details" in payload["changed"]
    assert "details" not in payload["old"]


def test_versions_and_server_side_onupdate(database: OrmDatabase, session: Session) -> None:
    thing = add(session, Versioned(name="a"))
    thing.name = "b"
    session.commit()
    [(_, payload)] = database.sent()
    assert payload["old"] == {"id": 1, "name": "a", "version": 1, "touched": "created"}
    assert payload["new"] == {"id": 1, "name": "b", "version": 2, "touched": "updated"}
    assert payload["changed"] == ["name", "version", "touched"]


def test_a_primary_key_that_changes(database: OrmDatabase, session: Session) -> None:
    thing = add(session, Twice(name="a"))
    thing.id = 9
    session.commit()
    sent = database.sent()
    assert brief(sent) == [("one:1", "DELETE", {"id": 1}), ("one:9", "INSERT", {"id": 9}), ("all", "UPDATE", {"id": 9})]
    assert sent[2][1]["old"] == {"id": 1, "name": "a"}


def test_deleted_and_added_again_in_one_flush(database: OrmDatabase, session: Session) -> None:
    session.delete(add(session, Order(customer_id=5, state="first")))
    session.add(Order(id=1, customer_id=6, state="second"))
    session.commit()
    assert brief(database.sent()) == [("orders:5", "DELETE", {"id": 1}), ("orders:6", "INSERT", {"id": 1})]


def test_a_merge(database: OrmDatabase, session: Session) -> None:
    add(session, Order(customer_id=5))
    session.merge(Order(id=1, state="merged"))
    session.merge(Order(id=2, customer_id=6))
    session.commit()
    assert brief(database.sent()) == [("orders:5", "UPDATE", {"id": 1}), ("orders:6", "INSERT", {"id": 2})]


# -- the transaction ---------------------------------------------------------------------------------------------------


def test_several_flushes_and_savepoints(database: OrmDatabase, session: Session) -> None:
    session.add(Order(customer_id=1))
    session.flush()
    with session.begin_nested() as savepoint:
        session.add(Order(customer_id=2))
        session.flush()
        savepoint.rollback()
    with session.begin_nested():
        session.add(Order(customer_id=3))
    assert database.sent() == []
    session.commit()
    assert [channel for channel, _ in database.sent()] == ["orders:1", "orders:3"]


def test_a_rollback_sends_nothing(database: OrmDatabase, session: Session) -> None:
    session.add(Order(customer_id=1))
    session.flush()
    session.rollback()
    session.add(Order(customer_id=2))
    session.commit()
    assert [channel for channel, _ in database.sent()] == ["orders:2"]


def test_a_flush_that_fails_leaves_nothing_behind(database: OrmDatabase, session: Session) -> None:
    session.add_all([Order(id=1, customer_id=1), Versioned(name="b", touched=sa.text("no_such_column"))])
    with pytest.raises(DBAPIError):
        session.commit()
    session.rollback()
    session.add_all([Order(id=2, customer_id=2), Order(id=2, customer_id=2)])
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    session.add(Order(id=3, customer_id=3))
    session.commit()
    assert [channel for channel, _ in database.sent()] == ["orders:3"]


def test_client_and_hooks_keep_the_order_of_the_program(database: OrmDatabase, session: Session) -> None:
    client = Client(session)
    session.add(Order(customer_id=5))
    client.notify("orders:5", {"op": "between", "pk": 1}, durable=True)
    session.add(Order(customer_id=5))
    session.commit()
    assert [payload["op"] for _, payload in database.sent()] == ["INSERT", "between", "INSERT"]
    with session.no_autoflush:
        session.add(Order(customer_id=5))
        client.notify("orders:5", {"op": "first", "pk": 1}, durable=True)
    session.commit()
    assert [payload["op"] for _, payload in database.sent()] == ["first", "INSERT"]


def test_client_within_a_flush(database: OrmDatabase, session: Session) -> None:
    @sa.event.listens_for(session, "after_flush")
    def publish(session: Session, _: Any) -> None:
        Client(session).notify("flushed", {"op": "mine", "pk": len(session.new)}, durable=True)

    session.add(Order(customer_id=5))
    session.commit()
    assert sorted(payload["op"] for _, payload in database.sent()) == ["INSERT", "mine"]


def test_bulk_operations_pass_the_hook_by(database: OrmDatabase, session: Session) -> None:
    session.execute(sa.insert(Order), [{"customer_id": 1}, {"customer_id": 2}])
    session.bulk_insert_mappings(sa.inspect(Order), [{"customer_id": 3}])
    session.bulk_save_objects([Order(customer_id=4)])
    session.execute(sa.update(Order).values(state="bulk"))
    session.execute(sa.delete(Order).where(Order.customer_id == 1))
    session.commit()
    assert database.sent() == []


# -- NOTIFY ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ear(shared: OrmDatabase, postgres: Cluster) -> Iterator[Ear]:
    made = Ear(postgres, "notes:me", database="orm")
    yield made
    made.close()


def test_without_durable_it_is_a_notify(database: OrmDatabase, session: Session, ear: Ear) -> None:
    note = Note(owner="me", body="hello")
    session.add(note)
    session.commit()
    note.body = "bye"
    session.commit()
    note.private = "other secret"
    session.commit()
    session.delete(note)
    session.rollback()
    assert ear.heard() == [
        {
            "op": "INSERT", "schema": "public", "table": "notes", "pk": {},
            "new": {"owner": "me", "text": "hello"}, "old": None, "changed": [],
        },
        {
            "op": "UPDATE", "schema": "public", "table": "notes", "pk": {},
            "new": {"owner": "me", "text": "bye"}, "old": {"owner": "me"}, "changed": ["text"],
        },
    ]  # fmt: skip
    assert database.sent() == []


def test_a_notify_that_would_be_too_large_comes_without_the_row(
    database: OrmDatabase, session: Session, ear: Ear
) -> None:
    note = Note(owner="me", body="é" * 5000)
    session.add(note)
    session.commit()
    assert ear.heard() == [
        {
            "op": "INSERT", "schema": "public", "table": "notes", "pk": {}, "truncated": True,
        }
    ]  # fmt: skip


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_invalid_channel_undoes_the_flush(database: OrmDatabase, session: Session) -> None:
    for owner, problem in [("*", "'\\*'"), ("x" * 60, "63 bytes"), ("a\nb", "control"), ("a ", "space")]:
        session.add_all([Order(customer_id=1), Note(owner=owner, body="")])
        with pytest.raises(InvalidChannelError, match=f"@publishes on Note: channel must .*{problem}"):
            session.commit()
        session.rollback()
    session.add(Order(customer_id=2))
    session.commit()
    assert [channel for channel, _ in database.sent()] == ["orders:2"]
    assert database.sql("SELECT count(*) FROM notes") == [(0,)]


def test_a_row_that_is_too_large_for_the_log(database: OrmDatabase, session: Session) -> None:
    session.add(Twice(name="x" * 1_000_001))
    with pytest.raises(PayloadTooLargeError, match="at most 1000000 are allowed"):
        session.commit()
    session.rollback()
    assert database.sql("SELECT count(*) FROM twice") == [(0,)]


def test_without_the_log_it_says_what_to_do(database: OrmDatabase, session: Session) -> None:
    session.execute(sa.text("DROP SCHEMA socketio_pg CASCADE"))
    session.add(Order(customer_id=1))
    with pytest.raises(LogNotInstalledError, match="socketio-pg init"):
        session.flush()
    session.rollback()


def test_a_row_that_cannot_be_read_again(database: OrmDatabase, session: Session) -> None:
    session.execute(
        sa.text(
            "CREATE FUNCTION remove() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN DELETE FROM twice WHERE id = new.id; RETURN NULL; END'"
        )
    )
    session.execute(sa.text("CREATE TRIGGER remove AFTER INSERT ON twice FOR EACH ROW EXECUTE FUNCTION remove()"))
    session.add(Twice(name="a"))
    with pytest.raises(InvalidRequestError, match="cannot be read after it was written"):
        session.flush()
    session.rollback()


def test_another_database_is_refused() -> None:
    engine = sa.create_engine("sqlite://")
    Twice.__table__.create(engine)  # type: ignore[attr-defined]
    with Session(engine) as session:
        session.add(Twice(name="a"))
        with pytest.raises(Exception, match="@publishes on Twice: that needs PostgreSQL, not sqlite"):
            session.flush()
    engine.dispose()


# -- what it costs -----------------------------------------------------------------------------------------------------


def ours(statements: list[str]) -> int:
    """How many of ``statements`` read rows, or publish."""
    return sum("to_jsonb" in text or "WITH ORDINALITY" in text for text in statements)


def test_two_round_trips_for_a_flush_whatever_is_in_it(database: OrmDatabase, session: Session) -> None:
    orders = [add(session, Order(customer_id=n)) for n in range(6)]
    for found in orders:
        session.refresh(found)  # the commits have expired them
    for n in range(50):
        session.add_all([Order(customer_id=n), Versioned(name=str(n)), Member(team=uuid.uuid4(), user_id=1, role="x")])
    orders[0].state, orders[1].total, orders[2].customer_id = "x", 3, 77
    session.delete(orders[3])
    session.delete(orders[4])
    with database.counted() as statements:
        session.flush()
        assert ours(statements) == 2
    session.commit()
    assert len(database.sent()) == 150 + 4 + 2


def test_nothing_is_asked_when_nothing_is_to_be_sent(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    found.state = "x"
    found.state = "new"
    with database.counted() as statements:
        session.flush()
        assert statements == []
    twice = add(session, Twice(name="a"))
    session.delete(twice)
    session.expunge(twice)
    with database.counted() as statements:
        session.flush()
        assert statements == []


def test_many_rows_go_in_batches_and_in_order(database: OrmDatabase, session: Session) -> None:
    count = 2 * BATCH + 1
    session.add_all([Twice(id=n, name="a") for n in range(count)])
    with database.counted() as statements:
        session.flush()
        assert ours(statements) == 2 * (2 * count // BATCH + 1)
    session.commit()
    sent = [payload["pk"]["id"] for channel, payload in database.sent() if channel == "all"]
    assert sent == list(range(count))
