"""Who may open a stream: tokens, tickets and their cookie, policies that change, limits, other origins."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.support.patience import PATIENCE, until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.sse import RefusedError, Stream, stream_path
from tests.support.tokens import Result, ending_soon, mint

APP = "tests.support.streams_app:app"
SETTINGS = RLS | {"JWT_LEEWAY": "0", "PERMISSION_RECHECK_SECONDS": "0", "CORS_ALLOWED_ORIGINS": "https://app.example"}


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    return PolicyDatabase(newest_pg, "live_streams_policies")


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    """Tickets are good for a few seconds without their cookie; one address may have eight streams."""
    settings = SETTINGS | {"TICKET_SECONDS": "3", "MAX_CONNECTIONS_PER_ADDRESS": "8"}
    with contextlib.closing(ServerProcess(database.server_url, app=APP, **settings)) as made:
        yield made


@pytest.fixture
def room(database: PolicyDatabase, channel: str) -> str:
    database.join("alice", channel)
    return channel


def token(sub: str = "alice", **claims: Any) -> str:
    return mint(sub=sub, role="authenticated", **claims)


def get_ticket(server: ServerProcess, *channels: str, by: str | None = None) -> requests.Response:
    headers = {"Authorization": f"Bearer {by or token()}"}
    return requests.post(f"{server.url}/api/tickets", json={"channels": channels}, headers=headers, timeout=PATIENCE)


def with_ticket(server: ServerProcess, channel: str, use: Callable[[str], Result | None]) -> Result:
    """Call ``use`` with new tickets until it returns a result. None says that the ticket was used too late."""
    for _ in range(20):
        result = use(get_ticket(server, channel).json()["ticket"])
        if result is not None:
            return result
    raise AssertionError("each ticket is refused")


def refused(server: ServerProcess, *channels: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(RefusedError) as error:
        Stream(server.url, *channels, **options)
    return error.value.status, error.value.code


def test_policies_decide_and_a_lost_permission_ends_the_stream(
    server: ServerProcess, database: PolicyDatabase, room: str
) -> None:
    assert refused(server, room) == (401, "unauthorized")
    assert refused(server, room, token="forged") == (401, "unauthorized")
    assert refused(server, room, token=token("bob")) == (403, "forbidden")
    assert refused(server, "user:alice", room, "user:bob", token=token()) == (403, "forbidden")
    with Stream(server.url, room, "user:alice", token=token()) as stream:
        stream.until("subscribed")
        database.sql("SELECT socketio_pg.publish(%s, '1')", room)
        assert stream.payloads(1) == [1]
        database.sql("DELETE FROM members WHERE room = %s", room)
        database.sql("SELECT socketio_pg.recheck(%s)", room)
        ended = stream.until("error")
        assert (ended.json["code"], ended.json["channel"]) == ("forbidden", room)
        stream.wait_end()
    assert refused(server, room, token=token(), last_id=stream.parser.last_id) == (403, "forbidden")


def test_a_stream_ends_with_its_token(server: ServerProcess, room: str) -> None:
    def opened(exp: int) -> Stream | None:
        with contextlib.suppress(RefusedError):
            return Stream(server.url, room, token=token(exp=exp))
        return None

    with ending_soon(opened) as stream:
        assert [stream.next().name for _ in range(2)] == ["subscribed", "token_expiring"]
        ended = stream.next()
        assert (ended.name, ended.json["code"]) == ("error", "unauthorized")
        stream.wait_end()


def test_a_ticket_is_for_its_channels_and_its_first_seconds(server: ServerProcess, room: str) -> None:
    assert get_ticket(server, room, by=token("bob")).status_code == 403
    assert get_ticket(server, room, by="forged").status_code == 401
    assert get_ticket(server, room).json()["expires_in"] == 3

    def opened(ticket: str) -> tuple[str, str] | None:
        with contextlib.suppress(RefusedError), Stream(server.url, room, ticket=ticket) as stream:
            return ticket, stream.answer.headers["Set-Cookie"]
        return None

    def other_channel(ticket: str) -> tuple[int, str] | None:
        found = refused(server, "user:alice", ticket=ticket)
        return None if found[0] == 401 else found

    ticket, cookie = with_ticket(server, room, opened)
    assert "HttpOnly; SameSite=Strict" in cookie
    assert with_ticket(server, room, other_channel) == (403, "forbidden")
    url = f"{server.url}{stream_path(room, ticket=ticket)}"

    def status(**headers: str) -> int:
        return requests.head(url, headers=headers, timeout=PATIENCE).status_code

    until(lambda: status() == 401, "the ticket alone is no longer good")
    assert status(Cookie=cookie.partition(";")[0]) == 200
    assert status(Cookie="socketio_pg_stream=forged") == 401


def test_pages_of_other_origins(server: ServerProcess, room: str) -> None:
    origin = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}

    def opened(ticket: str) -> requests.Response | None:
        url = f"{server.url}{stream_path(room, ticket=ticket)}"
        answer = requests.get(url, headers=origin, stream=True, timeout=PATIENCE)
        return None if answer.status_code == 401 else answer

    with with_ticket(server, room, opened) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert answer.headers["Set-Cookie"].endswith("; SameSite=None; Secure; Partitioned")
    evil = requests.get(answer.url, headers={"Origin": "https://evil.example"}, timeout=PATIENCE)
    assert evil.status_code == 403


def test_a_full_server_tells_clients_when_to_come_back(server: ServerProcess, room: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(Stream(server.url, room, token=token())).until("subscribed")
        with Stream(server.url, room, token=token()) as stream:
            assert stream.next().json["code"] == "rate_limited"
            stream.wait_end()
            assert 3_000 <= (stream.parser.retry or 0) <= 9_000

    def has_room() -> bool:
        with Stream(server.url, room, token=token()) as stream:
            return stream.next().name == "subscribed"

    until(has_room, "streams that have ended leave room")
