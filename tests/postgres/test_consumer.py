"""Durable consumers on PostgreSQL: the work and the position in one transaction, for each kind of connection."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg.rows
import psycopg2
import psycopg2.extras
import pytest
from sqlalchemy import NullPool, create_engine, text

from socketio_pg.client import Client
from socketio_pg.consumer import Consumer, ConsumerGap, Message, MissedMessagesError
from socketio_pg.core.errors import LogNotInstalledError, UntrustedSchemaError
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.log.relay import _SESSION
from socketio_pg.log.trimming import Trimming
from tests.support.log_database import LogDatabase
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster, in_thread

#: Kind → `connect` of a consumer.
KINDS: dict[str, Callable[[str], Any]] = {
    "psycopg2": lambda url: lambda: psycopg2.connect(url),
    "psycopg": lambda url: lambda: psycopg.connect(url),
    "engine": lambda url: create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool),
}


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> LogDatabase:
    made = LogDatabase(newest_pg, "consumers")
    made.sql("CREATE TABLE done (consumer text, number int, position bigint, id bigint GENERATED ALWAYS AS IDENTITY)")
    return made


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest, database: LogDatabase) -> Any:
    return KINDS[request.param](database.url)


class Work:
    """A handler: inserts a row for each message. Fails for some."""

    def __init__(self, name: str) -> None:
        self.name = name
        #: Number of a message → how often it still fails.
        self.fails: dict[int, int] = {}
        #: All calls, also those that were rolled back.
        self.calls: list[int] = []

    def __call__(self, connection: Any, message: Message) -> None:
        number = message["payload"]
        self.calls.append(number)
        insert(connection, self.name, number, message["position"])
        if self.fails.get(number, 0) > 0:
            self.fails[number] -= 1
            raise LookupError(f"no {number}\0")


def insert(connection: Any, name: str, number: int, position: int) -> None:
    if hasattr(connection, "cursor"):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO done VALUES (%s, %s, %s)", (name, number, position))
    else:
        connection.execute(text("INSERT INTO done VALUES (:a, :b, :c)"), {"a": name, "b": number, "c": position})


@pytest.fixture
def work(channel: str) -> Work:
    return Work(channel)


def done(database: LogDatabase, name: str) -> list[int]:
    return [n for (n,) in database.sql("SELECT number FROM done WHERE consumer = %s ORDER BY id", name)]


def publish(database: LogDatabase, channel: str, *numbers: int) -> None:
    database.publish(channel, *map(str, numbers))
    database.move()


def consumer(connect: Any, name: str, **options: Any) -> Consumer:
    given: dict[str, Any] = {"channels": [name], "retry_delay": 0.001, "poll": 0.05, **options}
    return Consumer(connect, name, **given)


def run(made: Consumer, work: Callable[[Any, Message], None]) -> None:
    """Do all messages, and close the consumer."""
    with made:
        in_thread(lambda: made.run(work, until_idle=True))


def status(database: LogDatabase, name: str, columns: str) -> Any:
    [row] = database.sql(f"SELECT {columns} FROM socketio_pg.consumers WHERE name = %s", name)
    return row


def test_each_message_is_done_once_in_order_from_where_it_ended(
    database: LogDatabase, connect: Any, work: Work, channel: str
) -> None:
    publish(database, channel, 1)
    run(consumer(connect, channel), work)  # starts now
    publish(database, f"{channel}-other", 2)
    publish(database, channel, 3, 4, 5)
    assert status(database, channel, "channels, lag, lost") == ([channel], 4, None)
    run(consumer(connect, channel, batch=2), work)
    publish(database, channel, 6)
    run(consumer(connect, channel), work)
    assert done(database, channel) == work.calls == [3, 4, 5, 6]
    assert status(database, channel, "lag, age, failures") == (0, None, 0)
    found: list[Message] = []
    run(Consumer(connect, f"{channel}-all", start="earliest", batch=1000), lambda _, message: found.append(message))
    mine = [message for message in found if message["channel"].startswith(channel)]
    assert [message["payload"] for message in mine] == [1, 2, 3, 4, 5, 6]
    assert mine[0]["published_at"].endswith("Z")


def test_failed_work_is_rolled_back_and_tried_again(
    database: LogDatabase, connect: Any, work: Work, channel: str
) -> None:
    run(consumer(connect, channel), work)
    publish(database, channel, 1, 2, 3, 4)
    work.fails = {2: 3, 4: 1}
    run(consumer(connect, channel, batch=10), work)
    assert done(database, channel) == [1, 2, 3, 4]
    # The batch as a whole, then one by one.
    assert work.calls == [1, 2, 1, 2, 2, 2, 3, 4, 4]


def test_failures_of_the_very_first_message_count(
    database: LogDatabase, connect: Any, work: Work, channel: str
) -> None:
    """The rollback also undoes the transaction's creation of the consumer."""
    publish(database, f"{channel}-other", 0)
    publish(database, channel, 1, 2)
    work.fails = {1: 99}
    with pytest.raises(LookupError, match="no 1"):
        run(consumer(connect, channel, start="earliest", attempts=3), work)
    assert work.calls == [1, 1, 1]
    assert status(database, channel, "failures, failed_position - position") == (3, 1)
    work.fails = {}
    run(consumer(connect, channel), work)  # now it would begin with the next message, if it were new
    assert done(database, channel) == [1, 2]


