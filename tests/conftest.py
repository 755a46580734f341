"""Shared fixtures: a real PostgreSQL and a real server. Also deselects tests that only `make nightly` runs."""

import contextlib
import functools
import gc
import os
import resource
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import leftovers
from tests.support.driver import wait_green_here
from tests.support.postgres import VERSIONS, Cluster, cluster, initialized
from tests.support.server import ServerProcess

#: Each worker starts its own clusters.
MAX_WORKERS = 8
#: New objects after which garbage is collected. Python's own threshold is 700, mostly for the youngest ones only.
UNCOLLECTED = 20_000
#: What the names of the modules begin with whose tests mostly use Chromium.
BROWSER = (
    "tests/live/test_browser",
    "tests/live/test_demos.py",
    "tests/live/test_prefix.py",
    "tests/live/test_readme.py",
)


# Examples run in parallel with other tests, so their durations are meaningless.
settings.register_profile("test", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("check", settings.get_profile("test"), max_examples=10)
settings.register_profile("nightly", settings.get_profile("test"), max_examples=1000, derandomize=False)
settings.load_profile("test")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also run the tests marked `nightly`, with more examples")


def pytest_configure(config: pytest.Config) -> None:
    """Raise the limit of file descriptors for thousands of clients, here and in the servers, which inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if config.getoption("nightly"):
        settings.load_profile("nightly")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return two workers per core and one more, because most tests mostly wait."""
    return min(2 * (os.cpu_count() or 1) + 1, MAX_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the modules that need Chromium to one worker, so that only one starts it; else each module to any worker."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "browser" if file.startswith(BROWSER) else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only `make nightly` runs, and what the PostgreSQL of this run does not have."""
    left_out = {item for item in items if _is_left_out(item)}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt what the collection makes, which stays, from garbage collection and from :mod:`leftovers`.

    Collect no garbage during a test: it would be collected in any thread, also in one of a test that has nothing to do
    with the main thread's greenlets and connections. Python crashed in such a collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove what the workers of a run share, when they have ended: pytest keeps the folder for the next runs."""
    if session.config.getoption("numprocesses", None):
        folder = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        for made in folder.glob("pg*/"):
            shutil.rmtree(made)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Collect garbage between tests, in the main thread."""
    if gc.get_count()[0] > UNCOLLECTED:
        gc.collect()


def _is_left_out(item: pytest.Item) -> bool:
    since = item.get_closest_marker("since_postgres")
    nightly = item.get_closest_marker("nightly") or (_is_older(item) and not item.get_closest_marker("majors"))
    return bool((nightly and not item.config.getoption("nightly")) or (since and VERSIONS[0] < since.args[0]))


def _is_older(item: pytest.Item) -> bool:
    """Return whether the test runs on an older major than the newest one, through `postgres` or through `backend`."""
    parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    major = parameters["backend"][0] if "backend" in parameters else parameters.get("postgres", VERSIONS[0])
    return bool(major != VERSIONS[0])


@pytest.fixture(scope="module", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fail when a module leaves threads running, which would disturb other tests, like a reconnecting client."""
    before = leftovers.running()
    yield
    left = leftovers.left_since(before)
    assert not left, "left running by this module's tests:\n" + "\n".join(left)


@pytest.fixture(scope="session", autouse=True)
def green_driver() -> None:
    """Let psycopg2 wait in green threads, as in a server: tests use its parts in this process."""
    wait_green_here()


@pytest.fixture(scope="session")
def cluster_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Cluster]]:
    """Return the session's cluster of a major. Those of all workers of a run are copies of one."""
    common = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else None
    with contextlib.ExitStack() as stack:

        def run(version: int) -> Cluster:
            template = None if common is None else initialized(version, common)
            return stack.enter_context(cluster(version, template=template))

        yield functools.cache(run)


@pytest.fixture(scope="session")
def newest_pg(cluster_of: Callable[[int], Cluster]) -> Cluster:
    return cluster_of(VERSIONS[0])


@pytest.fixture(scope="session", params=VERSIONS, ids=lambda version: f"pg{version}")
def postgres(request: pytest.FixtureRequest, cluster_of: Callable[[int], Cluster]) -> Cluster:
    """PostgreSQL in each major: `make test` runs the older one only with the tests that are marked `majors`."""
    return cluster_of(request.param)


@pytest.fixture(scope="session")
def session_server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    server = ServerProcess(newest_pg.url(), DRAIN_SECONDS="0.5")
    yield server
    server.close()


@pytest.fixture(scope="module")
def live_server(session_server: ServerProcess) -> ServerProcess:
    """gunicorn with the production command on a real PostgreSQL, shared by all tests."""
    # The previous module may have terminated its connections.
    session_server.wait_ready()
    return session_server


@pytest.fixture
def psql(newest_pg: Cluster) -> Callable[..., list[tuple[Any, ...]]]:
    """Run SQL on the live server's database: ``psql("SELECT pg_notify(%s, %s)", "foo", "1")``."""
    return newest_pg.sql


@pytest.fixture
def channel() -> str:
    """A channel name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
