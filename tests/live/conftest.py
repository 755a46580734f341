"""Shared fixtures: a real Chromium with the playground, a server with a log, and a TLS certificate."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.clients import SocketClient
from tests.support.demo_page import CLIENT_FILE, PATIENCE, Demo, demo_page
from tests.support.http_api import HttpApi
from tests.support.log import Log, wait_installed
from tests.support.missing import missing
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture(scope="session")
def chromium_path() -> str:
    names = ["chromium", "chromium-browser", "google-chrome"]
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not path:
        missing("the browser's tests", "install Chromium (apt install chromium), or set CHROMIUM to its path")
    return path


@pytest.fixture(scope="session")
def chromium(chromium_path: str) -> Iterator[Browser]:
    if not CLIENT_FILE.exists():
        missing("the browser's tests", "fetch the page's Socket.IO client: npm ci && npm run vendor")
    arguments = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to start as root otherwise
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=arguments, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def demo(chromium: Browser, live_server: ServerProcess) -> Iterator[Demo]:
    """The playground of a server whose database has no log."""
    with demo_page(chromium, live_server.url) as demo:
        yield demo


@pytest.fixture(scope="session")
def session_log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_shared", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def log(session_log: Log) -> Log:
    """A server with a log, shared by all modules that need no other settings."""
    # The module before may have terminated its connections.
    session_log.server.wait_ready()
    return session_log


@pytest.fixture
def log_demo(chromium: Browser, log: Log) -> Iterator[Demo]:
    """The playground of a server whose database has a log."""
    with demo_page(chromium, log.server.url) as demo:
        yield demo


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the paths of a key and of a self-signed certificate for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(key), str(certificate)


@pytest.fixture
def api(log: Log) -> HttpApi:
    """Sends HTTP requests to the server of the module's log."""
    return HttpApi(log.server)


@pytest.fixture
def subscriber(log: Log, channel: str) -> Iterator[SocketClient]:
    """A client that is subscribed to ``channel``."""
    with SocketClient(log.server.url) as client:
        assert client.call("subscribe", {"channel": channel})["ok"] is True
        yield client


@pytest.fixture
def room(channel: str) -> str:
    """The name of one of the application's own rooms."""
    return f"room of {channel}"
