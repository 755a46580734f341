"""LIKE: agrees with a regular expression, and its cost is linear in the text."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socketio_pg.pubsub.like import MAX_PATTERN, MAX_SEARCHED, Like

#: Patterns and texts that make a search compare every part at every place.
HOSTILE = [
    ("%_" + "x" * 96 + "z%", "x"), ("%" + "x_" * 48 + "xz%", "x"), ("%x" + "_" * 96 + "z%", "x"),
    ("%" + "x" * 48 + "_" + "x" * 48 + "z%", "x"), ("%x_" + "x" * 95 + "z%", "x"), ("%" + "xyxy_" * 19 + "z%", "xy"),
    ("%x_z" * 25, "x"), ("%x_x" * 24 + "%z%", "x"), ("%" + "_%" * 49, "x"), ("%" + "ä_" * 48 + "ß%", "ä"),
    ("%" + "😀_" * 48 + "z%", "😀"), ("%" + "x" * 98 + "%", "x" * 97 + "z"), ("%z" + "x" * 97 + "%", "x"),
    ("x%" * 50, "x"), ("%" * 100, "x"), ("%_x%" * 25, "x"), ("%x_" + "%" * 97, "z"),
]  # fmt: skip


def expression(pattern: str) -> str:
    tokens = re.findall(r"\\.|\\$|[^\\]", pattern, re.DOTALL)
    return "".join({"%": ".*", "_": "."}.get(token, re.escape(token[-1])) for token in tokens)


@given(st.text("ab%_\\é😀\n", max_size=12), st.text("ab%_\\é😀\n", max_size=16))
@example("%_a_%_b%", "xaybzb")
@example("%a_%_b", "ab")
@example("%__%", "a")
def test_agrees_with_a_regular_expression(pattern: str, text: str) -> None:
    assert Like(pattern)(text) is bool(re.fullmatch(expression(pattern), text, re.DOTALL))


@given(st.text("a%_", max_size=12), st.text("ab", max_size=30))
def test_many_wildcards_agree_with_a_regular_expression(pattern: str, text: str) -> None:
    assert Like(pattern)(text) is bool(re.fullmatch(expression(pattern), text, re.DOTALL))


def bound(like: Like, text: str) -> int:
    """The documented bound: 6 steps for each character, and one for each character of parts with a _ inside."""
    return (like.inner + 6) * len(text) + 150 * MAX_PATTERN


@given(st.text("x_%z", max_size=MAX_PATTERN), st.text("xz", max_size=60), st.integers(1, 200))
def test_steps_are_linear_in_the_text(pattern: str, text: str, times: int) -> None:
    like, long = Like(pattern), (text * times)[:MAX_SEARCHED]
    assert like.inner <= MAX_PATTERN - 2
    assert like.search(long)[1] <= bound(like, long)


@pytest.mark.parametrize(("pattern", "text"), HOSTILE)
def test_hostile_patterns_stay_within_the_bound(pattern: str, text: str) -> None:
    like, long = Like(pattern), (text * MAX_SEARCHED)[:MAX_SEARCHED]
    assert like.search(long)[1] <= bound(like, long) <= 106 * MAX_SEARCHED


@pytest.mark.serial
@pytest.mark.parametrize(("pattern", "text"), HOSTILE)
def test_a_step_takes_nanoseconds(pattern: str, text: str) -> None:
    """A backstop for the bound in steps: ten times what was measured on an idle machine."""
    like, long = Like(pattern), (text * MAX_SEARCHED)[:MAX_SEARCHED]
    seconds = []
    for _ in range(3):
        began = time.process_time()
        _, steps = like.search(long)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 10e-9 * steps + 1e-3


def test_edges_of_parts_are_not_inside() -> None:
    """`_` next to `%` costs nothing."""
    assert Like("%_a%").inner == Like("%__a__%b_%").inner == Like("a_b%a_b").inner == 0
    assert Like("%_a_b_%").inner == 3
    assert Like("%a_b%cc_cc%").inner == 8
    assert Like("%a_b%cc_cc%").compiled == 2
    assert Like("_a_%" + "b" * 16 + "%c_").compiled == 0
    assert Like("%" + "b" * 17 + "%").compiled == 1
