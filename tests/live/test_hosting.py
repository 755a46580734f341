"""Programs that cannot run the server end, or refuse each request, with a sentence that names the right command."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from socketio_pg.core import green
from socketio_pg.engine.hosting import COMMAND
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.raw_http import POLLING, WEBSOCKET, http
from tests.support.server import APP, ROOT, clean_environment, free_port, listens

#: Another WSGI server that serves the application: the one of the standard library.
WSGIREF = """
from socketio_pg.server import app
from wsgiref.simple_server import make_server
make_server("127.0.0.1", {port}, app).serve_forever()
"""


class Program:
    """A program on a port, in a working folder without configuration file of gunicorn's."""

    def __init__(self, database_url: str, *command: str, **settings: str) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="hosting-")
        self._log = Path(self._folder.name) / "log"
        environment = clean_environment(
            DATABASE_URL=database_url, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1", **settings
        )
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *(part.replace("{port}", str(self.port)) for part in command)],
                cwd=self._folder.name, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._folder.cleanup()


@contextmanager
def running(cluster: Cluster, *command: str, **settings: str) -> Iterator[Program]:
    made = Program(cluster.url(), *command, **settings)
    try:
        yield made
    finally:
        made.close()


BARE = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}"]
CONFIGURED = [*BARE, "-c", "python:socketio_pg.gunicorn_config"]
nightly = pytest.mark.nightly


@pytest.mark.parametrize(
    ("command", "settings", "name"),
    [
        pytest.param([*BARE, APP], {}, "worker class sync", id="sync"),
        pytest.param([*BARE, "--preload", APP], {}, "worker class sync", id="preload", marks=nightly),
        pytest.param([*BARE, "--threads", "4", APP], {}, "worker class gthread", id="gthread", marks=nightly),
        pytest.param([*CONFIGURED, "-k", "sync", APP], {}, "worker class sync", id="configured", marks=nightly),
        pytest.param([*CONFIGURED, "-w", "4", APP], {}, "runs on one worker, not 4", id="workers"),
        pytest.param([*CONFIGURED, APP], {"GUNICORN_CMD_ARGS": "-w 2"}, "not 2", id="variable", marks=nightly),
        pytest.param(["-m", "flask", "--app", APP, "run", "--port", "{port}"], {}, "flask run", id="flask run"),
    ],
)  # fmt: skip
def test_refused_at_the_start(newest_pg: Cluster, command: list[str], settings: dict[str, str], name: str) -> None:
    with running(newest_pg, *command, **settings) as program:
        assert program.process.wait(PATIENCE) != 0
        [line] = re.findall(r".*this server (?:does not run|runs) on .*", program.log)
        assert name in line
        assert COMMAND in line
        assert "Traceback" not in program.log


@pytest.mark.parametrize(
    ("command", "settings", "problem"),
    [
        (["-c", WSGIREF], {}, "this WSGI server"),
        # gunicorn without the configuration of the package; platforms set WEB_CONCURRENCY.
        ([*BARE, "--worker-class", green.LIBRARY, APP], {"WEB_CONCURRENCY": "2"}, "one worker, not"),
    ],
    ids=["another WSGI server", "several workers"],
)
def test_refused_at_the_first_request(
    newest_pg: Cluster, command: list[str], settings: dict[str, str], problem: str
) -> None:
    with running(newest_pg, *command, **settings) as program:
        until(lambda: listens(program.port), "the program listens")
        for path in (POLLING, WEBSOCKET):
            reply = http(program, path=path)
            assert (reply.status, b"its log" in reply.body) == (500, True)
        lines = re.findall(r".*this server (?:does not run|runs) on .*", program.log)
        assert 1 <= len(lines) <= 2, "once a minute in each process"
        assert problem in lines[0]
        assert COMMAND in lines[0]
        assert http(program, path="/healthz").status == 200
