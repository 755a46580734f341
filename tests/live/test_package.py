"""The package as users install it: built as a wheel, installed into an empty environment, run."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ROOT, clean_environment, free_port


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_contains_the_package_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "socketio_pg/py.typed",
        "socketio_pg/static/test.html",
        "socketio_pg/static/test.css",
        "socketio_pg/static/test.js",
        "socketio_pg/static/socketio_pg.js",
        "socketio_pg/sql/1_tables.sql",
        "socketio_pg/sql/2_functions.sql",
    } <= names
    assert not any(name.startswith(("tests", "bench", "docs")) for name in names)


@pytest.mark.timeout(300)
def test_wheel_runs_in_an_empty_environment(
    wheel: Path, tmp_path: Path, postgres18: Cluster, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the checkout on the path, pip would consider the package installed.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    command = tmp_path / "env" / "bin" / "socketio-pg"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, capture_output=True)
    # Development tools are not installed as dependencies.
    listed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout.lower()
    assert "pgserver" not in listed
    assert "pytest" not in listed
    version = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
    assert version.startswith("socketio-pg, version ")
    started = subprocess.run(
        [command, "serve"],
        cwd=tmp_path,
        env=clean_environment(DEBUG="1"),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert "socketio_pg[embedded]" in started.stderr, "the missing extra for the embedded PostgreSQL must be reported"
    port = free_port()
    environment = clean_environment(DATABASE_URL=postgres18.url(), PORT=str(port))
    process = subprocess.Popen([command, "serve"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        with SocketClient(f"http://127.0.0.1:{port}", wait=True) as client:
            client.subscribe(channel)
            postgres18.notify(channel, "1")
            assert client.next("event")["payload"] == 1
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert os.listdir(tmp_path) == ["env"], "the server must leave no files behind"  # noqa: PTH208
