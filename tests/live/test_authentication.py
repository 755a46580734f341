"""Authentication at a real server: tokens, key rotation, expiry, and an application's own login."""

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import jwt
import pytest
import socketio

from tests.support.clients import SocketClient, refused
from tests.support.clock import set_clock
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm
from tests.support.tokens import SECRET, KeyServer, SigningKey, complete, forge, hostile_tokens, mint

HOSTILE = {name: token for name, token in hostile_tokens() if not name.startswith("one megabyte")}


def running(cluster: Cluster, *options: str, **settings: str) -> contextlib.closing[ServerProcess]:
    return contextlib.closing(ServerProcess(cluster.url(), *options, DRAIN_SECONDS="0.2", **settings))


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    """A server that requires tokens and whose clock can be set."""
    with running(newest_pg, app="tests.support.watched_app:app", JWT_SECRET=SECRET, JWT_LEEWAY="0") as made:
        yield made


def unauthorized(error: Any) -> str:
    """Return the message of an ``unauthorized`` error."""
    assert error.keys() == {"message", "data"}, error
    assert error["data"] == {"code": "unauthorized", "message": error["message"]}
    return str(error["message"])


# -- when connecting ---------------------------------------------------------------------------------------------------


def test_valid_token_is_accepted(server: ServerProcess) -> None:
    exp = int(time.time()) + 600
    with SocketClient(server.url, auth={"token": mint(sub="alice", exp=exp)}) as client:
        hello = client.next("server_hello")
        assert hello["client"] == "alice"
        assert datetime.fromisoformat(hello["expires_at"]) == datetime.fromtimestamp(exp, timezone.utc)
        client.subscribe("foo")
        assert client.call("publish", {"channel": "foo", "payload": 1})["ok"]
        assert client.next("event")["payload"] == 1


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_auth_takes_precedence_over_the_authorization_header(server: ServerProcess, transport: str) -> None:
    headers = {"Authorization": f"Bearer {mint(sub='alice')}"}
    with SocketClient(server.url, (transport,), headers=headers) as client:
        assert client.next("server_hello")["client"] == "alice"
    assert "signature" in unauthorized(refused(server.url, headers={"Authorization": headers["Authorization"] + "x"}))
    # `auth` takes precedence over the header.
    with SocketClient(server.url, (transport,), headers=headers, auth={"token": mint(sub="bob")}) as client:
        assert client.next("server_hello")["client"] == "bob"
    unauthorized(refused(server.url, headers=headers, auth={"token": "wrong"}))


@pytest.mark.parametrize("auth", [None, {}, {"Token": "x"}, [], "token", 7, {"token": None}], ids=repr)
def test_connection_without_token_is_refused(server: ServerProcess, auth: Any) -> None:
    assert unauthorized(refused(server.url, auth=auth)) == "a token is required"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokens_are_refused(server: ServerProcess, name: str) -> None:
    assert refused(server.url, auth={"token": HOSTILE[name]})["data"]["code"] == "unauthorized"


@pytest.mark.parametrize("pad", [20_000, 750_000])
def test_oversized_token_is_refused(server: ServerProcess, pad: int) -> None:
    """A token over 16 KB is refused; a packet over 64 KB before authentication closes the connection."""
    swarm = Swarm("127.0.0.1", server.port)
    [client] = swarm.open(1)
    client.answers_connect = False
    swarm.run_until(lambda: client.opened)
    client.socket.setblocking(True)
    with contextlib.suppress(ConnectionError):
        client.send("40" + json.dumps({"token": mint(pad="x" * pad)}))
    client.socket.setblocking(False)
    swarm.run_until(lambda: client.closed or bool(client.packets))
    if client.packets:
        assert json.loads(client.packets.popleft()[1:])["data"]["code"] == "unauthorized"
        assert pad == 20_000
    else:
        assert client.close_code in (None, 1009)
        assert pad == 750_000
    swarm.close()


