"""Hostile clients before they are identified: host names, memory, CONNECT packets, floods, slow requests."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.clients import SocketClient, code, refused
from tests.support.demo_page import CLIENT_FILE
from tests.support.frames import BINARY, CONTINUATION, TEXT, frame
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.raw_http import GOOD, POLLING, WEBSOCKET, Connection, WebSocket, http, open_session
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm
from tests.support.tokens import SECRET, mint


def running(cluster: Cluster, **settings: str) -> contextlib.closing[ServerProcess]:
    return contextlib.closing(ServerProcess(cluster.url(), DRAIN_SECONDS="0.2", **settings))


@pytest.fixture(scope="module")
def development(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with running(newest_pg, DEBUG="1") as made:
        yield made


# -- origins -----------------------------------------------------------------------------------------------------------


class Vite(BaseHTTPRequestHandler):
    """Serves an empty page, in place of a development server for pages such as Vite."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Vite</title>")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def vite() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Vite) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("transports", sampled(["websocket", "polling"], lambda name: name == "websocket"))
def test_page_of_another_development_server_connects(
    chromium: Browser, development: ServerProcess, vite: str, transports: str
) -> None:
    """The page has another port and so another origin."""
    page = chromium.new_page()
    try:
        page.goto(f"{vite}/")
        page.add_script_tag(content=CLIENT_FILE.read_text("utf-8"))
        connected = page.evaluate(
            """([url, transports]) => new Promise((resolve) => {
                const socket = io(url, { transports: [transports] });
                socket.on("connect", () => { socket.close(); resolve("connected"); });
                socket.on("connect_error", (error) => resolve(error.message));
            })""",
            [development.url, transports],
        )
        assert connected == "connected"
    finally:
        page.close()


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://localhost:5173", True), ("http://127.0.0.1:8080", True), ("https://evil.example", False)],
)
def test_pages_of_the_own_machine_reach_a_development_server(
    development: ServerProcess, origin: str, allowed: bool
) -> None:
    reply = http(development, headers={"Origin": origin})
    assert (reply.status, reply.headers.get("access-control-allow-origin")) == (
        (200, origin) if allowed else (400, None)
    )
    assert http(development, path=WEBSOCKET, headers=GOOD | {"Origin": origin}).status == (101 if allowed else 400)
    reply = http(development, path="/api/channels/foo/messages", headers={"Origin": origin})
    assert ("access-control-allow-origin" in reply.headers) is allowed


# -- host names: DNS rebinding -----------------------------------------------------------------------------------------


EVIL = {"Host": "evil.example", "Origin": "http://evil.example"}
PATHS = ("/static/test.html", "/", "/api/openapi.json", "/api/channels/foo/messages", "/nothing")


def test_a_rebound_name_reaches_nothing_of_a_development_server(development: ServerProcess) -> None:
    """To the browser, a page of evil.example is of the same origin once that name points at the server."""
    session = open_session(development)
    for path in (POLLING, session, *PATHS):
        reply = http(development, path=path, headers=EVIL)
        assert (reply.status, b"ALLOWED_HOSTS" in reply.body) == (400, True), path
        if path.startswith("/api/"):
            assert reply.json["error"]["code"] == "invalid_request"
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


def test_allowed_hosts_in_production(newest_pg: Cluster) -> None:
    with running(newest_pg, ALLOWED_HOSTS="app.example,.site.example", TRUSTED_PROXIES="1") as server:
        for host, status in (("app.example", 200), ("a.site.example:8080", 200), ("evil.example", 400),
                             ("127.0.0.1", 400)):  # fmt: skip
            assert http(server, headers={"Host": host}).status == status
            assert http(server, path="/static/test.html", headers={"Host": host}).status == status
        # A page may set X-Forwarded-Host.
        for host, forwarded in (("evil.example", "app.example"), ("app.example", "evil.example")):
            assert http(server, headers={"Host": host, "X-Forwarded-Host": forwarded}).status == 400


# -- memory before CONNECT is answered ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(newest_pg: Cluster) -> Iterator[ServerProcess]:
    """A server whose login takes as long as the client wants."""
    settings = {"SLOW_LOGIN": "1", "CONNECT_TIMEOUT": "60", "BINARY": "1"}
    with contextlib.closing(
        ServerProcess(newest_pg.url(), app="tests.support.slow_app:app", DRAIN_SECONDS="0.2", **settings)
    ) as made:
        yield made


def state(server: ServerProcess) -> dict[str, int]:
    found: dict[str, int] = json.loads(server.get("/memory")[1])
    return found


