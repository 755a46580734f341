"""The in-memory part of the log agrees with the log after any evictions."""

from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.messages import EncodedMessage, from_log
from socketio_pg.log.recent import Page, Recent

CHANNELS = ["a", "b", "c"]
LOG = st.lists(st.tuples(st.sampled_from(CHANNELS), st.integers(0, 400)), max_size=60)


def log_of(rows: list[tuple[str, int]]) -> list[EncodedMessage]:
    return [from_log(position, channel, "2026", f'"{"x" * size}"') for position, (channel, size) in enumerate(rows, 1)]


def between(log: list[EncodedMessage], channel: str, after: int, upto: int) -> list[EncodedMessage]:
    return [message for message in log[after:upto] if message.channel == channel]


@given(LOG, st.integers(300, 20_000), st.data())
def test_page_equals_the_log(rows: list[tuple[str, int]], most: int, data: st.DataObject) -> None:
    log = log_of(rows)
    recent = Recent(most)
    recent.page_messages, recent.page_bytes = 5, 1000
    begin = data.draw(st.integers(0, len(log)))
    recent.reset(begin)
    delivered = begin
    for _ in range(data.draw(st.integers(1, 25))):
        channel = data.draw(st.sampled_from(CHANNELS))
        if data.draw(st.booleans()):
            share = data.draw(st.integers(0, len(log) - delivered))
            recent.append(log[delivered : delivered + share])
            delivered += share
        elif recent.start:
            # A page read from the log, for a client that is far behind.
            after = data.draw(st.integers(0, recent.start - 1))
            end = data.draw(st.integers(after + 1, recent.start))
            messages = between(log, channel, after, end)[: recent.page_messages]
            if len(messages) == recent.page_messages:  # a full page ends with its last message
                end = messages[-1].position or 0
            recent.keep(channel, Page(after, end, messages))
        assert recent.start <= delivered
        after = data.draw(st.integers(0, delivered))
        page = recent.page(channel, after, delivered)
        if page is None:
            assert after < recent.start, "the tail is in memory"
            continue
        assert page.after == after
        assert after < page.end or after == delivered
        assert page.end <= delivered
        assert list(page.messages) == between(log, channel, after, page.end)
        assert len(page.messages) <= 5
        count = data.draw(st.integers(0, 10))
        known = recent.before_newest(channel, count, delivered)
        if known is not None:
            assert len(between(log, channel, known, delivered)) == count


def test_memory_is_limited() -> None:
    recent = Recent(100_000)
    for position in range(1, 2001):
        recent.append([from_log(position, f"channel {position % 7}", "2026", '"' + "x" * 998 + '"')])
    kept = sum(len(part) for _, part in recent._parts.values())
    assert kept == 100_000 // 1300
    assert recent.start == 2000 - kept
    for position in range(1, 500):
        recent.keep("old", Page(position - 1, position, [from_log(position, "old", "2026", '"' + "x" * 998 + '"')]))
    assert len(recent._kept) == len(recent._pages["old"]) == 100_000 // 1600


def test_page_size_is_limited_to_at_least_one_message() -> None:
    recent = Recent()
    recent.append([from_log(position, "a", "2026", '"' + "x" * 400_000 + '"') for position in range(1, 4)])
    ends = []
    after = 0
    while after < 3:
        page = recent.page("a", after, 3)
        assert page is not None
        assert len(page.messages) == 1
        after = page.end
        ends.append(after)
    assert ends == [1, 2, 3]


def test_newest_messages_span_a_page_and_the_tail() -> None:
    recent = Recent()
    recent.reset(10)
    old = [from_log(position, "a", "2026", "0") for position in (4, 7, 9)]
    recent.append([from_log(position, "a" if position % 2 else "b", "2026", "0") for position in range(11, 16)])
    assert recent.before_newest("a", 3, 15) == 10  # 11, 13, 15
    assert recent.before_newest("a", 4, 15) is None
    recent.keep("a", Page(3, 10, old))
    assert recent.before_newest("a", 4, 15) == 8
    assert recent.before_newest("a", 6, 15) == 3
    assert recent.before_newest("a", 7, 15) is None
    assert recent.before_newest("a", 0, 15) == 15
