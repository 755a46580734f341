"""The event `health`: when the database counts as reachable."""

from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.core.config import Settings
from socketio_pg.gateway.health import Health, Reachability
from socketio_pg.log.backlog import Reading
from socketio_pg.websocket import SocketServer
from tests.support.patience import PATIENCE


def changes(*periods: tuple[bool, float]) -> list[tuple[bool | None, float]]:
    """Observe periods of being (un)reachable, of some seconds each. Return the reports: the state, and since when."""
    known, now, found = Reachability(), 0.0, []
    for reachable, seconds in periods:
        end = now + seconds
        while now < end:
            if known.observe(reachable, now):
                found.append((known.reachable, known.since))
            now += 0.25
    return found


def test_first_report_comes_at_once_or_after_a_failed_start() -> None:
    assert changes((True, 1)) == [(True, 0)]
    assert changes((False, 2), (True, 1)) == [(True, 2)]
    assert changes((False, 4)) == [(False, 0)]


def test_an_outage_is_reported_with_its_beginning_and_end() -> None:
    assert changes((True, 10), (False, 5), (True, 5)) == [(True, 0), (False, 10), (True, 15)]


def test_a_short_reconnect_is_not_reported() -> None:
    assert changes((True, 10), *[(False, 1), (True, 10)] * 5) == [(True, 0)]


def test_short_returns_do_not_hide_an_outage() -> None:
    """A database that crashes again and again is unreachable, from the first crash until it stays up."""
    assert changes((True, 10), *[(False, 1), (True, 1)] * 10, (True, 3)) == [(True, 0), (False, 10), (True, 29)]


class Told(Health):
    """Collects the events."""

    interval = 0.005

    def __init__(self) -> None:
        self.reachable = False
        self.events: list[dict[str, Any]] = []
        super().__init__(lambda: self.reachable, self.events.append)

    def wait(self, count: int) -> None:
        with green.timeout(PATIENCE):
            while len(self.events) < count:
                green.sleep(0.005)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(Reachability, "down_after", 0.05)
    monkeypatch.setattr(Reachability, "up_after", 0.05)
    return Told()


def test_clients_get_each_change_once(told: Told) -> None:
    assert told.current() is None
    told.start()
    told.wait(1)
    told.reachable = True
    told.wait(2)
    assert told.current() == told.events[1]
    told.reachable = False
    told.wait(3)
    told.stop()
    assert [body["database"] for body in told.events] == ["unreachable", "reachable", "unreachable"]
    assert all(body.keys() == {"database", "since"} for body in told.events)


def test_clients_that_know_the_first_state_get_no_event(told: Told) -> None:
    told.reachable = True
    assert (told.current() or {})["database"] == "reachable"
    told.start()
    green.sleep(0.05)
    told.stop()
    assert told.events == []


@pytest.mark.parametrize(("listen", "reachable"), [("each", False), ("leader", True)])
def test_lost_queue_between_nodes_is_no_lost_database(
    socket_server: SocketServer, monkeypatch: pytest.MonkeyPatch, listen: str, reachable: bool
) -> None:
    """With LISTEN=leader a node listens through the queue, and watches the outbox itself."""
    monkeypatch.setattr(socket_server._process_health, "_settings", Settings(listen=listen))
    assert socket_server.pubsub.problem is not None
    assert socket_server._health._is_reachable() is False
    monkeypatch.setattr(socket_server.backlog, "_reading", Reading(0.0, None, None))
    assert socket_server._health._is_reachable() is reachable
