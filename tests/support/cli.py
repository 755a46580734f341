"""Runs the command ``socketio-pg`` in separate processes, like a shell."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from socketio_pg.postgres import schema
from tests.support import forks
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ROOT, clean_environment

COMMAND = [sys.executable, "-m", "socketio_pg"]


def environment(url: str | None, settings: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the test's settings and without the developer's."""
    database = {} if url is None else {"DATABASE_URL": url}
    # The command's working folder has neither local.cfg nor the package.
    return clean_environment(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1", **database, **settings)


def start(
    arguments: Sequence[str], url: str | None, settings: Mapping[str, str], cwd: Path | None = None, stdin: str = ""
) -> tuple[forks.Process, IO[str], IO[str]]:
    """Start a command. Returns its process, and its output and standard error, which are pipes."""
    (out, out_of_command), (err, err_of_command) = os.pipe(), os.pipe()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as given:
        given.write(stdin)
        given.seek(0)
        process = forks.start(
            "socketio_pg", *arguments, directory=cwd or ROOT / "tests", environment=environment(url, settings),
            descriptors=(given.fileno(), out_of_command, err_of_command), new_session=True,
        )  # fmt: skip
    os.close(out_of_command)
    os.close(err_of_command)
    return process, os.fdopen(out, encoding="utf-8"), os.fdopen(err, encoding="utf-8")


def run(
    *arguments: str, url: str | None = None, stdin: str = "", cwd: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with piped output."""
    process, out, err = start(arguments, url, settings, cwd, stdin)
    with out, err, ThreadPoolExecutor() as pool:
        read = [pool.submit(stream.read) for stream in (out, err)]
        try:
            code = process.wait(PATIENCE)
        finally:
            kill(process)
        return subprocess.CompletedProcess(arguments, code, *(text.result() for text in read))


def kill(process: forks.Process) -> None:
    """End the process and its children, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Running:
    """A command that runs until it is interrupted, whose output lines can be awaited."""

    def __init__(self, *arguments: str, url: str | None = None, **settings: str) -> None:
        self.process, *self._streams = start(arguments, url, settings)
        self._lines: dict[str, queue.Queue[str | None]] = {"out": queue.Queue(), "err": queue.Queue()}
        self._threads = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in zip(("out", "err"), self._streams, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str, stream: Any) -> None:
        for line in stream:
            self._lines[name].put(line.rstrip("\n"))
        self._lines[name].put(None)

    def line(self, stream: str = "out", containing: str = "") -> str:
        """Return the next line of ``out`` or ``err`` that contains a text. Drop the lines before it."""
        while True:
            line = self._lines[stream].get(timeout=PATIENCE)
            assert line is not None, f"the command ended without {containing!r}"
            if containing in line:
                return line

    def rest(self, stream: str = "err") -> list[str]:
        """Return the remaining lines until the process ends."""
        lines = []
        while (line := self._lines[stream].get(timeout=PATIENCE)) is not None:
            lines.append(line)
        return lines

    def interrupt(self) -> int:
        """Send Ctrl-C. Return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end. Return the exit code."""
        return self.process.wait(PATIENCE)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        kill(self.process)
        for thread in self._threads:
            thread.join()
        for stream in self._streams:
            stream.close()


class Base:
    """A new database."""

    def __init__(self, cluster: Cluster, *, log: bool) -> None:
        self.cluster = cluster
        self.name = f"cli_{uuid.uuid4().hex[:8]}"
        cluster.sql(f"CREATE DATABASE {self.name}")
        self.url = cluster.url(self.name)
        if log:
            self.sql(schema.statements(1_000_000))

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        connection = self.cluster.connect(self.name)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def log(self, *payloads: str, channel: str = "a", first: int = 1) -> None:
        """Insert messages into the log like the relay."""
        for position, payload in enumerate(payloads, first):
            self.sql(
                "INSERT INTO socketio_pg.log (position, channel, payload, size, published_at)"
                " VALUES (%s, %s, %s, %s, now())",
                position, channel, payload, len(payload),
            )  # fmt: skip

    @property
    def epoch(self) -> str:
        [(epoch,)] = self.sql("SELECT epoch::text FROM socketio_pg.head")
        return str(epoch)


def doctor(url: str, code: int = 0, **settings: Any) -> dict[str, dict[str, Any]]:
    """Run the doctor. Return {check: finding}."""
    done = run("doctor", "--json", url=url, **settings)
    assert (done.returncode, done.stderr) == (code, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for finding in found:
        assert (finding["remedy"] is None) == (finding["level"] == "ok")
    return {finding["check"]: finding for finding in found}


def level(found: dict[str, dict[str, Any]], check: str) -> str | None:
    return found[check]["level"] if check in found else None
