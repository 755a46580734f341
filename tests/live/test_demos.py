"""The demos of the development server in a real Chromium: each follows changes made by psql."""

import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, WebSocket, expect

from tests.support.accessibility import unreachable, violations
from tests.support.clients import SocketClient
from tests.support.demo_page import PATIENCE, VIEWPORT
from tests.support.log import Log, wait_installed
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE as SECONDS
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_demos", DEBUG="1", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


#: The pages of visitors that have left. Each has a context, and so cookies and storage, of its own: to make one costs a
#: second of CPU time.
_left: list[Page] = []


@pytest.fixture(scope="module", autouse=True)
def contexts() -> Iterator[None]:
    yield
    while _left:
        _left.pop().context.close()


def borrow(browser: Browser) -> Page:
    """Return an empty page with a context of its own."""
    if _left:
        return _left.pop()
    context = browser.new_context(viewport=VIEWPORT, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    return context.new_page()


def give_back(page: Page, url: str) -> None:
    """Close the other pages of the context, and empty this one for the next visitor of the server at ``url``."""
    for other in page.context.pages:
        if other is not page:
            other.close()
    page.goto("about:blank")
    session = page.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
    session.detach()
    page.set_viewport_size(VIEWPORT)
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    _left.append(page)


class Visitor:
    """A page of one of the demos. Fails if anything is written to its console."""

    def __init__(self, browser: Browser, url: str, name: str) -> None:
        self.page: Page = borrow(browser)
        self._url = url
        self.problems: list[str] = []
        #: The frames that the server sent, as text.
        self.frames: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", self._on_error)
        self.page.on("websocket", self._on_websocket)
        self.page.goto(f"{url}/{name}" if "/" in name else f"{url}/demo/{name}.html")
        expect(self.page.locator("#status")).to_have_attribute("data-state", "connected", timeout=PATIENCE)
        expect(self.page.get_by_role("complementary", name="Security warning")).to_contain_text("AUTH=required")

    def _on_console(self, message: ConsoleMessage) -> None:
        self.problems.append(message.text)

    def _on_error(self, error: Error) -> None:
        self.problems.append(str(error))

    def _on_websocket(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: self.frames.append(str(frame)))

    def set_up(self) -> None:
        """Run the demo's SQL, unless another test has."""
        expect(self.page.locator("#sql")).to_contain_text("socketio_pg.watch(")
        expect(self.page.locator("#setup:not([hidden]), #change:enabled").first).to_be_visible()
        if self.page.locator("#setup").is_visible():
            self.page.click("#setup button")
        expect(self.page.locator("#change")).to_be_enabled()

    def close(self) -> None:
        self.page.remove_listener("console", self._on_console)
        self.page.remove_listener("pageerror", self._on_error)
        self.page.remove_listener("websocket", self._on_websocket)
        give_back(self.page, self._url)
        assert self.problems == []

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:
            self.page.context.close()
        else:
            self.close()


def test_orders_demo_follows_the_table(log: Log, chromium: Browser) -> None:
    with Visitor(chromium, log.server.url, "orders") as visitor:
        visitor.set_up()
        page, rows = visitor.page, visitor.page.locator("#orders > tr")
        expect(rows).to_have_count(5)
        expect(page.locator("#edge")).to_have_text("live")
        log.sql("DELETE FROM socketio_pg_demo.orders")
        expect(page.locator("#empty")).to_be_visible()
        log.sql(
            "INSERT INTO socketio_pg_demo.orders (customer, item, total, card) VALUES ('<b>Ada</b>', 'cup', 7, '41 11')"
        )
        expect(rows).to_have_count(1)
        expect(rows.first).to_have_text(re.compile(r"^6<b>Ada</b>cup7\.00new$"))
        log.sql("UPDATE socketio_pg_demo.orders SET status = 'paid', card = '42 22'")
        expect(rows.first.locator(".pill")).to_have_text("paid")
        for _ in range(5):
            page.click("#change")
        expect(page.locator("#statements > li")).to_have_count(5)
        [(orders,)] = log.sql("SELECT count(*) FROM socketio_pg_demo.orders")
        expect(rows).to_have_count(orders)
        expect(page.locator("#count")).to_have_text(re.compile(rf"^{orders} orders?$"))
        with Visitor(chromium, log.server.url, "orders") as other:
            expect(other.page.locator("#orders > tr")).to_have_count(orders)
            log.sql("DELETE FROM socketio_pg_demo.orders WHERE id = (SELECT max(id) FROM socketio_pg_demo.orders)")
            expect(other.page.locator("#orders > tr")).to_have_count(orders - 1)
        log.sql("TRUNCATE socketio_pg_demo.orders")
        expect(rows).to_have_count(0)
        # Excluded columns never leave the database.
        assert not [frame for frame in visitor.frames if "41 11" in frame or "42 22" in frame]
        assert any('"snapshot"' in frame for frame in visitor.frames)


def test_map_demo_follows_people_and_filters_on_the_server(log: Log, chromium: Browser) -> None:
    with Visitor(chromium, log.server.url, "map") as visitor:
        visitor.set_up()
        page = visitor.page
        people = page.locator(".people > g")
        expect(people).to_have_count(20)
        log.sql("UPDATE socketio_pg_demo.person SET lat = 50.94, lon = CASE WHEN id % 2 = 0 THEN 6.95 ELSE 6.97 END")
        west = page.locator('.people > g[data-side="west"]')
        expect(west).to_have_count(10)
        expect(west.first).to_have_attribute("style", re.compile(r"translate\(212px, 250px\)"))
        page.select_option("#area", "west")
        expect(page.locator('.people > g[data-followed="true"]')).to_have_count(10)
        log.sql("UPDATE socketio_pg_demo.person SET lat = 50.945")
        expect(west.first).to_have_attribute("style", re.compile(r"translate\(212px, 137px\)"))
        log.sql("UPDATE socketio_pg_demo.person SET lat = 50.935 WHERE id = 2")  # the last message
        expect(page.locator(".people > g", has_text=re.compile("^Al"))).to_have_attribute(
            "style", re.compile(r"212px, 363px")
        )

        def moved() -> list[float]:
            """Return the longitudes in the messages of the last two updates."""
            page.wait_for_timeout(20)  # lets Playwright receive the frames
            events: list[dict[str, Any]] = []
            for frame in visitor.frames:
                if frame.startswith(('42["event",', '42["events",')):
                    name, body = json.loads(frame[2:])
                    events += body if name == "events" else [body]
            rows = [event["payload"]["new"] for event in events if (event["payload"].get("new") or {}).get("lat")]
            return [row["lon"] for row in rows if row["lat"] in (50.945, 50.935)]

        until(lambda: len(moved()) >= 11, "the frames of the last update")
        assert moved() == [6.95] * 11
        page.click("#change")
        expect(page.locator("#statements > li").first).to_contain_text("UPDATE socketio_pg_demo.person")


def test_map_demo_shows_the_cursors_of_others(log: Log, chromium: Browser) -> None:
    set_up(log, "map")
    with Visitor(chromium, log.server.url, "map") as ada, Visitor(chromium, log.server.url, "map") as grace:
        cursor = grace.page.locator(".cursor")
        box = ada.page.locator("#cursors").bounding_box()
        assert box is not None
        assert grace.page.locator("#cursors").bounding_box() == box
        ada.page.fill("#name", "<b>Ada</b>")
        ada.page.press("#name", "Enter")

        def move(x: float, y: float) -> None:
            x, y = box["x"] + box["width"] * x, box["y"] + box["height"] * y
            ada.page.mouse.move(x, y)
            expect(cursor).to_have_count(1)

            def arrived() -> bool:
                seen = cursor.bounding_box() or {"x": 0, "y": 0}
                return abs(seen["x"] - x) < 1 and abs(seen["y"] - y) < 1

            until(arrived, "the cursor is there")

        move(0.25, 0.5)
        expect(cursor).to_have_text("<b>Ada</b>")
        expect(grace.page.locator("#visitors")).to_have_text("1 other visitor points at the map.")
        move(0.75, 0.25)
        # The sender gets nothing of its own, and nothing goes through the database.
        assert not [frame for frame in ada.frames if "cursors" in frame and "ephemeral" in frame]
        assert log.sql("SELECT FROM socketio_pg.log WHERE channel = 'cursors'") == []
        ada.page.mouse.move(1, 1)
        expect(cursor).to_have_count(0)
        move(0.5, 0.5)
        ada.page.goto("about:blank")
        expect(cursor).to_have_count(0)
        # What others send is not trusted.
        with SocketClient(log.server.url) as client:
            for number, payload in enumerate([7, {"x": "1", "y": 2}, {"x": 0.5, "y": 0.5, "name": {"toString": 1}}]):
                body = {"channel": "cursors", "payload": payload, "ephemeral": True, "key": str(number)}
                assert client.call("publish", body)["ok"]
            expect(cursor).to_have_text("Somebody")


@pytest.mark.nightly
def test_chat_demo_keeps_its_history(log: Log, chromium: Browser) -> None:
    with Visitor(chromium, log.server.url, "chat") as ada, Visitor(chromium, log.server.url, "chat") as grace:
        for visitor, name, text in ((ada, "Ada", "Hello!"), (grace, "Grace", "<img src=x onerror=alert(1)>")):
            visitor.page.fill("#name", name)
            visitor.page.fill("#text", text)
            visitor.page.press("#text", "Enter")
            expect(visitor.page.locator("#text")).to_have_value("")
        for visitor in (ada, grace):
            lines = visitor.page.locator("#messages > li")
            expect(lines).to_have_count(2)
            expect(lines.nth(0)).to_contain_text("AdaHello!")
            expect(lines.nth(1)).to_contain_text("<img src=x")
        log.sql("""SELECT socketio_pg.publish('chat', '{"from": "psql", "text": "Grüße"}')""")
        expect(ada.page.locator("#messages > li").nth(2)).to_contain_text("psqlGrüße")
        log.sql("""SELECT socketio_pg.publish('chat', '{"from": {"toString": 1}, "text": {"toString": 1}}')""")
        expect(ada.page.locator("#messages > li").nth(3)).to_contain_text('anonymous{"from":{"toString":1}')
        with Visitor(chromium, log.server.url, "chat") as late:
            expect(late.page.locator("#messages > li")).to_have_count(4)
            expect(late.page.locator("#code")).to_contain_text("subscriptions.subscribe(")


def test_chat_demo_shows_who_is_here_and_who_is_typing(log: Log, chromium: Browser) -> None:
    with Visitor(chromium, log.server.url, "chat") as ada, Visitor(chromium, log.server.url, "chat") as grace:
        here, typing = grace.page.locator("#here > li"), grace.page.locator("#typing")
        for visitor, name in ((ada, "<b>Ada</b>"), (grace, "Grace")):
            visitor.page.fill("#name", name)
            visitor.page.press("#name", "Tab")
        expect(here.filter(has_text="<b>Ada</b>")).to_have_text("<b>Ada</b>")
        expect(here.filter(has_text="Grace")).to_have_text("Graceyou")
        ada.page.locator("#text").press_sequentially("Hi")
        expect(typing).to_have_text("<b>Ada</b> is typing…")
        expect(ada.page.locator("#typing")).to_be_empty()
        ada.page.press("#text", "Enter")
        expect(typing).to_be_empty()
        second = ada.page.context.new_page()
        second.goto(ada.page.url)
        expect(here.filter(has_text="Ada")).to_have_text("<b>Ada</b>in 2 windows")
        second.goto("about:blank")
        expect(here.filter(has_text="Ada")).to_have_text("<b>Ada</b>")
        ada.page.goto("about:blank")
        expect(here).to_have_text(["Graceyou"])


@pytest.mark.nightly
def test_demo_without_the_log_explains_the_setup(newest_pg: Cluster, chromium: Browser) -> None:
    log = Log(newest_pg, "live_demos_without_log", DEBUG="1")
    try:
        with Visitor(chromium, log.server.url, "orders") as visitor:
            visitor.page.click("#setup button")
            expect(visitor.page.locator("#problem")).to_contain_text("socketio-pg init")
            assert visitor.problems.pop().startswith("Failed to load resource")
            visitor.page.goto(f"{log.server.url}/demo/")
            for name, text in {
                "orders": "create its table",
                "map": "create its table",
                "chat": "Nobody",
                "votes": "",
            }.items():
                waiting = visitor.page.locator(f"[data-demo={name}] .waiting")
                expect(waiting).to_be_visible(visible=text != "")
                expect(waiting).to_contain_text(text)
            expect(visitor.page.locator("#run")).to_be_disabled()
        assert log.sql("SELECT to_regnamespace('socketio_pg_demo') IS NULL") == [(True,)]
    finally:
        log.server.close()


def test_votes_demo_shows_html_of_the_server_without_javascript_of_the_page(log: Log, chromium: Browser) -> None:
    with votes_pages(log, chromium) as (pages, problems):
        assert pages[0].evaluate("[...document.scripts].every(script => /htmx|light/.test(script.src))")
        expect(pages[0].locator("#status")).to_have_attribute("data-state", "connected")
        before = counts(pages[0])
        pages[0].get_by_role("button", name="Camel").click()
        after = [before[0], before[1] + 1, before[2]]
        for page in pages:
            expect(page.locator(".votes output")).to_have_text([str(count) for count in after])
        # What the server had rendered before and what it renders now is the same for a new page.
        pages[1].reload()
        assert counts(pages[1]) == after
        assert problems == []
        problem = pages[0].locator("#problem")
        log.sql("ALTER TABLE socketio_pg_demo.vote RENAME count TO counted")
        pages[0].get_by_role("button", name="Penguin").click()
        expect(problem).to_be_visible()
        log.sql("ALTER TABLE socketio_pg_demo.vote RENAME counted TO count")
        pages[0].get_by_role("button", name="Penguin").click()
        expect(problem).to_be_hidden()
        expect(pages[0].locator(".votes output").last).to_have_text(str(after[2] + 1))


@pytest.mark.nightly
def test_votes_demo_goes_on_after_a_restart_of_the_server(log: Log, chromium: Browser) -> None:
    """It takes some seconds: the browser waits before it connects again."""
    with votes_pages(log, chromium) as (pages, _):
        before = counts(pages[0])
        log.server.restart()
        with pages[1].expect_response("**/stream?**"):
            pages[1].reload()
        pages[1].get_by_role("button", name="Penguin").click()
        for page in pages:
            expect(page.locator(".votes output").last).to_have_text(str(before[2] + 1))


@contextlib.contextmanager
def votes_pages(log: Log, chromium: Browser) -> Iterator[tuple[list[Page], list[str]]]:
    """Open the demo of votes twice. Yield the pages, and what is written to their consoles."""
    pages = [borrow(chromium) for _ in range(2)]
    problems: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        problems.append(message.text)

    def on_error(error: Error) -> None:
        problems.append(str(error))

    for page in pages:
        page.on("console", on_console)
        page.on("pageerror", on_error)
        with page.expect_response("**/stream?**"):
            page.goto(f"{log.server.url}/demo/votes")
    yield pages, problems
    for page in pages:
        page.remove_listener("console", on_console)
        page.remove_listener("pageerror", on_error)
        give_back(page, log.server.url)


def counts(page: Page) -> list[int]:
    return [int(text) for text in page.locator(".votes output").all_inner_texts()]


#: Page → its name.
PAGES = {
    "/static/test.html": "Playground",
    "/demo/": "Demos",
    "/demo/orders.html": "Orders",
    "/demo/map.html": "Map",
    "/demo/chat.html": "Chat",
    "/demo/votes": "Votes",
    "/inspector/": "Inspector",
}


@pytest.mark.parametrize("scheme", sampled(["light", "dark"], lambda scheme: scheme == "light"))
def test_each_page_has_one_name_fits_a_phone_and_is_accessible(log: Log, chromium: Browser, scheme: str) -> None:
    set_up(log, "orders", "map")
    page = borrow(chromium)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    asked: list[str] = []

    def on_request(request: Request) -> None:
        asked.append(request.url)

    page.on("request", on_request)
    try:
        for path, name in PAGES.items():
            page.goto(log.server.url + path)
            expect(page).to_have_title(f"{name} · socketio_pg")
            expect(page.get_by_role("heading", level=1)).to_have_text(name)
            links = page.get_by_role("navigation", name="Pages").get_by_role("link")
            expect(links).to_have_text(["Playground", "Demos", "Orders", "Map", "Chat", "Votes", "Inspector"])
            expect(links.and_(page.locator("[aria-current=page]"))).to_have_text([name])
            expect(page.locator("#status")).to_have_attribute("data-state", "connected")
            if name in ("Orders", "Map"):
                expect(page.locator("#sql")).to_contain_text("socketio_pg.watch(")
                expect(page.locator("#change")).to_be_enabled()
            if name == "Chat":
                expect(page.locator("#code")).to_contain_text("subscribe")
            if name == "Demos":
                expect(page.locator(".cards[data-ready]")).to_be_visible()
            assert violations(page) == [], name
            for width, height in ((1280, 400), (390, 844)):
                page.set_viewport_size({"width": width, "height": height})
                assert page.evaluate("document.documentElement.scrollWidth") == width, (name, width)
                assert unreachable(page) == [], (name, width)
            page.set_viewport_size({"width": 1440, "height": 900})
        for link in links.all():
            assert page.request.get(str(link.evaluate("link => link.href"))).ok
        assert {address.partition("://")[2].partition("/")[0] for address in asked} == {f"127.0.0.1:{log.server.port}"}
    finally:
        page.remove_listener("request", on_request)
        give_back(page, log.server.url)


def set_up(log: Log, *names: str) -> None:
    """Run the SQL of demos, as their buttons do."""
    for name in names:
        answer = requests.post(f"{log.server.url}/demo/{name}/setup", json={}, timeout=SECONDS)
        assert answer.status_code == 200, answer.text


def test_index_shows_each_demo_live_and_links_to_it(log: Log, chromium: Browser) -> None:
    set_up(log, "orders", "map")
    with Visitor(chromium, log.server.url, "index") as visitor:
        page = visitor.page
        expect(page.locator(".cards[data-ready]")).to_be_visible()
        for name, item in {"orders": "tr", "map": ".people > g", "votes": "li"}.items():
            expect(page.locator(f"[data-demo={name}] :is({item})").first).to_be_visible()
        log.sql("INSERT INTO socketio_pg_demo.orders (customer, item, total) VALUES ('<b>Radia</b>', 'desk', 1)")
        expect(page.locator("[data-demo=orders] tr").first).to_have_text("<b>Radia</b>desk1.00new")
        log.sql("UPDATE socketio_pg_demo.person SET lat = 50.94, lon = 6.95 WHERE name = 'Ada'")
        expect(page.locator("[data-demo=map] .people > g", has_text=re.compile("^Ad"))).to_have_attribute(
            "style", re.compile(r"translate\(212px, 250px\)")
        )
        for number in range(6):
            log.sql(
                "SELECT socketio_pg.publish('chat', %s)", json.dumps({"from": "<i>Ada</i>", "text": f"line {number}"})
            )
        lines = page.locator("[data-demo=chat] li")
        expect(lines).to_have_text([f"<i>Ada</i>line {number}" for number in range(2, 6)])
        log.sql("SELECT pg_notify('foo', '{\"hello\": \"index\"}')")
        expect(page.locator("[data-demo=playground] li").last).to_have_text('foo{"hello": "index"}')
        votes = page.locator("[data-demo=votes] output")
        before = int(votes.last.inner_text())
        assert requests.post(f"{log.server.url}/demo/votes/2", headers={"HX-Request": "true"}, timeout=SECONDS).ok
        expect(votes.last).to_have_text(str(before + 1))
        # The button changes rows until it is pressed again.
        seen = len(visitor.frames)
        page.click("#run")
        expect(page.locator("#run")).to_have_text("Stop")

        def moved() -> bool:
            page.wait_for_timeout(20)  # lets Playwright receive the frames
            return any("UPDATE" in frame for frame in visitor.frames[seen:])

        until(moved, "the changes arrive")
        page.click("#run")
        expect(page.locator("#run")).to_have_text("Make changes")
        for link in page.locator(".cards a").all():
            assert page.request.get(str(link.evaluate("link => link.href"))).ok


def test_playground_of_an_open_development_server_has_subscribed_already(log: Log, chromium: Browser) -> None:
    with Visitor(chromium, log.server.url, "static/test.html") as visitor:
        expect(visitor.page.locator("#channels > li")).to_have_attribute("data-state", "subscribed")
        log.sql("SELECT socketio_pg.publish('foo', '\"first\"')")
        newest = visitor.page.locator("#messages > li").first
        expect(newest).to_contain_text('"first"')
        with SocketClient(log.server.url) as client:
            assert client.call("publish", {"channel": "foo", "payload": "cursor", "ephemeral": True})["ok"]
        expect(newest).to_contain_text("ephemeral")
        visitor.page.reload()
        expect(visitor.page.locator("#messages > li").first).to_contain_text("replayed")
        # An address that names channels is taken at its word.
        visitor.page.goto(f"{log.server.url}/static/test.html?channels=bar")
        expect(visitor.page.locator("#channels .channel-name")).to_have_text(["bar"])


def test_other_origins_cannot_change_anything(log: Log) -> None:
    request = urllib.request.Request(
        f"{log.server.url}/demo/orders/setup", data=b"{}", headers={"Content-Type": "text/plain"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=SECONDS)
    refused.value.close()
    assert refused.value.code == 415


@pytest.mark.parametrize("path", ["/demo/", "/demo/orders.html", "/demo/map/rows"])
def test_production_serves_no_demos(live_server: ServerProcess, path: str) -> None:
    assert live_server.get(path)[0] == 404
