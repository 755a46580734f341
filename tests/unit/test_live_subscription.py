"""A live table's turns among the replays of its client: rows that are read again while a step waits."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from socketio_pg.gateway.live_subscription import LiveSubscription
from socketio_pg.gateway.replays import Replays, Steps
from socketio_pg.log.replay import Step
from socketio_pg.protocol.fanout import Manager
from socketio_pg.tables.loading import Shown, Wanted
from socketio_pg.tables.reading import Query
from socketio_pg.tables.requests import Place
from socketio_pg.tables.sequence import RowsSequence
from socketio_pg.tables.views import Form, RestartError


class _Feed:
    """A feed that is one message ahead of the rows."""

    users, position, epoch, busy = 0, 1, "e", False

    def check_epoch(self, epoch: str) -> None:
        assert epoch == self.epoch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        yield


class _Rows:
    """A sequence without rows. ``extend`` waits for the log, that is: calls ``meanwhile``."""

    position, epoch, settled = 0, "e", True

    def __init__(self, feed: _Feed, meanwhile: Callable[[], object]) -> None:
        self.feed = feed
        self.extended = 0
        self._meanwhile = meanwhile

    def add(self, member: object) -> bool:
        return True

    def discard(self, member: object) -> None:
        """It has no members."""

    def next(self, member: object) -> None:
        return None

    def has_more(self, member: object) -> bool:
        return False

    def extend(self, member: object) -> None:
        self.extended += 1
        self._meanwhile()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("waits", [1, 2])
def test_rows_that_are_read_again_while_a_step_waits_are_sent(fails: bool, waits: int) -> None:
    """Its turns go on: those that read the rows again have found them in progress, and have not begun others."""
    feed = _Feed()
    subscription = LiveSubscription(
        cast(Manager, None),
        "me",
        Wanted(Form(Place("public.t", None), False), cast(Query, None)),
        _unexpected,
        _unexpected,
    )
    replays = Replays(cast(Manager, None), 0, lambda sid, channel: None)
    queue: dict[str, Steps] = {subscription.channel: subscription}
    replays._queues["me"] = queue

    def read_again() -> None:
        if old.extended == waits:
            subscription.halt()
            assert subscription.begin(cast(Shown, None), cast(RowsSequence, new), "lagging")
            replays.send("me", subscription.channel, subscription)
            assert list(queue.values()) == [subscription]
            if fails:
                raise RestartError("trimmed")  # of the old rows
        else:
            # It has what the feed had, and the feed goes on: it waits within a pause of the feed the next time.
            old.position = feed.position
            feed.position += 1

    old, new = _Rows(feed, read_again), _Rows(feed, lambda: None)
    assert subscription.begin(cast(Shown, None), cast(RowsSequence, old), None)
    steps = [subscription.step() for _ in range(waits)]
    assert Step.OVER not in steps
    assert subscription.sequence is cast(Any, new)
    assert feed.users == 1
    subscription.step()
    assert new.extended == 1
    subscription.ended = True
    assert subscription.step() is Step.OVER


def _unexpected(*arguments: object) -> None:
    raise AssertionError(arguments)
