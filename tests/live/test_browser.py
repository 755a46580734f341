"""The demo page in a real Chromium, against a real server and a real database. No network beyond this machine."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, WebSocketRoute, expect, sync_playwright

from tests.live.test_client_tokens import SECRET, token
from tests.support.log import Log, wait_installed
from tests.support.missing import missing
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "socketio_pg" / "static"
CLIENT_FILE = STATIC / "vendor" / "socket.io.min.js"
LOCAL_CLIENT = "**/static/vendor/socket.io.min.js"
CDN_CLIENT = "https://cdn.socket.io/**"
CLOCK = re.compile(r"^\d\d:\d\d:\d\d\.\d{3}$")

#: What Chromium writes to the console when a request fails, however well the page deals with it.
NETWORK_COMPLAINTS = ("WebSocket connection to", "Failed to load resource", "Failed to find a valid digest")

#: Starting Chromium, and a server that comes back, can take longer than Playwright's 5 s on a busy machine.
PATIENCE = 15_000

Psql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    names = ["chromium", "chromium-browser", "google-chrome"]
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not path:
        missing("the browser's tests", "install Chromium (apt install chromium), or set CHROMIUM to its path")
    if not CLIENT_FILE.exists():
        missing("the browser's tests", "fetch the page's Socket.IO client: npm ci && npm run vendor")
    arguments = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to start as root otherwise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


def of_channel(name: str) -> str:
    """The CSS selector; its strings are quoted as those of JSON."""
    return f"[data-channel={json.dumps(name, ensure_ascii=False)}]"


class Demo:
    """The page and what its visitor does with it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.network_may_fail = False
        self.console: list[str] = []
        self.exceptions: list[str] = []
        page.on("console", lambda message: self.console.append(message.text) if message.type != "info" else None)
        page.on("pageerror", lambda error: self.exceptions.append(str(error)))
        self.status = page.locator("#status")
        self.rows = page.locator("#messages > li")
        self.errors = page.locator("#errors > li")

    def open(self, query: str = "") -> None:
        self.page.goto(f"{self.url}/static/test.html{query}")

    def start(self, query: str = "") -> None:
        self.open(query)
        self.expect_state("connected")

    def expect_state(self, state: str) -> None:
        expect(self.status).to_have_attribute("data-state", state, timeout=PATIENCE)

    def subscribe(self, *names: str) -> None:
        self.try_to_subscribe(*names)
        for name in names:
            self.expect_subscribed(name)

    def try_to_subscribe(self, *names: str, history: bool = False) -> None:
        self.page.fill("#subscribe-channel", ", ".join(names))
        self.page.set_checked("#subscribe-history", history)
        self.page.click("#subscribe-form button")

    def expect_subscribed(self, name: str) -> None:
        expect(self.chip(name)).to_have_attribute("data-state", "subscribed", timeout=PATIENCE)

    def sign_in(self, token: str) -> None:
        self.page.fill("#token", token)
        self.page.click("#login-form button")

    def expect_client(self, name: str) -> None:
        expect(self.page.locator("#hello [data-field=client]")).to_have_text(name, timeout=PATIENCE)

    def publish(self, channel: str, payload: str, durable: bool = False) -> None:
        self.page.fill("#publish-channel", channel)
        self.page.fill("#publish-payload", payload)
        self.page.set_checked("#publish-durable", durable)
        self.page.click("#publish-form button")

    def chip(self, name: str) -> Locator:
        return self.page.locator(f"#channels > li{of_channel(name)}")

    def messages(self, name: str) -> Locator:
        return self.page.locator(f"#messages > li[data-kind=message]{of_channel(name)}")

    def gaps(self, name: str) -> Locator:
        return self.page.locator(f"#messages > li[data-kind=gap]{of_channel(name)}")

    def complaints(self) -> list[str]:
        """What no page should ever cause, and network errors where the test did not cause them."""
        console = self.console
        if self.network_may_fail:
            console = [text for text in console if not text.startswith(NETWORK_COMPLAINTS)]
        return self.exceptions + console


