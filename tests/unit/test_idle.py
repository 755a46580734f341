"""Disconnecting idle clients."""

import pytest

from socketio_pg.core import green
from socketio_pg.gateway.idle import Idle
from socketio_pg.pubsub.hub import Hub
from tests.support.patience import PATIENCE


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_idle_clients_are_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("socketio_pg.gateway.idle.time", clock)
    hub = Hub()
    gone: list[str] = []
    idle = Idle(hub, 0.04, gone.append)
    for sid in ("silent", "subscribed", "talks", "leaves"):
        hub.add(sid)
        idle.heard(sid)
    hub.subscribe("subscribed", "foo")
    idle.drop("leaves")
    idle.start()
    idle.start()
    for _ in range(20):
        clock.now += 0.01
        idle.heard("talks")
        green.sleep(0.01)
    assert gone == ["silent"]
    hub.unsubscribe("subscribed", "foo")
    clock.now += 1.0
    with green.timeout(PATIENCE):
        while len(gone) < 3:
            green.sleep(0.01)
    assert sorted(gone) == ["silent", "subscribed", "talks"]
    idle.stop()


def test_zero_timeout_disables_the_check() -> None:
    idle = Idle(Hub(), 0.0, lambda sid: None)
    idle.heard("a")
    idle.start()
    assert (idle._heard, idle._worker.running) == ({}, False)
