"""Presence with stock clients on two nodes: tabs, updates, grace times, crashes, and what clients may do."""

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support import small_buffers
from tests.support.clients import SocketClient, code
from tests.support.metrics import TOKEN, wait_for
from tests.support.nodes import Nodes
from tests.support.patience import PATIENCE, until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.presence import Person
from tests.support.server import ServerProcess
from tests.support.swarm import RawClient, Swarm
from tests.support.tokens import SECRET, ending_soon, mint

SETTINGS = {
    "JWT_SECRET": SECRET,
    "JWT_LEEWAY": "0",
    "AUTH": "optional",
    "PUBLIC_CHANNELS": "*",
    "PRESENCE": "all",
    "PRESENCE_MAX": "5",
    "PRESENCE_GRACE": "60",
    "DRAIN_SECONDS": "0.2",
}


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

        def connect(node: int, recovery: bool = False, **claims: Any) -> Person:
            auth = {"token": mint(**claims)} if claims else None
            made = Person(nodes.nodes[node].url, auth=auth, recovery=recovery)
            return stack.enter_context(contextlib.closing(made))

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


def test_a_reconnect_is_no_leave(nodes: Nodes, people: Any, channel: str) -> None:
    """With a recovered session on the other node, and without."""
    bob = people(1, sub="bob")
    bob.join(channel, True)
    ann, cid = people(0, recovery=True, sub="ann"), people(0, sub="cid")
    ref = ann.join(channel, {"state": 1})["ref"]
    cid.join(channel, {"state": 1})
    for one in (ann, bob):
        one.wait_members({"ann": [1], "cid": [1]})
    ann.send({"cut": True, "url": nodes.nodes[1].url})
    assert ann.connected()["recovery"] == {"recovered": True}
    while "state" not in ann.told:
        ann.take()
    assert ann.states() == {"ann": [1], "cid": [1]}
    assert ann.members["ann"]["metas"][0]["ref"] == ref
    assert ann.call("presence_update", {"channel": channel, "state": 2})["ok"]
    for one in (ann, bob):
        one.wait_members({"ann": [2], "cid": [1]})
    cid.send({"cut": True})
    cid.connected()
    cid.join(channel, {"state": 3})
    bob.wait_members({"ann": [2], "cid": [3]})
    cid.send({"cut": True, "url": nodes.nodes[1].url})
    cid.connected()
    cid.join(channel, {"state": 4})
    bob.wait_members({"ann": [2], "cid": [4]})
    # Back on its first node, which it leaves for good.
    ann.send({"cut": True, "url": nodes.nodes[0].url})
    assert ann.connected()["recovery"] == {"recovered": True}
    ann.send({"disconnect": True})
    bob.wait_members({"cid": [4]})
    assert sorted(set(bob.told)) == ["joined ann", "joined cid", "left ann", "updated ann", "updated cid"]


def test_clients_become_others_and_their_tokens_expire(nodes: Nodes, people: Any, channel: str) -> None:
    bob, ann = people(1, sub="bob"), people(0, sub="ann")
    bob.join(channel, True)
    ann.join(channel, {})
    bob.wait_members({"ann": [None]})
    assert ann.call("authenticate", {"token": mint(sub="ann")})["ok"]
    assert ann.call("authenticate", {"token": mint(sub="eve")})["ok"]
    bob.wait_members({})
    while "ended identity_changed" not in ann.told:
        ann.take()
    ann.join(channel, {})
    bob.wait_members({"eve": [None]})
    ending_soon(lambda exp: ann.call("authenticate", {"token": mint(sub="eve", exp=exp)})["ok"] or None)
    bob.wait_members({})
    # Disconnected by the application, while its connection is lost.
    zoe = people(0, sub="zoe")
    zoe.join(channel, {})
    bob.wait_members({"zoe": [None]})
    zoe.send({"cut": True, "url": "http://127.0.0.1:9"})
    zoe.next(event="disconnect")
    nodes.sql("SELECT socketio_pg.disconnect_user('zoe')")
    bob.wait_members({})
    assert bob.told == [f"{word} {key}" for key in ("ann", "eve", "zoe") for word in ("joined", "left")]