@contextlib.contextmanager
def demo_page(chromium: Browser, url: str) -> Iterator[Demo]:
    """A page of its own, not opened yet. At the end nothing may have been written to its console."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    demo = Demo(context.new_page(), url)
    yield demo
    context.close()
    assert demo.complaints() == []


@pytest.fixture
def demo(chromium: Browser, live_server: ServerProcess) -> Iterator[Demo]:
    """On a database without a log."""
    with demo_page(chromium, live_server.url) as demo:
        yield demo


@pytest.fixture(scope="module")
def log(postgres18: Cluster) -> Iterator[Log]:
    made = Log(postgres18, "live_browser", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def log_demo(chromium: Browser, log: Log) -> Iterator[Demo]:
    """On a database with a log."""
    with demo_page(chromium, log.server.url) as demo:
        yield demo


# --- Connecting -----------------------------------------------------------------------------------------------------


def test_it_connects_and_shows_the_servers_hello(demo: Demo) -> None:
    demo.start()
    expect(demo.page.locator("#status-text")).to_have_text("Connected")
    expect(demo.page.locator("#hello [data-field=sid]")).to_have_text(re.compile(r"^\S{10,}$"))
    expect(demo.page.locator("#hello [data-field=version]")).to_have_text(re.compile(r"^\d+\.\d+"))
    expect(demo.page.locator("#hello [data-field=client]")).to_have_text("anonymous")
    expect(demo.page.locator("#channels > li")).to_have_count(0)
    expect(demo.page.locator("#subscribe-channel")).to_have_value("foo")
    # Of tokens there is no word where nobody asks for them.
    for hidden in ("#login", "#sign-out", "#hello [data-field=until]"):
        expect(demo.page.locator(hidden)).to_be_hidden()


def test_the_short_address_leads_to_the_page(demo: Demo) -> None:
    demo.page.goto(f"{demo.url}/socket-test")
    demo.expect_state("connected")
    assert demo.page.url == f"{demo.url}/static/test.html"


def test_the_visitor_can_disconnect_and_come_back(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("foo")
    demo.page.click("#connection-toggle")
    demo.expect_state("disconnected")
    expect(demo.page.locator("#hello")).to_be_hidden()
    demo.publish("foo", "1")
    expect(demo.errors).to_contain_text("not_connected")
    demo.page.click("#connection-toggle")
    demo.expect_state("connected")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', '\"back\"')")
    expect(demo.messages("foo")).to_contain_text(['"back"'])


def test_without_network_it_reconnects_and_subscribes_again(demo: Demo, psql: Psql) -> None:
    demo.network_may_fail = True
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    demo.page.context.set_offline(True)
    demo.expect_state("reconnecting")
    expect(demo.chip("foo")).to_have_attribute("data-state", "pending")
    demo.page.context.set_offline(False)
    demo.expect_state("connected")
    demo.expect_subscribed("foo")
    # NOTIFY is not stored: the page must not leave the impression that it saw everything.
    expect(demo.gaps("foo")).to_contain_text("this page was not connected")
    psql("SELECT pg_notify('foo', '\"after\"')")
    expect(demo.messages("foo")).to_contain_text(['"after"'])


def test_it_survives_a_restart_of_the_server(demo: Demo, live_server: ServerProcess, psql: Psql) -> None:
    demo.network_may_fail = True
    demo.start()
    demo.subscribe("foo", "bar")
    live_server.stop()
    demo.expect_state("reconnecting")
    expect(demo.page.locator("#status-text")).to_have_text("Reconnecting…")
    live_server.start()
    demo.expect_state("connected")
    demo.expect_subscribed("foo")
    demo.expect_subscribed("bar")
    psql("SELECT pg_notify('bar', '\"after\"')")
    expect(demo.messages("bar")).to_contain_text(['"after"'])


# --- Messages -------------------------------------------------------------------------------------------------------


def test_a_notify_from_sql_appears_with_time_and_channel(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("foo")
    psql("SELECT pg_notify(%s, %s)", "foo", '{"hello":"world","list":[1,{}]}')
    row = demo.messages("foo")
    expect(row.locator("time")).to_have_text(CLOCK)
    expect(row.locator(".channel-name")).to_have_text("foo")
    expect(row.locator(".payload")).to_have_text('{"hello": "world", "list": [1, {}]}')
    expect(demo.chip("foo").locator(".channel-count")).to_have_text("1")


def test_a_payload_that_is_not_json_appears_as_a_string(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', 'plain \"text\"')")
    expect(demo.messages("foo").locator(".payload")).to_have_text(r'"plain \"text\""')


def test_several_channels_newest_first(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=a, Sensor 7,ü")
    for name in ("a", "Sensor 7", "ü"):
        demo.expect_subscribed(name)
        psql("SELECT pg_notify(%s, '1')", name)
        expect(demo.messages(name)).to_have_count(1)
    psql("SELECT pg_notify('never asked for', '1')")
    psql("SELECT pg_notify('a', '2')")
    expect(demo.rows.locator(".channel-name")).to_have_text(["a", "ü", "Sensor 7", "a"])
    expect(demo.chip("a").locator(".channel-count")).to_have_text("2")


def test_unsubscribing(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("foo", "bar")
    demo.chip("foo").get_by_role("button", name="Unsubscribe from foo").click()
    expect(demo.page.locator("#announcer")).to_have_text("Unsubscribed from foo")  # the server has confirmed it
    expect(demo.chip("foo")).to_have_count(0)
    psql("SELECT pg_notify('foo', '1')")
    psql("SELECT pg_notify('bar', '2')")
    expect(demo.messages("bar")).to_have_count(1)
    expect(demo.messages("foo")).to_have_count(0)
    demo.subscribe("foo")
    psql("SELECT pg_notify('foo', '3')")
    expect(demo.messages("foo").locator(".payload")).to_have_text(["3"])


def test_only_the_newest_500_stay(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=busy")
    demo.expect_subscribed("busy")
    psql("SELECT pg_notify('busy', i::text) FROM generate_series(1, 1700) AS i")
    expect(demo.chip("busy").locator(".channel-count")).to_have_text("1,700")
    expect(demo.rows).to_have_count(500)
    expect(demo.rows.first.locator(".payload")).to_have_text("1700")
    expect(demo.rows.last.locator(".payload")).to_have_text("1201")
    expect(demo.page.locator("#message-count")).to_have_text("1,700 received · newest 500 kept")


def test_pause_clear_and_filter(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("a", "b")
    demo.page.click("#pause")
    psql("SELECT pg_notify('a', '1')")
    psql("SELECT pg_notify('b', '2')")
    expect(demo.page.locator("#message-count")).to_contain_text("paused, 2 waiting")
    expect(demo.rows).to_have_count(0)
    demo.page.click("#pause")
    expect(demo.rows).to_have_count(2)
    demo.page.select_option("#filter", "b")
    expect(demo.messages("a")).to_be_hidden()
    expect(demo.messages("b")).to_be_visible()
    psql("SELECT pg_notify('a', '3')")
    expect(demo.messages("a")).to_have_count(2)
    expect(demo.messages("a").first).to_be_hidden()
    demo.page.select_option("#filter", "")
    expect(demo.messages("a").first).to_be_visible()
    demo.page.click("#clear")
    expect(demo.rows).to_have_count(0)


def test_long_payloads_are_cut_until_asked_for(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', to_json(repeat('x', 5000))::text)")
    payload = demo.messages("foo").locator(".payload")
    expect(payload).to_have_text(re.compile(r'^"x{500,700}…$'))
    demo.messages("foo").get_by_role("button").click()
    expect(payload).to_have_text(f'"{"x" * 5000}"')


@pytest.mark.parametrize(
    "hostile",
    [
        "<img src=x onerror=\"window.hacked='img'\">",
        "<script>window.hacked='script'</script>",
        "</code><svg onload=\"window.hacked='svg'\">",
    ],
)
def test_hostile_text_stays_text(demo: Demo, psql: Psql, hostile: str) -> None:
    demo.start()
    demo.subscribe(hostile)
    psql("SELECT pg_notify(%s, %s)", hostile, hostile)
    psql("SELECT pg_notify(%s, %s)", hostile, json.dumps({hostile: [hostile]}))
    expect(demo.rows).to_have_count(2)
    expect(demo.rows.last.locator(".payload")).to_have_text(json.dumps(hostile))
    expect(demo.rows.first.locator(".channel-name")).to_have_text(hostile)
    demo.try_to_subscribe(f"{hostile}*")  # refused: the name comes back in the error
    expect(demo.errors).to_contain_text(f"{hostile}*")
    assert demo.page.locator("main :is(img, script, svg), #errors :is(img, script, svg)").count() == 0
    assert demo.page.evaluate("window.hacked") is None


def test_a_strict_content_security_policy_breaks_nothing(demo: Demo, psql: Psql) -> None:
    """The page needs no inline script or style; what breaks the policy is written to the console."""

    def with_policy(route: Route) -> None:
        response = route.fetch()
        policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": policy})

    # Chromium does not know where a page from `fulfill` came from, so it asks before that page may reach 127.0.0.1.
    demo.page.context.grant_permissions(["local-network-access"])
    demo.page.route("**/static/test.html*", with_policy)
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', '1')")
    expect(demo.messages("foo")).to_have_count(1)


# --- Publishing -----------------------------------------------------------------------------------------------------


def test_what_the_page_publishes_arrives(demo: Demo) -> None:
    demo.start()
    demo.subscribe("foo")
    demo.publish("foo", '{ "from":\n"the page" }')
    expect(demo.messages("foo").locator(".payload")).to_have_text(['{"from": "the page"}'])
    expect(demo.page.locator("#publish-result")).to_have_text(re.compile(r"^Committed in \d+ ms$"))


@pytest.mark.parametrize("shortcut", ["Control+Enter", "Meta+Enter"])
def test_the_keyboard_sends(demo: Demo, shortcut: str) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    demo.page.fill("#publish-payload", '"typed"')
    demo.page.press("#publish-payload", shortcut)
    expect(demo.messages("foo").locator(".payload")).to_have_text(['"typed"'])


def test_text_that_is_not_json_is_refused_by_the_page(demo: Demo) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    demo.publish("foo", "{'single': 'quotes'}")
    expect(demo.page.locator("#publish-error")).to_contain_text("Not sent, this is not JSON")
    expect(demo.page.locator("#publish-payload")).to_have_attribute("aria-invalid", "true")
    expect(demo.page.locator("#publish-payload")).to_be_focused()
    demo.page.fill("#publish-payload", '"right now"')
    expect(demo.page.locator("#publish-error")).to_be_empty()
    demo.page.click("#publish-form button")
    expect(demo.messages("foo").locator(".payload")).to_have_text(['"right now"'])  # the only one


@pytest.mark.parametrize("channel", ["foo", "Foo", "order", "two words", 'quo"te', "it's", "1st", "a$b", "ü"])
def test_the_sql_line_does_what_it_says(demo: Demo, psql: Psql, channel: str) -> None:
    demo.start()
    demo.subscribe(channel)
    demo.page.fill("#publish-channel", channel)
    demo.page.fill("#publish-payload", '{"it\'s": ["\\\\", "ü"]}')
    psql(demo.page.inner_text("#sql"))
    expect(demo.messages(channel).locator(".payload")).to_have_text('{"it\'s": ["\\\\", "ü"]}')


def test_the_sql_line_is_short_for_plain_names_and_can_be_copied(demo: Demo) -> None:
    demo.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    demo.start()
    expect(demo.page.locator("#sql")).to_have_text("""NOTIFY foo, '{"hello": "world"}';""")
    demo.page.click("#sql-copy")
    expect(demo.page.locator("#sql-copy")).to_have_text("Copied")
    assert demo.page.evaluate("navigator.clipboard.readText()") == """NOTIFY foo, '{"hello": "world"}';"""
    demo.page.fill("#publish-channel", 'My "own"')
    demo.page.fill("#publish-payload", "not JSON")
    expect(demo.page.locator("#sql")).to_have_text("""NOTIFY "My ""own\""", 'not JSON';""")


