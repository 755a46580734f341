"""A server and the doctor on a hot standby, until it is promoted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from socketio_pg.postgres import schema
from tests.support.cli import doctor
from tests.support.clients import SocketClient
from tests.support.patience import until
from tests.support.postgres import Cluster, cluster
from tests.support.server import ServerProcess

POLICIES = (
    "CREATE ROLE anon; GRANT anon TO postgres;",
    "CREATE POLICY everything ON socketio_pg.messages TO anon USING (true) WITH CHECK (true)",
)


@pytest.fixture
def standby() -> Iterator[Cluster]:
    """A standby without a primary: it stays in recovery and answers queries."""
    with cluster() as running:
        for statement in (POLICIES[0], schema.statements(1_000_000, client_roles=["anon"]), POLICIES[1]):
            running.sql(statement)
        running.stop()
        signal = Path(running.data_dir) / "standby.signal"
        signal.touch()
        signal.chmod(0o666)
        running.start()
        yield running


def test_standby_is_read_only_until_it_is_promoted(standby: Cluster) -> None:
    found = doctor(standby.url(), 1)
    assert found["standby"]["level"] == found["LISTEN"]["level"] == "error"
    assert all("primary" in found[check]["remedy"] for check in ("standby", "LISTEN"))

    settings = {"AUTH": "optional", "JWT_SECRET": "x" * 16 + "y" * 16, "ANONYMOUS_ROLE": "anon", "PUBLISH": "all"}
    url = f"{standby.url()}&application_name=on-standby"
    server = ServerProcess(url, wait="http", AUTHORIZATION="rls", DRAIN_SECONDS="0.2", **settings)
    plain = ServerProcess(url, wait="http", DRAIN_SECONDS="0.2")
    try:
        for one in (plain, server):
            one.wait_for("/readyz", 503, "the database is read-only")
        with SocketClient(plain.url) as client:
            for durable in (True, False):
                error = client.call("publish", {"channel": "a", "payload": 1, "durable": durable})["error"]
                assert (error["code"], error["message"][:25]) == ("database_unavailable", "the database is read-only")
            error = client.call("subscribe", {"channel": "a"})["error"]
            assert error["code"] == "database_unavailable"
            assert "the database is read-only" in error["message"]
        with SocketClient(server.url) as client:
            error = client.call("publish", {"channel": "a", "payload": 1})["error"]
            assert error["code"] == "database_unavailable"
        assert "relaying the log" not in plain.log + server.log
        until(lambda: "not relaying: the database is read-only" in plain.log, "the relay logs it")

        standby.sql("SELECT pg_promote()")
        for one in (plain, server):
            one.wait_ready()
        with SocketClient(server.url) as client:
            assert client.call("subscribe", {"channel": "a"})["ok"]
            assert client.call("publish", {"channel": "a", "payload": 1, "durable": True})["ok"]
            assert client.next("event")["payload"] == 1
    finally:
        plain.close()
        server.close()