ROWS: dict[str, Callable[[str], Any]] = {
    "RealDictCursor": lambda url: psycopg2.connect(url, cursor_factory=psycopg2.extras.RealDictCursor),
    "NamedTupleCursor": lambda url: psycopg2.connect(url, cursor_factory=psycopg2.extras.NamedTupleCursor),
    "dict_row": lambda url: psycopg.connect(url, row_factory=psycopg.rows.dict_row),
}


@pytest.mark.parametrize("kind", ROWS)
def test_connections_may_return_rows_of_any_kind(database: LogDatabase, channel: str, kind: str) -> None:
    publish(database, channel, 1)
    found: list[Any] = []
    made = consumer(lambda: ROWS[kind](database.url), channel, start="earliest")
    run(made, lambda connection, message: found.append((message["payload"], connection.cursor().__class__.__name__)))
    assert found == [(1, kind if kind != "dict_row" else "Cursor")]
    with contextlib.closing(ROWS[kind](database.url)) as connection:
        assert [Client(connection).notify(channel, 2, id="x") for _ in range(2)] == [True, False]


def test_position_that_the_log_does_not_have_yet_is_refused(database: LogDatabase, channel: str) -> None:
    publish(database, channel, 1)
    [(epoch, position)] = database.sql(
        "SELECT epoch::text, (SELECT max(position) FROM socketio_pg.log) FROM socketio_pg.head"
    )
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="no position"):
        database.sql("SELECT socketio_pg.consume(%s, NULL, 1, %s)", channel, f"{epoch}:{position + 1}")
    database.sql("SELECT socketio_pg.consumer_move(%s, %s)", channel, f"{epoch}:{position}")
    publish(database, channel, 2)
    assert database.sql("SELECT payload FROM socketio_pg.consume(%s)", channel) == [(2,)]


def test_message_that_always_fails_stops_the_consumer_or_is_skipped(
    database: LogDatabase, connect: Any, work: Work, channel: str
) -> None:
    run(consumer(connect, channel), work)
    publish(database, channel, 1, 2, 3)
    work.fails = {2: 99}
    with pytest.raises(LookupError, match="no 2"):
        run(consumer(connect, channel, attempts=3), work)
    assert done(database, channel) == [1]
    lag, failures, error, position = status(database, channel, "lag, failures, error, failed_position - position")
    assert (lag, failures, error, position) == (2, 3, "LookupError: no 2?", 1)

    def bury(connection: Any, message: Message, error: Exception) -> None:
        insert(connection, channel, -message["payload"], message["position"])

    # Attempts are counted across processes.
    run(consumer(connect, channel, attempts=4, on_failure=bury), work)
    assert done(database, channel) == [1, -2, 3]
    assert work.calls.count(2) == 4
    assert status(database, channel, "lag, failures, error") == (0, 0, None)