def test_anonymous_clients_and_wrong_requests(nodes: Nodes, channel: str) -> None:
    def subscribe(client: SocketClient, presence: Any, **more: Any) -> Any:
        return client.call("subscribe", {"channel": channel, "presence": presence, **more})

    with contextlib.ExitStack() as stack:
        url = nodes.nodes[0].url
        one, two = (stack.enter_context(SocketClient(url)) for _ in range(2))
        found = subscribe(one, {"key": "__proto__"})["presence"]
        assert found["key"] == "anonymous:__proto__"
        found = subscribe(two, {"key": "__proto__"})["presence"]
        assert [(one["key"], one["anonymous"], len(one["metas"])) for one in found["members"]] == [
            ("anonymous:__proto__", True, 2)
        ]
        # It joins again with another key, and only watches then.
        assert subscribe(two, {})["presence"]["key"] == f"anonymous:{two.next('server_hello')['sid']}"
        assert subscribe(two, True)["presence"]["count"] == 1
        assert code(two.call("presence_update", {"channel": channel, "state": 1})) == "invalid_request"
        bad: Any = (1, "true", [], {"key": ""}, {"key": "a\0b"}, {"key": 5}, {"key": "x" * 129}, {"state": "\0"})
        for wrong in bad:
            assert code(subscribe(two, wrong)) == "invalid_request", wrong
        assert code(subscribe(two, {"state": "x" * 1023})) == "payload_too_large"
        assert code(two.call("presence_update", {"channel": channel})) == "invalid_request"
        assert code(two.call("presence_get", {"channel": 7})) == "invalid_channel"
        assert code(two.call("subscribe", {"pattern": "a*", "presence": True})) == "invalid_request"
        assert subscribe(two, {"state": "x" * 1022})["ok"]
        assert "presence" not in subscribe(two, None)
        for sub in ("anonymous:ann", None, "x" * 513, "a\nb"):
            with SocketClient(url, auth={"token": mint(sub=sub)}) as named:
                assert code(subscribe(named, {})) == "forbidden", sub
                assert code(subscribe(named, True)) is None
                # As a part of many channels.
                many = named.call("subscribe", {"channels": ["other", channel], "presence": {}})
                assert [code(one) for one in many["channels"]] == ["forbidden", "forbidden"]
        got = two.call("presence_get", {"channel": channel})
        assert got["count"] == len(got["members"]) == 2
        assert "presence" not in subscribe(two, False)
        assert one.call("presence_get", {"channel": channel})["count"] == 1
        # All channels of a request count, though they are prepared at the same time.
        names = [f"{channel}:{n}" for n in range(150)]
        many = two.call("subscribe", {"channels": names, "presence": True})["channels"]
        assert sorted(map(str, map(code, many))) == ["None"] * 100 + ["too_many_subscriptions"] * 50
        changes = [{"channel": channel, "state": n} for n in range(300)]
        codes = [code(answer) for answer in one.call_together("presence_update", changes)]
        assert codes.count(None) >= 50, "of a burst of 100, which joining has counted in"
        assert set(codes) == {None, "rate_limited"}


def test_clients_of_full_channels_get_the_count(nodes: Nodes, people: Any, channel: str) -> None:
    watcher = people(1)
    watcher.join(channel, True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(SocketClient(nodes.nodes[0].url)) for _ in range(7)]
        for client in clients[:5]:
            assert client.call("subscribe", {"channel": channel, "presence": {}})["ok"]
        while len(watcher.members) < 5:
            watcher.take()
        for client in clients[5:]:
            assert client.call("subscribe", {"channel": channel, "presence": {}})["ok"]
        while watcher.count < 7:
            watcher.take()
        assert watcher.members == {}
        assert "members" not in clients[0].call("presence_get", {"channel": channel})
        for client in clients[:4]:
            client.call("unsubscribe", {"channel": channel})
        while watcher.count > 3:
            watcher.take()
        assert len(watcher.members) == 3
        assert "state" in watcher.told


def test_policies_and_rules_decide_who_joins_and_who_sees(newest_pg: Cluster, channel: str) -> None:
    """On a server whose role does not own the schema."""
    database = PolicyDatabase(newest_pg, "presence_policies")
    database.join("ann", channel, writes=True)
    database.join("bob", channel)
    with (
        contextlib.closing(ServerProcess(database.server_url, **RLS)) as server,
        contextlib.closing(Person(server.url, {"token": mint(sub="ann", role="authenticated")})) as ann,
        contextlib.closing(Person(server.url, {"token": mint(sub="bob", role="authenticated")})) as bob,
    ):
        assert code(bob.call("subscribe", {"channel": channel, "presence": {}})) == "forbidden"
        bob.join(channel, True)
        ann.join(channel, {"state": 1})
        bob.wait_members({"ann": [1]})
        # Ann is no longer a member, and still sees the others.
        database.sql("UPDATE members SET writes = false WHERE user_id = 'ann'")
        database.sql("SELECT socketio_pg.recheck(%s)", channel)
        bob.wait_members({})
        ann.wait_members({})
        while "ended forbidden" not in ann.told:
            ann.take()
        assert code(ann.call("presence_get", {"channel": channel})) is None
        # May be a member, and does not see the others.
        database.sql(
            'CREATE POLICY "hidden" ON socketio_pg.messages AS RESTRICTIVE FOR SELECT TO authenticated'
            " USING (kind <> 'presence')"
        )
        database.sql("UPDATE members SET writes = true")
        database.sql("SELECT socketio_pg.recheck(%s)", channel)
        for one in (ann, bob):
            while one.told[-1] != "ended forbidden":
                one.take()
        assert set(ann.join(channel, {"state": 2})) == {"key", "ref"}
        until(lambda: database.sql("SELECT key, state FROM socketio_pg.presence") == [("ann", 2)], "ann is a member")
        database.sql("INSERT INTO socketio_pg.rule (pattern, presence) VALUES ('*', false)")
        until(lambda: database.sql("SELECT key FROM socketio_pg.presence") == [], "the rule ends that")
        assert code(ann.call("subscribe", {"channel": channel, "presence": {}})) == "forbidden"