def test_token_in_the_url_is_ignored(server: ServerProcess) -> None:
    """URLs end up in logs."""
    token = mint()
    for name in ("token", "auth", "access_token", "jwt"):
        assert unauthorized(refused(f"{server.url}?{name}={token}")) == "a token is required"


def test_refused_client_can_do_nothing_and_is_disconnected(newest_pg: Cluster) -> None:
    with running(newest_pg, JWT_SECRET=SECRET, CONNECT_TIMEOUT="8") as server:
        swarm = Swarm("127.0.0.1", server.port)
        refused_one, silent_one, good_one = swarm.open(3)
        silent_one.answers_connect = False
        good_one.auth = {"token": mint()}
        swarm.run_until(lambda: bool(refused_one.packets) and good_one.connected)
        assert json.loads(refused_one.packets.popleft()[1:])["data"]["code"] == "unauthorized"
        refused_one.emit("subscribe", {"channel": "foo"}, 1)
        refused_one.emit("publish", {"channel": "foo", "payload": 1}, 2)
        swarm.run_until(lambda: refused_one.closed and silent_one.closed)
        assert list(refused_one.packets) == []
        assert list(silent_one.packets) == []
        good_one.emit("subscribe", {"channel": "foo"}, 1)
        swarm.run_until(lambda: bool(good_one.events("subscribed")))
        swarm.close()


def test_tokens_and_secrets_are_not_logged(newest_pg: Cluster) -> None:
    token, wrong = mint(sub="alice", note="s3cret"), mint(secret="w" * 64)
    settings = {"JWT_SECRET": SECRET, "LOG_LEVEL": "DEBUG"}
    with running(newest_pg, **settings) as server:
        with SocketClient(server.url, auth={"token": token}) as client:
            client.next("server_hello")
            assert not client.call("authenticate", {"token": wrong})["ok"]
        unauthorized(refused(server.url, auth={"token": wrong}))
        unauthorized(refused(server.url, headers={"Authorization": f"Bearer {wrong}"}))
        server.stop()
        log = server.log
    assert "listening on" in log
    for secret in (token, wrong, SECRET):
        for part in secret.split("."):
            assert part not in log


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed"])
def test_public_key_verifies_tokens(newest_pg: Cluster, kind: str) -> None:
    key, other = SigningKey(kind), SigningKey(kind)
    with running(newest_pg, JWT_PUBLIC_KEY=key.pem.replace("\n", "\\n")) as server:
        with SocketClient(server.url, auth={"token": key.sign(sub="alice")}) as client:
            assert client.next("server_hello")["client"] == "alice"
        assert "signature" in unauthorized(refused(server.url, auth={"token": other.sign()}))
        # HS256 with the public key as the secret.
        assert "algorithm" in unauthorized(refused(server.url, auth={"token": forge(complete({}), key.pem)}))
        assert "algorithm" in unauthorized(refused(server.url, auth={"token": jwt.encode(complete({}), "", "none")}))


def test_issuer_and_audience_are_checked(newest_pg: Cluster) -> None:
    with running(newest_pg, JWT_SECRET=SECRET, JWT_ISSUER="us", JWT_AUDIENCE="app, site") as server:
        for audience in ("app", "site", ["other", "app"]):
            with SocketClient(server.url, auth={"token": mint(iss="us", aud=audience)}) as client:
                assert client.next("server_hello")["client"] == "somebody"
        lacking = "the token lacks exp, or iss or aud where they are configured"
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"iss": "us"}, lacking),
            ({"aud": "app"}, lacking),
            ({"iss": "them", "aud": "app"}, "the token comes from another issuer"),
            ({"iss": "us", "aud": "other"}, "the token is for another audience"),
        ]
        for claims, error in wrong:
            assert unauthorized(refused(server.url, auth={"token": mint(**claims)})) == error


