"""Access control over HTTP at a real server: tokens, claims, policies, an application's login, origins, limits."""

import contextlib
import json
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.support.clients import SocketClient
from tests.support.http_api import HttpApi, after, payloads, refusal
from tests.support.patience import PATIENCE, until
from tests.support.policies import PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.raw_http import Connection
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, KeyServer, SigningKey, hostile_tokens, mint

TOKENS = {"JWT_SECRET": SECRET, "JWT_LEEWAY": "0", "DRAIN_SECONDS": "0.2"}
FORBIDDEN = (403, "forbidden")
UNAUTHORIZED = (401, "unauthorized")
LIMITED = (429, "rate_limited")


def running(cluster: Cluster, *options: str, **settings: str) -> contextlib.closing[ServerProcess]:
    return contextlib.closing(ServerProcess(cluster.url(), *options, DRAIN_SECONDS="0.2", **settings))


def outcome(answer: requests.Response) -> tuple[int, str] | None:
    """Return the status and error code of a refusal, None on success."""
    return None if answer.status_code == 200 else refusal(answer)


# -- AUTH --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def required(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(newest_pg.url(), **TOKENS)) as made:
        yield made


def test_token_is_required(required: ServerProcess, channel: str) -> None:
    anonymous = HttpApi(required)
    for answer in (anonymous.publish(channel, 1), anonymous.messages(channel)):
        assert refusal(answer) == UNAUTHORIZED
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    authenticated = HttpApi(required, mint())
    assert authenticated.publish(channel, 1).status_code == 200
    assert authenticated.messages(channel).status_code == 200
    # URLs end up in logs and browser histories: a token in the URL is ignored.
    assert refusal(anonymous.messages(channel, token=mint(), access_token=mint())) == UNAUTHORIZED


def test_hostile_tokens_are_refused_over_http(required: ServerProcess, channel: str) -> None:
    for name, token in hostile_tokens(SECRET):
        if not isinstance(token, str) or not 0 < len(token) < 8000 or not (token.isascii() and token.isprintable()):
            continue  # not a valid header value
        if token == token.strip():
            assert refusal(HttpApi(required, token).publish(channel, 1)) == UNAUTHORIZED, name


@pytest.mark.parametrize("scheme", ["Basic", "Token", "bearer"])
def test_only_the_bearer_scheme_is_accepted(required: ServerProcess, channel: str, scheme: str) -> None:
    answer = HttpApi(required, Authorization=f"{scheme} {mint()}").publish(channel, 1)
    assert outcome(answer) == (None if scheme == "bearer" else UNAUTHORIZED)


@pytest.mark.parametrize(
    ("publish", "expected"),
    [("off", [FORBIDDEN] * 2), ("authenticated", [FORBIDDEN, None]), ("all", [None, None])],
)
def test_publish_setting_decides_who_may_publish(
    newest_pg: Cluster, channel: str, publish: str, expected: list[Any]
) -> None:
    settings = TOKENS | {"AUTH": "optional", "PUBLISH": publish, "PUBLIC_CHANNELS": "open:*"}
    with contextlib.closing(ServerProcess(newest_pg.url(), **settings)) as server:
        anonymous, authenticated = HttpApi(server), HttpApi(server, mint())
        assert [outcome(client.publish(channel, 1)) for client in (anonymous, authenticated)] == expected
        # PUBLISH does not affect reading.
        assert [outcome(client.messages(channel)) for client in (anonymous, authenticated)] == [FORBIDDEN, None]
        assert outcome(anonymous.messages(f"open:{channel}")) is None
        # An invalid token is refused, even for a public channel.
        assert refusal(HttpApi(server, "nonsense").messages(f"open:{channel}")) == UNAUTHORIZED


def test_auth_off_ignores_tokens(newest_pg: Cluster, channel: str) -> None:
    with running(newest_pg) as server:
        assert HttpApi(server, "nonsense").publish(channel, 1).status_code == 200


