"""The commands with which deploy/ and the Procfile start a node."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.clients import SocketClient
from tests.support.postgres import Cluster
from tests.support.server import ROOT, clean_environment, free_port


def test_procfile(postgres18: Cluster) -> None:
    [command] = re.findall(r"^web: (.+)$", (ROOT / "Procfile").read_text("utf-8"), re.MULTILINE)
    port = free_port()
    environment = clean_environment(DATABASE_URL=postgres18.url(), PORT=str(port), DRAIN_SECONDS="0.2")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command}"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with SocketClient(f"http://127.0.0.1:{port}", wait=True) as client:
            client.subscribe("anything")
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_service_tells_systemd_when_it_is_there(postgres18: Cluster, tmp_path: Path) -> None:
    """``Type=notify``, and the environment for its port."""
    unit = (ROOT / "deploy" / "socketio_pg@.service").read_text("utf-8")
    assert "Type=notify\n" in unit
    [program] = re.findall(r"^ExecStart=\S+/socketio-pg (.+)$", unit, re.MULTILINE)
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        environment = clean_environment(DATABASE_URL=postgres18.url(), PORT=str(port), DRAIN_SECONDS="0.2")
        process = subprocess.Popen(
            [sys.executable, "-m", "socketio_pg", *program.split()],
            cwd=ROOT, env=environment | {"NOTIFY_SOCKET": str(tmp_path / "notify")}, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert b"READY=1" in notified.recv(1000)
            with SocketClient(f"http://127.0.0.1:{port}", wait=True) as client:
                client.subscribe("anything")
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
