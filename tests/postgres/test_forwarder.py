"""Listening through a leader, on a queue that loses what it is told to lose: nothing is missed without a gap."""

import itertools
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from socketio_pg.cluster.remote_listener import HEARD, WANTED
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidChannelError
from socketio_pg.postgres.listener import ListenCancelledError
from tests.support.forwarding import World, listen
from tests.support.nightly import sampled
from tests.support.postgres import Cluster


@pytest.fixture
def world(postgres18: Cluster) -> Iterator[World]:
    made = World(postgres18)
    yield made
    made.close()


#: The message, counted from 1, and whether it is lost or late. By day every fifth, others of those that are late.
CASES = sampled(
    itertools.product(range(1, 31), ("lost", "late")),
    lambda case: case[0] % 5 == (1 if case[1] == "lost" else 3),
)


@pytest.mark.parametrize(("number", "what"), CASES)
def test_whatever_single_message_is_lost(
    world: World, postgres18: Cluster, channel: str, number: int, what: str
) -> None:
    """To be told of a gap, or to get it: what was confirmed is missed by nobody without a word."""
    setattr(world.wire, what, {number})
    world.leader()
    one, two = world.node(), world.node()
    first, second = f"{channel}-1", f"{channel}-2"
    listen(one, first, second)
    listen(two, first)
    for payload in range(5):
        postgres18.notify(first, str(payload))
    one.listener.release(first)
    two.listener.release(first)
    listen(two, first, second)
    for payload in range(5, 8):
        postgres18.notify(first, str(payload))
        postgres18.notify(second, str(payload))
    # Past the message that it is about, and until all are served: what is published then arrives.
    with green.timeout(20):
        while world.wire.sent <= number or any((second, "end") not in node.told for node in (one, two)):
            postgres18.notify(second, "end")
            green.sleep(0.02)
    for node in (one, two):
        node.wait_ready()
    for node, wanted, numbers in ((one, second, range(5, 8)), (two, first, range(5, 8)), (two, second, range(5, 8))):
        told = [text for found, text in node.told if found == wanted]
        got = [int(text) for text in told if text.isdecimal() and int(text) in numbers]
        assert got == sorted(set(got)), "in order, none twice"
        if got != list(numbers):
            assert "gap" in told


def test_a_new_leader_is_followed_and_the_old_one_is_not(world: World, postgres18: Cluster, channel: str) -> None:
    """For a while both lead: one that was stopped, and does not know yet."""
    old = world.leader()
    node = world.node()
    listen(node, channel)
    postgres18.notify(channel, "1")
    node.wait((channel, "1"))
    new = world.leader()
    node.wait((channel, "gap"))
    for number in range(20):
        postgres18.notify(channel, str(number))
    node.wait(*[(channel, str(number)) for number in range(20)])
    assert node.told[2:] == [(channel, str(number)) for number in range(20)], "each once"
    old.lead(False)
    new.lead(False)
    with green.timeout(20):
        while node.listener.ready:
            green.sleep(0.01)
    assert "messages from the leader no longer arrive" in (node.listener.problem or "")
    # The same process again is another leader.
    old.lead(True)
    node.wait((channel, "gap"))
    postgres18.notify(channel, "end")
    node.wait((channel, "end"))


def test_a_node_that_is_silent_is_forgotten(world: World, channel: str) -> None:
    leader = world.leader()
    gone, stays = world.node(), world.node()
    listen(gone, f"{channel}-1", f"{channel}-2")
    listen(stays, f"{channel}-2")
    gone.listener.stop()
    assert leader._listener is not None
    with green.timeout(20):
        while leader._listener._wanted != {f"{channel}-2"}:
            green.sleep(0.01)
    # It was only slow: what it wants is wanted again.
    gone.listener.start()
    with green.timeout(20):
        while leader._listener._wanted != {f"{channel}-1", f"{channel}-2"}:
            green.sleep(0.01)


def test_a_node_that_was_taken_for_gone_is_told_of_the_gap(world: World, postgres18: Cluster, channel: str) -> None:
    """It goes on hearing the leader, number by number, and nothing of what it wants is among it any more."""
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    tell = node.listener.tell
    node.listener.tell = lambda command: None
    assert leader._listener is not None
    leader._listener.unlisten_grace = 0.0
    with green.timeout(20):
        while leader._nodes or channel in leader._listener._listening:
            green.sleep(0.01)
    postgres18.notify(channel, "missed")
    with green.timeout(20):
        while node.listener.ready:
            green.sleep(0.01)
    node.listener.tell = tell
    node.wait((channel, "gap"))
    postgres18.notify(channel, "heard")
    node.wait((channel, "heard"))
    assert (channel, "missed") not in node.told


def test_a_leader_that_hears_nothing(world: World, channel: str) -> None:
    """What nodes want does not reach it, and new subscriptions would only wait."""
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    world.wire.receivers.remove((WANTED, leader.receive))
    world.wire.receivers.remove((HEARD, leader.receive_echo))
    with green.timeout(20):
        while "do not come back over MESSAGE_QUEUE" not in (node.listener.problem or ""):
            green.sleep(0.01)
    assert not node.listener.ready
    world.wire.receivers += [(WANTED, leader.receive), (HEARD, leader.receive_echo)]
    node.wait_ready()
    assert node.listener.problem is None


