"""The hooks of socketio-pg/react in a real Chromium, under StrictMode, with a real server behind a proxy."""

import json
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, WebSocket

from tests.live.test_client_tokens import SECRET, token
from tests.support.bundles import Site, bundle
from tests.support.clock import set_clock
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.replay_clients import ProxiedLog
from tests.support.server import ROOT
from tests.support.tabs import tabs

PAGES = ROOT / "tests" / "live" / "react"

#: What Chromium writes to the console when a connection fails.
NETWORK = ("WebSocket connection to", "Failed to load resource")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("react")
    bundle(PAGES / "harness.tsx", folder, "--splitting", '--define:process.env.NODE_ENV="development"')
    page = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Test</title><link rel="icon" href="data:,">'
    end = '<script type="module" src="/harness.js"></script>'
    (folder / "index.html").write_text(f'{page}<div id="root"></div>{end}')
    site = Site(folder)
    yield site
    site.close()


@pytest.fixture(scope="module")
def log(newest_pg: Cluster, site: Site) -> Iterator[ProxiedLog]:
    newest_pg.sql("DO $$ BEGIN CREATE ROLE react_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    made = ProxiedLog(
        newest_pg, "react", app="tests.support.clocked_app:app", JWT_SECRET=SECRET, JWT_LEEWAY="0",
        AUTH="optional", PUBLIC_CHANNELS="anything", PRESENCE_GRACE="1", AUTHORIZATION="claims",
        LIVE_TABLES="public.*", LIVE_TABLE_ROLE="react_reader", CORS_ALLOWED_ORIGINS=site.url,
    )  # fmt: skip
    made.install()
    made.sql("CREATE TABLE orders (id int PRIMARY KEY, status text, total int)")
    made.sql("GRANT SELECT ON orders TO react_reader")
    made.sql("SELECT socketio_pg.watch('orders')")
    yield made
    made.close()


@pytest.fixture(scope="module")
def window(chromium: Browser, chromium_path: str) -> Iterator[BrowserContext]:
    with tabs(chromium.browser_type, chromium_path) as context:
        context.set_default_timeout(1000 * PATIENCE)
        yield context


class Tab:
    """A tab with the test page, which shows what the hooks return."""

    def __init__(self, window: BrowserContext, site: Site, server: str, user: str, path: str, props: object) -> None:
        self.page: Page = window.new_page()
        self.problems: list[str] = []
        self._sent: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("websocket", self._record)
        query = urllib.parse.urlencode({"server": server, "user": user, "props": json.dumps(props)})
        self.page.goto(f"{site.url}/{path}?{query}")
        until(lambda: self.page.evaluate("'show' in window"), "the page has started")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type != "info":  # React recommends its tools
            self.problems.append(message.text)

    def _record(self, socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: self._sent.append(str(frame)))

    def show(self, **props: object) -> None:
        self.page.evaluate("props => show(props)", props)

    def shown(self, name: str) -> Any:
        """Return what a hook returns at the moment; an empty object if its component is not there."""
        text = self.page.evaluate("name => document.getElementById(name)?.textContent", name)
        return json.loads(text or "{}")

    def wait(self, name: str, **expected: object) -> Any:
        """Wait until a hook returns these values."""
        seen: list[Any] = [{}]

        def matches() -> bool:
            seen[0] = self.shown(name)
            return bool(expected.items() <= seen[0].items()) if seen[0] else False

        try:
            until(matches, f"{name} has {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it has {seen[0]}; {self.problems}") from None
        return seen[0]

    def sent(self, event: str, name: str) -> int:
        """Return how many requests of this name were sent for a channel or table."""
        # Playwright reads the frames when it has control.
        self.page.evaluate("1")
        return sum(f'"{event}"' in frame and f'"{name}"' in frame for frame in self._sent)

    def renders(self, name: str) -> int:
        return int(self.page.evaluate("name => renders[name]", name))

    def recorded(self) -> list[Any]:
        """Return what the hook's callbacks have got."""
        return list(self.page.evaluate("recorded"))

    def close(self) -> None:
        self.page.close()
        assert [text for text in self.problems if not text.startswith(NETWORK)] == []


