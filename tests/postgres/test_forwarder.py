"""Listening through a leader over a queue that loses or delays chosen messages: nothing is lost without a gap."""

import itertools
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from socketio_pg.cluster.remote_listener import HEARD, WANTED
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidChannelError
from socketio_pg.postgres.listener import ListenCancelledError
from socketio_pg.postgres.listeners import Listeners
from tests.support.forwarding import World, listen
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster


@pytest.fixture
def world(newest_pg: Cluster) -> Iterator[World]:
    made = World(newest_pg)
    yield made
    made.close()


#: The number of the message, counted from 1, and its fault. `make test` runs every fifth number of each fault.
CASES = sampled(
    itertools.product(range(1, 31), ("lost", "late")),
    lambda case: case[0] % 5 == (1 if case[1] == "lost" else 3),
)


@pytest.mark.parametrize(("number", "fault"), CASES)
def test_lost_or_late_message_leaves_a_gap_at_most(
    world: World, newest_pg: Cluster, channel: str, number: int, fault: str
) -> None:
    """Each node gets every notification of its confirmed channels, or a gap."""
    setattr(world.wire, fault, {number})
    world.leader()
    one, two = world.node(), world.node()
    first, second = f"{channel}-1", f"{channel}-2"
    listen(one, first, second)
    listen(two, first)
    for payload in range(5):
        newest_pg.notify(first, str(payload))
    one.listener.release(first)
    two.listener.release(first)
    listen(two, first, second)
    for payload in range(5, 8):
        newest_pg.notify(first, str(payload))
        newest_pg.notify(second, str(payload))
    # Until the faulty message has been sent and both nodes receive notifications of the second channel.
    with green.timeout(PATIENCE):
        while world.wire.sent <= number or any((second, "end") not in node.received for node in (one, two)):
            newest_pg.notify(second, "end")
            green.sleep(0.02)
    for node in (one, two):
        node.wait_ready()
    for node, name, numbers in ((one, second, range(5, 8)), (two, first, range(5, 8)), (two, second, range(5, 8))):
        received = [text for found, text in node.received if found == name]
        got = [int(text) for text in received if text.isdecimal() and int(text) in numbers]
        assert got == sorted(set(got)), "in order, none twice"
        if got != list(numbers):
            assert "gap" in received


def notify_20(cluster: Cluster, channel: str) -> None:
    """Notify 0 to 19, in one call: no green thread runs during a call, and the leaders must not fall silent."""
    cluster.sql("SELECT pg_notify(%s, n::text) FROM generate_series(0, 19) AS n", channel)


def test_nodes_follow_only_the_newest_leader(world: World, newest_pg: Cluster, channel: str) -> None:
    """Both lead for a while: the old leader was suspended and does not know yet that it was replaced."""
    old = world.leader()
    node = world.node()
    listen(node, channel)
    newest_pg.notify(channel, "1")
    node.wait((channel, "1"))
    new = world.leader()
    node.wait((channel, "gap"))
    notify_20(newest_pg, channel)
    node.wait(*[(channel, str(number)) for number in range(20)])
    assert node.received[2:] == [(channel, str(number)) for number in range(20)], "each once"
    old.lead(False)
    new.lead(False)
    with green.timeout(PATIENCE):
        while node.listener.ready:
            green.sleep(0.01)
    assert "messages from the leader no longer arrive" in (node.listener.problem or "")
    # A process that leads again counts as a new leader.
    old.lead(True)
    node.wait((channel, "gap"))
    newest_pg.notify(channel, "end")
    node.wait((channel, "end"))


def test_start_of_a_node_that_runs_changes_nothing(world: World, newest_pg: Cluster, channel: str) -> None:
    """Each subscribe starts the listener."""
    world.leader()
    node = world.node()
    listen(node, f"{channel}-1")
    node.listener.start()
    listen(node, f"{channel}-2")
    newest_pg.notify(f"{channel}-1", "1")
    node.wait((f"{channel}-1", "1"))
    assert len(node.received) == 1, "no gap"