def test_a_leader_that_would_listen_itself_listens_for_those_that_ask(
    world: World, postgres18: Cluster, channel: str
) -> None:
    """While LISTEN=leader is being set on one node after the other."""
    leader = world.leader(eager=False)
    assert leader._listener is None
    node = world.node()
    listen(node, channel)
    postgres18.notify(channel, "1")
    node.wait((channel, "1"))


def test_a_late_word_of_a_former_leader(world: World, postgres18: Cluster, channel: str) -> None:
    """A node that never knew it takes it for the new leader, for as long as it takes."""
    old = world.leader()
    old_id = old._id
    old.lead(False)
    world.leader()
    node = world.node()
    listen(node, channel)
    late = {"database": "postgres", "leader": old_id, "number": 77, "problem": None, "as_of": "2026-01-01T00:00:00Z"}
    for nonsense in (
        {},
        {"number": None},
        {"leader": [], "number": "x"},
        {"gaps": 1},
        {"notifications": [1], "number": 78},
    ):
        # The queue's green thread logs it and goes on.
        with pytest.raises((KeyError, TypeError, ValueError)):
            node.listener.receive({**late, **nonsense} if nonsense else nonsense)
    node.listener.receive(late | {"number": 79})
    node.wait((channel, "gap"))
    postgres18.notify(channel, "1")
    node.wait((channel, "1"))
    assert node.listener.ready


def test_a_gap_begins_when_the_leader_was_last_sure(world: World, postgres18: Cluster, channel: str) -> None:
    """And not when the node last heard it say that it hears nothing."""
    since: list[datetime] = []
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    node.listener._on_gap = lambda gap: since.append(gap.since)
    assert leader._listener is not None
    leader._listener.backoff = (5.0, 5.0)
    before = datetime.now(timezone.utc)
    postgres18.terminate_backends()
    with green.timeout(20):
        while "the leader does not listen: " not in (node.listener.problem or ""):
            green.sleep(0.01)
    # The leader goes on saying that it hears nothing, for longer than a gap begins before what is known.
    said = node.listener._number
    with green.timeout(20):
        while node.listener._number < said + 30:
            green.sleep(0.01)
    leader.lead(False)
    world.leader()
    with green.timeout(20):
        while not since:
            green.sleep(0.01)
    assert since[0] <= before


def test_that_a_channel_is_given_up_may_be_lost_too(world: World, channel: str) -> None:
    leader = world.leader()
    node = world.node()
    listen(node, channel, f"{channel}-2")
    told: list[dict[str, Any]] = []
    tell = node.listener.tell
    node.listener.tell = told.append
    node.listener.release(channel)
    with green.timeout(20):
        while not any(command.get("remove") for command in told):
            green.sleep(0.005)
    node.listener.tell = tell
    assert leader._listener is not None
    with green.timeout(20):
        while leader._listener._wanted != {f"{channel}-2"}:
            green.sleep(0.01)


def test_waiting(world: World, channel: str) -> None:
    node = world.node()
    node.listener.acquire(channel)
    with pytest.raises(DatabaseUnavailableError):
        node.listener.wait(channel, 0.1)
    waiting = green.spawn(pytest.raises, ListenCancelledError, node.listener.wait, channel, 20)
    green.sleep()
    node.listener.release(channel)
    waiting.wait()
    assert "no message from a leader has arrived" in (node.listener.problem or "")
    world.leader()
    listen(node, channel)
    assert node.listener.problem is None


def test_a_name_that_the_database_refuses(postgres18: Cluster, channel: str) -> None:
    postgres18.sql("DROP DATABASE IF EXISTS forwarder_latin1")
    postgres18.sql("CREATE DATABASE forwarder_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    world = World(postgres18, "forwarder_latin1")
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


def test_the_leaders_database_is_away(world: World, postgres18: Cluster, channel: str) -> None:
    """Nodes say what the leader says, and are told of the gap once it listens again."""
    leader = world.leader()
    node = world.node()
    listen(node, channel)
    assert leader._listener is not None
    leader._listener.backoff = (0.5, 0.5)
    postgres18.terminate_backends()
    with green.timeout(20):
        while "the leader does not listen" not in (node.listener.problem or ""):
            green.sleep(0.005)
    node.wait((channel, "gap"))
    node.wait_ready()
    postgres18.notify(channel, "1")
    node.wait((channel, "1"))


def test_two_want_the_same_and_one_stops(world: World, postgres18: Cluster, channel: str) -> None:
    leader = world.leader()
    one, two = world.node(), world.node()
    assert leader._listener is not None
    leader._listener.unlisten_grace = 0.0
    listen(one, channel)
    listen(two, channel)
    one.listener.release(channel)
    for number in range(20):
        postgres18.notify(channel, str(number))
    two.wait(*[(channel, str(number)) for number in range(20)])
    assert (channel, "19") not in one.told