LARGE = 64_000
#: What a client sends after a CONNECT whose answer takes a while: name, frames, and whether the server closes.
STUFFING: dict[str, tuple[list[bytes], bool]] = {
    "large packets": ([frame(TEXT, b"40/custom," + b"x" * LARGE)] * 100, True),
    "large events": ([frame(TEXT, b'42["x","' + b"x" * LARGE + b'"]')] * 100, True),
    "small packets": ([frame(TEXT, b"42[%d]" % number) * 100 for number in range(200)], True),
    "wide text": ([frame(TEXT, f'42["{"x" * 20_000}\U0001f600"]'.encode())] * 100, True),
    "binary messages": ([frame(BINARY, b"x" * LARGE)] * 100, True),
    "attachments": ([frame(TEXT, b'451-["x",{"_placeholder":true,"num":0}]'), frame(BINARY, b"x" * LARGE)] * 9, True),
    "fragments": ([frame(TEXT, b"4", final=False), *[frame(CONTINUATION, b"x" * 30_000, final=False)] * 40], True),
    "a large frame": ([frame(TEXT, b"x" * 900_000)], True),
    "an incomplete message": ([frame(TEXT, b"4" + b"x" * 60_000, final=False)], False),
}  # fmt: skip


@pytest.mark.parametrize("kind", STUFFING)
def test_memory_is_bounded_until_connect_is_answered(slow: ServerProcess, kind: str) -> None:
    stuff(slow, *STUFFING[kind])


def test_memory_is_bounded_while_the_application_decides(newest_pg: Cluster) -> None:
    """The client is identified, and the application's connect handler takes its time."""
    with contextlib.closing(
        ServerProcess(newest_pg.url(), app="tests.support.slow_app:app", DRAIN_SECONDS="0.2", SLOW_CONNECT="20")
    ) as server:
        stuff(server, *STUFFING["large packets"])


def stuff(slow: ServerProcess, frames: list[bytes], closes: bool) -> None:
    number = 40
    before = state(slow)
    ones = [WebSocket(slow) for _ in range(number)]
    for one in ones:
        one.text('40{"seconds":20}')
        one.socket.settimeout(0.5)
        with contextlib.suppress(OSError):
            for data in frames:
                one.send(data)
    grown = (state(slow)["kilobytes"] - before["kilobytes"]) / number
    print(f"{grown:.0f} KB a connection")
    assert grown < 250, "64 KB, and the connection itself"
    for one in ones:
        one.socket.settimeout(PATIENCE)
        if closes:
            assert one.close_code() in (1009, None), "None: reset, as the server does not read what it refuses"
        one.socket.close()
    until(lambda: state(slow)["sockets"] <= before["sockets"], "the end of all sessions")


def test_logins_of_clients_that_have_left_are_bounded(newest_pg: Cluster) -> None:
    """Each worker bounds its own."""
    settings = {"SLOW_LOGIN": "1", "MAX_CONNECTIONS": "20", "DRAIN_SECONDS": "0.2"}
    with contextlib.closing(
        ServerProcess(newest_pg.url(), "-w", "1", app="tests.support.slow_app:app", **settings)
    ) as server:
        for number in range(1, 21):
            with WebSocket(server) as one:
                one.text('40{"seconds":null}')
                until(lambda number=number: state(server)["identifying"] >= number, "the login")  # type: ignore[misc]
        until(lambda: state(server)["sockets"] == 0, "the end of the sessions")
        assert http(server).status == 503
        assert server.get("/release")[0] == 200
        until(lambda: http(server).status == 200, "the end of the logins")


def test_after_connect_the_usual_limits_apply(slow: ServerProcess) -> None:
    with WebSocket(slow) as one:
        one.text('40{"seconds":0.2}')
        for number in range(20):
            one.text(f'42{number}["nothing","{"x" * 1_000}"]')
        while not one.read_text().startswith("40{"):
            pass
        one.text(f'4220["nothing","{"x" * 500_000}"]')
        answered: set[str] = set()
        while len(answered) < 21:
            text = one.read_text()
            if text.startswith("43"):
                answered.add(text.partition("[")[0])


def test_handshakes_with_large_headers_are_refused(slow: ServerProcess) -> None:
    """A connection keeps its headers, and a long-polling session is one without a TCP connection."""
    large = {f"X-{number}": "x" * 8_000 for number in range(60)}
    before = state(slow)["kilobytes"]
    assert {http(slow, headers=large).status for _ in range(100)} == {431}
    assert {http(slow, path=WEBSOCKET, headers=GOOD | large).status for _ in range(10)} == {431}
    with contextlib.ExitStack() as stack:
        ones = [stack.enter_context(Connection(slow)) for _ in range(100)]
        for one in ones:
            with contextlib.suppress(OSError):
                one.send(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"x" * 8_000) for n in range(60)))
        assert (state(slow)["kilobytes"] - before) / 100 < 150
    assert http(slow, headers={f"X-{number}": "x" * 3_000 for number in range(8)}).status == 200


