"""Processes: gunicorn as in production and the development server, from start to stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checker_run import failures
from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.raw_http import WebSocket, http
from tests.support.server import APP, GUNICORN, ROOT, ServerProcess, clean_environment, free_port
from tests.support.swarm import Swarm

#: Seconds: 10, as documented, and as many again twice for a busy machine.
STOPS_WITHIN = 30.0


@pytest.mark.green
def test_sigterm_with_200_clients_stops_in_time_and_clients_reconnect(newest_pg: Cluster, channel: str) -> None:
    server = ServerProcess(newest_pg.url())
    try:
        client = SocketClient(server.url)
        polling = SocketClient(server.url, ("polling",))
        with client, polling, Swarm("127.0.0.1", server.port) as swarm:
            raw = swarm.connect(200)
            for one in (client, polling):
                one.subscribe(channel)
                one.next("connect")
            for socket in raw:
                socket.emit("subscribe", {"channel": channel})
            swarm.run_until(lambda: all(one.events("subscribed") for one in raw))
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            swarm.run_until(lambda: all(one.closed for one in raw))
            server.process.wait(PATIENCE)
            assert time.monotonic() - began < STOPS_WITHIN
            server.start()
            # Stock clients reconnect automatically, because the server did not send DISCONNECT.
            for one in (client, polling):
                one.next("connect")
                one.subscribe(channel)
            again = swarm.connect(200)
            for one_again in again:
                one_again.emit("subscribe", {"channel": channel})
            swarm.run_until(lambda: all(one.events("subscribed") for one in again))
            newest_pg.notify(channel, "1")
            for one in (client, polling):
                assert one.next("event")["payload"] == 1
            swarm.run_until(lambda: all(one.events("event") for one in again))
    finally:
        server.close()


@pytest.mark.parametrize(
    ("number", "options"),
    [
        pytest.param(2000, (), id="plain"),
        pytest.param(500, ("--preload",), id="preload", marks=pytest.mark.nightly),
        pytest.param(5000, (), id="more", marks=pytest.mark.nightly),
    ],
)
def test_production_command_serves_thousands_of_clients(
    newest_pg: Cluster, channel: str, number: int, options: tuple[str, ...]
) -> None:
    server = ServerProcess(newest_pg.url(), *options, DRAIN_SECONDS="1")
    try:
        with Swarm("127.0.0.1", server.port) as swarm:
            raw = swarm.connect(number, 2 * PATIENCE)
            for socket in raw:
                socket.emit("subscribe", {"channel": channel})
            swarm.run_until(lambda: all(one.events("subscribed") for one in raw))
            newest_pg.notify(channel, '"to all"')
            swarm.run_until(lambda: all(one.events("event") for one in raw))
            assert raw[-1].events("event") == [{"channel": channel, "payload": "to all"}]
            assert not any(one.closed for one in raw)
        assert server.stop() < STOPS_WITHIN
    finally:
        server.close()


@pytest.mark.green
def test_preload_listens_in_the_worker_and_replaces_it_when_it_ends(newest_pg: Cluster) -> None:
    server = ServerProcess(newest_pg.url(), "--preload")
    try:
        sockets = [str(fd.readlink()) for fd in Path(f"/proc/{server.process.pid}/fd").iterdir()]
        assert sum("socket:" in name for name in sockets) <= 2, "the master has no connection to PostgreSQL"
        assert server.get("/readyz")[0] == 200
        ended = server.worker_pid()
        os.kill(ended, signal.SIGKILL)
        until(lambda: ended not in server.worker_pids(), "gunicorn notices the end of its worker")
        server.wait_ready()
    finally:
        server.close()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket and which PostgreSQL's user can access."""
    folder = Path(tempfile.mkdtemp(prefix="dev-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


#: Command of `make test`, settings, message. `make nightly` runs each command with all of them.
INVALID: list[tuple[str, dict[str, str], str]] = [
    ("gunicorn", {}, r"No database is configured: set DATABASE_URL .* local\.cfg"),
    (
        "gunicorn",
        {"DATABASE_URL": "mysql://root:hidden@localhost/x"},
        r"DATABASE_URL .*mysql://root:\*\*\*@.*allowed: postgresql://",
    ),
    (
        "server.py",
        {"DATABASE_URL": "postgresql://localhost/x?no_such=1"},
        r"is not an address that PostgreSQL's libpq understands",
    ),
    (
        "server.py",
        {"DATABASE_URL": "postgresql://localhost/x", "PORT": "http"},
        r"PORT .*'http'; allowed: a whole number",
    ),
]


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        pytest.param(command, settings, message, marks=() if command == daily else pytest.mark.nightly)
        for daily, settings, message in INVALID
        for command in ("gunicorn", "server.py")
    ],
)
def test_invalid_configuration_stops_the_start_with_one_message(
    scratch: Path, command: str, settings: dict[str, str], message: str
) -> None:
    if command == "gunicorn":
        # Without the control socket: from Python 3.13 on, gunicorn's join() with a timeout fails on eventlet.
        options = ["--no-control-socket", "--bind", f"127.0.0.1:{free_port()}", "--chdir", str(ROOT)]
        arguments = [*GUNICORN, *options, APP]
        settings = {name: value for name, value in settings.items() if name != "PORT"} | (
            {"PING_INTERVAL": "http"} if "PORT" in settings else {}
        )
        message = message.replace("PORT .*'http'; allowed: a whole number", "PING_INTERVAL .*'http'; allowed: seconds")
    else:
        arguments = [sys.executable, str(ROOT / "socketio_pg" / "server.py")]
    ended = subprocess.run(
        arguments, cwd=scratch, env=clean_environment(**settings), capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode != 0
    messages = [line for line in ended.stderr.splitlines() if line.startswith("socketio_pg: ")]
    assert len(messages) == 1, ended.stderr
    assert re.search(message, messages[0])
    assert "Traceback" not in ended.stderr
    assert "hidden" not in ended.stderr + ended.stdout


def test_port_in_use_is_reported(newest_pg: Cluster, live_server: ServerProcess) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "socketio_pg" / "server.py")],
        env=clean_environment(DATABASE_URL=newest_pg.url(), PORT=str(live_server.port)),
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert ended.returncode == 1
    assert f"cannot listen on port {live_server.port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_pages_are_served(live_server: ServerProcess) -> None:
    for path in ("/", "/socket-test", "/static/test.html"):
        status, body = live_server.get(path)
        assert status == 200
        assert "test.js" in body
    assert live_server.get("/healthz") == (200, '{"status":"ok"}\n')
    status, body = live_server.get("/readyz")
    assert (status, json.loads(body)["status"]) == (200, "ready")
    assert live_server.get("/nothing")[0] == 404


