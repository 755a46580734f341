"""Channels on several LISTEN connections: messages arrive once, and a lost connection concerns its channels only."""

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import Listener
from socketio_pg.postgres.listeners import Listeners
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster

pytestmark = pytest.mark.green

ROOM = 3
#: The application_name in the address of the listeners: servers of other tests may be connected to the cluster, too.
NAME = "listeners"


class Node:
    """Listeners with room for few channels, and what they bring."""

    def __init__(self, postgres: Cluster) -> None:
        self.postgres = postgres
        self.received: list[tuple[str, str]] = []
        self.gaps: list[str] = []
        self._calls = 0
        self.listeners = Listeners(
            Database(f"{postgres.url()}&application_name={NAME}"),
            self.received.extend,
            lambda gap: self.gaps.append(gap.channel),
        )
        self.listeners.max_channels = ROOM
        self.listeners.start()

    def listen(self, *channels: str) -> None:
        for channel in channels:
            self.listeners.acquire(channel)
        for channel in channels:
            self.listeners.wait(channel, PATIENCE)

    def notify(self, *channels: str) -> list[str]:
        """Notify the channels. Return those whose notifications arrive before that of ``end``, sorted."""
        self._calls += 1
        text = f"call {self._calls}"
        for channel in channels:
            self.postgres.notify(channel, text)
        # Each connection gets its notifications in the order of the commits.
        ends = set()
        for number, listener in enumerate(list(self.listeners._channels)):
            end = f"end{number}"
            ends.add(end)
            listener.acquire(end)
            listener.wait(end, PATIENCE)
            self.postgres.notify(end, text)
        until(lambda: {channel for channel, found in self.received if found == text} >= ends)
        return sorted(channel for channel, found in self.received if found == text and channel not in ends)

    def backend(self, channel: str) -> int:
        """Return the process id of the backend that has listened to ``channel`` last."""
        [pid] = [pid for pid, query in self.postgres.backends(NAME) if f'LISTEN "{channel}"' in query]
        return int(pid)


def until(condition: Callable[[], object]) -> None:
    with green.timeout(PATIENCE):
        while not condition():
            green.sleep(0.01)


