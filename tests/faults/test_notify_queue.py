"""A full NOTIFY queue: what publishers and the operator see, and that it ends with its cause."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from socketio_pg.core import green
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import Listener
from tests.support.cli import doctor
from tests.support.clients import SocketClient, code
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, cluster, in_thread
from tests.support.server import ServerProcess

# In older ones it has 8 GB, and its size cannot be set: these tests would have to fill them.
pytestmark = pytest.mark.since_postgres(17)


@pytest.fixture(scope="module")
def small_queue() -> Iterator[Cluster]:
    """A cluster with the smallest possible NOTIFY queue: 64 pages of 8 KB."""
    with cluster() as running:
        running.sql("ALTER SYSTEM SET max_notify_queue_pages = 64")
        running.restart()
        yield running


@contextlib.contextmanager
def forgotten_session(cluster: Cluster) -> Iterator[Any]:
    """A session that listens, and stays in a transaction: PostgreSQL keeps all notifications for it."""
    with contextlib.closing(in_thread(psycopg2.connect, f"{cluster.url()}&application_name=forgotten")) as listener:
        in_thread(_listen, listener)
        yield listener


def _listen(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("LISTEN filling")
        connection.commit()
        cursor.execute("SELECT 1")


def fill(cluster: Cluster) -> None:
    """Notify, with a commit for each message, until PostgreSQL refuses it."""
    with pytest.raises(psycopg2.errors.ProgramLimitExceeded):
        in_thread(_fill, cluster)


def _fill(cluster: Cluster) -> None:
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        for n in range(1000):
            cursor.execute("SELECT pg_notify('filling', %s || repeat('x', 7000))", (n,))


def test_filling_queue_is_found(small_queue: Cluster) -> None:
    with forgotten_session(small_queue):
        small_queue.sql("SELECT count(pg_notify('filling', n || repeat('x', 7000))) FROM generate_series(1, 40) AS n")
        found = doctor(small_queue.url(), 1)["NOTIFY queue"]
    assert found["level"] == "error"
    assert "pg_terminate_backend" in found["remedy"]


def test_full_queue_refuses_messages_and_the_doctor_names_the_session(small_queue: Cluster, channel: str) -> None:
    server = ServerProcess(small_queue.url(), DRAIN_SECONDS="0.2")
    try:
        with forgotten_session(small_queue) as forgotten, SocketClient(server.url) as client:
            fill(small_queue)
            answer = client.call("publish", {"channel": channel, "payload": 1})
            assert code(answer) == "database_unavailable"
            assert "does not accept messages" in answer["error"]["message"], "it is known that nothing was sent"
            assert "too many notifications in the NOTIFY queue" in server.log
            found = doctor(small_queue.url(), 1)
            assert "NOTIFY queue" in found["LISTEN"]["found"]
            session = f"{forgotten.info.backend_pid} (forgotten, database postgres, idle in transaction"
            assert session in found["NOTIFY queue"]["found"]
    finally:
        server.close()


def test_listener_frees_a_full_queue_that_every_session_has_read(small_queue: Cluster) -> None:
    listener = Listener(Database(small_queue.url()), lambda notifications: None, lambda gap: None)
    listener.heartbeat_interval = 0.05
    try:
        with forgotten_session(small_queue):
            fill(small_queue)
        with pytest.raises(psycopg2.errors.ProgramLimitExceeded):
            small_queue.notify("other")  # PostgreSQL does not free it
        # Connecting frees it: the listener notifies itself.
        listener.start()
        listener.acquire("other")
        listener.wait("other", PATIENCE)
        # So does a heartbeat.
        with forgotten_session(small_queue):
            fill(small_queue)
        with green.timeout(PATIENCE):
            while not accepts_notifications(small_queue):
                green.sleep(0.05)
    finally:
        listener.stop()


def accepts_notifications(cluster: Cluster) -> bool:
    try:
        cluster.notify("other")
    except psycopg2.errors.ProgramLimitExceeded:
        return False
    return True
