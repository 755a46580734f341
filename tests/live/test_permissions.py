"""Permissions at a real server: claims, row-level security, and permissions that change."""

import contextlib
import json
import queue
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import socketio

from tests.support.clients import SocketClient, code
from tests.support.patience import PATIENCE, until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import Swarm
from tests.support.tokens import SECRET, mint

SETTINGS = {"JWT_SECRET": SECRET, "JWT_LEEWAY": "0", "DRAIN_SECONDS": "0.2"}
POLICIES = (
    SETTINGS
    | RLS
    | {
        "AUTH": "optional",
        "ALLOWED_ROLES": "authenticated,service_role,not_granted",
        "ANONYMOUS_ROLE": "anon",
        "PUBLIC_CHANNELS": "open:*",
        # These tests announce changes with recheck(); tests of the periodic recheck override this.
        "PERMISSION_RECHECK_SECONDS": "0",
    }
)


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    return PolicyDatabase(newest_pg, "live_policies")


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(database.server_url, **POLICIES)) as made:
        yield made


@pytest.fixture
def room(database: PolicyDatabase) -> str:
    """A room that alice may read and write, and bob may read."""
    name = f"room-{uuid.uuid4().hex[:12]}"
    database.join("alice", name, writes=True)
    database.join("bob", name)
    return name


def connect(server: ServerProcess, sub: str, role: str | None = "authenticated", **claims: Any) -> SocketClient:
    return SocketClient(server.url, auth={"token": mint(sub=sub, role=role, **claims)})


def subscribe(client: SocketClient, channel: str, **more: Any) -> str | None:
    return code(client.call("subscribe", {"channel": channel, **more}))


def publish(client: SocketClient, channel: str, payload: object = 1, **more: Any) -> str | None:
    return code(client.call("publish", {"channel": channel, "payload": payload, **more}))


# -- claims ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claims_server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(newest_pg.url(), AUTHORIZATION="claims", **SETTINGS)) as made:
        yield made


def test_claims_in_the_token_limit_channels(claims_server: ServerProcess, newest_pg: Cluster) -> None:
    claims = {"subscribe": ["orders:*", "user:42"], "publish": ["chat:*"]}
    with connect(claims_server, "42", None, **claims) as client:
        assert subscribe(client, "orders:7") is None
        assert subscribe(client, "user:42") is None
        for channel in ("user:421", "user:4", "orders", "chat:1", "xorders:7"):
            assert subscribe(client, channel) == "forbidden"
            newest_pg.notify(channel, '"secret"')
        assert publish(client, "orders:7") == "forbidden"
        assert publish(client, "chat:1") is None
        newest_pg.notify("orders:7", '"public"')
        # No message of the other channels arrived before it.
        assert client.next("event") == {"channel": "orders:7", "payload": "public"}


def test_clients_with_different_claims_share_a_channel(claims_server: ServerProcess) -> None:
    channel = f"c-{uuid.uuid4().hex[:8]}"
    with (
        connect(claims_server, "reader", None, subscribe=[channel]) as reader,
        connect(claims_server, "writer", None, publish=[channel]) as writer,
        connect(claims_server, "nobody", None) as neither,
    ):
        assert [subscribe(client, channel) for client in (reader, writer, neither)] == [None, "forbidden", "forbidden"]
        assert [publish(client, channel) for client in (reader, neither)] == ["forbidden"] * 2
        assert publish(writer, channel, "hello") is None
        assert reader.next("event")["payload"] == "hello"
        for client in (writer, neither):
            client.call("unsubscribe", {"channel": channel})
            assert client.pending("event") == 0


def test_new_token_revokes_and_grants_channels(claims_server: ServerProcess, newest_pg: Cluster) -> None:
    with connect(claims_server, "alice", None, subscribe=["a", "b"]) as client:
        for channel in "ab":
            assert subscribe(client, channel) is None
        answer = client.call("authenticate", {"token": mint(sub="alice", subscribe=["b", "c"])})
        assert code(answer) is None
        assert client.next("unsubscribed") == {"channel": "a", "reason": "forbidden"}
        assert subscribe(client, "a") == "forbidden"
        assert subscribe(client, "c") is None
        for channel in "abc":
            newest_pg.notify(channel, f'"{channel}"')
        assert [client.next("event")["payload"] for _ in range(2)] == ["b", "c"]
        assert client.pending("unsubscribed") == 0


