"""Clients provoke all errors: no text has a host, path, role, table or password, and the log has the details."""

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import requests

from tests.support.cli import run
from tests.support.clients import SocketClient, code, refused
from tests.support.http_api import HttpApi
from tests.support.log import Log
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.tokens import SigningKey

#: In each address, name and text that is not for clients.
CANARY = "canary"
#: Nothing listens on this port.
NOWHERE = "127.0.0.1:9"

REFERENCE = re.compile(r"\(reference ([0-9a-f]{8})\)")


class Texts:
    """Collects what a server answers, and checks it."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.seen: list[str] = []

    def add(self, found: object) -> Any:
        self.seen.append(found if isinstance(found, str) else json.dumps(found))
        return found

    def check(self, *secrets: str) -> None:
        for text in self.seen:
            for secret in (CANARY, "socketio_pg.", "SELECT", "/tmp/", "/usr/", "Traceback", *secrets):
                assert secret not in text, text
        references = {found for text in self.seen for found in REFERENCE.findall(text)}
        assert references
        for reference in references:
            assert f"reference {reference}: " in self._server.log

    def detail(self, text: str) -> str:
        """Return what the log has under the reference in ``text``."""
        [reference] = REFERENCE.findall(text)
        [line] = [line for line in self._server.log.splitlines() if f"reference {reference}: " in line]
        return line


def collect_pages(texts: Texts, url: str) -> None:
    for path in ("/", "/readyz", "/healthz", "/metrics", "/nowhere", "/static/..%2fserver.py", "/api/openapi.json",
                 "/socket.io/?EIO=4&transport=polling&sid=x", "/socket.io/?EIO=3"):  # fmt: skip
        answer = requests.get(url + path, timeout=PATIENCE)
        texts.add(answer.text if "html" not in answer.headers.get("Content-Type", "") or not answer.ok else "")
        texts.add(dict(answer.headers))


def raw(port: int, request: bytes) -> str:
    """Send bytes that gunicorn itself refuses. Return its answer."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            return answer.read().decode("latin-1")


@pytest.fixture
def unreachable() -> Iterator[ServerProcess]:
    """A server whose database, key set and message queue cannot be reached."""
    made = ServerProcess(
        f"postgresql://{CANARY}user:{CANARY}word@{NOWHERE}/{CANARY}db", wait="http",
        JWKS_URL=f"http://{NOWHERE}/{CANARY}keys", AUTH="optional", PUBLISH="all", PUBLIC_CHANNELS="*",
        MESSAGE_QUEUE=f"redis://:{CANARY}word@{NOWHERE}/0", CLUSTER_KEY="a key of the tests with enough characters",
    )  # fmt: skip
    yield made
    made.close()


def test_unreachable_systems(unreachable: ServerProcess) -> None:
    texts = Texts(unreachable)
    token = SigningKey(kid="k1").sign(sub="a")
    with SocketClient(unreachable.url) as client:
        for event, argument in (
            ("subscribe", {"channel": "a"}),
            ("publish", {"channel": "a", "payload": 1}),
            ("publish", {"channel": "a", "payload": 1, "durable": True}),
            ("authenticate", {"token": token}),
        ):
            answer = texts.add(client.call(event, argument))
            assert code(answer) in ("database_unavailable", "authentication_unavailable")
            client.io.emit(event, argument)
            texts.add(client.next("error"))
    published = texts.seen[4]
    assert f"host=127.0.0.1 port=9 dbname={CANARY}db user={CANARY}user" in texts.detail(published)
    with_token = texts.add(refused(unreachable.url, auth={"token": token}))
    assert f"http://{NOWHERE}/{CANARY}keys" in texts.detail(json.dumps(with_token["data"]))
    for api in (HttpApi(unreachable), HttpApi(unreachable, token)):
        for response in (api.publish("a", 1), api.publish_together({"channel": "a", "payload": 1, "durable": True}),
                         api.messages("a")):  # fmt: skip
            assert response.status_code == 503
            texts.add(response.text)
    status, body = unreachable.get("/readyz")
    assert status == 503
    assert "127.0.0.1" in texts.detail(json.dumps(json.loads(body)["parts"]["listener"]))
    collect_pages(texts, unreachable.url)
    for request in (b"GET / HTTP/9.9\r\n\r\n", b"\x00\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHo st: b\r\n\r\n"):
        texts.add(raw(unreachable.port, request))
    texts.check("127.0.0.1")
    assert f"{CANARY}word" not in unreachable.log, "no password in the log"


