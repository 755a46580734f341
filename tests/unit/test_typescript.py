"""Names and texts of the declarations for watched tables, without a database."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.typescript.checks import permitted_labels
from socketio_pg.typescript.names import Identifiers, comment, declared_name, pascal, property_name, string


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["orders"], "Orders"),
        (["order_items"], "OrderItems"),
        (["orderItems"], "OrderItems"),
        (["shop", "order items"], "ShopOrderItems"),
        (["2fa"], "_2fa"),
        (["orders:{customer_id}"], "OrdersCustomerId"),
        (["été"], "Été"),
        (["订单"], "订单"),
        (["*/ ` ${x}"], "X"),
        (["💥"], ""),
        (["\U0001d4b3y"], "Y"),
    ],
)
def test_names_become_identifiers(names: list[str], expected: str) -> None:
    assert pascal(*names) == expected
    assert expected == "" or expected.isidentifier()


@given(st.text())
def test_every_name_is_an_identifier_or_empty(name: str) -> None:
    made = pascal(name)
    assert made == "" or made.isidentifier()
    assert not made or max(made) <= "\uffff"


def test_names_leave_out_the_schema_public_only() -> None:
    assert (declared_name("public", "orders"), declared_name("shop", "orders")) == ("Orders", "ShopOrders")


def test_equal_names_get_numbers() -> None:
    identifiers = Identifiers(["Json"])
    wanted = ["Orders", "Orders", "Orders", "Json", "", "", "A2", "A2", "A22"]
    assert [identifiers.take(name) for name in wanted] == [
        "Orders", "Orders2", "Orders3", "Json2", "Unnamed", "Unnamed2", "A2", "A2_2", "A22",
    ]  # fmt: skip


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_string_literals_are_one_printable_line(text: str) -> None:
    made = string(text)
    assert made.isprintable()
    assert json.loads(made) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("id", "id"),
        ("$x_1", "$x_1"),
        ("new", "new"),
        ("__proto__", "__proto__"),
        ("1a", '"1a"'),
        ("a b", '"a b"'),
        ('a"\\', '"a\\"\\\\"'),
        ("été", '"été"'),
        ("", '""'),
        ("a\u202eb\u2028", '"a\\u202eb\\u2028"'),
        ("\U000e0001", '"\\udb40\\udc01"'),
    ],
)
def test_property_names_are_quoted_unless_they_are_identifiers(name: str, expected: str) -> None:
    assert property_name(name) == expected


@given(st.text())
def test_comments_stay_comments(text: str) -> None:
    made = comment(text)
    assert "*/" not in made
    assert made.isprintable()


@pytest.mark.parametrize(
    ("definition", "subject", "expected"),
    [
        ("CHECK ((status = ANY (ARRAY['open'::text, 'it''s'::text])))", "status", ("open", "it's")),
        (
            "CHECK (((kind)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))",
            "kind",
            ("a", "b"),
        ),
        (
            "CHECK (((kind)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))",
            "kind",
            ("a", "b"),
        ),
        ("CHECK ((VALUE = ANY (ARRAY['red'::text])))", "VALUE", ("red",)),
        ("CHECK ((\"a b\" = ANY (ARRAY['x, y'::text, '], z'::text])))", '"a b"', ("x, y", "], z")),
        ("CHECK ((other = ANY (ARRAY['open'::text])))", "status", None),
        ("CHECK ((status <> ALL (ARRAY['open'::text])))", "status", None),
        ("CHECK (((status = ANY (ARRAY['open'::text])) OR (status ~ 'x'::text)))", "status", None),
        ("CHECK ((status = ANY (ARRAY['open'::text, lower('X'::text)])))", "status", None),
        ("CHECK ((status = ANY (ARRAY['open'::text, E'\\\\'::text])))", "status", None),
        ("CHECK ((length(status) > 3))", "status", None),
    ],
)
def test_labels_of_check_constraints(definition: str, subject: str, expected: tuple[str, ...] | None) -> None:
    assert permitted_labels(["CHECK (true)", definition], subject) == expected
