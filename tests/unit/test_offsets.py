"""Offsets of clients that can recover their session: parsing, hostile values, and how far each subscription is."""

import random
from dataclasses import dataclass

import pytest

from socketio_pg.gateway.restoring import _reached
from socketio_pg.protocol.offsets import MAX_LENGTH, MAX_OTHERS, Cursor, Offset, parse_offset
from socketio_pg.recovery.session import Entry

EPOCH = "0b5c9a0e-3c1c-4a73-9a4e-52b0f3c3a7d1"


@dataclass
class FakeLog:
    epoch: str | None = EPOCH
    delivered: int = 0


@pytest.mark.parametrize(
    "offset",
    [
        Offset(EPOCH, 0),
        Offset(EPOCH, 10**18 - 1),
        Offset(EPOCH, 7, {1: 0, 999_999_999: 10**18 - 1}),
        Offset(EPOCH, 7, {number: 10**17 + number for number in range(1, 1 + MAX_OTHERS)}),
        Offset(EPOCH, 7, complete=False),
        Offset(EPOCH, 7, tag=0),
        Offset(EPOCH, 7, {3: 4}, tag=77, newest=3),
        Offset(
            EPOCH,
            10**18 - 1,
            {999_999_900 + number: 10**18 - 1 for number in range(MAX_OTHERS)},
            tag=2**32 - 1,
            newest=9_999_999,
        ),
    ],
)
def test_offsets_are_parsed_as_they_are_written(offset: Offset) -> None:
    assert len(str(offset)) <= MAX_LENGTH
    assert parse_offset(str(offset)) == offset


@pytest.mark.parametrize(
    "text",
    [
        None, 5, True, [], {}, "", "r1:", "a foreign text", f"{EPOCH}:7", f"r1:{EPOCH}", f"r1:{EPOCH}:",
        f"r1:{EPOCH}:-1", f"r1:{EPOCH}:1e3", f"r1:{EPOCH}:{10**18}", f"r1:{EPOCH}:\u0663", f"r1:{EPOCH}:7;",
        f"r1:{EPOCH}:7;3", f"r1:{EPOCH}:7;3=",
        f"r1:{EPOCH}:7;3=4,", f"r1:{EPOCH}:7;*,3=4", f"r1:{EPOCH}:7\n", f" r1:{EPOCH}:7", f"r2:{EPOCH}:7",
        f"r1:{EPOCH[:-1]}:7", f"r1:{EPOCH.upper()}:7", "r1:" + "9" * 100_000, f"r1:{EPOCH}:7;" + "1=1," * 100_000,
        f"r1:{EPOCH}:7;" + ",".join(f"{number}=1" for number in range(1, MAX_OTHERS + 2)), f"r1:{EPOCH}:7;3=4 ",
        "\ud800",
    ],
)  # fmt: skip
def test_other_values_are_no_offsets(text: object) -> None:
    assert parse_offset(text) is None


def test_an_offset_follows_live_messages_and_all_others() -> None:
    log = FakeLog(delivered=5)
    cursor = Cursor(log)
    assert cursor.offset() == f"r1:{EPOCH}:5"
    cursor.sent = 7  # its message is sent before that of other clients
    assert cursor.offset() == f"r1:{EPOCH}:7"
    log.delivered = 9
    assert cursor.offset() == f"r1:{EPOCH}:9"


def test_a_replay_in_a_new_epoch_is_not_taken_for_one_of_the_former() -> None:
    """The client may have got no event since the epoch has changed."""
    log = FakeLog(delivered=5)
    cursor = Cursor(log)
    cursor.numbers["a"] = 1
    log.epoch, log.delivered = EPOCH[::-1], 3
    cursor.hold("a", 2)
    assert cursor.offset() == f"r1:{EPOCH[::-1]}:2"
    assert cursor.behind == {"a": 2}


def test_replays_have_positions_of_their_own() -> None:
    log = FakeLog(delivered=100)
    cursor = Cursor(log)
    cursor.numbers = {"a": 1, "b": 2, "c": 3}
    cursor.behind["b"] = 60
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 100, {2: 60})
    # Without a live subscription the position is that of most of them.
    cursor.behind |= {"a": 90, "c": 90}
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 90, {2: 60})
    cursor.leave("b")
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 90)
    cursor.catch_up(120)
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 120)


def test_a_replay_may_overtake_messages_that_are_being_delivered() -> None:
    log = FakeLog(delivered=100)
    cursor = Cursor(log)
    cursor.numbers = {"live": 1, "replayed": 2}
    cursor.behind["replayed"] = 60
    cursor.catch_up(
        110
    )  # position 101 to 110 are being delivered: the client may not have them yet in the other channel
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 100, {2: 110})
    cursor.sent = 105
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 105, {2: 110})
    log.delivered = 110
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 110)
    log.delivered = 111
    assert parse_offset(cursor.offset()) == Offset(EPOCH, 111)
    assert not cursor.alone


