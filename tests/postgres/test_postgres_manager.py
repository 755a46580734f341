"""PostgresManager in a separate process without green threads."""

import subprocess
import sys

import pytest

from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster

MANY_DESCRIPTORS = """
import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [os.dup(0) for _ in range(1100)]
"""

PROGRAM = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from socketio_pg import PostgresManager
from socketio_pg.cluster.chunks import Assembler

assert not {"eventlet", "gevent"} & set(sys.modules)
manager = PostgresManager(sys.argv[1], channel=sys.argv[2], cluster_key="k" * 32)
parts, assembler = manager._notifications(), Assembler()
assert next(parts) is None  # listening has begun
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda number: manager.emit("news", [number, "é" * 20_000]), range(40)))
opened = [manager._sealer.open(sys.argv[2], next(parts)) for _ in range(40 * 21)]
texts = [text for text in map(assembler.add, opened) if text is not None]
assert sorted(json.loads(text)["data"][0] for text in texts) == [[number, "é" * 20_000] for number in range(40)]
"""


@pytest.mark.parametrize(
    ("channel", "before"),
    [
        pytest.param("socketio_pg_queue", "", id="usual", marks=pytest.mark.nightly),
        pytest.param('an "odd" name', MANY_DESCRIPTORS, id="odd name, over 1,023 descriptors"),
        pytest.param("socketio_pg_queue", MANY_DESCRIPTORS, id="over 1,023 descriptors", marks=pytest.mark.nightly),
        pytest.param('an "odd" name', "", id="odd name", marks=pytest.mark.nightly),
    ],
)
def test_emits_from_threads_arrive_complete(postgres: Cluster, channel: str, before: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", before + PROGRAM, postgres.url(), channel],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