def test_what_was_asked_with_other_claims_ends_with_them(nodes: Nodes, channel: str) -> None:
    """A client authenticates again while its subscription waits for the members."""
    answers: list[queue.Queue[Any]] = [queue.Queue(), queue.Queue()]
    lists: dict[str, Any] = {"subscribe": [channel], "presence": [channel], "join": [channel]}
    settings = SETTINGS | {"AUTHORIZATION": "claims", "PUBLIC_CHANNELS": "", "PERMISSION_RECHECK_SECONDS": "0"}
    with (
        contextlib.closing(ServerProcess(nodes.url, **settings)) as server,
        contextlib.closing(SocketClient(server.url, auth={"token": mint(**lists)})) as one,
        contextlib.closing(SocketClient(server.url, auth={"token": mint(**lists)})) as two,
        contextlib.closing(psycopg2.connect(nodes.url)) as connection,
        connection.cursor() as cursor,
    ):
        ended: queue.Queue[Any] = queue.Queue()
        two.io.on("presence_ended", ended.put)
        cursor.execute("LOCK TABLE socketio_pg.presence_member IN ACCESS EXCLUSIVE MODE")
        for client, answer in zip((one, two), answers, strict=True):
            client.io.emit("subscribe", {"channel": channel, "presence": {}}, callback=answer.put)
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'socketio_pg.presence_member'::regclass"
        until(lambda: nodes.sql(waiting) != [], "the members are being read")
        for client, names in ((one, []), (two, [channel])):
            assert client.call("authenticate", {"token": mint(subscribe=names)})["ok"]
        connection.rollback()
        # If the machine is slow, both have waited for too long.
        assert code(answers[0].get(timeout=PATIENCE)) in ("forbidden", "database_unavailable")
        if answers[1].get(timeout=PATIENCE)["ok"]:
            reasons = [ended.get(timeout=PATIENCE) for _ in range(2)]
            assert (reasons[-1]["joined"], reasons[-1]["watching"]) == (False, False)


def test_a_slow_reader_gets_the_state_when_it_reads_again(nodes: Nodes, channel: str) -> None:
    settings = {"SEND_BUFFER_BYTES": "200000", "PING_TIMEOUT": "300", "METRICS_TOKEN": TOKEN}
    with contextlib.closing(ServerProcess(nodes.url, *small_buffers.OPTIONS, **settings)) as server:
        swarm = Swarm("127.0.0.1", server.port)
        slow, quick, member = swarm.connect(3, receive_buffer=4096)

        def answered(client: RawClient, number: int) -> bool:
            return any(packet.startswith(f"3{number}[") for packet in client.packets)

        for client in (slow, quick):
            client.emit("subscribe", {"channel": channel, "presence": True}, 1)
        swarm.run_until(lambda: answered(slow, 1) and answered(quick, 1))
        member.emit("subscribe", {"channel": channel, "presence": {}}, 1)
        swarm.run_until(lambda: len(quick.events("presence")) == len(slow.events("presence")) == 1)
        swarm.pause(slow)
        for number in range(40):
            # Fills the buffer of the slow client by other means: it asks for much, and reads nothing.
            slow.emit("subscribe", {"channel": "x" * 60, "filter": {"a": ["y" * 1500]}}, 100 + number)
        wait_for(server, lambda now: now["send_buffer_bytes"] > 60_000)
        for number in range(10):
            member.emit("presence_update", {"channel": channel, "state": [number, "x" * 1000]}, 2 + number)
            swarm.run_until(lambda: len(quick.events("presence")) == number + 2)  # noqa: B023 - called at once
        swarm.resume(slow)
        swarm.run_until(
            lambda: any(
                one.get("members", one.get("updated", ()))[0]["metas"][0]["state"] == [9, "x" * 1000]
                for one in slow.events("presence_state") + slow.events("presence")[1:]
            )
        )
        assert not slow.closed
        assert slow.events("presence_state")
