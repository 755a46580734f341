"""Takes screenshots for the docs: ``python docs/screenshot.py URL FOLDER [--only NAME] [--dark] [--width N]``.

Needs a running server, Playwright for Python (``pip install playwright``), and a Chromium or Chrome.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

CHANNELS = ["orders", "chat", "Sensor 7", "foo"]
MESSAGES: list[tuple[str, object]] = [
    ("foo", {"hello": "world"}),
    ("orders", {"id": 4815, "status": "paid", "total": 42.5, "items": ["A-12", "B-7"]}),
    ("Sensor 7", {"celsius": 21.4, "humidity": 0.46}),
    ("chat", {"from": "Grace", "text": "Is the new warehouse online?"}),
    ("orders", {"id": 4815, "status": "packed"}),
    ("Sensor 7", {"celsius": 21.5, "humidity": 0.46}),
    ("chat", {"from": "Edsger", "text": "Since this morning. Every row change shows up here."}),
    ("orders", {"id": 4816, "status": "new", "total": 318, "items": ["C-3"], "gift": True, "note": None}),
    ("Sensor 7", {"celsius": 21.7, "humidity": 0.45}),
    ("chat", {"from": "Grace", "text": "Grüße aus Köln"}),
    ("foo", "a NOTIFY may carry plain text, too"),
    ("orders", {"id": 4816, "status": "paid"}),
    ("Sensor 7", {"celsius": 21.9, "humidity": 0.45}),
    ("foo", {"hello": "world"}),
]


def find_chromium() -> str:
    """Return the browser's path. Exit with a hint when there is none."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        sys.exit("No Chromium found: install it (apt install chromium), or set CHROMIUM to its path.")
    return found


def fill(page: Page) -> None:
    """Subscribe to the channels and publish the messages, each after the previous one has arrived."""
    page.fill("#subscribe-channel", ", ".join(CHANNELS))
    page.click("#subscribe-form button")
    expect(page.locator("#channels [data-state=subscribed]")).to_have_count(len(CHANNELS))
    if not page.locator("#publish-channel").is_visible():
        page.click("#publish > summary")
    for number, (channel, payload) in enumerate(MESSAGES, start=1):
        page.fill("#publish-channel", channel)
        page.fill("#publish-payload", json.dumps(payload, ensure_ascii=False))
        page.press("#publish-payload", "Control+Enter")
        expect(page.locator("#messages > li")).to_have_count(number)
    page.locator("#publish-payload").blur()
    page.mouse.move(0, 0)  # so that no button is hovered


def follow_orders(page: Page) -> None:
    """Show the orders after a few changes."""
    run_setup(page)
    for number in range(16):
        page.click("#change")
        expect(page.locator("#statements > li")).to_have_count(min(number + 1, 8))
        if number == 14:  # so that only the last change is highlighted
            page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")
    page.mouse.move(0, 0)


def move_people(page: Page) -> None:
    """Show the map with a filter that leaves out the east of the river, and the cursors of two other visitors."""
    run_setup(page)
    for number in range(3):
        page.click("#change")
        expect(page.locator("#statements > li")).to_have_count(number + 1)
    page.select_option("#area", "west")
    expect(page.locator('.people > g[data-followed="false"]').first).to_be_visible()
    page.mouse.move(0, 0)
    for name, x, y in (("Grace", 0.36, 0.3), ("Edsger", 0.66, 0.62)):
        other = visit(page, name)
        box = other.locator("#cursors").bounding_box()
        assert box is not None
        other.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    expect(page.locator(".cursor")).to_have_count(2)
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 500))")  # until they have arrived


def chat(page: Page) -> None:
    """Show a room with three people, two of whom are typing."""
    page.fill("#name", "Ada")
    page.press("#name", "Tab")
    others = [visit(page, name) for name in ("Grace", "Edsger")]
    for other, text in zip(others, ("Then the old one can be closed.", "Tomorrow?"), strict=True):
        other.fill("#text", text)
        other.press("#text", "Enter")
        expect(other.locator("#text")).to_have_value("")
    for other in others:
        other.type("#text", "I")
    expect(page.locator("#here > li")).to_have_count(3)
    expect(page.locator("#typing")).to_contain_text("are typing")


