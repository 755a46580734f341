"""AUTO_INIT on a real database: the log is installed, and again when it is missing."""

from collections.abc import Callable

import pytest

from socketio_pg.core import green
from socketio_pg.log.installer import Installer
from socketio_pg.postgres.database import Database
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster

NAME = "installer"


@pytest.fixture
def empty(newest_pg: Cluster) -> Cluster:
    """The cluster, with a database without a log."""
    recreate(newest_pg)
    return newest_pg


def recreate(cluster: Cluster) -> None:
    cluster.sql(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")
    cluster.sql(f"CREATE DATABASE {NAME}")


def test_log_is_installed_again_in_a_new_database(empty: Cluster) -> None:
    installed: list[int] = []
    known = False
    installer = Installer(Database(empty.url(NAME)), 1000, lambda: known, lambda: installed.append(1))
    installer.interval = 0.02
    installer.backoff = (0.02, 0.1)
    installer.start()
    try:
        wait_until(lambda: len(installed) == 1)
        known = True
        recreate(empty)
        green.sleep(3 * installer.interval)
        assert len(installed) == 1, "this node still knows the log"
        known = False
        wait_until(lambda: len(installed) >= 2)
        # The operator learns why the log is missing.
        empty.sql(f"DROP DATABASE {NAME} WITH (FORCE)")
        wait_until(lambda: "could not be installed" in installer.problem)
        assert f'database "{NAME}" does not exist' in installer.problem
        assert NAME not in installer.problem.public
    finally:
        installer.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    with green.timeout(PATIENCE):
        while not condition():
            green.sleep(0.01)
