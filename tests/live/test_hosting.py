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


def test_too_many_workers_are_refused_at_the_start(newest_pg: Cluster) -> None:
    with running(newest_pg, *CONFIGURED, APP, WEB_CONCURRENCY="65") as program:
        assert program.process.wait(PATIENCE) != 0
        assert "a gunicorn may have at most 64 workers, not 65" in program.log
        assert "Traceback" not in program.log


#: gunicorn, in a Python that has no gevent, or with another version of gunicorn.
WITHOUT_GEVENT = "import sys; sys.modules['gevent'] = None"
NEWER = "import gunicorn; gunicorn.__version__ = '26.0.0'"
RUN = "from gunicorn.app.wsgiapp import run; run()"
#: A configuration of one's own; gunicorn 27 does not start without a package for it.
HTTP2 = """
import gunicorn.http2
from socketio_pg.gunicorn_config import *

gunicorn.http2.is_http2_available = lambda: True
http_protocols = "h2,h1"
"""
#: The development server and the command line, which choose the library themselves.
SERVER = "import runpy; runpy.run_module('socketio_pg.server', run_name='__main__')"
SERVE = "import sys; sys.argv[1:] = ['serve']; from socketio_pg.__main__ import main"


@pytest.mark.parametrize(
    ("command", "settings", "status", "sentence"),
    [
        ([*CONFIGURED, APP], {"GREEN": "asyncio"}, 4, "GREEN in the environment is 'asyncio'; allowed: "),
        ([*CONFIGURED, "-k", "eventlet", APP], {"SOCKETIO_PG_GREEN": "gevent"}, 4, "SOCKETIO_PG_GREEN is gevent, but"),
        ([*CONFIGURED, APP], {"GREEN": "eventlet", "GUNICORN_CMD_ARGS": "-k gevent"}, 4, "GREEN is eventlet, but"),
        ([*CONFIGURED, "-k", "gevent_pywsgi", APP], {"GREEN": ""}, 4, "does not run on gunicorn's worker class gevent"),
        ([*CONFIGURED, "--http-protocols=h2,h1", APP], {}, 4, "does not run with gunicorn's http_protocols h2,h1: "),
        (["-c", f"{WITHOUT_GEVENT}; {RUN}", *CONFIGURED[2:], APP], {"GREEN": "gevent"}, 4, "package gevent is missing"),
        (["-c", f"{NEWER}; {RUN}", *CONFIGURED[2:], APP], {"GREEN": ""}, 4, "26.0.0 has no worker class for eventlet"),
        (["-c", f"{WITHOUT_GEVENT}; {SERVER}"], {"GREEN": "gevent"}, 4, "GREEN is gevent, but the package gevent is"),
        (["-c", f"{WITHOUT_GEVENT}; {SERVE}"], {"GREEN": "gevent"}, 1, "GREEN is gevent, but the package gevent is"),
    ],
    ids=[
        "unknown", "class", "variable", "own server", "HTTP/2", "missing", "gunicorn 26", "development", "command line",
    ],
)  # fmt: skip
def test_problem_of_the_library_is_one_line(
    newest_pg: Cluster, command: list[str], settings: dict[str, str], status: int, sentence: str
) -> None:
    with running(newest_pg, *command, **settings) as program:
        assert program.process.wait(PATIENCE) == status
        [line] = program.log.splitlines()
        assert sentence in line


#: An application of one's own.
OWN = "from flask import Flask\nfrom socketio_pg.websocket import SocketServer\napp = SocketServer(Flask('own')).app"


@pytest.mark.parametrize(
    ("text", "command", "settings", "sentence"),
    [
        (HTTP2, [*BARE, "-c", "{file}", APP], {}, "does not run with gunicorn's http_protocols h2,h1: "),
        (OWN, [*CONFIGURED, "own:app"], {"AUTH": "required"}, "AUTH=required"),
        (
            f"import eventlet\neventlet.monkey_patch()\n{OWN}", [*CONFIGURED, "own:app"], {"GREEN": "gevent"},
            "worker class is gevent, but eventlet has patched the standard library",
        ),
    ],
    ids=["HTTP/2", "settings", "patched by the other library"],
)  # fmt: skip
def test_problem_of_an_application_is_one_line_of_the_log(
    newest_pg: Cluster, tmp_path: Path, text: str, command: list[str], settings: dict[str, str], sentence: str
) -> None:
    file = tmp_path / "own.py"
    file.write_text(text)
    command = [argument.replace("{file}", str(file)) for argument in command]
    with running(newest_pg, *command, "--chdir", str(tmp_path), **settings) as program:
        assert program.process.wait(PATIENCE) == 4
        [line] = [line for line in program.log.splitlines() if "socketio_pg: " in line]
        assert sentence in line
        assert "Traceback" not in program.log


@pytest.mark.parametrize(
    ("command", "settings", "problem"),
    [
        (["-c", WSGIREF], {}, "this WSGI server"),
        # gunicorn without the configuration of the package; platforms set WEB_CONCURRENCY.
        ([*BARE, "--worker-class", green.LIBRARY, APP], {"WEB_CONCURRENCY": "2"}, "only with its"),
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