Open = Callable[..., Tab]


@pytest.fixture
def open_tab(window: BrowserContext, site: Site, log: ProxiedLog) -> Iterator[Open]:
    """Open a tab: ``open_tab("alice", channel={"name": "foo"})``."""
    opened: list[Tab] = []
    site.token = lambda user: token(3600, user, presence=["*"], join=["*"])

    def open(user: str = "alice", path: str = "", **props: object) -> Tab:
        opened.append(Tab(window, site, log.address, user, path, props))
        return opened[-1]

    yield open
    log.proxy.restore()
    for tab in opened:
        if not tab.page.is_closed():
            tab.close()


def publish(log: ProxiedLog, channel: str, *payloads: object) -> None:
    for payload in payloads:
        log.sql("SELECT socketio_pg.publish(%s, %s)", channel, json.dumps(payload))


def test_subscribes_once_and_renders_only_what_changes(open_tab: Open, log: ProxiedLog, channel: str) -> None:
    publish(log, channel, 1, 2, 3)
    log.settle()
    tab = open_tab(channel={"name": channel, "options": {"history": 2}})
    tab.wait("channel", payloads=[2, 3], total=2, status="live", error=None)
    # StrictMode has mounted it twice; a second component and equal options in a new object make no second subscription.
    tab.show(channel={"name": channel, "options": {"history": 2}}, tick=1)
    publish(log, channel, 4)
    tab.wait("channel", payloads=[2, 3, 4])
    assert (tab.sent("subscribe", channel), tab.sent("unsubscribe", channel)) == (1, 0)
    # Without a change nothing renders: a message of another channel arrives after all that would have been rendered.
    before = {name: tab.renders(name) for name in ("channel", "connection")}
    tab.page.evaluate(
        "name => { window.others = []; client.channel(name).on('message', (m) => others.push(m)).live(); }",
        f"{channel}:2",
    )
    until(lambda: tab.sent("subscribe", f"{channel}:2"), "the other channel is subscribed")
    publish(log, f"{channel}:2", 1)
    until(lambda: tab.page.evaluate("others.length"), "it has a message")
    assert {name: tab.renders(name) for name in before} == before
    publish(log, channel, 5)
    tab.wait("channel", payloads=[2, 3, 4, 5], total=4)
    assert tab.renders("channel") == before["channel"] + 2  # StrictMode renders twice


def test_onmessage_alone_renders_nothing_and_gets_everything(open_tab: Open, log: ProxiedLog, channel: str) -> None:
    tab = open_tab(channel={"name": channel, "records": True})
    tab.wait("channel", status="live")
    before = tab.renders("channel")
    publish(log, channel, *range(5))
    until(lambda: tab.recorded() == [0, 1, 2, 3, 4], "all messages were passed on")
    assert tab.renders("channel") == before
    assert tab.shown("channel")["payloads"] == []


def test_filter_may_change_and_skip_ends_it(open_tab: Open, log: ProxiedLog, channel: str) -> None:
    def filtered(kind: str, **options: object) -> dict[str, object]:
        return {"name": channel, "options": {"filter": {"kind": kind}, "history": 5, **options}}

    publish(log, channel, {"kind": "a", "n": 1}, {"kind": "b", "n": 2})
    log.settle()
    tab = open_tab(channel=filtered("a"))
    tab.wait("channel", payloads=[{"kind": "a", "n": 1}], status="live")
    tab.show(channel=filtered("b"))
    tab.wait("channel", payloads=[{"kind": "b", "n": 2}], status="live", error=None)
    publish(log, channel, {"kind": "a", "n": 3}, {"kind": "b", "n": 4})
    tab.wait("channel", payloads=[{"kind": "b", "n": 2}, {"kind": "b", "n": 4}])
    # A component that goes and comes back at once keeps its subscription and what it shows.
    requests = tab.sent("subscribe", channel)
    tab.show()
    tab.show(channel=filtered("b"))
    tab.wait("channel", payloads=[{"kind": "b", "n": 2}, {"kind": "b", "n": 4}], status="live")
    assert tab.sent("subscribe", channel) == requests
    ended = tab.sent("unsubscribe", channel)
    tab.show(channel=filtered("b", skip=True))
    tab.wait("channel", payloads=[], status="idle")
    until(lambda: tab.sent("unsubscribe", channel) > ended, "the subscription ends after a while")