def test_optional_auth_admits_anonymous_clients(newest_pg: Cluster) -> None:
    settings = {"JWT_SECRET": SECRET, "AUTH": "optional", "PUBLIC_CHANNELS": "news, public:*"}
    with running(newest_pg, **settings) as server, SocketClient(server.url) as anonymous:
        assert anonymous.next("server_hello")["client"] is None
        assert anonymous.call("subscribe", {"channel": "public:x"})["ok"]
        assert anonymous.call("subscribe", {"channel": "foo"})["error"]["code"] == "forbidden"
        assert anonymous.call("publish", {"channel": "news", "payload": 1})["error"]["code"] == "forbidden"
        # An invalid token is refused; only a missing one makes the client anonymous.
        unauthorized(refused(server.url, auth={"token": mint(exp=1)}))
        unauthorized(refused(server.url, auth={"token": ""}))
        # An anonymous client signs in while connected.
        answer = anonymous.call("authenticate", {"token": mint(sub="alice")})
        assert (answer["ok"], answer["client"]) == (True, "alice")
        assert anonymous.call("subscribe", {"channel": "foo"})["ok"]
        assert anonymous.call("publish", {"channel": "foo", "payload": 1})["ok"]


def test_auth_off_is_logged_once(newest_pg: Cluster) -> None:
    with running(newest_pg) as server:
        with SocketClient(server.url, auth={"token": "whatever"}) as client:
            hello = client.next("server_hello")
            assert (hello["client"], hello["auth"]) == (None, "off")
            answer = client.call("authenticate", {"token": mint()})
            assert answer["error"]["code"] == "invalid_request"
        assert server.log.count("AUTH is off") == 1
        assert f"any client that reaches {server.url} can subscribe to every channel and publish to it; " in server.log
        assert "set AUTH=required, and a key (JWT_SECRET" in server.log


@pytest.mark.parametrize(
    ("settings", "word"),
    sampled(
        [
            (
                {"AUTH": "required"},
                "socketio_pg: AUTH=required needs a key: set JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL",
            ),
            ({"AUTH": "optional"}, "AUTH=optional needs a key"),
            ({"AUTH": "on"}, "AUTH in the environment is 'on'; allowed: 'off' or 'optional' or 'required'"),
            ({"JWT_SECRET": "t00-short"}, "at least 32"),
            ({"JWT_ALGORITHMS": "none", "JWT_SECRET": SECRET}, "'none'"),
            ({"JWT_PUBLIC_KEY": "/no/such/file"}, "JWT_PUBLIC_KEY"),
            ({"AUTHORIZATION": "claims"}, "AUTHORIZATION=claims needs"),
        ],
        lambda case: "JWT_SECRET" in case[0] or case[0] == {"AUTH": "required"},
    ),
)
def test_invalid_setting_stops_the_start_with_a_message(
    newest_pg: Cluster, settings: dict[str, str], word: str
) -> None:
    with contextlib.closing(ServerProcess(newest_pg.url(), wait="nothing", **settings)) as server:
        assert server.process.wait(PATIENCE) != 0
        assert word in server.log
        assert "Traceback" not in server.log
        assert "t00-short" not in server.log


# -- while connected ---------------------------------------------------------------------------------------------------


@pytest.fixture
def restored_clock(server: ServerProcess) -> Iterator[None]:
    """Reset the server's clock after the test."""
    yield
    set_clock(server)


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.usefixtures("restored_clock")
def test_expiring_token_is_announced_and_then_disconnects(server: ServerProcess, transport: str) -> None:
    auth = {"token": mint(sub="alice", exp=int(time.time()) + 600)}
    with SocketClient(server.url, (transport,), auth=auth, reconnection=False) as client:
        hello = client.next("server_hello")
        client.subscribe("foo")
        set_clock(server, 580)
        # The token has less than 30 s left.
        assert client.next("token_expiring") == {"expires_at": hello["expires_at"]}
        assert client.pending("error") == 0
        set_clock(server, 601)
        assert client.next("error") == {"code": "unauthorized", "message": "the token has expired"}
        client.next("disconnect")
        assert client.pending("event") == 0


