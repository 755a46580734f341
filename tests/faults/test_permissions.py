"""Permissions while the database is down, slow or busy: requests are refused, and existing subscriptions stay."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support.clients import SocketClient, code
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE, until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess
from tests.support.tokens import mint

SETTINGS = RLS | {"PERMISSION_CACHE_SECONDS": "0", "PERMISSION_RECHECK_SECONDS": "1"}


@pytest.fixture(scope="module")
def database(breakable: Cluster) -> PolicyDatabase:
    made = PolicyDatabase(breakable, "faulty_policies")
    made.join("alice", "kitchen", writes=True)
    made.join("bob", "kitchen")
    made.sql(
        """CREATE POLICY slow ON socketio_pg.messages TO authenticated
           USING (CASE WHEN channel = 'slow' THEN pg_sleep(10) IS NOT NULL ELSE false END)
           WITH CHECK (CASE WHEN channel = 'slow' THEN pg_sleep(10) IS NOT NULL ELSE false END)"""
    )
    return made


@pytest.fixture
def permission_timeout() -> str:
    return "1"


@pytest.fixture
def server(database: PolicyDatabase, proxy: Proxy, permission_timeout: str) -> Iterator[ServerProcess]:
    url = proxy.url.replace("postgres@", "web@").replace("/postgres", "/faulty_policies")
    with contextlib.closing(ServerProcess(url, PERMISSION_TIMEOUT=permission_timeout, **SETTINGS)) as made:
        yield made


@pytest.fixture
def alice(server: ServerProcess) -> Iterator[SocketClient]:
    with SocketClient(server.url, auth={"token": mint(sub="alice", role="authenticated")}) as client:
        yield client


def subscribe_and_publish(client: SocketClient, channel: str) -> tuple[str | None, str | None]:
    """Return the error codes of `subscribe` and `publish`."""
    subscribed = code(client.call("subscribe", {"channel": channel}))
    return subscribed, code(client.call("publish", {"channel": channel, "payload": 1}))


def wait_until_working(client: SocketClient, database: PolicyDatabase) -> None:
    """Wait until permissions can be checked again."""
    until(lambda: subscribe_and_publish(client, "kitchen") == (None, None), "permissions")
    assert code(client.call("subscribe", {"channel": "cellar"})) == "forbidden"


@pytest.mark.parametrize("permission_timeout", ["3"])
def test_slow_policy_times_out_and_delays_no_other_client(alice: SocketClient, server: ServerProcess) -> None:
    assert subscribe_and_publish(alice, "kitchen") == (None, None)
    # After pg_sleep(10) it would be allowed.
    assert subscribe_and_publish(alice, "slow") == ("database_unavailable", "database_unavailable")
    with SocketClient(server.url, auth={"token": mint(sub="bob", role="authenticated")}) as bob:
        slow = threading.Thread(target=alice.call, args=("subscribe", {"channel": "slow"}))
        slow.start()
        assert code(bob.call("subscribe", {"channel": "kitchen"})) is None
        assert slow.is_alive(), "bob must not wait for alice's answer"
        slow.join()


def test_locked_table_refuses_requests_and_keeps_subscriptions(
    alice: SocketClient, database: PolicyDatabase, server: ServerProcess
) -> None:
    """All connections of the pool wait for a migration."""
    assert code(alice.call("subscribe", {"channel": "kitchen"})) is None
    with contextlib.closing(psycopg2.connect(database.url)) as migration:
        migration.cursor().execute("LOCK TABLE members")
        clients = [
            SocketClient(server.url, auth={"token": mint(sub=f"user{number}", role="authenticated")})
            for number in range(5)
        ]
        for client in clients:
            assert code(client.call("subscribe", {"channel": "kitchen"})) == "database_unavailable"
        assert subscribe_and_publish(alice, "kitchen") == ("database_unavailable", "database_unavailable")
        # Rechecks have failed, too. Subscribed clients stay subscribed and receive messages.
        database.sql("SELECT pg_notify('kitchen', '\"still here\"')")
        assert alice.next("event")["payload"] == "still here"
        assert alice.pending("unsubscribed") == 0
    for client in clients:
        client.close()
    wait_until_working(alice, database)


@pytest.mark.parametrize("permission_timeout", ["3"])
@pytest.mark.parametrize(
    "fault",
    sampled(
        ["backend terminated", "connections cut", "refused", "black hole", "stopped"],
        lambda fault: fault in ("backend terminated", "black hole"),
    ),
)
def test_database_failure_during_a_check_refuses_and_recovers(
    alice: SocketClient, database: PolicyDatabase, breakable: Cluster, proxy: Proxy, fault: str
) -> None:
    wait_until_working(alice, database)
    answers: list[Any] = []
    requesting = threading.Thread(
        target=lambda: answers.extend(
            [alice.call("subscribe", {"channel": "slow"}), alice.call("publish", {"channel": "kitchen", "payload": 2})]
        )
    )
    # Polls on an open connection, because the check lasts only as long as PERMISSION_TIMEOUT.
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        requesting.start()

        def is_checking() -> bool:
            cursor.execute("SELECT FROM pg_stat_activity WHERE usename = 'web' AND wait_event = 'PgSleep'")
            return bool(cursor.rowcount)

        until(is_checking, "a slow permission check")
    if fault == "backend terminated":
        database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'web'")
    elif fault == "connections cut":
        proxy.cut()
    elif fault == "refused":
        proxy.refuse()
    elif fault == "black hole":
        proxy.black_hole()
    else:
        breakable.stop()
    try:
        requesting.join(2 * PATIENCE)
        assert code(answers[0]) == "database_unavailable"
        if fault in ("refused", "black hole", "stopped"):
            assert code(answers[1]) == "database_unavailable"
            assert subscribe_and_publish(alice, "kitchen") == ("database_unavailable", "database_unavailable")
            assert code(alice.call("authenticate", {"token": mint(sub="bob", role="authenticated")})) == (
                "database_unavailable"
            )
    finally:
        if fault == "stopped":
            breakable.start()
        proxy.restore()
    wait_until_working(alice, database)
    # The failed authentication has neither made the client bob nor ended its subscription.
    assert alice.pending("unsubscribed") == 0
    assert code(alice.call("publish", {"channel": "kitchen", "payload": "alice may write"})) is None


def test_permission_revoked_while_not_listening_is_found(
    server: ServerProcess, database: PolicyDatabase, proxy: Proxy
) -> None:
    database.join("dave", "attic")
    with SocketClient(server.url, auth={"token": mint(sub="dave", role="authenticated")}) as dave:
        assert code(dave.call("subscribe", {"channel": "attic"})) is None
        proxy.refuse()
        server.wait_not_ready()
        database.sql("DELETE FROM members WHERE user_id = 'dave'; SELECT socketio_pg.recheck()")
        proxy.restore()
        assert dave.next("unsubscribed") == {"channel": "attic", "reason": "forbidden"}
