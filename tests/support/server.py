"""Real server processes: gunicorn, as in production."""

import os
import re
import resource
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from socketio_pg.core import green
from socketio_pg.core.config import NAMES
from socketio_pg.core.variables import PREFIX
from tests.support import forks
from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

GUNICORN = [sys.executable, "-m", "gunicorn", "--worker-class", green.LIBRARY, "-w", "1"]
APP = "socketio_pg.server:app"

#: Workers of each server whose test does not choose their number.
WORKERS = os.environ.get("TEST_WORKERS", "1")


#: Bound but not listening sockets: no other process gets their ports, but a server with SO_REUSEADDR can listen.
_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a port that stays reserved for this process's servers, even while they are stopped."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _reserved.append(held)
    return int(held.getsockname()[1])


def listens(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def clean_environment(**settings: str) -> dict[str, str]:
    """Return the environment without our settings, which the developer's shell may have, plus ``settings``.

    GREEN stays: it chooses the green-thread library of the whole run.
    """
    ours = NAMES - {"GREEN"}
    kept = {name: value for name, value in os.environ.items() if name.removeprefix(PREFIX) not in ours}
    return kept | settings


#: Settings of a server with clients that do not read for a while, and so do not answer its pings either.
PATIENT = {"PING_TIMEOUT": "300"}


class ServerProcess:
    """A server process, always on the same port, so that it can be stopped and started.

    ``options`` are gunicorn's, ``settings`` ours; GREEN chooses the worker class too. Without ``-w`` among the options
    it has as many workers as TEST_WORKERS says. ``wait``: wait until "ready"
    (``/readyz`` answers 200), only for "http", or for "nothing".
    """

    def __init__(self, database_url: str, *options: str, wait: str = "ready", app: str = APP, **settings: str) -> None:
        self.port = free_port()
        self.database_url = database_url
        self._options = options
        self._settings = settings
        self._wait = wait
        self._app = app
        self._process: forks.Process | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="server-", suffix=".log")  # noqa: SIM115 - closed in close()
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text("utf-8", "replace")

    @property
    def process(self) -> forks.Process:
        assert self._process is not None
        return self._process

    def worker_pid(self) -> int:
        """Return the process id of the gunicorn worker, the master's only child."""
        children = self.worker_pids()
        assert len(children) == 1, children
        return children[0]

    def worker_pids(self) -> list[int]:
        """Return the process ids of gunicorn's workers. There are two while one replaces the other."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def resident_bytes(self) -> int:
        """Return the resident memory of all workers."""
        pages = (Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self.worker_pids())
        return sum(map(int, pages)) * resource.getpagesize()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that all workers have used."""
        times = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in self.worker_pids()]
        return sum(int(user) + int(system) for user, system in times) / os.sysconf("SC_CLK_TCK")

    def leading_pid(self) -> int | None:
        """Return the process id of the worker that leads, of several; None while none does."""
        found = re.findall(r"worker \d+ \(pid (\d+)\) listens, publishes", self.log)
        return int(found[-1]) if found and int(found[-1]) in self.worker_pids() else None

    def start(self, **settings: str) -> None:
        """Start the process; with ``settings``, from now on with these."""
        self._settings |= settings
        environment = clean_environment(DATABASE_URL=self.database_url, PYTHONUNBUFFERED="1", **self._settings)
        arguments = [
            "--worker-class", self._settings.get("GREEN", green.LIBRARY), "-w", WORKERS,
            "--bind", f"127.0.0.1:{self.port}", *self._options, self._app,
        ]  # fmt: skip
        with Path(os.devnull).open("rb") as nothing:
            self._process = forks.start(
                "gunicorn", *arguments, directory=ROOT, environment=environment, new_session=True,
                descriptors=(nothing.fileno(), self._log.fileno(), self._log.fileno()),
            )  # fmt: skip
        if self._wait == "ready":
            self.wait_ready()
        elif self._wait == "http":
            self.wait_for("/healthz", 200)

    def wait_ready(self, seconds: float = PATIENCE) -> None:
        """Wait until the server is ready, including its database."""
        self.wait_for("/readyz", 200, seconds=seconds)

    def wait_not_ready(self, seconds: float = PATIENCE) -> None:
        self.wait_for("/readyz", 503, seconds=seconds)

    def wait_for(self, path: str, status: int, text: str = "", seconds: float = PATIENCE) -> None:
        """Wait until ``path`` is answered with ``status`` and a body that contains ``text``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = self.get(path)
            except OSError as error:
                answer = (0, str(error))
            if answer[0] == status and text in answer[1]:
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{path} answered {answer} for {seconds} s; log:\n{self.log}")
            time.sleep(0.05)  # another process can only be polled

    def get(self, path: str) -> tuple[int, str]:
        """Send a GET request. Return (status, body)."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def stop(self, seconds: float = PATIENCE) -> float:
        """Send SIGTERM. Return the seconds until the process has ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(seconds)
        return time.monotonic() - began

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """Send SIGKILL to master and worker."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()