def test_unavailable_keys_answer_503(newest_pg: Cluster, channel: str) -> None:
    key = SigningKey("ed", "one")
    with contextlib.closing(KeyServer(key)) as keys:
        keys.status = 500
        with running(newest_pg, JWKS_URL=keys.url) as server:
            answer = HttpApi(server, key.sign()).publish(channel, 1)
            assert refusal(answer) == (503, "authentication_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1


def test_login_of_the_application_authenticates(newest_pg: Cluster, channel: str) -> None:
    settings = {"DRAIN_SECONDS": "0.2", "AUTHORIZATION": "claims"}
    with contextlib.closing(ServerProcess(newest_pg.url(), app="tests.support.login_app:app", **settings)) as server:
        assert refusal(HttpApi(server).messages("user:alice")) == UNAUTHORIZED
        with requests.Session() as browser:
            browser.post(f"{server.url}/login/alice", timeout=PATIENCE)
            get = f"{server.url}/api/channels/user:{{}}/messages"
            assert outcome(browser.get(get.format("alice"), timeout=PATIENCE)) is None
            assert outcome(browser.get(get.format("bob"), timeout=PATIENCE)) == FORBIDDEN
            body = {"channel": "user:alice", "payload": 1}
            assert outcome(browser.post(f"{server.url}/api/publish", json=body, timeout=PATIENCE)) == FORBIDDEN
            # Requests of another origin in the same browser carry the cookie, and are refused all the same.
            origin = {"Origin": "https://evil.example"}
            assert outcome(browser.get(get.format("alice"), headers=origin, timeout=PATIENCE)) == FORBIDDEN


# -- AUTHORIZATION -----------------------------------------------------------------------------------------------------


def test_claims_in_the_token_limit_channels(newest_pg: Cluster) -> None:
    with contextlib.closing(ServerProcess(newest_pg.url(), AUTHORIZATION="claims", **TOKENS)) as server:
        api = HttpApi(server, mint(subscribe=["orders:*"], publish=["chat:*"]))
        assert outcome(api.messages("orders:7")) is None
        assert outcome(api.messages("chat:7")) == FORBIDDEN
        assert outcome(api.publish("chat:7", 1)) is None
        answer = api.publish("orders:7", 1)
        assert outcome(answer) == FORBIDDEN
        assert answer.json()["error"]["channel"] == "orders:7"
        with SocketClient(server.url, auth={"token": mint(subscribe=["*"])}) as client:
            client.call("subscribe", {"channel": "chat:7"})
            answer = api.publish_together({"channel": "chat:7", "payload": 1}, {"channel": "orders:7", "payload": 1})
            assert outcome(answer) == FORBIDDEN
            assert answer.json()["error"]["message"].startswith("messages[1]: ")
            assert outcome(api.publish("chat:7", "the next")) is None
            assert client.next("event")["payload"] == "the next"


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    return PolicyDatabase(newest_pg, "http_policies")


@pytest.fixture(scope="module")
def with_policies(database: PolicyDatabase) -> Iterator[ServerProcess]:
    settings = TOKENS | {
        "AUTH": "optional", "AUTHORIZATION": "rls", "ALLOWED_ROLES": "authenticated", "ANONYMOUS_ROLE": "anon",
        "PERMISSION_RECHECK_SECONDS": "0",
    }  # fmt: skip
    with contextlib.closing(ServerProcess(database.server_url, **settings)) as made:
        yield made


def test_policies_limit_channels(with_policies: ServerProcess, database: PolicyDatabase) -> None:
    room = f"room-{uuid.uuid4().hex[:12]}"
    database.join("alice", room, writes=True)
    database.join("bob", room)
    alice, bob, carol = (
        HttpApi(with_policies, mint(sub=name, role="authenticated")) for name in ("alice", "bob", "carol")
    )
    clients = (alice, bob, carol, HttpApi(with_policies))
    start = alice.page(room)
    assert [outcome(one.publish(room, 1, durable=True)) for one in clients] == [None] + [FORBIDDEN] * 3
    assert [outcome(one.messages(room)) for one in clients] == [None, None, FORBIDDEN, FORBIDDEN]
    assert [outcome(one.messages("lobby")) for one in clients] == [None] * 4
    with SocketClient(with_policies.url, auth={"token": mint(sub="bob", role="authenticated")}) as reader:
        reader.call("subscribe", {"channel": room, "since": {"epoch": start["epoch"], "position": start["position"]}})
        assert reader.next("event")["payload"] == 1
    assert payloads(bob.page(room, **after(start))) == [1]
    # A role that is not in ALLOWED_ROLES, and a token without a role.
    for claims in ({"role": "postgres"}, {"role": None}):
        assert outcome(HttpApi(with_policies, mint(sub="alice", **claims)).messages(room)) == FORBIDDEN
    # A permission can be revoked.
    database.part("bob", room)
    database.sql("SELECT socketio_pg.recheck(%s)", room)
    until(lambda: outcome(bob.messages(room, **after(start))) is not None, "the permission is revoked")
    assert refusal(bob.messages(room, **after(start))) == FORBIDDEN


def test_batch_is_checked_against_the_policies_of_all_channels(
    with_policies: ServerProcess, database: PolicyDatabase
) -> None:
    """The policies of all channels are checked together, and one refusal rejects the whole batch."""
    rooms = [f"room-{uuid.uuid4().hex[:12]}" for _ in range(120)]
    database.join("dora", *rooms, writes=True)
    dora = HttpApi(with_policies, mint(sub="dora", role="authenticated"))
    start = dora.page(rooms[0])
    messages = [{"channel": room, "payload": 1, "durable": True} for room in rooms]
    answer = dora.publish_together(*messages, {"channel": "elsewhere", "payload": 1, "durable": True})
    assert outcome(answer) == FORBIDDEN
    assert answer.json()["error"]["message"].startswith("messages[120]: ")
    assert outcome(dora.publish_together(*messages)) is None
    with SocketClient(with_policies.url, auth={"token": mint(sub="dora", role="authenticated")}) as reader:
        since = {"epoch": start["epoch"], "position": start["position"]}
        for room in rooms[:3]:
            reader.call("subscribe", {"channel": room, "since": since})
            message = reader.next("event")
            assert (message["channel"], message["payload"]) == (room, 1)
    assert len(dora.page(rooms[0], **after(start))["messages"]) == 1


# -- origins -----------------------------------------------------------------------------------------------------------


def preflight_request(server: ServerProcess, origin: str) -> requests.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return requests.options(f"{server.url}/api/publish", headers=headers, timeout=PATIENCE)


def test_other_origins_are_refused(newest_pg: Cluster, channel: str) -> None:
    with running(newest_pg) as server, SocketClient(server.url) as client:
        client.call("subscribe", {"channel": channel})
        for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.port + 1}", "http://localhost", ""):
            page = HttpApi(server, Origin=origin)
            answers = [page.publish(channel, "forged"), page.messages(channel), preflight_request(server, origin)]
            answers.append(requests.get(f"{server.url}/api/openapi.json", headers={"Origin": origin}, timeout=PATIENCE))
            for answer in answers:
                assert refusal(answer) == FORBIDDEN
                assert "Access-Control-Allow-Origin" not in answer.headers
        own = HttpApi(server, Origin=server.url).publish(channel, "own")
        assert own.status_code == 200
        assert client.next("event")["payload"] == "own"