@pytest.mark.parametrize(
    ("mode", "expected"), [("off", ["forbidden"] * 2), ("authenticated", ["forbidden", None]), ("all", [None, None])]
)
def test_publish_setting_decides_who_may_publish(newest_pg: Cluster, mode: str, expected: list[str | None]) -> None:
    with (
        contextlib.closing(ServerProcess(newest_pg.url(), AUTH="optional", PUBLISH=mode, **SETTINGS)) as server,
        SocketClient(server.url) as anonymous,
        connect(server, "alice") as alice,
    ):
        assert [publish(client, "foo") for client in (anonymous, alice)] == expected


# -- row-level security ------------------------------------------------------------------------------------------------


def test_policies_decide(server: ServerProcess, room: str) -> None:
    with (
        connect(server, "alice") as alice,
        connect(server, "bob") as bob,
        connect(server, "carol") as carol,
        SocketClient(server.url) as anonymous,
    ):
        clients = [alice, bob, carol, anonymous]
        assert [subscribe(client, room) for client in clients] == [None, None, "forbidden", "forbidden"]
        assert [subscribe(client, "lobby") for client in clients] == [None] * 4
        assert [subscribe(client, "user:bob") for client in clients] == ["forbidden", None, "forbidden", "forbidden"]
        assert [subscribe(client, "open:x") for client in clients] == [None] * 4
        assert [publish(client, room) for client in (bob, carol, anonymous)] == ["forbidden"] * 3
        assert publish(alice, room, "from alice") is None
        for client in (alice, bob):
            assert client.next("event")["payload"] == "from alice"
        # Clients without permission received nothing.
        for client in (carol, anonymous):
            client.call("unsubscribe", {"channel": "lobby"})
            assert client.pending("event") == 0


@pytest.mark.parametrize(
    "role",
    [
        "postgres", "web", "not_granted", "nobody_has_this_name", "none", "anon ", "AUTHENTICATED", "",
        'authenticated"; RESET ROLE; --',
    ],
    ids=repr,
)  # fmt: skip
def test_disallowed_roles_are_refused(server: ServerProcess, room: str, role: Any) -> None:
    with connect(server, "alice", role) as client:
        assert subscribe(client, room) == "forbidden"
        assert publish(client, room) == "forbidden"
        assert subscribe(client, "lobby") == "forbidden"


@pytest.mark.parametrize("role", [7, ["authenticated"]], ids=repr)
def test_token_whose_role_is_not_a_text_is_refused(server: ServerProcess, role: Any) -> None:
    with pytest.raises(socketio.exceptions.ConnectionError), connect(server, "alice", role):
        raise AssertionError("the client was admitted")


def test_token_without_a_role_uses_the_anonymous_role(server: ServerProcess, room: str) -> None:
    with connect(server, "alice", None) as client:
        assert client.next("server_hello")["client"] == "alice"
        assert subscribe(client, room) == "forbidden"
        assert subscribe(client, "lobby") is None


def test_allowed_role_may_bypass_all_policies(server: ServerProcess, room: str) -> None:
    with connect(server, "anybody", "service_role") as client:
        assert subscribe(client, room) is None
        assert publish(client, room) is None


def test_policies_apply_to_the_log(server: ServerProcess, database: PolicyDatabase, room: str) -> None:
    with connect(server, "alice") as alice, connect(server, "bob") as bob, connect(server, "carol") as carol:
        start = alice.call("subscribe", {"channel": room})
        since = {"epoch": start["epoch"], "position": start["position"]}
        database.sql("SELECT socketio_pg.publish(%s, to_jsonb(n)) FROM generate_series(1, 3) AS n", room)
        assert [alice.next("event")["payload"] for _ in range(3)] == [1, 2, 3]
        assert publish(alice, room, "x" * 20_000) is None
        assert publish(alice, room, 4, durable=True) is None
        assert publish(bob, room, 5, durable=True) == "forbidden"
        assert publish(bob, room, "x" * 20_000) == "forbidden"
        for client, expected in ((bob, None), (carol, "forbidden")):
            assert subscribe(client, room, since=since) == expected
            assert subscribe(client, room, history=100) == expected
        assert [bob.next("event")["payload"] for _ in range(3)] == [1, 2, 3]
        assert carol.pending("event") == 0
        # A permission revoked after the messages were written applies to their replay.
        database.part("bob", room)
        database.sql("SELECT socketio_pg.recheck()")
        assert bob.next("unsubscribed") == {"channel": room, "reason": "forbidden"}
    with connect(server, "bob") as again:
        assert subscribe(again, room, since=since) == "forbidden"
        assert subscribe(again, room, history=1) == "forbidden"


