"""The doctor's findings on faulty databases."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2

from socketio_pg.doctor import checks_database
from socketio_pg.postgres.database import Database, session
from tests.faults.test_pooler import pooler_url as pooler_url
from tests.support.cli import doctor, run
from tests.support.postgres import Cluster, in_thread


def test_pooler_is_found(pooler_url: str, breakable: Cluster) -> None:
    with ThreadPoolExecutor() as pool:
        listening = pool.submit(run, "listen", "a", url=pooler_url)  # it gives up after a while
        found = doctor(pooler_url, 1)["LISTEN"]
        assert found["level"] == "error"
        assert "pooler in transaction mode" in found["found"]
        assert "LISTEN_DATABASE_URL" in found["remedy"]
        assert doctor(pooler_url, LISTEN_DATABASE_URL=breakable.url())["LISTEN"]["level"] == "ok"
        done = listening.result()
    assert (done.returncode, done.stdout) == (3, "")
    assert "LISTEN_DATABASE_URL" in done.stderr.splitlines()[-1]


def test_session_idle_in_a_transaction_is_found(breakable: Cluster) -> None:

    def examine() -> list[Any]:
        with session(Database(breakable.url()), "doctor") as connection:
            return list(checks_database.idle_in_transaction(connection, 0.0))

    with contextlib.closing(psycopg2.connect(breakable.url(), application_name="forgotten")) as idle:
        with idle.cursor() as cursor:
            cursor.execute("SELECT 1")
        [found] = in_thread(examine)
    assert found.level == "warning"
    assert "(forgotten) has been idle in a transaction" in found.found
    assert "pg_terminate_backend" in found.remedy
