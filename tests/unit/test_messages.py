"""Messages: JSON value → NOTIFY payload → message → Socket.IO frame."""

import json
import math
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
)
from socketio_pg.core.messages import (
    MAX_NOTIFY_BYTES,
    EncodedMessage,
    WireJSON,
    check_size,
    decode_notification,
    dumps_strict,
    encode_payload,
    from_log,
    is_strict_json,
    loads,
    parse_leniently,
    parse_rounded,
    with_numbers_as_strings,
)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    # JavaScript clients cannot read integers beyond the range of a double; see test_value_outside_json_is_refused.
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda values: st.lists(values, max_size=5) | st.dictionaries(st.text(max_size=10), values, max_size=5),
    max_leaves=20,
)


def nested_text(levels: int) -> str:
    return "[" * levels + "]" * levels


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def strict_loads(text: str) -> Any:
    """Parse JSON strictly; the standard library would accept NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# -- encode_payload ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-1.5, "-1.5"),
        ("", '""'),
        ("é€😀", '"é€😀"'),
        ("\0", '"\\u0000"'),
        ('\n\t"\\', '"\\n\\t\\"\\\\"'),
        ("\u2028", '"\u2028"'),
        ([], "[]"),
        ({}, "{}"),
        ([1, [2]], "[1,[2]]"),
        ({"z": 1, "a": {"b": None}}, '{"z":1,"a":{"b":null}}'),
        (2**53 + 1, "9007199254740993"),
        (2**64, "18446744073709551616"),
        (-(2**70), "-1180591620717411303424"),
        (10**300, "1" + "0" * 300),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (5e-324, "5e-324"),
    ],
)
def test_payload_is_encoded_as_compact_json(value: object, text: str) -> None:
    assert encode_payload(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(float("nan"), "NaN", id="NaN"),
        pytest.param(float("inf"), "infinite", id="Infinity"),
        pytest.param({"a": [float("-inf")]}, "infinite", id="-Infinity inside"),
        pytest.param("\ud800", "surrogate", id="lone high surrogate"),
        pytest.param("a\udfff", "surrogate", id="lone low surrogate"),
        pytest.param({"\ud800": 1}, "surrogate", id="surrogate in a key"),
        pytest.param(["\ude00\ud83d"], "surrogate", id="surrogates the wrong way round"),
        pytest.param(b"abc", "bytes", id="bytes"),
        pytest.param({"a": b""}, "bytes", id="bytes inside"),
        pytest.param({1, 2}, "set", id="set"),
        pytest.param(object(), "object", id="object"),
        pytest.param({(1, 2): 3}, "keys", id="tuple as key"),
        pytest.param(10**400, "number is too large", id="integer beyond the range of a double"),
        pytest.param([-(10**309)], "number is too large", id="negative integer beyond the range of a double"),
    ],
)
def test_value_outside_json_is_refused(value: object, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"payload must be a JSON value.*{reason}") as caught:
        encode_payload(value)
    assert caught.value.code == "invalid_request"
    assert caught.value.message.encode()


@pytest.mark.parametrize("levels", [1_025, 5_000, 100_000])
def test_deep_nesting_is_refused(levels: int) -> None:
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        encode_payload(nested(levels))


def test_normal_nesting_is_accepted() -> None:
    assert encode_payload(nested(500)) == "[" * 500 + "]" * 500


def test_recursive_value_is_refused_with_the_reason() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(InvalidRequestError) as caught:
        encode_payload(value)
    assert "NaN" not in caught.value.message


def test_huge_integer_is_refused_with_the_reason() -> None:
    # sys.set_int_max_str_digits: 4,300 by default.
    with pytest.raises(InvalidRequestError) as caught:
        encode_payload(10**5000)
    assert "NaN" not in caught.value.message


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"], ids=["1 byte", "2 bytes", "3 bytes", "4 bytes"])
def test_size_limit_counts_bytes(character: str) -> None:
    # 7,999 and 8,000 bytes, including two quotes; one-byte letters fill up the rest.
    for size in (MAX_NOTIFY_BYTES, MAX_NOTIFY_BYTES + 1):
        many, rest = divmod(size - 2, len(character.encode()))
        payload = character * many + "a" * rest
        if size == 7_999:
            check_size(encode_payload(payload))
            assert len(encode_payload(payload).encode()) == 7_999
        else:
            with pytest.raises(PayloadTooLargeError, match="payload has 8000 bytes") as caught:
                check_size(encode_payload(payload))
            assert caught.value.code == "payload_too_large"


def test_size_limit_counts_escapes() -> None:
    assert len(encode_payload("\0" * 1_332)) == 7_994
    with pytest.raises(PayloadTooLargeError, match="8000 bytes"):
        check_size(encode_payload("\0" * 1_333))


def test_log_has_a_higher_size_limit() -> None:
    check_size(encode_payload("a" * 99_998), 100_000)
    with pytest.raises(PayloadTooLargeError, match=r"100001 bytes.*the log accepts at most 100000"):
        check_size(encode_payload("a" * 99_999), 100_000)


@given(JSON_VALUES)
def test_any_json_value_survives_encoding(value: object) -> None:
    text = encode_payload(value)
    # Compares the JSON too, because 1 == True == 1.0, and the order of keys counts.
    assert strict_loads(text) == value
    assert json.dumps(json.loads(text)) == json.dumps(value)
    assert decode_notification("foo", text) == EncodedMessage("foo", text)


# -- decode_notification -----------------------------------------------------------------------------------------------

JSON_TEXTS = [
    "null",
    "true",
    "0",
    "-0",
    "1.0",
    "1E5",
    "1e-400",
    "0.10000000000000000000000000000000000001",
    "123456789012345678901234567890",
    '""',
    '"foo"',
    '"\\u00e9\\/\\ud83d\\ude00"',
    '"\\u0000"',
    '"\u2028\u2029\x7f"',
    "[]",
    "{}",
    '{"z": 1, "a": 2, "10": 3, "2": 4}',
    '{"a": 1, "a": 2}',
    ' {\n\t"a" : [ 1 , 2 ]\r\n} ',
]

OTHER_TEXTS = [
    "",
    " ",
    "hello",
    "hello world",
    "NaN",
    "Infinity",
    "-Infinity",
    "[NaN]",
    '{"a": -Infinity}',
    "undefined",
    "None",
    "True",
    "nul",
    "'a'",
    "{a: 1}",
    "[1,]",
    "[1 2]",
    "1 2",
    "{}{}",
    "01",
    "+1",
    ".5",
    "1.",
    "0x10",
    '[1e400, "\\ud800"]',
    "[1e400, NaN]",
    '"\\ud800"',
    '"\\x41"',
    '"open',
    '"\n"',
    '"\0"',
    "\ufeff{}",
    "\x1e",
    '451-["event",{"_placeholder":true,"num":0}]',
    '"); DROP TABLE users; --',
    "[" * 2_000 + "]" * 2_000,
]


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_json_from_postgres_is_not_changed(text: str) -> None:
    message = decode_notification("foo", text)
    assert message == EncodedMessage("foo", text)
    assert message.payload() == json.loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"n": ' + "9" * 400 + "}", {"n": 10**400 - 1}),
        ('{"n": ' + "7" * 5_000 + "}", {"n": Decimal("7" * 5_000)}),
        ('{"n": ' + "1" * 310 + ".5}", {"n": float("inf")}),
        ("1e400", float("inf")),
    ],
    ids=["integer", "integer that int() refuses", "decimal", "exponent"],
)
def test_type_of_a_payload_does_not_depend_on_its_numbers(text: str, value: object) -> None:
    for message in (decode_notification("foo", text), from_log(1, "foo", "now", text)):
        assert message.payload_json == text
        assert message.payload() == value


def test_message_of_the_log_is_never_a_string_in_place_of_its_json() -> None:
    deep = from_log(1, "foo", "now", "[" * 2_000 + "]" * 2_000)
    assert deep.payload_json.startswith("[[")
    with pytest.raises(ValueError, match="depth"):
        deep.payload()


@pytest.mark.parametrize("levels", [1_025, 2_000, 10_000])
def test_lenient_parser_has_a_limit_of_levels_in_every_python(levels: int) -> None:
    for text in (
        "[" * levels + "]" * levels,
        '{"a":' * levels + "1" + "}" * levels,
        f"[{nested_text(levels - 1)},NaN]",
    ):
        with pytest.raises(RecursionError):
            parse_leniently(text)
    with pytest.raises(ValueError, match="depth"):
        loads(f"[{nested_text(levels)},{'9' * 5_000}]")


@pytest.mark.parametrize("text", ['"' + "[" * 2_000 + '"', "[" + "[[]]," * 2_000 + "NaN]", "[" * 900 + "]" * 900])
def test_lenient_parser_counts_levels_and_not_brackets(text: str) -> None:
    assert repr(parse_leniently(text)) == repr(json.loads(text))


def test_numbers_can_be_parsed_exactly() -> None:
    assert loads("[1.10, 12345678901234567890123]", Decimal) == [Decimal("1.10"), 12345678901234567890123]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"[{10**400}, {-(10**400)}, 5, {2**64 - 1}, {2**64}]", [math.inf, -math.inf, 5, 2**64 - 1, float(2**64)]),
        ("[1e400, 1.5]", [math.inf, 1.5]),
        ("[" * 2_000 + "]" * 2_000, "[" * 2_000 + "]" * 2_000),
    ],
    ids=["integers", "exponent", "levels"],
)
def test_large_numbers_are_rounded_for_filters(text: str, value: object) -> None:
    assert parse_rounded(text) == value


def test_numbers_become_strings() -> None:
    text = r"""{"a": -1.50, "1": [12345678901234567890, 1e+5, "2", "\\", "\"3"], "é4": null, "b":0}"""
    pauses: list[int] = []
    assert with_numbers_as_strings(text, lambda: pauses.append(1)) == (
        r"""{"a": "-1.50", "1": ["12345678901234567890", "1e+5", "2", "\\", "\"3"], "é4": null, "b":"0"}"""
    )
    assert pauses == []
    with_numbers_as_strings(f"[{'1,' * 10_000}1]", lambda: pauses.append(1))
    assert len(pauses) == 3


@pytest.mark.parametrize("escapes", [999, 1_000, 1_001, 2_000, 2_001, 100_000])
def test_strings_with_many_escapes_are_read_in_pieces(escapes: int) -> None:
    """In one piece, a payload of 10 MB took a second without a pause, and 600 MB of memory."""
    string = '"1' + '\\"1' * escapes + '"'
    pauses: list[int] = []
    found = with_numbers_as_strings(f"[{string},1,{string}]", lambda: pauses.append(1))
    assert found == f'[{string},"1",{string}]'
    assert len(pauses) >= 2 * (escapes // 1_000) - 2


@given(JSON_VALUES)
def test_all_numbers_become_strings_and_nothing_else(value: object) -> None:
    text = dumps_strict(value)
    found = json.loads(with_numbers_as_strings(text, lambda: None))
    assert found == json.loads(text, parse_int=str, parse_float=str)


# No text of PostgreSQL has U+0000.
@pytest.mark.parametrize("text", [text for text in OTHER_TEXTS if "\0" not in text])
def test_text_that_is_not_strict_json_becomes_a_string(text: str) -> None:
    message = decode_notification("foo", text)
    assert message.payload() == text
    assert strict_loads(message.payload_json) == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_notification_becomes_strict_json(text: str) -> None:
    message = decode_notification("foo", text)
    assert message.payload_json.encode()
    value = strict_loads(message.payload_json)
    assert message.payload() == value
    assert is_strict_json(text) or value == text


@pytest.mark.parametrize("levels", [1, 500, 900, 1_000, 1_023, 1_024, 1_025, 3_999])
def test_payload_of_any_depth_can_be_read(levels: int) -> None:
    # 3,999 levels fit into a NOTIFY. Python's own parser has a lower limit than orjson.
    message = decode_notification("foo", "[" * levels + "]" * levels)
    assert isinstance(message.payload(), (list, str))


def test_payload_returns_a_new_value() -> None:
    message = EncodedMessage("foo", '{"a":[1]}')
    message.payload()["a"].append(2)
    assert message.payload() == {"a": [1]}


# -- on the wire -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*JSON_TEXTS, *(dumps_strict(text) for text in OTHER_TEXTS)])
def test_payload_text_is_unchanged_in_the_frame(text: str) -> None:
    frame = WireJSON.dumps(["event", EncodedMessage("foo", text).to_wire()], separators=(",", ":"))
    assert frame == f'["event",{{"channel":"foo","payload":{text}}}]'


@pytest.mark.parametrize("channel", ["foo", 'say "hi"', "back\\slash", "канал", "😀", "a\u202eb"])
def test_channel_is_json_in_the_frame(channel: str) -> None:
    frame = WireJSON.dumps(["event", EncodedMessage(channel, "1").to_wire()])
    assert strict_loads(frame) == ["event", {"channel": channel, "payload": 1}]


@given(JSON_VALUES)
def test_wire_json_writes_any_json_value(value: object) -> None:
    assert strict_loads(WireJSON.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("nan"), "null"), (float("inf"), "null"), ({"a": [float("-inf")]}, '{"a":[null]}')],
    ids=repr,
)
def test_wire_json_writes_nan_and_infinity_as_null(value: object, text: str) -> None:
    assert WireJSON.dumps(value) == text


@pytest.mark.parametrize("value", [[2**70, float("nan")], {"a": "\ud800"}, [2**70, "\udc00"]], ids=repr)
def test_wire_json_refuses_values_that_are_not_utf8(value: object) -> None:
    # A frame that is not UTF-8 cannot be sent and would end the client's connection.
    with pytest.raises((TypeError, ValueError)):
        WireJSON.dumps(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, {(1,): 2}, [b"binary"]], ids=lambda value: type(value).__name__)
def test_wire_json_refuses_other_types(value: object) -> None:
    with pytest.raises(TypeError):
        WireJSON.dumps(value)


def test_wire_json_refuses_a_fragment_beside_a_big_integer() -> None:
    with pytest.raises(TypeError):
        WireJSON.dumps([orjson.Fragment("1"), 2**70])


@pytest.mark.parametrize("text", ["[NaN]", "[1e400]", '["\\ud800"]', '["a"]', "[123456789012345678901234567890]"])
def test_wire_json_reads_lenient_json(text: str) -> None:
    assert repr(WireJSON.loads(text)) == repr(json.loads(text))


# -- strict JSON -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "strict"), [(500, True), (1_025, False)])
def test_strict_json_has_at_most_1024_levels(levels: int, strict: bool) -> None:
    assert is_strict_json("[" * levels + "]" * levels) is strict


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_dumps_strict_refuses_nan_and_infinity(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dumps_strict([value])
