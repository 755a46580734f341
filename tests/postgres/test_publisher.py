"""The publishing connection: numbers, ids, and commits whose outcome is unknown."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidRequestError, SocketIOPGError
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.outgoing import Outgoing, Receipt
from socketio_pg.postgres.publisher import Publisher, Result
from tests.support.log_database import LogDatabase
from tests.support.patience import until
from tests.support.postgres import in_thread
from tests.support.proxy import Proxy


@contextlib.contextmanager
def publisher_of(url: str) -> Iterator[Publisher]:
    made = Publisher(Database(url))
    made.timeout = 5.0  # a busy machine must not decide the outcome
    yield made
    made.stop()


@pytest.fixture
def publisher(shared_log: LogDatabase) -> Iterator[Publisher]:
    with publisher_of(shared_log.url) as made:
        yield made


class Call:
    """A call of the publisher in a green thread."""

    def __init__(self, publish: Callable[[], Any]) -> None:
        self._publish = publish
        self._results: list[Any] = []
        green.spawn(self._run)

    def _run(self) -> None:
        try:
            self._results.append(self._publish())
        except SocketIOPGError as error:
            self._results.append(error)

    @property
    def done(self) -> bool:
        green.sleep(0.01)
        return bool(self._results)

    def result(self) -> Any:
        until(lambda: self.done, "the publication is over")
        return self._results[0]


def logged(channel: str, payload: int, id: str | None = None) -> Outgoing:
    return Outgoing(channel, str(payload), True, id)


def payloads(log: LogDatabase, channel: str) -> list[int]:
    rows = in_thread(log.sql, "SELECT payload FROM socketio_pg.outbox WHERE channel = %s ORDER BY id", channel)
    return [row[0] for row in rows]


def test_receipts_are_in_the_order_of_the_messages(shared_log: LogDatabase, publisher: Publisher, channel: str) -> None:
    [first] = publisher.publish([logged(channel, 1, "a")])
    mixed = [
        Outgoing(channel, "2"),
        logged(channel, 3),
        logged(channel, 4, "a"),
        Outgoing(channel, "5", id="b"),
        logged(channel, 6, "c"),
        logged(channel, 7, "c"),
    ]
    notified, plain, again, other, new, own = publisher.publish(mixed)
    assert notified == Receipt()
    assert again == Receipt(first.number, duplicate=True)
    assert [one.duplicate for one in (plain, other, new)] == [False] * 3
    assert own == Receipt(new.number, duplicate=True)
    ids = in_thread(shared_log.sql, "SELECT id FROM socketio_pg.outbox WHERE channel = %s ORDER BY id", channel)
    assert [number for (number,) in ids] == [first.number, plain.number, new.number]
    assert payloads(shared_log, channel) == [1, 3, 6]


def test_one_refused_request_does_not_affect_the_others(
    shared_log: LogDatabase, publisher: Publisher, channel: str
) -> None:
    requests = [[logged(channel, 1, "a")], [Outgoing(channel, '"\\u0000"', True, "b")], [logged(channel, 2, "a")]]
    first, refused, again = publisher.publish_all([(messages, True) for messages in requests])
    assert isinstance(refused, InvalidRequestError)
    assert not isinstance(first, SocketIOPGError)
    assert again == [Receipt(first[0].number, duplicate=True)]
    assert publisher.publish([logged(channel, 3, "b")])[0].duplicate is False


@pytest.mark.parametrize("commits", [True, False])
def test_only_the_same_id_waits_for_an_open_transaction(
    shared_log: LogDatabase, publisher: Publisher, channel: str, commits: bool
) -> None:
    with contextlib.closing(shared_log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT socketio_pg.publish(%s, '1', 'x')", [channel])
        publisher.timeout = 60.0
        requests = [[logged(channel, 2, "x")], [logged(channel, 3)], [logged(channel, 4, "y")]]
        together = Call(lambda: publisher.publish_all([(messages, False) for messages in requests]))
        until(lambda: not together.done and payloads(shared_log, channel) == [3, 4], "the others are published")
        assert publisher.publish([logged(channel, 5)])
        assert not together.done
        cursor.execute("COMMIT" if commits else "ROLLBACK")
    results: list[Result] = together.result()
    [receipt] = results[0]  # type: ignore[misc]
    assert receipt.duplicate is commits
    assert sorted(payloads(shared_log, channel)) == ([1, 3, 4, 5] if commits else [2, 3, 4, 5])


def test_one_id_in_use_does_not_cost_a_commit_for_each_other(
    shared_log: LogDatabase, publisher: Publisher, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    commit = publisher._commit

    def counted(batch: Sequence[Any]) -> Sequence[Receipt]:
        receipts = commit(batch)
        sizes.append(len(batch))
        return receipts

    monkeypatch.setattr(publisher, "_commit", counted)
    with contextlib.closing(shared_log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT socketio_pg.publish(%s, '1', 'id 700')", [channel])
        publisher.timeout = 60.0
        requests = [[logged(channel, number, f"id {number}")] for number in range(1000)]
        together = Call(lambda: publisher.publish_all([(messages, False) for messages in requests]))
        until(lambda: not together.done and sum(sizes) == 999, "the others are published")
        cursor.execute("ROLLBACK")
    assert len(together.result()) == 1000
    assert len(sizes) < 50, sizes
    assert payloads(shared_log, channel) == [*range(700), *range(701, 1000), 700]


def test_id_that_stays_in_use_is_an_error(shared_log: LogDatabase, publisher: Publisher, channel: str) -> None:
    publisher.timeout = 0.5
    with contextlib.closing(shared_log.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT socketio_pg.publish(%s, '1', 'x')", [channel])
        with pytest.raises(DatabaseUnavailableError, match="nothing was published"):
            publisher.publish([logged(channel, 2, "x")])


#: Makes each commit of a message wait for a lock, which the test holds.
SLOW_COMMITS = """
CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(19);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON socketio_pg.outbox DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION public.slow();
"""


@pytest.mark.parametrize("with_ids", [True, False])
def test_commit_without_an_answer_is_repeated_if_all_messages_have_ids(
    log: LogDatabase, channel: str, with_ids: bool
) -> None:
    log.sql(SLOW_COMMITS)
    proxy = Proxy(log.cluster.socket_path)
    with publisher_of(proxy.url.rpartition("/")[0] + f"/{log.name}") as made:
        made.again_for = 60.0
        made.publish([Outgoing(channel, "0")])  # it connects
        with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(19)")
            ids = [f"id {n}" if with_ids else None for n in range(2)]
            call = Call(lambda: made.publish([logged(channel, n, id) for n, id in enumerate(ids, 1)]))
            waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until(lambda: not call.done and in_thread(log.sql, waiting), "the commit waits")
            proxy.swallow_answers()
            cursor.execute("SELECT pg_advisory_unlock(19)")
            until(lambda: not call.done and payloads(log, channel) == [1, 2], "it is committed")
        if with_ids:
            proxy.restore()
            receipts = call.result()
            assert [receipt.duplicate for receipt in receipts] == [False, False]
            numbers = in_thread(log.sql, "SELECT id FROM socketio_pg.outbox ORDER BY id")
            assert [receipt.number for receipt in receipts] == [number for (number,) in numbers]
        else:
            error = call.result()
            assert isinstance(error, DatabaseUnavailableError)
            assert "may have been sent or not" in error.message
        assert payloads(log, channel) == [1, 2]
    proxy.close()