def test_table_stays_sorted(open_tab: Open, log: ProxiedLog) -> None:
    log.sql("INSERT INTO orders VALUES (1, 'new', 10), (2, 'paid', 30), (3, 'new', 20)")
    order = [{"column": "total", "desc": True}]
    tab = open_tab(table={"name": "orders", "options": {"order": order}})

    def wait(*ids: int) -> None:
        until(lambda: [row["id"] for row in tab.shown("table").get("rows", [])] == list(ids), f"the rows are {ids}")

    wait(2, 3, 1)
    tab.wait("table", status="live", key=["id"], complete=True, error=None)
    assert tab.page.evaluate("window.former = rows; rows.map(({id}) => id)") == [2, 3, 1]
    log.sql("UPDATE orders SET total = 40 WHERE id = 1")
    wait(1, 2, 3)
    assert tab.page.evaluate("rows[1] === former[0] && rows[2] === former[1] && rows !== former"), "only one row is new"
    log.sql("INSERT INTO orders VALUES (4, 'new', 35)")
    wait(1, 4, 2, 3)
    log.sql("DELETE FROM orders WHERE id = 2")
    wait(1, 4, 3)
    log.sql("UPDATE orders SET id = 9 WHERE id = 3")
    wait(1, 4, 9)
    before = (tab.renders("table"), tab.sent("subscribe", "public.orders"))
    tab.show(table={"name": "orders", "options": {"order": [{"desc": True, "column": "total"}]}})
    until(lambda: tab.renders("table") > before[0], "it renders with equal options")
    tab.show(table={"name": "orders", "options": {"order": "id", "where": {"status": "new"}}})
    wait(1, 4, 9)
    assert tab.sent("subscribe", "public.orders") == before[1] + 1
    log.sql("UPDATE orders SET status = 'paid' WHERE id = 4")
    wait(1, 9)
    log.sql("TRUNCATE orders")
    wait()
    tab.show(table={"name": "orders", "options": {"key": "id"}})
    tab.wait("table", status="live", error=None)
    tab.show(table={"name": "orders", "options": {"key": ["id", "total"]}})
    tab.wait("table", status="live", error="wrong_key")
    tab.show(table={"name": "missing"})
    tab.wait("table", rows=[], error="invalid_request", status="ended")


def test_two_tabs_see_each_other(open_tab: Open, channel: str) -> None:
    ann = open_tab("ann", people={"name": channel, "state": {"name": "Ann"}})
    ann.wait("people", members=[["ann", [{"name": "Ann"}]]], count=1, complete=True, key="ann", error=None)
    bob = open_tab("bob", people={"name": channel})
    bob.wait("people", members=[["ann", [{"name": "Ann"}]]], key=None)
    before = bob.renders("people")
    ann.show(people={"name": channel, "state": {"name": "Ann"}}, tick=1)  # an equal state
    ann.show(people={"name": channel, "state": {"name": "Ann", "away": True}})
    bob.wait("people", members=[["ann", [{"name": "Ann", "away": True}]]])
    assert bob.renders("people") == before + 2, "one change, rendered twice by StrictMode"
    second = open_tab("ann", people={"name": channel, "state": {"name": "Ann's phone"}})
    states = [{"name": "Ann", "away": True}, {"name": "Ann's phone"}]
    bob.wait("people", members=[["ann", states]], count=1)
    second.close()
    bob.wait("people", members=[["ann", states[:1]]])
    ann.show(people={"name": channel})  # no longer joined, still watching
    bob.wait("people", members=[], count=0)
    ann.wait("people", members=[], key=None)
    bob.show(people={"name": channel, "state": "here"})
    ann.wait("people", members=[["bob", ["here"]]])