def test_revoked_permission_ends_the_subscription(server: ServerProcess, database: PolicyDatabase, room: str) -> None:
    with connect(server, "alice") as alice, connect(server, "bob") as bob, connect(server, "bob") as other:
        for client in (alice, bob, other):
            assert subscribe(client, room) is None
        assert subscribe(bob, "user:bob") is None
        # recheck() in the revoking transaction: servers are notified when it commits.
        database.sql(
            "DELETE FROM members WHERE user_id = 'bob' AND room = %s; SELECT socketio_pg.recheck(%s)", room, room
        )
        for client in (bob, other):
            assert client.next("unsubscribed") == {"channel": room, "reason": "forbidden"}
        assert publish(alice, room, "not for bob") is None
        assert alice.next("event")["payload"] == "not for bob"
        database.sql("SELECT pg_notify('user:bob', '\"for bob\"')")
        assert bob.next("event")["payload"] == "for bob"
        assert other.pending("event") == 0
        assert subscribe(bob, room) == "forbidden"
        # The permission is granted again.
        database.join("bob", room)
        database.sql("SELECT socketio_pg.recheck(%s)", room)
        wait_until_allowed(bob, room)


def wait_until_allowed(client: SocketClient, channel: str) -> None:
    until(lambda: subscribe(client, channel) is None, "a permission")


def test_trigger_rechecks_permissions_on_change(server: ServerProcess, database: PolicyDatabase, room: str) -> None:
    database.sql(
        "CREATE TRIGGER recheck AFTER INSERT OR UPDATE OR DELETE ON members"
        " FOR EACH STATEMENT EXECUTE FUNCTION socketio_pg.recheck_on_change()"
    )
    try:
        with connect(server, "bob") as bob:
            assert subscribe(bob, room) is None
            database.part("bob", room)
            assert bob.next("unsubscribed") == {"channel": room, "reason": "forbidden"}
    finally:
        database.sql("DROP TRIGGER recheck ON members")


def test_periodic_recheck_finds_revoked_permission(database: PolicyDatabase, room: str) -> None:
    settings = POLICIES | {"PERMISSION_RECHECK_SECONDS": "0.5"}
    with (
        contextlib.closing(ServerProcess(database.server_url, **settings)) as server,
        connect(server, "bob") as bob,
        connect(server, "alice") as alice,
    ):
        assert subscribe(bob, room) is subscribe(alice, room) is None
        database.part("bob", room)
        assert bob.next("unsubscribed") == {"channel": room, "reason": "forbidden"}
        assert alice.pending("unsubscribed") == 0


def test_changed_policy_applies_after_recheck(server: ServerProcess, database: PolicyDatabase, room: str) -> None:
    with connect(server, "carol") as carol:
        assert subscribe(carol, room) == "forbidden"
        database.sql(f"""CREATE POLICY "{room}" ON socketio_pg.messages FOR SELECT USING (channel = '{room}')""")
        database.sql("SELECT socketio_pg.recheck()")
        wait_until_allowed(carol, room)
        database.sql(f'DROP POLICY "{room}" ON socketio_pg.messages; SELECT socketio_pg.recheck()')
        assert carol.next("unsubscribed") == {"channel": room, "reason": "forbidden"}


def test_sql_in_claims_is_treated_as_text(server: ServerProcess, database: PolicyDatabase, room: str) -> None:
    before = database.sql("SELECT * FROM members ORDER BY 1, 2")
    for hostile in ("'; DELETE FROM members; --", "alice' OR true --", "%s", "\\", "\0", "alice\0", "\ud800"):
        # A token whose name is a lone surrogate is refused, so that one is tested only in another claim.
        sub = "somebody" if hostile == "\ud800" else hostile
        with connect(server, sub, extra={hostile: hostile}) as client:
            assert subscribe(client, room) == "forbidden"
            assert publish(client, room) == "forbidden"
    assert database.sql("SELECT * FROM members ORDER BY 1, 2") == before


