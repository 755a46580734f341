"""Tests of the Django example with the plugin of socketio_pg: `pytest examples/test_django_app.py`.

The database is an embedded PostgreSQL; each test's transaction is rolled back.
"""

import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from socketio_pg.testing import Published

pytest_plugins = ["socketio_pg.testing"]


@pytest.fixture(scope="session")
def application(socketio_pg_url: str) -> ModuleType:
    os.environ["DATABASE_URL"] = socketio_pg_url
    # It connects when it is imported.
    return importlib.import_module("django_app")


@pytest.fixture
def socketio_pg_connection(application: ModuleType) -> Iterator[Any]:
    """Override the plugin's connection: the example publishes on Django's."""
    with application.transaction.atomic():
        yield application.connection.connection
        application.transaction.set_rollback(True)


def test_order_is_published(application: ModuleType, published: Published) -> None:
    number = application.insert_order(5)
    published.assert_published("orders:5", {"id": number, "customer": 5}, times=1)
    published.assert_nothing_published("orders:6")


def test_tests_do_not_see_each_other(application: ModuleType, published: Published) -> None:
    published.assert_nothing_published()
    application.insert_order(5)
    assert len(published.payloads("orders:5")) == 1