# --- Errors and gaps ------------------------------------------------------------------------------------------------


def test_errors_of_the_server_are_shown_with_code_and_message(demo: Demo) -> None:
    demo.start()
    demo.try_to_subscribe("x" * 64, "foo")
    expect(demo.errors).to_have_count(1)
    expect(demo.errors.locator(".error-code")).to_have_text("invalid_channel")
    expect(demo.errors.locator(".error-message")).to_contain_text("63 bytes")
    demo.expect_subscribed("foo")  # the other name of the list is not held up
    expect(demo.page.locator("#channels > li")).to_have_count(1)
    demo.publish("foo", json.dumps("x" * 8000))
    expect(demo.errors.locator(".error-code")).to_have_text(["payload_too_large", "invalid_channel"])
    demo.publish("foo", json.dumps("x"))  # what failed now works, so its error goes
    expect(demo.errors.locator(".error-code")).to_have_text(["invalid_channel"])
    demo.errors.get_by_role("button").click()
    expect(demo.errors).to_have_count(0)


def test_empty_fields_are_explained(demo: Demo) -> None:
    demo.start()
    demo.try_to_subscribe(" ", " ")
    expect(demo.page.locator("#subscribe-error")).to_contain_text("Enter the name of a channel")
    demo.publish(" ", "1")
    expect(demo.page.locator("#publish-error")).to_contain_text("Enter the name of a channel")