def test_new_token_without_permission_stops_a_replay(
    server: ServerProcess, database: PolicyDatabase, room: str
) -> None:
    """A large replay stops midway when the new token does not allow the channel."""
    with connect(server, "alice") as alice:
        start = alice.call("subscribe", {"channel": "lobby"})
    since = {"epoch": start["epoch"], "position": start["position"]}
    database.sql(
        "SELECT socketio_pg.publish(%s, to_jsonb(repeat('x', 100000))) FROM generate_series(1, 200) AS n", room
    )
    with Swarm("127.0.0.1", server.port) as swarm:
        [bob] = swarm.open(1, receive_buffer=4096)
        bob.auth = {"token": mint(sub="bob", role="authenticated")}
        swarm.run_until(lambda: bob.connected)
        bob.emit("subscribe", {"channel": room, "since": since}, 1)
        swarm.run_until(lambda: bool(bob.events("event")))
        # It reads nothing until the server has the new token, so the replay waits for it.
        bob.emit("authenticate", {"token": mint(sub="carol", role="authenticated")}, 2)
        swarm.run_until(lambda: bool(bob.events("unsubscribed")))
        assert bob.events("unsubscribed") == [{"channel": room, "reason": "forbidden"}]
        assert len(bob.events("event")) < 199, "the replay must not have completed"
        arrived = len(bob.events("event"))
        bob.emit("subscribe", {"channel": "lobby"}, 3)
        swarm.run_until(lambda: any(packet.startswith("33[") for packet in bob.packets))
        assert len(bob.events("event")) - arrived <= 1


def test_lost_database_privilege_is_reported_by_readyz(
    database: PolicyDatabase, server: ServerProcess, room: str
) -> None:
    decide = "FUNCTION socketio_pg.decide(text[], text[], text[], text[], double precision)"
    with connect(server, "alice") as alice:
        database.sql(f"REVOKE EXECUTE ON {decide} FROM web")
        try:
            assert subscribe(alice, room) == "database_unavailable"
            server.wait_for("/readyz", 503, "socketio-pg init --server-role")
        finally:
            database.sql(f"GRANT EXECUTE ON {decide} TO web")
        server.wait_ready()
        assert subscribe(alice, room) is None


@pytest.mark.parametrize("again", ["alice", "bob"])
def test_permission_revoked_while_authenticating_is_not_kept(
    server: ServerProcess, database: PolicyDatabase, room: str, again: str
) -> None:
    """The data changes during the permission check of the new token. The subscription ends in either order."""
    with connect(server, "alice") as alice:
        for number in range(20):
            database.join(again, room)
            database.join("alice", room)
            database.sql("SELECT socketio_pg.recheck(%s)", room)
            wait_until_allowed(alice, room)
            renewing = threading.Thread(
                target=alice.call, args=("authenticate", {"token": mint(sub=again, role="authenticated", n=number)})
            )
            renewing.start()
            database.sql("DELETE FROM members WHERE room = %s; SELECT socketio_pg.recheck(%s)", room, room)
            assert alice.next("unsubscribed") == {"channel": room, "reason": "forbidden"}
            renewing.join()


def test_messages_table_stays_empty_and_nothing_is_raised(server: ServerProcess, database: PolicyDatabase) -> None:
    assert database.sql("SELECT count(*) FROM socketio_pg.messages") == [(0,)]
    assert "Traceback" not in server.log, server.log[server.log.index("Traceback") - 300 :][:3000]
    assert "clients of role 'not_granted' will be refused" in server.log


def test_missing_schema_allows_nothing_and_is_reported(newest_pg: Cluster) -> None:
    newest_pg.sql("DROP DATABASE IF EXISTS no_schema WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE no_schema")
    url = newest_pg.url("no_schema")
    with contextlib.closing(ServerProcess(url, wait="http", **POLICIES)) as server:
        server.wait_for("/readyz", 503, "socketio-pg init")
        with connect(server, "alice") as client:
            assert subscribe(client, "foo") == "database_unavailable"
            assert publish(client, "foo") == "database_unavailable"
            assert subscribe(client, "open:x") is None
        # The server uses the schema as soon as it is installed.
        installed = PolicyDatabase(newest_pg, "no_schema")
        server.wait_ready()
        installed.join("alice", "foo")
        with connect(server, "alice") as client:
            assert subscribe(client, "foo") is None