# -- CONNECT packets ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(newest_pg: Cluster) -> Iterator[ServerProcess]:
    """A server behind one proxy that requires tokens, and allows few wrong ones and few pending clients an address."""
    settings = {"TRUSTED_PROXIES": "1", "JWT_SECRET": SECRET, "MAX_FAILED_ATTEMPTS_PER_SECOND_PER_ADDRESS": "1",
                "MAX_PENDING_PER_ADDRESS": "20", "CONNECT_TIMEOUT": "60"}  # fmt: skip
    with running(newest_pg, **settings) as made:
        yield made


def from_address(last: int) -> dict[str, str]:
    """Return the header that a proxy adds for a client of a public address."""
    return {"X-Forwarded-For": f"203.0.113.{last}"}


@pytest.mark.parametrize("packet", ['40{"token":"x"}', "40", "40/nothing,", '40/custom,{"token":"x"}'])
def test_connection_is_closed_after_a_few_refused_connects(strict: ServerProcess, packet: str) -> None:
    with Swarm("127.0.0.1", strict.port) as swarm:
        [raw] = swarm.open(1)
        raw.answers_connect = False
        swarm.run_until(lambda: raw.opened)
        with contextlib.suppress(OSError):
            raw.send_all(*[packet] * 1_000)
        swarm.run_until(lambda: raw.closed)
        assert 0 < len(raw.packets) <= 10
        assert {packet[0] for packet in raw.packets} == {"4"}


def test_repeated_connects_on_one_connection_are_limited(newest_pg: Cluster) -> None:
    with running(newest_pg) as server, Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        with contextlib.suppress(OSError):
            raw.send_all(*["41", "40"] * 1_000)
        swarm.run_until(lambda: raw.closed)
        assert sum(str(packet).startswith("0{") for packet in raw.packets) <= 40
        last = json.loads(raw.packets[-1][1:])
        assert last["data"]["code"] == "rate_limited"


def authenticates(client: SocketClient, token: str) -> str | None:
    return code(client.call("authenticate", {"token": token}))


def both_limited(attack: Callable[[], Any], right: Callable[[dict[str, str]], Any], address: int) -> bool:
    """Return whether a good token is refused right after a wrong one. After a second one more attempt is allowed."""
    limited = ("rate_limited", 429)
    with contextlib.suppress(AssertionError):  # the client with the good token was connected
        return attack() in limited and right(from_address(address)) in limited
    return False


def test_refused_tokens_count_for_the_address(strict: ServerProcess) -> None:
    def publish(headers: dict[str, str]) -> int:
        headers = headers | {"Content-Type": "application/json"}
        return http(strict, "POST", "/api/publish", headers, b'{"channel":"foo","payload":1}').status

    def socket_code(headers: dict[str, str], token: str) -> Any:
        return refused(strict.url, headers=headers, auth={"token": token})["data"]["code"]

    wrong, good = mint(exp=1), mint()
    attacks: dict[int, Callable[[], Any]] = {
        1: lambda: socket_code(from_address(1), wrong),
        2: lambda: publish(from_address(2) | {"Authorization": f"Bearer {wrong}"}),
    }
    for address, attack in attacks.items():
        assert [attack() for _ in range(5)] in (["unauthorized"] * 5, [401] * 5)
        for right in (
            lambda headers: socket_code(headers, good),
            lambda headers: publish(headers | {"Authorization": f"Bearer {good}"}),
        ):
            until(lambda attack=attack, right=right, address=address: both_limited(attack, right, address), "a limit")  # type: ignore[misc]
    with SocketClient(strict.url, headers=from_address(3), auth={"token": good}) as client:
        assert publish(from_address(3) | {"Authorization": f"Bearer {good}"}) == 200, "other addresses"
        assert [authenticates(client, wrong) for _ in range(5)] == ["unauthorized"] * 5
        until(lambda: {authenticates(client, token) for token in (wrong, good)} == {"rate_limited"}, "a limit")
        client.subscribe("foo")
    # Without a proxy's entry the address is 127.0.0.1, which may be a proxy's: all clients have it.
    assert {socket_code({}, wrong) for _ in range(20)} == {"unauthorized"}


# -- floods of handshakes ----------------------------------------------------------------------------------------------