def test_token_that_expires_soon_is_announced_immediately(server: ServerProcess) -> None:
    with SocketClient(server.url, auth={"token": mint(exp=int(time.time()) + 25)}, reconnection=False) as client:
        assert client.next("token_expiring") == {"expires_at": client.next("server_hello")["expires_at"]}


@pytest.mark.usefixtures("restored_clock")
def test_renewed_token_keeps_the_connection_open(server: ServerProcess) -> None:
    now = int(time.time())
    with SocketClient(server.url, auth={"token": mint(sub="alice", exp=now + 600)}) as client:
        client.subscribe("foo")
        set_clock(server, 580)
        client.next("token_expiring")
        answer = client.call("authenticate", {"token": mint(sub="alice", exp=now + 1200)})
        assert answer == {"ok": True, **client.next("authenticated")}
        assert answer["client"] == "alice"
        assert datetime.fromisoformat(answer["expires_at"]).timestamp() == now + 1200
        # The first token's expiry passes without effect; the second token's expiry applies.
        set_clock(server, 1180)
        client.next("token_expiring")
        assert client.pending("error") == client.pending("disconnect") == 0
        set_clock(server, 1201)
        assert client.next("error")["code"] == "unauthorized"


@pytest.mark.parametrize("request_", [{}, {"token": None}, {"token": "abc"}, {"token": mint(exp=1)}], ids=str)
def test_failed_renewal_changes_nothing(server: ServerProcess, request_: dict[str, Any]) -> None:
    with SocketClient(server.url, auth={"token": mint(sub="alice")}) as client:
        client.subscribe("foo")
        answer = client.call("authenticate", request_)
        assert answer["error"]["code"] == ("unauthorized" if request_ else "invalid_request")
        assert client.call("publish", {"channel": "foo", "payload": 1})["ok"]
        assert client.next("event")["payload"] == 1


@pytest.mark.usefixtures("restored_clock")
def test_reconnecting_client_sends_a_new_token(server: ServerProcess) -> None:
    """python-socketio calls the function given as `auth` at each connection attempt, also after a token expired."""
    tokens = iter([mint(sub="first", exp=int(time.time()) + 600), mint(sub="second")])
    with SocketClient(server.url, auth=lambda: {"token": next(tokens)}) as client:
        assert client.next("server_hello")["client"] == "first"
        set_clock(server, 601)
        assert client.next("error")["code"] == "unauthorized"
        assert client.next("server_hello")["client"] == "second"


# -- key rotation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    made = KeyServer()
    yield made
    made.close()


def connected_as(server: ServerProcess, token: str) -> str | None:
    with SocketClient(server.url, auth={"token": token}, reconnection=False) as client:
        found: str | None = client.next("server_hello")["client"]
        return found


def test_jwks_keys_can_be_rotated(newest_pg: Cluster, key_server: KeyServer) -> None:
    old, new, ed = SigningKey("rsa", "2025"), SigningKey("ec", "2026"), SigningKey("ed", "x")
    key_server.keys = [old, ed]
    settings = {"JWKS_URL": key_server.url, "JWKS_CACHE_SECONDS": "1", "JWT_AUDIENCE": "app"}
    with running(newest_pg, **settings) as server:
        assert connected_as(server, old.sign(sub="alice", aud="app")) == "alice"
        assert connected_as(server, ed.sign(sub="bob", aud="app")) == "bob"
        # The key ID is unknown, and the keys were fetched too recently to fetch them again.
        error = refused(server.url, auth={"token": new.sign(aud="app")})
        assert error["data"]["code"] in ("authentication_unavailable", "unauthorized")
        assert "algorithm" in unauthorized(refused(server.url, auth={"token": mint(aud="app")}))
        key_server.keys = [new]
        until(lambda: refusal_or_none(server, new.sign(aud="app")) is None, "the new key")
        # Keys that are no longer in the set are revoked.
        for revoked in (old, ed):
            answers: list[Any] = []

            def is_unauthorized(revoked: SigningKey = revoked, answers: list[Any] = answers) -> bool:
                answers.append(refused(server.url, auth={"token": revoked.sign(aud="app")}))
                return bool(answers[-1]["data"]["code"] == "unauthorized")

            until(is_unauthorized, "the old key's end")
            assert "not known" in unauthorized(answers[-1])
            assert {answer["data"]["code"] for answer in answers} <= {"authentication_unavailable", "unauthorized"}
        # Another key with a known key ID is rejected.
        impostor = SigningKey("ec", "2026")
        assert "signature" in unauthorized(refused(server.url, auth={"token": impostor.sign(aud="app")}))


