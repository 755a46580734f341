"""Permissions for patterns at a real server: claims that cover them, and policies that are asked for each channel."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import SocketClient, code
from tests.support.patience import until
from tests.support.policies import RLS, PolicyDatabase, locked
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, mint


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    return PolicyDatabase(newest_pg, "pattern_policies")


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    settings = RLS | {"AUTH": "optional", "PUBLIC_CHANNELS": "open:*", "PERMISSION_RECHECK_SECONDS": "0"}
    with contextlib.closing(ServerProcess(database.server_url, PERMISSION_CACHE_SECONDS="1", **settings)) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    return f"p{uuid.uuid4().hex[:8]}"


def connect(server: ServerProcess, sub: str, **claims: Any) -> SocketClient:
    return SocketClient(server.url, auth={"token": mint(sub=sub, role="authenticated", **claims)})


def subscribe(client: SocketClient, pattern: str, **more: Any) -> str | None:
    return code(client.call("subscribe", {"pattern": pattern, **more}))


def publish(database: PolicyDatabase, *messages: tuple[str, object]) -> None:
    """Publish (channel, number) in order, in one transaction."""
    database.sql(
        "SELECT socketio_pg.publish(channel, to_jsonb(n)) FROM unnest(%s::text[], %s::int[]) AS m(channel, n)",
        [channel for channel, _ in messages],
        [number for _, number in messages],
    )


def payloads(client: SocketClient, count: int) -> list[Any]:
    return [client.next("event")["payload"] for _ in range(count)]


def test_a_token_must_cover_the_whole_pattern(newest_pg: Cluster, database: PolicyDatabase) -> None:
    settings = {"JWT_SECRET": SECRET, "AUTH": "optional", "AUTHORIZATION": "claims", "PUBLIC_CHANNELS": "open:*"}
    with (
        contextlib.closing(ServerProcess(database.server_url, DRAIN_SECONDS="0.2", **settings)) as server,
        SocketClient(server.url, auth={"token": mint(sub="5", subscribe=["orders:*", "a*b"])}) as some,
        SocketClient(server.url, auth={"token": mint(sub="6", subscribe=["*"])}) as everything,
        SocketClient(server.url) as anonymous,
    ):
        for pattern, expected in {
            "orders:*": None, "orders:eu:*": None, "orders:*:paid": None, "a*b": None, "ax*yb": None, "open:1*": None,
            "order*": "forbidden", "*orders:*": "forbidden", "a*": "forbidden", "*": "forbidden", "o*": "forbidden",
        }.items():  # fmt: skip
            assert subscribe(some, pattern) == expected, pattern
        assert [subscribe(everything, pattern) for pattern in ("*", "*:x", "orders:*")] == [None] * 3
        assert [subscribe(anonymous, pattern) for pattern in ("open:*", "o*", "*")] == [None, "forbidden", "forbidden"]
        assert code(some.call("authenticate", {"token": mint(sub="5", subscribe=["orders:eu:*"])})) is None
        ended = {some.next("unsubscribed")["pattern"] for _ in range(4)}
        assert ended == {"orders:*", "orders:*:paid", "a*b", "ax*yb"}
        publish(database, ("orders:us:1", 1), ("orders:eu:1", 2))
        assert some.next("event")["pattern"] == "orders:eu:*"
        assert [everything.next("event")["matches"] for _ in range(2)] == [["*", "orders:*"]] * 2
        # The server's own channels match no pattern.
        database.sql("SELECT socketio_pg.recheck()")
        publish(database, ("orders:eu:1", 3))
        assert payloads(everything, 1) == [3]


def test_policies_decide_for_each_channel(server: ServerProcess, database: PolicyDatabase, prefix: str) -> None:
    """Live and in a replay; the order of a client's messages is that of the log, and it learns of no other channel."""
    channels = [f"{prefix}:{n}" for n in range(12)]
    database.join("alice", *channels[::2])
    database.join("bob", *channels[::3])
    messages = [(channels[(n * 7) % 12], n) for n in range(60)]
    with connect(server, "alice") as alice, connect(server, "bob") as bob, SocketClient(server.url) as anonymous:
        assert subscribe(anonymous, f"{prefix}:*") == "forbidden", "it has no role"
        assert subscribe(anonymous, "open:*") is None
        answer = alice.call("subscribe", {"pattern": f"{prefix}:*"})
        assert subscribe(bob, f"{prefix}:*") is None
        assert code(bob.call("subscribe", {"channel": channels[3]})) is None
        for start in range(0, 60, 5):
            publish(database, *messages[start : start + 5])
        for client, step in ((alice, 2), (bob, 3)):
            expected = [n for channel, n in messages if channel in channels[::step]]
            assert payloads(client, len(expected)) == expected
        since = {"epoch": answer["epoch"], "position": answer["position"]}
        with connect(server, "alice") as again:
            assert subscribe(again, f"{prefix}:*", since=since) is None
            expected = [n for channel, n in messages if channel in channels[::2]]
            assert payloads(again, len(expected)) == expected
            again.next("live")
        # Permissions change: from the message after recheck() on.
        database.part("alice", channels[0])
        database.join("alice", channels[1])
        database.sql("SELECT socketio_pg.recheck()")
        publish(database, (channels[0], 100), (channels[1], 101), (channels[2], 102))
        assert payloads(alice, 2) == [101, 102]
        # Another identity.
        assert code(alice.call("authenticate", {"token": mint(sub="bob", role="authenticated")})) is None
        publish(database, (channels[2], 103), (channels[3], 104))
        assert payloads(alice, 1) == [104]
        assert payloads(bob, 1) == [100]
        assert bob.next("event")["matches"] == [channels[3], f"{prefix}:*"]
        publish(database, ("open:x", 105))
        assert payloads(anonymous, 1) == [105]
        assert [client.pending("gap") for client in (alice, bob, anonymous)] == [0, 0, 0]


