"""The commands with which deploy/ and the Procfile start a node."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.clients import SocketClient
from tests.support.postgres import Cluster
from tests.support.server import ROOT, clean_environment, free_port


@contextlib.contextmanager
def started(*command: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The port of a node that is started so, and its process."""
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


def exit_code_after_serving(port: int, process: subprocess.Popen[bytes]) -> int:
    """How it ends at SIGTERM, after a client was served."""
    with SocketClient(f"http://127.0.0.1:{port}", wait=True) as client:
        client.subscribe("anything")
        process.send_signal(signal.SIGTERM)
        return process.wait(15)


def test_procfile(postgres18: Cluster) -> None:
    [command] = re.findall(r"^web: (.+)$", (ROOT / "Procfile").read_text("utf-8"), re.MULTILINE)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with started("sh", "-c", f"exec {command}", DATABASE_URL=postgres18.url(), PATH=path) as node:
        assert exit_code_after_serving(*node) == 0


def test_the_service_tells_systemd_when_it_is_there(postgres18: Cluster, tmp_path: Path) -> None:
    """``Type=notify``, and the environment for its port."""
    unit = (ROOT / "deploy" / "socketio_pg@.service").read_text("utf-8")
    assert "Type=notify\n" in unit
    [program] = re.findall(r"^ExecStart=\S+/socketio-pg (.+)$", unit, re.MULTILINE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        command = [sys.executable, "-m", "socketio_pg", *program.split()]
        with started(*command, DATABASE_URL=postgres18.url(), NOTIFY_SOCKET=str(tmp_path / "notify")) as node:
            assert b"READY=1" in notified.recv(1000)
            assert exit_code_after_serving(*node) == 0