def test_a_subscription_refused_for_lack_of_a_database_is_tried_again(demo: Demo, psql: Psql) -> None:
    refusals = 0

    def refuse_once(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()

        def from_page(frame: str | bytes) -> None:
            nonlocal refusals
            request = re.match(r'42(\d+)\["subscribe"', str(frame))
            if request and refusals < 2:
                refusals += 1
                error = {"code": "database_unavailable", "message": "the database cannot be reached"}
                page_side.send(f"43{request[1]}{json.dumps([{'ok': False, 'error': error}])}")
            else:
                server_side.send(frame)

        page_side.on_message(from_page)

    demo.page.route_web_socket("**/socket.io/**", refuse_once)
    demo.start("?channels=foo")
    expect(demo.errors.locator(".error-code")).to_have_text("database_unavailable")
    demo.expect_subscribed("foo")
    assert refusals == 2
    expect(demo.errors).to_have_count(0)
    psql("SELECT pg_notify('foo', '1')")
    expect(demo.messages("foo")).to_have_count(1)


def test_gaps_and_error_events_are_shown(demo: Demo) -> None:
    def add_events(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()

        def from_server(frame: str | bytes) -> None:
            page_side.send(frame)
            if re.match(r"43\d", str(frame)):  # the acknowledgement
                gap = {"channel": "foo", "reason": "database_connection_lost", "since": "2026-01-02T03:04:05.678Z"}
                page_side.send("42" + json.dumps(["gap", gap | {"until": "2026-01-02T03:04:06Z"}]))
                page_side.send("42" + json.dumps(["error", {"code": "forbidden", "message": "<b>no</b>"}]))

        server_side.on_message(from_server)

    demo.page.route_web_socket("**/socket.io/**", add_events)
    demo.start("?channels=foo")
    expect(demo.gaps("foo")).to_contain_text("Messages may have been missed")
    expect(demo.gaps("foo")).to_contain_text(re.compile(r"connection lost, since \d\d:04:05.678, until \d\d:04:06.000"))
    expect(demo.errors).to_contain_text("forbidden")
    expect(demo.errors).to_contain_text("<b>no</b>")


def test_a_lost_database_connection_is_told(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'socketio_pg'")
    expect(demo.gaps("foo")).to_contain_text("Messages may have been missed", timeout=PATIENCE)
    demo.expect_state("connected")


# --- Tokens ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asking_server(postgres18: Cluster) -> Iterator[ServerProcess]:
    """It lets in only who has a token, to the channels that stand in it."""
    server = ServerProcess(postgres18.url(), JWT_SECRET=SECRET, JWT_LEEWAY="0", AUTHORIZATION="claims")
    yield server
    server.close()


@pytest.fixture
def asking(chromium: Browser, asking_server: ServerProcess) -> Iterator[Demo]:
    with demo_page(chromium, asking_server.url) as demo:
        yield demo


def test_it_asks_for_a_token_and_keeps_it_to_itself(asking: Demo, psql: Psql) -> None:
    page, good = asking.page, token(3600)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda websocket: addresses.append(websocket.url))
    asking.open("?channels=foo")
    asking.expect_state("disconnected")
    expect(page.locator("#status-text")).to_have_text("Not signed in")
    expect(page.locator("#login-reason")).to_have_text("This server lets in only who has a token.")
    expect(asking.errors).to_have_count(0)
    asking.sign_in(" ")
    expect(page.locator("#login-error")).to_have_text("Paste a token.")
    asking.sign_in(good[:-4] + "AAAA")
    expect(page.locator("#login-error")).to_have_text("Not accepted: the token's signature is wrong.")
    expect(page.locator("#token")).to_have_attribute("aria-invalid", "true")
    asking.expect_state("disconnected")
    asking.sign_in(f"Bearer {good}")
    asking.expect_subscribed("foo")
    asking.expect_client("alice")
    expect(page.locator("#hello [data-field=until]")).to_have_text(re.compile(r"\d\d:\d\d:\d\d$"))
    expect(page.locator("#login")).to_be_hidden()
    psql("SELECT pg_notify('foo', '1')")
    expect(asking.messages("foo")).to_have_count(1)
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    expect(page.locator("#token")).to_have_value("")
    assert len(addresses) > 5
    assert not [address for address in [*addresses, page.url] if good[:10] in address]
    page.click("#sign-out")
    expect(page.locator("#login-reason")).to_have_text("This server lets in only who has a token.")
    expect(page.locator("#sign-out")).to_be_hidden()


def test_a_token_can_be_replaced_before_its_end(asking: Demo, psql: Psql) -> None:
    asking.open("?channels=foo")
    asking.sign_in(token(12))
    asking.expect_subscribed("foo")
    expect(asking.page.locator("#login-reason")).to_contain_text(re.compile(r"Your token ends at \d\d:\d\d:\d\d\."))
    asking.sign_in(token(-5))
    expect(asking.page.locator("#login-error")).to_have_text("Not accepted: the token has expired.")
    asking.sign_in(token(3600, "bob"))
    asking.expect_client("bob")
    expect(asking.page.locator("#login")).to_be_hidden()
    psql("SELECT pg_notify('foo', '1')")
    expect(asking.rows).to_have_count(1)  # no gap


def test_after_the_tokens_end_it_asks_for_another_and_goes_on(asking: Demo, psql: Psql) -> None:
    asking.open("?channels=foo")
    asking.sign_in(token(5))
    asking.expect_subscribed("foo")
    expect(asking.page.locator("#login-error")).to_have_text("Not accepted: the token has expired.", timeout=PATIENCE)
    asking.expect_state("disconnected")
    expect(asking.chip("foo")).to_have_attribute("data-state", "pending")
    expect(asking.errors).to_have_count(0)
    asking.sign_in(token(3600))
    asking.expect_subscribed("foo")
    expect(asking.gaps("foo")).to_contain_text("this page was not connected")
    psql("SELECT pg_notify('foo', '1')")
    expect(asking.messages("foo")).to_have_count(1)


def test_what_is_forbidden_is_told_and_the_rest_goes_on(asking: Demo, psql: Psql) -> None:
    asking.open("?channels=mine,other,secret")
    asking.sign_in(token(12, subscribe=["mine", "other"], publish=[]))
    asking.expect_subscribed("mine")
    asking.expect_subscribed("other")
    expect(asking.errors).to_contain_text("forbidden subscribe secret")
    expect(asking.chip("secret")).to_have_count(0)
    asking.publish("mine", "1")
    expect(asking.errors.first).to_contain_text("forbidden publish mine")
    expect(asking.page.locator("#login-reason")).to_contain_text("ends at")
    asking.sign_in(token(3600, subscribe=["mine"]))
    row = asking.page.locator("#messages > li[data-kind=end]")
    expect(row).to_contain_text("The server has ended the subscription: it is not allowed any more.")
    expect(row.locator(".channel-name")).to_have_text("other")
    expect(asking.errors.first).to_contain_text("forbidden subscribe other")
    expect(asking.chip("other")).to_have_count(0)
    psql("SELECT pg_notify('mine', '1')")
    expect(asking.messages("mine")).to_have_count(1)


def test_who_is_anonymous_is_offered_to_sign_in(chromium: Browser, postgres18: Cluster) -> None:
    server = ServerProcess(postgres18.url(), JWT_SECRET=SECRET, AUTH="optional", PUBLIC_CHANNELS="news")
    with contextlib.closing(server), demo_page(chromium, server.url) as demo:
        demo.start("?channels=news,foo")
        demo.expect_client("anonymous")
        demo.expect_subscribed("news")
        expect(demo.errors).to_contain_text("forbidden subscribe foo")
        expect(demo.page.locator("#login-reason")).to_contain_text("You are anonymous here.")
        demo.sign_in(token(3600))
        demo.expect_client("alice")
        demo.subscribe("foo")
        expect(demo.errors).to_have_count(0)
        expect(demo.rows).to_have_count(0)  # no gap: the connection is the same
        demo.page.click("#sign-out")
        demo.expect_client("anonymous")
        demo.expect_subscribed("news")
        expect(demo.page.locator("#messages > li[data-kind=end]")).to_have_count(1)


# --- The log --------------------------------------------------------------------------------------------------------


def test_durable_messages_have_their_position(log_demo: Demo, channel: str) -> None:
    log_demo.start(f"?channels={channel}")
    log_demo.expect_subscribed(channel)
    log_demo.publish(channel, '"kept"', durable=True)
    expect(log_demo.messages(channel).locator(".position")).to_have_text(re.compile(r"^#\d+$"))
    expect(log_demo.messages(channel).locator(".badge")).to_have_count(0)
    log_demo.publish(channel, '"passing"')
    expect(log_demo.messages(channel)).to_have_count(2)
    expect(log_demo.messages(channel).first.locator(".place")).to_be_empty()


def test_history_is_replayed_and_says_so(log_demo: Demo, log: Log, channel: str) -> None:
    log.publish(channel, 1, 30)
    log.settle()
    log_demo.start()
    log_demo.try_to_subscribe(channel, history=True)
    log_demo.expect_subscribed(channel)
    expect(log_demo.messages(channel)).to_have_count(20)
    expect(log_demo.messages(channel).locator(".badge")).to_have_text(["replayed"] * 20)
    expect(log_demo.messages(channel).first.locator(".payload")).to_have_text('[30, ""]')
    # Asked for again it comes again, and what is live comes once.
    log_demo.try_to_subscribe(channel, history=True)
    expect(log_demo.messages(channel)).to_have_count(40)
    log.publish(channel, 31, 31)
    expect(log_demo.messages(channel)).to_have_count(41)
    expect(log_demo.messages(channel).first.locator(".badge")).to_have_count(0)


def test_without_a_log_nothing_can_be_replayed(demo: Demo) -> None:
    demo.start()
    demo.try_to_subscribe("foo", history=True)
    demo.expect_subscribed("foo")
    expect(demo.errors.locator(".error-code")).to_have_text("not_installed")
    demo.publish("foo", "1", durable=True)
    expect(demo.errors.locator(".error-code")).to_have_text(["invalid_request", "not_installed"])


def test_what_was_published_meanwhile_is_replayed(log_demo: Demo, log: Log, channel: str) -> None:
    log_demo.network_may_fail = True
    log_demo.start(f"?channels={channel}")
    log_demo.expect_subscribed(channel)
    log.publish(channel, 1, 1)
    expect(log_demo.messages(channel)).to_have_count(1)
    log_demo.page.context.set_offline(True)
    log_demo.expect_state("reconnecting")
    log.publish(channel, 2, 3)
    log_demo.page.context.set_offline(False)
    expect(log_demo.messages(channel).locator(".payload")).to_have_text(['[3, ""]', '[2, ""]', '[1, ""]'])
    expect(log_demo.messages(channel).locator(".badge")).to_have_count(2)
    expect(log_demo.gaps(channel)).to_contain_text("Messages of NOTIFY may have been missed")


def test_what_the_log_has_lost_is_told(log_demo: Demo, log: Log, channel: str) -> None:
    log_demo.network_may_fail = True
    log_demo.start(f"?channels={channel}")
    log_demo.expect_subscribed(channel)
    log_demo.page.context.set_offline(True)
    log_demo.expect_state("reconnecting")
    log.publish(channel, 1, 3)
    log.settle()
    log.sql("WITH gone AS (DELETE FROM socketio_pg.log RETURNING position) "
            "UPDATE socketio_pg.head SET trimmed = (SELECT max(position) FROM gone)")  # fmt: skip
    log.server.restart()  # what it remembers itself it would replay
    log_demo.page.context.set_offline(False)
    expect(log_demo.gaps(channel).last).to_contain_text("Messages of the log were missed")
    expect(log_demo.gaps(channel).last).to_contain_text(re.compile(r"trimmed, goes on after #\d+"))
    expect(log_demo.messages(channel)).to_have_count(0)


@pytest.mark.parametrize("channel", ["foo", "it's", 'My "own"'])
def test_the_durable_sql_line_does_what_it_says(log_demo: Demo, log: Log, channel: str) -> None:
    log_demo.start()
    log_demo.subscribe(channel)
    log_demo.page.fill("#publish-channel", channel)
    log_demo.page.fill("#publish-payload", '{"it\'s": ["\\\\", "ü"]}')
    log_demo.page.check("#publish-durable")
    line = log_demo.page.inner_text("#sql")
    assert line.startswith("SELECT socketio_pg.publish('")
    log.sql(line)
    expect(log_demo.messages(channel).locator(".payload")).to_have_text('{"it\'s": ["\\\\", "ü"]}')
    expect(log_demo.messages(channel).locator(".position")).to_have_count(1)


# --- The look -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_horizontal_scrolling(demo: Demo, psql: Psql, scheme: str) -> None:
    demo.page.set_viewport_size({"width": 360, "height": 740})
    demo.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    demo.start()
    demo.subscribe("x" * 63, "foo")
    psql("SELECT pg_notify(%s, %s)", "x" * 63, "y" * 3000)
    psql("SELECT pg_notify(%s, %s)", "foo", json.dumps({"long": "words " * 50}))
    demo.try_to_subscribe("z" * 64)
    demo.publish("x" * 63, "not JSON " + "z" * 200)
    expect(demo.rows).to_have_count(2)
    expect(demo.errors).to_have_count(1)
    assert demo.page.evaluate("document.documentElement.scrollWidth") == 360
    background = demo.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    lightness = float(re.findall(r"[\d.]+", background)[0])
    assert (lightness > 0.9) if scheme == "light" else (lightness < 0.3), background


def test_everything_can_be_reached_with_the_keyboard(demo: Demo) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    reached = []
    for _ in range(14):
        demo.page.keyboard.press("Tab")
        reached.append(
            demo.page.evaluate("(e => e.id || e.ariaLabel || e.className || e.type)(document.activeElement)")
        )
    expected = ["connection-toggle", "subscribe-channel", "submit", "subscribe-history", "Unsubscribe from foo"]
    expected += ["publish-channel", "publish-payload", "publish-durable", "submit", "sql-copy", "filter", "pause"]
    expected += ["clear", "scroller"]
    assert reached == expected


# --- Where the Socket.IO client comes from --------------------------------------------------------------------------


def test_the_cdns_client_is_taken_when_the_local_one_is_missing(demo: Demo) -> None:
    demo.network_may_fail = True
    demo.page.route(LOCAL_CLIENT, lambda route: route.fulfill(status=404))
    # The browser checks these bytes against the integrity in client.js, as it would check the CDN's.
    headers = {"access-control-allow-origin": "*", "content-type": "application/javascript"}
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(path=CLIENT_FILE, headers=headers)

    demo.page.route(CDN_CLIENT, answer)
    demo.start()
    assert len(asked) == 1
    assert asked[0].endswith("/socket.io.min.js")


def test_a_changed_client_from_the_cdn_is_not_run(demo: Demo) -> None:
    demo.network_may_fail = True
    demo.page.route(LOCAL_CLIENT, lambda route: route.abort())
    changed = CLIENT_FILE.read_text("utf-8") + "window.hacked = 1;"
    headers = {"access-control-allow-origin": "*", "content-type": "application/javascript"}
    demo.page.route(CDN_CLIENT, lambda route: route.fulfill(body=changed, headers=headers))
    with demo.page.expect_event("pageerror"):
        demo.open()
    demo.expect_state("failed")
    assert demo.page.evaluate("window.hacked") is None
    assert "could not be loaded" in demo.exceptions.pop()


def test_without_any_client_the_page_says_so(demo: Demo) -> None:
    demo.network_may_fail = True
    demo.page.route(LOCAL_CLIENT, lambda route: route.abort())
    demo.page.route(CDN_CLIENT, lambda route: route.abort())
    with demo.page.expect_event("pageerror"):
        demo.open()
    demo.expect_state("failed")
    expect(demo.page.locator("#fatal")).to_contain_text("npm run vendor")
    expect(demo.page.locator("#subscribe-form button")).to_be_disabled()
    assert "could not be loaded" in demo.exceptions.pop()


@pytest.mark.usefixtures("chromium")  # which knows that the client is there
def test_the_cdn_address_and_integrity_are_those_of_the_locked_client() -> None:
    script = (STATIC / "client.js").read_text("utf-8")
    lock = json.loads((ROOT / "package-lock.json").read_text("utf-8"))
    version = lock["packages"]["node_modules/socket.io-client"]["version"]
    assert f'"https://cdn.socket.io/{version}/socket.io.min.js"' in script
    digest = base64.b64encode(hashlib.sha384(CLIENT_FILE.read_bytes()).digest()).decode()
    assert f'"sha384-{digest}"' in script