def visit(page: Page, name: str) -> Page:
    """Open the same page as another visitor."""
    assert page.context.browser is not None
    other = page.context.browser.new_page(viewport=page.viewport_size)
    other.goto(page.url)
    expect(other.locator("#status")).to_have_attribute("data-state", "connected")
    other.fill("#name", name)
    other.press("#name", "Tab")
    return other


def run_setup(page: Page) -> None:
    expect(page.locator("#setup:not([hidden]), #change:enabled").first).to_be_visible()
    if page.locator("#setup").is_visible():
        page.click("#setup button")
    expect(page.locator("#change")).to_be_enabled()


def inspect_now(page: Page) -> None:
    """Show the inspector's figures while a demo changes rows. The charts begin when the server started."""
    make_changes(page)
    expect(page.locator("#status")).to_have_text("Live")
    expect(page.locator(".list tbody tr").first).to_be_visible()
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 8000))")  # until there are rates


def inspect_channel(page: Page) -> None:
    """Show the live messages of a watched table, one of them open."""
    make_changes(page)
    messages = page.locator(".events summary")
    expect(messages.nth(12)).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    messages.nth(2).click()
    page.mouse.move(0, 0)


def make_changes(page: Page) -> None:
    """Let the demo of orders change rows, as if somebody had it open."""
    assert page.context.browser is not None
    other = page.context.browser.new_page()
    other.goto(page.url.partition("/inspector/")[0] + "/demo/orders.html")
    run_setup(other)
    other.click("#keep")


@dataclass(frozen=True)
class Picture:
    """A screenshot of the page at ``path``, which ``prepare`` prepares. ``None`` is as on the command line."""

    path: str
    prepare: Callable[[Page], None]
    width: int | None = None
    height: int = 690
    dark: bool | None = None
    scale: float = 2


_ORDERS = "/inspector/#/channels/table%3Asocketio_pg_demo.orders"

#: Screenshot → its page. The inspector's are in both themes, of a wide screen and of a phone.
PICTURES = {
    "playground": Picture("/static/test.html?channels=", fill),
    "orders": Picture("/demo/orders.html", follow_orders),
    "map": Picture("/demo/map.html", move_people),
    "chat": Picture("/demo/chat.html", chat),
    "inspector-channel": Picture(_ORDERS, inspect_channel, 1440, 720, dark=False, scale=1),
    "inspector-channel-phone": Picture(_ORDERS, inspect_channel, 390, 780, dark=True, scale=1.5),
    "inspector-now": Picture("/inspector/", inspect_now, 1440, 720, dark=True, scale=1),
    "inspector-now-phone": Picture("/inspector/", inspect_now, 390, 780, dark=False, scale=1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Take screenshots of the playground, the demos and the inspector.")
    parser.add_argument("url", help="a running development server, for example http://127.0.0.1:3030")
    parser.add_argument("folder", type=Path, help="folder for the PNG files")
    parser.add_argument("--dark", action="store_true", help="use the dark colour scheme")
    parser.add_argument("--width", type=int, default=1120, help="in CSS pixels, of those that name no width")
    parser.add_argument("--only", choices=PICTURES, help="take only this screenshot")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=60_000)  # a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(),
            args=["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])],
        )
        for name in [arguments.only] if arguments.only else PICTURES:
            wanted = PICTURES[name]
            dark = arguments.dark if wanted.dark is None else wanted.dark
            page = browser.new_page(
                viewport={"width": wanted.width or arguments.width, "height": wanted.height},
                device_scale_factor=wanted.scale,
                color_scheme="dark" if dark else "light",
                reduced_motion="reduce",
            )
            page.goto(arguments.url.rstrip("/") + wanted.path)
            wanted.prepare(page)
            picture = arguments.folder / f"{name}.png"
            page.screenshot(path=picture)
            page.close()
            print(f"{picture}: {picture.stat().st_size / 1024:.0f} KB")
        browser.close()


if __name__ == "__main__":
    main()