def test_network_cut_and_restart_lose_nothing(open_tab: Open, log: ProxiedLog, channel: str) -> None:
    log.sql("TRUNCATE orders")
    tab = open_tab(
        channel={"name": channel, "records": True, "options": {"limit": 100}},
        table={"name": "orders"},
        people={"name": channel, "state": 1},
    )
    tab.wait("channel", status="live")
    tab.wait("table", status="live")
    tab.wait("people", members=[["alice", [1]]])
    tab.wait("connection", status="connected", database="reachable")
    publish(log, channel, 1)
    tab.wait("channel", payloads=[1])
    log.proxy.refuse()
    tab.wait("connection", status="reconnecting")
    tab.wait("channel", status="reconnecting", payloads=[1])
    publish(log, channel, 2, 3)
    log.sql("INSERT INTO orders VALUES (1, 'new', 1)")
    log.proxy.restore()
    tab.wait("connection", status="connected")
    tab.wait("channel", payloads=[1, 2, 3], status="live")
    tab.wait("table", rows=[{"id": 1, "status": "new", "total": 1}], status="live")
    log.server.restart()
    publish(log, channel, 4)
    log.sql("UPDATE orders SET total = 2")
    tab.wait("channel", payloads=[1, 2, 3, 4], status="live", total=4)
    tab.wait("table", rows=[{"id": 1, "status": "new", "total": 2}], status="live")
    tab.wait("people", members=[["alice", [1]]], key="alice")
    recorded = tab.recorded()
    assert [one for one in recorded if isinstance(one, int)] == [1, 2, 3, 4], "each message once, in order"
    assert [one for one in recorded if isinstance(one, str)] == ["gap notify client_disconnected"] * 2


def test_token_is_renewed_after_expiry_and_failures_are_shown(
    open_tab: Open, site: Site, log: ProxiedLog, channel: str
) -> None:
    site.token = lambda user: token(60, user, subscribe=[channel])
    tab = open_tab(channel={"name": channel})
    tab.wait("channel", status="live")
    site.token = lambda user: 503
    set_clock(log.server, 60)
    try:
        tab.wait("connection", code="no_token")
        tab.wait("channel", status="reconnecting")
        publish(log, channel, 1)
        site.token = lambda user: token(3600, user, subscribe=[channel])
        tab.wait("channel", payloads=[1], status="live")
        assert tab.page.evaluate("tokens()") >= 3
    finally:
        set_clock(log.server)
    tab.show(channel={"name": "secret"})
    tab.wait("channel", status="ended", code="forbidden", error="forbidden")


def test_page_from_the_back_forward_cache_continues(open_tab: Open, site: Site, log: ProxiedLog, channel: str) -> None:
    tab = open_tab(channel={"name": channel, "options": {"limit": 100}}, people={"name": channel, "state": 1})
    tab.wait("channel", status="live")
    publish(log, channel, 1)
    tab.wait("channel", payloads=[1])
    tab.page.evaluate("addEventListener('pageshow', ({persisted}) => { window.restored = persisted; })")
    (site.folder / "away.html").write_text("away")
    tab.page.goto(f"{site.url}/away.html")
    publish(log, channel, 2)
    tab.page.go_back(wait_until="commit")
    tab.wait("channel", payloads=[1, 2], status="live")
    assert tab.page.evaluate("restored"), "the page was restored, not loaded again"
    tab.wait("people", members=[["alice", [1]]])
    publish(log, channel, 3)
    tab.wait("channel", payloads=[1, 2, 3])


