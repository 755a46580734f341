"""`createClient` of the package `socketio-pg`, in Node: channels, loops, history, presence, tables, states and errors.

tests/live/test_replay_clients.py has the engine below it. Connections go through a proxy, which cuts them.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.test_client_tokens import SECRET, token
from tests.support.clock import set_clock
from tests.support.node import NodeClient
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.replay_clients import ProxiedLog
from tests.support.server import ROOT, ServerProcess


class Refused(Exception):
    """A call was rejected. The message is the error's code."""


class Package:
    """A client of the package in a Node process. Channels and tables have names."""

    def __init__(self, url: str, **options: Any) -> None:
        self._node = NodeClient(url, "websocket", "package_client.mjs", json.dumps(options))

    def call(self, command: str, **values: Any) -> Any:
        self._node.send({"command": command, **values})
        done = self._node.next(kind="done")
        if "error" in done:
            raise Refused(done["error"])
        return done["value"]

    def next(self, kind: str, **values: Any) -> dict[str, Any]:
        return self._node.next(kind=kind, **values)

    def pending(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the lines of these kinds that have arrived and were not taken. A call reads up to now."""
        self.call("state")
        return [line for line in self._node.lines if line["kind"] in kinds]

    def listen(self, name: str, channel: str, *events: str, aborts: str | None = None, **options: Any) -> None:
        """Make a channel, with listeners to messages, states and ``events``, and wait until it is live."""
        self.call("channel", name=name, channel=channel, options=options)
        self.call("on", name=name, events=["state", "message", *events], aborts=aborts)
        self.wait_state(name, "live")

    def payload(self, name: str) -> Any:
        return self.next("message", name=name)["value"]["payload"]

    def wait_state(self, name: str, status: str) -> dict[str, Any]:
        """Skip states until this one, which is returned."""
        while (found := self.next("state", name=name)["value"])["status"] != status:
            pass
        return found  # type: ignore[no-any-return]

    def wait_client_state(self, status: str) -> str:
        """Skip states until this one. Return its code."""
        while (found := self.next("client state"))["status"] != status:
            pass
        return str(found["code"])

    def close(self) -> None:
        self._node.close()


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[ProxiedLog]:
    newest_pg.sql("DO $$ BEGIN CREATE ROLE package_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    made = ProxiedLog(newest_pg, "javascript_package", LIVE_TABLES="public.*", LIVE_TABLE_ROLE="package_reader")
    made.install()
    yield made
    made.close()


@pytest.fixture
def client(log: ProxiedLog) -> Iterator[Package]:
    with contextlib.closing(Package(log.address)) as made:
        yield made
    log.proxy.restore()


def publish(log: ProxiedLog, channel: str, *payloads: object) -> None:
    for payload in payloads:
        log.sql("SELECT socketio_pg.publish(%s, %s)", channel, json.dumps(payload))


def test_users_of_a_channel_share_its_subscription_until_the_last_listener_goes(client: Package, channel: str) -> None:
    client.listen("one", channel, aborts="one")
    client.listen("two", channel)
    assert client.call("state", name="one") == {"status": "live", "code": "live", "reason": ""}
    published = client.call("publish", channel=channel, payload={"n": 1})
    for name in ("one", "two"):
        line = client.next("message", name=name)
        assert (line["value"]["payload"], line["position"]["position"]) == ({"n": 1}, published["position"])
    client.call("raise", name="two")
    client.call("off", name="two", event="message")
    client.call("abort", name="one")
    client.call("publish", channel=channel, payload=2)
    assert client.payload("two") == 2
    assert client.next("uncaught")["text"] == "the listener's own"
    assert client.call("state", name="one")["status"] == "idle"
    assert client.pending("message", "wrong", "client error") == []

    # unsubscribe() ends it in spite of listeners, which hear of the next subscription.
    client.call("call", name="two", method="unsubscribe")
    client.call("publish", channel=channel, payload=3)
    assert client.call("state", name="two")["status"] == "idle"
    client.call("call", name="two", method="subscribe")
    client.call("publish", channel=channel, payload=4)
    assert client.payload("two") == 4
    assert client.call("call", name="two", method="history", values=[2]) == [
        {**message, "replayed": True} for message in client.call("call", name="two", method="history", values=[2])
    ]

    # Another filter is an error of this object alone. It comes in time for a listener that is added right after.
    client.call("channel", name="filtered", channel=channel, options={"filter": {"n": 1}})
    client.call("on", name="filtered", events=["message", "error", "state"])
    assert client.next("error", name="filtered")["value"]["code"] == "conflicting_filter"
    assert client.wait_state("filtered", "ended")["code"] == "conflicting_filter"
    assert client.call("kinds", name="filtered") == [
        True, "SubscriptionError", "conflicting_filter", channel, False,
    ]  # fmt: skip
    client.call("close")
    assert client.wait_client_state("ended") == "closed"
    assert client.wait_state("two", "ended")["code"] == "closed"
    with pytest.raises(Refused, match="closed"):
        client.call("publish", channel=channel, payload=5)


def test_messages_come_once_across_a_cut_and_a_restart(log: ProxiedLog, client: Package, channel: str) -> None:
    names = [f"{channel}:{number}" for number in range(3)]
    for name in names:
        client.listen(name, name, "gap")
    client.call("channel", name="all", pattern=f"{channel}:*")
    client.call("on", name="all", events=["message"])
    client.call("call", name="all", method="live")
    assert client.wait_client_state("connected") == "connected"
    log.proxy.refuse()
    assert client.wait_client_state("reconnecting") in ("transport_close", "transport_error")
    for name in names:
        assert client.wait_state(name, "reconnecting")["code"] == "reconnecting"
        publish(log, name, 1)
    log.proxy.restore()
    for name in names:
        assert client.payload(name) == 1
        gap = client.next("gap", name=name)["value"]
        assert (gap["tier"], gap["reason"], gap["since"] <= gap["until"]) == ("notify", "client_disconnected", True)
        client.wait_state(name, "live")
    log.server.kill()
    client.wait_client_state("reconnecting")
    for name in names:
        publish(log, name, 2)
    log.server.start()
    for name in names:
        assert client.payload(name) == 2
    assert sorted(client.payload("all") for _ in range(6)) == [1, 1, 1, 2, 2, 2]
    client.call("disconnect")
    while client.wait_client_state("disconnected") != "io_client_disconnect":
        pass
    publish(log, names[0], 3)
    client.call("connect")
    assert client.payload(names[0]) == client.payload("all") == 3
    assert client.pending("message") == []


def test_loops_take_messages_until_they_end(log: ProxiedLog, client: Package, channel: str) -> None:
    client.call("channel", name="one", channel=channel)
    client.call("on", name="one", events=["state", "gap"])
    client.call("call", name="one", method="live")
    client.call("loop", name="one", count=2)
    client.call("loop", name="one", buffer=2, slow=True, aborts="slow")
    publish(log, channel, *range(1, 6))
    assert client.next("loop", name="one")["taken"] == [1, 2]
    until(lambda: client.call("call", name="one", method="history", values=[1])[0]["payload"] == 5, "5 has come")
    client.call("go")
    gap = client.next("gap", name="one")["value"]
    assert gap == {"channel": channel, "tier": "buffer", "reason": "buffer_full", "dropped": 2}
    for number in (4, 5):
        client.next("taken", payload=number)
    client.call("abort", name="slow")
    assert client.next("loop", name="one")["taken"] == [1, 4, 5]
    # A loop is what holds this subscription: it ends with the loop.
    client.call("channel", name="two", channel=f"{channel}:2")
    client.call("loop", name="two", count=1)
    until(lambda: client.call("state", name="two")["status"] == "live", "the loop has begun")
    publish(log, f"{channel}:2", "last")
    assert client.next("loop", name="two")["taken"] == ["last"]
    until(lambda: client.call("state", name="two")["status"] == "idle", "nobody listens")
    client.call("loop", name="two", count=1)
    until(lambda: client.call("state", name="two")["status"] == "live", "another loop has begun")
    client.call("call", name="two", method="unsubscribe")
    assert client.next("loop", name="two") == {"kind": "loop", "name": "two", "taken": []}


@pytest.mark.parametrize("schema", ["parse", "standard", "slow", "by name"])
def test_an_invalid_message_is_an_event_of_its_own(log: ProxiedLog, client: Package, channel: str, schema: str) -> None:
    name = "checked:5" if schema == "by name" else channel
    publish(log, name, {"n": 1}, {"n": 0}, {"n": 2})
    options = {} if schema == "by name" else {"schema": schema}
    client.listen("one", name, "invalid", history=3, **options)
    assert [client.payload("one")["n"] for _ in range(2)] == [1, 2]
    invalid = client.next("invalid", name="one")["value"]
    assert invalid["message"]["payload"] == {"n": 0}
    assert [issue["message"] for issue in invalid["issues"]] == ["n must be positive"]
    publish(log, name, {"n": 3})
    assert client.payload("one") == ({"n": 3} if schema == "slow" else {"n": 3, "checked": True})
    assert [one["payload"]["n"] for one in client.call("call", name="one", method="history", values=[4])] == [1, 2, 3]
    assert client.call("state", name="one")["status"] == "live"


def test_table_is_sorted_and_a_transaction_is_seen(log: ProxiedLog, client: Package) -> None:
    log.sql(
        "CREATE TABLE tasks (id int PRIMARY KEY, rank int); SELECT socketio_pg.watch('tasks'); "
        "GRANT SELECT ON tasks TO package_reader; INSERT INTO tasks VALUES (1, 3), (2, 1), (3, NULL)"
    )
    client.call("table", name="tasks", table="public.tasks", options={"order": {"column": "rank", "desc": True}})
    assert client.next("rows", name="tasks")["size"] == 3
    client.wait_state("tasks", "live")
    found = client.call("list", name="tasks")
    assert [row["id"] for row in found["list"]] == [3, 1, 2], "null first, as PostgreSQL sorts in descending order"
    assert (found["key"], found["complete"], found["state"]["status"]) == (["id"], True, "live")
    [(before,)] = log.sql("UPDATE tasks SET rank = 9 WHERE id = 2 RETURNING pg_current_xact_id()::text")
    change = client.next("change", name="tasks")
    assert [row["id"] for row in change["list"]] == [3, 2, 1]
    assert (change["op"], change["key"], change["same"]) == ("UPDATE", 2, True)
    client.call("seen", txid=before)
    assert client.next("seen", txid=before) == {"kind": "seen", "txid": before}, "it has come before the call"
    client.listen("changes", "table:public.tasks")
    log.proxy.refuse()
    [(after,)] = log.sql("DELETE FROM tasks WHERE id = 1 RETURNING pg_current_xact_id()::text")
    client.call("seen", txid=after)
    client.call("seen", txid="1", options={"aborts": "never"})
    client.call("seen", txid="2", options={"timeout": 50})
    assert client.next("seen", txid="2")["code"] == "no_answer"
    client.call("abort", name="never")
    assert client.next("seen", txid="1")["code"] == "aborted"
    log.proxy.restore()
    assert client.next("seen", txid=after) == {"kind": "seen", "txid": after}
    assert client.payload("changes")["op"] == "DELETE"
    client.call("table", name="missing", table="public.missing")
    assert client.next("error", name="missing")["value"] == {"code": "invalid_request", "retrying": False}
    assert client.wait_state("missing", "ended")["code"] == "invalid_request"
    with pytest.raises(Refused, match="invalid_request"):
        client.call("call", name="missing", method="live")
    client.call("call", name="tasks", method="unsubscribe")
    assert client.wait_state("tasks", "ended")["code"] == "unsubscribed"


def test_people_come_and_go_and_cursors_move(log: ProxiedLog, client: Package, channel: str) -> None:
    client.listen("room", channel, "ephemeral", "presence")
    client.call("presenceOn", name="room", events=["sync", "update"])
    with contextlib.closing(Package(log.address)) as other:
        other.listen("room", channel)
        other.call("presence", name="room", method="join", values=[{"name": "Ann"}, {"key": "ann"}])
        joined = client.next("presence", name="room")["value"]
        assert (joined["kind"], joined["member"]["key"]) == ("join", "anonymous:ann")
        while client.next("sync", name="room")["keys"] != ["anonymous:ann"]:
            pass
        other.call("presence", name="room", method="update", values=[{"name": "Bea"}])
        assert client.next("update", name="room")["value"]["member"]["metas"][0]["state"] == {"name": "Bea"}
        assert client.next("presence", name="room")["value"]["kind"] == "update"
        assert client.call("people", name="room") == {
            "members": ["anonymous:ann"], "count": 1, "complete": True, "key": None,
        }  # fmt: skip
        other.call("send", name="room", payload={"x": 1}, options={"key": "cursor"})
        assert client.next("ephemeral", name="room")["value"]["payload"] == {"x": 1}
        other.call("presence", name="room", method="close")
        assert client.next("presence", name="room")["value"]["kind"] == "leave"
        other.call("presence", name="room", method="join", values=[{}, {"key": "ann"}])
        assert client.next("presence", name="room")["value"]["kind"] == "join", "it opens again"


@pytest.mark.parametrize("integers", ["number", "bigint", "string"])
def test_large_integers(log: ProxiedLog, channel: str, integers: str) -> None:
    large, text = 9007199254740993, 'id: "9007199254740993"'
    with contextlib.closing(Package(log.address, integers=integers)) as client:
        client.listen("one", channel)
        publish(log, channel, {"id": large, "all": [-large, 1, 0.5], "text": text, "long": "1" * 20})
        found = client.payload("one")
    wanted: dict[str, tuple[object, object]] = {
        "number": (large - 1, 1 - large),
        "bigint": ({"bigint": str(large)}, {"bigint": str(-large)}),
        "string": (str(large), str(-large)),
    }
    positive, negative = wanted[integers]
    assert found == {"id": positive, "all": [negative, 1, 0.5], "text": text, "long": "1" * 20}


def test_rows_are_loaded_before_the_messages_that_are_not_in_them(
    log: ProxiedLog, client: Package, channel: str
) -> None:
    publish(log, channel, 1)
    [(snapshot,)] = log.sql("SELECT socketio_pg.snapshot()")
    publish(log, channel, 2)
    client.call("channel", name="one", channel=channel, options={"load": {"rows": [1], "token": snapshot}})
    client.call("on", name="one", events=["rows", "message"])
    assert client.next("rows", name="one")["value"] == [1]
    assert client.payload("one") == 2
    client.call("call", name="one", method="live")
    assert client.pending("message", "gap") == []


# -- tokens ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def guarded(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(
        newest_pg.url(), app="tests.support.watched_app:app", JWT_SECRET=SECRET, JWT_LEEWAY="0", AUTH="required",
        AUTHORIZATION="claims", DRAIN_SECONDS="0.2",
    )  # fmt: skip
    yield made
    made.close()


def test_an_expired_token_is_replaced(guarded: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    tokens = [token(45, "first"), token(3600, "second")]
    with contextlib.closing(Package(guarded.url, tokens=tokens)) as client:
        client.listen("one", channel)
        set_clock(guarded, 60)
        try:
            client.wait_client_state("reconnecting")
            client.wait_client_state("connected")
            client.wait_state("one", "live")
            newest_pg.notify(channel, "1")
            assert client.payload("one") == 1
        finally:
            set_clock(guarded)


def test_refusals_have_codes(guarded: ServerProcess, channel: str) -> None:
    with contextlib.closing(Package(guarded.url)) as client:
        assert client.next("client error") == {"kind": "client error", "code": "unauthorized", "retrying": False}
        assert client.wait_client_state("disconnected") == "unauthorized"
        assert client.call("state")["code"] == "unauthorized"
    with contextlib.closing(Package(guarded.url, tokens=[token(3600, subscribe=["allowed"])])) as client:
        client.call("channel", name="one", channel=channel)
        client.call("on", name="one", events=["message", "state"])
        assert client.wait_state("one", "ended")["code"] == "forbidden"
        # Nobody has listened to errors of the channel.
        assert client.next("client error") == {"kind": "client error", "code": "forbidden", "retrying": False}
        assert client.call("kinds", name="one") == [True, "SubscriptionError", "forbidden", channel, False]
        client.call("channel", name="two", channel="allowed", options={"aborts": "two"})
        client.call("on", name="two", events=["message", "state"])
        client.call("call", name="two", method="live")
        client.call("abort", name="two")
        assert client.wait_state("two", "ended")["code"] == "aborted"


# -- the edges of states -----------------------------------------------------------------------------------------------
def test_nothing_is_thrown_lost_or_kept_at_the_edges_of_states(log: ProxiedLog, channel: str) -> None:
    log.sql(
        "CREATE TABLE edges (id bigint PRIMARY KEY, name text); SELECT socketio_pg.watch('edges'); "
        "GRANT SELECT ON edges TO package_reader; "
        "INSERT INTO edges VALUES (9, 'a'), (10, 'b'), (9007199254740993, 'c'), (10007199254740993, 'd'), (-11, 'e')"
    )
    publish(log, f"{channel}:many", {"txid": "77"}, *[{"txid": "78"}] * 400)
    script = ROOT / "tests" / "live" / "package_edges.mjs"
    done = subprocess.run(
        ["node", script, log.address, "websocket", channel], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "closedWhilePartsLoad": ["closed"] * 3,
        "closed": ["ended", "closed", "closed"],
        "publishAfterClose": [["PublishError", "closed", False]] * 2,
        "endedBeforeTheAnswer": "idle",
        "refusedWithAListener": ["invalid_channel"],
        "listenerRemovesItself": "invalid_channel",
        "abortedBefore": ["aborted", "aborted"],
        "unsubscribedWhilePreparing": ["unsubscribed", "idle"],
        "retried": ["load_failed", "Loading failed: not yet"],
        "iteratorIsAbandoned": [True, True, "idle"],
        "messageWhileTheLoopLoads": [5, True, True],
        "signalOfALongLife": 0,
        "seenAmongMany": "done",
        "listenersOfTheSocket": [True, 401, 401, 401],
        "undefinedOptions": "done",
        "notConnected": ["disconnected", "disconnected"],
        "ordered": ["e a b c d"] * 3,
    }
