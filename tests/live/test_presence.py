"""Presence with stock clients on two nodes: tabs, updates, grace times, crashes, and what clients may do."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.nodes import Nodes
from tests.support.postgres import Cluster
from tests.support.presence import Person
from tests.support.tokens import SECRET, mint

SETTINGS = {"JWT_SECRET": SECRET, "AUTH": "optional", "PRESENCE": "all", "DRAIN_SECONDS": "0.2"}


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    with contextlib.closing(Nodes(newest_pg, "presence", 2, balanced=False, **SETTINGS)) as made:
        for node in made.nodes:
            node.wait_ready()
        yield made


@pytest.fixture
def people(nodes: Nodes) -> Iterator[Any]:
    """Return a function that connects a person to a node."""
    with contextlib.ExitStack() as stack:

        def connect(node: int, **claims: Any) -> Person:
            auth = {"token": mint(**claims)} if claims else None
            return stack.enter_context(contextlib.closing(Person(nodes.nodes[node].url, auth=auth)))

        yield connect


def test_tabs_updates_and_leaves(nodes: Nodes, people: Any, channel: str) -> None:
    ann, bob = people(0, sub="ann"), people(1, sub="bob")
    assert bob.join(channel, True)["members"] == []
    joined = ann.join(channel, {"state": {"name": "Ann"}, "key": "somebody else"})
    assert joined["key"] == "ann"
    assert [one["key"] for one in joined["members"]] == ["ann"]
    bob.wait_members({"ann": [{"name": "Ann"}]})
    # A second tab, on the other node.
    tab = people(1, sub="ann")
    tab.join(channel, {"state": 2})
    for one in (ann, bob):
        one.wait_members({"ann": [{"name": "Ann"}, 2]})
    assert tab.call("presence_update", {"channel": channel, "state": "away"}) == {"ok": True, "channel": channel}
    for one in (ann, bob):
        one.wait_members({"ann": [{"name": "Ann"}, "away"]})
    assert ann.call("presence_leave", {"channel": channel})["ok"]
    for one in (ann, bob):
        one.wait_members({"ann": ["away"]})
    # Without a reconnect, its last connection leaves at once.
    tab.send({"disconnect": True})
    for one in (ann, bob):
        one.wait_members({})
    assert bob.told == ["joined ann", "updated ann", "updated ann", "updated ann", "left ann"]
