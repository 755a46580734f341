"""Rules for channels: what counts for a channel, and which rules are invalid or contradict each other."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core import loading
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.rules import (
    COLUMNS,
    DEFAULTS,
    Origin,
    Rule,
    Rules,
    contradictions,
    parse_rules,
    specificity,
    validate_pattern,
)

SETTINGS = Rule(max_age=86_400.0, max_bytes=1_000_000)

#: Few letters, so that patterns match, overlap and tie.
PATTERNS = st.text("ab:*", min_size=1, max_size=6).map(lambda text: text.replace("**", "*").replace("**", "*"))
CHANNELS = st.text("ab:", min_size=1, max_size=6)
SOME_RULES = st.dictionaries(
    PATTERNS,
    st.builds(
        Rule,
        durable=st.none() | st.booleans(),
        max_age=st.none() | st.floats(1, 100),
        max_messages=st.none() | st.integers(1, 5),
        retained=st.none() | st.booleans(),
    ),
    max_size=8,
)


def rules_of(table: dict[str, Rule], **options: object) -> Rules:
    rules = Rules(SETTINGS, **options)  # type: ignore[arg-type]
    rules.replace(table)
    return rules


def test_without_rules_the_settings_count() -> None:
    rules = Rules(SETTINGS, ("orders:*",))
    assert rules.of("orders:5") == Rule(
        durable=True, history=True, presence=True, ephemeral=True, max_age=86_400.0, max_bytes=1_000_000, retained=False
    )
    assert rules.of("chat").durable is False
    assert rules.own_retention() == []


def test_each_column_comes_from_the_most_specific_rule_that_sets_it() -> None:
    rules = rules_of({
        "*": Rule(rate=5.0, history=False),
        "chat:*": Rule(max_messages=100, history=True),
        "chat:*:log": Rule(max_age=60.0),
        "chat:a:log": Rule(retained=True),
    })  # fmt: skip
    found = rules.of("chat:a:log")
    assert (found.rate, found.history, found.max_messages, found.max_age, found.retained) == (
        5.0,
        True,
        100,
        60.0,
        True,
    )
    assert rules.of("other").history is False
    assert rules.explain("chat:b:log")["max_age"] == (60.0, Origin("table", "chat:*:log"))
    assert rules.explain("chat:b:log")["max_bytes"] == (1_000_000, Origin("MAX_PAYLOAD"))
    assert rules.explain("chat:b:log")["retained"] == (False, Origin("default"))


def test_the_table_counts_before_the_setting_only_for_the_same_pattern() -> None:
    configured = {"a*": Rule(max_messages=1, rate=1.0), "ab*": Rule(presence=False)}
    rules = rules_of({"a*": Rule(max_messages=2, presence=True)}, configured=configured)
    assert rules.of("ab").max_messages == 2
    assert rules.of("ab").rate == 1.0
    assert rules.of("ab").presence is False


def test_a_rule_of_the_table_replaces_durable_channels() -> None:
    rules = rules_of({"*": Rule(durable=False), "orders*": Rule(durable=True)}, durable_channels=("chat",))
    assert rules.of("chat").durable is False
    assert rules.of("orders").durable is True


def test_a_pattern_has_a_history_if_all_channels_that_it_may_match_have_one() -> None:
    rules = rules_of({"*": Rule(history=False, retained=True), "a:*": Rule(history=True), "a:b:c": Rule(history=False)})
    assert [rules.of(one).history for one in ("*", "b*", "a:*", "a:b*", "a:c*", "a:*d")] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
    assert rules.of("a:c*").retained is False


def test_the_servers_own_channels_have_no_rules() -> None:
    rules = rules_of({"*": Rule(max_messages=1, durable=False)})
    assert rules.of("socketio_pg_permissions").max_messages is None


@given(table=SOME_RULES, configured=SOME_RULES, channel=CHANNELS)
def test_rules_are_those_of_a_model(table: dict[str, Rule], configured: dict[str, Rule], channel: str) -> None:
    rules = rules_of(table, configured=configured)
    for name in COLUMNS:
        candidates = [
            (specificity(pattern), source, getattr(rule, name))
            for source, some in enumerate((table, configured))
            for pattern, rule in some.items()
            if match_pattern(pattern, channel) and getattr(rule, name) is not None
        ]
        if candidates:
            assert getattr(rules.of(channel), name) == min(candidates, key=lambda one: one[:2])[2]
        elif name != "durable":
            assert getattr(rules.of(channel), name) in (getattr(SETTINGS, name), getattr(DEFAULTS, name))
    assert rules.of(channel) is rules.of(channel)


@given(some=st.lists(PATTERNS, unique=True, max_size=8), channel=CHANNELS)
def test_the_name_of_a_channel_is_more_specific_than_any_pattern(some: list[str], channel: str) -> None:
    matching = sorted({channel, *(one for one in some if match_pattern(one, channel))}, key=specificity)
    assert matching[0] == channel


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("orders:eu:*", "orders:*"),  # more characters
        ("*:private", "orders:*"),
        ("ab", "ab*"),  # fewer stars
        ("a*b", "*a*b"),
        ("ab*", "*ab"),  # the first star later
        ("ab*", "ac*"),  # by code points
        ("a", "*"),
    ],
)
def test_specificity(first: str, second: str) -> None:
    assert sorted([second, first], key=specificity) == [first, second]


def test_a_change_replaces_what_was_cached_and_calls_the_watchers() -> None:
    rules = rules_of({})
    seen: list[int] = []
    rules.watch(lambda: seen.append(rules.version))
    before = rules.of("a")
    assert rules.replace({"a": Rule(max_messages=3)})
    assert before.max_messages is None
    assert rules.of("a").max_messages == 3
    assert not rules.replace({"a": Rule(max_messages=3)})
    assert len(seen) == 1


def test_many_channels_are_not_all_remembered() -> None:
    rules = rules_of({"a*": Rule(rate=1.0)})
    rules.max_cached = 10
    for number in range(35):
        rules.of(f"a{number}")
    assert len(rules._cache) <= 10


def test_patterns_with_a_retention_of_their_own() -> None:
    rules = rules_of(
        {"*": Rule(max_age=60.0), "b*": Rule(rate=1.0), "c*": Rule(retained=False), "a": Rule(max_age=5.0)}
    )
    assert rules.own_retention() == ["a", "c*"]
    assert rules.default_max_age == 60.0
    # Of each channel, which the mark of the whole log cannot say.
    assert rules_of({"*": Rule(max_messages=10)}).own_retention() == ["*"]
    assert rules_of({}).default_max_age == 86_400.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a JSON object"),
        ("[]", "a JSON object"),
        ('{"a**": {}}', "'\\*' stands for any characters already"),
        ('{"": {}}', "a pattern must be a channel name"),
        ('{"socketio_pg_x": {}}', "matches no channel"),
        (json.dumps({"x" * 64: {}}), "more than 63 bytes"),
        ('{"\\ud800": {}}', "lone surrogates"),
        ('{"a": 5}', "must be an object of columns"),
        ('{"a": {"max_mesages": 1}}', "unknown column 'max_mesages'; columns are durable"),
        ('{"a": {"max_messages": 0}}', "max_messages of the rule 'a' must be a whole number from 1 to 100000"),
        ('{"a": {"max_messages": true}}', "whole number"),
        ('{"a": {"max_age": "1 day"}}', "max_age of the rule 'a' must be seconds from 1 to 315576000"),
        ('{"a": {"rate": 1e400}}', "a number from 0.001 to 1000000"),
        ('{"a": {"durable": 1}}', "true or false"),
        ('{"a": {"conflate_key": ""}}', "a path of 1 to 256 characters"),
    ],
)
def test_invalid_rules_are_refused_with_their_pattern_and_column(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rules(text)


def test_the_setting_takes_text_or_an_object_and_names_itself_in_errors() -> None:
    expected = {"chat:*": Rule(max_messages=100, max_age=60.0)}
    text = '{"chat:*": {"max_messages": 100, "max_age": 60, "rate": null}}'
    assert loading.load({"SOCKETIO_PG_CHANNEL_RULES": text}, None).channel_rules == expected
    assert parse_rules(json.loads(text)) == expected
    assert parse_rules(" ") == {}
    with pytest.raises(ConfigurationError, match="CHANNEL_RULES"):
        loading.load({"SOCKETIO_PG_CHANNEL_RULES": '{"a": {"b": 1}}'}, None)


def test_a_pattern_may_begin_like_a_reserved_name_only_if_it_matches_others() -> None:
    assert validate_pattern("socketio*") == "socketio*"
    assert validate_pattern("*") == "*"


def test_contradictions() -> None:
    rules = rules_of({
        "a": Rule(retained=True, durable=False),
        "b": Rule(conflate_key="id"),
        "c:*": Rule(max_rate=1.0),
        "c:x": Rule(conflate_key="id"),
        "d": Rule(),
        "e": Rule(max_bytes=2_000_000),
        "f": Rule(max_age=5.0, durable=False),
        "g": Rule(max_age=5.0, retained=True),
    })  # fmt: skip
    assert [pattern for pattern, _ in contradictions(rules, 1_000_000)] == ["a", "b", "d", "e", "f"]
