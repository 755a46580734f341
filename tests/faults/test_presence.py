"""Presence with stock clients while nodes and workers are killed, drain, and are cut off from the database."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.log_database import LogDatabase
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.presence import Person
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, mint

SETTINGS = {"JWT_SECRET": SECRET, "DRAIN_SECONDS": "1", "PRESENCE_GRACE": "20"}


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> LogDatabase:
    return LogDatabase(newest_pg, "presence_faults")


@pytest.fixture(scope="module")
def steady(database: LogDatabase) -> Iterator[ServerProcess]:
    """A node that nothing happens to."""
    with contextlib.closing(ServerProcess(database.url, **SETTINGS)) as made:
        yield made


@pytest.fixture
def people() -> Iterator[Any]:
    """Return a function that connects a person to a server, and lets it join."""
    with contextlib.ExitStack() as stack:

        def connect(server: ServerProcess, sub: str, channel: str, presence: Any) -> Person:
            made = stack.enter_context(contextlib.closing(Person(server.url, {"token": mint(sub=sub)})))
            made.join(channel, presence)
            return made

        yield connect


@pytest.mark.nightly
def test_a_node_that_drains_and_one_that_is_killed(
    database: LogDatabase, steady: ServerProcess, people: Any, channel: str
) -> None:
    """Its clients go to another node, which is neither; one that does not return leaves after a while."""
    bob = people(steady, "bob", channel, True)
    with contextlib.closing(ServerProcess(database.url, **SETTINGS)) as node:
        ann, eve = (people(node, sub, channel, {"state": 1}) for sub in ("ann", "eve"))
        bob.wait_members({"ann": [1], "eve": [1]})
        for one in (ann, eve):
            one.send({"url": steady.url})  # from the next connection on
        node.stop()
        for state, one in enumerate((ann, eve)):
            one.connected()
            one.join(channel, {"state": state})
        bob.wait_members({"ann": [0], "eve": [1]})
        node.start()
        for one in (ann, eve):
            one.send({"cut": True, "url": node.url})
            one.connected()
            one.join(channel, {"state": 5})
        bob.wait_members({"ann": [5], "eve": [5]})
        assert not {"left ann", "left eve"} & set(bob.told)
        eve.close()
        ann.send({"url": steady.url})
        node.kill()
        ann.connected()
        ann.join(channel, {"state": 6})
        bob.wait_members({"ann": [6]})
    assert bob.told.count("left eve") == 1
    assert "left ann" not in bob.told


@pytest.mark.nightly
def test_a_worker_that_is_killed(database: LogDatabase, steady: ServerProcess, people: Any, channel: str) -> None:
    bob = people(steady, "bob", channel, True)
    with contextlib.closing(ServerProcess(database.url, "-w", "2", **SETTINGS)) as node:
        persons = [people(node, f"p{number}", channel, {"state": number}) for number in range(6)]
        everybody = {f"p{number}": [number] for number in range(6)}
        for one in (bob, *persons):
            one.wait_members(everybody)
        os.kill(node.worker_pids()[0], signal.SIGKILL)
        for number, one in enumerate(persons):
            request = {"channel": channel, "presence": {"state": number + 10}}
            answer: dict[str, Any] = {}
            while not answer.get("ok"):  # a request may be lost with its connection
                one.send({"emit": "subscribe", "argument": request})
                answer = one.next(kind="answer").get("answer", {})
        bob.wait_members({f"p{number}": [number + 10] for number in range(6)})
        assert not [word for word in bob.told if word.startswith("left")]


@pytest.mark.nightly
def test_a_node_that_is_cut_off_from_the_database(
    database: LogDatabase, steady: ServerProcess, people: Any, channel: str
) -> None:
    with contextlib.closing(Proxy(database.cluster.socket_path)) as proxy:
        url = proxy.url.removesuffix("/postgres") + f"/{database.name}"
        with contextlib.closing(ServerProcess(url, **SETTINGS)) as node:
            bob = people(steady, "bob", channel, {"state": 1})
            ann, eve = (people(node, sub, channel, {"state": 1}) for sub in ("ann", "eve"))
            everybody = {"ann": [1], "bob": [1], "eve": [1]}
            for one in (ann, bob, eve):
                one.wait_members(everybody)
                one.told.clear()
            proxy.black_hole()
            bob.wait_members({"bob": [1]})
            until(lambda: "stale" in ann.call("presence_get", {"channel": channel}), "its clients can know")
            assert ann.call("presence_update", {"channel": channel, "state": 2})["ok"]
            eve.send({"disconnect": True})
            dan = people(steady, "dan", channel, {"state": 3})
            proxy.restore()
            for one in (ann, bob, dan):
                one.wait_members({"ann": [2], "bob": [1], "dan": [3]})
            assert ann.told == ["updated ann", "left eve", "joined dan"]
            assert sorted(bob.told) == ["joined ann", "joined dan", "left ann", "left eve"]
            assert database.sql("SELECT key FROM socketio_pg.presence WHERE channel = %s ORDER BY key", channel) == [
                ("ann",), ("bob",), ("dan",),
            ]  # fmt: skip
