"""@publishes: transactions, the order of messages, errors, and the number of statements."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from socketio_pg.client import Client
from socketio_pg.core.errors import LogNotInstalledError
from socketio_pg.orm.hooks import BATCH
from socketio_pg.postgres import schema
from tests.postgres.test_client import Receiver
from tests.support.orm import OrmDatabase, orm_database
from tests.support.orm_classes import Base, Member, Note, Order, Twice, Versioned, add
from tests.support.postgres import Cluster

pytestmark = pytest.mark.majors


@pytest.fixture(scope="module")
def shared(backend: tuple[Cluster, str]) -> Iterator[OrmDatabase]:
    with orm_database(*backend, "orm_transactions", Base.metadata) as made:
        yield made


@pytest.fixture
def database(shared: OrmDatabase) -> OrmDatabase:
    return shared.empty(Base.metadata)


# -- the transaction ---------------------------------------------------------------------------------------------------


def test_flushes_and_savepoints_are_sent_at_commit(database: OrmDatabase, session: Session) -> None:
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


def test_rollback_sends_nothing(database: OrmDatabase, session: Session) -> None:
    session.add(Order(customer_id=1))
    session.flush()
    session.rollback()
    session.add(Order(customer_id=2))
    session.commit()
    assert [channel for channel, _ in database.sent()] == ["orders:2"]


def test_failed_flush_sends_nothing(database: OrmDatabase, session: Session) -> None:
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


def test_client_and_hooks_publish_in_program_order(database: OrmDatabase, session: Session) -> None:
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


def test_client_can_publish_in_after_flush(database: OrmDatabase, session: Session) -> None:
    @sa.event.listens_for(session, "after_flush")
    def publish(session: Session, _: Any) -> None:
        Client(session).notify("flushed", {"op": "mine", "pk": len(session.new)}, durable=True)

    session.add(Order(customer_id=5))
    session.commit()
    assert sorted(payload["op"] for _, payload in database.sent()) == ["INSERT", "mine"]


def test_bulk_operations_send_nothing(database: OrmDatabase, session: Session) -> None:
    session.execute(sa.insert(Order), [{"customer_id": 1}, {"customer_id": 2}])
    session.bulk_insert_mappings(sa.inspect(Order), [{"customer_id": 3}])
    session.bulk_save_objects([Order(customer_id=4)])
    session.execute(sa.update(Order).values(state="bulk"))
    session.execute(sa.delete(Order).where(Order.customer_id == 1))
    session.commit()
    assert database.sent() == []


# -- NOTIFY ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver(shared: OrmDatabase, backend: tuple[Cluster, str]) -> Iterator[Receiver]:
    made = Receiver(backend[0], "notes:me", database="orm_transactions")
    yield made
    made.close()


def test_hook_without_durable_uses_notify(database: OrmDatabase, session: Session, receiver: Receiver) -> None:
    note = Note(owner="me", body="hello")
    session.add(note)
    session.commit()
    note.body = "bye"
    session.commit()
    note.private = "other secret"
    session.commit()
    session.delete(note)
    session.rollback()
    assert receiver.received() == [
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


def test_too_large_notify_is_sent_without_the_row(database: OrmDatabase, session: Session, receiver: Receiver) -> None:
    note = Note(owner="me", body="é" * 5000)
    session.add(note)
    session.commit()
    assert receiver.received() == [
        {
            "op": "INSERT", "schema": "public", "table": "notes", "pk": {}, "truncated": True, "reason": "too_large",
        }
    ]  # fmt: skip


# -- errors ------------------------------------------------------------------------------------------------------------


def test_row_with_an_invalid_channel_is_written_and_logged(
    database: OrmDatabase, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    for owner, problem in [("*", "'*'"), ("x" * 60, "63 bytes"), ("a\nb", "control"), ("a ", "space")]:
        session.add_all([Order(customer_id=1), Note(owner=owner, body="")])
        session.commit()
        last = caplog.messages[-1]
        assert last.startswith("@publishes on Note: a row is not published: channel must ")
        assert problem in last
        assert [channel for channel, _ in database.sent()] == ["orders:1"]
    assert database.sql("SELECT count(*) FROM notes") == [(4,)]


def test_row_with_an_invalid_channel_can_be_corrected(
    database: OrmDatabase, session: Session, receiver: Receiver
) -> None:
    database.sql("INSERT INTO notes (owner, text, private) VALUES ('*', 'a', ''), ('*', 'b', '')")
    first, second = session.scalars(sa.select(Note).order_by(Note.id))
    first.body = "still nowhere"
    session.commit()
    first.owner = "me"
    session.delete(second)
    session.commit()
    sent = [(payload["op"], payload["new"]["text"]) for payload in receiver.received()]
    assert sent == [("INSERT", "still nowhere")]


def test_missing_log_error_says_what_to_do(database: OrmDatabase, session: Session) -> None:
    session.execute(sa.text("DROP SCHEMA socketio_pg CASCADE"))
    session.add(Order(customer_id=1))
    with pytest.raises(LogNotInstalledError, match="socketio-pg init"):
        session.flush()
    session.rollback()


def test_role_needs_no_privileges_on_excluded_columns(database: OrmDatabase, backend: tuple[Cluster, str]) -> None:
    if not database.sql("SELECT 1 FROM pg_roles WHERE rolname = 'orm_publisher'"):
        database.sql("CREATE ROLE orm_publisher LOGIN")
    install = schema.statements(1_000_000, publisher_role="orm_publisher")
    connection = backend[0].connect("orm_transactions")
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(install)
        cursor.execute(
            "GRANT SELECT (id, customer_id, total, state, with_tax, changes, details), INSERT, UPDATE, DELETE"
            " ON orders TO orm_publisher; GRANT USAGE ON SEQUENCE orders_id_seq TO orm_publisher"
        )
    engine = sa.create_engine(database.url.replace("postgres@", "orm_publisher@"))
    with Session(engine) as session:
        # The role has no SELECT on the excluded column password_hash.
        found = Order(customer_id=5, password_hash="hash")
        session.add(found)
        session.commit()
    engine.dispose()
    assert [channel for channel, _ in database.sent()] == ["orders:5"]


def test_other_database_systems_are_refused() -> None:
    engine = sa.create_engine("sqlite://")
    Twice.__table__.create(engine)  # type: ignore[attr-defined]
    with Session(engine) as session:
        session.add(Twice(name="a"))
        with pytest.raises(Exception, match="@publishes on Twice: needs PostgreSQL, not sqlite"):
            session.flush()
    engine.dispose()


# -- the number of statements ------------------------------------------------------------------------------------------


def hook_statements(statements: list[str]) -> int:
    """Return how many of ``statements`` the hook has executed, to read rows or to publish."""
    return sum("to_jsonb" in text or "WITH ORDINALITY" in text for text in statements)


def test_flush_costs_two_round_trips(database: OrmDatabase, session: Session) -> None:
    orders = [add(session, Order(customer_id=n)) for n in range(6)]
    for found in orders:
        session.refresh(found)  # the commits have expired the objects
    for n in range(50):
        session.add_all([Order(customer_id=n), Versioned(name=str(n)), Member(team=uuid.uuid4(), user_id=1, role="x")])
    orders[0].state, orders[1].total, orders[2].customer_id = "x", 3, 77
    session.delete(orders[3])
    session.delete(orders[4])
    with database.counted() as statements:
        session.flush()
        assert hook_statements(statements) == 2
    session.commit()
    assert len(database.sent()) == 150 + 4 + 2


def test_flush_without_messages_costs_nothing(database: OrmDatabase, session: Session) -> None:
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


def test_many_rows_are_sent_in_order_in_batches(database: OrmDatabase, session: Session) -> None:
    count = 2 * BATCH + 1
    session.add_all([Twice(id=n, name="a") for n in range(count)])
    with database.counted() as statements:
        session.flush()
        assert hook_statements(statements) == 2 * (2 * count // BATCH + 1)
    session.commit()
    sent = [payload["pk"]["id"] for channel, payload in database.sent() if channel == "all"]
    assert sent == list(range(count))