def test_too_many_replays_are_not_recoverable() -> None:
    cursor = Cursor(FakeLog(delivered=100))
    cursor.numbers = {str(number): number + 1 for number in range(50)}
    cursor.behind = {str(number): number for number in range(MAX_OTHERS + 1)}
    found = parse_offset(cursor.offset())
    assert found is not None
    assert not found.complete


def test_a_new_epoch_begins_anew() -> None:
    log = FakeLog(delivered=100)
    cursor = Cursor(log)
    cursor.sent = 120
    cursor.numbers, cursor.behind = {"a": 1}, {"a": 50}
    log.epoch, log.delivered = EPOCH.replace("0", "1"), 3
    assert parse_offset(cursor.offset()) == Offset(log.epoch, 3)
    log.epoch = None
    assert parse_offset(cursor.offset()) is None


@pytest.mark.parametrize("seed", range(50))
def test_offsets_are_exact_whatever_happens(seed: int) -> None:
    """A client that is cut off at any event continues each subscription exactly where it was."""
    rng = random.Random(seed)
    log = FakeLog(delivered=0)
    cursor = Cursor(log)
    head = 0
    has: dict[str, int] = {}  # the position up to which each subscription has got everything
    for number in range(6):
        channel = str(number)
        cursor.numbers[channel] = number + 1  # 0 is the tag
        has[channel] = 0
    for _ in range(300):
        action = rng.random()
        live = [channel for channel in has if channel not in cursor.behind]
        if action < 0.4:  # a batch is delivered
            head += rng.randint(1, 5)
            if rng.random() < 0.7:
                if live:
                    cursor.sent = head
                has |= dict.fromkeys(live, head)
                assert _places(cursor, has) == has
            has |= dict.fromkeys(live, head)
            log.delivered = head
        elif action < 0.6:
            channel = rng.choice(list(has))
            has[channel] = cursor.behind[channel] = rng.randint(0, head)
        elif cursor.behind and action < 0.8:
            channel = min(cursor.behind, key=cursor.behind.__getitem__)
            has[channel] = cursor.behind[channel] = rng.randint(cursor.behind[channel], head)
        elif cursor.behind:
            has |= dict.fromkeys(cursor.behind, head)
            cursor.catch_up(head)
        assert _places(cursor, has) == has


def _places(cursor: Cursor, has: dict[str, int]) -> dict[str, int]:
    found = parse_offset(cursor.offset())
    assert found is not None
    assert found.complete
    return {channel: found.others.get(cursor.numbers[channel], found.position) for channel in has}


def test_an_offset_has_the_tag_of_the_session_if_it_may_be_taken_for_another_one() -> None:
    """The client may ask for messages from before its session began, or from before its last offset."""
    log = FakeLog(delivered=227)
    cursor = Cursor(log, tag=77, begins=227)
    assert cursor.offset() == f"r1:{EPOCH}:227"
    assert not cursor.alone
    cursor.numbers = {"a": 1, "b": 2}
    cursor.hold("a", 0)
    assert cursor.offset() == f"r1:{EPOCH}:227;0=770000001,1=0"
    cursor.hold("b", 5)
    cursor.behind["a"] = 5
    assert cursor.offset() == f"r1:{EPOCH}:5;0=770000002"
    cursor.catch_up(227)
    # The client may have got this position before it subscribed.
    assert cursor.alone
    assert cursor.offset() == f"r1:{EPOCH}:227;0=770000002"
    log.delivered = 228
    assert not cursor.alone
    assert cursor.offset() == f"r1:{EPOCH}:228"
    # On a node that is behind the one where the session began.
    behind = Cursor(FakeLog(delivered=200), tag=77, begins=227)
    assert behind.alone
    assert behind.offset() == f"r1:{EPOCH}:200;0=770000000"


@pytest.mark.parametrize(
    ("entry", "offset", "reached"),
    [
        (Entry(1, 0), Offset(EPOCH, 9), 9),
        (Entry(1, 0), Offset(EPOCH, 9, {1: 4}, tag=77, newest=1), 4),
        (Entry(2, 0, replaying=True), Offset(EPOCH, 9), None),
        (Entry(2, 0, replaying=True), Offset(EPOCH, 9, {1: 4}, tag=77, newest=1), None),
        (Entry(2, 0, replaying=True), Offset(EPOCH, 9, {1: 4}, tag=77, newest=2), 9),
        (Entry(2, 0, replaying=9), Offset(EPOCH, 9), None),
        (Entry(2, 0, replaying=9), Offset(EPOCH, 10), 10),
        (Entry(2, 0, replaying=9), Offset(EPOCH, 9, tag=77, newest=2), 9),
        (Entry(2, 0, replaying=9), Offset(EPOCH, 9, tag=77, newest=1), None),
    ],
)
def test_an_offset_tells_how_far_a_subscription_has_got(entry: Entry, offset: Offset, reached: int | None) -> None:
    """None: the client had the offset before it subscribed, and nothing of the replay has arrived."""
    assert _reached(entry, offset) == reached
