"""Signing in to the inspector: tokens, roles, cookies, tickets, the own machine, and who is refused."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import socketio

from tests.support.clients import SocketClient
from tests.support.inspector import ADMIN_TOKEN, COOKIE, TOKEN, TOKENS, Inspector, InspectorClient, refused
from tests.support.log import Log
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, mint

SETTINGS = TOKENS | {
    "JWT_SECRET": SECRET,
    "AUTH": "optional",
    "INSPECTOR_ROLES": "operator,groups=staff",
    "INSPECTOR_ADMIN_ROLES": "realm_access.roles=boss",
    # For the addresses of clients, in a header.
    "TRUSTED_PROXIES": "1",
    "MAX_FAILED_ATTEMPTS_PER_SECOND_PER_ADDRESS": "1",
}


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "inspector", AUTO_INIT="1", **SETTINGS)
    until(lambda: made.sql("SELECT to_regclass('socketio_pg.cluster_key')") != [(None,)], "the schema is installed")
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def server(log: Log) -> ServerProcess:
    return log.server


@pytest.fixture(scope="module")
def development_log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "inspector_debug", AUTO_INIT="1", DEBUG="1", JWT_SECRET=SECRET, AUTH="optional", **TOKENS)
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def development(development_log: Log) -> ServerProcess:
    """A development server of another cluster, with the same tokens."""
    return development_log.server


def test_nobody_is_anonymous(server: ServerProcess) -> None:
    page = Inspector(server)
    found = page.read("session")
    assert not found["signed_in"]
    assert found["sign_in"] == ["token", "jwt"]
    assert not {"node", "version"} & found.keys()
    assert refused(page.post("ticket")) == (401, "unauthorized")
    assert refused(page.post("login", {"token": "wrong, and long enough"})) == (401, "unauthorized")
    assert refused(page.post("login", {"token": ""})) == (400, "invalid_request")
    assert refused(page.post("login", ["token"])) == (400, "invalid_request")
    assert refused(page.post("login", {"token": "x" * 100_000})) == (413, "payload_too_large")
    assert refused(page.get("nothing")) == (404, "invalid_request")
    assert refused(page.get("login")) == (405, "invalid_request")
    assert refused(page.session.post(f"{page.url}/api/login", data="token=x", timeout=PATIENCE)) == (
        415, "invalid_request",
    )  # fmt: skip
    assert refused(page.get("session", headers={"Authorization": "Bearer nonsense"})) == (401, "unauthorized")
    assert not page.session.cookies


def test_token_signs_in_with_a_cookie_for_the_api_only(server: ServerProcess) -> None:
    page = Inspector(server)
    answer = page.post("login", {"token": TOKEN})
    assert answer.status_code == 200
    assert answer.json() == page.read("session")
    assert (answer.json()["signed_in"], answer.json()["may_act"], answer.json()["by"]) == (True, False, "token")
    assert 11.9 < (answer.json()["until"] - time.time()) / 3600 <= 12
    header = answer.headers["Set-Cookie"]
    assert "HttpOnly" in header
    assert "SameSite=Strict" in header
    # The browser takes the folder of the address, whose prefix the server may not know.
    assert "Path" not in header
    assert "Secure" not in header
    [cookie] = list[Any](page.session.cookies)
    assert cookie.path == "/inspector/api"
    assert page.do("ticket")["seconds"] == 30
    assert not page.do("logout")["signed_in"]
    assert not page.session.cookies
    assert refused(page.post("ticket")) == (401, "unauthorized")


def test_roles_of_tokens(server: ServerProcess) -> None:
    def session(**claims: Any) -> tuple[bool, bool, str]:
        found = Inspector(server, mint(sub="ann", **claims)).read("session")
        return found["signed_in"], found["may_act"], found["name"]

    assert session(role="operator") == (True, False, "ann")
    assert session(groups=["x", "staff"]) == (True, False, "ann")
    assert session(realm_access={"roles": ["boss"]}) == (True, True, "ann")
    wrong: list[dict[str, Any]] = [{}, {"role": "boss"}, {"groups": "staffer"}, {"realm_access": "boss"}]
    for claims in wrong:
        assert refused(Inspector(server, mint(**claims)).get("session")) == (403, "forbidden")
    assert refused(Inspector(server, mint(role="operator", exp=time.time() - 60)).get("session")) == (
        401, "unauthorized",
    )  # fmt: skip


def test_sign_in_ends_with_the_token(server: ServerProcess) -> None:
    page = Inspector(server)
    found = page.do("login", {"token": mint(role="operator", exp=time.time() + 8)})
    assert found["until"] <= time.time() + 8
    kept = page.session.cookies[COOKIE]
    until(lambda: not page.read("session")["signed_in"], "the sign-in ends")
    # Also for a client that ignores the cookie's lifetime.
    answer = requests.get(f"{page.url}/api/session", headers={"Cookie": f"{COOKIE}={kept}"}, timeout=PATIENCE)
    assert not answer.json()["signed_in"]


def test_tokens_and_conditions_are_for_development(development_log: Log) -> None:
    page = Inspector(development_log.server)
    made = page.do("token", {"claims": {"sub": "tim"}, "seconds": 60})
    assert made["expires_at"] == pytest.approx(time.time() + 60, abs=30)
    with SocketClient(development_log.server.url, auth={"token": made["token"]}) as tim:
        assert tim.call("subscribe", {"channel": "user:tim"})["ok"]
    wrong: list[dict[str, Any]]
    wrong = [{"claims": {}, "seconds": 2_592_001}, {"claims": []}, {"claims": {"exp": 9}}, {"claims": {"sub": 1}}]
    for body in wrong:
        assert refused(page.post("token", body)) == (400, "invalid_request")
    until(lambda: development_log.sql("SELECT to_regclass('socketio_pg.watches')") != [(None,)], "the log is there")
    development_log.sql("CREATE TABLE things (id int PRIMARY KEY)")
    on = page.do("watches/set", {"table": "public.things", "enabled": True, "when": "new.id > 5"})
    assert "id > 5" in on["watch"]["when"]


def test_cookie_is_good_in_its_cluster_only(server: ServerProcess, development: ServerProcess) -> None:
    page = Inspector(server)
    page.do("login", {"token": ADMIN_TOKEN})
    kept = page.session.cookies[COOKIE]
    # The same tokens, and another cluster key. From another origin, so that it is no developer on the own machine.
    headers = {"Cookie": f"{COOKIE}={kept}", "X-Forwarded-For": "192.0.2.1"}
    there = requests.get(f"{development.url}/inspector/api/session", headers=headers, timeout=PATIENCE)
    assert not there.json()["signed_in"]
    for bad in (kept[:-4], kept[:40] + "AAAA" + kept[44:], "", "é", "A" * 5000):
        answer = requests.get(
            f"{page.url}/api/session", headers={"Cookie": f"{COOKIE}={bad}".encode()}, timeout=PATIENCE
        )
        assert (answer.status_code, answer.json()["signed_in"]) == (200, False)


def test_other_pages_can_do_nothing(server: ServerProcess, development: ServerProcess) -> None:
    page = Inspector(server)
    page.do("login", {"token": ADMIN_TOKEN})
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert refused(page.post("ticket", headers=headers)) == (403, "forbidden")
        assert not page.read("session", headers=headers)["signed_in"]
    silent = page.session.post(f"{page.url}/api/ticket", json={}, timeout=PATIENCE)
    assert refused(silent) == (403, "forbidden")
    here = Inspector(development)
    found = here.read("session")
    assert (found["by"], found["may_act"], found["until"]) == ("development", True, None)
    assert not here.read("session", headers={"Origin": "http://localhost:5173"})["signed_in"]
    for header in ({"Host": "evil.example"}, {"Host": f"127.0.0.1.nip.io:{development.port}"}):
        answer = here.get("session", headers=header)
        assert answer.status_code == 400 or not answer.json()["signed_in"]
    for header in ({"X-Forwarded-For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}):
        assert not here.read("session", headers=header)["signed_in"]
    InspectorClient(development.url).close()
    for header in ({"Origin": "http://localhost:5173"}, {"X-Forwarded-For": "192.0.2.1"}):
        with pytest.raises(socketio.exceptions.ConnectionError):
            InspectorClient(development.url, headers=header, reconnection=False)


def test_files_have_a_strict_policy_and_need_no_sign_in(server: ServerProcess) -> None:
    redirect = requests.get(f"{server.url}/inspector", allow_redirects=False, timeout=PATIENCE)
    assert (redirect.status_code, redirect.headers["Location"]) == (302, "inspector/")
    missing = requests.get(f"{server.url}/inspector/nothing.js", timeout=PATIENCE)
    assert missing.status_code == 404
    for path in ("", "nothing.js", "%2e%2e%2ftest.html", "..%5ctest.html", "api/session"):
        answer = requests.get(f"{server.url}/inspector/{path}", timeout=PATIENCE)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "test.js" not in answer.text


def test_wrong_tokens_of_one_address_are_throttled(server: ServerProcess) -> None:
    guesser = {"X-Forwarded-For": "203.0.113.7"}
    page = Inspector(server)
    found = {refused(page.post("login", {"token": f"a wrong token {n}"}, headers=guesser)) for n in range(15)}
    assert found == {(401, "unauthorized"), (429, "rate_limited")}
    # Not even the right one is accepted then, in any way; others may sign in.
    script = Inspector(server, TOKEN)
    assert refused(page.post("login", {"token": TOKEN}, headers=guesser)) == (429, "rate_limited")
    assert refused(script.get("now", headers=guesser)) == (429, "rate_limited")
    with pytest.raises(socketio.exceptions.ConnectionError):
        InspectorClient(server.url, auth={"token": TOKEN}, headers=guesser, reconnection=False)
    assert script.read("session", headers={"X-Forwarded-For": "203.0.113.8"})["signed_in"]


def test_cookie_is_secure_over_https(server: ServerProcess) -> None:
    page = Inspector(server)
    headers = {"X-Forwarded-Proto": "https", "Origin": server.url.replace("http:", "https:")}
    answer = page.post("login", {"token": TOKEN}, headers=headers)
    assert "Secure" in answer.headers["Set-Cookie"]
    assert refused(page.post("login", {"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})) == (403, "forbidden")


def test_off_without_a_setting(live_server: ServerProcess) -> None:
    for path in ("", "/", "/api/session", "/api/login"):
        answer = requests.get(f"{live_server.url}/inspector{path}", timeout=PATIENCE)
        assert answer.status_code == 404
        assert "INSPECTOR_TOKEN" in answer.text
