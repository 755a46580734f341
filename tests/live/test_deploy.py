"""The commands of deploy/ and the Procfile that start a node."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketio_pg.core import green
from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ROOT, clean_environment, free_port, listens


@contextlib.contextmanager
def started(*command: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a node with ``command``; yield its port and process."""
    port = free_port()
    process = subprocess.Popen(
        command,
        cwd=ROOT, env=clean_environment(PORT=str(port), DRAIN_SECONDS="0.2", **environment), stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield port, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def exit_code_after_sigterm(port: int, process: subprocess.Popen[bytes], workers: int = 1) -> int:
    """Return the exit code of a SIGTERM that is sent while a client is connected and that many workers run."""
    with SocketClient(f"http://127.0.0.1:{port}", wait=True) as client:
        client.subscribe("anything")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: len(children.read_text().split()) == workers, "all workers run")
        process.send_signal(signal.SIGTERM)
        return process.wait(PATIENCE)


def test_procfile_starts_a_node(newest_pg: Cluster) -> None:
    """It names the worker class, which must not differ from GREEN."""
    [command] = re.findall(r"^web: (.+)$", (ROOT / "Procfile").read_text("utf-8"), re.MULTILINE)
    command = command.replace("--worker-class eventlet", f"--worker-class {green.LIBRARY}")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with started("sh", "-c", f"exec {command}", DATABASE_URL=newest_pg.url(), PATH=path) as node:
        assert exit_code_after_sigterm(*node) == 0


@pytest.mark.nightly
def test_serve_starts_as_many_workers_as_it_is_told(newest_pg: Cluster) -> None:
    command = [sys.executable, "-m", "socketio_pg", "serve", "--workers", "2"]
    with started(*command, DATABASE_URL=newest_pg.url(), WEB_CONCURRENCY="4") as node:
        assert exit_code_after_sigterm(*node, workers=2) == 0


def test_service_notifies_systemd_when_ready(newest_pg: Cluster, tmp_path: Path) -> None:
    """Runs the unit's ``ExecStart``, with the port from the environment, on all addresses of the machine.

    A platform's WEB_CONCURRENCY starts several workers.
    """
    unit = (ROOT / "deploy" / "socketio_pg@.service").read_text("utf-8")
    assert "Type=notify\n" in unit
    [program] = re.findall(r"^ExecStart=\S+/socketio-pg (.+)$", unit, re.MULTILINE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE)
        command = [sys.executable, "-m", "socketio_pg", *program.split()]
        settings = {"HOST": "::", "WEB_CONCURRENCY": "2", "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with started(*command, DATABASE_URL=newest_pg.url(), **settings) as node:
            assert b"READY=1" in notified.recv(1000)
            assert listens(node[0], "::1")
            assert exit_code_after_sigterm(*node, workers=2) == 0
