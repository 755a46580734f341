"""Recovery with row-level security: permissions that change while a client is away, and requests that wait for them."""

import contextlib
import uuid
from collections.abc import Iterator

import pytest

from tests.support.patience import until
from tests.support.policies import RLS, PolicyDatabase, locked
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import ServerProcess
from tests.support.tokens import mint

#: Sessions that wait for a lock.
WAITING = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    return PolicyDatabase(newest_pg, "recovery_policies")


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    settings = RLS | {"PUBLIC_CHANNELS": "open:*", "PERMISSION_RECHECK_SECONDS": "0"}
    with contextlib.closing(ServerProcess(database.server_url, **settings)) as made:
        yield made


@pytest.fixture
def room(database: PolicyDatabase) -> str:
    """A room that alice may read."""
    name = f"room-{uuid.uuid4().hex[:12]}"
    database.join("alice", name)
    return name


@pytest.fixture
def alice(server: ServerProcess) -> Iterator[RecoveringClient]:
    auth = {"token": mint(sub="alice", role="authenticated")}
    with contextlib.closing(RecoveringClient(server.url, auth=auth)) as made:
        yield made


def test_a_permission_that_was_revoked_meanwhile_ends_one_subscription(
    database: PolicyDatabase, server: ServerProcess, alice: RecoveringClient, room: str
) -> None:
    alice.subscribe(room)
    alice.subscribe("user:alice")
    alice.cut("http://127.0.0.1:9")
    alice.next(event="disconnect")
    database.part("alice", room)
    database.sql("SELECT socketio_pg.recheck(%s)", room)
    for number, channel in enumerate((room, "user:alice")):
        database.sql("SELECT socketio_pg.publish(%s, %s::jsonb)", channel, f"[{number}]")
    alice.send({"url": server.url})
    assert alice.connected()["recovered"]
    assert alice.next(event="unsubscribed")["argument"] == {"channel": room, "reason": "forbidden"}
    assert alice.numbers(1) == [1]
    # The session does not have it any more.
    database.join("alice", room)
    alice.cut()
    assert alice.connected()["recovered"]
    database.sql("SELECT socketio_pg.publish(%s, '[2]'), socketio_pg.publish('user:alice', '[3]')", room)
    assert alice.numbers(1) == [3]


def test_a_request_of_the_former_connection_is_not_answered_on_the_new_one(
    database: PolicyDatabase, alice: RecoveringClient, room: str
) -> None:
    """It would begin again where the client no longer is."""
    database.sql("SELECT socketio_pg.publish(%s, '[1]'), socketio_pg.publish(%s, '[2]')", room, room)
    alice.subscribe("open:all")
    request = {"channel": room, "history": 10}
    with locked(database, "LOCK TABLE members"):
        alice.send({"emit": "subscribe", "argument": request})
        until(lambda: database.sql(WAITING), "the server asks")
        alice.cut()
        assert alice.connected()["recovered"]
        assert "error" in alice.next(kind="answer")
        alice.send({"emit": "subscribe", "argument": request})
        alice.subscribe("open:more")  # the request before it has arrived
    assert alice.numbers(2) == [1, 2]
    database.sql("SELECT socketio_pg.publish(%s, '[3]')", room)
    assert alice.numbers(1) == [3]
    answered = [line["argument"]["channel"] for line in alice.lines if line.get("event") == "subscribed"]
    assert answered == ["open:all", "open:more", room]
