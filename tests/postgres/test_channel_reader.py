"""Channels of the log and their newest messages, read without reading the whole log; connections for looking."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseTimeoutError, DatabaseUnavailableError
from socketio_pg.log import channel_reader
from socketio_pg.postgres.database import Database, fetch
from socketio_pg.postgres.looking import Looking
from tests.support.cli import Base


@pytest.fixture(scope="module")
def full(logged: Base) -> Base:
    """Also a log of 300 channels with 30 messages each, and some members."""
    logged.sql(
        """
        INSERT INTO socketio_pg.log (position, channel, payload, size, published_at)
        SELECT 5 + n, 'many:' || (n % 300), to_jsonb(n), 4, to_timestamp(n) FROM generate_series(1, 9000) AS n;
        INSERT INTO socketio_pg.log (position, channel, payload, size, published_at)
        VALUES (9006, 'socketio_pg_rules', '1', 1, now());
        INSERT INTO socketio_pg.presence_channel VALUES ('a', 1, 3), ('many:7', 2, 1), ('empty', 5, 0);
        ANALYZE socketio_pg.log;
        """
    )
    return logged


@pytest.fixture
def connection(full: Base) -> Iterator[Any]:
    with contextlib.closing(Database(full.url).connect("inspector")) as made:
        yield made


def test_channels_and_their_newest_messages(full: Base, connection: Any) -> None:
    found, complete = channel_reader.read_all(connection)
    assert complete
    assert len(found) == 302
    assert (found["a"], found["b"], found["many:0"], found["many:299"]) == (5, 3, 9005, 9004)
    newest = channel_reader.read_newest(connection, ["a", "many:0", "nothing"])
    assert newest.keys() == {"a", "many:0"}
    assert newest["many:0"] == channel_reader.Newest(9005, 9000.0, 4)
    assert channel_reader.read_stored(connection, "many:1") == channel_reader.Stored(30, False, 6, 1.0)
    assert channel_reader.read_stored(connection, "nothing") == channel_reader.Stored(0, False, None, None)
    assert channel_reader.count_members(connection, ["a", "empty", "many:7", "b"]) == {"a": 3, "many:7": 1}
    assert channel_reader.most_members(connection, 1) == {"a": 3}


def test_reading_channels_takes_one_step_for_each(full: Base, connection: Any) -> None:
    for query, parameters in (
        (channel_reader._ALL, ()),
        (channel_reader._NEWEST, (["a", "many:0"], 2**63 - 1)),
    ):
        plan = "\n".join(line for (line,) in fetch(connection, f"EXPLAIN {query}", *parameters))
        assert "log_channel_position" in plan
        assert "Seq Scan on log" not in plan
        assert "log_pkey" not in plan


def test_looking_keeps_one_connection_and_ends_in_time(full: Base) -> None:
    looking = Looking(Database(full.url))
    try:
        pid = looking.run(lambda connection: connection.info.backend_pid)
        assert looking.run(lambda connection: connection.info.backend_pid) == pid
        full.sql("SELECT pg_terminate_backend(%s, 5000)", pid)
        assert looking.run(lambda connection: fetch(connection, "SELECT 1")) == [(1,)]
        with pytest.raises(DatabaseTimeoutError):
            looking.run(lambda connection: fetch(connection, "SELECT pg_sleep(60)"), 0.2)
        assert looking.run(lambda connection: fetch(connection, "SELECT 2")) == [(2,)]
        looking.most = 1
        gate = green.Event()
        waiting = green.spawn(lambda: looking.run(lambda connection: gate.wait(5)))
        green.sleep()
        with pytest.raises(DatabaseUnavailableError, match="too many"):
            looking.run(lambda connection: None)
        gate.send()
        waiting.wait()
    finally:
        looking.stop()
    brief = Looking(Database(full.url))
    brief.linger = 0.05
    brief.run(lambda connection: None)
    for _ in range(1000):
        if brief._kept is None:
            break
        green.sleep(0.01)
    assert brief._kept is None
    nowhere = Looking(Database("postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(DatabaseUnavailableError):
        nowhere.run(lambda connection: None)
