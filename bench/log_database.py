"""PostgreSQL for the log's benchmark: embedded, default settings, a fresh database with the log for each trial."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg2

from bench.servers import ROOT
from socketio_pg.postgres.embedded import EmbeddedPostgres

NODE_ROLE = "bench_node"
"""The role of one of two nodes: it identifies the node's statements, and its logins can be refused."""

CHANNEL = "orders"
PAYLOAD_BYTES = 100


class Cluster(EmbeddedPostgres):
    """A cluster that logs the role of each statement to a file, and times its flushes; otherwise default settings."""

    def prepare(self) -> None:
        with closing(connect(self.url())) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET log_line_prefix = '%u %p '")
            cursor.execute("ALTER SYSTEM SET track_wal_io_timing = on")
            cursor.execute("ALTER SYSTEM SET commit_siblings = 0")
            cursor.execute("SELECT pg_reload_conf()")
            cursor.execute(f"CREATE ROLE {NODE_ROLE} LOGIN")

    def version_number(self) -> str:
        with closing(connect(self.url())) as connection:
            return str(connection.info.parameter_status("server_version"))

    def fdatasync_us(self) -> float:
        """Return the time of an fdatasync() of 8 KB on this disk. Far below 1 ms means that commits are almost free."""
        times: list[float] = []
        with tempfile.TemporaryFile(dir=self.data_dir.parent, buffering=0) as scratch:
            # Writes to the same place each time, because PostgreSQL recycles WAL segments.
            scratch.write(bytes(1 << 20))
            for _ in range(500):
                scratch.seek(0)
                scratch.write(bytes(8192))
                before = time.monotonic()
                os.fdatasync(scratch.fileno())
                times.append(time.monotonic() - before)
        return median(times) * 1e6

    @contextmanager
    def slower_flushes(self, ms: float) -> Iterator[None]:
        """Make each flush of the WAL take this much longer, as on a slower disk.

        `commit_delay` is the time for which the session that flushes sleeps first, with the lock on the WAL.
        """
        self._delay_flushes(ms)
        try:
            yield
        finally:
            self._delay_flushes(0)

    def _delay_flushes(self, ms: float) -> None:
        with closing(connect(self.url())) as connection, connection.cursor() as cursor:
            cursor.execute(f"ALTER SYSTEM SET commit_delay = {ms * 1000:.0f}")
            cursor.execute("SELECT pg_reload_conf()")
        applied = False
        while not applied:
            with closing(connect(self.url())) as connection:
                applied = int(one(connection, "SHOW commit_delay")) == round(ms * 1000)

    def log_statements(self, on: bool) -> None:
        """Write every statement of new sessions of NODE_ROLE to the log file, or stop writing them."""
        with closing(connect(self.url())) as connection, connection.cursor() as cursor:
            cursor.execute(f"ALTER ROLE {NODE_ROLE} " + ("SET log_statement = 'all'" if on else "RESET log_statement"))

    def log_size(self) -> int:
        return (self.data_dir / "log").stat().st_size

    def statements_since(self, offset: int) -> list[str]:
        """Return the statements of NODE_ROLE in the log file from this offset on; each may have several lines."""
        with (self.data_dir / "log").open("rb") as file:
            file.seek(offset)
            text = file.read().decode(errors="replace")
        entries = re.split(r"^(?=\S+ \d+ [A-Z]+:  )", text, flags=re.MULTILINE)
        return [entry for entry in entries if re.match(rf"{NODE_ROLE} \d+ LOG:  statement: ", entry)]

    @contextmanager
    def database(self, name: str) -> Iterator[str]:
        """Yield the URL of a new database with the log installed by `socketio-pg init`; drop it at the end."""
        with closing(connect(self.url())) as connection, connection.cursor() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            cursor.execute(f'CREATE DATABASE "{name}"')
            url = self.url(name)
            subprocess.run(
                [sys.executable, "-m", "socketio_pg", "init", "--server-role", NODE_ROLE],
                cwd=ROOT,
                env={**os.environ, "DATABASE_URL": url},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            # So that dirty pages of earlier trials are not written during this one.
            cursor.execute("CHECKPOINT")
            try:
                yield url
            finally:
                cursor.execute(f"ALTER ROLE {NODE_ROLE} LOGIN")
                cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def running() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="socketio_pg_bench_"))
    cluster = Cluster(folder / "data")
    cluster.start()
    try:
        cluster.prepare()
        yield cluster
    finally:
        cluster.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def of_node_role(url: str) -> str:
    return url.replace("//postgres@", f"//{NODE_ROLE}@")


def connect(url: str) -> Any:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def one(connection: Any, sql: str, *parameters: object) -> Any:
    """Return the single value of a query."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchone()[0]


def head(connection: Any) -> int:
    """Return the newest position."""
    return int(one(connection, "SELECT coalesce(max(position), 0) FROM socketio_pg.log"))


def published(connection: Any) -> int:
    """Return how many messages were published, provided that no transaction rolled back. O(1), unlike count(*)."""
    return int(one(connection, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM socketio_pg.outbox_id_seq"))


def wait_until_relayed(connection: Any, seconds: float) -> int:
    """Wait until all published messages have positions. Return the newest. Raises TimeoutError."""
    wanted = published(connection)
    deadline = time.monotonic() + seconds
    while head(connection) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"position {head(connection)} of {wanted} after {seconds:.0f} s")
        time.sleep(0.02)
    return wanted


def relay_backend(connection: Any) -> int:
    """Return the process id of the relay's PostgreSQL backend. Waits until a node relays."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pid = one(
            connection,
            "SELECT max(pid) FROM socketio_pg.head JOIN pg_stat_activity"
            " ON pid = session_pid AND backend_start = session_started",
        )
        if pid is not None:
            return int(pid)
        time.sleep(0.1)
    raise TimeoutError("no node relays")


def payload(number: str) -> str:
    """Return 100 bytes of jsonb as text, with `number` (nine digits, or a pgbench variable) and one MARKER."""
    head = '{"m": "^", "n": '
    return f'{head}{number}, "p": "{"x" * (PAYLOAD_BYTES - len(head) - 9 - 8 - 2)}"}}'