def test_hidden_and_frozen_pages_catch_up(open_tab: Open, log: ProxiedLog, channel: str) -> None:
    tab = open_tab(channel={"name": channel, "options": {"limit": 50}})
    tab.wait("channel", status="live")
    other = open_tab()
    other.page.bring_to_front()
    until(lambda: tab.page.evaluate("document.visibilityState") == "hidden", "the tab is in the background")
    log.publish(channel, 1, 300)
    found = tab.wait("channel", total=300)  # without frames, timers once a second show it
    assert [number for number, _ in found["payloads"]] == list(range(251, 301))
    session = tab.page.context.new_cdp_session(tab.page)
    session.send("Page.setWebLifecycleState", {"state": "frozen"})  # as Chromium does after five minutes
    log.server.restart()
    log.publish(channel, 301, 310)
    log.settle()
    session.send("Page.setWebLifecycleState", {"state": "active"})
    tab.page.bring_to_front()
    found = tab.wait("channel", total=310, status="live")
    assert [number for number, _ in found["payloads"]] == list(range(261, 311))


def test_many_messages_render_once_a_frame(open_tab: Open, log: ProxiedLog, channel: str) -> None:
    tab = open_tab(flood=channel)
    until(lambda: tab.page.evaluate("flood.status") == "live", "it is subscribed")
    tab.page.evaluate(
        "window.frames = flood.renders = 0; (function count() { frames++; requestAnimationFrame(count); })()"
    )
    log.publish(channel, 1, 2_000)
    until(lambda: tab.page.evaluate("flood.last") == 2_000, "all have arrived")
    renders, frames, total, lines = tab.page.evaluate(
        "[flood.renders, frames, flood.total, document.querySelectorAll('#list li').length]"
    )
    assert total == 2_000
    assert lines <= 32, "only the visible lines are rendered"
    assert renders <= 2 * (frames + 1), "at most once a frame, doubled by StrictMode"


def test_server_rendering_connects_to_nothing_and_hydrates(
    tmp_path: Path, window: BrowserContext, site: Site, log: ProxiedLog, open_tab: Open, channel: str
) -> None:
    props = {"channel": {"name": channel}, "table": {"name": "orders"}, "people": {"name": channel, "state": 1}}
    bundle(PAGES / "server.tsx", tmp_path, "--platform=node", "--format=cjs", "--out-extension:.js=.cjs")
    command = ["node", str(tmp_path / "server.cjs"), log.address, json.dumps(props)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
    rendered = json.loads(answer)
    assert rendered["connections"] == 0
    html = (site.folder / "index.html").read_text()
    (site.folder / "rendered.html").write_text(html.replace('<div id="root">', f'<div id="root">{rendered["html"]}'))
    tab = open_tab(path="rendered.html", **props)
    tab.wait("channel", status="live")
    tab.wait("table", status="live")
    tab.wait("people", members=[["alice", [1]]])
    assert tab.page.evaluate("problems") == [], "the browser's first rendering is the server's"


def test_a_channel_that_has_ended_starts_again_with_the_next_component(
    log: ProxiedLog, open_tab: Open, channel: str
) -> None:
    tab = open_tab()
    tab.page.evaluate(
        """async name => {
            window.other = client.channel(name, { filter: { n: 1 } }).on("message", () => {});
            await other.live();
        }""",
        channel,
    )
    tab.show(channel={"name": channel})
    tab.wait("channel", status="ended", error="conflicting_filter")
    tab.page.evaluate("other.unsubscribe()")
    tab.show(channel={"name": channel, "options": {"limit": 5}})
    tab.wait("channel", status="live")
    tab.show(channel={"name": channel})
    tab.wait("channel", status="live", error=None)
    log.publish(channel, 1, 1)
    until(lambda: tab.shown("channel")["total"] == 1, "the message has come")


def test_package_marks_its_components_as_those_of_a_client(site: Site) -> None:
    text = (ROOT / "js" / "dist" / "react.js").read_text()
    assert text.startswith('"use client";'), "otherwise Next.js refuses them in its app router"