def refusal_or_none(server: ServerProcess, token: str) -> Any:
    try:
        connected_as(server, token)
    except socketio.exceptions.ConnectionError as error:
        return error
    return None


def test_unknown_keys_do_not_cause_constant_fetching(newest_pg: Cluster, key_server: KeyServer) -> None:
    known = SigningKey("rsa", "1")
    key_server.keys = [known]
    with running(newest_pg, JWKS_URL=key_server.url) as server:
        assert connected_as(server, known.sign()) == "somebody"
        fetched, began = key_server.fetched, time.monotonic()
        unknown = SigningKey("rsa", "2")
        for number in range(30):
            error = refused(server.url, auth={"token": unknown.sign({"kid": f"unknown-{number}"})})
            assert error["data"]["code"] in ("authentication_unavailable", "unauthorized")
        assert key_server.fetched <= fetched + 2 + (time.monotonic() - began) / 5, "at most one fetch in 5 s"
        assert "JWT_AUDIENCE is not set" in server.log


def test_unreachable_jwks_refuses_until_fetched(newest_pg: Cluster, key_server: KeyServer) -> None:
    key = SigningKey("rsa", "1")
    key_server.keys = [key]
    key_server.status = 500
    # Each worker fetches the keys for itself.
    with running(newest_pg, "-w", "1", JWKS_URL=key_server.url) as server:
        error = refused(server.url, auth={"token": key.sign()})
        assert error["data"]["code"] == "authentication_unavailable"
        key_server.status, key_server.body = 200, "<html>"
        error = refused(server.url, auth={"token": key.sign()})
        assert error["data"]["code"] == "authentication_unavailable"
        key_server.body = None
        until(lambda: refusal_or_none(server, key.sign()) is None, "the keys")
        # Keys fetched earlier remain in use.
        key_server.status = 500
        assert connected_as(server, key.sign()) == "somebody"
        assert "cannot be fetched" in server.log


# -- an application's own login ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def login_server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    settings = {"AUTHORIZATION": "claims", "CORS_ALLOWED_ORIGINS": "*", "JWT_LEEWAY": "0"}
    with running(newest_pg, app="tests.support.login_app:app", **settings) as made:
        yield made


