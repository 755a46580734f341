"""The server under a prefix that a proxy removes or keeps, and the path of Socket.IO without its last slash."""

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from playwright.sync_api import Browser, expect

from tests.support.inspector import TOKEN, TOKENS, Inspector, InspectorClient
from tests.support.nightly import sampled
from tests.support.nodes import Nginx
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.raw_http import GOOD, Connection, http
from tests.support.server import ROOT, ServerProcess

#: The prefix of docs/deploy.md, which nginx removes, and one that it keeps.
PREFIXES = ("/rt", "/kept")

KEPT = """
    location /kept {
        proxy_pass http://by_load;
        proxy_set_header SCRIPT_NAME /kept;  # in place of gunicorn's variable, for this prefix only
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header Host $http_host;
    }
"""


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(newest_pg.url(), DEBUG="1", DRAIN_SECONDS="0.2", TRUSTED_PROXIES="1", **TOKENS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def nginx(server: ServerProcess) -> Iterator[Nginx]:
    [documented] = re.findall(
        r"```nginx\n(location /rt/.*?)```", (ROOT / "docs" / "deploy.md").read_text("utf-8"), re.DOTALL
    )
    made = Nginx([server.port], locations=documented + KEPT)
    yield made
    made.close()


@pytest.mark.parametrize("prefix", sampled(PREFIXES, lambda prefix: prefix == PREFIXES[0]))
def test_pages_connect_and_load_nothing_from_outside_the_prefix(nginx: Nginx, chromium: Browser, prefix: str) -> None:
    page = chromium.new_page()
    loaded: list[tuple[str, int]] = []
    page.on("response", lambda response: loaded.append((response.url, response.status)))
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    try:
        for entry in ("/", "/socket-test"):
            page.goto(f"{nginx.url}{prefix}{entry}")
            assert page.url == f"{nginx.url}{prefix}/static/test.html"
        page.goto(f"{nginx.url}{prefix}/demo/")
        addresses, visited = {page.url, f"{nginx.url}{prefix}/"}, set[str]()
        for _ in range(2):  # the pages, and those that they link to
            for address in sorted(addresses - visited):
                visited.add(address)
                page.goto(address)
                addresses |= set(page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"))
                # Behind a proxy the inspector wants a token, also with DEBUG.
                if page.locator("#status").count() and "/inspector/" not in address:
                    expect(page.locator("#status")).to_have_attribute("data-state", "connected")
    finally:
        page.close()
    assert {urlsplit(url).path for url in addresses} >= {f"{prefix}/demo/chat.html", f"{prefix}/static/test.html"}
    ours = [(urlsplit(url).path, status) for url, status in loaded if url.startswith(nginx.url)]
    assert [found for found in ours if found[1] >= 400 or not found[0].startswith(f"{prefix}/")] == []
    assert {urlsplit(url).path for url in sockets} == {f"{prefix}/socket.io/"}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_openapi_document_leads_to_the_api(nginx: Nginx, prefix: str) -> None:
    address = f"{nginx.url}{prefix}/api/openapi.json"
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        document = json.load(answer)
    base = urljoin(address, document["servers"][0]["url"]).rstrip("/")
    assert base == nginx.url + prefix
    body = json.dumps({"channel": "anything", "payload": 1}).encode()
    request = urllib.request.Request(f"{base}/api/publish", body, {"Content-Type": "application/json"})
    assert "/api/publish" in document["paths"]
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 200


def test_prefix_without_a_slash_leads_to_the_page(server: ServerProcess) -> None:
    reply = http(server, path="/kept", headers={"SCRIPT_NAME": "/kept"})
    assert reply.status in (301, 302, 308)
    assert urlsplit(urljoin("http://x/kept", reply.headers["location"])).path in ("/kept/", "/kept/socket-test")


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_socket_io_without_the_last_slash(server: ServerProcess, nginx: Nginx, prefix: str) -> None:
    for place in (nginx, server) if not prefix else (nginx,):
        with Connection(place) as connection:
            connection.request("GET", f"{prefix}/socket.io?EIO=4&transport=polling")
            reply = connection.reply()
            assert reply.status == 200, reply.body
            path = f"{prefix}/socket.io?EIO=4&transport=polling&sid={json.loads(reply.body[1:])['sid']}"
            connection.request("POST", path, body=b"40")
            assert connection.reply().body == b"ok"
        with Connection(place) as connection:
            connection.request("GET", f"{prefix}/socket.io?EIO=4&transport=websocket", GOOD)
            assert connection.reply().status == 101
    assert http(server, path="/socket.ioX?EIO=4&transport=polling").status == 404


@pytest.mark.parametrize("prefix", sampled(PREFIXES, lambda prefix: prefix == PREFIXES[0]))
def test_inspector_is_signed_in_to_under_the_prefix(nginx: Nginx, prefix: str) -> None:
    redirect = requests.get(f"{nginx.url}{prefix}/inspector", allow_redirects=False, timeout=PATIENCE)
    assert urljoin(redirect.url, redirect.headers["Location"]) == f"{nginx.url}{prefix}/inspector/"
    page = Inspector(nginx, prefix=prefix)
    # Nobody is at the own machine behind a proxy, also not with DEBUG.
    assert not page.read("session")["signed_in"]
    page.do("login", {"token": TOKEN})
    assert page.read("session")["signed_in"]
    [cookie] = list[Any](page.session.cookies)
    assert cookie.path == f"{prefix}/inspector/api"
    ticket = page.do("ticket")["ticket"]
    client = InspectorClient(nginx.url, socketio_path=f"{prefix}/socket.io", auth={"ticket": ticket})
    assert client.do("now", on=True) == {"ok": True}
    client.close()
