"""The SQL about watch() in docs/watch.md runs as it is written."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Cluster
from tests.support.watching import WatchDatabase, watch_database

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def database(newest_pg: Cluster) -> Iterator[WatchDatabase]:
    with watch_database(newest_pg, "watch_docs") as made:
        made.sql("CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text, card_number text, note text)")
        if not made.sql("SELECT 1 FROM pg_roles WHERE rolname = 'authenticated'"):
            made.sql("CREATE ROLE authenticated")
        yield made


def test_examples_run(database: WatchDatabase) -> None:
    blocks = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "watch.md").read_text("utf-8"), re.DOTALL)
    blocks = [block for block in blocks if "watch" in block or "customers see" in block]
    assert blocks
    for block in blocks:
        database.sql(block)
    [payload, *_] = database.payloads("INSERT INTO orders VALUES (7, 5, 'open')")
    assert payload["pk"] == {"id": 7}


def test_tables_list_every_field_and_option(database: WatchDatabase) -> None:
    text = (ROOT / "docs" / "watch.md").read_text("utf-8")
    rows = set(re.findall(r'`"?(\w+)"?`', " ".join(re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.MULTILINE))))
    database.watch("orders", "orders:{customer_id}")
    database.watch("orders", bulk_limit=0)
    fields = {"table", "moved"}
    for statement in ("INSERT INTO orders VALUES (1, 5)", "UPDATE orders SET customer_id = 6"):
        fields |= {field for payload in database.payloads(statement) for field in payload}
    [(options,)] = database.sql("SELECT proargnames FROM pg_proc WHERE proname = 'watch'")
    assert rows == fields | set(options) - {"tbl"}
