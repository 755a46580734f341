"""@publishes: the messages for inserts, updates and deletes."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from tests.support.orm import OrmDatabase, orm_database
from tests.support.orm_classes import Base, Member, Order, Twice, Versioned, add, brief
from tests.support.postgres import Cluster

pytestmark = pytest.mark.majors


@pytest.fixture(scope="module")
def shared(backend: tuple[Cluster, str]) -> Iterator[OrmDatabase]:
    with orm_database(*backend, "orm", Base.metadata) as made:
        yield made


@pytest.fixture
def database(shared: OrmDatabase) -> OrmDatabase:
    return shared.empty(Base.metadata)


def order(**values: Any) -> dict[str, Any]:
    """Return an order's image."""
    common = {
        "id": 1, "customer_id": 5, "total": 0.0, "state": "new", "with_tax": 0.0, "changes": 0, "details": None,
    }  # fmt: skip
    return common | values


def test_insert_includes_database_defaults(database: OrmDatabase, session: Session) -> None:
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


def test_update_includes_the_old_row(database: OrmDatabase, session: Session) -> None:
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


def test_delete_includes_the_old_row(database: OrmDatabase, session: Session) -> None:
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


def test_changed_channel_is_a_delete_and_an_insert(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    found.customer_id, found.state = 6, "moved"
    session.commit()
    common = {"schema": "public", "table": "orders", "pk": {"id": 1}, "changed": [], "moved": True}
    assert database.sent() == [
        ("orders:5", common | {"op": "DELETE", "new": None, "old": order()}),
        ("orders:6", common | {"op": "INSERT", "new": order(customer_id=6, state="moved", changes=7), "old": None}),
    ]


def test_expired_object_moves_out_of_its_old_channel(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    session.expire(found)
    found.customer_id = 6
    session.commit()
    assert brief(database.sent()) == [("orders:5", "DELETE", {"id": 1}), ("orders:6", "INSERT", {"id": 1})]
    session.delete(found)
    session.commit()
    [(channel, payload)] = database.sent()
    assert (channel, payload["old"]) == ("orders:6", order(customer_id=6, changes=7))


def test_row_without_a_channel_is_not_sent(database: OrmDatabase, session: Session) -> None:
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


def test_excluded_key_column_is_never_sent(database: OrmDatabase, session: Session) -> None:
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


def test_excluded_column_is_never_sent(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5, password_hash="hash 1"))
    found.password_hash, found.state = "hash 2", "paid"
    session.flush()
    session.delete(found)
    session.commit()
    sent = database.sent()
    assert [payload["op"] for _, payload in sent] == ["UPDATE", "DELETE"]
    assert "hash" not in str(sent)


def test_side_effects_of_an_excluded_change_are_sent(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    found.password_hash = "hash"
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["changed"], payload["new"]["changes"]) == (["changes"], 7)
    session.refresh(found)
    found.password_hash = "another hash"  # changes is 7 already, and stays 7
    session.commit()
    assert database.sent() == []


def test_update_without_visible_changes_is_not_sent(database: OrmDatabase, session: Session) -> None:
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
    flag_modified(twice, "name")  # causes an UPDATE; the old name is not known
    session.commit()
    assert [(channel, payload["changed"]) for channel, payload in database.sent()] == [("all", ["name"])]


def test_class_can_have_several_hooks(database: OrmDatabase, session: Session) -> None:
    session.add(Twice(name="a"))
    session.commit()
    assert {channel: payload["new"] for channel, payload in database.sent()} == {
        "all": {"id": 1, "name": "a"},
        "one:1": {"id": 1},
    }


def test_old_omits_changed_values_that_were_not_loaded(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5))
    session.expire(found)
    found.state = "paid"
    session.commit()
    [(_, payload)] = database.sent()
    assert set(order()) - set(payload["old"]) == {"state", "with_tax", "changes"}
    assert payload["changed"] == ["state", "with_tax", "changes"]
    session.expire(found)
    _ = found.customer_id  # loads all columns
    found.state = "sent"
    session.commit()
    [(_, payload)] = database.sent()
    assert payload["old"] == order(state="paid", changes=7)
    assert payload["changed"] == ["state"]


def test_old_has_the_loaded_values_of_changed_columns(database: OrmDatabase, session: Session) -> None:
    """Unchanged columns have the current values, with the changes that other transactions have made since."""
    found = add(session, Order(customer_id=5))
    _ = found.state
    database.sql("UPDATE orders SET total = 9, state = 'other'")
    found.state = "mine"
    session.commit()
    [(_, payload)] = database.sent()
    assert (payload["old"]["state"], payload["old"]["total"], payload["new"]["total"]) == ("new", 9, 9)


def test_values_can_be_sql_expressions(database: OrmDatabase, session: Session) -> None:
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


def test_mutation_in_place_is_sent_without_the_old_value(database: OrmDatabase, session: Session) -> None:
    found = add(session, Order(customer_id=5, details={"a": 1}))
    assert found.details is not None
    found.details["b"] = 2
    session.commit()
    [(_, payload)] = database.sent()
    assert payload["new"]["details"] == {"a": 1, "b": 2}
    assert "details" in payload["changed"]
    assert "details" not in payload["old"]


def test_version_ids_and_server_side_onupdate_are_sent(database: OrmDatabase, session: Session) -> None:
    thing = add(session, Versioned(name="a"))
    thing.name = "b"
    session.commit()
    [(_, payload)] = database.sent()
    assert payload["old"] == {"id": 1, "name": "a", "version": 1, "touched": "created"}
    assert payload["new"] == {"id": 1, "name": "b", "version": 2, "touched": "updated"}
    assert payload["changed"] == ["name", "version", "touched"]


def test_changed_primary_key_has_the_old_key_in_old(database: OrmDatabase, session: Session) -> None:
    thing = add(session, Twice(name="a"))
    thing.id = 9
    session.commit()
    sent = database.sent()
    assert brief(sent) == [("one:1", "DELETE", {"id": 1}), ("one:9", "INSERT", {"id": 9}), ("all", "UPDATE", {"id": 9})]
    assert sent[2][1]["old"] == {"id": 1, "name": "a"}


def test_row_replaced_in_one_flush_is_a_delete_and_an_insert(database: OrmDatabase, session: Session) -> None:
    session.delete(add(session, Order(customer_id=5, state="first")))
    session.add(Order(id=1, customer_id=6, state="second"))
    session.commit()
    assert brief(database.sent()) == [("orders:5", "DELETE", {"id": 1}), ("orders:6", "INSERT", {"id": 1})]


def test_merged_objects_are_sent(database: OrmDatabase, session: Session) -> None:
    add(session, Order(customer_id=5))
    session.merge(Order(id=1, state="merged"))
    session.merge(Order(id=2, customer_id=6))
    session.commit()
    assert brief(database.sent()) == [("orders:5", "UPDATE", {"id": 1}), ("orders:6", "INSERT", {"id": 2})]
