"""Live tables without a database: what clients get of changes, and what requests and definitions may be."""

import json
from typing import Any

import pytest

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.pubsub.filters import Filter, parse_filter
from socketio_pg.tables.changes import Change, Event
from socketio_pg.tables.definition import definition
from socketio_pg.tables.requests import Order, requested_order, requested_place
from socketio_pg.tables.views import PlainViews, RestartError, Touched, View, ViewKey


def change(op: str, *, sends_old: bool = True, text: str | None = None, **fields: Any) -> Change:
    body = {"op": op, "schema": "public", "table": "t", "pk": None, "new": None, "old": None, "changed": [], **fields}
    return Change(EncodedMessage("c", text or json.dumps(body), 7, "now"), ["id"], sends_old=sends_old)


def update(old: dict[str, Any], new: dict[str, Any], **more: Any) -> Change:
    changed = [name for name in new if old.get(name) != new[name]]
    return change("UPDATE", pk={"id": new["id"]}, old=old, new=new, changed=changed, **more)


def events(one: Change, where: Any = None, columns: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Return the payloads that a client without row-level security gets."""
    views, view = PlainViews(lambda filter, steps: None), View(ViewKey(None, columns, parse_filter(where)))
    views.add(view)
    found = [json.loads(event.payload) for event in views.events([one], lambda: None).get(view, [])]
    views.discard(view)
    return found


def marks(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["op"], one["pk"], one.get("entered"), one.get("left"), one.get("old_pk")) for one in found]


A, B = {"id": 1, "status": "a"}, {"id": 1, "status": "b"}


@pytest.mark.parametrize(
    ("one", "where", "expected"),
    [
        (update(A, B), None, [("UPDATE", {"id": 1}, None, None, None)]),
        (update(A, B), {"status": "b"}, [("INSERT", {"id": 1}, True, None, None)]),
        (update(A, B), {"status": "a"}, [("DELETE", {"id": 1}, None, True, None)]),
        (update(A, B), {"status": "c"}, []),
        (update(A, {"id": 2, "status": "a"}), {"status": "a"}, [("UPDATE", {"id": 2}, None, None, {"id": 1})]),
        (update(A, {"id": 2, "status": "b"}), {"status": "a"}, [("DELETE", {"id": 1}, None, True, None)]),
        (change("INSERT", pk={"id": 1}, new=A), {"status": "b"}, []),
        (change("DELETE", pk={"id": 1}, old=A), {"status": "a"}, [("DELETE", {"id": 1}, None, None, None)]),
        (change("DELETE", pk={"id": 1}, old=A), {"status": "b"}, []),
        (change("TRUNCATE"), {"status": "b"}, [("TRUNCATE", None, None, None, None)]),
        # Without old rows a row may have matched.
        (change("UPDATE", pk={"id": 1}, new=B, changed=["status"], sends_old=False), {"status": "a"},
         [("DELETE", {"id": 1}, None, True, None)]),
        (change("DELETE", pk={"id": 1}, sends_old=False), {"status": "a"},
         [("DELETE", {"id": 1}, None, None, None)]),
    ],
)  # fmt: skip
def test_changes_that_meet_a_filter(one: Change, where: Any, expected: Any) -> None:
    assert marks(events(one, where)) == expected


def test_columns_are_left_out_and_numbers_keep_their_digits() -> None:
    text = (
        '{"op": "UPDATE", "pk": {"id": 9007199254740993}, "at": "x", "changed": ["n", "secret"], "schema": "s", '
        '"table": "t", "new": {"id": 9007199254740993, "n": 1.10, "secret": 1}, '
        '"old": {"id": 9007199254740993, "n": 1e400, "secret": 2}}'
    )
    views, view = PlainViews(lambda filter, steps: None), View(ViewKey(None, ("id", "n"), None))
    views.add(view)
    [event] = views.events([change("", text=text)], lambda: None)[view]
    assert '"new":{"id":9007199254740993,"n":1.10},"old":{"id":9007199254740993,"n":1e400}' in event.payload
    assert "secret" not in event.payload
    assert events(update({"id": 1, "s": 1}, {"id": 1, "s": 2}), columns=("id",)) == []


@pytest.mark.parametrize(
    "text",
    ["1", "null", "[]", '"x"', "{}", '{"op": "EXPLODE"}', '{"op": "INSERT", "pk": 1}',
     '{"op": "UPDATE", "pk": {"other": 1}, "new": {}, "old": {}}', '{"op": "INSERT", "pk": {"id": 1}, "new": 5}'],
)  # fmt: skip
def test_messages_that_no_watch_has_sent_say_nothing(text: str) -> None:
    one = change("", text=text)
    assert not one.valid
    assert events(one) == []
    assert Touched([one]).texts == []


@pytest.mark.parametrize("reason", ["many_rows", "too_large", "no_json", "unknown"])
def test_messages_without_the_row_need_the_rows_again(reason: str) -> None:
    one = change("UPDATE", truncated=True, reason=reason)
    with pytest.raises(RestartError) as raised:
        events(one)
    assert raised.value.reason == ("no_json" if reason == "unknown" else reason)
    with pytest.raises(RestartError):
        Touched([change("UPDATE", text='{"new": ' * 5000 + "1" + "}" * 5000)])


def seen(one: Touched, rows: dict[int, str], keys: set[str], filter: Filter | None = None) -> list[Event]:
    return one.events(rows, keys, filter, lambda filter, steps: None)


def test_rows_that_a_client_sees_now() -> None:
    first, second = update(A, B), update(B, {"id": 2, "status": "c"})
    touched = Touched([first, second])
    assert touched.texts == ['["1"]', '["2"]']
    keys = {'["1"]'}
    # Each row counts at its last change, as it is now.
    found = [json.loads(event.payload) for event in seen(touched, {1: '{"id": 2, "status": "d"}'}, keys)]
    assert marks(found) == [("DELETE", {"id": 1}, None, True, None), ("INSERT", {"id": 2}, True, None, None)]
    assert found[1]["new"] == {"id": 2, "status": "d"}
    assert keys == {'["2"]'}
    # A row that it never had is not mentioned, and one that does not match is like one that is hidden.
    assert seen(touched, {}, set()) == []
    assert seen(touched, {1: '{"id": 2, "status": "d"}'}, set(), parse_filter({"status": "e"})) == []
    keys = {"x"}
    [truncated] = seen(Touched([change("TRUNCATE")]), {}, keys)
    assert truncated.payload.startswith('{"op": "TRUNCATE"')
    assert keys == set()


@pytest.mark.parametrize(
    "request_",
    [{}, {"table": 5}, {"table": "orders"}, {"table": "a.b\n"}, {"table": ".b"}, {"table": "a."}, {"table": "a" * 300},
     {"table": "a.b", "id": 5}, {"table": "a.b", "id": "x" * 64}, {"table": "a.b", "channel": "x"}],
)  # fmt: skip
def test_wrong_places(request_: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        requested_place(request_)


def test_orders() -> None:
    assert requested_order({}) == ()
    assert requested_order({"order": ["a", {"column": "b", "desc": True}]}) == (Order("a"), Order("b", True))
    for wrong in (5, ["a"] * 9, {"desc": True}, {"column": "a", "desc": 1}, [["a"]]):
        with pytest.raises(InvalidRequestError):
            requested_order({"order": wrong})


COLUMNS = [
    {"name": name, "sql": name, "number": n, "type": "text", "base": "text", "foreign": False}
    for n, name in enumerate("ab")
]
FOUND: dict[str, Any] = {
    "relation": 1, "schema": "s", "table": "t", "sql": "s.t", "enabled": True, "problem": None, "blind": [],
    "inherits": False, "shown": ["a", "b"], "key": ["a"], "columns": COLUMNS, "trusted": True,
    "operations": ["INSERT", "UPDATE", "DELETE", "TRUNCATE"],
    "watch": {"tier": "log", "when": None, "counter": "c", "columns": None, "exclude": None, "old": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"watch": None}, "no watch"), ({"watch": {"tier": "notify"}}, "does not use the log"),
        ({"watch": {"tier": "log", "when": "x"}}, "condition"),
        ({"operations": ["INSERT"]}, "UPDATE, DELETE, TRUNCATE"),
        ({"enabled": False}, "disabled"), ({"problem": "renamed"}, "renamed"), ({"inherits": True}, "inheritance"),
        ({"blind": ["statements"]}, "statements"), ({"key": None}, "no primary key"), ({"shown": ["b"]}, "excludes a"),
        ({"columns": [COLUMNS[0], COLUMNS[1] | {"foreign": True}]}, "column b belongs to a role"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_live(change: dict[str, Any], problem: str) -> None:
    assert definition("s.t", FOUND).channel == "table:s.t"
    with pytest.raises(InvalidRequestError, match=problem):
        definition("s.t", FOUND | change)