class Flood:
    """Opens sessions as fast as one thread can, on one TCP connection; ``comes_back``: each sends a second request."""

    def __init__(self, server: ServerProcess, headers: Callable[[int], dict[str, str]], *, comes_back: bool) -> None:
        self._server = server
        self._headers = headers
        self._comes_back = comes_back
        self._ended = threading.Event()
        self.opened = 0
        self.statuses: set[int] = set()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._ended.is_set():
            with contextlib.suppress(OSError, EOFError), Connection(self._server) as one:
                while not self._ended.is_set():
                    number += 1
                    headers = self._headers(number)
                    one.request("GET", POLLING, headers)
                    reply = one.reply()
                    self.statuses.add(reply.status)
                    if reply.status == 200:
                        self.opened += 1
                        if self._comes_back:
                            sid = json.loads(reply.body[1:])["sid"]
                            one.request("POST", f"{POLLING}&sid={sid}", headers, b"3")
                            one.reply()


@pytest.fixture(scope="module")
def small(newest_pg: Cluster) -> Iterator[ServerProcess]:
    settings = {"TRUSTED_PROXIES": "1", "MAX_CONNECTIONS": "200", "CONNECT_TIMEOUT": "300"}
    with running(newest_pg, **settings) as made:
        yield made


@pytest.mark.parametrize("comes_back", [False, True], ids=["silent", "with a second request"])
def test_flood_of_handshakes_keeps_nobody_out(small: ServerProcess, comes_back: bool) -> None:
    def many(number: int) -> dict[str, str]:
        return {"X-Forwarded-For": f"203.0.{number // 200 % 200}.{number % 200}"}

    with Flood(small, many, comes_back=comes_back) as flood:
        until(lambda: flood.opened > 400 or 503 in flood.statuses, "a full server")
        for transport in ("websocket", "polling"):
            for _ in range(3):
                began = time.monotonic()
                with SocketClient(small.url, (transport,), wait=False) as client:
                    client.subscribe("foo")
                    print(f"{transport}: {time.monotonic() - began:.2f} s, after {flood.opened} handshakes")
    assert flood.statuses == {200}


@pytest.mark.parametrize("comes_back", [False, True], ids=["silent", "with a second request"])
def test_flood_from_one_address_evicts_no_slow_client(newest_pg: Cluster, comes_back: bool) -> None:
    """The client takes longer than the flood takes to fill the server: the oldest session is not the one to close."""
    # So small that even a busy machine is flooded within the few seconds that a client has for its second request; a
    # quarter of it is for silent sessions, which is more than one address may have.
    most = 60
    settings = {"TRUSTED_PROXIES": "1", "MAX_CONNECTIONS": str(most), "CONNECT_TIMEOUT": "300"}
    with (
        running(newest_pg, **settings) as smaller,
        Flood(smaller, lambda number: from_address(7), comes_back=comes_back) as flood,
    ):
        until(lambda: flood.opened > 2 * most, "a full server")
        session = open_session(smaller, from_address(8))
        for packet in (b"3", b"40"):
            opened = flood.opened
            until(lambda opened=opened: flood.opened > opened + most + 10, "a full server again")  # type: ignore[misc]
            assert http(smaller, "POST", session, from_address(8), packet).status == 200


def test_websockets_that_never_connect_keep_nobody_out(small: ServerProcess) -> None:
    with Swarm("127.0.0.1", small.port) as swarm:
        for raw in swarm.open(190):
            raw.answers_connect = False
        swarm.run_until(lambda: sum(one.opened for one in swarm.clients) == 190)
        with contextlib.ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(SocketClient(small.url)).subscribe("foo")
            swarm.run_until(lambda: sum(one.closed for one in swarm.clients) >= 15)


def test_connected_clients_make_no_room(newest_pg: Cluster) -> None:
    with running(newest_pg, MAX_CONNECTIONS="3") as server, Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.connect(3)
        assert http(server).status == 503
        assert not any(client.closed for client in clients)


def test_pending_clients_of_a_public_address_are_limited(strict: ServerProcess) -> None:
    statuses = [http(strict, headers=from_address(9)).status for _ in range(30)]
    assert statuses == [200] * 20 + [429] * 10
    assert http(strict, path=WEBSOCKET, headers=GOOD | from_address(9)).status == 429
    assert http(strict, headers=from_address(10)).status == 200
    # An address that may be a proxy's, of all clients.
    for private in ("10.1.2.3", "192.168.1.1", "fd00::1", "100.64.1.1"):
        assert {http(strict, headers={"X-Forwarded-For": private}).status for _ in range(25)} == {200}
