"""Databases for the tests of the command line."""

from collections.abc import Iterator

import pytest

from tests.support.cli import Base
from tests.support.postgres import Cluster


@pytest.fixture(scope="module")
def plain(postgres18: Cluster) -> Base:
    """Without the schema."""
    return Base(postgres18, log=False)


@pytest.fixture
def base(postgres18: Cluster) -> Base:
    """With an empty log."""
    return Base(postgres18, log=True)


@pytest.fixture(scope="module")
def logged(postgres18: Cluster) -> Base:
    """With a log of five messages, 1 to 5, in the channels a and b."""
    made = Base(postgres18, log=True)
    made.log("1", '{"n": 2}')
    made.log("3", channel="b", first=3)
    made.log("1.10", '"five"', first=4)
    return made


@pytest.fixture
def poor(base: Base) -> Iterator[str]:
    """The address for a role without any rights on the schema."""
    base.cluster.sql("CREATE ROLE cli_poor LOGIN")
    yield base.url.replace("postgres@", "cli_poor@")
    base.cluster.sql("DROP ROLE cli_poor")
