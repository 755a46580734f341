"""Shared fixtures: a separate cluster that tests may break, and a proxy in front of it."""

from collections.abc import Iterator

import pytest

from tests.support.postgres import Cluster, cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def breakable() -> Iterator[Cluster]:
    with cluster(durable=True) as running:
        yield running


@pytest.fixture(scope="session")
def load_pause(pytestconfig: pytest.Config) -> float:
    """The pause of `tests.support.workers.Load`: in `make test` other tests need the cores as well."""
    return 0.03 if pytestconfig.getoption("nightly") else 0.15


@pytest.fixture
def proxy(breakable: Cluster) -> Iterator[Proxy]:
    made = Proxy(breakable.socket_path)
    yield made
    made.close()


@pytest.fixture
def server(proxy: Proxy) -> Iterator[ServerProcess]:
    """gunicorn, connected to PostgreSQL through the proxy."""
    made = ServerProcess(proxy.url, DRAIN_SECONDS="0.2")
    yield made
    made.close()
