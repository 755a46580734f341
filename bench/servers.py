"""Starts, finds and stops the servers under test, all with the same environment and limits."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.machine import children, on_core

HERE = Path(__file__).parent
ROOT = HERE.parent
ENGINES = ("ours", "stock", "node")
START_SECONDS = 30.0
STOP_SECONDS = 5.0


class ServerFailed(Exception):
    """A server did not start; carries the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server. `pid` is the process that serves: gunicorn's worker, not its master."""

    name: str
    port: int
    pid: int


def missing(name: str) -> str | None:
    """Why this server cannot run here, or None."""
    if name == "ours" and not (ROOT / "socketio_pg" / "server.py").exists():
        return "socketio_pg/server.py is not there"
    if name == "node" and (shutil.which("node") is None or not (HERE / "node_modules").exists()):
        return "needs node and `npm ci --prefix bench`"
    return None


def node_versions() -> dict[str, str]:
    """Versions of the packages that the lock file pins for the Node server."""
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    return {name: packages[f"node_modules/{name}"]["version"] for name in ("socket.io", "ws", "pg")}


def _command(name: str, port: int) -> list[str]:
    gunicorn = [sys.executable, "-m", "gunicorn", "--worker-class", "eventlet", "-w", "1", "-b", f"127.0.0.1:{port}"]
    if name == "ours":
        # As its own documentation says to start it; gunicorn.conf.py in the root is found by itself.
        return [*gunicorn, "socketio_pg.server:app"]
    if name == "stock":
        raised = ["--worker-connections", "20000", "--backlog", "4096", "--graceful-timeout", "1"]
        return [*gunicorn, "-c", "/dev/null", *raised, "stock_server:app"]
    if name == "node":
        return ["node", "node_server.mjs", str(port)]
    return [sys.executable, "raw_server.py", str(port)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(name: str, port: int) -> bool:
    try:
        if name == "raw":
            # Not even connected to: a bare socket that would take the probe for its control connection.
            return f":{port:04X} " in Path("/proc/net/tcp").read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running(name: str, database_url: str, core: int) -> Iterator[Server]:
    """The server, ready and pinned to `core`; stopped with everything that it started on the way out."""
    port = _free_port()
    environment = {**os.environ, "DATABASE_URL": database_url, "PYTHONUNBUFFERED": "1", "NODE_ENV": "production"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _command(name, port),
            cwd=ROOT if name == "ours" else HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=on_core(core),
        )
        try:
            started = time.monotonic()
            while not _answers(name, port):
                if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                    log.seek(0)
                    raise ServerFailed(f"{name} did not start:\n{log.read()[-3000:].decode(errors='replace')}")
                time.sleep(0.05)
            worker = children(process.pid) if name in ("ours", "stock") else []
            yield Server(name, port, worker[0] if worker else process.pid)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        # The session is ours: the master and any worker that outlived it.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