@pytest.fixture
def node(postgres: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(Listener, "unlisten_grace", 0.2)
    monkeypatch.setattr(Listener, "heartbeat_interval", 60.0)  # the last query of each backend stays a LISTEN
    made = Node(postgres)
    yield made
    made.listeners.stop()


def test_connections_are_opened_when_needed_and_closed_when_empty(node: Node) -> None:
    names = [f"a{number}" for number in range(2 * ROOM + 1)]
    node.listen(*names)
    assert node.listeners.connections == 3
    assert node.listeners.ready
    assert node.notify(*names) == names
    node.listen("socketio_pg_reserved")
    assert node.listeners._of["socketio_pg_reserved"] is node.listeners.first
    for name in names[1:]:
        node.listeners.release(name)
    until(lambda: node.listeners.connections == 1)
    until(lambda: len(node.postgres.backends(NAME)) == 1)
    assert node.notify(*names) == [names[0]]
    node.listen(*names)
    assert node.notify(*names) == names


def test_connection_that_is_being_opened_is_closed_with_its_channel(node: Node) -> None:
    """Whatever step it has come to, and without the garbage collector (tests/conftest.py)."""
    names = [f"a{number}" for number in range(ROOM)]
    node.listen(*names)
    for number in range(20):
        node.listeners.acquire("b")
        green.sleep(number / 2000)
        node.listeners.release("b")
        until(lambda: node.listeners.connections == 1)
    until(lambda: len(node.postgres.backends(NAME)) == 1)
    assert node.notify(*names) == names


def test_released_channel_stays_on_its_connection_for_the_grace_time(node: Node) -> None:
    node.listen(*[f"a{number}" for number in range(2 * ROOM)])
    for name in ("a0", "a5"):
        node.listeners.release(name)
    node.listen("a5")  # although there will be room on the first connection
    until(lambda: "a0" not in node.listeners._of)
    assert node.notify("a5") == ["a5"]
    node.listen("b")
    assert node.listeners._of["b"] is node.listeners.first


def test_lost_connection_is_a_gap_for_its_channels_only(node: Node) -> None:
    names = [f"a{number}" for number in range(2 * ROOM)]
    node.listen(*names)
    node.postgres.sql("SELECT pg_terminate_backend(%s)", node.backend(names[ROOM]))
    until(lambda: not node.listeners.ready)
    assert node.listeners.problem is not None
    node.postgres.notify(names[0], "meanwhile")
    until(lambda: (names[0], "meanwhile") in node.received)
    until(lambda: node.listeners.ready)
    assert sorted(node.gaps) == names[ROOM:]
    assert node.notify(*names) == names
    node.gaps.clear()
    node.postgres.terminate_backends(NAME)
    until(lambda: len(node.gaps) >= 2 * ROOM and node.listeners.ready)
    assert [gap for gap in sorted(node.gaps) if gap.startswith("a")] == names
    assert node.notify(*names) == names


def test_opening_a_connection_is_no_problem_and_a_refused_one_is(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.listen(*[f"a{number}" for number in range(ROOM)])
    node.listeners.acquire("b")
    assert node.listeners.connections == 2
    assert node.listeners.ready
    node.listeners.wait("b", PATIENCE)

    def refuse(*_: object, **__: object) -> None:
        raise DatabaseUnavailableError("no connection is left")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "connect", refuse)
        for name in ("c", "d", "e"):
            node.listeners.acquire(name)
        until(lambda: node.listeners.problem == "no connection is left")
        node.postgres.notify("a0", "meanwhile")
        until(lambda: ("a0", "meanwhile") in node.received)
    node.listeners.wait("e", PATIENCE)
    assert node.listeners.ready
    assert node.gaps == []


def test_unlisten_of_the_oldest_is_due_when_many_channels_were_released(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise clients that subscribe to new channels over and over would fill the connections in the grace time."""
    monkeypatch.setattr(Listener, "unlisten_grace", 60.0)
    monkeypatch.setattr(Listener, "max_leaving", 5)
    node.listeners.max_channels = 100
    names = [f"a{number}" for number in range(20)]
    node.listen(*names)
    for name in names:
        node.listeners.release(name)
    until(lambda: node.listeners._of.keys() == set(names[15:]))
    assert node.notify(*names) == sorted(names[15:])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 10))])
def test_each_message_arrives_once_after_any_changes(node: Node, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Channels come and go, some while their LISTEN or UNLISTEN is in progress, and connections are lost."""
    monkeypatch.setattr(Listener, "unlisten_grace", 0.005)
    monkeypatch.setattr(Listener, "max_leaving", 2)
    monkeypatch.setattr(Listener, "backoff", (0.01, 0.02))
    draw = random.Random(seed)
    names = [f"r{number:02}" for number in range(4 * ROOM)]
    wanted: set[str] = set()
    publisher = Database(node.postgres.url() + "&application_name=publisher").connect("publish")
    for step in range(400):
        name = draw.choice(names)
        if name in wanted:
            wanted.discard(name)
            node.listeners.release(name)
        else:
            wanted.add(name)
            node.listeners.acquire(name)
        if draw.random() < 0.3:
            green.sleep(draw.choice((0, 0.001, 0.01)))
            with publisher.cursor() as cursor:
                cursor.execute(";".join(f"NOTIFY {name}, '{step}'" for name in names))
        if step % 150 == 149:
            node.postgres.terminate_backends(NAME)
    publisher.close()
    for name in wanted:
        node.listeners.wait(name, PATIENCE)
    until(lambda: node.listeners._of.keys() == wanted and node.listeners.ready)
    assert node.notify(*names) == sorted(wanted)
    assert len(node.received) == len(set(node.received)), "a channel was on two connections"
    assert Counter(node.listeners._channels) == Counter(node.listeners._of.values())


def test_each_reason_for_not_listening_is_logged_once(newest_pg: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The first one, "server closed the connection", is seldom the cause."""
    newest_pg.sql("DROP DATABASE IF EXISTS closing WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE closing")
    listener = Listener(Database(newest_pg.url("closing")), lambda notifications: None, lambda gap: None)
    listener.backoff = (0.01, 0.02)

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    listener.start()
    try:
        until(lambda: listener.ready)
        newest_pg.sql("ALTER DATABASE closing ALLOW_CONNECTIONS false")
        newest_pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'closing'")
        until(lambda: any("not currently accepting connections" in line for line in logged()))
        before = logged()
        green.sleep(0.2)
        assert logged() == before, "retries with the same reason are not logged"
        newest_pg.sql("ALTER DATABASE closing ALLOW_CONNECTIONS true")
        until(lambda: any("listening on" in line for line in logged()))
    finally:
        listener.stop()
