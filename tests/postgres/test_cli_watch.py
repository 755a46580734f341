"""The commands `watch`, `unwatch`, `watches` and `drop` on a real database."""

import json
import re

import pytest

from tests.support.cli import Base, doctor, level, run
from tests.support.postgres import Cluster


@pytest.fixture
def base(newest_pg: Cluster) -> Base:
    """A database with an empty log and the table orders."""
    made = Base(newest_pg, log=True)
    made.sql("CREATE TABLE orders (id integer PRIMARY KEY, customer_id integer, state text, card text)")
    return made


def test_watch_publishes_changes_to_the_default_channel(base: Base) -> None:
    done = run("watch", "orders", url=base.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "watching orders: publishing its changes to table:public.orders\n"
    base.sql("INSERT INTO orders VALUES (1, 5, 'open', '4711')")
    [(channel, payload)] = base.sql("SELECT channel, payload FROM socketio_pg.outbox")
    assert channel == "table:public.orders"
    assert (payload["op"], payload["new"]["state"]) == ("INSERT", "open")


def test_watch_passes_its_options_on(base: Base) -> None:
    done = run(
        "watch", "public.orders", "--channel", "orders:{customer_id}", "--operations", "insert,UPDATE",
        "--columns", "id,customer_id", "--columns", "state", "--when", "new.state <> 'draft'", "--no-old",
        "--per", "row", "--tier", "log", "--bulk-limit", "50", url=base.url,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    [line] = run("watches", "--json", url=base.url).stdout.splitlines()
    found = json.loads(line)
    assert sorted(found.pop("operations")) == ["INSERT", "UPDATE"]
    assert sorted(found.pop("columns")) == ["customer_id", "id", "state"]
    assert "draft" in found.pop("when")
    assert found.pop("table_name").removeprefix("public.") == "orders"
    assert not found.pop("exclude")
    assert found == {
        "channel": "orders:{customer_id}", "old": False, "tier": "log", "per": "row", "bulk_limit": 50, "failures": 0,
    }  # fmt: skip
    base.sql("INSERT INTO orders VALUES (1, 5, 'draft', ''), (2, 6, 'open', '')")
    [(channel, payload)] = base.sql("SELECT channel, payload FROM socketio_pg.outbox")
    assert channel == "orders:6"
    assert payload["new"] == {"id": 2, "customer_id": 6, "state": "open"}


def test_watches_lists_watches(base: Base) -> None:
    assert run("watches", url=base.url).stdout == "no table is watched\n"
    run("watch", "orders", "--exclude", "card", url=base.url)
    header, line = run("watches", url=base.url).stdout.splitlines()
    assert header.split() == ["TABLE", "CHANNEL", "OPERATIONS", "COLUMNS", "EXCLUDE", "WHEN", "TIER", "PER", "FAILURES"]
    assert re.match(r"(public\.)?orders +table:public\.orders +\S*INSERT\S* +card +log +statement +0$", line)


def test_watch_prints_the_notices_of_the_database(base: Base) -> None:
    base.sql(
        "CREATE FUNCTION remark() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE NOTICE 'a remark'; END $$;"
        "CREATE EVENT TRIGGER remarks ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION remark()"
    )
    done = run("watch", "orders", url=base.url)
    assert done.returncode == 0
    assert set(done.stderr.splitlines()) == {"note: a remark"}


def test_unwatch_ends_one_watch_or_all(base: Base) -> None:
    for channel in ("a", "b", "c"):
        run("watch", "orders", "--channel", channel, url=base.url)
    done = run("unwatch", "orders", "--channel", "a", url=base.url)
    assert (done.returncode, done.stdout) == (0, "no longer watching orders\n")
    assert run("unwatch", "orders", url=base.url).stdout == "no longer watching orders (2 watches)\n"
    done = run("unwatch", "orders", url=base.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not watched" in done.stderr


@pytest.mark.parametrize(
    "options",
    [["--columns", "nothing"], ["--when", "new."], ["--channel", "{nothing}"], ["--channel", "a*"]],
    ids=" ".join,
)
def test_refused_watch_prints_one_line(base: Base, options: list[str]) -> None:
    done = run("watch", "orders", *options, url=base.url)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")


def test_doctor_reports_failed_watches(base: Base) -> None:
    run("watch", "orders", "--channel", "orders:{state}", url=base.url)
    assert level(doctor(base.url), "watches") == "ok"
    base.sql("INSERT INTO orders (id) VALUES (1)")  # without a state there is no channel
    found = doctor(base.url)
    assert level(found, "watches") == "warning"
    assert "has failed once: these changes were not sent; the last error: " in found["watches"]["found"]
    base.sql("INSERT INTO orders (id) VALUES (2)")
    assert "has failed 2 times: " in doctor(base.url)["watches"]["found"]


def test_watcher_role_can_watch_its_tables(base: Base) -> None:
    base.cluster.sql("CREATE ROLE cli_watcher LOGIN")
    try:
        base.sql("CREATE TABLE theirs (id integer PRIMARY KEY); ALTER TABLE theirs OWNER TO cli_watcher")
        url = base.url.replace("postgres@", "cli_watcher@")
        assert run("watch", "theirs", url=url).returncode == 1
        assert run("init", "--watcher-role", "cli_watcher", url=base.url).returncode == 0
        assert run("watch", "theirs", url=url).returncode == 0
    finally:
        base.sql("DROP OWNED BY cli_watcher CASCADE")
        base.cluster.sql("DROP ROLE cli_watcher")


# -- drop --------------------------------------------------------------------------------------------------------------


def schemas(base: Base) -> list[str]:
    return [name for (name,) in base.sql("SELECT nspname FROM pg_namespace WHERE nspname = 'socketio_pg'")]


def test_drop_asks_for_confirmation(base: Base) -> None:
    done = run("drop", url=base.url, stdin="n\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"dbname={base.name}" in done.stderr
    assert "? [y/N]: " in done.stderr
    assert run("drop", url=base.url, stdin="").returncode == 1
    assert schemas(base) == ["socketio_pg"]


@pytest.mark.parametrize("answer", [["--yes"], []], ids=["--yes", "y"])
def test_drop_leaves_user_tables_unchanged(base: Base, answer: list[str]) -> None:
    run("watch", "orders", url=base.url)
    base.sql("INSERT INTO orders VALUES (1, 5, 'open', '')")
    done = run("drop", *answer, url=base.url, stdin="" if answer else "y\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Removed: ")
    assert schemas(base) == []
    assert base.sql("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'orders'::regclass AND NOT tgisinternal") == [(0,)]
    base.sql("INSERT INTO orders VALUES (2, 5, 'open', '')")
    assert base.sql("SELECT id FROM orders ORDER BY id") == [(1,), (2,)]
    assert run("drop", "--yes", url=base.url).stdout.startswith("There is no schema")
    assert run("init", url=base.url).returncode == 0


def test_drop_refuses_to_drop_user_objects(base: Base) -> None:
    base.sql("CREATE VIEW mine AS SELECT * FROM socketio_pg.log")
    done = run("drop", "--yes", url=base.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "mine" in done.stderr
    assert schemas(base) == ["socketio_pg"]
