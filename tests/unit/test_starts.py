"""Where a subscription begins: ``since`` in its four forms, and ``history``."""

import contextlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.cursors import format_cursor, parse_cursor
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.log.starts import (
    MAX_TOKEN_CHARACTERS,
    MAX_TOKEN_MESSAGES,
    LogPosition,
    LogTime,
    Snapshot,
    parse_token,
    requested_start,
)

EPOCH = "2f0c6d1e-0000-4000-8000-0123456789ab"
NOON = LogTime(datetime(2026, 11, 24, 12, tzinfo=timezone.utc))


@pytest.mark.parametrize(
    ("request_", "start"),
    [
        ({}, None),
        ({"since": None, "history": None}, None),
        ({"history": 0}, 0),
        ({"history": 1000}, 1000),
        ({"since": {"epoch": "e", "position": 0}}, LogPosition("e", 0)),
        ({"since": {"epoch": "e", "position": 2**63 - 1, "more": 1}}, LogPosition("e", 2**63 - 1)),
        ({"since": f"{EPOCH}:7"}, LogPosition(EPOCH, 7)),
        ({"since": "e:0"}, LogPosition("e", 0)),
        ({"since": "2026-11-24T12:00:00Z"}, NOON),
        ({"since": "2026-11-24t12:00z"}, NOON),
        ({"since": "2026-11-24 13:00:00.000+01:00"}, NOON),
        ({"since": "2026-11-24T06:30:00.000000000-0530"}, NOON),
        ({"since": "2026-11-24T13:00+01"}, NOON),
        ({"since": "2026-11-24T12:00:00.1234567Z"}, LogTime(NOON.at + timedelta(microseconds=123_456))),
        ({"since": NOON.at.astimezone(timezone(timedelta(hours=9)))}, NOON),
        ({"since": f"snapshot:{EPOCH}:8:"}, Snapshot(EPOCH, 8)),
        ({"since": f"snapshot:{EPOCH}:0:4"}, Snapshot(EPOCH, 0, ((4, 4),))),
        ({"since": f"snapshot:{EPOCH}:0:4.2_3_1.1:77"}, Snapshot(EPOCH, 0, ((4, 6), (9, 9), (10, 11)), 77)),
    ],
)
def test_requested_start_is_parsed(request_: dict[str, Any], start: object) -> None:
    assert requested_start(request_) == start


@pytest.mark.parametrize(
    "request_",
    [
        {"since": {"epoch": "e", "position": 1}, "history": 1},
        {"history": -1}, {"history": 1001}, {"history": True}, {"history": 1.0}, {"history": "1"}, {"history": []},
        {"since": 7}, {"since": {}}, {"since": []}, {"since": {"epoch": "e"}}, {"since": {"epoch": 1, "position": 1}},
        {"since": {"epoch": "e", "position": "1"}}, {"since": {"epoch": "e", "position": -1}},
        {"since": {"epoch": "e", "position": 2**63}}, {"since": {"epoch": "e", "position": True}},
        {"since": ""}, {"since": "e"}, {"since": "e:"}, {"since": ":1"}, {"since": "e:-1"}, {"since": "e:f:1"},
        {"since": f"e:{2**63}"}, {"since": "e:٣"}, {"since": "e :1"}, {"since": "e:1\n"},
    ],
)  # fmt: skip
def test_invalid_start_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        requested_start(request_)


@pytest.mark.parametrize(
    "since",
    [
        "2026-11-24T12:00:00", "2026-11-24", "2026-11-24T12:00", "2026-13-24T12:00:00Z", "2026-11-24T24:00:00Z",
        "2026-11-24T12:00:00 01:00", "2026-11-24T12Z", "0001-01-01T00:00:00+01:00", "2026-11-24:5",
        "2026-11-24T12:00:00ZZ",
        datetime(2026, 11, 24, 12),
    ],
)  # fmt: skip
def test_time_without_its_zone_or_out_of_range_is_refused(since: object) -> None:
    """Never taken for a position: "12:00" ends like one."""
    with pytest.raises(InvalidRequestError, match="time"):
        requested_start({"since": since})


@pytest.mark.parametrize(
    "rest",
    [
        "", "5", f"{EPOCH}", f"{EPOCH}:", f"{EPOCH}:5", f"{EPOCH}:-5:", f"{EPOCH}:5:0", f"{EPOCH}:5:1_",
        f"{EPOCH}:5:_1",
        f"{EPOCH}:5:1.0", f"{EPOCH}:5:1.", f"{EPOCH}:5:1..1", f"{EPOCH}:5:1:", f"{EPOCH}:5:1:x", f"{EPOCH}:5:1:2:3",
        f"{EPOCH}:{2**63}:", f"{EPOCH}:5:{2**63}", f"{EPOCH}:5:{2**62}_{2**62}", f"{EPOCH}:5:1:{2**63}",
        f"{EPOCH}:5:1.{MAX_TOKEN_MESSAGES}", f"{EPOCH.upper()}:5:1", "e:5:1", f"{EPOCH}:5:1\n",
        f"{EPOCH}:5:{'1_' * MAX_TOKEN_CHARACTERS}1", f"{EPOCH}:5:٣",
    ],
)  # fmt: skip
def test_damaged_token_is_refused(rest: str) -> None:
    with pytest.raises(InvalidRequestError, match="snapshot"):
        requested_start({"since": f"snapshot:{rest}"})


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.tuples(st.integers(1, 2**50), st.integers(0, 100)), max_size=100),
    st.none() | st.integers(1, 2**63 - 1),
)
def test_token_is_read_back(position: int, parts: list[tuple[int, int]], transaction: int | None) -> None:
    ids, end = [], 0
    for distance, more in parts:
        ids.append((end + distance, end + distance + more))
        end = ids[-1][1]
    snapshot = Snapshot(EPOCH, position, tuple(ids), transaction)
    assert parse_token(snapshot.to_token()) == snapshot
    assert snapshot.count == sum(more + 1 for _, more in parts)


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for since in (text, "snapshot:" + text, "2026-11-24" + text):
        start = None
        with contextlib.suppress(InvalidRequestError):
            start = requested_start({"since": since})
        cursor = parse_cursor(since)
        assert cursor is None or start == LogPosition(**cursor)


@given(st.integers(0, 2**63 - 1))
def test_cursor_is_read_back(position: int) -> None:
    assert parse_cursor(format_cursor(EPOCH, position)) == {"epoch": EPOCH, "position": position}
    assert parse_cursor(f"snapshot:{position}") is None