def test_handler_that_ends_or_breaks_the_transaction_is_told(database: LogDatabase, connect: Any, channel: str) -> None:
    run(consumer(connect, channel), Work(channel))
    publish(database, channel, 1)

    def swallow(connection: Any, message: Message) -> None:
        try:
            insert(connection, channel, "no number", 1)  # type: ignore[arg-type]
        except Exception:
            logging.info("swallowed")

    with pytest.raises(RuntimeError, match="nothing can be committed"):
        run(consumer(connect, channel, attempts=1), swallow)
    with pytest.raises(RuntimeError, match="must leave that to the consumer"):
        run(consumer(connect, channel, attempts=1), lambda connection, _: connection.rollback())
    assert status(database, channel, "lag") == (1,)


def trim(database: LogDatabase, channel: str) -> None:
    database.sql(
        "WITH gone AS (DELETE FROM socketio_pg.log WHERE position < (SELECT max(position) FROM socketio_pg.log)"
        " RETURNING position) UPDATE socketio_pg.head SET trimmed = (SELECT max(position) FROM gone)"
    )


def delete(database: LogDatabase, channel: str) -> None:
    database.sql("DELETE FROM socketio_pg.log WHERE channel = %s AND payload = '2'", channel)


@pytest.mark.parametrize("remove", [trim, delete])
def test_removed_messages_are_told(
    database: LogDatabase, connect: Any, work: Work, channel: str, remove: Callable[[LogDatabase, str], None]
) -> None:
    run(consumer(connect, channel), work)
    publish(database, channel, 1)
    run(consumer(connect, channel), work)
    publish(database, channel, 2, 3)
    remove(database, channel)
    with pytest.raises(MissedMessagesError, match="removed from the log before it got them") as caught:
        run(consumer(connect, channel), work)
    assert caught.value.gap["reason"] == status(database, channel, "lost")[0] == "trimmed"
    gaps: list[ConsumerGap] = []

    def on_gap(connection: Any, gap: ConsumerGap) -> None:
        gaps.append(gap)
        insert(connection, channel, 0, gap["position"])

    run(consumer(connect, channel, on_gap=on_gap), work)
    assert gaps == [caught.value.gap]
    assert done(database, channel) == [1, 0, 3]


def test_new_epoch_is_told(database: LogDatabase, connect: Any, work: Work, channel: str) -> None:
    run(consumer(connect, channel), work)
    publish(database, channel, 1)
    database.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
    with pytest.raises(MissedMessagesError, match="another epoch") as caught:
        run(consumer(connect, channel), work)
    assert status(database, channel, "lost") == ("epoch_changed",)
    publish(database, channel, 2)
    run(
        consumer(connect, channel, on_gap=lambda _, gap: {"epoch": gap["epoch"], "position": gap["position"] - 1}), work
    )
    assert done(database, channel) == [2]
    assert caught.value.gap["since"]["epoch"] != caught.value.gap["epoch"]
    with consumer(connect, channel) as made:
        in_thread(lambda: made.move(caught.value.gap["since"]))
        with pytest.raises(MissedMessagesError):
            in_thread(lambda: made.run(work))
        in_thread(lambda: made.move("now"))
        in_thread(lambda: made.run(work, until_idle=True))


@pytest.fixture
def running() -> Iterator[Callable[[Consumer, Work], None]]:
    """Run consumers in threads until the end of the test."""
    made: list[tuple[Consumer, threading.Thread]] = []

    def start(one: Consumer, work: Work) -> None:
        in_thread(one.step, work)  # it reports errors of its first connection
        thread = threading.Thread(target=one.run, args=(work,))
        made.append((one, thread))
        thread.start()

    yield start
    for one, thread in made:
        one.stop()
        thread.join(PATIENCE)
        one.close()


