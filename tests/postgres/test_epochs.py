"""The log's past changes behind the relay's back: the epoch ends before anything is numbered, and only then."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketio_pg.core import metrics
from socketio_pg.core.errors import DatabaseError
from socketio_pg.doctor.checks_log import epoch as doctor
from socketio_pg.log.epochs import Past, check, read_cluster, remember
from socketio_pg.log.history import HEAD
from socketio_pg.log.low_water import LowWater
from socketio_pg.log.moves import PREPARE, Moved, move
from tests.support.log_database import LogDatabase
from tests.support.nightly import sampled
from tests.support.postgres import Cluster, in_thread


class Leader:
    """Does what the relay does, without its loop: moves messages, and checks the past when it must."""

    def __init__(self, log: LogDatabase) -> None:
        self.log = log
        self.past: Past | None = None
        self.connection = log.connect()
        with self.connection.cursor() as cursor:
            cursor.execute(PREPARE)
        self.cluster = in_thread(read_cluster, self.connection, 30.0)

    def look(self) -> Moved:
        """Move what there is, after the epoch has ended if it must."""
        for _ in range(2):
            if self.past is None:
                self.past, _ = in_thread(check, self.connection, 0, self.cluster, None, 30.0)
            moved, self.past = in_thread(
                move, self.connection, 0, 1000, LowWater(), self.past, lambda channel, text: text, 30.0, True
            )
            if moved.unchanged:
                in_thread(remember, self.connection, self.past, 30.0)
                break
            assert moved.count == 0
            self.past, _ = in_thread(check, self.connection, 0, self.cluster, self.past, 30.0)
        assert isinstance(moved, Moved)
        assert moved.unchanged
        return moved


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> LogDatabase:
    return LogDatabase(newest_pg, "epochs")


@pytest.fixture
def leader(log: LogDatabase) -> Iterator[Leader]:
    """The leader of a log with ten messages, of which the first three are trimmed; two more wait."""
    log.sql("DROP SCHEMA socketio_pg CASCADE")
    log.install()
    made = Leader(log)
    log.publish("a", *map(str, range(1, 7)))
    assert made.look().count == 6
    log.publish("a", *map(str, range(7, 11)))
    assert made.look().count == 4
    log.sql(
        "SET socketio_pg.trimming = on; UPDATE socketio_pg.head SET trimmed = 3;"
        "DELETE FROM socketio_pg.log WHERE position <= 3"
    )
    yield made
    made.connection.close()


def epoch(log: LogDatabase) -> str:
    [(found,)] = log.sql("SELECT epoch::text FROM socketio_pg.head")
    return str(found)


def program(log: LogDatabase, name: str, *arguments: str) -> str:
    """Run pg_dump or pg_restore."""
    command = [str(log.cluster.client_dir / name), "--dbname", log.url, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


#: What an operator does → why the epoch ends.
CHANGES = {
    "TRUNCATE socketio_pg.log": "log",
    "DELETE FROM socketio_pg.log": "log",
    "DELETE FROM socketio_pg.log WHERE position = 10": "log",
    "UPDATE socketio_pg.log SET position = 1 WHERE position = 10": "log",
    "SELECT setval('socketio_pg.outbox_id_seq', 2)": "outbox",
    "TRUNCATE socketio_pg.outbox RESTART IDENTITY": "outbox",
    "CREATE TABLE kept AS TABLE socketio_pg.head; DELETE FROM socketio_pg.head;"
    " INSERT INTO socketio_pg.head SELECT * FROM kept; DROP TABLE kept": "tables",
    "UPDATE socketio_pg.head SET system_identifier = 1": "database",
    "UPDATE socketio_pg.head SET timeline = timeline + 1": "database",
}
#: No connection changes its cluster. Each way to notice a change is in `make test`, once running and once stopped.
DAILY = {("running", 0), ("stopped", 2), ("running", 4), ("stopped", 5), ("running", 6), ("stopped", 7)}
CASES = [
    pytest.param(state, change, id=f"{state}-{number}", marks=() if (state, number) in DAILY else pytest.mark.nightly)
    for number, (change, label) in enumerate(CHANGES.items())
    for state in ("running", "stopped")
    if not (state == "running" and label == "database")
]


@pytest.mark.parametrize(("state", "change"), CASES)
def test_epoch_ends_before_anything_is_numbered(leader: Leader, log: LogDatabase, state: str, change: str) -> None:
    first, counter = epoch(log), {"reason": CHANGES[change]}
    before = metrics.REGISTRY.get_sample_value("socketio_pg_epoch_changes_total", counter) or 0
    log.sql(change)
    if state == "stopped":
        leader.past = None
    # At rest it is noticed too.
    assert leader.look().count == 0
    second = epoch(log)
    assert second != first
    assert metrics.REGISTRY.get_sample_value("socketio_pg_epoch_changes_total", counter) == before + 1
    [(_, position, _)] = log.sql(HEAD)
    log.publish("a", "11", "12")
    assert leader.look().count == 2
    assert [row[0] for row in log.log()][-2:] == [position + 1, position + 2]
    leader.past = None
    assert leader.look().count == 0
    assert epoch(log) == second, "once"
    with contextlib.closing(log.connect()) as connection:
        [finding] = in_thread(lambda: list(doctor(connection)))
    assert finding.level == "warning"
    assert "began" in finding.found


def test_messages_that_wait_keep_their_order_when_ids_are_set_back(leader: Leader, log: LogDatabase) -> None:
    log.publish("a", "11", "12")
    log.sql("SELECT setval('socketio_pg.outbox_id_seq', 2)")
    leader.look()
    log.publish("a", "13")
    leader.look()
    assert [payload for _, _, payload in log.log()][-3:] == [11, 12, 13]


def test_retention_and_restarts_leave_the_epoch(leader: Leader, log: LogDatabase) -> None:
    first = epoch(log)
    for step in (
        "SET socketio_pg.trimming = on; UPDATE socketio_pg.head SET trimmed = 9;"
        " DELETE FROM socketio_pg.log WHERE position <= 9",
        "SET socketio_pg.trimming = on; UPDATE socketio_pg.head SET trimmed = 10; DELETE FROM socketio_pg.log",
        "VACUUM FULL socketio_pg.head",
        "VACUUM FREEZE socketio_pg.head",
        "VACUUM FULL socketio_pg.log",
        "BEGIN; SELECT socketio_pg.publish('a', '1'); ROLLBACK",
    ):
        for statement in [step] if "VACUUM" not in step else step.split("; "):
            log.sql(statement)
        leader.look()
        leader.past = None
        leader.look()
    log.install()
    leader.look()
    assert epoch(log) == first
    log.publish("a", "11")
    leader.look()
    assert [row[0] for row in log.log()] == [11]


@pytest.mark.parametrize(
    ("state", "clean"),
    sampled(
        [("running", True), ("running", False), ("stopped", True), ("stopped", False)],
        lambda case: case in (("running", True), ("stopped", False)),
    ),
)
def test_restore_of_an_older_dump_ends_the_epoch(
    leader: Leader, log: LogDatabase, tmp_path: Path, state: str, clean: bool
) -> None:
    dump = str(tmp_path / "dump")
    tmp_path.chmod(0o755)
    program(log, "pg_dump", "--format=custom", "--schema=socketio_pg", f"--file={dump}")
    first = epoch(log)
    log.publish("a", "11", "12")
    assert leader.look().count == 2
    if clean:
        program(log, "pg_restore", "--clean", "--schema=socketio_pg", dump)
    else:
        log.sql("TRUNCATE socketio_pg.log, socketio_pg.outbox, socketio_pg.head, socketio_pg.schema_version,"
                " socketio_pg.cluster_key, socketio_pg.node")  # fmt: skip
        program(log, "pg_restore", "--data-only", "--schema=socketio_pg", "--disable-triggers", dump)
    if state == "stopped":
        leader.connection.close()
        leader = Leader(log)
    assert epoch(log) == first, "of the dump"
    log.publish("a", "13")
    leader.look()
    leader.connection.close()
    assert epoch(log) != first
    assert log.log()[-1] == (11, "a", 13)


def test_nothing_is_numbered_while_a_dump_is_being_restored(leader: Leader, log: LogDatabase) -> None:
    """Its tables are filled before they get their keys."""
    log.sql("ALTER TABLE socketio_pg.log RENAME TO old; CREATE TABLE socketio_pg.log AS TABLE socketio_pg.old")
    log.publish("a", "11")
    with pytest.raises(DatabaseError, match="no primary keys"):
        leader.look()


def removed(log: LogDatabase) -> int:
    [(found,)] = log.sql("SELECT last_value FROM socketio_pg.removed_position")
    return int(found)


def test_deletions_by_hand_are_noted(leader: Leader, log: LogDatabase) -> None:
    first = epoch(log)
    assert removed(log) == 0, "the relay's own trims are in head"
    log.sql("DELETE FROM socketio_pg.log WHERE position IN (5, 7)")
    assert removed(log) == 7
    log.sql("DELETE FROM socketio_pg.log WHERE position = 4")
    assert removed(log) == 7
    leader.look()
    assert epoch(log) == first, "the newest message is still there"
    log.sql("TRUNCATE socketio_pg.log")
    assert removed(log) == 10
    leader.look()
    assert epoch(log) != first
    assert removed(log) == 3, "positions begin again after the trimmed ones"


def test_deletions_end_the_epoch_without_other_evidence(leader: Leader, log: LogDatabase) -> None:
    """The leader was killed before it could write any down."""
    first = epoch(log)
    log.sql("SELECT setval('socketio_pg.newest_position', 0)")
    log.sql("DELETE FROM socketio_pg.log WHERE position = 10")
    leader.past = None
    leader.look()
    assert epoch(log) != first