def test_test_page_can_be_disabled(newest_pg: Cluster) -> None:
    server = ServerProcess(newest_pg.url(), TEST_PAGE="0")
    try:
        pages = ("/", "/socket-test", "/static/test.html", "/static/test.js", "/demo/")
        assert [server.get(path)[0] for path in pages] == [404] * len(pages)
        status, script = server.get("/static/socketio_pg.js")
        exported = re.findall(r"^export \{(.+)\};$", script, re.MULTILINE)
        assert status == 200
        assert {"Subscriptions", "createClient"} <= set(re.findall(r"\w+", exported[0])), "for the application's pages"
        assert server.get("/static/vendor/socket.io.min.js")[0] == 200
    finally:
        server.close()


def test_local_cfg_is_read(newest_pg: Cluster, scratch: Path) -> None:
    url = newest_pg.url().replace("postgresql://", "postgresql+psycopg2://")
    port = free_port()
    (scratch / "local.cfg").write_text(
        f"SQLALCHEMY_DATABASE_URI = {url!r}\nDEBUG = False\nHOST = '::'\nPORT = {port}\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "socketio_pg" / "server.py")],
        cwd=scratch, env=clean_environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"socketio_pg listens on http://[::]:{port}\n"
        assert process.stdout.readline() == f"  playground  http://localhost:{port}/socket-test\n"
        for host in ("127.0.0.1", "[::1]"):
            with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=PATIENCE) as answer:
                assert answer.status == 200
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.green
def test_development_server_drains_clients_on_sigterm(newest_pg: Cluster) -> None:
    # In the development server, a WSGI request lasts as long as its WebSocket.
    port = free_port()
    environment = clean_environment(DATABASE_URL=newest_pg.url(), PORT=str(port), DRAIN_SECONDS="0.2")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "socketio_pg" / "server.py")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        with (
            SocketClient(f"http://127.0.0.1:{port}", wait=True) as one,
            SocketClient(f"http://127.0.0.1:{port}", ("polling", "websocket"), reconnection=False) as two,
        ):
            one.subscribe("a")
            two.subscribe("a")
            process.send_signal(signal.SIGTERM)
            two.next("disconnect")
            assert process.wait(PATIENCE) == 0
        assert process.stdout is not None
        output = process.stdout.read()
        assert "Traceback" not in output
        assert "draining 2 clients" in output
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_no_worker_is_added_by_sigttin(live_server: ServerProcess) -> None:
    log = len(live_server.log)
    live_server.process.send_signal(signal.SIGTTIN)
    until(lambda: "started with one worker" in live_server.log[log:], "gunicorn has refused it")
    until(lambda: len(live_server.worker_pids()) == 1, "no other worker is left")


