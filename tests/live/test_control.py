"""Control over HTTP, SQL and Flask: on two nodes, one of which has two workers; with stock clients and streams."""

import contextlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import psycopg2
import pytest
import requests
import socketio

from tests.support.cli import run
from tests.support.clients import SocketClient
from tests.support.http_api import refusal
from tests.support.live_tables import TableClient
from tests.support.log import Log
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.recovery import RecoveringClient
from tests.support.redis import Redis
from tests.support.server import ROOT, ServerProcess
from tests.support.sse import Stream
from tests.support.tokens import SECRET, mint

RECIPES = ROOT / "docs" / "recipes.md"
Several: TypeAlias = tuple[list[SocketClient], Stream, SocketClient]
TOKEN = "the operator's token: 0123456789"
SETTINGS = {
    "JWT_SECRET": SECRET,
    "ADMIN_TOKEN": TOKEN,
    "FROM_CLAIMS": "sub,name",
    "AUTH": "required",
    "LIVE_TABLES": "public.*",
    "LIVE_TABLE_ROLE": "control_reader",
}


class Nodes(Log):
    """Two nodes on one database: the first one has two workers."""

    def __init__(self, cluster: Cluster, name: str, **settings: str) -> None:
        settings = SETTINGS | settings
        super().__init__(cluster, name, "-w", "2", AUTO_INIT="1", **settings)
        try:
            self.other = ServerProcess(self.url, DRAIN_SECONDS="0.2", **settings)
        except BaseException:
            self.server.close()
            raise

    def call(self, method: str, path: str, server: ServerProcess | None = None, **options: Any) -> dict[str, Any]:
        url = f"{(server or self.server).url}/api/{path}"
        answer = requests.request(
            method, url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE, **options
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def heard(self) -> int:
        """Return the number of processes that an empty question reaches: two are heard by the one that is asked."""
        found = self.call("DELETE", "users/nobody/connections", self.other)
        return int(found["processes"])

    def silent(self) -> list[dict[str, Any]]:
        """Return the processes that do not answer, although they are not forgotten yet."""
        found: list[dict[str, Any]] = self.call("DELETE", "users/nobody/connections", self.other)["unanswered"]
        return found

    def close(self) -> None:
        self.other.close()
        self.server.close()


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    newest_pg.sql("CREATE ROLE control_reader")
    made = Nodes(newest_pg, "control")
    try:
        until(lambda: made.sql("SELECT to_regclass('socketio_pg.log')") != [(None,)], "the schema is installed")
        # All three processes hear each other.
        until(lambda: made.heard() == 3, "all processes answer")
        yield made
    finally:
        made.close()


def client(server: ServerProcess, sub: str, **options: Any) -> SocketClient:
    return SocketClient(server.url, auth={"token": mint(sub=sub, name=f"Name of {sub}", hidden="x")}, **options)


@pytest.fixture
def several(nodes: Nodes) -> Iterator[Several]:
    """Connections of "ann/1" on both nodes, a stream of hers, and one of "bob"."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(client(server, "ann/1", transports=(transport,)))
            for server in (nodes.server, nodes.other)
            for transport in ("websocket", "polling")
        ]
        stream = stack.enter_context(Stream(nodes.other.url, "orders:1", token=mint(sub="ann/1")))
        assert stream.next().name == "subscribed"
        bob = stack.enter_context(client(nodes.server, "bob"))
        for one in (*clients, bob):
            assert one.call("subscribe", {"channels": ["orders:1", "news"]})["ok"]
        yield clients, stream, bob


ANN = f"users/{quote('ann/1', safe='')}"


def test_connections_of_all_processes_are_listed(nodes: Nodes, several: Several) -> None:
    clients, _, bob = several
    found = nodes.call("GET", "connections", params={"sub": "ann/1"})
    assert (found["count"], found["unanswered"]) == (5, [])
    by_sid = {one["sid"]: one for one in found["connections"]}
    assert {one.io.get_sid() for one in clients} < by_sid.keys()
    transports = Counter(one["transport"] for one in by_sid.values())
    assert transports == {"polling": 2, "stream": 1, "websocket": 2}
    assert len({one["node"] for one in by_sid.values()}) == 2
    first = by_sid[clients[0].io.get_sid()]
    assert first["claims"] == {"sub": "ann/1", "name": "Name of ann/1"}
    assert first["channels"] == ["news", "orders:1"]
    assert (first["subscriptions"], first["tables"], first["namespace"], first["buffered"]) == (2, [], "/", 0)
    for one in by_sid.values():
        assert (one["sub"], one["address"]) == ("ann/1", "127.0.0.1")
        assert one["since"] <= by_sid[found["connections"][0]["sid"]]["since"]
    assert "hidden" not in json.dumps(found)
    alone = nodes.call("GET", "connections", nodes.other, params={"sid": bob.io.get_sid()})
    assert [one["sub"] for one in alone["connections"]] == ["bob"]
    limited = nodes.call("GET", "connections", params={"limit": 2})
    assert len(limited["connections"]) == 2
    assert limited["count"] >= 5
    nobody = nodes.call("GET", "connections", params={"sub": "nobody"})
    assert nobody == {"connections": [], "count": 0, "processes": 3, "unanswered": []}


def test_users_are_reached_and_their_subscriptions_end(nodes: Nodes, several: Several) -> None:
    clients, stream, bob = several
    digits = {"n": 12345678901234567890123, "text": "é"}
    assert nodes.call("POST", f"{ANN}/messages", json={"payload": digits}) == {
        "count": 5,
        "processes": 3,
        "unanswered": [],
    }
    nodes.sql("SELECT socketio_pg.send_to_user('ann/1', '{\"price\": 1.10}')")
    for one in clients:
        assert one.next("direct") == {"payload": digits}
        assert one.next("direct") == {"payload": {"price": 1.1}}
    assert stream.until("direct").json == {"payload": digits}
    assert stream.until("direct").data == '{"payload":{"price": 1.10}}'
    ended = nodes.call("DELETE", f"{ANN}/subscriptions", nodes.other, params={"channel": "orders:*"})
    assert ended == {"count": 5, "processes": 3, "unanswered": []}
    for one in clients:
        assert one.next("unsubscribed") == {"channel": "orders:1", "reason": "ended_by_server"}
    assert stream.until("error").json["code"] == "ended_by_server"
    stream.wait_end()
    nodes.sql("SELECT socketio_pg.unsubscribe_user('ann/1', 'news')")
    for one in clients:
        assert one.next("unsubscribed") == {"channel": "news", "reason": "ended_by_server"}
    nodes.sql("SELECT socketio_pg.publish('news', '1'), socketio_pg.publish('orders:1', '2')")
    assert {bob.next("event")["payload"] for _ in range(2)} == {1, 2}
    assert [one.pending("event") for one in clients] == [0, 0, 0, 0]
    assert bob.pending("direct") == bob.pending("unsubscribed") == 0


def test_live_tables_of_a_user_end(nodes: Nodes) -> None:
    """By the channel of the table, and with a pattern."""
    nodes.sql(
        "CREATE TABLE invoices (id int PRIMARY KEY); SELECT socketio_pg.watch('invoices');"
        "CREATE TABLE payments (id int PRIMARY KEY); SELECT socketio_pg.watch('payments');"
        "GRANT SELECT ON invoices, payments TO control_reader"
    )
    with TableClient(nodes.server.url, auth={"token": mint(sub="ann/1")}) as one:
        for table in ("invoices", "payments"):
            answer = one.table(f"public.{table}")
            assert answer["ok"], answer
            assert one.table(f"public.{table}", id="mine")["ok"]
        [shown] = nodes.call("GET", "connections", params={"sub": "ann/1"})["connections"]
        assert (shown["subscriptions"], shown["tables"]) == (4, ["public.invoices", "public.payments"])
        nodes.sql("SELECT socketio_pg.unsubscribe_user('ann/1', 'table:public.payments')")
        ended = [one.next("unsubscribed") for _ in range(2)]
        assert {(body["table"], body.get("id"), body["reason"]) for body in ended} == {
            ("public.payments", None, "ended_by_server"), ("public.payments", "mine", "ended_by_server"),
        }  # fmt: skip
        assert nodes.call("DELETE", f"{ANN}/subscriptions", params={"channel": "other"})["count"] == 0
        assert nodes.call("DELETE", f"{ANN}/subscriptions", params={"channel": "table:*"})["count"] == 2
        assert {one.next("unsubscribed")["table"] for _ in range(2)} == {"public.invoices"}


def test_a_disconnected_user_does_not_come_back_by_itself(nodes: Nodes, several: Several) -> None:
    """Over HTTP all of a user; in SQL one connection, and a user at the commit."""
    clients, stream, bob = several
    auth = {"token": mint(sub="ann/1")}
    stock = RecoveringClient(nodes.other.url, auth=auth)
    away = RecoveringClient(nodes.server.url, auth=auth, reconnection=False)
    try:
        away.cut()
        away.next(event="disconnect")
        until(lambda: nodes.call("GET", "connections", params={"sub": "ann/1"})["count"] == 6, "one has gone")
        sid = clients[0].io.get_sid()
        assert nodes.call("DELETE", f"connections/{sid}", nodes.other) == {"count": 1, "processes": 3, "unanswered": []}
        assert clients[0].next("error")["code"] == "ended_by_server"
        clients[0].next("disconnect")
        done = nodes.call("DELETE", f"{ANN}/connections", nodes.other)
        assert done == {"count": 5, "processes": 3, "unanswered": []}
        for one in clients[1:]:
            assert one.next("error") == {
                "code": "ended_by_server",
                "message": "the server has disconnected this client",
            }
            one.next("disconnect")
        assert stock.next(event="error")["argument"]["code"] == "ended_by_server"
        assert stock.next(event="disconnect")["reason"] == "io server disconnect"
        assert stream.until("error").json["code"] == "ended_by_server"
        stream.wait_end()
        assert nodes.call("GET", "connections", params={"sub": "ann/1"})["count"] == 0
        # Their sessions are forgotten, also that of a client that was away.
        for recovering in (stock, away):
            recovering.send({"connect": True})
            assert recovering.connected()["recovery"] == {"recovered": False, "reason": "unknown_session"}
    finally:
        stock.close()
        away.close()
    with client(nodes.other, "ann/1") as again, contextlib.closing(psycopg2.connect(nodes.url)) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT socketio_pg.disconnect_user('ann/1')")
        connection.rollback()
        cursor.execute("SELECT socketio_pg.disconnect_connection(%s)", [bob.io.get_sid()])
        cursor.execute("SELECT socketio_pg.publish('news', '3')")
        connection.commit()
        bob.next("disconnect")
        assert again.call("subscribe", {"channel": "news"})["ok"]
        cursor.execute("SELECT socketio_pg.disconnect_user('ann/1')")
        connection.commit()
        again.next("disconnect")


def test_only_the_token_gives_access(nodes: Nodes) -> None:
    url = f"{nodes.server.url}/api/connections"
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {mint()}"}):
        assert refusal(requests.get(url, headers=headers, timeout=PATIENCE)) == (401, "unauthorized")
    assert refusal(requests.get(url, {"token": TOKEN}, timeout=PATIENCE)) == (401, "unauthorized")
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    for method, path, status, code in (
        ("GET", "connections?limit=0", 400, "invalid_request"),
        ("GET", "connections?limit=2000", 400, "invalid_request"),
        ("GET", "connections?sub=a&sub=b", 400, "invalid_request"),
        ("DELETE", "users/ann/subscriptions", 400, "invalid_request"),
        ("DELETE", "users/ann/subscriptions?channel=socketio_pg", 400, "invalid_channel"),
        ("DELETE", f"users/{'x' * 1001}/connections", 400, "invalid_request"),
        ("POST", "users/ann/messages", 415, "invalid_request"),
        ("GET", "users/ann/connections", 405, "invalid_request"),
    ):
        answer = requests.request(method, f"{nodes.server.url}/api/{path}", headers=authorized, timeout=PATIENCE)
        assert refusal(answer) == (status, code), path
    for body in ({}, {"payload": "x" * 1_000_001}):
        answer = requests.post(
            f"{nodes.server.url}/api/{ANN}/messages", json=body, headers=authorized, timeout=PATIENCE
        )
        assert answer.status_code in (400, 413)


def test_processes_that_do_not_answer_are_named(nodes: Nodes) -> None:
    """One is stopped while it is asked, as one that is overloaded: the answers of the others arrive."""
    with client(nodes.server, "carl") as here, client(nodes.other, "carl"):
        pid = nodes.other.worker_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            done = nodes.call("DELETE", "users/carl/connections")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (done["count"], done["processes"]) == (1, 2)
        [silent] = done["unanswered"]
        assert silent["worker"] is None
        here.next("disconnect")


def test_a_node_that_stops_says_so_and_one_that_starts_is_heard(nodes: Nodes) -> None:
    """Nothing has to be silent for a while before others know; also of several workers that end together."""
    silent = []
    nodes.server.stop()
    # The first question may be under way before the node has left. Silence would be noticed after nine seconds.
    for _ in range(2):
        found = nodes.call("DELETE", "users/nobody/connections", nodes.other)
        silent.append(len(found["unanswered"]))
        if found["processes"] == 1 and not found["unanswered"]:
            break
    assert silent[-1] == 0, silent
    nodes.server.start()
    until(lambda: nodes.heard() == 3, "it is heard")
    with client(nodes.server, "eve") as eve:
        assert nodes.call("DELETE", "users/eve/connections", nodes.other)["count"] == 1
        eve.next("disconnect")


@pytest.mark.nightly
def test_a_killed_node_is_named_until_it_counts_as_gone(nodes: Nodes) -> None:
    """Also one that is killed while it is asked; and one of two workers, which the other one notices at once."""
    nodes.other.kill()
    found = nodes.call("DELETE", "users/nobody/connections")
    assert (found["processes"], len(found["unanswered"])) == (2, 1)
    until(lambda: not nodes.call("DELETE", "users/nobody/connections")["unanswered"], "it is forgotten")
    nodes.other.start()
    until(lambda: nodes.heard() == 3, "it is heard")
    victim = nodes.server.worker_pids()[0]
    os.kill(victim, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(nodes.call, "DELETE", "users/nobody/connections", nodes.other)
        os.kill(victim, signal.SIGKILL)
        found = asked.result()
    # It may be the one that listens for the other: then the question has reached neither, and the answer names both.
    assert 2 <= found["processes"] + len(found["unanswered"]) <= 3
    assert found["processes"] < 3
    until(lambda: nodes.heard() == 3, "its successor is heard")


@pytest.mark.nightly
def test_a_node_that_is_cut_off_comes_back(newest_pg: Cluster, nodes: Nodes) -> None:
    """From the database: others forget it, it forgets nobody, and after that both are as before."""
    with contextlib.closing(Proxy(newest_pg.socket_path)) as proxy:
        url = f"{proxy.url.removesuffix('/postgres')}/control"
        with (
            contextlib.closing(ServerProcess(url, **SETTINGS)) as cut_off,
            client(cut_off, "fay") as fay,
            client(nodes.server, "fay") as other,
        ):
            until(lambda: nodes.heard() == 4, "it is heard")
            proxy.black_hole()
            until(lambda: nodes.heard() == 3 and not nodes.silent(), "it is forgotten")
            assert nodes.call("POST", "users/fay/messages", json={"payload": 1})["count"] == 1
            assert other.next("direct") == {"payload": 1}
            # Its own clients are reached all the same, and nobody counts as dead for it.
            alone = nodes.call("POST", "users/fay/messages", cut_off, json={"payload": 2})
            assert (alone["count"], alone["processes"], len(alone["unanswered"])) == (1, 1, 3)
            assert fay.next("direct") == {"payload": 2}
            proxy.restore()
            until(lambda: nodes.heard() == 4, "it is heard again")
            assert nodes.call("DELETE", "users/fay/connections", cut_off)["count"] == 2
            for one in (fay, other):
                one.next("disconnect")


@pytest.mark.nightly
@pytest.mark.parametrize("queue", ["redis", "postgres"])
def test_other_queues_and_a_leader_that_listens(newest_pg: Cluster, queue: str) -> None:
    """The nodes find each other over Redis too, also those without LISTEN, and again after it was away."""
    with contextlib.ExitStack() as stack:
        settings = {"MESSAGE_QUEUE": "postgres"}
        if queue == "redis":
            redis = stack.enter_context(contextlib.closing(Redis()))
            settings = {"MESSAGE_QUEUE": redis.url, "LISTEN": "leader"}
        made = stack.enter_context(contextlib.closing(Nodes(newest_pg, f"control_{queue}", **settings)))
        until(lambda: made.heard() == 3, "all processes answer")
        if queue == "redis":
            redis.kill()
            redis.start()
        else:
            newest_pg.terminate_backends()
        with client(made.server, "eve") as eve:

            def reached() -> bool:
                found = made.call("POST", "users/eve/messages", made.other, json={"payload": 1})
                return bool(found["processes"] == 3)

            until(reached, "all processes answer again")
            assert eve.next("direct") == {"payload": 1}


# -- the application ---------------------------------------------------------------------------------------------------

APPLICATION = """
from socketio_pg.core import green
green.patch()
from flask import Flask, request
app = Flask(__name__)
app.secret_key = "of the tests"
"""
LOGIN = """
@app.post("/login/<user>")
def login(user):
    session["user_id"] = user
    return "welcome"

@app.get("/who/<user>")
def who(user):
    found = server.connections(user)
    return {"count": found.count, "unanswered": len(found.unanswered)}
"""


def test_the_documented_logout_disconnects_everywhere(nodes: Nodes, tmp_path: Path) -> None:
    """The example in docs/recipes.md, as it is there, on two nodes."""
    section = RECIPES.read_text("utf-8").partition("\n## A Flask session\n")[2].partition("\n## ")[0]
    example = "\n\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    assert "server.disconnect_user(" in example
    (tmp_path / "documented_app.py").write_text(APPLICATION + example + LOGIN)
    settings = {"AUTH": "required", "DRAIN_SECONDS": "0.2", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with contextlib.ExitStack() as stack:
        servers = [ServerProcess(nodes.url, app="documented_app:app", **settings) for _ in range(2)]
        for server in servers:
            stack.callback(server.close)
        browser = requests.Session()
        browser.post(f"{servers[0].url}/login/7", timeout=PATIENCE)
        cookie = {"Cookie": "; ".join(f"{one.name}={one.value}" for one in browser.cookies)}
        tabs = [stack.enter_context(SocketClient(server.url, headers=cookie)) for server in servers]
        until(lambda: browser.get(f"{servers[1].url}/who/7", timeout=PATIENCE).json()["count"] == 2, "both are heard")
        assert browser.post(f"{servers[1].url}/logout", timeout=PATIENCE).status_code == 204
        for tab in tabs:
            assert tab.next("error")["code"] == "ended_by_server"
            tab.next("disconnect")
        assert browser.get(f"{servers[0].url}/who/7", timeout=PATIENCE).json() == {"count": 0, "unanswered": 0}
        assert not browser.cookies
        with pytest.raises(socketio.exceptions.ConnectionError):
            SocketClient(servers[0].url)


@pytest.mark.nightly
def test_commands(nodes: Nodes) -> None:
    with client(nodes.server, "dora") as dora:
        asked = ("connections", "dora", "--url", nodes.other.url)
        shown = run(*asked, ADMIN_TOKEN=TOKEN)
        assert shown.returncode == 0, shown
        assert dora.io.get_sid() in shown.stdout
        listed = json.loads(run(*asked, "--json", ADMIN_TOKEN=TOKEN).stdout)
        assert [one["sub"] for one in listed["connections"]] == ["dora"]
        refused = run(*asked, ADMIN_TOKEN="another one of 16 characters")
        assert (refused.returncode, "ADMIN_TOKEN" in refused.stderr) == (1, True)
        assert run("disconnect", url=nodes.url).returncode == 2
        assert run("disconnect", "dora", url=nodes.url).returncode == 0
        dora.next("disconnect")
