"""The follower, with a simulated listener and database."""

from collections.abc import Callable
from typing import Any

import pytest

from socketio_pg.core.channels import LOG_CHANNEL
from socketio_pg.core.messages import from_log
from socketio_pg.core.seal import Key, Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import Read
from socketio_pg.log.positions import Head
from socketio_pg.log.recent import Page, Recent


class Log:
    """A simulated log of numbers. ``while_asked`` runs after the head is read and before it is returned."""

    def __init__(self) -> None:
        self.head_position, self.trimmed, self.epoch = 10, 0, "e"
        self.while_asked: Callable[[], None] = lambda: None
        self.delivered: list[int] = []
        self.gaps: list[str] = []
        #: Positions that rules have removed, what they say about channels, and what was deleted by hand.
        self.holes: set[int] = set()
        self.trims: dict[str, int] = {}
        self.removed = 0
        self.reported: list[dict[str, int]] = []
        anything: Any = self
        self.seal = Seal()
        self.seal.use("1/1", [Key.from_bytes(bytes(32))])
        self.follower = Follower(
            anything,
            anything,
            Recent(),
            self.deliver,
            self.gaps.append,
            Sealing(self.seal),
            on_trims=lambda trims: self.reported.append(dict(trims)),
        )
        self.catch_up()

    def head(self) -> Head:
        head = Head(self.epoch, self.head_position, self.trimmed)
        self.while_asked()
        return head

    def page(self, after: int, upto: int) -> Read:
        first = max(after, self.trimmed) + 1
        found = [from_log(n, "a", "2026", "0") for n in range(first, upto + 1) if n not in self.holes]
        trims = {channel: position for channel, position in self.trims.items() if position >= first}
        return Read(Page(first - 1, upto, found), self.trimmed, self.removed, trims)

    def deliver(self, messages: Any) -> None:
        self.delivered += [message.position for message in messages]

    def catch_up(self) -> None:
        self.follower._catch_up()

    def hear(self, first: int, last: int, inline: bool = True) -> None:
        lines = "".join("\na\t2026\t0" for _ in range(first, last + 1)) if inline else ""
        self.follower.hear([self.seal.seal(LOG_CHANNEL, f"{self.epoch} {first} {last}{lines}")])


def test_follower_starts_at_the_head() -> None:
    log = Log()
    log.hear(11, 12)
    assert (log.delivered, log.follower.position, log.gaps) == ([11, 12], 12, [])


def test_missing_positions_are_read() -> None:
    log = Log()
    log.hear(13, 14)
    log.hear(15, 15, inline=False)
    assert log.delivered == []
    log.head_position = 15
    log.catch_up()
    assert log.delivered == [11, 12, 13, 14, 15]


def test_outdated_head_is_ignored() -> None:
    log = Log()
    log.while_asked = lambda: log.hear(11, 11)
    log.catch_up()
    assert (log.delivered, log.follower.position, log.gaps) == ([11], 11, [])


def test_lower_head_is_an_epoch_change() -> None:
    log = Log()
    log.head_position = 3
    log.catch_up()
    assert (log.follower.position, log.gaps) == (3, ["epoch_changed"])
    log.hear(4, 4)
    assert log.delivered == [4]


def test_epoch_change_is_a_gap() -> None:
    log = Log()
    log.epoch, log.head_position = "f", 2
    log.hear(3, 3)
    assert log.delivered == [], "a batch of an unknown epoch triggers a read"
    log.head_position = 3
    log.catch_up()
    assert (log.follower.epoch, log.gaps) == ("f", ["epoch_changed"])


def test_log_that_was_gone_is_a_gap_and_another_one_where_it_begins_again() -> None:
    log = Log()
    log.follower._forget()
    assert (log.follower.epoch, log.gaps) == (None, ["epoch_changed"])
    log.epoch, log.head_position = "f", 0
    log.catch_up()
    assert (log.follower.epoch, log.gaps) == ("f", ["epoch_changed"] * 2)
    log.catch_up()
    assert len(log.gaps) == 2


@pytest.mark.parametrize(("head", "gaps"), [(0, []), (3, ["epoch_changed"])])
def test_messages_relayed_before_a_new_log_was_found_are_a_gap(head: int, gaps: list[str]) -> None:
    log = Log()
    log.follower._progress = None  # the database had no log when the node started
    log.follower._forget()
    log.head_position = head
    log.catch_up()
    log.hear(head + 1, head + 1)
    assert (log.delivered, log.gaps) == ([head + 1], gaps)


def test_trimmed_positions_are_a_gap() -> None:
    log = Log()
    log.head_position, log.trimmed = 20, 15
    log.catch_up()
    assert (log.delivered, log.gaps) == ([16, 17, 18, 19, 20], ["trimmed"])


@pytest.mark.parametrize("holes", [{11, 12}, {12, 14}, {15, 19, 20}, set(range(11, 21))])
def test_messages_that_rules_have_removed_are_a_gap_of_their_channels(holes: set[int]) -> None:
    log = Log()
    log.head_position, log.holes = 20, holes
    log.trims = {"b": max(holes), "c": min(holes), "old": 9}
    log.catch_up()
    assert log.delivered == [n for n in range(11, 21) if n not in holes]
    assert (log.reported, log.gaps) == ([{"b": max(holes), "c": min(holes)}], [])
    assert (log.follower.position, log.follower.delivered, log.follower.behind) == (20, 20, 0)
    log.hear(21, 22)
    assert log.delivered[-2:] == [21, 22]


def test_replays_do_not_take_messages_from_memory_that_lack_some() -> None:
    log = Log()
    log.hear(11, 12)
    log.head_position, log.holes, log.trims = 20, {15}, {"b": 15}
    log.catch_up()
    assert log.follower._recent.page("b", 12, 20) is None
    log.hear(21, 22)
    assert log.follower._recent.page("a", 20, 22) is not None


@pytest.mark.parametrize(("trims", "removed"), [({"b": 14}, 0), ({}, 0), ({"b": 20}, 15)])
def test_messages_that_were_deleted_by_hand_are_a_gap_of_all_channels(trims: dict[str, int], removed: int) -> None:
    log = Log()
    log.head_position, log.holes, log.trims, log.removed = 20, {14, 15}, trims, removed
    log.catch_up()
    assert log.delivered == [11, 12, 13, 16, 17, 18, 19, 20]
    assert log.gaps == ["trimmed"]


def test_announced_position_beyond_the_head_is_ignored() -> None:
    log = Log()
    log.hear(500, 1000, inline=False)
    log.catch_up()
    assert (log.follower.position, log.gaps) == (10, [])
    log.hear(11, 11)
    assert log.delivered == [11]