@pytest.mark.nightly
def test_two_consumers_of_one_name_share_without_repetition_while_connections_break(
    database: LogDatabase, connect: Any, work: Work, channel: str, running: Callable[[Consumer, Work], None]
) -> None:
    run(consumer(connect, channel), work)
    for batch in (1, 3):
        running(consumer(connect, channel, batch=batch), work)
    total = 120
    for number in range(1, total + 1):
        publish(database, channel, number)
        if number % 20 == 0:
            database.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    until(lambda: len(done(database, channel)) >= total, "all messages are done")
    assert done(database, channel) == list(range(1, total + 1))


def test_notification_wakes_the_consumer(
    database: LogDatabase, connect: Any, work: Work, channel: str, running: Callable[[Consumer, Work], None]
) -> None:
    """Without one it would look again in an hour."""
    run(consumer(connect, channel), work)
    running(consumer(connect, channel, poll=3600), work)
    for number in (1, 2, 3):
        publish(database, channel, number)
        until(lambda number=number: done(database, channel)[-1:] == [number], "the message is done")  # type: ignore[misc]


def test_role_needs_only_the_consumer_grants(database: LogDatabase, work: Work, channel: str) -> None:
    database.cluster.sql("DROP ROLE IF EXISTS consuming; CREATE ROLE consuming LOGIN")
    url = database.url.replace("postgres@", "consuming@")
    try:
        database.sql("GRANT INSERT ON done TO consuming")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run(consumer(KINDS["psycopg"](url), channel), work)
        database.install(consumer="consuming")
        run(consumer(KINDS["psycopg"](url), channel), work)
        publish(database, channel, 1)
        run(consumer(KINDS["psycopg"](url), channel), work)
        assert done(database, channel) == [1]
        with contextlib.closing(psycopg.connect(url)) as own:  # a copy of a table, as in docs/consumer.md
            own.execute("SELECT socketio_pg.consumer_move(%s, socketio_pg.snapshot())", [channel])
        database.sql("ALTER FUNCTION socketio_pg.consumer_start OWNER TO pg_monitor")
        with pytest.raises(UntrustedSchemaError, match="consumer_start belongs to pg_monitor"):
            run(consumer(KINDS["psycopg"](url), channel), work)
        run(consumer(KINDS["psycopg"](url), channel, schema_owner="pg_monitor"), work)
    finally:
        database.sql("ALTER FUNCTION socketio_pg.consumer_start OWNER TO CURRENT_USER")
        database.sql("DROP OWNED BY consuming")
        database.cluster.sql("DROP ROLE consuming")


def test_database_without_a_log_is_told(newest_pg: Cluster, work: Work, channel: str) -> None:
    with pytest.raises(LogNotInstalledError):
        run(consumer(KINDS["psycopg"](newest_pg.url("template1")), channel), work)


def test_quiet_consumer_moves_on_before_the_messages_of_others_are_trimmed(
    database: LogDatabase, work: Work, channel: str
) -> None:
    made = KINDS["psycopg"](database.url)
    run(consumer(made, channel), work)
    database.sql("UPDATE socketio_pg.consumer SET moved_at = now() - interval '2 minutes'")
    publish(database, f"{channel}-other", 1, 2, 3)
    run(consumer(made, channel), work)
    trim(database, channel)
    publish(database, channel, 4)
    run(consumer(made, channel), work)
    assert done(database, channel) == [4]


