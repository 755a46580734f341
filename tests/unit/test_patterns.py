"""Patterns of channel names: validation, containment, overlap, and which of many match a name."""

import itertools
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socketio_pg.core.channels import match_pattern
from socketio_pg.core.errors import InvalidChannelError
from socketio_pg.core.patterns import covers, is_pattern, matches, named, overlap, prefix_of, to_like, validate_pattern
from socketio_pg.pubsub.like import Like
from socketio_pg.pubsub.patterns import Patterns

#: All names of up to seven letters. Patterns below use two of them: the third stands for all others.
NAMES = ["".join(letters) for size in range(8) for letters in itertools.product("abc", repeat=size)]
GLOBS = st.text("ab*", max_size=5)
#: Patterns as clients have them, over few characters, so that many match.
PATTERNS = st.text("ab:*", min_size=1, max_size=8).filter(is_pattern)


def names_of(pattern: str) -> set[str]:
    return {name for name in NAMES if match_pattern(pattern, name)}


@given(GLOBS, GLOBS)
@example("*a*", "*ab*")
@example("*ab*", "*a*b*")
@example("a*a", "a")
@example("*", "")
@example("ab", "a*")
def test_containment_agrees_with_all_names(outer: str, inner: str) -> None:
    # Seven letters are enough: a name that only `inner` matches needs one letter for each of its stars.
    assert covers(outer, inner) is (names_of(inner) <= names_of(outer))


@given(GLOBS, GLOBS)
@example("*a", "a*")
@example("ab*", "*bb")
def test_overlap_agrees_with_all_names(one: str, other: str) -> None:
    if len(one) + len(other) <= 7:  # so that the shortest name that both match is among them
        assert overlap(one, other) is bool(names_of(one) & names_of(other))
    assert overlap(one, other) is overlap(other, one)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("orders:*", "orders:eu:*", True),
        ("orders:*", "orders:*:paid", True),
        ("orders:eu:*", "orders:*", False),
        ("orders:*", "order*", False),
        ("orders:7", "orders:*", False),
        ("*", "orders:*", True),
        ("*:paid", "orders:*", False),
        ("*:paid", "orders:*:paid", True),
    ],
)
def test_containment(outer: str, inner: str, expected: bool) -> None:
    assert covers(outer, inner) is expected


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (None, "must be a string"),
        (7, "must be a string"),
        ("orders", "must have a '*'"),
        ("", "must have a '*'"),
        ("a**", "two '*' in a row"),
        ("*a" * 9, "at most 8"),
        ("a" * 63 + "*", "at most 63 bytes"),
        ("a\n*", "pattern must not contain control characters"),
        (" *", "pattern must not start or end with a space"),
        ("socketio_pg*", "reserved"),
        ("\ud800*", "pattern must be valid Unicode"),
    ],
)
def test_invalid_patterns_are_refused(pattern: object, problem: str) -> None:
    with pytest.raises(InvalidChannelError, match=problem.replace("*", r"\*")):
        validate_pattern(pattern)


@pytest.mark.parametrize("pattern", ["*", "orders:*", "*:paid", "a*b*c", "€*", "a" * 62 + "*", "socketio*", "50% *_\\"])
def test_valid_patterns(pattern: str) -> None:
    assert validate_pattern(pattern) is pattern
    assert named(pattern) == {"pattern": pattern}
    assert pattern.startswith(prefix_of(pattern))


def test_names_of_the_server_match_no_subscription() -> None:
    assert matches("socketio*", "socketio_other")
    assert not matches("*", "socketio_pg_permissions")
    patterns = Patterns()
    patterns.add("*")
    assert patterns.matching("socketio_pg_permissions") == ()
    assert patterns.matching("foo") == ("*",)


@given(st.text("ab%_\\*", max_size=6), st.text("ab%_\\", max_size=5))
def test_form_in_sql_matches_the_same_names(pattern: str, name: str) -> None:
    assert Like(to_like(pattern))(name) is match_pattern(pattern, name)


@given(st.lists(st.tuples(st.booleans(), PATTERNS), max_size=30), st.lists(st.text("ab:", max_size=8), max_size=5))
@example([(True, "a*b*"), (True, "a*b"), (True, "a*b*a*"), (False, "a*b")], ["ab", "abba", "a"])
@example([(True, "a**b"), (True, "a*b"), (False, "a**b")], ["ab"])
def test_matches_are_those_of_each_pattern(changes: list[tuple[bool, str]], names: list[str]) -> None:
    patterns, expected = Patterns(), set[str]()
    for added, pattern in changes:
        (patterns.add if added else patterns.discard)(pattern)
        (expected.add if added else expected.discard)(pattern)
        for name in names:
            assert patterns.matching(name) == tuple(sorted(one for one in expected if match_pattern(one, name)))
    assert len(patterns) == len(expected)
    for pattern in expected:
        patterns.discard(pattern)
    assert not patterns
    assert not patterns._begins.nodes
    assert not patterns._begins.lengths


def test_cost_does_not_depend_on_the_number_of_patterns() -> None:
    """10,000 patterns that differ at their beginning, in the middle, or at their end."""

    def seconds(count: int) -> float:
        patterns = Patterns()
        for number in range(count):
            patterns.add(f"b{number:05}:*")
            patterns.add(f"a*m{number:05}*")
            patterns.add(f"a*:{number:05}")
        found = []
        for turn in range(5):
            began = time.process_time()
            for number in range(1000):
                assert patterns.matching(f"a:{turn}:{number}:m00007:00007") == ("a*:00007", "a*m00007*")
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(10_000) < 5 * seconds(10)
