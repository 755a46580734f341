"""Splitting texts of any size into parts that fit into NOTIFY."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.cluster import chunks
from socketio_pg.cluster.chunks import MAX_CHARACTERS, PART_CHARACTERS, Assembler, split
from socketio_pg.core.errors import PayloadTooLargeError
from socketio_pg.core.messages import MAX_NOTIFY_BYTES


def assemble(*texts: str) -> list[str]:
    assembler = Assembler()
    return [whole for text in texts if (whole := assembler.add(text)) is not None]


@given(st.lists(st.text(), max_size=5), st.integers(1, 7))
def test_json_survives_splitting(values: list[str], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "PART_CHARACTERS", size)
        sent = [part for value in values for part in split(json.dumps(value, ensure_ascii=False))]
    assert len(set(sent)) == len(sent)
    assert all(part.isascii() for part in sent)
    assert [json.loads(text) for text in assemble(*sent)] == values


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_ascii_encoding_preserves_the_value(value: object) -> None:
    for text in (json.dumps(value, ensure_ascii=False), json.dumps(value, ensure_ascii=False, indent="\t")):
        assert json.loads("".join(assemble(*split(text)))) == value


@pytest.mark.parametrize("characters", [0, 1, PART_CHARACTERS, PART_CHARACTERS + 1, 10 * PART_CHARACTERS])
def test_every_part_fits_into_notify(characters: int) -> None:
    sent = list(split("x" * characters))
    assert len(sent) == max(1, -(-characters // PART_CHARACTERS))
    assert max(map(len, sent)) <= MAX_NOTIFY_BYTES
    assert assemble(*sent) == ["x" * characters]


@given(st.data())
def test_text_with_a_lost_part_is_dropped(data: st.DataObject) -> None:
    texts = [f"{number}" * 3 * PART_CHARACTERS for number in range(3)]
    sent = [part for text in texts for part in split(text)]
    lost = data.draw(st.sets(st.integers(0, len(sent) - 1)))
    arrived = [part for index, part in enumerate(sent) if index not in lost]
    assert assemble(*arrived) == [
        text for number, text in enumerate(texts) if not lost & set(range(number * 3, number * 3 + 3))
    ]


@given(st.lists(st.text() | st.from_regex(r"[ab] [0-3]/[0-3] x", fullmatch=True), max_size=20))
def test_invalid_parts_are_ignored(texts: list[str]) -> None:
    [end] = split("end")
    assert assemble(*texts, end)[-1] == "end"


def test_too_long_text_is_neither_split_nor_collected() -> None:
    with pytest.raises(PayloadTooLargeError, match="the maximum is 50000000"):
        list(split("x" * (MAX_CHARACTERS + 1)))
    assembler = Assembler()
    for index in range(1, 100):
        assert assembler.add(f"a {index}/99999 " + "x" * PART_CHARACTERS) is None
    assert not assembler._pieces