def test_allowed_origins_get_cors_headers(newest_pg: Cluster, channel: str) -> None:
    origin = "https://app.example"
    with running(newest_pg, CORS_ALLOWED_ORIGINS=origin) as server:
        preflight = preflight_request(server, origin)
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        assert preflight.headers["Access-Control-Allow-Headers"].split(", ")[-2:] == ["Last-Event-ID", "traceparent"]
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        page = HttpApi(server, Origin=origin)
        for answer in (page.publish(channel, 1), page.messages(channel), page.publish("*", 1), page.post(b"x" * 2**21)):
            # Error responses have them too, even when the body was not read, so that the page can read the error.
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "Origin" in answer.headers["Vary"]
        assert refusal(HttpApi(server, Origin="https://other.example").publish(channel, 1)) == FORBIDDEN


# -- limits ------------------------------------------------------------------------------------------------------------


def until_limited(request: Callable[[], requests.Response]) -> requests.Response:
    """Repeat ``request`` until it is rate-limited, and return that answer; this works on slow machines, too."""
    for _ in range(1000):
        answer = request()
        if answer.status_code == LIMITED[0]:
            assert refusal(answer) == LIMITED
            return answer
    raise AssertionError("no request was rate-limited")


def test_messages_per_second_are_limited(newest_pg: Cluster, channel: str) -> None:
    with contextlib.closing(ServerProcess(newest_pg.url(), MAX_EVENTS_PER_SECOND="1", **TOKENS)) as server:
        alice, bob = HttpApi(server, mint(sub="alice")), HttpApi(server, mint(sub="bob"))
        batch = [{"channel": channel, "payload": number} for number in range(5)]
        # Each message of a batch counts, here five at a time. The limit is per client name, not per token.
        assert outcome(alice.publish_together(*batch)) is None
        another = HttpApi(server, mint(sub="alice", jti="another"))
        answer = until_limited(lambda: another.publish_together(*batch))
        assert 1 <= int(answer.headers["Retry-After"]) <= 5
        assert outcome(bob.publish(channel, 1)) is None
        # A client that waits for Retry-After is served, perhaps after a second wait for the whole batch.
        for _ in range(3):
            if answer.status_code == LIMITED[0]:
                time.sleep(int(answer.headers["Retry-After"]))
                answer = alice.publish_together(*batch)
        assert outcome(answer) is None


