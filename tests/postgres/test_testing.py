"""The pytest plugin for applications: what a test has published."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import Session

from socketio_pg.client import Client
from socketio_pg.testing import Listening, Published
from tests.support.log_database import LogDatabase
from tests.support.postgres import Cluster, in_thread
from tests.support.server import ROOT

Failed = pytest.fail.Exception


def session(url: str) -> Session:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    return Session(engine.connect(), close_resets_only=False)


KINDS: dict[str, Callable[[str], Any]] = {"psycopg2": psycopg2.connect, "psycopg": psycopg.connect, "session": session}


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> LogDatabase:
    made = LogDatabase(newest_pg, "testing")
    made.sql("CREATE TABLE orders (id int PRIMARY KEY); SELECT socketio_pg.watch('orders')")
    return made


@pytest.fixture(params=KINDS)
def connection(request: pytest.FixtureRequest, database: LogDatabase) -> Iterator[Any]:
    made = in_thread(KINDS[request.param], database.url)
    yield made
    in_thread(made.rollback)
    made.close()


def execute(connection: Any, statement: str) -> None:
    from socketio_pg.client import execute

    execute(connection, statement, {})


def test_messages_of_the_open_transaction_and_of_others_are_seen(database: LogDatabase, connection: Any) -> None:
    def work() -> None:
        published = Published(connection)
        published.assert_nothing_published()
        Client(connection).notify("orders", {"new": {"id": 7}, "b": [1]}, durable=True)
        execute(connection, "INSERT INTO orders VALUES (7) RETURNING id")
        published.assert_published("orders", {"new": {"id": 7}, "b": [1]}, times=1)
        published.assert_published("orders", matching={"new.id": {"gt": 6}})
        published.assert_published("orders", matching=lambda payload: payload["b"] == [1])
        change = published.assert_published("table:public.orders")
        assert change["new"] == {"id": 7}
        published.assert_nothing_published("elsewhere")
        database.publish("others", "1")
        database.move()
        database.publish("others", "2")
        assert published.payloads("others") == [1, 2]
        later = Published(connection)
        later.assert_nothing_published()

    in_thread(work)


def test_failures_show_what_was_published_instead(connection: Any) -> None:
    def work() -> None:
        published = Published(connection)
        with pytest.raises(Failed, match="'orders': any payload\nnothing was published at all"):
            published.assert_published("orders")
        Client(connection).notify("orders", {"id": 1}, durable=True)
        with pytest.raises(Failed, match=r"\{'id': 2\}\npublished on it:\n  'orders': \{\"id\": 1\}"):
            published.assert_published("orders", {"id": 2})
        with pytest.raises(Failed, match=r"matches .*'id': 2.*\npublished on it"):
            published.assert_published("orders", matching={"id": 2})
        with pytest.raises(Failed, match="2 times, but 1 times"):
            published.assert_published("orders", times=2)
        with pytest.raises(Failed, match="nothing was published on it, but:\n  'orders'"):
            published.assert_published("order")
        with pytest.raises(Failed, match="1 messages were published"):
            published.assert_nothing_published()
        with pytest.raises(TypeError):
            published.assert_published("orders", 1, matching={"id": 1})

    in_thread(work)


def test_notifications_are_heard_when_they_are_committed(database: LogDatabase) -> None:
    def work() -> None:
        with Listening(database.url, 'odd "{name}"', "chat", timeout=30) as heard:
            database.sql("SELECT pg_notify('odd \"{name}\"', 'no JSON'), pg_notify('chat', '[1]'), pg_notify('c', '1')")
            heard.assert_published("chat", [1])
            heard.assert_published('odd "{name}"', "no JSON")
            assert len(heard.all) == 2
        with Listening(database.url, "chat", timeout=0.01) as heard, pytest.raises(Failed):
            heard.assert_published("chat")

    in_thread(work)


@pytest.mark.nightly
def test_plugin_brings_a_database_for_the_tests_of_an_example() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "test_django_app.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT / "examples", env=environment, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.nightly
def test_plugin_leaves_the_database_of_local_cfg_alone(database: LogDatabase, tmp_path: Path) -> None:
    """`init` for the embedded database runs in the application's folder."""
    database.sql("DROP SCHEMA socketio_pg CASCADE")
    (tmp_path / "local.cfg").write_text(f"SOCKETIO_PG_DATABASE_URL = {database.url!r}\n")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["socketio_pg.testing"]\n')
    (tmp_path / "test_it.py").write_text("def test(published): published.assert_nothing_published()\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "test_it.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert database.sql("SELECT to_regnamespace('socketio_pg')") == [(None,)]
