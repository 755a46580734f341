"""Fixtures that all tests share: a real PostgreSQL and a real server."""

import resource
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import leftovers
from tests.support.postgres import Cluster, cluster
from tests.support.server import ServerProcess

# The versions that the embedded PostgreSQL's wheel carries.
VERSIONS = (18, 16)


def pytest_configure() -> None:
    """Thousands of clients are thousands of descriptors, here and in the servers, which inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(scope="module", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """What still runs after its module disturbs others' tests: a client that goes on coming back, for example."""
    before = leftovers.running()
    yield
    left = leftovers.left_since(before)
    assert not left, "left running by this module's tests:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def postgres18() -> Iterator[Cluster]:
    with cluster(18) as running:
        yield running


@pytest.fixture(scope="session", params=VERSIONS, ids=lambda version: f"pg{version}")
def postgres(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """PostgreSQL, in each version."""
    if request.param == 18:
        yield request.getfixturevalue("postgres18")
    else:
        with cluster(request.param) as running:
            yield running


@pytest.fixture(scope="module")
def live_server(postgres18: Cluster) -> Iterator[ServerProcess]:
    """gunicorn with the production command on a real PostgreSQL; shared by a module's tests."""
    server = ServerProcess(postgres18.url(), DRAIN_SECONDS="0.5")
    yield server
    server.close()


@pytest.fixture
def psql(postgres18: Cluster) -> Callable[..., list[tuple[Any, ...]]]:
    """Runs SQL on the live server's database: ``psql("SELECT pg_notify(%s, %s)", "foo", "1")``."""
    return postgres18.sql


@pytest.fixture
def channel() -> str:
    """A channel name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
