"""The next request of a Subscriber's channel, depending on the state of its handlers."""

from typing import Any

import pytest

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import Position
from socketio_pg.subscriber.subscription import Member, next_request


def at(position: int, epoch: str = "e") -> Position:
    return {"epoch": epoch, "position": position}


def member(since: Position | str | None = None, history: int | None = None, **state: Any) -> Member:
    made = Member("foo", print, history, since, None, None)
    for name, value in state.items():
        setattr(made, name, value)
    return made


def live(position: int, epoch: str = "e") -> Member:
    return member(at(position, epoch), current=True, established=True)


def test_no_request_when_all_members_are_live() -> None:
    assert next_request([], is_open=False, paused=False) is None
    assert next_request([live(1), live(5)], is_open=True, paused=False) is None


def test_channel_without_members_is_unsubscribed() -> None:
    assert next_request([], is_open=True, paused=False) == ("unsubscribe", {}, [])


def test_new_members_without_history_share_a_request() -> None:
    first, second, with_history = member(), member(history=0), member(history=3)
    assert next_request([with_history, first, second], False, False) == ("subscribe", {}, [first, second])
    assert next_request([live(1), with_history], True, False) == ("subscribe", {"history": 3}, [with_history])


def test_members_with_equal_history_share_a_request() -> None:
    three, four, three_too = member(history=3), member(history=4), member(history=3)
    assert next_request([three, four, three_too], False, False) == ("subscribe", {"history": 3}, [three, three_too])


def test_lowest_position_is_requested_first() -> None:
    high, low, low_too, new = member(at(9)), member(at(2)), member(at(2)), member(history=3)
    assert next_request([new, high, low, low_too, live(20)], True, False) == (
        "subscribe", {"since": at(2)}, [low, low_too]
    )  # fmt: skip


def test_positions_of_another_epoch_are_not_compared() -> None:
    old, new = member(at(9, "old")), member(at(2, "new"))
    assert next_request([old, new], False, False) == ("subscribe", {"since": at(9, "old")}, [old])


def test_unknown_epoch_is_requested() -> None:
    """The log was installed after the subscription: the answer to a new request has its epoch."""
    one = live(7, epoch="")
    assert next_request([one, live(8)], True, False) == ("subscribe", {}, [one])


def test_paused_channel_subscribes_only_new_members() -> None:
    behind = member(at(5), established=True)
    assert next_request([behind], is_open=True, paused=True) == ("unsubscribe", {}, [])
    assert next_request([behind], is_open=False, paused=True) is None
    new = member(at(9))
    assert next_request([behind, new], is_open=False, paused=True) == ("subscribe", {"since": at(9)}, [new])
    assert next_request([behind, live(9)], is_open=True, paused=True) is None
    assert next_request([behind], is_open=False, paused=False) == ("subscribe", {"since": at(5)}, [behind])


@pytest.mark.parametrize("since", [{"position": 5}, {"epoch": "e"}, {"epoch": 1, "position": 5}])
def test_invalid_since_is_refused(since: Any) -> None:
    with pytest.raises(InvalidRequestError, match="since"):
        member(since)


def test_position_is_none_while_its_epoch_is_unknown() -> None:
    one = member()
    assert one.position is None
    one.handled = at(5, epoch="")
    assert one.position is None
    one.handled = at(5)
    assert one.position == at(5)


def test_member_with_a_snapshot_continues_with_its_token_until_it_is_live() -> None:
    one = member("snapshot:x")
    assert next_request([one, live(3)], True, False) == ("subscribe", {"since": "snapshot:x"}, [one])
    one.received, one.established = at(5), True
    assert next_request([one], False, False) == ("subscribe", {"since": "snapshot:x"}, [one])
    # Meanwhile only new members may subscribe: another replay would take the place of this one.
    new, behind = member(), member(at(2))
    assert next_request([one, behind], True, False, busy=True) is None
    assert next_request([one, behind, new], True, False, busy=True) == ("subscribe", {}, [new])
    one.handled = at(5)
    assert one.position is None, "no place to continue from"
    one.start, one.caught_up = {}, True
    one.went_live({"channel": "foo", "epoch": "e", "position": 7})
    assert one.position == at(5)
    assert one.live.is_set()
