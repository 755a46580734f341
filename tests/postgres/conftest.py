"""Policies on a database in each version of PostgreSQL; a module that wants other ones has its own."""

import uuid
from collections.abc import Iterator

import psycopg2
import psycopg2.extensions
import pytest

from socketio_pg.database import Database
from socketio_pg.policies import Policies
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
    callback = psycopg2.extensions.get_wait_callback()
    made = Policies(Database(database.server_url), 2.0)
    yield made
    made.stop()
    psycopg2.extensions.set_wait_callback(callback)


@pytest.fixture
def room() -> str:
    return f"room-{uuid.uuid4().hex[:12]}"
