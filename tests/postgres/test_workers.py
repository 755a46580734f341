"""cluster/workers: publications that the worker that leads commits for the others."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial

import psycopg2
import pytest

from socketio_pg.cluster.workers import WorkersPublisher
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, PayloadTooLargeError, SocketIOPGError
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.outgoing import Outgoing
from socketio_pg.postgres.publisher import Publisher
from socketio_pg.workers.node import Node
from socketio_pg.workers.workers import Workers
from tests.support.patience import until
from tests.support.postgres import Cluster


class Worker:
    """A worker of the node in this process, which publishes."""

    def __init__(self, node: Node, url: str) -> None:
        self.workers = Workers(Node(node.directory, node._key), lambda leading: None)
        self.publisher = WorkersPublisher(Publisher(Database(url)), self.workers)
        self.workers.start()
        self.workers.election.start()


@pytest.fixture
def two(newest_pg: Cluster) -> Iterator[tuple[Worker, Worker]]:
    """One that leads, and one that follows."""
    node = Node.create(os.getuid(), os.getgid())
    leader, follower = (Worker(node, newest_pg.url()) for _ in range(2))
    until(lambda: green.sleep() or follower.workers.election.leader == 0, "the first one leads")
    yield leader, follower
    for one in (follower, leader):
        one.publisher.stop()
        one.workers.stop()
    node.remove()


def test_publications_of_a_worker_that_follows_keep_their_order(two: tuple[Worker, Worker], newest_pg: Cluster) -> None:
    _, follower = two
    with contextlib.closing(psycopg2.connect(newest_pg.url())) as connection:
        connection.autocommit = True
        connection.cursor().execute("LISTEN ordered")
        for number in range(200):
            green.run_soon(follower.publisher.publish, [Outgoing("ordered", str(number))])
            if number % 50 == 49:
                green.sleep()  # another question to the worker that leads

        def arrived() -> bool:
            green.sleep()
            connection.poll()
            return len(connection.notifies) >= 200

        until(arrived, "all arrive")
        assert [int(one.payload) for one in connection.notifies] == list(range(200))


def test_each_publication_gets_its_own_error(two: tuple[Worker, Worker]) -> None:
    _, follower = two
    errors: list[SocketIOPGError | None] = [None] * 3

    def publish(index: int, text: str) -> None:
        try:
            follower.publisher.publish([Outgoing("orders", text)])
        except SocketIOPGError as error:
            errors[index] = error

    texts = ("1", '"' + "x" * 9000 + '"', "2")
    green.run_together([partial(publish, index, text) for index, text in enumerate(texts)])
    assert [type(error) for error in errors] == [type(None), PayloadTooLargeError, type(None)]


def test_the_end_of_the_worker_that_leads_leaves_a_publication_unknown(two: tuple[Worker, Worker]) -> None:
    leader, follower = two
    errors: list[Exception] = []

    def publish() -> None:
        try:
            follower.publisher.publish([Outgoing("orders", "1")])
        except DatabaseUnavailableError as error:
            errors.append(error)

    green.run_soon(publish)
    until(lambda: green.sleep() or follower.publisher._asking == 1, "it is asked")
    leader.workers.peers.stop()
    until(lambda: green.sleep() or errors, "it is answered")
    assert "may have been sent or not" in str(errors[0])


def test_a_publication_that_waits_for_a_leader_fails_when_the_worker_stops(two: tuple[Worker, Worker]) -> None:
    two[1].workers.election._worker.stop()  # does not stand for election at the moment
    two[0].workers.election.resign()
    until(lambda: green.sleep() or two[1].workers.election.leader is None, "nobody leads")
    errors: list[SocketIOPGError] = []

    def publish() -> None:
        try:
            two[1].publisher.publish([Outgoing("anything", "1")])
        except SocketIOPGError as error:
            errors.append(error)

    waiting = green.spawn(publish)
    green.sleep()
    two[1].publisher.stop()
    waiting.wait()
    assert [error.message for error in errors] == ["the server is shutting down"]


def test_the_last_workers_of_a_node_that_stops_publish_by_themselves(two: tuple[Worker, Worker]) -> None:
    """Such as the bus, which tells other nodes that this one leaves; nobody would lead any more."""
    for one in reversed(two):
        one.workers.election.resign()
    until(lambda: green.sleep() or two[1].workers.election.leader is None, "nobody leads")
    assert len(two[1].publisher.publish([Outgoing("anything", "1")])) == 1