def test_start_at_a_time(database: LogDatabase, work: Work, channel: str) -> None:
    made = KINDS["psycopg"](database.url)
    publish(database, channel, 1, 2)
    [(at,)] = database.sql("SELECT clock_timestamp()")
    publish(database, channel, 3)
    run(consumer(made, channel, start=at), work)
    assert done(database, channel) == [3]
    for name, start, expected in (("past", "2001-01-01T00:00:00Z", [1, 2, 3]), ("future", "2999-01-01 00:00+02", [])):
        other = Work(f"{channel}-{name}")
        with Consumer(made, other.name, channels=[channel], start=start) as one:
            in_thread(lambda one=one, other=other: one.run(other, until_idle=True))
        assert done(database, other.name) == expected


def test_start_from_a_snapshot_delivers_exactly_what_is_not_in_the_rows(
    database: LogDatabase, work: Work, channel: str
) -> None:
    """Messages of the snapshot may be in the log, in the outbox, or of its own transaction."""
    made = KINDS["psycopg"](database.url)
    publish(database, channel, 1)
    with psycopg.connect(database.url) as late, psycopg.connect(database.url) as own:
        late.execute("SELECT socketio_pg.publish(%s, '2')", [channel])
        database.publish(channel, "3", "4")
        own.execute("SELECT socketio_pg.publish(%s, '5')", [channel])
        own.execute("SELECT socketio_pg.consumer_move(%s, socketio_pg.snapshot())", [channel])
        own.commit()
        late.commit()
        database.publish(channel, "6")
    database.move()
    run(consumer(made, channel, batch=2), work)
    publish(database, channel, 7)
    run(consumer(made, channel), work)
    assert sorted(done(database, channel)) == [2, 6, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", None, 1, "now"), "1 to 63 bytes"),
        (("x", None, 0, "now"), "1 to 1000"),
        (("invalid start", None, 1, "yesterday"), "starts from"),
        (("invalid start", None, 1, "snapshot:1"), "starts from"),
        (("invalid start", None, 1, "2026-01-01T00:00:00"), "starts from"),
    ],
)
def test_invalid_arguments_are_refused(database: LogDatabase, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=message):
        database.sql("SELECT socketio_pg.consume(%s, %s, %s, %s)", *arguments)


# -- rules for channels ------------------------------------------------------------------------------------------------


def keep(database: LogDatabase, channel: str, messages: int) -> None:
    """Trim ``channel`` by a rule with ``max_messages``, as the relay does."""

    def trim_apart() -> None:
        rules = Rules(Rule(max_age=86_400.0))
        rules.replace({channel: Rule(max_messages=messages)})
        trimming = Trimming(rules, None, 30.0)
        trimming.min_age = -1.0
        with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(_SESSION)
            cursor.execute("SELECT term FROM socketio_pg.head")
            [term] = cursor.fetchone()
            for _ in range(3):
                trimming.next = trimming._next_pass = 0.0
                trimming.run(connection, term)

    in_thread(trim_apart)


def test_only_consumers_of_a_channel_that_a_rule_has_trimmed_are_told(
    database: LogDatabase, connect: Any, work: Work, channel: str
) -> None:
    other = f"{channel}-other"
    for one in (channel, other):
        run(consumer(connect, one), work)
        publish(database, one, 1)
    publish(database, channel, 2, 3)
    publish(database, other, 2)
    keep(database, channel, 2)
    with pytest.raises(MissedMessagesError) as caught:
        run(consumer(connect, channel), work)
    gap = caught.value.gap
    assert gap["reason"] == status(database, channel, "lost")[0] == "trimmed"
    assert gap["position"] == gap["since"]["position"], "messages of its other channels would follow from there"
    assert status(database, other, "lost") == (None,)
    run(consumer(connect, other), Work(other))
    assert done(database, other) == [1, 2]
    # It goes on with what is left, and is told again when more is trimmed before it got it.
    run(consumer(connect, channel, on_gap=lambda *_: None), work)
    assert done(database, channel) == [2, 3]
    publish(database, channel, 4, 5, 6)
    keep(database, channel, 2)
    with pytest.raises(MissedMessagesError):
        run(consumer(connect, channel), work)
