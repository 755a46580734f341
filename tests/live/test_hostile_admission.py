"""Hostile clients before they are identified: host names, memory, CONNECT packets, floods, slow requests."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.postgres import Cluster
from tests.support.raw_http import GOOD, POLLING, WEBSOCKET, Connection, http, open_session
from tests.support.server import ServerProcess


def running(cluster: Cluster, **settings: str) -> contextlib.closing[ServerProcess]:
    return contextlib.closing(ServerProcess(cluster.url(), DRAIN_SECONDS="0.2", **settings))


# -- host names: DNS rebinding -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def development(postgres18: Cluster) -> Iterator[ServerProcess]:
    with running(postgres18, DEBUG="1") as made:
        yield made


EVIL = {"Host": "evil.example", "Origin": "http://evil.example"}
PATHS = ("/static/test.html", "/", "/api/openapi.json", "/api/channels/foo/messages", "/nothing")


def test_a_rebound_name_reaches_nothing_of_a_development_server(development: ServerProcess) -> None:
    """To the browser, a page of evil.example is of the same origin once that name points at the server."""
    session = open_session(development)
    for path in (POLLING, session, *PATHS):
        reply = http(development, path=path, headers=EVIL)
        assert (reply.status, b"ALLOWED_HOSTS" in reply.body) == (400, True), path
    assert http(development, path=WEBSOCKET, headers=GOOD | EVIL).status == 400
    assert http(development, "POST", session, headers=EVIL, body=b"40").status == 400
    publish = EVIL | {"Content-Type": "application/json"}
    assert http(development, "POST", "/api/publish", publish, b'{"channel":"foo","payload":1}').status == 400
    assert "refused a request to the host 'evil.example'" in development.log
    # Balancers and probes ask by any name.
    assert http(development, path="/healthz", headers=EVIL).status == 200
    assert http(development, path="/readyz", headers=EVIL).status == 200


@pytest.mark.parametrize("host", ["localhost:3030", "a.localhost", "[::1]:80", "192.168.1.7:3030", "LOCALHOST."])
def test_local_names_reach_a_development_server(development: ServerProcess, host: str) -> None:
    assert http(development, headers={"Host": host, "Origin": f"http://{host}"}).status == 200
    assert http(development, path="/static/test.html", headers={"Host": host}).status == 200


def test_missing_or_ambiguous_hosts_are_refused(development: ServerProcess) -> None:
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n", "Host: evil.example\r\nHost: localhost\r\n"):
        with Connection(development) as one:
            one.send(f"GET {POLLING} HTTP/1.1\r\n{hosts}\r\n".encode())
            assert one.reply().status == 400


def test_allowed_hosts_in_production(postgres18: Cluster) -> None:
    with running(postgres18, ALLOWED_HOSTS="app.example,.site.example", TRUSTED_PROXIES="1") as server:
        for host, status in (("app.example", 200), ("a.site.example:8080", 200), ("evil.example", 400),
                             ("127.0.0.1", 400)):  # fmt: skip
            assert http(server, headers={"Host": host}).status == status
            assert http(server, path="/static/test.html", headers={"Host": host}).status == status
        # A page may set X-Forwarded-Host.
        for host, forwarded in (("evil.example", "app.example"), ("app.example", "evil.example")):
            assert http(server, headers={"Host": host, "X-Forwarded-Host": forwarded}).status == 400
