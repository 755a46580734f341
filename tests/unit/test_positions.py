"""The arithmetic of positions, with messages in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.messages import EncodedMessage, from_log
from socketio_pg.core.rules import Rule
from socketio_pg.log.positions import (
    Batch,
    ChannelState,
    Progress,
    channel_trim_upto,
    decode_batch,
    encode_batches,
    explained,
    trim_upto,
)

TIME = "2026-11-24T00:00:00.000000Z"


def messages(first: int, last: int) -> list[EncodedMessage]:
    return [from_log(position, "foo", TIME, str(position)) for position in range(first, last + 1)]


# -- decode_batch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_batch_with_inline_messages(old: bool) -> None:
    """A relay of version 5 sends no ids."""
    word, ids = ("", ("", "")) if old else (" ids", ("41\t", "40\t"))
    text = f'e 7 8{word}\nfoo\t{TIME}\t{ids[0]}{{"a": "\\t 1.10"}}\n b\u00e4r\t{TIME}\t{ids[1]}null'
    assert decode_batch(text) == Batch(
        "e", 7, 8,
        [
            EncodedMessage("foo", '{"a": "\\t 1.10"}', 7, TIME, None if old else 41),
            EncodedMessage(" b\u00e4r", "null", 8, TIME, None if old else 40),
        ],
    )  # fmt: skip


def test_batch_with_a_range() -> None:
    assert decode_batch("e 7 1000") == Batch("e", 7, 1000, None)


@pytest.mark.parametrize(
    "text",
    [
        "", "installed", "epoch", "e 7", "e 7 8 9", "e x 8", "e 8 7", "e 0 7", "e -1 7", "e 7 8\nfoo\tt\t1",
        "e 7 7\nfoo\t1", "e 7 " + "9" * 7000,
        "e 7 7\nfoo\tt\t1\nfoo\tt\t2", "e 7 \u00b2", "e 7 7 ids\nfoo\tt\t1", "e 7 7 ids\nfoo\tt\tx\t1", "e 7 7 x",
    ],
)  # fmt: skip
def test_invalid_batch_is_none(text: str) -> None:
    assert decode_batch(text) is None


@given(st.text())
def test_decode_batch_never_fails(text: str) -> None:
    batch = decode_batch(text)
    assert batch is None or batch.first <= batch.last


@given(st.lists(st.integers(0, 260), min_size=1, max_size=30), st.sampled_from("x\u00e9\u65e5"), st.integers(1, 10**18))
def test_encoded_batches_cover_all_messages(sizes: list[int], letter: str, first: int) -> None:
    """Lines of up to 780 bytes with room for some 200; 0 stands for a message that must be read from the log."""
    lines = [f'foo\t{TIME}\t9\t"{letter * size}"' if size else "" for size in sizes]
    texts = list(encode_batches("e" * 36, first, "\n".join(lines), 320))
    assert max(len(text.encode()) for text in texts) <= 320
    found: list[str] = []
    for text in texts:
        batch = decode_batch(text)
        assert batch is not None
        assert batch.first == first + len(found)
        if batch.messages is None:
            found += [""] * (batch.last - batch.first + 1)
        else:
            found += [f"foo\t{TIME}\t{message.outbox_id}\t{message.payload_json}" for message in batch.messages]
    room = 320 - 36 - 45
    assert found == [line if len(line.encode()) <= room else "" for line in lines]


def test_small_messages_share_notifications() -> None:
    assert len(list(encode_batches("e" * 36, 1, "\n".join([f"foo\t{TIME}\t9\t1"] * 100), 5_900))) == 1
    assert list(encode_batches("e", 5, "\n", 5_900)) == ["e 5 6"]


# -- Progress ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data())
def test_every_message_is_delivered_once_in_order(last: int, data: st.DataObject) -> None:
    """Batches arrive inline, as ranges, twice, late or never; missing positions are read in pages that may overlap."""
    progress, delivered = Progress("e", 0), list[int]()

    def deliver(found: list[EncodedMessage]) -> None:
        for message in progress.due(found):
            assert message.position is not None
            delivered.append(message.position)
            progress.position = message.position

    for _ in range(data.draw(st.integers(0, 30))):
        first = data.draw(st.integers(1, last))
        end = data.draw(st.integers(first, last))
        what = data.draw(st.sampled_from(["inline", "range", "page"]))
        if what == "inline":
            deliver(messages(first, end))
        elif what == "range":
            progress.expect(end)
        elif progress.behind:
            # Starts at or before the next position: live messages may have been delivered while the page was read.
            deliver(messages(data.draw(st.integers(1, progress.position + 1)), progress.target))
            assert not progress.behind
        assert delivered == list(range(1, progress.position + 1))
        assert progress.target >= progress.position
    progress.expect(last)
    deliver(messages(progress.position + 1, last))
    assert delivered == list(range(1, last + 1))
    assert not progress.behind


def test_messages_after_a_missing_position_are_not_due() -> None:
    progress = Progress("e", 5)
    assert list(progress.due(messages(7, 9))) == []
    assert (progress.position, progress.target, progress.behind) == (5, 9, True)


# -- trim_upto ---------------------------------------------------------------------------------------------------------

AGES = st.lists(st.floats(0, 100), max_size=20)


@given(AGES, st.integers(0, 50), st.integers(0, 5), st.floats(0, 100), st.none() | st.integers(1, 30))
def test_trim_upto_trims_only_due_messages(
    ages: list[float], trimmed: int, further: int, retention: float, max_messages: int | None
) -> None:
    oldest = list(enumerate(ages, trimmed + 1))
    head = trimmed + len(oldest) + further
    upto = trim_upto(oldest, head, retention, max_messages)
    kept = [(position, age) for position, age in oldest if upto is None or position > upto]
    gone = [(position, age) for position, age in oldest if upto is not None and position <= upto]
    # Trimmed messages were due. The oldest kept message was not, or is the newest of the log.
    for position, age in gone:
        assert age > retention or (max_messages is not None and head - position >= max_messages)
        assert position < head, "the newest message stays: the next position is derived from it"
    if kept:
        position, age = kept[0]
        due = age > retention or (max_messages is not None and head - position >= max_messages)
        assert not due or position == head


def test_trimming_stops_at_the_first_young_message() -> None:
    assert trim_upto([(1, 90.0), (2, 5.0), (3, 90.0)], 9, 60.0, None) == 1


def test_trimming_keeps_the_exact_number_of_messages() -> None:
    assert trim_upto([(position, 0.0) for position in range(1, 11)], 10, 60.0, 3) == 7


# -- channel_trim_upto -------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 100), max_size=8),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 30),
    st.none() | st.sampled_from([5.0, 30.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_rule_trims_only_due_messages_of_its_channel(
    ages: list[float],
    max_messages: int | None,
    default_max_messages: int | None,
    max_age: float | None,
    retained: bool,
    cleared: bool,
    further: int,
) -> None:
    oldest = [(3 * index, age) for index, age in enumerate(sorted(ages, reverse=True), 1)]
    newest = oldest[-1][0] if oldest else 0
    head = newest + further
    keep = max_messages or len(oldest)
    surplus = oldest[-keep - 1][0] if len(oldest) > keep else 0
    rule = Rule(max_messages=max_messages, max_age=max_age, retained=retained)
    state = ChannelState(oldest, newest, surplus, cleared)
    upto = channel_trim_upto(state, rule, head, default_max_messages, 2.0) or 0
    for index, (position, age) in enumerate(oldest):
        newer = len(oldest) - index - 1
        expired = max_age is not None and age > max_age
        if max_messages is not None:
            expired = expired or newer >= max_messages
        elif default_max_messages is not None:
            expired = expired or head - position >= default_max_messages
        kept = age <= 2.0 or position == head or (retained and not cleared and not newer)
        if position <= upto:
            assert expired
            assert not kept
        elif position == min((one for one, _ in oldest if one > upto), default=0):
            assert kept or not expired, "it stops at the first message that stays"


@pytest.mark.parametrize(
    ("present", "end", "trims", "expected"),
    [
        ([6, 7, 8], 8, {}, True),
        ([6, 8], 8, {"a": 7}, True),
        ([6, 8], 8, {"a": 9, "b": 2}, True),
        ([6, 8], 8, {"a": 6}, False),
        ([6, 7], 8, {"a": 7}, False),
        ([], 8, {"a": 8}, True),
        ([], 8, {}, False),
        ([7, 8], 8, {"a": 6}, True),
    ],
)
def test_holes_that_rules_explain(present: list[int], end: int, trims: dict[str, int], expected: bool) -> None:
    assert explained([from_log(position, "foo", TIME, "1") for position in present], 5, end, trims) is expected