def test_leader_forgets_a_silent_node(world: World, channel: str) -> None:
    leader = world.leader()
    gone, stays = world.node(), world.node()
    listen(gone, f"{channel}-1", f"{channel}-2")
    listen(stays, f"{channel}-2")
    gone.listener.stop()
    assert isinstance(leader._listener, Listeners)
    with green.timeout(PATIENCE):
        while leader._listener.first._wanted != {f"{channel}-2"}:
            green.sleep(0.01)
    # It was only slow: its channels are listened to again.
    gone.listener.start()
    with green.timeout(PATIENCE):
        while leader._listener.first._wanted != {f"{channel}-1", f"{channel}-2"}:
            green.sleep(0.01)


def test_forgotten_node_gets_a_gap(world: World, newest_pg: Cluster, channel: str) -> None:
    """It still receives every message of the leader, but notifications of its channels are no longer among them."""
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    tell = node.listener.tell
    node.listener.tell = lambda command: None
    assert isinstance(leader._listener, Listeners)
    leader._listener.first.unlisten_grace = 0.0
    with green.timeout(PATIENCE):
        while leader._nodes or channel in leader._listener.first._listening:
            green.sleep(0.01)
    newest_pg.notify(channel, "missed")
    with green.timeout(PATIENCE):
        while node.listener.ready:
            green.sleep(0.01)
    node.listener.tell = tell
    node.wait((channel, "gap"))
    newest_pg.notify(channel, "received")
    node.wait((channel, "received"))
    assert (channel, "missed") not in node.received


def test_leader_that_receives_nothing_is_a_problem(world: World, channel: str) -> None:
    """The nodes' channels do not reach it, so new subscriptions would time out."""
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    world.wire.receivers.remove((WANTED, leader.receive))
    world.wire.receivers.remove((HEARD, leader.receive_echo))
    with green.timeout(PATIENCE):
        while "do not come back over MESSAGE_QUEUE" not in (node.listener.problem or ""):
            green.sleep(0.01)
    assert not node.listener.ready
    world.wire.receivers += [(WANTED, leader.receive), (HEARD, leader.receive_echo)]
    node.wait_ready()
    assert node.listener.problem is None


def test_lazy_leader_listens_once_a_node_asks(world: World, newest_pg: Cluster, channel: str) -> None:
    """Some nodes have LISTEN=leader already, while the leader still has LISTEN=node."""
    leader = world.leader(eager=False)
    assert leader._listener is None
    node = world.node()
    listen(node, channel)
    newest_pg.notify(channel, "1")
    node.wait((channel, "1"))


def test_late_message_of_a_former_leader(world: World, newest_pg: Cluster, channel: str) -> None:
    """A node that never saw that leader takes it for the new one, until the real leader's next message."""
    old = world.leader()
    old_id = old._id
    old.lead(False)
    world.leader()
    node = world.node()
    listen(node, channel)
    late = {"leader": old_id, "number": 77, "problem": None, "as_of": "2026-01-01T00:00:00Z"}
    for malformed in (
        {},
        {"number": None},
        {"leader": [], "number": "x"},
        {"gaps": 1},
        {"notifications": [1], "number": 78},
    ):
        # The queue's green thread logs the error and continues.
        with pytest.raises((KeyError, TypeError, ValueError)):
            node.listener.receive({**late, **malformed} if malformed else malformed)
    node.listener.receive(late | {"number": 79})
    node.wait((channel, "gap"))
    newest_pg.notify(channel, "1")
    node.wait((channel, "1"))
    assert node.listener.ready


