"""The cluster keys in the database: who may read them, which one is used, and their rotation."""

import contextlib
from collections.abc import Iterator

import psycopg2
import pytest

from socketio_pg.core import green
from socketio_pg.core.errors import ConfigurationError, DatabaseUnavailableError
from socketio_pg.core.seal import Key, Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.cluster_keys import choose
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.key_reader import KeyReader
from tests.support.log_database import LogDatabase, run_cli
from tests.support.patience import PATIENCE
from tests.support.postgres import in_thread


@pytest.fixture
def stranger(log: LogDatabase) -> Iterator[str]:
    """The address of the log's database for a role without privileges."""
    log.sql("DROP ROLE IF EXISTS stranger")
    log.sql("CREATE ROLE stranger LOGIN")
    yield log.url.replace("postgres@", "stranger@")
    log.sql("DROP OWNED BY stranger; DROP ROLE stranger")


def read(url: str, *cluster_key: str) -> Seal:
    """Return a seal with the keys of a database."""
    seal = Seal()
    reader = KeyReader(Database(url), Sealing(seal), cluster_key)
    try:
        reader.read()
    finally:
        reader.stop()
    return seal


def age(log: LogDatabase, seconds: float) -> None:
    """Make all keys older."""
    log.sql("UPDATE socketio_pg.cluster_key SET created_at = created_at - make_interval(secs => %s)", seconds)


def key_id(seal: Seal) -> str:
    return seal.seal("c", "x").split(" ")[2]


def test_all_nodes_read_the_same_key_and_identity(log: LogDatabase) -> None:
    assert read(log.url).open("c", read(log.url).seal("c", "x")) == "x"


def test_a_key_is_made_once(log: LogDatabase) -> None:
    before = log.sql("SELECT key FROM socketio_pg.cluster_key")
    log.install()
    assert log.sql("SELECT key FROM socketio_pg.cluster_key") == before
    assert len(before) == 1


def test_a_stranger_is_told_the_grant_that_it_needs(log: LogDatabase, stranger: str) -> None:
    with pytest.raises(ConfigurationError, match="cluster_key TO stranger', or set CLUSTER_KEY") as raised:
        read(stranger)
    grants = str(raised.value).split("'")[1]
    log.sql(grants)
    assert read(log.url).open("c", read(stranger).seal("c", "x")) == "x"


def test_a_node_that_may_not_read_the_key_logs_the_grant(
    log: LogDatabase, stranger: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the key it cannot relay, and the relay does not know why."""
    reader = KeyReader(Database(stranger), Sealing(Seal()), ())
    before = reader.problem
    reader.start()
    with green.timeout(PATIENCE):
        while reader.problem == before:
            green.sleep(0.01)
    reader.stop()
    assert "GRANT SELECT ON socketio_pg.cluster_key TO stranger" in caplog.text


def test_server_and_emitter_may_read_the_key(log: LogDatabase, stranger: str) -> None:
    for option in ("server", "emitter"):
        log.install(**{option: "stranger"})
        assert read(stranger).ready
        log.sql("REVOKE SELECT ON socketio_pg.cluster_key FROM stranger")
        log.sql("REVOKE ALL ON SCHEMA socketio_pg FROM stranger")


def test_without_the_schema_the_error_names_both_ways_out(log: LogDatabase) -> None:
    run_cli("drop", "--yes", url=log.url)
    with pytest.raises(ConfigurationError, match=r"'socketio-pg init'.*CLUSTER_KEY"):
        read(log.url)
    assert read(log.url, "k" * 32, "l" * 32).open("c", read(log.url, "l" * 32).seal("c", "x")) == "x"


def test_cluster_key_replaces_the_table(log: LogDatabase, stranger: str) -> None:
    assert read(log.url, "k" * 32).open("c", read(stranger, "k" * 32).seal("c", "x")) == "x"
    assert key_id(read(log.url, "k" * 32)) != key_id(read(log.url))


def test_a_database_that_cannot_be_reached_is_unavailable(log: LogDatabase) -> None:
    with pytest.raises(DatabaseUnavailableError):
        read(log.url + "&port=1")


def test_a_new_key_seals_after_20_seconds_and_the_old_one_opens_for_a_minute_more(log: LogDatabase) -> None:
    age(log, 1000)
    old = read(log.url)
    assert "20 seconds" in run_cli("rotate-key", url=log.url)
    soon = read(log.url)
    assert key_id(soon) == key_id(old)
    age(log, 21)
    later = read(log.url)
    assert key_id(later) != key_id(old)
    # In each order of reading, both open what the other seals.
    assert soon.open("c", later.seal("c", "1")) == "1"
    assert later.open("c", old.seal("c", "2")) == "2"
    age(log, 61)
    assert key_id(old) not in read(log.url)._keys
    log.sql("SELECT socketio_pg.rotate_cluster_key()")
    assert log.sql("SELECT count(*) FROM socketio_pg.cluster_key") == [(2,)]
    assert key_id(read(log.url)) == key_id(later)


def test_keys_that_are_used_survive_any_number_of_rotations(log: LogDatabase) -> None:
    first = read(log.url)
    for _ in range(3):
        log.sql("SELECT socketio_pg.rotate_cluster_key()")
    assert key_id(read(log.url)) == key_id(first)
    assert log.sql("SELECT count(*) FROM socketio_pg.cluster_key") == [(4,)]


def test_only_the_owner_rotates(log: LogDatabase, stranger: str) -> None:
    log.install(server="stranger")

    def rotate() -> None:
        with contextlib.closing(psycopg2.connect(stranger)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT socketio_pg.rotate_cluster_key()")

    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        in_thread(rotate)


@pytest.mark.parametrize(
    ("ages", "used"),
    [
        ([], []),
        ([0], [0]),
        ([5, 500], [1, 0]),
        ([25, 500], [0, 1]),
        ([79, 500], [0, 1]),
        ([81, 500], [0]),
        ([1, 2, 3], [2, 0, 1]),
        ([5, 30, 100, 500], [1, 0, 2]),
        ([5, 85, 100], [1, 0]),
    ],
)
def test_choose(ages: list[float], used: list[int]) -> None:
    keys = [bytes([index]) * 32 for index in range(len(ages))]
    assert choose(list(zip(keys, ages, strict=True))) == [Key.from_bytes(keys[index]) for index in used]
