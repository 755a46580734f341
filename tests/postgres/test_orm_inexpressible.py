"""@publishes: what a message cannot express never fails the application's write."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from socketio_pg.orm.hooks import publishes
from tests.support.orm import OrmDatabase, orm_database
from tests.support.postgres import Cluster

#: JSON that PostgreSQL stores as json, and cannot convert to jsonb.
NUL = {"a": "\0"}


class Fragile(sa.types.UserDefinedType[str]):
    """A type whose cast to JSON raises an error."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "fragile"


class Stubborn(sa.TypeDecorator[str]):
    """A type that reads values that it refuses to write."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        if value == "legacy":
            raise ValueError(value)
        return value


class Base(DeclarativeBase):
    pass


@publishes("documents:{owner}")
@publishes("all", columns=["id", "owner"])
class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(default="me")
    body: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    note: Mapped[str | None] = mapped_column(Stubborn)


@publishes("fragile")
class Broken(Base):
    __tablename__ = "broken"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[str | None] = mapped_column(Fragile)


@publishes("by:{key}")
class Keyed(Base):
    __tablename__ = "keyed"
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[Any] = mapped_column(sa.JSON)


@publishes("large")
class Large(Base):
    __tablename__ = "large"
    id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture(scope="module")
def shared(backend: tuple[Cluster, str]) -> Iterator[OrmDatabase]:
    def prepare(made: OrmDatabase) -> None:
        made.sql("CREATE TYPE fragile AS ENUM ('good', 'bad')")
        made.sql(
            "CREATE FUNCTION as_json(value fragile) RETURNS json LANGUAGE plpgsql AS"
            " 'BEGIN IF value = ''bad'' THEN RAISE EXCEPTION ''no''; END IF; RETURN to_json(value::text); END'"
        )
        made.sql("CREATE CAST (fragile AS json) WITH FUNCTION as_json(fragile)")

    with orm_database(*backend, "orm_inexpressible", Base.metadata, prepare) as made:
        yield made


@pytest.fixture
def database(shared: OrmDatabase) -> OrmDatabase:
    return shared.empty(Base.metadata)


def bare(op: str, pk: int, reason: str = "no_json", table: str = "documents", **more: Any) -> dict[str, Any]:
    body = {"op": op, "schema": "public", "table": table, "pk": {"id": pk}}
    return body | more | {"truncated": True, "reason": reason}


def of_owners(database: OrmDatabase) -> list[tuple[str, Any]]:
    return [(channel, payload) for channel, payload in database.sent() if channel != "all"]


def test_row_without_json_is_sent_without_its_values(database: OrmDatabase, session: Session) -> None:
    good, bad = Document(body={"a": 1}), Document(body=NUL)
    session.add_all([good, bad])
    session.commit()
    sent = database.sent()
    documents = [payload for channel, payload in sent if channel == "documents:me"]
    assert documents[0]["new"] == {"id": 1, "owner": "me", "body": {"a": 1}, "note": None}
    assert documents[1] == bare("INSERT", 2)
    # Its other columns have JSON.
    assert [payload["new"] for channel, payload in sent if channel == "all"] == [
        {"id": 1, "owner": "me"}, {"id": 2, "owner": "me"},
    ]  # fmt: skip
    bad.note = "x"
    session.commit()
    assert of_owners(database) == [("documents:me", bare("UPDATE", 2))]
    bad.owner = "you"
    session.commit()
    assert of_owners(database) == [
        ("documents:me", bare("DELETE", 2, moved=True)), ("documents:you", bare("INSERT", 2, moved=True)),
    ]  # fmt: skip
    session.refresh(bad)
    bad.body = None  # the old value has no JSON
    session.commit()
    assert of_owners(database) == [("documents:you", bare("UPDATE", 2))]
    session.refresh(bad)
    bad.body = NUL
    session.flush()
    session.delete(bad)
    session.commit()
    assert of_owners(database) == [("documents:you", bare("UPDATE", 2)), ("documents:you", bare("DELETE", 2))]
    assert database.sql("SELECT id FROM documents") == [(1,)]


def test_one_row_without_json_among_many_is_found_with_few_queries(database: OrmDatabase, session: Session) -> None:
    with database.counted() as statements:
        session.add_all([Broken(value="bad" if number == 70 else "good") for number in range(100)])
        session.commit()
    assert sum("to_jsonb" in statement for statement in statements) <= 16
    sent = [payload for _, payload in database.sent()]
    assert [payload["pk"]["id"] for payload in sent] == list(range(1, 101))
    assert [payload["pk"]["id"] for payload in sent if "truncated" in payload] == [71]


def test_value_whose_cast_fails_is_sent_without_the_row(database: OrmDatabase, session: Session) -> None:
    session.add_all([Broken(value="good"), Broken(value="bad"), Broken(value=None)])
    session.commit()
    sent = [payload for _, payload in database.sent()]
    assert [payload.get("new", "none") for payload in sent] == [
        {"id": 1, "value": "good"}, "none", {"id": 3, "value": None},
    ]  # fmt: skip
    assert sent[1] == bare("INSERT", 2, table="broken")


def test_old_value_that_its_type_refuses_is_sent_without_the_row(database: OrmDatabase, session: Session) -> None:
    database.sql("INSERT INTO documents (owner, note) VALUES ('me', 'legacy')")
    found = session.scalars(sa.select(Document)).one()
    found.note = "new"
    session.commit()
    assert of_owners(database) == [("documents:me", bare("UPDATE", 1))]
    assert database.sql("SELECT note FROM documents") == [("new",)]


def test_row_whose_channel_has_no_json_is_logged(
    database: OrmDatabase, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    session.add_all([Keyed(key=1), Keyed(key=NUL)])
    session.commit()
    assert [channel for channel, _ in database.sent()] == ["by:1"]
    assert "@publishes on Keyed: a row is not published: its channel is unknown (no_json)" in caplog.text
    assert len(database.sql("SELECT FROM keyed")) == 2


def test_row_too_large_for_the_log_is_sent_without_its_values(database: OrmDatabase, session: Session) -> None:
    # The limit is that of PostgreSQL's own form of the JSON, with spaces.
    session.add_all(
        [Large(id="a", text="x" * 999_000), Large(id="b", text="x" * 999_990), Large(id="c" * 2000, text="")]
    )
    session.commit()
    sent = [payload for _, payload in database.sent()]
    assert [(payload["pk"], payload.get("reason")) for payload in sent] == [
        ({"id": "a"}, None), ({"id": "b"}, "too_large"), ({"id": "c" * 2000}, None),
    ]  # fmt: skip
    assert "new" not in sent[1]
    session.add(Large(id="d" * 2000, text="x" * 999_990))  # neither the row nor a large key
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["pk"], payload["truncated"], payload["reason"]) == (None, True, "too_large")


def test_row_that_cannot_be_read_is_sent_without_its_values(database: OrmDatabase, session: Session) -> None:
    session.execute(
        sa.text(
            "CREATE FUNCTION remove() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN DELETE FROM documents WHERE id = new.id; RETURN NULL; END'"
        )
    )
    session.execute(sa.text("CREATE TRIGGER remove AFTER INSERT ON documents FOR EACH ROW EXECUTE FUNCTION remove()"))
    session.add(Document())
    session.flush()
    session.execute(sa.text("DROP TRIGGER remove ON documents; DROP FUNCTION remove()"))
    session.commit()
    assert sorted(database.sent()) == [
        ("all", bare("INSERT", 1, "not_readable")), ("documents:me", bare("INSERT", 1, "not_readable")),
    ]  # fmt: skip


def test_savepoints_of_the_session_stay_usable(database: OrmDatabase, session: Session) -> None:
    with session.begin_nested() as savepoint:
        session.add(Document(body=NUL))
        session.flush()
        savepoint.rollback()
    with session.begin_nested():
        session.add(Document(body=NUL))
    session.commit()
    assert of_owners(database) == [("documents:me", bare("INSERT", 2))]


def test_rows_without_json_are_sent_in_autocommit_mode(database: OrmDatabase) -> None:
    with Session(database.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add_all([Document(body=NUL), Document(body=1)])
        session.flush()
        assert [payload.get("reason") for _, payload in of_owners(database)] == ["no_json", None]


def test_savepoint_is_used_only_for_rows_that_may_lack_json(database: OrmDatabase, session: Session) -> None:
    opened: list[str] = []
    event.listen(database.engine, "savepoint", lambda connection, name: opened.append(name))
    session.add(Large(id="a", text=""))
    session.flush()
    assert opened == []
    session.add(Document())
    session.flush()
    assert len(opened) == 1
