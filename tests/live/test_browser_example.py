"""The application in examples/react: built with Vite, and used by two visitors in a real Chromium."""

import contextlib
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.support.accessibility import violations
from tests.support.bundles import PACKAGE, build_package
from tests.support.demo_page import PATIENCE
from tests.support.log import Log, wait_installed
from tests.support.missing import missing
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import ROOT, free_port, listens

EXAMPLE = ROOT / "examples" / "react"
MODULES = EXAMPLE / "node_modules"


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "react_example", DEBUG="1", AUTO_INIT="1")
    wait_installed(made)
    url = f"{made.server.url}/demo/orders/setup"
    urllib.request.urlopen(urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})).close()
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def address(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the built application, in a folder of its own with the package of today."""
    if not MODULES.exists():
        missing("the test of examples/react", "install Node, then `make setup`")
    build_package()
    folder = tmp_path_factory.mktemp("example") / "react"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (folder / "node_modules").mkdir()
    for module in MODULES.iterdir():
        if module.name not in ("socketio-pg", ".vite"):
            (folder / "node_modules" / module.name).symlink_to(module)
    installed = folder / "node_modules" / "socketio-pg"
    installed.mkdir()
    shutil.copy(PACKAGE / "package.json", installed)
    shutil.copytree(PACKAGE / "dist", installed / "dist")
    vite = ["node", "node_modules/vite/bin/vite.js"]
    subprocess.run([*vite, "build", "--logLevel", "error"], cwd=folder, check=True)
    port = free_port()
    process = subprocess.Popen(
        [*vite, "preview", "--host", "127.0.0.1", "--port", str(port), "--strictPort"],
        cwd=folder, env=os.environ | {"SERVER": log.server.url}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: listens(port) or process.poll() is not None, "the application is served")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def visitor(chromium: Browser, address: str, width: int, scheme: str) -> Iterator[Page]:
    size: ViewportSize = {"width": width, "height": 800}
    context = chromium.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    yield page
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the window"
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"react-{width}-{scheme}.png")
    context.close()
    assert problems == []


def test_visitors_see_changes_and_each_other(chromium: Browser, log: Log, address: str) -> None:
    with visitor(chromium, address, 1440, "light") as ann, visitor(chromium, address, 390, "dark") as bob:
        for page in (ann, bob):
            expect(page.get_by_role("status")).to_have_text("connected")
            expect(page.locator("tbody tr")).to_have_count(5)
            expect(page.get_by_role("list", name="2 people here")).to_be_visible()
        log.sql("UPDATE socketio_pg_demo.orders SET status = 'lost', total = 1000 WHERE id = 5")
        for page in (ann, bob):
            expect(page.locator("tbody tr").first).to_contain_text("lost")
        bob.get_by_role("button", name="total").click()
        expect(bob.locator("tbody tr").last).to_contain_text("1000.00")
        ann.get_by_role("button", name="5", exact=True).click()
        name = ann.locator("tbody mark").inner_text()
        expect(bob.locator("tbody tr").last.locator("mark")).to_have_text(name)
        with ann.expect_response("**/demo/orders/change") as answer:
            ann.get_by_role("button", name="Change something").click()
        assert answer.value.ok
        [(count,)] = log.sql("SELECT count(*) FROM socketio_pg_demo.orders")
        expect(bob.locator("tbody tr")).to_have_count(count)
        ann.get_by_label("Status").select_option("new")
        [(count,)] = log.sql("SELECT count(*) FROM socketio_pg_demo.orders WHERE status = 'new'")
        expect(ann.locator("tbody tr")).to_have_count(count)


def test_it_is_short() -> None:
    files = [*(EXAMPLE / "src").glob("*.tsx"), EXAMPLE / "vite.config.ts"]
    lines = sum(len(file.read_text().splitlines()) for file in files)
    assert lines < 150, "an application to copy from"
