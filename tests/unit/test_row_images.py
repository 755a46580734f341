"""Channels and messages from row images, without a database."""

import json
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from socketio_pg.core.errors import InvalidChannelError
from socketio_pg.orm import row_images
from socketio_pg.orm.row_images import Change, Image, Operation, Rows, parse_template

TABLE = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("a", sa.Text),
    sa.Column("B b", sa.Text, key="b"),
)


def rows(channel: str, durable: bool = True) -> Rows:
    return Rows(
        title="@publishes on Thing",
        table=TABLE,
        source=TABLE,
        columns=dict(TABLE.columns),
        key=["id"],
        visible=["id", "a", "b"],
        mapped=["id", "a", "b"],
        template=parse_template(channel),
        volatile=frozenset(),
        durable=durable,
    )


def messages(of: Rows, operation: Operation, new: Image | None, old: Image, *candidates: str) -> list[tuple[str, Any]]:
    sent = row_images.messages(Change(of, operation, [1], candidates=candidates), "public", new, old)
    return [(message.channel, json.loads(message.payload_json)) for message in sent]


@pytest.mark.parametrize(
    ("value", "channel"),
    [
        ("5", "t:5:x"), ("1.50", "t:1.50:x"), ("true", "t:true:x"), ('"a"', "t:a:x"), ('"é \\" {b}"', 't:é " {b}:x'),
        ('"2024-01-01T00:00:00"', "t:2024-01-01T00:00:00:x"), ("[1, 2]", "t:[1, 2]:x"), (None, None),
    ],
)  # fmt: skip
def test_channel_is_built_from_values(value: str | None, channel: str | None) -> None:
    assert rows("t:{a}:x").channel({"a": value}) == channel


@pytest.mark.parametrize("value", ['"*"', '"\\n"', '""', f'"{"x" * 64}"', '"socketio_pg"'])
def test_invalid_channel_is_refused(value: str) -> None:
    with pytest.raises(InvalidChannelError):
        rows("{a}").channel({"a": value})
    assert rows("{a}").former_channel({"a": value}) is None


def test_row_with_an_invalid_channel_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert messages(rows("{a}"), "INSERT", {"id": "1", "a": '"*"', "b": None}, {}) == []
    assert "@publishes on Thing: a row is not published: channel must not contain '*'" in caplog.text
    # It left the channel that had a name.
    [(channel, payload)] = messages(rows("{a}"), "UPDATE", {"id": "1", "a": '"*"', "b": None}, {"a": '"x"'}, "a")
    assert (channel, payload["op"], payload["moved"]) == ("x", "DELETE", True)


def test_numbers_keep_all_digits() -> None:
    digits = "12345678901234567890123456789012345678.90"
    [message] = row_images.messages(Change(rows("t"), "INSERT", [1]), "public", {"id": "1", "a": digits, "b": None}, {})
    assert message.payload_json == (
        '{"op":"INSERT","schema":"public","table":"things","pk":{"id":1},'
        f'"new":{{"id":1,"a":{digits},"B b":null}},"old":null,"changed":[]}}'
    )


def test_unknown_old_value() -> None:
    """It is omitted, counts as changed, and is taken as the new value in the old channel."""
    new: Image = {"id": "1", "a": '"x"', "b": '"y"'}
    [(channel, payload)] = messages(rows("{b}"), "UPDATE", new, {"a": '"w"'}, "a", "b")
    assert (channel, payload["old"], payload["changed"]) == ("y", {"id": 1, "a": "w"}, ["a", "B b"])
    sent = messages(rows("{a}:{b}"), "UPDATE", new, {"a": '"w"'}, "a", "b")
    assert [(channel, payload["op"]) for channel, payload in sent] == [("w:y", "DELETE"), ("x:y", "INSERT")]
    assert sent[0][1]["old"] == {"id": 1, "a": "w"}


def test_update_without_changes_sends_nothing() -> None:
    new: Image = {"id": "1", "a": '"x"', "b": None}
    assert messages(rows("t"), "UPDATE", new, {"a": '"x"', "b": None}, "a", "b") == []


@pytest.mark.parametrize("durable", [True, False])
def test_message_without_the_row_omits_a_too_large_key(durable: bool) -> None:
    key = f'"{"x" * 8000}"'
    change = Change(rows("t", durable), "INSERT", [1])
    [message] = row_images.messages(change, "public", {"id": key, "a": None, "b": None}, {})
    short = {
        "op": "INSERT",
        "schema": "public",
        "table": "things",
        "pk": None,
        "truncated": True,
        "reason": "too_large",
    }
    assert json.loads(message.short_json) == short
    assert (message.payload_json == message.short_json) is not durable


@pytest.mark.parametrize(
    ("column", "lacks"),
    [
        (sa.Column("c", sa.Integer), False),
        (sa.Column("c", sa.Numeric(10, 2)), False),
        (sa.Column("c", sa.Double), False),
        (sa.Column("c", sa.Enum("a", name="letter")), False),
        (sa.Column("c", sa.ARRAY(sa.DateTime(timezone=True))), False),
        (sa.Column("c", pg.JSONB), False),
        (sa.Column("c", sa.JSON().with_variant(pg.JSONB(), "postgresql")), False),
        (sa.Column("c", sa.PickleType), False),
        (sa.Column("c", sa.Integer, sa.Computed("1", persisted=True)), False),
        (sa.Column("c", sa.JSON), True),
        (sa.Column("c", sa.ARRAY(sa.JSON)), True),
        (sa.Column("c", sa.types.NullType), True),
        (sa.Column("c", sa.Integer, sa.Computed("1")), True),
        (sa.Column("c", sa.Integer, server_default=sa.FetchedValue()), True),
    ],
    ids=lambda value: str(value.type) if isinstance(value, sa.Column) else None,
)
def test_columns_whose_values_may_have_no_json(column: sa.Column[Any], lacks: bool) -> None:
    of = replace(rows("t"), columns={"id": TABLE.columns.id, "c": column})
    assert of.may_lack_json is lacks
    assert list(of.bare.columns) == ["id"]
