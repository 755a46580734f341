"""The playground in a real Chromium, and its visitor's actions, without network access beyond this machine."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, ViewportSize, WebSocketRoute, expect

from tests.support import patience

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "socketio_pg" / "static"
CLIENT_FILE = STATIC / "vendor" / "socket.io.min.js"
LOCAL_CLIENT = "**/static/vendor/socket.io.min.js"
CDN_CLIENT = "https://cdn.socket.io/**"
CLOCK = re.compile(r"^\d\d:\d\d:\d\d\.\d{3}$")

#: Messages that Chromium writes to the console when a request fails, even if the page handles the failure.
NETWORK_COMPLAINTS = ("WebSocket connection to", "Failed to load resource", "Failed to find a valid digest")

#: ms. Starting Chromium or restarting a server can take longer than Playwright's 5 s on a busy machine.
PATIENCE = 1000 * patience.PATIENCE

VIEWPORT: ViewportSize = {"width": 1280, "height": 800}

Psql = Callable[..., list[tuple[Any, ...]]]


def of_channel(name: str) -> str:
    """Return the CSS selector of a channel; CSS strings are quoted like JSON strings."""
    return f"[data-channel={json.dumps(name, ensure_ascii=False)}]"


class Demo:
    """The page and its visitor's actions."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.network_may_fail = False
        self.reusable = True
        self.console: list[str] = []
        self.exceptions: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", self._on_error)
        self.status = page.locator("#status")
        self.rows = page.locator("#messages > li")
        self.errors = page.locator("#errors > li")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type != "info":
            self.console.append(message.text)

    def _on_error(self, error: Error) -> None:
        self.exceptions.append(str(error))

    def route_web_socket(self, handler: Callable[[WebSocketRoute], None]) -> None:
        """Let ``handler`` stand between the page and the server. Playwright cannot undo it."""
        self.reusable = False
        self.page.route_web_socket("**/socket.io/**", handler)

    def release(self) -> None:
        """Stop recording what the page does."""
        self.page.remove_listener("console", self._on_console)
        self.page.remove_listener("pageerror", self._on_error)

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
        if not self.page.locator("#publish-channel").is_visible():
            self.page.click("#publish > summary")  # closed on a phone
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
        """Return exceptions and console messages, without network errors if the test causes them."""
        console = self.console
        if self.network_may_fail:
            console = [text for text in console if not text.startswith(NETWORK_COMPLAINTS)]
        return self.exceptions + console


#: A page that a test has left. For a new one Chromium starts processes, which takes more than a second of CPU time.
_left: dict[Browser, Page] = {}


@contextlib.contextmanager
def demo_page(chromium: Browser, url: str) -> Iterator[Demo]:
    """Yield an empty page. At the end, assert that nothing was written to its console."""
    page = _left.pop(chromium, None) or _new_page(chromium)
    demo = Demo(page, url)
    try:
        yield demo
    except BaseException:
        page.context.close()
        raise
    demo.release()
    if demo.reusable:
        _clean(page)
        _left[chromium] = page
    else:
        page.context.close()
    assert demo.complaints() == []


def _new_page(chromium: Browser) -> Page:
    context = chromium.new_context(viewport=VIEWPORT, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    return context.new_page()


def _clean(page: Page) -> None:
    """Undo what a test may have changed."""
    page.context.set_offline(False)
    page.context.clear_permissions()
    page.unroute_all(behavior="ignoreErrors")
    page.goto("about:blank")
    page.set_viewport_size(VIEWPORT)
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
