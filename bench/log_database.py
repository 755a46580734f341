"""The PostgreSQL of the log's benchmark: embedded, stock settings, a fresh database with the log for each trial."""

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
"""A role for one of two nodes, so that its statements can be told apart and its logins be forbidden."""

CHANNEL = "orders"
PAYLOAD_BYTES = 100
RELAY_LOCK = (1399803975, 1)
"""socketio_pg.schema.LOCK_CLASS and RELAY_LOCK; not imported, which would bring eventlet in."""


class Cluster(EmbeddedPostgres):
    """A cluster whose log (a file) tells the role of each statement. Nothing else differs from the stock settings."""

    def prepare(self) -> None:
        with closing(connect(self.url())) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET log_line_prefix = '%u %p '")
            cursor.execute("SELECT pg_reload_conf()")
            cursor.execute(f"CREATE ROLE {NODE_ROLE} LOGIN")

    def version_number(self) -> str:
        with closing(connect(self.url())) as connection:
            return str(connection.info.parameter_status("server_version"))

    def fdatasync_us(self) -> float:
        """What fdatasync() of 8 KB costs on this disk: far under a millisecond means that commits are all but free."""
        times: list[float] = []
        with tempfile.TemporaryFile(dir=self.data_dir.parent, buffering=0) as scratch:
            # Over and over the same place, as WAL's segments are recycled.
            scratch.write(bytes(1 << 20))
            for _ in range(500):
                scratch.seek(0)
                scratch.write(bytes(8192))
                before = time.monotonic()
                os.fdatasync(scratch.fileno())
                times.append(time.monotonic() - before)
        return median(times) * 1e6

    def log_statements(self, on: bool) -> None:
        """Writes every statement of new sessions of NODE_ROLE to the log."""
        with closing(connect(self.url())) as connection, connection.cursor() as cursor:
            cursor.execute(f"ALTER ROLE {NODE_ROLE} " + ("SET log_statement = 'all'" if on else "RESET log_statement"))

    def log_size(self) -> int:
        return (self.data_dir / "log").stat().st_size

    def statements_since(self, offset: int) -> list[str]:
        """The statements of NODE_ROLE in the log from this offset on, several lines each."""
        with (self.data_dir / "log").open("rb") as file:
            file.seek(offset)
            text = file.read().decode(errors="replace")
        entries = re.split(r"^(?=\S+ \d+ [A-Z]+:  )", text, flags=re.MULTILINE)
        return [entry for entry in entries if re.match(rf"{NODE_ROLE} \d+ LOG:  statement: ", entry)]

    @contextmanager
    def database(self, name: str) -> Iterator[str]:
        """The URL of a new database with the log installed as its documentation says; dropped on the way out."""
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
            # What earlier trials left to be written shall not be written during this one.
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
    """The one value that a query answers."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchone()[0]


def head(connection: Any) -> int:
    """The newest position."""
    return int(one(connection, "SELECT coalesce(max(position), 0) FROM socketio_pg.log"))


def published(connection: Any) -> int:
    """How many have been published in this database, if no transaction ever rolled back. O(1), unlike counting."""
    return int(one(connection, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM socketio_pg.outbox_id_seq"))


def wait_until_relayed(connection: Any, seconds: float) -> int:
    """Until everything that was published has its position; returns the newest. Raises TimeoutError."""
    wanted = published(connection)
    deadline = time.monotonic() + seconds
    while head(connection) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"position {head(connection)} of {wanted} after {seconds:.0f} s")
        time.sleep(0.02)
    return wanted


def relay_backend(connection: Any) -> int:
    """The process of PostgreSQL in which the relay's statements run; waits until some node relays."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pid = one(
            connection,
            "SELECT max(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            *RELAY_LOCK,
        )
        if pid is not None:
            return int(pid)
        time.sleep(0.1)
    raise TimeoutError("no node relays")


def payload(number: str) -> str:
    """100 bytes as PostgreSQL writes jsonb, with `number` (nine digits, or what will become them) and one MARKER."""
    head = '{"m": "^", "n": '
    return f'{head}{number}, "p": "{"x" * (PAYLOAD_BYTES - len(head) - 9 - 8 - 2)}"}}'
