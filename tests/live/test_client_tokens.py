"""socketio_pg.js under Node and the two Python subscribers, connected to a server that requires tokens."""

import contextlib
import copy
import json
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from socketio_pg.core.errors import AuthenticationUnavailableError, ForbiddenError, SocketIOPGError, UnauthorizedError
from socketio_pg.subscriber.subscriber import Message, Subscriber
from tests.support.clock import set_clock
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.replay_clients import Asyncio, JavaScript, Python, Refused, Tokens
from tests.support.server import ServerProcess

SECRET = "a secret of the tests, 32 bytes and more"

Kind = Callable[[str, Tokens], JavaScript | Python | Asyncio]


def token(seconds: float, name: str = "alice", **claims: Any) -> str:
    """Return a token that expires in ``seconds``. It allows all channels unless ``claims`` restrict it."""
    allowed = {"subscribe": ["*"], "publish": ["*"]} | claims
    return jwt.encode({"sub": name, "exp": int(time.time() + seconds)} | allowed, SECRET, algorithm="HS256")


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(
        newest_pg.url(), app="tests.support.watched_app:app", JWT_SECRET=SECRET, JWT_LEEWAY="0",
        AUTHORIZATION="claims", DRAIN_SECONDS="0.2",
    )  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def expire(server: ServerProcess) -> Iterator[Callable[[], None]]:
    """Let the next minute pass for the server, which ends tokens of that time."""
    yield lambda: set_clock(server, 60)
    set_clock(server)


@pytest.fixture(params=[JavaScript, Python, pytest.param(Asyncio, marks=pytest.mark.nightly)])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def kinds(pytestconfig: pytest.Config) -> list[Kind]:
    """All kinds, for tests that wait for tokens to expire: their clients wait together."""
    return [JavaScript, Python, *([Asyncio] if pytestconfig.getoption("nightly") else [])]


def payload(client: JavaScript | Python | Asyncio, name: str) -> Any:
    return client.next("message", name)[0]["payload"]


def test_short_tokens_are_renewed_without_a_reconnect(
    server: ServerProcess, newest_pg: Cluster, kinds: list[Kind], channel: str
) -> None:
    tokens: Tokens = {
        "connecting": [token(14, "first"), ""],
        "renewing": [token(18, "second"), token(22, "third"), token(3600, "last")],
    }
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(kind(server.url, copy.deepcopy(tokens)))) for kind in kinds]
        for client in clients:
            client.subscribe("one", channel)
        for client in clients:
            client.wait_renewed("last")
        # Another connection would fail: the clients have no further token for connecting.
        newest_pg.notify(channel, "1")
        for client in clients:
            assert payload(client, "one") == 1


def test_failed_renewal_is_retried(server: ServerProcess, kinds: list[Kind], channel: str) -> None:
    first = token(16)
    tokens: Tokens = {
        "connecting": [first, ""],
        # The token function raises, returns an expired token, then the old one: the client retries each time.
        "renewing": ["", token(-5), first, token(3600, "last")],
    }
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(kind(server.url, copy.deepcopy(tokens)))) for kind in kinds]
        for client in clients:
            client.subscribe("one", channel)
        for client in clients:
            client.wait_renewed("last")
            if isinstance(client, JavaScript):
                errors = [client.wait_line("token error") for _ in range(3)]
                assert [error["code"] for error in errors] == ["no_token", "unauthorized", "no_token"]
                assert all(error["retrying"] and error["connected"] for error in errors)


def test_client_reconnects_with_another_token_after_expiry(
    server: ServerProcess, newest_pg: Cluster, kind: Kind, channel: str, expire: Callable[[], None]
) -> None:
    tokens: Tokens = {"connecting": [token(60), token(3600)], "renewing": [""]}
    with contextlib.closing(kind(server.url, tokens)) as client:
        client.subscribe("one", channel)
        expire()
        assert client.next("gap", "one")[0]["reason"] == "client_disconnected"
        newest_pg.notify(channel, "1")
        assert payload(client, "one") == 1


def test_token_expired_on_arrival_is_retried(server: ServerProcess, kind: Kind, channel: str) -> None:
    tokens: Tokens = {"connecting": [token(-5), "", token(-5), token(3600)], "renewing": [""]}
    with contextlib.closing(kind(server.url, tokens)) as client:
        client.subscribe("one", channel)
        if isinstance(client, JavaScript):
            errors = [client.wait_line("token error") for _ in range(3)]
            assert [error["code"] for error in errors] == ["unauthorized", "no_token", "unauthorized"]
            assert all(error["retrying"] and not error["connected"] for error in errors)