@pytest.fixture(scope="module")
def replacing(newest_pg: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """A server that replaces its worker after 40 requests, and when a file changes."""
    file = tmp_path_factory.mktemp("reload") / "watched"
    file.touch()
    options = ("--max-requests", "40", "--reload", "--reload-extra-file", str(file))
    server = ServerProcess(newest_pg.url(), *options, DRAIN_SECONDS="0.5")
    yield server, file
    server.close()


@pytest.mark.green
@pytest.mark.parametrize("cause", ["--max-requests", "--reload", pytest.param("SIGHUP", marks=pytest.mark.nightly)])
def test_worker_that_is_replaced_drains(replacing: tuple[ServerProcess, Path], channel: str, cause: str) -> None:
    server, file = replacing
    until(lambda: len(server.worker_pids()) == 1, "the replacement of an earlier test has ended")
    before, log = server.worker_pid(), len(server.log)
    with (
        SocketClient(server.url) as client,
        SocketClient(server.url, ("polling",)) as polling,
        WebSocket(server) as raw,
    ):
        for one in (client, polling):
            one.subscribe(channel)
            one.next("connect")
        raw.connect()
        if cause == "SIGHUP":
            server.process.send_signal(signal.SIGHUP)
        elif cause == "--reload":
            os.utime(file, (time.time() + 10, time.time() + 10))
        else:
            until(lambda: http(server, path="/healthz") and "draining" in server.log[log:], "the worker drains")
        assert raw.close_code() == 1001, "going away, and not a lost connection"
        # Stock clients reconnect, to the new worker.
        for one in (client, polling):
            one.next("connect")
        until(lambda: before not in server.worker_pids(), "the old worker has ended")
        for one in (client, polling):
            one.subscribe(channel)
        assert len(server.worker_pids()) == 1
    # Clients of the last case may not have ended yet.
    found = re.search(r"draining (\d+) clients", server.log[log:])
    assert found is not None, server.log[log:]
    assert int(found[1]) >= 3
    assert failures(server.log[log:]) == []
    assert not re.findall(r"^\[.*", server.log[log:], re.MULTILINE), "gunicorn's lines keep the format of the server's"
