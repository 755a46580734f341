"""The example examples/tanstack: optimistic changes of a TanStack DB collection, until they come from the database."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support import npm
from tests.support.log import Log, wait_installed
from tests.support.node import NodeClient
from tests.support.postgres import Cluster
from tests.support.server import ROOT

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]  # it fetches @tanstack/db

EXAMPLE = ROOT / "examples" / "tanstack"


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(
        newest_pg, "tanstack", "--pythonpath", str(EXAMPLE), app="server:app", AUTO_INIT="1",
        LIVE_TABLES="public.tanstack_orders", LIVE_TABLE_ROLE="orders_reader",
    )  # fmt: skip
    with contextlib.closing(made.server):
        wait_installed(made)
        made.sql((EXAMPLE / "orders.sql").read_text())
        yield made
    newest_pg.sql("DROP DATABASE tanstack WITH (FORCE)")
    newest_pg.sql("DROP ROLE orders_reader")


@pytest.fixture(scope="module")
def page(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Page"]:
    folder = tmp_path_factory.mktemp("tanstack")
    built = npm.build_example(EXAMPLE, npm.pack(folder), folder / "example")
    with contextlib.closing(Page(log.server.url, str(built))) as made:
        assert made.next(kind="ready")["rows"] == 0
        yield made


class Page(NodeClient):
    """A Node process with the collection."""

    def __init__(self, url: str, example: str) -> None:
        super().__init__(url, example, "tanstack.mjs")

    def run(self, command: str, *given: object) -> dict[str, Any]:
        """Change rows. Return the first of them right after the call."""
        self.send({"command": command, "given": given})
        row: dict[str, Any] = self.next(kind="at once")["row"]
        return row

    def show(self, row: str) -> tuple[dict[str, Any] | None, list[str]]:
        """Return a row, and the changes of rows since the last call."""
        self.send({"command": "show", "row": row})
        found = self.next(kind="row")
        return found["row"], found["shown"]

    def persisted(self) -> dict[str, Any] | None:
        """Wait until a change has come from the database. Return its row."""
        found = self.next(kind="persisted")
        assert found["synced"] is not False
        row: dict[str, Any] | None = found["row"]
        return row


def test_changes_show_at_once_and_stay_until_they_are_seen(log: Log, page: Page) -> None:
    first, second = (str(uuid.uuid4()) for _ in range(2))
    assert page.run("insert", first)["status"] == "new"
    assert page.persisted() == {"id": first, "customer": "Ann", "status": "new", "changes": 0}
    page.show(first)
    page.lines.clear()

    # While this lock is held, the change has been committed and answered, and has not been sent.
    with contextlib.closing(psycopg2.connect(log.url)) as connection:
        connection.cursor().execute("LOCK TABLE socketio_pg.log IN SHARE MODE")
        assert page.run("update", first, "paid")["status"] == "paid"
        assert page.next(kind="answer", status=200)
        [(status,)] = log.sql("SELECT status FROM tanstack_orders")
        assert status == "paid"
        row, shown = page.show(first)
        assert (row or {})["changes"] == 0, "it has not come from the database"
        assert shown == ["update paid 0"]
        assert page.lines == []
    assert page.persisted() == {"id": first, "customer": "Ann", "status": "paid", "changes": 1}
    assert page.show(first)[1] == ["update paid 1"], "no flicker"

    # Two rows in one transaction, and a change of somebody else in the meantime.
    page.run("insert", second)
    page.persisted()
    page.show(first)
    log.sql("UPDATE tanstack_orders SET customer = 'Bob' WHERE id = %s", first)
    page.run("both", first, second)
    assert page.persisted() == {"id": first, "customer": "Bob", "status": "shipped", "changes": 2}
    row, shown = page.show(second)
    assert row == {"id": second, "customer": "Ann", "status": "shipped", "changes": 1}
    statuses = [change.split()[1] for change in shown]
    assert statuses == sorted(statuses, key=["paid", "shipped"].index), "a row never goes back"

    assert page.run("delete", first) is None
    assert page.persisted() is None
    assert log.sql("SELECT id::text FROM tanstack_orders") == [(second,)]


def test_refused_change_is_rolled_back(log: Log, page: Page) -> None:
    order = str(uuid.uuid4())
    page.run("insert", order)
    page.persisted()
    page.show(order)
    assert page.run("update", order, "lost")["status"] == "lost"
    found = page.next(kind="refused")
    assert "tanstack_orders_status_check" in found["error"]
    assert found["row"]["status"] == "new"
    assert page.show(order)[1] == ["update lost 0", "update new 0"]
    assert log.sql("SELECT status FROM tanstack_orders WHERE id = %s", order) == [("new",)]


def test_change_that_does_not_come_is_given_up(page: Page) -> None:
    """It may be hidden from this client: then nothing tells of it."""
    page.send({"command": "unseen"})
    assert page.next(kind="given up")["ms"] >= 250
