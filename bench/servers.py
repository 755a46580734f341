"""Starts and stops the servers under test, all with the same environment and limits."""

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
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.machine import children, on_core, process_cpu

HERE = Path(__file__).parent
ROOT = HERE.parent
#: This server on each green-thread library, and the alternatives.
ENGINES = ("ours", "gevent", "stock", "node")
OURS = ("ours", "gevent", "workers")
#: Servers with two processes for clients, see `workers.py`.
TWO = ("workers", "cluster")
START_SECONDS = 30.0
STOP_SECONDS = 5.0


class ServerFailed(Exception):
    """A server did not start. The message has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server. `pid` is the serving process: gunicorn's worker, not its master.

    `pids` are all processes: those that serve, and Node's primary process, which passes connections to them.
    """

    name: str
    port: int
    pid: int
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """Return the user and system seconds of all processes."""
        return sum(map(process_cpu, self.pids))


def missing(name: str) -> str | None:
    """Return the reason why this server cannot run here, or None."""
    if name in OURS and not (ROOT / "socketio_pg" / "server.py").exists():
        return "socketio_pg/server.py is missing"
    if name in ("node", "cluster") and (shutil.which("node") is None or not (HERE / "node_modules").exists()):
        return "needs node and `npm ci` in bench"
    return None


def node_versions() -> dict[str, str]:
    """Return the versions of the Node server's packages from the lock file."""
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    return {name: packages[f"node_modules/{name}"]["version"] for name in ("socket.io", "ws", "pg")}


def _command(name: str, port: int) -> list[str]:
    worker_class = "gevent" if name == "gevent" else "eventlet"
    workers = "2" if name in TWO else "1"
    gunicorn = [sys.executable, "-m", "gunicorn", "--worker-class", worker_class, "-w", workers]
    gunicorn += ["-b", f"127.0.0.1:{port}"]
    if name in OURS:
        # As documented; gunicorn loads gunicorn.conf.py from the project's root automatically.
        return [*gunicorn, "socketio_pg.server:app"]
    if name == "stock":
        raised = ["--worker-connections", "20000", "--backlog", "4096", "--graceful-timeout", "1"]
        return [*gunicorn, "-c", "/dev/null", *raised, "stock_server:app"]
    if name in ("node", "cluster"):
        return ["node", "node_server.mjs", str(port), workers]
    return [sys.executable, "raw_server.py", str(port)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(name: str, port: int) -> bool:
    try:
        if name == "raw":
            # Does not connect: the raw server would take the probe for its control connection.
            return f":{port:04X} " in Path("/proc/net/tcp").read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


class ServerProcess:
    """A server that can be stopped, killed and started again, always on the same port.

    Without a `core` it is not pinned.
    """

    def __init__(self, name: str, database_url: str, core: int | None = None, **settings: str) -> None:
        self._name = name
        self._core = core
        self._environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "PYTHONUNBUFFERED": "1",
            "NODE_ENV": "production",
            **settings,
        }
        self.port = _free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start the server and wait until it is ready. Raises ServerFailed."""
        self._process = subprocess.Popen(
            _command(self._name, self.port),
            cwd=ROOT if self._name in OURS else HERE,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=on_core(self._core) if self._core is not None else None,
        )
        started = time.monotonic()
        while not _answers(self._name, self.port):
            if self._process.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise ServerFailed(f"{self._name} did not start:\n{self.log()[-3000:]}")
            time.sleep(0.05)
        master = self._process.pid
        workers = children(master) if self._name in (*OURS, *TWO, "stock") else []
        pids = (master, *workers) if self._name == "cluster" else tuple(workers or [master])
        return Server(self._name, self.port, pids[0], pids)

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def stop(self) -> None:
        """Send SIGTERM, then kill the server if it has not ended."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self.kill()

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                # The whole process group: the master and any worker that outlived it.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        self.stop()
        self._log.close()


@contextmanager
def running(name: str, database_url: str, core: int | None = None) -> Iterator[Server]:
    """Run a server pinned to `core` and yield it when it is ready. At the end, stop it and its child processes."""
    with closing(ServerProcess(name, database_url, core)) as process:
        yield process.start()