def test_auto_init_installs_the_schema(newest_pg: Cluster) -> None:
    newest_pg.sql("DROP DATABASE IF EXISTS auto_init_rls WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE auto_init_rls")
    url = newest_pg.url("auto_init_rls")
    with (
        contextlib.closing(ServerProcess(url, AUTO_INIT="1", **POLICIES)) as server,
        connect(server, "alice") as client,
    ):
        assert subscribe(client, "foo") == "forbidden"


@pytest.mark.serial  # the slower the messages come, the more of them are checked one after the other
@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_messages_waiting_for_a_permission_check_are_limited(database: PolicyDatabase, transport: str) -> None:
    """Large messages to a channel whose policies are slow: the server does not buffer all of them."""
    database.sql(
        """CREATE POLICY slow ON socketio_pg.messages FOR INSERT TO authenticated
           WITH CHECK (CASE WHEN channel = 'slow' THEN pg_sleep(10) IS NOT NULL ELSE false END)"""
    )
    settings = POLICIES | PATIENT | {"MAX_EVENT_BYTES_PER_SECOND": "0"}  # nobody polls while the messages are sent
    try:
        with contextlib.closing(ServerProcess(database.server_url, **settings)) as server:
            before = server.resident_bytes()
            send = publish_by_websocket if transport == "websocket" else publish_by_polling
            auth = {"token": mint(sub="alice", role="authenticated")}
            codes = send(server, auth, {"channel": "slow", "payload": "x" * 900_000}, 200)
            assert codes.count("rate_limited") >= 150, "on a machine that is not busy nearly all"
            assert set(codes) == {"rate_limited", "database_unavailable"}
            # Buffered, they would take 180 MB plus copies.
            assert server.resident_bytes() - before < 90_000_000
    finally:
        database.sql("DROP POLICY slow ON socketio_pg.messages")


def publish_by_websocket(server: ServerProcess, auth: dict[str, Any], request: dict[str, Any], times: int) -> list[Any]:
    """Return the error code of each answer."""
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    with SocketClient(server.url, auth=auth) as client:
        for _ in range(times):
            client.io.emit("publish", request, callback=answers.put)
        return [code(answers.get(timeout=PATIENCE)) for _ in range(times)]


def publish_by_polling(server: ServerProcess, auth: dict[str, Any], request: dict[str, Any], times: int) -> list[Any]:
    """Return the error code of each answer. Sends one POST per event; stock clients would exceed the limit with one."""
    address = f"{server.url}/socket.io/?EIO=4&transport=polling"
    with requests.Session() as session:
        address += "&sid=" + json.loads(session.get(address, timeout=PATIENCE).text[1:])["sid"]
        for packet in [f"40{json.dumps(auth)}", *(f"42{n}{json.dumps(['publish', request])}" for n in range(times))]:
            assert session.post(address, packet, timeout=PATIENCE).text == "ok"
        codes: list[Any] = []
        while len(codes) < times:
            packets = session.get(address, timeout=PATIENCE).text.split("\x1e")
            codes += [code(json.loads(packet[packet.index("[") :])[0]) for packet in packets if packet.startswith("43")]
        return codes


def test_policies_decide_who_sends_ephemeral_messages(server: ServerProcess, room: str) -> None:
    """The messages that a client sends until they have decided wait, and the newest one arrives."""
    with connect(server, "alice") as alice, connect(server, "bob") as bob, connect(server, "bob") as other:
        for client in (alice, bob, other):
            client.call("subscribe", {"channel": room})
        for number in range(50):
            alice.io.emit("publish", {"channel": room, "payload": number, "ephemeral": True})
        while (event := other.next("event"))["payload"] < 49:
            pass
        assert event["from"]["sub"] == "alice"
        bob.io.emit("publish", {"channel": room, "payload": "forged", "ephemeral": True})
        assert bob.next("error") | {"message": ""} == {"code": "forbidden", "message": "", "channel": room}
        assert code(bob.call("publish", {"channel": room, "payload": "forged", "ephemeral": True})) == "forbidden"
        assert alice.call("publish", {"channel": room, "payload": 50, "ephemeral": True}) == {
            "ok": True,
            "channel": room,
        }
        assert other.next("event")["payload"] == 50
