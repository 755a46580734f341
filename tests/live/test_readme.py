"""Each block of code in the README runs as it is written, against a real database, server and browser."""

import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import socketio.exceptions
from playwright.sync_api import Browser

from socketio_pg.core.config import Settings
from tests.support.clients import SocketClient
from tests.support.demo_page import STATIC
from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, in_thread
from tests.support.server import ROOT, ServerProcess, clean_environment

#: The browser's Socket.IO client, as npm installs it.
BROWSER_CLIENT = ROOT / "node_modules" / "socket.io-client" / "dist" / "socket.io.min.js"

#: A shell in which the commands that start a server save their settings instead, and nothing needs a network.
SHELL = f"""
set -eu
git() {{ test "$1" = clone; ln -s '{ROOT}' "$3"; }}
make() {{ env -0 > "$SAVED"; command make --dry-run --directory '{ROOT}' "$@"; }}
socketio-pg() {{
    if test "$1" = serve; then TOKEN="${{TOKEN-}}" env -0 > "$SAVED"; else '{sys.executable}' -m socketio_pg "$@"; fi
}}
"""


def read_blocks() -> dict[str, list[str]]:
    """Return heading → its blocks of code. The first line of each is its language."""
    sections = (ROOT / "README.md").read_text("utf-8").split("\n## ")[1:]
    found = {text.partition("\n")[0]: re.findall(r"^```(\w+\n.*?)^```$", text, re.DOTALL | re.M) for text in sections}
    return {heading: blocks for heading, blocks in found.items() if blocks}


BLOCKS = read_blocks()


def code(heading: str, *languages: str) -> list[str]:
    """Return the blocks below a heading, which must have these languages."""
    found = [block.partition("\n") for block in BLOCKS[heading]]
    assert tuple(language for language, _, _ in found) == languages
    return [text for _, _, text in found]


class Reader:
    """Follows the README with a database and a server of its own. ``origin``: serves the folder ``site``."""

    def __init__(self, cluster: Cluster, folder: Path, site: Path, origin: str) -> None:
        self.site = site
        self.origin = origin
        self._folder = folder
        activate = folder / ".venv" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.touch()
        self._url = cluster.url("live_readme")
        _, setting = code("In the browser", "js", "sh")
        self.log = Log(cluster, "live_readme", **self.settings(self.shell(setting)))

    def text(self, block: str) -> str:
        """Return a block with the test's addresses in place of the README's."""
        block = block.replace("postgresql://user:password@host/database", self._url)
        block = block.replace("<this repository>", str(ROOT)).replace("http://localhost:5173", self.origin)
        return block.replace("http://127.0.0.1:3030", self.log.server.url) if hasattr(self, "log") else block

    def shell(self, block: str) -> dict[str, str]:
        """Run a block in bash. Return the environment in which it starts a server."""
        saved = self._folder / "environment"
        environment = clean_environment(DATABASE_URL=self._url, PYTHONPATH=str(ROOT), SAVED=str(saved), TOKEN="")
        done = subprocess.run(
            ["bash", "-c", SHELL + self.text(block)],
            cwd=self._folder, env=environment, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        if not saved.exists():
            return {}
        pairs = saved.read_text().split("\0")
        saved.unlink()
        return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}

    @staticmethod
    def settings(environment: dict[str, str]) -> dict[str, str]:
        """Select our settings, but for the database's address."""
        names = {field.name.upper() for field in dataclasses.fields(Settings)} - {"DATABASE_URL"}
        return {name: value for name, value in environment.items() if name in names}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the origin that serves it, as a development server for pages would."""
    folder = tmp_path_factory.mktemp("site")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield folder, f"http://localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def reader(newest_pg: Cluster, site: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader who has installed the log."""
    made = Reader(newest_pg, tmp_path_factory.mktemp("readme"), *site)
    try:
        clone, own_database = code("Install", "sh", "sh")
        assert "DEBUG" not in made.shell(clone)
        assert made.shell(own_database)["DATABASE_URL"] == newest_pg.url("live_readme")
        wait_installed(made.log)
        yield made
    finally:
        made.log.server.close()
        newest_pg.sql("DROP DATABASE live_readme WITH (FORCE)")
        newest_pg.sql("DROP ROLE IF EXISTS customer")