def test_client_retries_while_keys_are_unavailable(
    newest_pg: Cluster, kind: Kind, channel: str, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    good = jwt.encode({"sub": "alice", "exp": int(time.time()) + 3600}, key, algorithm="ES256")
    keys = tmp_path / "keys.json"
    server = ServerProcess(newest_pg.url(), JWKS_URL=str(keys))
    tokens: Tokens = {"connecting": [good], "renewing": [""]}
    with contextlib.closing(server), contextlib.closing(kind(server.url, tokens)) as client:
        if isinstance(client, JavaScript):
            error = client.wait_line("token error")
            assert (error["code"], error["retrying"]) == ("authentication_unavailable", True)
        else:
            with pytest.raises(AuthenticationUnavailableError):
                Subscriber(server.url, token=good)
        public = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        keys.write_text(json.dumps({"keys": [public]}))
        client.subscribe("one", channel)


def test_forbidden_channel_is_requested_once_and_others_continue(
    server: ServerProcess, newest_pg: Cluster, kind: Kind, channel: str, expire: Callable[[], None]
) -> None:
    allowed = [f"{channel}*"]
    tokens: Tokens = {"connecting": [token(60, subscribe=allowed), token(3600, subscribe=allowed)], "renewing": [""]}
    with contextlib.closing(kind(server.url, tokens)) as client:
        client.subscribe("one", channel)
        with pytest.raises(Refused, match="forbidden"):
            client.subscribe("other", "other")
        if isinstance(client, JavaScript):
            assert client.ended("other") == "forbidden"
        client.subscribe("two", f"{channel}-2")
        expire()
        for name in ("one", "two"):
            assert client.next("gap", name)[0]["reason"] == "client_disconnected"
        newest_pg.notify(channel, "1")
        assert payload(client, "one") == 1
        # Each request is answered before a later one of the same channel is sent.
        with pytest.raises(Refused, match="forbidden"):
            client.subscribe("again", "other")
        if isinstance(client, JavaScript):
            assert client.ended("again") == "forbidden"
            assert not [line for line in client._node.lines if line["kind"] == "error"]


def test_subscription_no_longer_allowed_ends_and_others_continue(
    server: ServerProcess, newest_pg: Cluster, kinds: list[Kind], channel: str
) -> None:
    mine, other = f"{channel}-mine", f"{channel}-other"

    def tokens() -> Tokens:
        # A client renews its token after a sixth of its life at the earliest; until then it has to subscribe.
        return {
            "connecting": [token(24, "both", subscribe=[mine, other]), ""],
            "renewing": [token(28, "one", subscribe=[mine]), token(3600, "both again", subscribe=[mine, other])],
        }

    clients = []
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            client = stack.enter_context(contextlib.closing(kind(server.url, tokens())))
            clients.append(client)
            client.subscribe("mine", mine)
            client.subscribe("other", other)
            client.subscribe("other too", other)
        for client in clients:
            assert client.ended("other") == client.ended("other too") == "forbidden"
        newest_pg.notify(mine, "1")
        for client in clients:
            assert payload(client, "mine") == 1
            client.wait_renewed("both again")
            client.subscribe("new", other)
        newest_pg.notify(other, "2")
        newest_pg.notify(mine, "3")
        for client in clients:
            assert payload(client, "new") == 2
            assert payload(client, "mine") == 3


# --- Differences between the clients --------------------------------------------------------------------------------


def test_javascript_stops_after_repeated_refusals_and_can_be_restarted(server: ServerProcess, channel: str) -> None:
    with contextlib.closing(JavaScript(server.url, {"connecting": [token(-5)], "renewing": [""]})) as client:
        for _ in range(2):
            errors = [client.wait_line("token error") for _ in range(3)]
            assert {error["code"] for error in errors} == {"unauthorized"}
            assert [error["retrying"] for error in errors] == [True, True, False]
            assert client.call("timers") == 0
            client.call("connect")
        client.call("tokens", connecting=[token(3600)])
        client.call("disconnect")
        client.call("connect")
        client.subscribe("one", channel)


def test_javascript_does_not_reconnect_after_disconnect(server: ServerProcess, channel: str) -> None:
    with contextlib.closing(JavaScript(server.url, {"connecting": [""], "renewing": [""]})) as client:
        for _ in range(3):
            assert client.wait_line("token error")["retrying"] is True
        client.call("disconnect")
        assert client.call("timers") == 0
        client.call("tokens", connecting=[token(3600, "bob")])
        client.call("connect")
        assert client.wait_line("hello")["client"] == "bob"


def test_javascript_reports_a_missing_token_immediately(server: ServerProcess) -> None:
    tokens: Any = {"connecting": [None], "renewing": [None]}
    with contextlib.closing(JavaScript(server.url, tokens)) as client:
        error = client.wait_line("token error")
        assert (error["code"], error["retrying"]) == ("unauthorized", False)


def test_python_raises_the_errors_of_the_server(server: ServerProcess, channel: str) -> None:
    with pytest.raises(UnauthorizedError, match="required"):
        Subscriber(server.url)
    with pytest.raises(UnauthorizedError, match="expired"):
        Subscriber(server.url, token=token(-5))
    with pytest.raises(ZeroDivisionError):
        Subscriber(server.url, token=lambda: str(1 / 0))
    # An application's own `auth` stays unchanged.
    with pytest.raises(UnauthorizedError, match="expired"):
        Subscriber(server.url, token=token(3600), auth={"token": token(-5)})
    with Subscriber(server.url, token=token(3600, subscribe=[channel], publish=[channel])) as subscriber:
        subscriber.subscribe(channel, print)
        subscriber.publish(channel, 1)
        with pytest.raises(ForbiddenError):
            subscriber.publish(f"{channel}-other", 1)


def test_python_stops_when_its_token_remains_refused(
    server: ServerProcess, newest_pg: Cluster, channel: str, expire: Callable[[], None]
) -> None:
    received: queue.Queue[Message] = queue.Queue()
    errors: queue.Queue[SocketIOPGError] = queue.Queue()
    with Subscriber(server.url, token=token(60), reconnection_delay=0.1, timeout=PATIENCE) as subscriber:
        subscriber.subscribe(channel, received.put, on_error=errors.put)
        newest_pg.notify(channel, "1")
        assert received.get(timeout=PATIENCE)["payload"] == 1
        expire()
        with pytest.raises(UnauthorizedError, match="expired"):
            subscriber.wait(PATIENCE)
        assert isinstance(errors.get(timeout=PATIENCE), UnauthorizedError)
        with pytest.raises(UnauthorizedError, match="expired"):
            subscriber.subscribe(channel, print)
        with pytest.raises(UnauthorizedError, match="expired"):
            subscriber.publish(channel, 1)
    assert subscriber.wait(0)
