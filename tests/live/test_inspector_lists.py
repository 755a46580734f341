"""The inspector's lists and actions: channels, clients, permissions, publishing, tokens, watches, the doctor.

Two nodes on one database, one of which has two workers: an answer is always that of all three processes.
"""

import concurrent.futures
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from tests.support.clients import SocketClient
from tests.support.inspector import ADMIN_TOKEN, TOKEN, TOKENS, Inspector, refused
from tests.support.log import Log
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.sse import Stream
from tests.support.tokens import SECRET, mint

T = TypeVar("T")
SETTINGS = TOKENS | {
    "JWT_SECRET": SECRET,
    "AUTH": "optional",
    "AUTHORIZATION": "rls",
    "ALLOWED_ROLES": "lists_customer",
    "FROM_CLAIMS": "sub,name",
    "LIVE_TABLES": "public.orders",
    "CHANNEL_RULES": '{"chat:*": {"presence": true, "max_messages": 100}, "quiet": {"ephemeral": false}}',
    "SEND_BUFFER_BYTES": "1000000",
}
MODEL = """
CREATE ROLE lists_customer NOLOGIN;
GRANT USAGE ON SCHEMA socketio_pg TO lists_customer;
GRANT SELECT, INSERT ON socketio_pg.messages TO lists_customer;
CREATE POLICY "customers read" ON socketio_pg.messages FOR SELECT TO lists_customer
    USING (channel NOT LIKE 'secret%');
CREATE POLICY "own channel" ON socketio_pg.messages FOR ALL TO lists_customer
    USING (channel = 'user:' || (SELECT current_setting('request.jwt.claims', true)::jsonb ->> 'sub'));
CREATE POLICY "members" ON socketio_pg.messages FOR INSERT TO lists_customer WITH CHECK (kind = 'presence');
CREATE POLICY "not the attic" ON socketio_pg.messages AS RESTRICTIVE FOR SELECT TO lists_customer
    USING (channel <> 'attic');
CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text);
"""


def found(read: Callable[[], T | None], what: str) -> T:
    """Return the first answer of ``read()`` that is not None."""
    answers: list[T] = []

    def look() -> bool:
        answer = read()
        if answer is not None:
            answers.append(answer)
        return answer is not None

    until(look, what)
    return answers[0]


