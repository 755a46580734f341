"""The demo page in a real Chromium, and what its visitor does with it. No network beyond this machine."""

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

#: What Chromium writes to the console when a request fails, however well the page deals with it.
NETWORK_COMPLAINTS = ("WebSocket connection to", "Failed to load resource", "Failed to find a valid digest")

#: Starting Chromium, and a server that comes back, can take longer than Playwright's 5 s on a busy machine.
PATIENCE = 30_000

Psql = Callable[..., list[tuple[Any, ...]]]


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
