"""The guarantees of the log, one by one, under faults and races."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import psycopg2
import pytest

from socketio_pg.core.errors import DatabaseError
from tests.support.checker import Logged, digest, judge_subscriber
from tests.support.checker_clients import Client, Loop
from tests.support.checker_subscribers import Subscriber
from tests.support.checker_world import World, wait_for, world
from tests.support.clients import SocketClient
from tests.support.log_database import move_everything, prepare
from tests.support.patience import PATIENCE, until
from tests.support.swarm import Swarm


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def nodes(shared: World) -> World:
    """Two running nodes, restarted if the previous test stopped them."""
    shared.ready()
    return shared


@contextlib.contextmanager
def subscriber(port: int, channel: str, **request: Any) -> Iterator[SocketClient]:
    with SocketClient(f"http://127.0.0.1:{port}") as client:
        answer = client.call("subscribe", {"channel": channel, **request})
        assert answer["ok"], answer
        yield client


@contextlib.contextmanager
def transaction(nodes: World) -> Iterator[Any]:
    """Yield a cursor in a transaction that the test ends."""
    with contextlib.closing(nodes.cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        yield cursor


def publish_many(nodes: World, channel: str, first: int, last: int) -> None:
    """Publish the numbers from ``first`` to ``last``, each in its own transaction."""
    with contextlib.closing(nodes.cluster.connect()) as connection, connection.cursor() as cursor:
        for number in range(first, last + 1):
            cursor.execute("SELECT socketio_pg.publish(%s, %s::jsonb)", (channel, str(number)))


def payloads(client: SocketClient, count: int) -> list[Any]:
    return [client.next("event")["payload"] for _ in range(count)]


def logged_payloads(nodes: World, channel: str) -> list[Any]:
    rows = nodes.cluster.sql("SELECT payload FROM socketio_pg.log WHERE channel = %s ORDER BY position", channel)
    return [payload for (payload,) in rows]


def assert_gapless(nodes: World) -> None:
    ((count, newest),) = nodes.cluster.sql("SELECT count(*), max(position) FROM socketio_pg.log")
    assert count == newest


@pytest.mark.parametrize("number", [1, 2])
def test_killed_leader_is_replaced(nodes: World, channel: str, number: int) -> None:
    leader = nodes.wait_leader()
    with subscriber(nodes.other(leader).server.port, channel) as client:
        leader.server.kill()
        killed = time.monotonic()
        nodes.publish(channel, number)
        assert client.next("event")["payload"] == number
        seconds = time.monotonic() - killed
    print(f"failover took {seconds:.2f} s after the leader was killed")
    assert seconds < 25, "documented as 2 s, plus an allowance for a busy machine"
    assert nodes.wait_leader() is nodes.other(leader)


@pytest.mark.parametrize("notifies_early", [False, True], ids=["", "constraints immediate"])
def test_open_transaction_delays_no_other_and_keeps_its_order(nodes: World, channel: str, notifies_early: bool) -> None:
    with subscriber(nodes.ports[0], channel) as client, transaction(nodes) as cursor:
        cursor.execute("SELECT socketio_pg.publish(%s, '\"first\"')", (channel,))
        if notifies_early:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        publish_many(nodes, channel, 1, 200)
        assert payloads(client, 200) == list(range(1, 201))
        cursor.execute("SELECT socketio_pg.publish(%s, '\"second\"')", (channel,))
        publish_many(nodes, channel, 201, 210)
        assert payloads(client, 10) == list(range(201, 211))
        cursor.execute("SELECT socketio_pg.publish(%s, '\"third\"')", (channel,))
        began = time.monotonic()
        cursor.execute("COMMIT")
        assert payloads(client, 3) == ["first", "second", "third"]
        assert time.monotonic() - began < 8
    assert_gapless(nodes)


def test_message_published_after_a_commit_follows_it(nodes: World, channel: str) -> None:
    """Holds for a long transaction and while the relay is frozen."""
    with subscriber(nodes.ports[0], channel) as client, transaction(nodes) as cursor:
        cursor.execute("SELECT socketio_pg.publish(%s, '\"long\"')", (channel,))
        publish_many(nodes, channel, 1, 50)
        assert payloads(client, 50) == list(range(1, 51))
        leader = nodes.wait_leader().server.worker_pid()
        os.kill(leader, signal.SIGSTOP)
        try:
            # Both commit before the relay reads the outbox again.
            cursor.execute("COMMIT")
            nodes.publish(channel, "after")
        finally:
            os.kill(leader, signal.SIGCONT)
        assert payloads(client, 2) == ["long", "after"]


def test_opposite_channel_orders_do_not_deadlock(nodes: World, channel: str) -> None:
    names = [f"{channel}-1", f"{channel}-2"]
    errors: list[Exception] = []

    def write(order: list[str]) -> None:
        try:
            with contextlib.closing(nodes.cluster.connect()) as connection, connection.cursor() as cursor:
                for number in range(150):
                    cursor.execute("BEGIN")
                    for name in order:
                        cursor.execute("SELECT socketio_pg.publish(%s, %s::jsonb)", (name, str(number)))
                    cursor.execute("COMMIT")
        except psycopg2.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(order,)) for order in (names, names[::-1]) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert errors == []
    wait_for(
        lambda: all(len(logged_payloads(nodes, name)) == 600 for name in names), PATIENCE, "all messages in the log"
    )
    for name in names:
        assert sorted(logged_payloads(nodes, name)) == sorted([*range(150)] * 4)


def test_rollback_publishes_nothing(nodes: World, channel: str) -> None:
    with subscriber(nodes.ports[0], channel) as client, transaction(nodes) as cursor:
        cursor.execute("SELECT socketio_pg.publish(%s, '1')", (channel,))
        cursor.execute("SAVEPOINT here")
        cursor.execute("SELECT socketio_pg.publish(%s, '2')", (channel,))
        cursor.execute("ROLLBACK TO SAVEPOINT here")
        cursor.execute("SELECT socketio_pg.publish(%s, '3')", (channel,))
        cursor.execute("COMMIT")
        cursor.execute("BEGIN")
        cursor.execute("SELECT socketio_pg.publish(%s, '4')", (channel,))
        cursor.execute("ROLLBACK")
        nodes.publish(channel, 5)
        assert payloads(client, 3) == [1, 3, 5]
        assert client.pending("event") == 0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_messages_of_a_restart_without_subscribers_are_replayed(nodes: World, channel: str, mode: str) -> None:
    position = nodes.cluster.sql("SELECT max(position) FROM socketio_pg.log")[0][0] or 0
    publish_many(nodes, channel, 1, 20)
    nodes.cluster.restart(mode)
    publish_many(nodes, channel, 21, 40)
    nodes.ready()
    since = {"epoch": nodes.epoch(), "position": position}
    for port in nodes.ports:
        with subscriber(port, channel, since=since) as client:
            assert client.next("subscribed")["recovered"] is True
            assert payloads(client, 40) == list(range(1, 41))


def test_concurrent_relays_lose_and_duplicate_nothing(nodes: World, channel: str) -> None:
    """If several nodes believe that they lead, positions stay gapless and messages arrive once."""
    finished, failures = threading.Event(), []

    def relay() -> None:
        with contextlib.closing(nodes.cluster.connect()) as connection:
            prepare(connection)
            while not finished.is_set():
                try:
                    # With readable notifications, which nodes ignore: they look into the log.
                    move_everything(connection, 7)
                except DatabaseError as error:
                    failures.append(error)

    threads = [threading.Thread(target=relay) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(subscriber(port, channel)) for port in nodes.ports]
        for thread in threads:
            thread.start()
        try:
            publish_many(nodes, channel, 1, 500)
            for client in clients:
                events = [client.next("event") for _ in range(500)]
                assert [event["payload"] for event in events] == list(range(1, 501))
                assert client.pending("gap") == 0
        finally:
            finished.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert_gapless(nodes)
    assert logged_payloads(nodes, channel) == list(range(1, 501))


def test_large_messages_do_not_block_the_relay(nodes: World, channel: str) -> None:
    """Well-compressed payloads are small in the database but large for every reader."""
    # Not subscribed meanwhile: the server would disconnect a live client that cannot read 60 MB fast enough.
    with SocketClient(f"http://127.0.0.1:{nodes.ports[0]}") as client:
        start = client.call("subscribe", {"channel": channel})
    began = time.monotonic()
    nodes.cluster.sql(
        "SELECT socketio_pg.publish(%s, jsonb_build_object('n', n, 'pad', repeat('x', 990000)))"
        " FROM generate_series(1, 60) AS n",
        channel,
    )
    nodes.publish(channel, {"n": 61})
    until(lambda: nodes.in_outbox() == 0, "the outbox is empty")
    # Not python-socketio's client: on a slow machine it gives up when the ping comes behind many messages.
    with Swarm("127.0.0.1", nodes.ports[0]) as swarm:
        [reader] = swarm.connect(1)
        since = {"epoch": start["epoch"], "position": start["position"]}
        reader.emit("subscribe", {"channel": channel, "since": since}, 1)
        # `live` follows the last message.
        swarm.run_until(
            lambda: any('{"n": 61}' in text[-300:] for text in itertools.islice(reversed(reader.packets), 2))
        )
        assert any('"recovered":true' in packet for packet in reader.packets if packet.startswith("31["))
        assert [event["payload"]["n"] for event in reader.events("event")] == list(range(1, 62))
    print(f"60 MB in {time.monotonic() - began:.1f} s")


class Bystander(Client):
    """One of many clients in a room, which make each broadcast take longer."""

    channel = ""

    def _on_connected(self, answer: dict[str, Any]) -> None:
        self.request("subscribe", {"channel": self.channel}, lambda answer: None)

    def _on_packet(self, packet: str) -> None:
        if packet.startswith("0"):
            super()._on_packet(packet)


class Resubscribing(Subscriber):
    """Subscribes again with ``since`` at random messages while ``enabled``."""

    enabled = True

    def _take(self, argument: dict[str, Any]) -> None:
        super()._take(argument)
        if self.enabled and self._random.random() < 0.1:
            self._subscribe_again()


def test_resubscribing_during_a_broadcast_loses_nothing(nodes: World, channel: str) -> None:
    loop, port, epoch = Loop(), nodes.ports[0], nodes.epoch()
    Bystander.channel = channel
    resubscribing = [Resubscribing(loop, f"resubscribing-{n}", [port], [channel], Random(n), epoch) for n in range(10)]
    bystanders = [Bystander(loop, f"bystander-{n}", [port], Random(n)) for n in range(150)]
    for client in (*bystanders, *resubscribing):  # the resubscribing clients come last in each broadcast
        client.start()
    loop.start()
    try:
        wait_for(lambda: all(client.connects for client in loop.clients), PATIENCE, "all are connected")
        wait_for(lambda: all(channel in one._subscribed for one in resubscribing), PATIENCE, "all are subscribed")
        with contextlib.closing(nodes.cluster.connect()) as connection, connection.cursor() as cursor:
            for number in range(40):
                cursor.execute(
                    "SELECT socketio_pg.publish(%s, jsonb_build_object('id', %s || '-' || n, 'pad', repeat('x', 900)))"
                    " FROM generate_series(1, 20) AS n",
                    (channel, str(number)),
                )
        for one in resubscribing:
            one.enabled = False
        nodes.publish(channel, {"id": "last"})
        wait_for(lambda: nodes.in_outbox() == 0, PATIENCE, "an empty outbox")
        wait_for(lambda: all(one.caught_up(nodes.newest()) for one in resubscribing), PATIENCE, "everything delivered")
    finally:
        loop.end()
    rows = nodes.cluster.sql(
        "SELECT position, payload, to_char(published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        " FROM socketio_pg.log WHERE channel = %s ORDER BY position",
        channel,
    )
    log = {channel: [Logged(position, channel, body["id"], digest(body), at) for position, body, at in rows]}
    problems: list[str] = []
    for one in resubscribing:
        problems += judge_subscriber(one.name, [channel], one.notes, log)
    assert loop.problems + problems == []
