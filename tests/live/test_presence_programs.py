"""Presence for programs, on two nodes: HTTP, the command, Flask's view of it, and its signals and events."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import requests

from tests.support.cli import run
from tests.support.clients import SocketClient
from tests.support.log import Log
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, mint

APP = "tests.support.presence_app:app"
SETTINGS = {
    "JWT_SECRET": SECRET,
    "AUTHORIZATION": "claims",
    "PRESENCE_EVENTS": "presence:events",
    "PRESENCE_MEMBER_EVENTS": "1",
    "PRESENCE_GRACE": "0.5",
    "CHANNEL_RULES": '{"quiet:*": {"presence": false}}',
}
ALL: dict[str, Any] = {"subscribe": ["*"], "presence": ["*"], "join": ["*"]}


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "presence_programs", app=APP, AUTO_INIT="1", **SETTINGS)
    try:
        until(lambda: made.sql("SELECT to_regclass('socketio_pg.presence') IS NOT NULL")[0][0], "it is installed")
        yield made
    finally:
        made.server.close()


@pytest.fixture(scope="module")
def nodes(log: Log) -> Iterator[list[ServerProcess]]:
    with contextlib.closing(ServerProcess(log.url, app=APP, DRAIN_SECONDS="0.2", **SETTINGS)) as second:
        yield [log.server, second]


def get(node: ServerProcess, path: str, **claims: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {mint(**claims)}"} if claims else {}
    answer = requests.get(node.url + path, headers=headers, timeout=PATIENCE)
    return answer.status_code, answer.json()


def test_members_and_changes_are_known_everywhere(log: Log, nodes: list[ServerProcess], channel: str) -> None:
    path = f"/api/channels/{channel}/presence"
    watcher: dict[str, Any] = {"sub": "watcher", **ALL}
    _, document = get(nodes[0], "/api/openapi.json")
    valid = jsonschema_rs.validator_for(
        {"$ref": "#/components/schemas/Presence", "components": document["components"], "unevaluatedProperties": False}
    )
    with contextlib.ExitStack() as stack:
        events = stack.enter_context(SocketClient(nodes[1].url, auth={"token": mint(**watcher)}))
        assert events.call("subscribe", {"channel": "presence:events"})["ok"]
        assert get(nodes[0], path, **watcher) == (200, {"channel": channel, "count": 0, "members": []})
        people = [
            stack.enter_context(SocketClient(node.url, auth={"token": mint(sub=sub, **ALL)}))
            for node, sub in zip([*nodes, nodes[0]], ("ann", "bob", "ann"), strict=True)
        ]
        for number, person in enumerate(people):
            presence = {"state": {"tab": number, "big": 2**60}}
            assert person.call("subscribe", {"channel": channel, "presence": presence})["ok"]
        for node in nodes:
            until(lambda: get(node, f"{path}?count", **watcher)[1]["count"] == 2, "both")  # noqa: B023 - called at once
            until(lambda: len(states(get(node, path, **watcher)[1])) == 3, "all connections")  # noqa: B023
            status, body = get(node, path, **watcher)
            assert (status, body["count"]) == (200, 2)
            valid.validate(body)
            assert states(body) == [("ann", 0), ("ann", 2), ("bob", 1)]
            _, own = get(node, f"/members/{channel}")
            assert own["count"] == 2
            assert states(own) == states(body)
        assert get(nodes[0], path, sub="stranger", subscribe=["*"])[1]["error"]["code"] == "forbidden"
        assert get(nodes[0], "/api/channels/quiet:1/presence", **watcher)[1]["error"]["code"] == "forbidden"
        assert get(nodes[0], "/api/channels/a*/presence", **watcher)[1]["error"]["code"] == "invalid_channel"

        shown = run("presence", channel, "--json", url=log.url)
        assert (shown.returncode, shown.stderr) == (0, "")
        lines = [json.loads(line) for line in shown.stdout.splitlines()]
        assert [(one["key"], one["state"]["tab"]) for one in lines] == [("ann", 0), ("ann", 2), ("bob", 1)]
        assert {one["state"]["big"] for one in lines} == {2**60}
        assert run("presence", channel, "--count", url=log.url).stdout == "2\n"
        table = run("presence", channel, url=log.url).stdout.splitlines()
        assert table[0].split() == ["KEY", "JOINED_AT", "STATE", "CLIENT", "NODE"]
        assert [line.split()[0] for line in table[1:]] == ["ann", "ann", "bob"]

        for person in people:
            assert person.call("unsubscribe", {"channel": channel})["ok"]
        # Each once, on any of the nodes: a person's first connection joins, and the last one leaves.
        expected = [["joined", channel, "ann"], ["joined", channel, "bob"], ["left", channel, "ann"]]
        expected += [["left", channel, "bob"], ["occupied", channel], ["vacated", channel]]
        until(lambda: sorted(of(channel, told(nodes))) == expected, "the signals")
        found = [events.next("event")["payload"] for _ in range(6)]
        assert {one["channel"] for one in found} == {channel}
        kinds = [one["event"] for one in found]
        assert (kinds[0], kinds[-1]) == ("occupied", "vacated")
        assert sorted(kinds[1:-1]) == ["joined", "joined", "left", "left"]
        assert sorted(one["key"] for one in found[1:-1]) == ["ann", "ann", "bob", "bob"]
        assert run("presence", channel, url=log.url).stdout == "nobody is there\n"


def test_connections_in_a_room_of_the_application(nodes: list[ServerProcess], channel: str) -> None:
    """They are no members: each process is asked for its own."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(SocketClient(node.url, auth={"token": mint(sub=sub, **ALL)}))
            for node, sub in zip([*nodes, *nodes], ("ann", "bob", "cid", "dan"), strict=True)
        ]
        for client in clients[:2]:
            assert client.call("enter", channel) is True
        assert clients[2].call("subscribe", {"channel": channel, "filter": {"x": 1}})["ok"]
        for node in nodes:
            until(lambda: len(people(node, channel)) == 3, "all")  # noqa: B023 - called at once
            assert people(node, channel) == ["ann", "bob", "cid"]
            assert get(node, f"/members/{channel}")[1]["count"] == 0


def people(node: ServerProcess, room: str) -> list[str]:
    found = get(node, f"/room/{room}")[1]
    assert found["count"] == len(found["connections"])
    return sorted(one["sub"] for one in found["connections"])


@pytest.mark.nightly
def test_members_of_a_killed_node_leave(nodes: list[ServerProcess], channel: str) -> None:
    first, second = nodes
    with SocketClient(second.url, auth={"token": mint(sub="ann", **ALL)}, reconnection=False) as ann:
        assert ann.call("subscribe", {"channel": channel, "presence": {}})["ok"]
        until(lambda: get(first, f"/members/{channel}")[1]["count"] == 1, "the first node knows her")
        second.kill()
        expected = [["left", channel, "ann"], ["vacated", channel]]
        until(lambda: of(channel, told([first])) == expected, "the first node tells that she has left")
        assert get(first, f"/members/{channel}")[1] == {"count": 0, "members": []}
        second.start()


def told(nodes: list[ServerProcess]) -> list[list[str]]:
    return [one for node in nodes for one in get(node, "/told")[1]]


def of(channel: str, found: list[list[str]]) -> list[list[str]]:
    return [one for one in found if one[1] == channel]


def states(body: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted((one["key"], meta["state"]["tab"]) for one in body["members"] for meta in one["metas"])
