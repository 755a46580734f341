"""A database login without rights attacks what servers tell each other: it can neither read, forge nor repeat it."""

import contextlib

import pytest

from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture
def empty(postgres18: Cluster) -> str:
    """The address of a database without the schema."""
    postgres18.sql("DROP DATABASE IF EXISTS hostile_empty WITH (FORCE)")
    postgres18.sql("CREATE DATABASE hostile_empty")
    return postgres18.url("hostile_empty")


# -- without a key -----------------------------------------------------------------------------------------------------


def test_a_server_with_a_message_queue_and_no_key_refuses_to_start(empty: str) -> None:
    with contextlib.closing(ServerProcess(empty, wait="nothing", MESSAGE_QUEUE="postgres")) as server:
        assert server.process.wait(PATIENCE) == 4
        [line] = [line for line in server.log.splitlines() if "MESSAGE_QUEUE is set, but" in line]
        assert "'socketio-pg init' (or AUTO_INIT=1), or set CLUSTER_KEY" in line
        assert "Traceback" not in server.log


def test_with_auto_init_the_key_is_made_first(empty: str) -> None:
    with contextlib.closing(ServerProcess(empty, MESSAGE_QUEUE="postgres", AUTO_INIT="1")) as server:
        assert server.get("/readyz")[0] == 200


def test_a_role_that_may_not_read_the_key_is_told_the_grant(postgres18: Cluster, empty: str) -> None:
    with contextlib.closing(ServerProcess(empty, AUTO_INIT="1")):
        pass
    postgres18.sql("DROP ROLE IF EXISTS hostile_web")
    postgres18.sql("CREATE ROLE hostile_web LOGIN")
    url = empty.replace("postgres@", "hostile_web@")
    with contextlib.closing(ServerProcess(url, wait="nothing", MESSAGE_QUEUE="postgres")) as server:
        assert server.process.wait(PATIENCE) == 4
        assert "GRANT SELECT ON socketio_pg.cluster_key TO hostile_web" in server.log


def test_a_server_whose_database_is_down_starts_and_is_not_ready() -> None:
    url = "postgresql://postgres@127.0.0.1:1/postgres"
    with contextlib.closing(ServerProcess(url, wait="http", MESSAGE_QUEUE="postgres")) as server:
        server.wait_for("/readyz", 503, '"keys":"the cluster key cannot be read')
