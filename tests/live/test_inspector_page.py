"""The inspector's page in a real Chromium: an operator's and a reader's journeys, by mouse and by keyboard alone."""

import contextlib
import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.accessibility import unreachable, violations
from tests.support.clients import SocketClient
from tests.support.demo_page import LOCAL_CLIENT, NETWORK_COMPLAINTS, PATIENCE
from tests.support.inspector import ADMIN_TOKEN, TOKEN, TOKENS, Inspector
from tests.support.log import Log, wait_installed
from tests.support.nightly import sampled
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, mint

NAME = "live_inspector_page"
#: Larger than a number of JavaScript can be without being rounded.
LARGE = 9_007_199_254_740_993


class Inspected(Log):
    """A server that reaches its database through a proxy, with a watched table and messages in the log."""

    def __init__(self, cluster: Cluster) -> None:
        cluster.sql(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")
        cluster.sql(f"CREATE DATABASE {NAME}")
        self.url = cluster.url(NAME)
        self.proxy = Proxy(cluster.socket_path)
        url = self.proxy.url.removesuffix("postgres") + NAME
        settings = TOKENS | {"JWT_SECRET": SECRET, "AUTH": "optional", "PUBLIC_CHANNELS": "*", "AUTO_INIT": "1"}
        self.server = ServerProcess(url, DRAIN_SECONDS="0.2", **settings)

    def close(self) -> None:
        self.server.close()
        self.proxy.close()


@pytest.fixture(scope="module")
def inspected(newest_pg: Cluster) -> Iterator[Inspected]:
    made = Inspected(newest_pg)
    try:
        wait_installed(made)
        made.sql("CREATE TABLE invoice (id int PRIMARY KEY, note text); SELECT socketio_pg.watch('invoice')")
        made.sql("CREATE TABLE customer (id int PRIMARY KEY)")
        made.publish("orders", 1, 60)
        yield made
    finally:
        made.close()


class Tab:
    """A tab of a browser with the inspector. Fails if the page runs into an error, or asks another origin."""

    def __init__(self, chromium: Browser, server: ServerProcess, *, width: int = 1440, scheme: str = "light") -> None:
        self._context = chromium.new_context(
            viewport={"width": width, "height": 900 if width > 1000 else 844},
            reduced_motion="reduce",
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self._context.set_default_timeout(PATIENCE)
        self.clear_session = self._context.clear_cookies
        self.page: Page = self._context.new_page()
        self.url = f"{server.url}/inspector/"
        self.asked: set[str] = set()
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.asked.add(request.url.partition("://")[2].partition("/")[0]))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self._origin = f"127.0.0.1:{server.port}"

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            # A refused sign-in is an error to Chromium's console, which pages cannot prevent.
            assert [problem for problem in self.problems if not problem.startswith(NETWORK_COMPLAINTS)] == []
            assert self.asked <= {self._origin}
        self._context.close()

    def sign_in(self, token: str, view: str = "") -> None:
        self.page.goto(f"{self.url}#/{view}")
        self.page.get_by_label("Token").fill(token)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#status")).to_have_text("Live", timeout=PATIENCE)

    def show(self, view: str) -> None:
        self.page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
        expect(self.page.get_by_role("heading", level=2, name=view, exact=True)).to_be_visible()

    def button(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()


def test_operator_signs_in_and_sees_figures(inspected: Inspected, chromium: Browser) -> None:
    with Tab(chromium, inspected.server) as tab:
        page = tab.page
        page.goto(tab.url)
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        expect(page.get_by_role("navigation", name="Views")).to_be_hidden()
        page.get_by_label("Token").fill("this is not the token")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).not_to_be_empty()
        tab.sign_in(ADMIN_TOKEN)
        assert "token" not in page.url
        expect(page.get_by_role("figure")).to_have_count(8)
        with SocketClient(inspected.server.url) as client:
            client.call("subscribe", {"channel": "orders"})
            clients = page.get_by_role("figure").filter(has_text="Clients")
            expect(clients.locator(".value")).to_have_text("1")
            inspected.publish("orders", 61, 61)
            image = page.get_by_role("img", name=re.compile("^Publish to send over 10 minutes: p99 .+ ms now"))
            expect(image).to_be_visible()
        clients.get_by_text("Table").click()
        expect(clients.get_by_role("table")).to_contain_text("1")
        expect(page.get_by_role("table", name="Processes").get_by_role("row")).to_have_count(2)
        expect(page.locator("dl", has_text="Newest position")).to_contain_text(re.compile(r"Retention1 d"))
        tab.button("Sign out")
        expect(page.get_by_role("status").filter(has_text="You have signed out")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_tail_of_a_channel(inspected: Inspected, chromium: Browser) -> None:
    with Tab(chromium, inspected.server) as tab:
        page = tab.page
        tab.sign_in(TOKEN, "channels")
        row = page.get_by_role("row").filter(has_text="orders")
        expect(row).to_contain_text("61" if "61" in row.inner_text() else "60")
        page.get_by_label("Search channels").fill("nothing like that")
        expect(page.locator(".list-place")).to_contain_text("Nothing matches")
        page.get_by_label("Search channels").fill("ord")
        row.get_by_role("link").click()
        messages = page.locator(".events > .message")
        expect(messages).to_have_count(50)
        expect(page.locator(".tail-state")).to_have_text("Live")
        inspected.sql(
            "SELECT socketio_pg.publish('orders', %s)",
            json.dumps({"id": LARGE, "html": "<b>bold</b>", "deep": {"list": [1, None]}}),
        )
        expect(messages).to_have_count(51)
        newest = messages.first
        newest.locator("summary").first.click()
        for text in (f"id: {LARGE}", 'html: "<b>bold</b>"', "1: null"):
            expect(newest.locator(".leaf", has_text=text)).to_be_visible()
        # Copies, and a replay from here.
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        newest.get_by_role("button", name="Copy as SQL").click()
        expect(page.locator("#toast")).to_have_text("Copied as SQL")
        assert page.evaluate("navigator.clipboard.readText()").startswith("SELECT socketio_pg.publish('orders', '{\"id")
        newest.get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#toast")).to_have_text("Copied as curl")
        assert f'"id": {LARGE}' in page.evaluate("navigator.clipboard.readText()")
        newest.get_by_role("button", name="Replay from here").click()
        expect(messages).to_have_count(1)
        expect(messages.first).to_contain_text("replayed")
        assert "start=position" in page.url
        # The filter, with its errors as typed.
        field, problem = page.get_by_label("Filter by payload"), page.locator("#filter-problem")
        field.fill('{"id": {"gtt": 5}}')
        expect(problem).to_contain_text("'id': unknown operator 'gtt'")
        expect(field).to_have_attribute("aria-invalid", "true")
        page.get_by_label("Start").select_option("history")
        field.fill(json.dumps({"0": {"gt": 58, "lte": 60}}))
        expect(problem).to_be_empty()
        expect(messages).to_have_count(2)
        expect(page.locator(".tail-state")).to_have_text("Live, filtered")
        field.fill("")
        expect(messages).to_have_count(50)
        # Pause keeps new messages in the server.
        tab.button("Pause")
        inspected.publish("orders", 100, 102)
        expect(page.locator(".tail-line")).to_contain_text("3 new")
        # What a screen reader reads does not change with each message.
        expect(page.locator(".tail-line").get_by_role("status")).to_have_text("Paused")
        expect(messages).to_have_count(50)
        tab.button("Resume")
        expect(messages).to_have_count(53)
        expect(page.locator(".tail-state")).to_have_text("Live")
        expect(page.locator(".tail-line .held")).to_be_empty()
        page.get_by_label("Search the messages shown").fill("101")
        expect(page.locator(".counts")).to_have_text(re.compile(r"^1 of 53 match"))
        page.get_by_label("Search the messages shown").fill("")
        # Paused with a filter, and while the server keeps a thousand.
        tab.button("Pause")
        field.fill(json.dumps({"0": {"gte": 1001}}))
        expect(page.locator(".tail-state")).to_have_text("Paused, filtered")
        expect(page.get_by_text("New messages wait in the server until you resume")).to_be_visible()
        inspected.publish("orders", 1001, 2100)
        expect(page.locator(".held")).to_have_text("1,100 new, of which 100 are dropped", timeout=PATIENCE)
        tab.button("Resume")
        expect(messages.first).to_contain_text("2100", timeout=PATIENCE)
        field.fill("")
        expect(messages).to_have_count(50)
        # More than a thousand: the oldest are dropped, and the page says so.
        inspected.publish("orders", 2101, 3200)
        expect(page.locator(".counts")).to_contain_text("the newest 1,000 kept", timeout=PATIENCE)
        expect(messages).to_have_count(1000)
        # A pattern shows the channels' names.
        page.goto(f"{tab.url}#/channels/orders%3A*")
        expect(page.locator(".tail-state")).to_have_text("Live")
        inspected.publish("orders:7", 7, 7)
        expect(messages.first.locator(".channel-name")).to_have_text("orders:7")


def test_clients_try_watches_and_doctor(inspected: Inspected, chromium: Browser) -> None:
    with Tab(chromium, inspected.server) as tab:
        page = tab.page
        tab.sign_in(ADMIN_TOKEN, "clients")
        expect(page.locator(".list-place")).to_contain_text("No clients are connected")
        with SocketClient(inspected.server.url, auth={"token": mint(sub="<i>ann</i>")}, reconnection=False) as client:
            client.call("subscribe", {"channel": "chat", "filter": {"new.id": 5}})
            page.get_by_role("link", name="<i>ann</i>").click()
            expect(page.get_by_role("heading", name="<i>ann</i>")).to_be_visible()
            expect(page.locator(".subscriptions")).to_contain_text('chat{"new.id":5}')
            tab.button("Disconnect")
            page.get_by_role("dialog").get_by_role("button", name="Disconnect").click()
            client.next("disconnect")
            expect(page.locator(".empty")).to_contain_text("This client is not connected")
        tab.show("Try")
        page.get_by_label("Payload").fill("not JSON")
        tab.button("Publish")
        expect(page.get_by_role("alert").filter(has_text="This is not JSON")).to_be_visible()
        page.get_by_label("Payload").fill('{"from": "the inspector"}')
        page.get_by_label("Delivery").select_option("true")
        tab.button("Publish")
        expect(page.get_by_role("region", name="SQL")).to_contain_text("SELECT socketio_pg.publish('foo'")
        expect(page.get_by_role("status").filter(has_text="Committed")).to_be_visible()
        tab.button("Test")
        expect(page.locator(".decision")).to_have_count(5)
        expect(page.locator(".decision").first).to_contain_text("subscribe allowed")
        expect(page.get_by_text("tokens are made in development only")).to_be_visible()
        expect(page.get_by_role("button", name="Make a token", exact=True)).to_be_disabled()
        page.get_by_role("link", name="Watch the channel").click()
        expect(page.locator(".events > .message").first).to_contain_text("the inspector")
        tab.show("Watches")
        rows = page.get_by_role("table", name="Watched tables").locator("tbody tr")
        expect(rows).to_have_count(1)
        page.get_by_label("Table", exact=True).fill("public.customer")
        tab.button("Watch")
        expect(rows).to_have_count(2)
        row = rows.filter(has_text="customer")
        row.get_by_role("button").click()
        page.get_by_role("dialog").get_by_role("button", name="Switch off").click()
        expect(row.get_by_role("button", name="Switch on again")).to_be_visible()
        assert inspected.sql("SELECT count(*) FROM socketio_pg.watches") == [(1,)]
        row.get_by_role("button").click()
        expect(row.get_by_role("button", name="Switch off")).to_be_visible()
        tab.show("Doctor")
        tab.button("Run the checks")
        expect(page.locator(".level")).not_to_have_count(0)
        expect(page.locator(".finding").first).to_be_attached()


def test_reader_with_the_keyboard_alone(inspected: Inspected, chromium: Browser) -> None:
    with Tab(chromium, inspected.server) as tab:
        page, press = tab.page, tab.page.keyboard.press
        tab.sign_in(TOKEN)
        expect(page.locator("#identity")).to_have_text("read-only")
        press("?")
        dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
        expect(dialog).to_contain_text("Channels")
        press("Escape")
        expect(dialog).to_be_hidden()
        press("4")
        for name in ("Publish", "Make a token"):
            expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()
        press("5")
        expect(page.get_by_role("button", name=re.compile("^Switch off the watch of public.invoice"))).to_be_disabled()
        press("2")
        expect(page.get_by_role("row").nth(1)).to_be_visible()
        press("/")
        page.keyboard.type("orders")
        expect(page.get_by_role("row").nth(1)).to_contain_text("orders")
        expect(page.get_by_role("row").filter(has_text="table:")).to_have_count(0)
        press("Escape")
        press("j")
        press("Enter")
        expect(page.locator(".events > .message")).not_to_have_count(0)
        press("j")
        press("Enter")
        expect(page.locator(".events > .message").first.locator(".opened")).to_be_visible()
        press("c")
        expect(page.locator("#toast")).to_contain_text("JSON")
        press("f")
        expect(page.get_by_label("Filter by payload")).to_be_focused()
        press("Escape")
        press("p")
        expect(page.get_by_role("button", name="Resume")).to_be_visible()
        expect(page.locator(".tail-state")).to_have_text("Paused")
        press("Escape")
        expect(page.get_by_role("heading", level=2, name="Channels")).to_be_visible()
        # Everything else is reached by Tab: the first links, and the rows.
        press("1")
        seen = set()
        for _ in range(14):
            press("Tab")
            seen.add(page.evaluate("document.activeElement.textContent.trim()"))
        assert {"Table of Messages", "Table of Replay"} <= seen
        # The shortcuts can be switched off.
        press("?")
        dialog.get_by_label("Single keys are shortcuts").focus()
        press("Space")
        press("Escape")
        press("2")
        expect(page.get_by_role("heading", level=2, name="Now")).to_be_visible()


#: Views, and what is there when they are.
VIEWS = {
    "now": ".list tbody tr",
    "channels": ".list tbody tr",
    "channels/orders": ".events > .message",
    "clients": ".list tbody tr",
    "try": ".tries form",
    "watches": ".list tbody tr",
    "doctor": ".findings",
}


@pytest.mark.parametrize(
    ("width", "scheme"),
    sampled(
        [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")],
        lambda one: one in ((1440, "dark"), (390, "light")),
    ),
)
def test_each_view_is_accessible_and_fits(inspected: Inspected, chromium: Browser, width: int, scheme: str) -> None:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(SocketClient(inspected.server.url, auth={"token": mint(sub="ann@example.com")}))
        client.call("subscribe", {"channel": "x" * 63})
        tab = stack.enter_context(Tab(chromium, inspected.server, width=width, scheme=scheme))
        page = tab.page
        inspected.sql("SELECT socketio_pg.publish('orders', %s)", json.dumps({"long": "y" * 3000}))
        page.goto(tab.url)
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert violations(page) == []
        tab.sign_in(TOKEN)
        for view, there in VIEWS.items():
            page.goto(f"{tab.url}#/{view}")
            expect(page.locator(there).first).to_be_visible()
            if view == "channels/orders":
                page.locator(".events summary").first.click()
                about = page.locator(".about")
                if width < 1000:
                    about.locator("summary").first.click()
                about.get_by_text("Who may").click()
                expect(about.locator(".matrix").first).to_be_visible()
            assert violations(page) == [], view
            assert page.evaluate("document.documentElement.scrollWidth") == width, view
            assert unreachable(page) == [], view


def test_page_while_the_database_is_away_and_without_session(inspected: Inspected, chromium: Browser) -> None:
    with Tab(chromium, inspected.server) as tab:
        page = tab.page
        tab.sign_in(ADMIN_TOKEN)
        expect(page.locator("dl", has_text="Newest position")).to_be_visible()
        inspected.proxy.refuse()
        inspected.proxy.cut()
        notice = page.locator("[data-name=database]")
        expect(notice).to_contain_text("The database has been unreachable since")
        expect(page.locator("#status")).to_have_text("Database unreachable")
        tab.show("Channels")
        tab.show("Now")
        inspected.proxy.restore()
        expect(notice).to_have_count(0)
        expect(page.locator("#status")).to_have_text("Live")
        tab.clear_session()
        page.keyboard.press("6")
        expect(page.get_by_role("status").filter(has_text="Your session has ended")).to_be_visible()
        # It goes on where it was.
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=2, name="Doctor")).to_be_visible()


def test_page_without_the_socket_io_client(inspected: Inspected, chromium: Browser) -> None:
    with Tab(chromium, inspected.server) as tab:
        page = tab.page
        page.route(LOCAL_CLIENT, lambda route: route.abort())
        page.goto(tab.url)
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("[data-name=client]")).to_contain_text("npm ci && npm run vendor")
        expect(page.locator("#status")).to_have_text("Polling")
        expect(page.get_by_role("table", name="Processes").get_by_role("row")).to_have_count(2)
        page.goto(f"{tab.url}#/channels/orders")
        expect(page.locator(".events > .message")).not_to_have_count(0)
        inspected.sql("SELECT socketio_pg.publish('orders', '\"polled\"')")
        expect(page.locator(".events > .message").first).to_contain_text("polled")


def test_session_says_which_other_pages_exist(inspected: Inspected) -> None:
    assert Inspector(inspected.server).read("session")["pages"] == {"playground": True, "demos": False}
