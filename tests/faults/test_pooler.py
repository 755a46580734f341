"""A real PgBouncer in transaction mode: LISTEN seems to succeed, but no notification arrives."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from socketio_pg import PostgresManager
from socketio_pg.core.errors import DatabaseError
from tests.support.clients import SocketClient
from tests.support.missing import missing
from tests.support.patience import until
from tests.support.postgres import Cluster, in_thread
from tests.support.server import ServerProcess, free_port


def accepts_connections(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture
def pooler_url(breakable: Cluster) -> Iterator[str]:
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("the pooler's tests", "install PgBouncer (apt install pgbouncer)")
    folder, port = Path(tempfile.mkdtemp(prefix="pgbouncer-")), free_port()
    folder.chmod(0o777)
    host = make_url(breakable.url()).query["host"]
    (folder / "users").write_text('"postgres" ""\n')
    (folder / "ini").write_text(
        f"[databases]\npostgres = host={host} dbname=postgres user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {folder}/users\n"
        "pool_mode = transaction\nignore_startup_parameters = extra_float_digits\n"
    )
    # PgBouncer refuses to run as root, and must be able to read the cluster's socket.
    user = ["-u", breakable.data_dir.owner()] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, *user, str(folder / "ini")], stderr=subprocess.DEVNULL)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        until(lambda: accepts_connections(url), "PgBouncer comes up")
        yield url
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def test_pooler_is_detected_and_the_remedy_named(pooler_url: str) -> None:
    server = ServerProcess(pooler_url, wait="http")
    try:
        server.wait_for("/readyz", 503, "LISTEN_DATABASE_URL")
        until(lambda: "LISTEN_DATABASE_URL" in server.log, "the remedy is logged")
        with SocketClient(server.url) as client:
            assert client.call("subscribe", {"channel": "foo"})["error"]["code"] == "database_unavailable"
    finally:
        server.close()


def test_server_can_publish_through_a_pooler_and_listen_directly(
    pooler_url: str, breakable: Cluster, channel: str
) -> None:
    server = ServerProcess(pooler_url, LISTEN_DATABASE_URL=breakable.url())
    try:
        with SocketClient(server.url) as client:
            client.subscribe(channel)
            assert client.call("publish", {"channel": channel, "payload": 1})["ok"] is True
            assert client.next("event")["payload"] == 1
    finally:
        server.close()


def test_postgres_manager_can_write_through_a_pooler_but_not_listen(pooler_url: str, breakable: Cluster) -> None:
    """In transaction mode, a session that listens is passed on to other clients."""

    def work() -> None:
        key = "k" * 32
        receiver = PostgresManager(breakable.url(), cluster_key=key)
        direct = receiver._notifications()
        assert next(direct) is None
        PostgresManager(pooler_url, write_only=True, cluster_key=key).emit("news", 1)
        assert '"news"' in str(receiver._sealer.open(receiver.channel, str(next(direct))))
        direct.close()
        pooled = PostgresManager(pooler_url, cluster_key=key)
        pooled.proof_timeout = 1.0
        with pytest.raises(DatabaseError, match="a pooler in transaction mode is in between"):
            next(pooled._notifications())

    in_thread(work)


def test_addresses_of_different_databases_are_detected(breakable: Cluster) -> None:
    server = ServerProcess(breakable.url(), wait="http", LISTEN_DATABASE_URL=breakable.url("template1"))
    try:
        server.wait_for("/readyz", 503, "another database")
        until(lambda: "another database" in server.log, "it is logged")
    finally:
        server.close()
