"""Fixtures that several modules share: databases with policies, with a log, and for the command line.

A module that needs a different database overrides the fixture.
"""

import uuid
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.orm import Session

from socketio_pg.access.policies import Policies
from socketio_pg.postgres.database import Database
from tests.support.cli import Base
from tests.support.log_database import LogDatabase
from tests.support.orm import BACKENDS, OrmDatabase
from tests.support.policies import PolicyDatabase
from tests.support.postgres import Cluster


@pytest.fixture(scope="module")
def database(postgres: Cluster) -> PolicyDatabase:
    made = PolicyDatabase(postgres, "policies")
    made.join("alice", "kitchen", writes=True)
    made.join("bob", "kitchen")
    return made


@pytest.fixture
def policies(database: PolicyDatabase) -> Iterator[Policies]:
    made = Policies(Database(database.server_url), 10.0)
    yield made
    made.stop()


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest, cluster_of: Callable[[int], Cluster]) -> tuple[Cluster, str]:
    """One version of PostgreSQL, and one of SQLAlchemy's drivers."""
    version, driver = request.param
    return cluster_of(version), driver


@pytest.fixture
def session(database: OrmDatabase) -> Iterator[Session]:
    """A session on the module's ORM database."""
    with database.session() as made:
        yield made


@pytest.fixture
def room() -> str:
    return f"room-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def plain(newest_pg: Cluster) -> Base:
    """A database without the schema."""
    return Base(newest_pg, log=False)


@pytest.fixture
def base(newest_pg: Cluster) -> Base:
    """A database with an empty log."""
    return Base(newest_pg, log=True)


@pytest.fixture(scope="module")
def logged(newest_pg: Cluster) -> Base:
    """A database with five messages in its log, at positions 1 to 5, in the channels a and b."""
    made = Base(newest_pg, log=True)
    made.log("1", '{"n": 2}')
    made.log("3", channel="b", first=3)
    made.log("1.10", '"five"', first=4)
    return made


@pytest.fixture
def poor(base: Base) -> Iterator[str]:
    """The address of `base` for a role without privileges on the schema."""
    base.cluster.sql("CREATE ROLE cli_poor LOGIN")
    yield base.url.replace("postgres@", "cli_poor@")
    base.cluster.sql("DROP ROLE cli_poor")


@pytest.fixture
def log(postgres: Cluster) -> LogDatabase:
    return LogDatabase(postgres)


@pytest.fixture(scope="module")
def shared_log(newest_pg: Cluster) -> LogDatabase:
    return LogDatabase(newest_pg, "shared_log")
