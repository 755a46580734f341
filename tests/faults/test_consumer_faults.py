"""Durable consumers whose processes are killed between the work and the commit: each message has exactly one effect."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.log import Log, wait_installed
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.server import ROOT, clean_environment

PROGRAM = """
import os, random, signal, sys
import psycopg
from socketio_pg.consumer import Consumer

url, name, batch, chance = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])


def handle(connection, message):
    connection.execute("INSERT INTO effect (number) VALUES (%s)", [message["payload"][0]])
    if random.random() < chance:
        os.kill(os.getpid(), signal.SIGKILL)


with Consumer(lambda: psycopg.connect(url), name, channels=[name], start="earliest", batch=batch, poll=0.1) as consumer:
    consumer.run(handle)
"""


class Killed:
    """A consumer's program, started again whenever it has killed itself."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self._command = [sys.executable, str(program), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def keep_running(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            # 1: its first connection was terminated, which it reports.
            assert self._process.returncode in (-9, 1)
            self.kills += 1
        environment = clean_environment(PYTHONPATH=str(ROOT))
        self._process = subprocess.Popen(self._command, env=environment)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "consumer_faults", AUTO_INIT="1")
    wait_installed(made)
    # Without a primary key: it would make a second effect impossible instead of visible.
    made.sql("CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY, number int)")
    yield made
    made.server.close()


def consume_all(
    log: Log, channel: str, folder: Path, total: int, chance: float, disturb: Callable[[int], None] = lambda _: None
) -> int:
    """Let two programs of one name, which kill themselves, do ``total`` messages. Return the number of kills."""
    program = folder / "consuming.py"
    program.write_text(PROGRAM)
    log.sql("TRUNCATE effect")
    published = 0
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(contextlib.closing(Killed(program, log.url, channel, batch, str(chance))))
            for batch in ("1", "4")
        ]

        def finished() -> bool:
            nonlocal published
            for one in programs:
                one.keep_running()
            if published < total:
                disturb(published)
                log.publish(channel, published + 1, published + 5)
                published += 5
            return log.sql("SELECT count(*) FROM effect") >= [(total,)]

        until(finished, "each message has an effect", 300)
        assert log.sql("SELECT number FROM effect ORDER BY id") == [(number,) for number in range(1, total + 1)]
        return sum(one.kills for one in programs)


def test_killed_consumers_do_each_message_once(log: Log, channel: str, tmp_path: Path) -> None:
    consume_all(log, channel, tmp_path, 20, 0.15)


@pytest.mark.nightly
def test_killed_consumers_while_the_database_and_the_server_restart(log: Log, channel: str, tmp_path: Path) -> None:
    def disturb(published: int) -> None:
        if published % 50 == 25:
            log.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        if published == 100:
            log.server.kill()
        if published == 150:
            log.server.start()

    assert consume_all(log, channel, tmp_path, 300, 0.05, disturb) > 0