@pytest.fixture(scope="module")
def messages(reader: Reader) -> Iterator[Callable[[str], SocketClient]]:
    """Subscribe a new client to a channel."""
    clients: list[SocketClient] = []

    def subscribed(channel: str) -> SocketClient:
        clients.append(SocketClient(reader.log.server.url))
        assert clients[-1].call("subscribe", {"channel": channel})["ok"]
        return clients[-1]

    yield subscribed
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def orders(reader: Reader, messages: Callable[[str], SocketClient]) -> SocketClient:
    """A customer's client that follows the watched table of the README."""
    statements, _ = code("Watch a table", "sql", "json")
    client = messages("orders:5")
    reader.log.sql(statements)
    return client


# First, because a module's first test may start the session's browser.
@pytest.mark.usefixtures("orders")
def test_page_of_another_origin(reader: Reader, chromium: Browser) -> None:
    script, _ = code("In the browser", "js", "sh")
    # The single file has the package's code. It takes the stock client from the global `io`.
    imports = json.dumps({"imports": {"socketio-pg": "/socketio_pg.js"}})
    page_text = f"""<script type="importmap">{imports}</script><script src="/client.js"></script>
        <script type="module" src="/main.js"></script>"""
    (reader.site / "index.html").write_text(page_text)
    (reader.site / "main.js").write_text(reader.text(script))
    shutil.copyfile(BROWSER_CLIENT, reader.site / "client.js")
    shutil.copyfile(STATIC / "socketio_pg.js", reader.site / "socketio_pg.js")
    page = chromium.new_page()
    try:
        with page.expect_console_message(lambda message: message.text.startswith("INSERT")) as logged:
            page.goto(reader.origin)
        assert logged.value.args[1].json_value() == {"id": 7, "customer_id": 5, "status": "open"}
    finally:
        page.close()


def test_tour(reader: Reader, messages: Callable[[str], SocketClient]) -> None:
    client = messages("foo")
    [statements] = code("60-second tour", "sql")
    reader.log.sql(statements)
    received = sorted((client.next("event")["payload"] for _ in range(2)), key=json.dumps)
    assert received == [{"hello": "log"}, {"hello": "world"}]


def test_watched_table(orders: SocketClient) -> None:
    _, message = code("Watch a table", "sql", "json")
    assert json.loads(message).items() <= orders.next("event")["payload"].items()


@pytest.mark.usefixtures("orders")
def test_publishing(reader: Reader, messages: Callable[[str], SocketClient]) -> None:
    client = messages("news")
    statements, python, curl = code("Publish from SQL, Python, HTTP", "sql", "python", "sh")
    reader.log.sql(statements)
    assert client.next("event")["payload"] == {"paid": 7}
    in_thread(exec, reader.text(python), {})
    assert client.next("event")["payload"] == {"text": "from Python"}
    reader.shell(curl)
    assert client.next("event")["payload"] == {"text": "by HTTP"}


@pytest.mark.usefixtures("orders")
def test_secured_server(reader: Reader) -> None:
    policy, commands = code("Secure it", "sql", "sh")
    reader.log.sql(policy)
    environment = reader.shell(commands)
    server = ServerProcess(reader.log.url, DRAIN_SECONDS="0.2", **reader.settings(environment))
    try:
        with SocketClient(server.url, auth={"token": environment["TOKEN"]}) as client:
            assert client.call("subscribe", {"channel": "orders:5"})["ok"]
            assert client.call("subscribe", {"channel": "orders:6"})["error"]["code"] == "forbidden"
        with pytest.raises(socketio.exceptions.ConnectionError):
            SocketClient(server.url)
    finally:
        server.close()


def test_every_section_with_code_is_tested() -> None:
    assert list(BLOCKS) == [
        "Install", "60-second tour", "Watch a table", "Publish from SQL, Python, HTTP", "In the browser", "Secure it",
    ]  # fmt: skip
