"""`make run`: shows its progress, prints commands that work, and leaves no process, shared memory or folder behind.

The environment is that of the tests: installing a new one takes too long, and needs a network.
"""

import contextlib
import os
import pty
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.patience import PATIENCE, until
from tests.support.server import ROOT, clean_environment, free_port


class MakeRun:
    """A running `make run`, the leader of a session of its own, with or without a terminal."""

    def __init__(self, data_dir: Path, port: int, terminal: int | None = None) -> None:
        self.data_dir = data_dir
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        # These files are taken for up to date.
        installed = ["--old-file=.venv/.runs", "--old-file=socketio_pg/static/vendor/socket.io.min.js"]
        leader = ["setsid"] if terminal is None else ["setsid", "--ctty"]
        self.process = subprocess.Popen(
            [*leader, "make", "run", f"BIN={Path(sys.executable).parent}", *installed],
            cwd=ROOT, stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=clean_environment(
                EMBEDDED_DATA_DIR=str(data_dir), PORT=str(port), MAKEFLAGS="", TMPDIR=str(data_dir.parent)
            ),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def line(self, containing: str) -> str:
        """Return the next line that contains a text."""
        while (line := self._queue.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
            if containing in line:
                return line
        raise AssertionError(f"no line with {containing!r}: {self.lines}")

    def end(self, signum: int) -> int:
        """Send a signal to all processes of the terminal. Return the exit code of make."""
        os.killpg(self.process.pid, signum)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while not self._queue.empty() and (line := self._queue.get()) is not None:
            self.lines.append(line)
        return code

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        for pid in processes(self.data_dir):
            os.kill(pid, signal.SIGQUIT)
        until(lambda: not processes(self.data_dir), "its PostgreSQL is gone")
        assert self.process.stdout is not None
        self.process.stdout.close()


def processes(data_dir: Path) -> list[int]:
    """Return the PostgreSQL processes of a cluster that has this data directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(data_dir).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def shared_memory(data_dir: Path) -> list[Path]:
    """Return the files of the cluster's shared memory."""
    [pid, *_] = (data_dir / "postmaster.pid").read_text().splitlines()
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [Path(name) for name in set(re.findall(r"/dev/shm/PostgreSQL\.\d+", maps))]


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A path with spaces, which the library cannot use for the socket.

    It is not below pytest's folder: each pytest that starts makes that one inaccessible for PostgreSQL's system user.
    """
    with tempfile.TemporaryDirectory(prefix="make-run-") as folder:
        yield Path(folder) / "data of a run"


@contextlib.contextmanager
def running(data_dir: Path, terminal: int | None = None) -> Iterator[MakeRun]:
    with contextlib.closing(MakeRun(data_dir, free_port(), terminal)) as made:
        yield made


@pytest.mark.nightly
def test_ctrl_c_during_the_first_start_leaves_nothing_behind(data_dir: Path) -> None:
    with running(data_dir) as made:
        made.line("starting the embedded PostgreSQL in")
        until(lambda: processes(data_dir), "initdb runs")
        assert made.end(signal.SIGINT) != 0
        assert not processes(data_dir)
        printed = "\n".join(made.lines)
        assert "Traceback" not in printed
        assert "does not start" not in printed, "the database failed because it was interrupted"


def test_printed_commands_work_and_ctrl_c_leaves_nothing_behind(data_dir: Path) -> None:
    with running(data_dir) as made:
        assert made.line("starting the embedded PostgreSQL in")
        url = made.line("listens on ").rpartition(" ")[2]
        assert made.line("playground").split()[1] == f"{url}/socket-test"
        assert made.line("demos").split()[1] == f"{url}/demo/"
        inspector = made.line("inspector").split()[1]
        assert inspector == f"{url}/inspector/"
        subscribe = made.line("subscribe").partition("subscribe")[2]
        publish, psql = (made.line(name).partition(name)[2] for name in ("publish", "psql"))
        in_sql = made.line("in SQL").partition("in SQL")[2]
        made.line("Ctrl-C stops the server and its database")
        subscriber = subprocess.Popen(
            f"exec {subscribe} --count 2",
            shell=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with subscriber:
            assert subscriber.stderr is not None
            assert subscriber.stderr.readline() == "listening to foo\n"
            subprocess.run(publish, shell=True, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
            program, address = shlex.split(psql)
            subprocess.run([program, address, "-c", in_sql], check=True, capture_output=True, timeout=PATIENCE)
            out, _ = subscriber.communicate(timeout=PATIENCE)
            [(place, payload), (notified,)] = [line.split()[2:] for line in out.splitlines()]
            assert (place[0], payload, notified) == ("#", "42", '{"hello":"world"}')
        session = requests.get(f"{inspector}api/session", timeout=PATIENCE).json()
        assert (session["signed_in"], session["may_act"], session["by"]) == (True, True, "development")
        # The first page and the demos have something to show.
        api = requests.get(f"{url}/api/channels/foo/messages", {"history": 10}, timeout=PATIENCE).json()
        assert [message["payload"] for message in api["messages"]] == [{"hello": "world"}, 42]
        assert 'firstChannels = ["foo"]' in requests.get(f"{url}/static/demos.js", timeout=PATIENCE).text
        for table, rows in {"orders": 5, "person": 20, "vote": 3}.items():
            count = [program, address, "-Atc", f"SELECT count(*) FROM socketio_pg_demo.{table}"]
            assert int(subprocess.check_output(count, timeout=PATIENCE)) == rows, table
        memory = shared_memory(data_dir)
        [socket_folder] = re.findall(r"host=(\S+)", address)
        assert Path(socket_folder).exists()
        made.end(signal.SIGINT)
        assert not processes(data_dir)
        assert not [path for path in memory if path.exists()]
        assert list(data_dir.parent.iterdir()) == [data_dir], "neither a socket nor a lock is left"
        assert "Traceback" not in "\n".join(made.lines)


@pytest.mark.nightly
def test_closed_terminal_leaves_nothing_behind_even_after_a_kill(data_dir: Path) -> None:
    """A killed server cannot stop its database. The next one uses it, and stops it at its end."""
    with contextlib.closing(MakeRun(data_dir, free_port())) as killed:
        killed.line("Ctrl-C stops the server")
        killed.end(signal.SIGKILL)
        assert processes(data_dir)
        with running(data_dir) as made:
            made.line("Ctrl-C stops the server")
            made.end(signal.SIGHUP)
            until(lambda: not processes(data_dir), "the database has stopped")


@pytest.mark.nightly
def test_terminal_whose_leader_is_make_can_be_closed(data_dir: Path) -> None:
    """The kernel tells only make, which waits for the server."""
    master, slave = pty.openpty()
    with running(data_dir, slave) as made:
        os.close(slave)
        made.line("Ctrl-C stops the server")
        os.close(master)
        made.wait()
        assert not processes(data_dir)


def test_port_in_use_is_found_before_the_database_starts(data_dir: Path, live_port: int) -> None:
    with contextlib.closing(MakeRun(data_dir, live_port)) as made:
        assert made.wait() != 0
        told = [line for line in made.lines if line.startswith("socketio_pg: ")]
        assert told == [
            f"socketio_pg: cannot listen on port {live_port} of 127.0.0.1: Address already in use; "
            f"set PORT, for example PORT={live_port + 1}."
        ]
        assert not any("PostgreSQL" in line for line in made.lines)
        assert not processes(data_dir)


@pytest.mark.nightly
def test_a_damaged_database_is_told_with_its_log(data_dir: Path) -> None:
    damaged = data_dir.with_name("damaged")
    damaged.mkdir()
    (damaged / "PG_VERSION").write_text("18\n")
    try:
        with running(damaged) as made:
            assert made.wait() != 0
            [told] = [line for line in made.lines if line.startswith("socketio_pg: ")]
            assert told.startswith(f"socketio_pg: The embedded PostgreSQL in {damaged} does not start: pg_ctl: ")
            assert f"(see {damaged / 'log'})" in told
    finally:
        shutil.rmtree(damaged)


@pytest.fixture
def live_port() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