@pytest.fixture(scope="module")
def plain(newest_pg: Cluster) -> Iterator[Log]:
    """A server whose role has only the privileges that it needs, and policies of which one fails."""
    name = f"{CANARY}_texts"
    newest_pg.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    for role in (f"{name}_server", f"{name}_client"):
        newest_pg.sql(f"DROP ROLE IF EXISTS {role}")
    newest_pg.sql(f"CREATE ROLE {name}_server LOGIN")
    newest_pg.sql(f"CREATE ROLE {name}_client ROLE {name}_server")
    log = Log.__new__(Log)
    newest_pg.sql(f"CREATE DATABASE {name}")
    log.url = newest_pg.url(name)
    done = run("init", "--server-role", f"{name}_server", "--client-role", f"{name}_client", url=log.url)
    assert done.returncode == 0, done.stderr
    log.sql(
        f"CREATE FUNCTION fails() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE '{CANARY} policy'; END $$;"
        f"CREATE POLICY p ON socketio_pg.messages FOR ALL TO {name}_client USING (channel <> 'broken' OR fails())"
    )
    url = log.url.replace("postgres@", f"{name}_server@")
    log.server = ServerProcess(
        url, DRAIN_SECONDS="0.2", AUTHORIZATION="rls", ANONYMOUS_ROLE=f"{name}_client", SCHEMA_OWNER="postgres"
    )
    yield log
    log.server.close()


def failing_trigger(condition: str, message: str) -> tuple[str, str, str]:
    """Return SQL that makes publishing fail with an error of PostgreSQL, SQL that repairs it, and the message.

    Filling the disk, or making the cluster read-only, would hit other tests.
    """
    return (
        "CREATE FUNCTION fails_now() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING"
        f" ERRCODE = '{condition}', MESSAGE = '{message}'; END $$;"
        " CREATE TRIGGER fails_now BEFORE INSERT ON socketio_pg.outbox EXECUTE FUNCTION fails_now()",
        "DROP FUNCTION fails_now CASCADE",
        message,
    )


FAULTS = {
    "privilege": (
        "REVOKE EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb) FROM canary_texts_server",
        "GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb) TO canary_texts_server",
        "permission denied for function publish",
    ),
    "read-only": failing_trigger(
        "read_only_sql_transaction", "cannot execute INSERT in a read-only transaction of canary"
    ),
    "disk full": failing_trigger("disk_full", "could not extend file base/canary/1: No space left on device"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_durable_publish_that_cannot_work(plain: Log, fault: str) -> None:
    break_it, repair_it, detail = FAULTS[fault]
    texts = Texts(plain.server)
    with SocketClient(plain.server.url) as client:
        assert client.call("publish", {"channel": "a", "payload": 1, "durable": True})["ok"]
        plain.sql(break_it)
        try:
            answer = texts.add(client.call("publish", {"channel": "a", "payload": 1, "durable": True}))
            assert code(answer) == "database_unavailable"
            assert detail in texts.detail(json.dumps(answer))
            plain.server.wait_for("/readyz", 503, "publishing through the log fails")
            texts.add(plain.server.get("/readyz")[1])
            response = HttpApi(plain.server).publish("a", 1, durable=True)
            assert response.status_code == 503
            texts.add(response.text)
            assert client.call("publish", {"channel": "a", "payload": 1, "durable": False})["ok"], "NOTIFY still works"
        finally:
            plain.sql(repair_it)
        plain.server.wait_ready()
        assert client.call("publish", {"channel": "a", "payload": 1, "durable": True})["ok"]
    texts.check()


def test_locked_outbox(plain: Log) -> None:
    """Sessions that wait for the lock end with their callers, so that they do not use up all connections."""
    texts = Texts(plain.server)
    with contextlib.closing(psycopg2.connect(plain.url)) as other, SocketClient(plain.server.url) as client:
        other.cursor().execute("LOCK TABLE socketio_pg.outbox IN SHARE MODE")
        for _ in range(2):
            answer = texts.add(client.call("publish", {"channel": "a", "payload": 1, "durable": True}))
            assert code(answer) == "database_unavailable"
        # The server's own trials end with an error of PostgreSQL; the callers' may end a moment before that, and an
        # answer that did not come has no detail.
        plain.server.wait_for("/readyz", 503, "(reference ")
        texts.add(plain.server.get("/readyz")[1])
        waiting = (
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted"
            " AND usename LIKE 'canary%' AND query LIKE '%publish(%'"
        )
        until(lambda: plain.sql(waiting)[0][0] <= 1, "sessions without a caller end")
    plain.server.wait_ready()
    texts.check()


def test_broken_policy(plain: Log) -> None:
    texts = Texts(plain.server)
    with SocketClient(plain.server.url) as client:
        assert code(texts.add(client.call("subscribe", {"channel": "broken"}))) == "forbidden"
        assert code(texts.add(client.call("publish", {"channel": "broken", "payload": 1}))) == "forbidden"
        plain.sql("REVOKE EXECUTE ON FUNCTION socketio_pg.probe_kinds(text[], text[]) FROM canary_texts_server")
        try:
            answer = texts.add(client.call("subscribe", {"channel": "other"}))
            assert "permission denied for function probe_kinds" in texts.detail(json.dumps(answer))
            plain.server.wait_for("/readyz", 503, "permissions cannot be checked")
            texts.add(plain.server.get("/readyz")[1])
        finally:
            plain.sql("GRANT EXECUTE ON FUNCTION socketio_pg.probe_kinds(text[], text[]) TO canary_texts_server")
    plain.server.wait_ready()
    texts.check()
