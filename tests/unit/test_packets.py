"""Reading the JSON of packets, exactly and without blocking other clients."""

import gc
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.protocol.packets import LENIENT_CHARACTERS, MAX_CONTAINERS, NotAPacketError, UnreadableError, read_json

JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=5) | st.dictionaries(st.text(max_size=5), values, max_size=5),
    max_leaves=20,
).map(json.dumps)


@given(JSON_TEXTS)
def test_result_equals_the_standard_library(text: str) -> None:
    def exact(value: Any) -> str:
        return repr(value)

    assert exact(read_json(text)) == exact(json.loads(text))


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**18, 10**19, 10**300])
@pytest.mark.parametrize("size", [0, LENIENT_CHARACTERS], ids=["small", "large"])
def test_integers_keep_their_digits(number: int, size: int) -> None:
    assert read_json(f'["{"x" * size}", {{"a":{number}}},[{number}]]')[1:] == [{"a": number}, [number]]
    assert read_json(f"{' ' * size}{number}") == number


def test_last_duplicate_key_wins_and_no_key_is_special() -> None:
    value = read_json('{"a":1,"__proto__":{"x":1},"constructor":2,"a":3}')
    assert value == {"a": 3, "__proto__": {"x": 1}, "constructor": 2}


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_small_lenient_json_is_read(text: str) -> None:
    value = read_json(f"[{text}]")[0]
    assert math.isnan(value) or math.isinf(value)
    assert read_json('["\\ud800"]') == ["\ud800"]


@pytest.mark.parametrize("text", ["[NaN]", '["\\ud800"]', "[1e400]", "[", "x"])
def test_large_lenient_json_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_json(" " * LENIENT_CHARACTERS + text)


@pytest.mark.parametrize("text", ["", "x", "[", "[1,]", "{'a':1}", "[" * 2_000 + "]" * 2_000, "9" * 5_000])
def test_invalid_json_is_not_a_packet(text: str) -> None:
    with pytest.raises(NotAPacketError):
        read_json(text)


@pytest.mark.parametrize("opening", ["[", "{"])
def test_number_of_lists_and_objects_is_limited(opening: str) -> None:
    closing = {"[": "]", "{": "}"}[opening]
    text = "[" + ",".join([opening + closing] * (MAX_CONTAINERS - 1)) + "]"
    assert len(read_json(text)) == MAX_CONTAINERS - 1
    with pytest.raises(UnreadableError):
        read_json(text[:-1] + ",[]]")


def test_garbage_collector_state_is_restored() -> None:
    assert not gc.isenabled()  # see tests/conftest.py
    read_json("[1]")
    assert not gc.isenabled()
    gc.enable()
    try:
        read_json("[1]")
        with pytest.raises(NotAPacketError):
            read_json("[")
        assert gc.isenabled()
    finally:
        gc.disable()
