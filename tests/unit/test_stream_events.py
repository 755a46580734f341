"""Server-Sent Events as text: a client's parser finds what was put in, and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.streams.events import (
    COMMENT,
    MAX_EVENT_NAME,
    OWN_EVENTS,
    block,
    html_block,
    is_event_name,
    message_block,
    move_cursor,
    own_event,
    retry,
)
from socketio_pg.streams.groups import encode
from tests.support.sse import Event, Parser

CURSOR = "2f0c0000-0000-0000-0000-000000000000:7"
TIME = "2026-11-24T12:00:00.000000Z"
#: Texts that look like fields and line breaks of the format.
texts = st.text(st.sampled_from("a:\r\n\0 ä\ufeff\u2028\u0085") | st.characters(exclude_categories=["Cs"]), max_size=30)


def parsed(*blocks: bytes, size: int = 10**6) -> tuple[list[Event], Parser]:
    """Return the events of a stream that arrives in pieces of ``size`` bytes."""
    parser, stream = Parser(), b"".join(blocks)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    return [event for piece in pieces for event in parser.feed(piece)], parser


@given(texts, st.integers(1, 5))
def test_any_data_stays_one_event(data: str, size: int) -> None:
    events, parser = parsed(COMMENT, block(data.encode(), "x", CURSOR), retry(5), size=size)
    assert events == [Event("x", data.replace("\r\n", "\n").replace("\r", "\n"), CURSOR)]
    assert (parser.comments, parser.retry) == (1, 5)


@given(st.recursive(st.none() | st.integers() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)))
def test_a_payload_arrives_as_it_is_also_with_line_breaks_between_its_tokens(payload: Any) -> None:
    for indent in (None, 1):
        text = json.dumps(payload, indent=indent).replace("\n", "\r\n")
        [event], _ = parsed(message_block(EncodedMessage("a", text), ""))
        assert event == Event("message", event.data, "")
        assert event.json == {"channel": "a", "payload": payload}


def test_messages_of_the_log_have_an_id_and_others_do_not() -> None:
    logged, notified = EncodedMessage("a", "1.50", 7, TIME), EncodedMessage("a", "2")
    found = [encode(message, form, "e", lambda _: '"1.50"') for message in (logged, notified) for form in ("json",)]
    events, _ = parsed(*(one for one in found if one is not None))
    assert [event.id for event in events] == ["e:7", "e:7"]  # the second has none of its own
    assert events[0].data == f'{{"channel":"a","payload":1.50,"position":7,"published_at":"{TIME}"}}'
    assert b"id:" not in (found[1] or b"")
    [strings], _ = parsed(encode(logged, "strings", "e", lambda _: '"1.50"') or b"")
    assert strings.json["payload"] == "1.50"


def test_a_cursor_moves_without_an_event() -> None:
    events, parser = parsed(own_event("live", {}, "e:1"), move_cursor("e:5"))
    assert (len(events), events[0].id, parser.last_id) == (1, "e:1", "e:5")


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        ({"html": "<p>\r\n a</p>\n"}, Event("message", "<p>\n a</p>\n", CURSOR)),
        ({"html": "", "event": "card 7"}, Event("card 7", "", CURSOR)),
        ({"html": "x", "event": None}, Event("message", "x", CURSOR)),
        ({"html": "x\n\nid: e:99\n\ndata: y"}, Event("message", "x\n\nid: e:99\n\ndata: y", CURSOR)),
        *[
            ({"html": "x", "event": name}, None)
            for name in ("a\nid: 1", "a\r", "\0", "", " a", "a" * (MAX_EVENT_NAME + 1), 7, *OWN_EVENTS)
        ],
        ({"html": 7}, None), ({"data": "x"}, None), (["html"], None), ("html", None),
    ],
)  # fmt: skip
def test_html_and_the_name_of_its_event(payload: Any, wanted: Event | None) -> None:
    found = html_block(EncodedMessage("a", json.dumps(payload), 7, TIME), CURSOR)
    assert (None if found is None else parsed(found)[0]) == (None if wanted is None else [wanted])


def test_html_comes_through_the_log_only() -> None:
    text = json.dumps({"html": "<script>"})
    assert encode(EncodedMessage("a", text), "html", "e", str) is None
    assert encode(EncodedMessage("a", text, 7, TIME), "html", "e", str) is not None


@given(texts)
def test_no_name_of_an_event_breaks_its_line(name: str) -> None:
    if is_event_name(name):
        events, _ = parsed(block(b"x", name))
        assert [(event.name, event.data) for event in events] == [(name, "x")]
