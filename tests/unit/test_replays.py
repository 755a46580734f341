"""Replays of one client in turn: a failure of one."""

from typing import cast

import pytest

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.gateway.replays import Replays, Steps
from socketio_pg.log.replay import HeldReplay, Replay, ReplayReceiver, Step
from socketio_pg.protocol.fanout import Manager


class _Client:
    """The client manager and the socket of a client that always has room."""

    def socket_of(self, sid: str) -> "_Client":
        return self

    def wait_room(self, most_waiting: int) -> bool:
        return True


class _Pages:
    """A replay of ``channel`` with three pages; ``broken`` fails instead."""

    def __init__(self, channel: str, broken: bool = False) -> None:
        self.channel = channel
        self.left = 3
        self._broken = broken

    def step(self, *_: object) -> Step:
        if self._broken:
            raise RuntimeError("a bug")
        self.left -= 1
        return Step.MORE if self.left else Step.OVER

    def held(self) -> HeldReplay:
        receiver = cast(ReplayReceiver, list[EncodedMessage]())
        return HeldReplay(cast(Replay, self), receiver, lambda: True, lambda: None)


def test_failed_replay_ends_its_subscription_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[tuple[str, str]] = []
    good, broken = _Pages("good"), _Pages("broken", broken=True)
    replays = Replays(cast(Manager, _Client()), 1000, lambda sid, channel: ended.append((sid, channel)))
    queue: dict[str, Steps] = {one.channel: one.held() for one in (broken, good)}
    replays._queues["me"] = queue
    replays._send("me", queue)
    assert ended == [("me", "broken")]
    assert good.left == 0
    assert "a replay of 'broken' failed" in caplog.text