def test_messages_wait_until_the_policies_answer(server: ServerProcess, database: PolicyDatabase, prefix: str) -> None:
    database.join("alice", f"{prefix}:1", f"{prefix}:2")
    with connect(server, "alice") as alice, connect(server, "alice") as exact:
        assert subscribe(alice, f"{prefix}:*") is None
        assert code(exact.call("subscribe", {"channel": f"{prefix}:1"})) is None
        publish(database, (f"{prefix}:1", 1))
        assert payloads(alice, 1) == [1]
        with locked(database, "LOCK TABLE members IN ACCESS EXCLUSIVE MODE"):
            publish(database, (f"{prefix}:1", 2), (f"{prefix}:2", 3), (f"{prefix}:3", 4), (f"{prefix}:1", 5))
            assert payloads(exact, 3) == [1, 2, 5]
            database.sql("SELECT pg_notify(%s, '6')", f"{prefix}:1")
            assert payloads(exact, 1) == [6]
            assert payloads(alice, 1) == [6], "it has heard the channel before, and NOTIFY has no order with the log"
            assert alice.pending("event") == 0
        assert payloads(alice, 3) == [2, 3, 5]
        publish(database, (f"{prefix}:2", 7))
        assert payloads(alice, 1) == [7]


@pytest.mark.nightly
def test_a_session_is_recovered_while_messages_wait(
    server: ServerProcess, database: PolicyDatabase, prefix: str
) -> None:
    """The stock JavaScript client: its offset is that of the last message that it has got, not of those that wait."""
    database.join("alice", *(f"{prefix}:{number}" for number in range(4)))
    auth = {"token": mint(sub="alice", role="authenticated")}
    with contextlib.closing(RecoveringClient(server.url, auth=auth)) as client:
        assert client.call("subscribe", {"pattern": f"{prefix}:*"})["ok"]
        publish(database, (f"{prefix}:0", 0))
        assert client.next(event="event")["argument"]["payload"] == 0
        with locked(database, "LOCK TABLE members IN ACCESS EXCLUSIVE MODE"):
            publish(database, *((f"{prefix}:{number % 5}", number) for number in range(1, 40)))
            client.cut()
            assert client.connected()["recovered"]
            publish(database, *((f"{prefix}:{number % 5}", number) for number in range(40, 60)))
        client.cut()
        assert client.connected()["recovered"]
        publish(database, (f"{prefix}:0", 60))
        found = [client.next(event="event")["argument"]["payload"] for _ in range(48)]
        assert found == [number for number in range(1, 61) if number % 5 != 4]


@pytest.mark.nightly  # ten seconds
def test_a_channel_whose_policies_do_not_answer_is_left_out(
    server: ServerProcess, database: PolicyDatabase, prefix: str
) -> None:
    database.join("alice", f"{prefix}:1")
    with connect(server, "alice") as alice:
        assert subscribe(alice, f"{prefix}:*") is None
        assert subscribe(alice, "open:*") is None
        publish(database, (f"{prefix}:1", 1))
        assert payloads(alice, 1) == [1]
        with locked(database, "LOCK TABLE members IN ACCESS EXCLUSIVE MODE"):
            publish(database, (f"{prefix}:2", 2), (f"{prefix}:1", 3), ("open:x", 4))
            assert payloads(alice, 1) == [4], "another pattern does not wait"
            gap = alice.next("gap")
            assert gap.pop("epoch")
            assert gap.pop("position") >= 3
            assert gap == {"pattern": f"{prefix}:*", "reason": "permission_unknown"}
            assert payloads(alice, 1) == [3]
        until(lambda: _arrives(alice, database, f"{prefix}:1"), "the channel is heard")


def _arrives(client: SocketClient, database: PolicyDatabase, channel: str) -> bool:
    publish(database, (channel, 9))
    return payloads(client, 1) == [9]
