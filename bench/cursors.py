"""`python bench/cursors.py`: the map demo in Chromium while 50 people move their cursors 60 times a second each.

Two pages show the map, and their pointers move as well. The other people are stock Socket.IO clients, in one process of
Node (cursors.mjs). Server, Chromium, Node and PostgreSQL share the machine's cores.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# `python bench/cursors.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from bench import database, machine  # noqa: E402
from bench.servers import HERE, Server, ServerProcess  # noqa: E402
from docs.screenshot import find_chromium  # noqa: E402

_WATCH = """() => {
  window.frames = [];
  let last = performance.now();
  const note = (now) => { window.frames.push(now - last); last = now; requestAnimationFrame(note); };
  requestAnimationFrame(note);
}"""


def open_map(browser: Browser, url: str, name: str) -> Page:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{url}/demo/map.html")
    page.wait_for_selector("#status[data-state=connected]")
    if page.locator("#setup").is_visible():
        page.click("#setup button")
    page.fill("#name", name)
    page.press("#name", "Tab")
    page.evaluate(_WATCH)
    return page


def move(pages: list[Page], seconds: float) -> int:
    """Move the pointers of the pages in circles. Return the number of moves."""
    boxes = [page.locator("#city").bounding_box() for page in pages]
    moves, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        for number, (page, box) in enumerate(zip(pages, boxes, strict=True)):
            assert box is not None
            x = box["x"] + box["width"] * (0.5 + 0.4 * math.cos(2 * passed + number))
            y = box["y"] + box["height"] * (0.5 + 0.4 * math.sin(2 * passed + number))
            page.mouse.move(x, y)
            moves += 1
        time.sleep(max(0.0, began + moves / len(pages) / 60 - time.monotonic()))
    return moves


def frames(page: Page) -> dict[str, Any]:
    """Return what the page has drawn since the last call."""
    times: list[float] = sorted(page.evaluate("window.frames.splice(0)"))
    return {
        "frames_per_second": round(1000 * len(times) / sum(times), 1),
        "frame_p50_ms": round(times[len(times) // 2], 1),
        "frame_p99_ms": round(times[len(times) * 99 // 100], 1),
        "frame_max_ms": round(times[-1], 1),
        "cursors": page.locator(".cursor").count(),
    }


@contextlib.contextmanager
def moving(url: str, people: int, options: argparse.Namespace) -> Iterator[Callable[[], dict[str, int]]]:
    """Let people move their cursors. Yield a function that waits for their next counts, which they have each second."""
    command = ["node", "cursors.mjs", url, str(people), str(options.rate)]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        lines = node.stdout
        assert lines.readline() == "ready\n"
        try:
            yield lambda: json.loads(lines.readline())
        finally:
            node.kill()


def measure(server: Server, pages: list[Page], options: argparse.Namespace, people: int) -> dict[str, Any]:
    with moving(f"http://127.0.0.1:{server.port}", people, options) as counts:
        move(pages, 2)
        for _ in range(3):  # the third is the newest
            before = counts()
        for page in pages:
            frames(page)
        cpu, began = server.cpu_seconds(), time.monotonic()
        moves = move(pages, options.seconds)
        passed = time.monotonic() - began
        found = {
            "people": people,
            "server_cpu": round((server.cpu_seconds() - cpu) / passed, 3),
            "moves_of_the_pages": round(moves / passed, 1),
            "pages": [frames(page) for page in pages],
        }
        seconds = int(passed)
        for _ in range(seconds):
            after = counts()
        return found | {name: round((after[name] - before[name]) / seconds) for name in after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, nargs="*", default=[0, 50])
    parser.add_argument("--rate", type=float, default=60.0, help="moves of each a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--server", choices=("ours", "gevent"), default="ours")
    options = parser.parse_args()
    settings = {"AUTH": "off", "DEBUG": "1", "AUTO_INIT": "1"}
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with (
        database.running(machine.choose_cores()) as (url, _),
        contextlib.closing(ServerProcess(options.server, url, None, **settings)) as process,
        sync_playwright() as playwright,
    ):
        server = process.start()
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        # In windows of their own: a page in the background draws nothing.
        pages = [open_map(browser, f"http://127.0.0.1:{server.port}", name) for name in ("Ada", "Grace")]
        for people in options.people:
            print(json.dumps(measure(server, pages, options, people)), flush=True)
        browser.close()


if __name__ == "__main__":
    main()
