"""Presence and patterns on two nodes, with socketio_pg.js and both Python clients: a node is killed."""

import contextlib
import functools
import tempfile
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.people_clients import PEOPLE, SECRET, Person, tokens
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.replay_clients import ProxiedLog, numbers
from tests.support.server import ServerProcess

SETTINGS = {"AUTH": "optional", "AUTHORIZATION": "off", "PUBLIC_CHANNELS": "*", "PRESENCE": "all", "EPHEMERAL": "all"}


def is_back(eve: Person, name: str, before: list[Any]) -> bool:
    metas: list[Any] = eve.members("room")[name]["metas"]
    return metas != before


def agree(one: Person, other: Person) -> bool:
    return one.members("room") == other.members("room")


@pytest.mark.nightly
def test_people_return_to_another_node_after_a_crash(newest_pg: Cluster, channel: str) -> None:
    with contextlib.ExitStack() as stack:

        def enter(made: Any) -> Any:
            return stack.enter_context(contextlib.closing(made))

        log: ProxiedLog = enter(ProxiedLog(newest_pg, "people_nodes", JWT_SECRET=SECRET, **SETTINGS))
        log.install()
        path = f"{stack.enter_context(tempfile.TemporaryDirectory())}/http"
        other: ServerProcess = enter(
            ServerProcess(log.url, "--bind", f"unix:{path}", JWT_SECRET=SECRET, DRAIN_SECONDS="0.2", **SETTINGS)
        )
        eve: Person = enter(PEOPLE["python"](f"http://127.0.0.1:{enter(Proxy(path)).port}", tokens("eve")))
        eve.watch("room", channel)
        eve.subscribe("one", channel)
        people: dict[str, Person] = {name: enter(kind(log.address, tokens(name))) for name, kind in PEOPLE.items()}
        for name, one in people.items():
            one.watch("room", channel)
            one.call_presence("room", "join", name)
            assert eve.change("room") == ("join", name)
            one.subscribe_pattern("all", f"{channel}*")
        log.publish(channel, 1, 1)
        before = {name: member["metas"] for name, member in eve.members("room").items()}

        log.server.kill()
        log.proxy.forward_to(path)
        for one in people.values():
            one.wait_disconnected()
        log.publish(channel, 2, 2)
        log.publish(f"{channel}:new", 3, 3)
        for name, one in people.items():
            assert numbers(one, "all", 3) == [1, 2, 3]
            until(functools.partial(is_back, eve, name, before[name]), f"{name} is back")
            assert one.own_key("room") == name
        # The connections of the killed node end, and nobody has left.
        until(lambda: all(len(member["metas"]) == 1 for member in eve.members("room").values()), "no ghosts")
        assert {change for change, _ in eve.changes("room")} == {"update"}
        for name, one in people.items():
            until(functools.partial(agree, one, eve), "all know the same members")
            assert one.members("room")[name]["metas"][0]["state"] == name
            assert one.send(channel, name)
            assert eve.ephemeral("one")["payload"] == name
        log.publish(channel, 4, 4)
        assert all(numbers(one, "all", 1) == [4] for one in people.values())
        other.wait_ready()