def test_gap_begins_when_the_leader_last_listened(world: World, newest_pg: Cluster, channel: str) -> None:
    """It does not begin at the leader's last message, which said that it was not listening."""
    since: list[datetime] = []
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    node.listener._on_gap = lambda gap: since.append(gap.since)
    assert isinstance(leader._listener, Listeners)
    leader._listener.first.backoff = (5.0, 5.0)
    before = datetime.now(timezone.utc)
    newest_pg.terminate_backends()
    with green.timeout(PATIENCE):
        while "the leader does not listen: " not in (node.listener.problem or ""):
            green.sleep(0.01)
    # The leader keeps reporting that it does not listen, for longer than a gap's safety margin.
    last = node.listener._number
    with green.timeout(PATIENCE):
        while node.listener._number < last + 30:
            green.sleep(0.01)
    leader.lead(False)
    world.leader()
    with green.timeout(PATIENCE):
        while not since:
            green.sleep(0.01)
    assert since[0] <= before


def test_leader_recovers_from_a_lost_release(world: World, channel: str) -> None:
    leader = world.leader()
    node = world.node()
    listen(node, channel, f"{channel}-2")
    sent: list[dict[str, Any]] = []
    tell = node.listener.tell
    node.listener.tell = sent.append
    node.listener.release(channel)
    with green.timeout(PATIENCE):
        while not any(command.get("remove") for command in sent):
            green.sleep(0.005)
    node.listener.tell = tell
    assert isinstance(leader._listener, Listeners)
    with green.timeout(PATIENCE):
        while leader._listener.first._wanted != {f"{channel}-2"}:
            green.sleep(0.01)


def test_wait_without_a_leader_fails(world: World, channel: str) -> None:
    node = world.node()
    node.listener.acquire(channel)
    with pytest.raises(DatabaseUnavailableError):
        node.listener.wait(channel, 0.1)
    waiting = green.spawn(pytest.raises, ListenCancelledError, node.listener.wait, channel, PATIENCE)
    green.sleep()
    node.listener.release(channel)
    waiting.wait()
    assert "no message from a leader has arrived" in (node.listener.problem or "")
    world.leader()
    listen(node, channel)
    assert node.listener.problem is None


def test_channel_that_the_database_refuses_is_an_error(newest_pg: Cluster, channel: str) -> None:
    newest_pg.sql("DROP DATABASE IF EXISTS forwarder_latin1")
    newest_pg.sql("CREATE DATABASE forwarder_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    world = World(newest_pg, "forwarder_latin1")
    try:
        world.leader()
        node, other = world.node(), world.node()
        with pytest.raises(InvalidChannelError, match="the database refuses this name"):
            listen(node, f"{channel} €")
        listen(node, channel)
        listen(other, channel)
        assert node.listener.ready
    finally:
        world.close()


def test_unreachable_database_of_the_leader_is_a_gap(world: World, newest_pg: Cluster, channel: str) -> None:
    """Nodes report the leader's problem, and get a gap once it listens again."""
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    assert isinstance(leader._listener, Listeners)
    leader._listener.first.backoff = (0.5, 0.5)
    newest_pg.terminate_backends()
    with green.timeout(PATIENCE):
        while "the leader does not listen" not in (node.listener.problem or ""):
            green.sleep(0.005)
    node.wait((channel, "gap"))
    node.wait_ready()
    newest_pg.notify(channel, "1")
    node.wait((channel, "1"))


def test_channel_stays_until_the_last_node_releases_it(world: World, newest_pg: Cluster, channel: str) -> None:
    leader = world.leader()
    one, two = world.node(), world.node()
    assert isinstance(leader._listener, Listeners)
    leader._listener.first.unlisten_grace = 0.0
    listen(one, channel)
    listen(two, channel)
    one.listener.release(channel)
    notify_20(newest_pg, channel)
    two.wait(*[(channel, str(number)) for number in range(20)])
    assert (channel, "19") not in one.received


def test_starting_again_tells_no_gap(world: World, newest_pg: Cluster, channel: str) -> None:
    """Each subscription and each publication starts the listener if it does not run."""
    world.leader()
    node = world.node()
    listen(node, channel)
    node.listener.start()
    other = f"{channel}-other"
    listen(node, other)
    for name in (channel, other):
        newest_pg.notify(name, "1")
    node.wait((channel, "1"), (other, "1"))
    assert (channel, "gap") not in node.received