def login(server: ServerProcess, user: str) -> dict[str, str]:
    request = urllib.request.Request(f"{server.url}/login/{user}", method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


def test_flask_session_authenticates(login_server: ServerProcess) -> None:
    with SocketClient(login_server.url, headers=login(login_server, "alice")) as client:
        assert client.next("server_hello")["client"] == "alice"
        assert client.call("whoami") == "alice"
        assert client.call("subscribe", {"channel": "user:alice"})["ok"]
        assert client.call("subscribe", {"channel": "user:bob"})["error"]["code"] == "forbidden"
        # `authenticate` calls the application's login, too.
        exp = int(time.time()) + 60
        bob = {"sub": "bob", "subscribe": ["user:bob"], "publish": ["user:bob"], "exp": exp}
        answer = client.call("authenticate", {"token": bob})
        assert (answer["ok"], answer["client"]) == (True, "bob")
        assert [client.next("unsubscribed")] == [{"channel": "user:alice", "reason": "forbidden"}]
        assert client.call("subscribe", {"channel": "user:bob"})["ok"]
        assert client.call("publish", {"channel": "user:bob", "payload": 1})["ok"]
        assert client.next("event")["from"] == {"sub": "bob"}
    assert "any page on the web" in login_server.log


def test_clients_unknown_to_the_application_are_refused(login_server: ServerProcess) -> None:
    assert unauthorized(refused(login_server.url)) == "sign in first"
    assert unauthorized(refused(login_server.url, headers={"Cookie": "session=forged"})) == "sign in first"
    assert unauthorized(refused(login_server.url, auth={"token": "wrong"})) == "this is not the password"


@pytest.mark.parametrize("token", ["fails", "nonsense"])
def test_failing_login_function_refuses_the_connection(login_server: ServerProcess, token: str) -> None:
    error = refused(login_server.url, auth={"token": token}, headers=login(login_server, "alice"))
    assert error == {
        "message": "the server failed to handle this",
        "data": {"code": "internal", "message": "the server failed to handle this"},
    }


def test_other_namespaces_require_authentication(login_server: ServerProcess) -> None:
    swarm = Swarm("127.0.0.1", login_server.port)
    [client] = swarm.open(1)
    client.answers_connect = False
    swarm.run_until(lambda: client.opened)
    client.send("40/chat,")
    swarm.run_until(lambda: bool(client.packets))
    packet = client.packets.popleft()
    assert packet.startswith("4/chat,")
    assert json.loads(packet.partition(",")[2])["data"]["code"] == "unauthorized"
    client.send(f"40/chat,{json.dumps({'token': {'sub': 'dora'}})}")
    swarm.run_until(lambda: bool(client.packets))
    assert client.packets.popleft().startswith("0/chat,")
    swarm.close()


def test_renewal_applies_to_all_namespaces_of_the_connection(login_server: ServerProcess) -> None:
    """All namespaces share one connection, which closes when the token of any of them expires."""
    exp = int(time.time()) + 600
    client = socketio.Client(reconnection=False)
    lost, warned = threading.Event(), threading.Event()
    client.on("disconnect", lambda *_: lost.set())
    client.on("token_expiring", lambda *_: warned.set())
    client.connect(
        login_server.url,
        namespaces=["/", "/chat"],
        transports=["websocket"],
        auth={"token": {"sub": "emil", "exp": exp}},
        wait_timeout=PATIENCE,
    )
    answer = client.call("authenticate", {"token": {"sub": "emil", "exp": exp + 600}}, timeout=PATIENCE)
    assert answer["ok"]
    try:
        # The first token's expiry passes; the next event is the warning for the second token.
        set_clock(login_server, 1180)
        assert warned.wait(PATIENCE)
        assert not lost.is_set()
        assert client.call("whoami", timeout=PATIENCE) == "emil"
    finally:
        set_clock(login_server)
    client.disconnect()


def test_connect_handlers_of_the_application_know_the_client(login_server: ServerProcess) -> None:
    client = socketio.Client(reconnection=False)
    client.connect(
        login_server.url, namespaces=["/", "/chat"], transports=["websocket"], auth={"token": {"sub": "carol"}},
        wait_timeout=PATIENCE,
    )  # fmt: skip
    client.disconnect()
    error = refused(login_server.url, auth={"token": {"sub": "unwelcome"}})
    assert error == {"message": "Connection refused by server"}
    state = json.loads(login_server.get("/state")[1])
    assert ["/", "carol"] in state["connected"]
    assert ["/chat", "carol"] in state["connected"]
    assert ["/", "unwelcome"] in state["connected"]
    login_server.wait_for("/state", 200, '"sessions":0')