def test_bytes_per_second_are_limited(newest_pg: Cluster, channel: str) -> None:
    settings = {"MAX_EVENT_BYTES_PER_SECOND": "100", "MAX_PAYLOAD": "50000", "TRUSTED_PROXIES": "1"}
    # Each worker counts for itself.
    with running(newest_pg, "-w", "1", **settings) as server:
        one, other = (HttpApi(server, X_Forwarded_For=address) for address in ("10.0.0.1", "10.0.0.2"))
        assert outcome(one.publish(channel, "x" * 7000)) is None
        assert refusal(one.post(b"x" * 45_000)) == LIMITED
        assert outcome(other.publish(channel, "x" * 7000)) is None
        # The request is refused before its body is read.
        with Connection(server) as connection:
            headers = {"X-Forwarded-For": "10.0.0.1", "Content-Type": "application/json", "Content-Length": "45000"}
            connection.request("POST", "/api/publish", headers)
            assert connection.reply().status == 429
            assert connection.closed()


def test_attempts_per_address_are_limited(newest_pg: Cluster, channel: str) -> None:
    settings = TOKENS | {"MAX_ATTEMPTS_PER_SECOND_PER_ADDRESS": "1"}
    with contextlib.closing(ServerProcess(newest_pg.url(), **settings)) as server:
        guessing = HttpApi(server, mint(secret="x" * 64))
        assert refusal(guessing.publish(channel, 1)) == UNAUTHORIZED
        until_limited(lambda: guessing.publish(channel, 1))
        # Health checks do not count as attempts.
        assert server.get("/healthz")[0] == 200


def test_errors_are_counted(newest_pg: Cluster, channel: str) -> None:
    with running(newest_pg, METRICS_TOKEN="m") as server:
        assert refusal(HttpApi(server).publish("*", 1))[1] == "invalid_channel"
        request = urllib.request.Request(f"{server.url}/metrics", headers={"Authorization": "Bearer m"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert 'socketio_pg_errors_total{code="invalid_channel"} 1.0' in answer.read().decode()


def test_failing_login_function_answers_500(newest_pg: Cluster) -> None:
    with contextlib.closing(ServerProcess(newest_pg.url(), app="tests.support.failing_login_app:app")) as server:
        answer = HttpApi(server).publish("a", 1)
        assert refusal(answer) == (500, "internal")
        assert "s3cret" not in answer.text
        assert "s3cret" in server.log


def test_expired_login_is_refused(newest_pg: Cluster) -> None:
    with contextlib.closing(ServerProcess(newest_pg.url(), app="tests.support.failing_login_app:app")) as server:
        ended, good = (HttpApi(server, X_Ends=str(int(time.time()) + seconds)) for seconds in (-60, 600))
        assert refusal(ended.publish("a", 1)) == UNAUTHORIZED
        assert outcome(good.publish("a", 1)) is None


def test_requests_are_not_logged(required: ServerProcess, channel: str) -> None:
    token = mint(sub="alice")
    HttpApi(required, token).post(json.dumps({"channel": channel, "payload": "s3cret"}).encode())
    HttpApi(required, token + "x").post(b"s3cret")
    assert token[:40] not in required.log
    assert "s3cret" not in required.log