class Nodes(Log):
    """Two nodes on one database: the first one has two workers."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, "inspector_lists", "-w", "2", AUTO_INIT="1", **SETTINGS)
        try:
            until(
                lambda: self.sql("SELECT to_regclass('socketio_pg.messages')") != [(None,)], "the schema is installed"
            )
            cluster.sql("DROP ROLE IF EXISTS lists_customer")
            self.sql(MODEL)
            self.other = ServerProcess(self.url, DRAIN_SECONDS="0.2", **SETTINGS)
        except BaseException:
            self.server.close()
            raise
        self.reader, self.admin = Inspector(self.server, TOKEN), Inspector(self.other, ADMIN_TOKEN)

    def close(self) -> None:
        self.other.close()
        self.server.close()


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    made = Nodes(newest_pg)
    try:
        for one in (made.reader, made.admin):
            until(lambda one=one: one.read("clients")["processes"] == 3, "all processes answer")  # type: ignore[misc]
        yield made
    finally:
        made.close()


@pytest.fixture
def people(nodes: Nodes) -> Iterator[dict[str, Any]]:
    """Clients of both nodes and a stream: of ann on each node, and of bob, who has a pattern."""
    with contextlib.ExitStack() as stack:

        def client(server: ServerProcess, sub: str, *transports: str) -> SocketClient:
            token = mint(sub=sub, name=f"Name of {sub}", role="lists_customer", hidden="x")
            return stack.enter_context(SocketClient(server.url, auth={"token": token}, transports=transports))

        made = {
            "ann": client(nodes.server, "ann", "websocket"),
            "ann too": client(nodes.other, "ann", "polling"),
            "bob": client(nodes.other, "bob", "websocket"),
        }
        for one in made.values():
            assert one.call("subscribe", {"channels": ["orders:1", "chat:7"]})["ok"]
        assert made["bob"].call("subscribe", {"pattern": "orders:*", "filter": {"n": {"gt": 5}}})["ok"]
        assert made["ann"].call("subscribe", {"channel": "chat:7", "presence": {"state": {"typing": True}}})["ok"]
        token = mint(sub="ann", role="lists_customer")
        stream = stack.enter_context(Stream(nodes.server.url, "orders:1", token=token))
        assert stream.next().name == "subscribed"
        yield made


def test_channels_of_all_processes_and_of_the_log(nodes: Nodes, people: dict[str, Any]) -> None:
    nodes.sql("SELECT socketio_pg.publish('alone', '1'), socketio_pg.publish('alone', '\"é\"')")
    until(lambda: nodes.sql("SELECT count(*) FROM socketio_pg.outbox") == [(0,)], "the relay has moved them")
    first = nodes.reader.read("channels", params={"sort": "-subscribers"})
    assert (first["processes"], first["unanswered"], first["complete"]) == (3, [], True)
    assert first["log"] == {"read": True, "problem": None}
    by_name = {one["channel"]: one for one in first["channels"]}
    assert by_name["orders:1"]["by_kind"] == {"sockets": 3, "streams": 1, "python": 0, "patterns": 1}
    assert by_name["orders:1"]["subscribers"] == 4
    assert first["channels"][0]["channel"] == "orders:1"
    assert (by_name["orders:*"]["pattern"], by_name["orders:*"]["subscribers"]) == (True, 1)
    assert by_name["chat:7"]["members"] == 1
    assert by_name["chat:7"]["rule"] == {"pattern": "chat:*", "source": "CHANNEL_RULES"}
    alone = by_name["alone"]
    assert (alone["subscribers"], alone["last_bytes"]) == (0, 4)
    assert (
        alone["last_position"] == nodes.sql("SELECT max(position) FROM socketio_pg.log WHERE channel = 'alone'")[0][0]
    )
    assert alone["last_at"] == pytest.approx(time.time(), abs=120)
    assert first["total"] == len(first["channels"])

    # NOTIFY-only channels are counted while somebody looks, over all processes that hear them.
    def notified() -> dict[str, Any] | None:
        nodes.sql('NOTIFY "orders:1", \'{"n": 9}\'')
        listed = nodes.reader.read("channels", params={"search": "ders:", "measure": "1.5", "limit": 2})
        rows = {one["channel"]: one for one in listed["channels"]}
        return rows if rows["orders:1"]["messages_in"] and rows["orders:*"]["messages_in"] else None

    rows = found(notified, "messages are counted")
    assert rows.keys() == {"orders:1", "orders:*"}
    row = rows["orders:1"]
    assert row["messages_out"] >= row["messages_in"] * 3
    assert (row["last_position"], row["last_bytes"]) == (None, 8)
    assert row["bytes_in"] > 0
    assert rows["orders:*"]["messages_in"] > 0
    names = [one["channel"] for one in nodes.reader.read("channels", params={"sort": "channel"})["channels"]]
    assert names == sorted(names)
    backwards = nodes.reader.read("channels", params={"sort": "-channel", "limit": 2, "offset": 1})["channels"]
    assert refused(nodes.reader.get("channels", params={"offset": 2001})) == (400, "invalid_request")
    assert [one["channel"] for one in backwards] == names[::-1][1:3]
    assert nodes.reader.read("channels", params={"sort": "-members", "limit": 1})["channels"][0]["channel"] == "chat:7"
    newest = nodes.reader.read("channels", params={"sort": "-last_position", "limit": 1})["channels"]
    assert newest[0]["last_position"] == nodes.sql("SELECT max(position) FROM socketio_pg.log")[0][0]
    assert nodes.reader.read("channels", params={"search": "nothing*"})["channels"] == []
    assert refused(nodes.reader.get("channels", params={"sort": "size"})) == (400, "invalid_request")
    assert refused(nodes.reader.get("channels", params={"measure": "60"})) == (400, "invalid_request")


def test_one_channel(nodes: Nodes, people: dict[str, Any]) -> None:
    nodes.sql(
        "SELECT socketio_pg.publish('chat:7', jsonb_build_object('n', 12345678901234567890 + n))"
        " FROM generate_series(1, 5) AS n"
    )
    until(lambda: nodes.reader.read("channel", params={"name": "chat:7"})["stored"] == 5, "the relay has moved them")
    shown = nodes.reader.read("channel", params={"name": "chat:7"})
    assert (shown["subscribers"], shown["problems"], shown["stored_more"], shown["unanswered"]) == (3, [], False, [])
    assert sorted(one["subscribers"] for one in shown["by_process"]) == [0, 1, 2]
    assert (shown["members"]["count"], shown["members"]["members"][0]["key"]) == (1, "ann")
    assert sorted(one["sub"] for one in shown["clients"]) == ["ann", "ann", "bob"]
    columns = {one["column"]: one for one in shown["rule_columns"]}
    assert columns["max_messages"] == {
        "column": "max_messages", "value": 100, "source": "CHANNEL_RULES", "pattern": "chat:*",
    }  # fmt: skip
    assert columns["durable"]["source"] == "DURABLE_CHANNELS"
    assert shown["oldest_position"] < shown["last_position"] <= shown["position"]
    pattern = nodes.reader.read("channel", params={"name": "orders:*"})
    assert pattern["clients"][0] | {"kind": "socket", "sub": "bob", "filter": {"n": {"gt": 5}}} == pattern["clients"][0]
    assert (pattern["rule_columns"], pattern["stored"]) == (None, None)
    nothing = nodes.reader.read("channel", params={"name": "nothing"})
    assert (nothing["subscribers"], nothing["stored"], nothing["last_position"], nothing["problems"]) == (
        0,
        0,
        None,
        [],
    )

    def page(**parameters: Any) -> tuple[list[int], dict[str, Any]]:
        answer = nodes.reader.read("channel/history", params={"name": "chat:7"} | parameters)
        return [one["payload"]["n"] - 12345678901234567890 for one in answer["messages"]], answer

    newest, answer = page(limit=2)
    assert newest == [4, 5]
    assert page(since=f"{answer['epoch']}:{shown['oldest_position']}", limit=3)[0] == [2, 3, 4]
    assert page(before=answer["messages"][0]["position"], limit=2)[0] == [2, 3]
    assert page(before=shown["oldest_position"])[0] == []
    texts = nodes.reader.read("channel/history", params={"name": "chat:7", "limit": 1, "text": 1})["messages"]
    assert (texts[0]["text"], "payload" in texts[0]) == ('{"n": 12345678901234567895}', False)
    assert refused(nodes.reader.get("channel", params={"name": "x" * 64})) == (400, "invalid_channel")
    assert refused(nodes.reader.get("channel")) == (400, "invalid_channel")
    assert refused(nodes.reader.get("channel/history", params={"name": "a*"})) == (400, "invalid_channel")


def test_access_of_a_channel_names_policies(nodes: Nodes) -> None:
    shown = nodes.reader.read("channel/access", params={"name": "orders:1"})
    assert (shown["authorization"], shown["auth"]) == ("rls", "optional")
    assert [one["name"] for one in shown["policies"]] == ["customers read", "members", "own channel", "not the attic"]
    by_who = {one["who"]: one["actions"] for one in shown["who"]}
    assert by_who["anonymous"]["subscribe"]["by"] == "ANONYMOUS_ROLE"
    customer = by_who["role lists_customer"]
    assert customer["subscribe"]["allowed"]
    assert customer["subscribe"]["reason"] == 'the policy "customers read" allows it'
    assert (customer["publish"]["allowed"], customer["publish"]["by"]) == (False, "policies")


def test_permissions_are_explained(nodes: Nodes) -> None:
    def ask(channel: str, **more: Any) -> dict[str, Any]:
        claims = {"sub": "ann", "role": "lists_customer"}
        shown: dict[str, Any] = nodes.reader.do("permission", {"channel": channel, "claims": claims} | more)
        return shown

    shown = ask("user:ann")
    assert (shown["role"], shown["sub"], shown["pattern"]) == ("lists_customer", "ann", False)
    allowed = {action: one["allowed"] for action, one in shown["actions"].items()}
    assert allowed == dict.fromkeys(("subscribe", "publish", "presence", "join", "ephemeral"), True)
    assert shown["actions"]["publish"]["reason"] == 'the policy "own channel" allows it'
    attic = ask("attic", actions=["subscribe"])["actions"]["subscribe"]
    assert (attic["allowed"], attic["reason"]) == (
        False, 'the policy "not the attic", which is restrictive, refuses it',
    )  # fmt: skip
    results = {one["name"]: one["result"] for one in attic["policies"]}
    assert results == {"customers read": True, "not the attic": False, "own channel": False}
    assert ask("quiet")["actions"]["ephemeral"]["by"] == "rule"
    assert ask("socketio_pg")["actions"]["subscribe"]["by"] == "name"
    assert ask("x", claims={"sub": "eve", "role": "postgres"})["actions"]["subscribe"]["by"] == "ALLOWED_ROLES"
    assert ask("x", claims=None)["actions"]["subscribe"]["by"] == "ANONYMOUS_ROLE"
    token = ask("user:tim", claims=None, token=mint(sub="tim", role="lists_customer"))
    assert (token["sub"], token["actions"]["publish"]["allowed"]) == ("tim", True)
    for body in (
        {"channel": "x", "token": "nonsense"}, {"channel": 7}, {"channel": "x", "claims": {"sub": 7}},
        {"channel": "x", "actions": ["fly"]}, {"channel": "x", "claims": []},
    ):  # fmt: skip
        assert refused(nodes.reader.post("permission", body)) == (400, "invalid_request")


def test_policies_are_asked_on_few_connections(nodes: Nodes) -> None:
    nodes.sql(
        """CREATE POLICY "slow" ON socketio_pg.messages FOR SELECT TO lists_customer
        USING (channel = 'sloth' AND pg_sleep(0.4) IS NOT NULL)"""
    )
    body = {"channel": "sloth", "claims": {"sub": "ann", "role": "lists_customer"}, "actions": ["subscribe"]}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # To a node with one worker.
        answers = list(pool.map(lambda _: Inspector(nodes.other, TOKEN).post("permission", body), range(8)))
    nodes.sql('DROP POLICY "slow" ON socketio_pg.messages')
    assert {answer.status_code for answer in answers} == {200, 503}
    assert sum(answer.status_code == 200 for answer in answers) < 8


def test_publishing_and_tokens_need_the_right_to_act(nodes: Nodes, people: dict[str, Any]) -> None:
    message = {"channel": "orders:1", "payload": {"n": 7}, "id": "inspector-1", "durable": True}
    needed: list[tuple[str, dict[str, Any]]] = [
        ("publish", message), ("token", {"claims": {}}), ("watches/set", {}), ("clients/disconnect", {"sub": "ann"}),
    ]  # fmt: skip
    for path, body in needed:
        assert refused(nodes.reader.post(path, body)) == (403, "forbidden")
    published = nodes.admin.do("publish", message)
    assert (published["durable"], published["channel"]) == (True, "orders:1")
    assert published["position"] > 0
    assert nodes.admin.do("publish", message)["duplicate"]
    event = people["ann"].next("event")
    assert (event["payload"], "from" in event) == ({"n": 7}, False)
    assert not nodes.admin.do("publish", {"channel": "orders:1", "payload": 8, "durable": False})["durable"]
    assert refused(nodes.admin.post("publish", {"channel": "a"})) == (400, "invalid_request")
    about = nodes.reader.read("token")
    assert (about["possible"], about["roles"], about["role_claim"]) == (False, ["lists_customer"], "role")
    assert "development" in about["reason"]
    assert refused(nodes.admin.post("token", {"claims": {"sub": "tim"}})) == (403, "forbidden")


def test_clients_of_all_processes(nodes: Nodes, people: dict[str, Any]) -> None:
    shown = nodes.reader.read("clients", params={"search": "ANN", "sort": "-subscriptions", "measure": "0.7"})
    assert (shown["total"], shown["processes"], shown["unanswered"], shown["complete"]) == (3, 3, [], True)
    assert [one["subscriptions"] for one in shown["clients"]] == [2, 2, 1]
    by_transport = {one["transport"]: one for one in shown["clients"]}
    assert by_transport.keys() == {"websocket", "polling", "stream"}
    mine = by_transport["websocket"]
    assert (mine["claims"], mine["address"]) == ({"sub": "ann", "name": "Name of ann"}, "127.0.0.1")
    assert mine["total_in"] > 0
    assert mine["total_out"] > 0
    assert 0 <= mine["round_trip"] < 60
    assert mine["bytes_out"] >= 0
    assert by_transport["polling"]["bytes_out"] is None
    assert len({(one["node"], one["worker"]) for one in shown["clients"]}) >= 2
    assert nodes.reader.read("clients", params={"search": "orders:1"})["total"] == 4
    assert nodes.reader.read("clients", params={"channel": "orders:*"})["total"] == 1
    limited = nodes.reader.read("clients", params={"sort": "-since", "limit": 1, "offset": 1})
    assert (len(limited["clients"]), limited["total"]) == (1, 4)
    bob = people["bob"].io.get_sid()
    one = nodes.reader.read("clients", params={"sid": bob})["clients"][0]
    assert {"pattern": "orders:*", "filter": {"n": {"gt": 5}}} in one["subscriptions_of"]
    assert {"channel": "chat:7", "filter": None} in one["subscriptions_of"]
    for sort in ("address", "sub", "slow", "total_out", "messages_in", "round_trip", "replay_lag", "node"):
        assert nodes.reader.read("clients", params={"sort": f"-{sort}"})["total"] == 4
    assert nodes.admin.do("clients/disconnect", {"sid": bob}) == {"count": 1, "processes": 3, "unanswered": []}
    assert people["bob"].next("error")["code"] == "ended_by_server"
    until(lambda: nodes.reader.read("clients", params={"sid": bob})["total"] == 0, "bob is gone")
    assert nodes.admin.do("clients/disconnect", {"sid": bob})["count"] == 0
    assert refused(nodes.admin.post("clients/disconnect", {})) == (400, "invalid_request")


def test_live_tables_are_subscriptions(nodes: Nodes) -> None:
    nodes.sql("GRANT SELECT ON orders TO lists_customer; SELECT socketio_pg.watch('orders')")
    token = mint(sub="tables", role="lists_customer")
    with contextlib.closing(SocketClient(nodes.other.url, auth={"token": token})) as client:
        assert client.call("subscribe", {"channel": "chat:1"})["ok"]
        assert client.call("subscribe", {"table": "public.orders"})["ok"]
        answer = client.call("subscribe", {"table": "public.orders", "id": "open", "where": {"status": "open"}})
        assert answer["ok"], answer
        sid = client.io.get_sid()
        [one] = nodes.reader.read("clients", params={"sid": sid})["clients"]
        assert (one["subscriptions"], one["tables"]) == (3, ["public.orders"])
        assert one["subscriptions_of"] == [
            {"channel": "chat:1", "filter": None},
            {"table": "public.orders", "filter": None},
            {"table": "public.orders", "id": "open", "filter": {"status": "open"}},
        ]
        assert nodes.reader.read("clients", params={"search": "public.ord"})["total"] == 1

        def counted() -> bool:
            total = nodes.reader.read("now?history=0")["total"]
            return (total["clients"], total["subscriptions"], total["live_tables"]) == (1, 3, 2)

        # Clients of earlier tests leave in their own time.
        until(counted, "they are counted, and named as what they are")
        until(lambda: 2 in nodes.reader.read("now")["total"]["series"]["live_tables"], "the samples have them, too")
    nodes.sql("SELECT socketio_pg.unwatch('orders')")


def test_slow_consumers_come_first(nodes: Nodes) -> None:
    token = mint(sub="slow", role="lists_customer")
    with socket.create_connection(("127.0.0.1", nodes.other.port)) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"GET /api/channels/flood/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        reader.sendall(head.encode())
        answer = b""
        while b"subscribed" not in answer:
            answer += reader.recv(1000)

        # It reads nothing more: its kernel's buffer fills, then the server's.
        def is_slow() -> dict[str, Any] | None:
            nodes.publish("flood", 1, 20, pad=50_000)
            listed = nodes.reader.read("clients", params={"sort": "-slow", "limit": 1})
            first = listed["clients"][0]
            return listed if first["sub"] == "slow" and (first["buffered"] or first["replay_lag"]) else None

        listed = found(is_slow, "the slow consumer is listed first")
        assert listed["slow"] >= 1
        assert listed["clients"][0]["transport"] == "stream"


def test_watches_are_switched(nodes: Nodes) -> None:
    empty = nodes.reader.read("watches")
    assert (empty["watches"], empty["may_switch"], empty["reason"]) == ([], True, None)
    assert empty["tables"] == [{"table": "public.orders", "owner": "postgres", "may_watch": True}]
    on = {"table": "public.orders", "channel": "o:{customer_id}", "enabled": True, "operations": ["INSERT"]}
    answer = nodes.admin.do("watches/set", on)
    assert (answer["channel"], answer["watch"]["operations"]) == ("o:{customer_id}", ["INSERT"])
    nodes.sql("INSERT INTO orders VALUES (1, NULL, 'x')")
    nodes.sql("INSERT INTO orders VALUES (2, 5, 'x')")
    nodes.admin.read("channels", params={"measure": "1.2"})
    nodes.sql("INSERT INTO orders VALUES (3, 5, 'x')")

    def counted() -> dict[str, Any] | None:
        [one] = nodes.reader.read("watches", params={"search": "ord"})["watches"]
        return one if one["messages_in"] else None

    one = found(counted, "the watch's messages are counted")
    assert (one["failures"], one["live"], one["disabled"], one["tier"]) == (1, True, False, "log")
    assert one["last_error"].startswith("INSERT: 1 rows have no channel")
    assert one["last_error_at"] == pytest.approx(time.time(), abs=120)
    off = nodes.admin.do("watches/set", {"table": "public.orders", "channel": "o:{customer_id}", "enabled": False})
    assert (off["removed"], off["watches"][0]["operations"]) == (1, ["INSERT"])
    for body in (
        on | {"table": "public.nothing"}, on | {"channel": "o:{nothing}"}, on | {"operations": "INSERT"},
        on | {"enabled": 1}, on | {"other": 1}, {"enabled": True},
        on | {"table": "a\ud800"}, on | {"table": "a\0"}, on | {"channel": "\ud800"}, on | {"columns": ["\ud800"]},
    ):  # fmt: skip
        assert refused(nodes.admin.post("watches/set", body)) == (400, "invalid_request")
    assert refused(nodes.admin.post("watches/set", on | {"when": "id > 5"})) == (403, "forbidden")
    assert nodes.reader.read("watches")["watches"] == []


def test_doctor_runs_on_demand(nodes: Nodes) -> None:
    assert nodes.reader.read("doctor")["running"] is False
    shown = nodes.reader.do("doctor")
    assert shown["complete"]
    levels = {one["check"]: one["level"] for one in shown["findings"]}
    assert levels["version"] == levels["LISTEN"] == "ok"
    assert "port" not in levels
    assert all(one["remedy"] for one in shown["findings"] if one["level"] != "ok")
    assert nodes.reader.read("doctor")["findings"] == shown["findings"]


def test_silent_processes_are_named(nodes: Nodes) -> None:
    pid = nodes.other.worker_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        for path in ("channels", "clients", "channel?name=orders:1"):
            shown = nodes.reader.read(path)
            assert shown["processes"] == 2
            [silent] = shown["unanswered"]
            assert (silent["node"].rpartition(":")[2], silent["worker"]) == (str(pid), None)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not nodes.reader.read("clients")["unanswered"], "it answers again")


def test_database_may_be_down(newest_pg: Cluster, nodes: Nodes) -> None:
    """At the end of the module: the servers lose their database."""
    newest_pg.sql("ALTER DATABASE inspector_lists ALLOW_CONNECTIONS false")
    newest_pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'inspector_lists'")
    try:
        began = time.monotonic()

        def away() -> dict[str, Any] | None:
            listed = nodes.reader.read("channels")
            return None if listed["log"]["read"] else listed

        listed = found(away, "the database is away")
        assert "inspector_lists" in listed["log"]["problem"]
        clients = nodes.reader.read("clients")
        # The workers of one node reach each other without the database.
        assert clients["processes"] == 2
        assert [one["worker"] for one in clients["unanswered"]] in ([None], [])
        one = nodes.reader.read("channel", params={"name": "chat:7"})
        assert (one["members"], one["stored"], len(one["problems"])) == (None, None, 1)
        assert refused(nodes.reader.get("watches")) == (503, "database_unavailable")
        assert refused(nodes.reader.get("channel/history", params={"name": "chat:7"})) == (503, "database_unavailable")
        body = {"channel": "x", "claims": {"sub": "ann", "role": "lists_customer"}}
        assert refused(nodes.reader.post("permission", body)) == (503, "database_unavailable")
        doctor = nodes.reader.do("doctor")
        assert {"database": "error"}.items() <= {one["check"]: one["level"] for one in doctor["findings"]}.items()
        assert time.monotonic() - began < 120
    finally:
        newest_pg.sql("ALTER DATABASE inspector_lists ALLOW_CONNECTIONS true")
