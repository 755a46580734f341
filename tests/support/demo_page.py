"""The demo page in a real Chromium, and its visitor's actions, without network access beyond this machine."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "socketio_pg" / "static"
CLIENT_FILE = STATIC / "vendor" / "socket.io.min.js"
LOCAL_CLIENT = "**/static/vendor/socket.io.min.js"
CDN_CLIENT = "https://cdn.socket.io/**"
CLOCK = re.compile(r"^\d\d:\d\d:\d\d\.\d{3}$")

#: Messages that Chromium writes to the console when a request fails, even if the page handles the failure.
NETWORK_COMPLAINTS = ("WebSocket connection to", "Failed to load resource", "Failed to find a valid digest")

#: ms. Starting Chromium or restarting a server can take longer than Playwright's 5 s on a busy machine.
PATIENCE = 30_000

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
        """Return exceptions and console messages, without network errors if the test causes them."""
        console = self.console
        if self.network_may_fail:
            console = [text for text in console if not text.startswith(NETWORK_COMPLAINTS)]
        return self.exceptions + console


@contextlib.contextmanager
def demo_page(chromium: Browser, url: str) -> Iterator[Demo]:
    """Yield a new page that is not opened yet. At the end, assert that its console is empty."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    demo = Demo(context.new_page(), url)
    yield demo
    context.close()
    assert demo.complaints() == []
