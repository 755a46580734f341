"""What socketio_pg.js does beyond subscriptions: rows with `load`, publishing once, live tables. In Node.

Connections go through a proxy, which cuts them and swallows answers.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.replay_clients import JavaScript, ProxiedLog, Refused
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[ProxiedLog]:
    newest_pg.sql("DO $$ BEGIN CREATE ROLE helper_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    made = ProxiedLog(newest_pg, "javascript_helper", LIVE_TABLES="public.*", LIVE_TABLE_ROLE="helper_reader")
    made.install()
    yield made
    made.close()


@pytest.fixture
def client(log: ProxiedLog) -> Iterator[JavaScript]:
    with contextlib.closing(JavaScript(log.address)) as made:
        yield made
    log.proxy.restore()


def load(client: JavaScript, log: ProxiedLog, name: str, rows: object = ()) -> None:
    """Answer a call of the application's ``load``, with the snapshot of this moment."""
    assert client.wait("load", name=name)["running"] is False, "never two at once"
    [(token,)] = log.sql("SELECT socketio_pg.snapshot()")
    client.call("loaded", name=name, rows=rows, token=token)


def texts(client: JavaScript, name: str, last: object) -> list[Any]:
    """Return what a subscription gets, up to the message with the payload ``last``: rows and payloads, in order."""
    found: list[Any] = []
    while not found or found[-1] != last:
        found.append(client.next("message", name)[0]["payload"])
    return found


def publish(log: ProxiedLog, channel: str, *payloads: object) -> None:
    for payload in payloads:
        log.sql("SELECT socketio_pg.publish(%s, %s)", channel, json.dumps(payload))


# -- load --------------------------------------------------------------------------------------------------------------
def test_rows_come_first_and_messages_that_are_not_in_them_follow(
    log: ProxiedLog, client: JavaScript, channel: str
) -> None:
    client.subscribe("plain", channel)
    client.call("subscribe", name="rows", channel=channel, options={}, loads=True)
    publish(log, channel, 1)
    assert client.wait("load", name="rows")["running"] is False
    [(token,)] = log.sql("SELECT socketio_pg.snapshot()")  # has 1, whether it has a position already or not
    publish(log, channel, 2, 3)
    client.call("loaded", name="rows", rows=[1], token=token)
    assert client.wait("rows", name="rows")["rows"] == [1]
    client.call("live", name="rows")
    assert client.wait("live", name="rows")["position"] is not None
    assert texts(client, "rows", 3) == [2, 3]
    publish(log, channel, 4)
    assert texts(client, "rows", 4) == [4]
    # The handler beside it misses nothing of what was left out for this one.
    assert texts(client, "plain", 4) == [1, 2, 3, 4]

    # A reconnect loads nothing.
    log.proxy.refuse()
    publish(log, channel, 5)
    log.proxy.restore()
    assert texts(client, "rows", 5) == texts(client, "plain", 5) == [5]
    client.wait("live", name="rows")
    assert client.pending("load") == []


def test_rows_are_loaded_again_when_messages_are_lost(log: ProxiedLog, client: JavaScript, channel: str) -> None:
    client.call("subscribe", name="one", channel=channel, options={}, loads=True)
    load(client, log, "one")
    client.wait("rows", name="one")
    client.wait("live", name="one")
    log.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
    log.sql("NOTIFY socketio_pg, 'epoch'")
    client.wait("load", name="one")
    # Neither kind of message is delivered before the rows.
    log.notify(channel, "held")
    publish(log, channel, 1)
    log.settle()
    client.call("loaded", name="one", error="the application's own")
    assert client.wait("error", name="one") == {
        "kind": "error", "name": "one", "code": "load_failed", "retrying": True,
    }  # fmt: skip
    client.wait("load", name="one")
    client.call("loaded", name="one", rows=[], token=None)
    assert client.wait("error", name="one")["code"] == "load_failed"
    assert client.pending("message", "gap", "rows") == []
    load(client, log, "one", [1])
    publish(log, channel, 2)
    assert client.wait("rows", name="one")["rows"] == [1]
    assert texts(client, "one", 2) == ["held", 2]
    client.wait("live", name="one")

    # While disconnected, for longer than the log keeps messages.
    log.proxy.refuse()
    publish(log, channel, 3)
    log.settle()
    log.sql(
        "WITH gone AS (DELETE FROM socketio_pg.log RETURNING position) "
        "UPDATE socketio_pg.head SET trimmed = (SELECT max(position) FROM gone)"
    )
    log.server.restart()
    log.proxy.restore()
    load(client, log, "one", [1, 2, 3])
    assert client.wait("rows", name="one")["rows"] == [1, 2, 3]
    publish(log, channel, 4)
    assert texts(client, "one", 4) == [4]
    assert {line["gap"]["tier"] for line in client.pending("gap")} == {"notify"}

    # The end of a subscription aborts a load.
    client.wait("live", name="one")
    log.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
    log.sql("NOTIFY socketio_pg, 'epoch'")
    client.wait("load", name="one")
    client.unsubscribe("one")
    client.wait("aborted", name="one")
    assert client.call("timers") == 0


def test_a_subscription_starts_at_a_time_or_a_snapshot(log: ProxiedLog, client: JavaScript, channel: str) -> None:
    publish(log, channel, 1)
    log.settle()
    [(at, token)] = log.sql("SELECT to_jsonb(clock_timestamp()) #>> '{}', socketio_pg.snapshot()")
    publish(log, channel, 2)
    client.subscribe("time", channel, since=at)
    client.subscribe("token", channel, since=token)
    client.subscribe("new", channel)
    client.wait("live", name="new")
    for name in ("time", "token"):
        assert texts(client, name, 2) == [2]
        client.wait("live", name=name)
    place = client.position("token")
    client.subscribe("text", channel, since=f"{place['epoch']}:{place['position'] - 1}")
    publish(log, channel, 3)
    assert texts(client, "text", 3) == [2, 3]
    for name in ("time", "token", "new"):
        assert texts(client, name, 3) == [3]


def test_recovery_by_the_stock_client_causes_no_duplicates(log: ProxiedLog, channel: str) -> None:
    with contextlib.closing(JavaScript(log.address, auth={"recovery": True})) as client:
        client.wait("connect", recovered=False)
        client.subscribe("plain", channel)
        client.call("subscribe", name="rows", channel=channel, options={}, loads=True)
        load(client, log, "rows")
        client.call("live", name="rows")
        number = 0
        while True:  # a session is recovered once its replays are over
            number += 1
            publish(log, channel, number)
            assert texts(client, "rows", number) == [number]
            message = client.next("message", "plain")[0]
            assert message["payload"] == number
            if "replayed" not in message:
                break
        log.proxy.refuse()
        publish(log, channel, "missed", "too")
        log.settle()
        log.proxy.restore()
        client.wait("connect", recovered=True)
        publish(log, channel, "last")
        for name in ("rows", "plain"):
            assert texts(client, name, "last") == ["missed", "too", "last"]


# -- publish -----------------------------------------------------------------------------------------------------------
def test_a_message_is_published_once_however_often_the_connection_is_lost(
    log: ProxiedLog, client: JavaScript, channel: str
) -> None:
    client.subscribe("one", channel)
    client.call("publish", number=1, channel=channel, payload=1)
    first = client.wait("published", number=1)["answer"]
    position = client.next("message", "one")[1]
    assert first == {"channel": channel, **position}
    assert "duplicate" not in first

    # The server publishes, but its answer is lost.
    log.proxy.swallow_answers()
    client.call("publish", number=2, channel=channel, payload=2)
    until(lambda: log.sql("SELECT count(*) FROM socketio_pg.log WHERE channel = %s", channel) == [(2,)], "published")
    log.proxy.refuse()
    for number in (3, 4, 5):  # not connected
        client.call("publish", number=number, channel=channel, payload=number)
    log.proxy.restore()
    answers = [client.wait("published", number=number)["answer"] for number in (2, 3, 4, 5)]
    assert [answer.get("duplicate", False) for answer in answers] == [True, False, False, False]
    assert texts(client, "one", 5) == [2, 3, 4, 5]
    assert answers[-1] == {"channel": channel, **client.position("one")}

    # The application's own id, in another transaction.
    log.sql("SELECT socketio_pg.publish(%s, '6', id => 'six')", channel)
    client.call("publish", number=6, channel=channel, payload=6, options={"id": "six", "wait": False})
    assert client.wait("published", number=6)["answer"]["duplicate"] is True
    client.call("publish", number=7, channel=channel, payload=7, options={"durable": False})
    assert client.wait("published", number=7)["answer"] == {"channel": channel}
    # There is no order between the two kinds of messages.
    assert sorted(client.next("message", "one")[0]["payload"] for _ in range(2)) == [6, 7]


def test_failures_to_publish_say_whether_the_message_may_have_been_published(
    log: ProxiedLog, client: JavaScript, channel: str
) -> None:
    client.call("publish", number=1, channel="", payload=1)
    assert client.wait("published", number=1)["error"] == "invalid_channel"
    log.proxy.swallow_answers()
    client.call("publish", number=2, channel=channel, payload=2, options={"timeout": 300})
    refused = client.wait("published", number=2)
    assert (refused["error"], refused["uncertain"]) == ("no_answer", True)
    log.proxy.refuse()
    client.wait_disconnected()
    client.call("publish", number=3, channel=channel, payload=3, options={"timeout": 100})
    refused = client.wait("published", number=3)
    assert (refused["error"], refused["uncertain"]) == ("no_answer", False)
    # NOTIFY has no id: it is not repeated.
    log.proxy.restore()
    client.subscribe("one", channel)
    log.proxy.swallow_answers()
    client.call("publish", number=4, channel=channel, payload=4, options={"durable": False})
    log.proxy.refuse()
    refused = client.wait("published", number=4)
    assert (refused["error"], refused["uncertain"]) == ("no_answer", True)
    assert client.call("timers") == 0


def test_a_database_without_a_log_needs_no_ids(live_server: ServerProcess, channel: str) -> None:
    with contextlib.closing(JavaScript(live_server.url)) as client:
        client.subscribe("one", channel)
        client.call("live", name="one")
        client.call("publish", number=1, channel=channel, payload=1)
        assert client.wait("published", number=1)["answer"] == {"channel": channel}
        assert texts(client, "one", 1) == [1]
        for number, options in enumerate(({"id": "one"}, {"durable": True}), start=2):
            client.call("publish", number=number, channel=channel, payload=1, options=options)
            assert client.wait("published", number=number)["error"] == "log_not_installed"


# -- live tables -------------------------------------------------------------------------------------------------------
class Table:
    """A live table in the client, under a name. Checks that its rows are those of the database."""

    def __init__(self, client: JavaScript, log: ProxiedLog, name: str, **request: Any) -> None:
        self._client, self._log, self._name = client, log, name
        client.call("table", name=name, request={"table": "public.orders", **request})

    def wait(self, kind: str) -> Any:
        return self._client.wait(kind, name=self._name)

    def rows(self) -> dict[Any, Any]:
        return dict(self._client.call("rows", name=self._name))

    def wait_same(self, condition: str = "true") -> None:
        """Wait until the rows are those of the database."""
        [(wanted,)] = self._log.sql(
            f"SELECT coalesce(jsonb_agg(to_jsonb(o) - 'card' ORDER BY id), '[]') FROM orders AS o WHERE {condition}"
        )
        until(lambda: sorted(self.rows().values(), key=lambda row: row["id"]) == wanted, f"{self._name} has {wanted}")


def test_live_table_keeps_its_rows_like_the_database(log: ProxiedLog, client: JavaScript) -> None:
    log.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric, card text); "
        "SELECT socketio_pg.watch('orders', exclude => '{card}', bulk_limit => 50); "
        "GRANT SELECT (id, status, total) ON orders TO helper_reader; "
        "INSERT INTO orders SELECT n, 'new', n, 'secret' FROM generate_series(1, 30) AS n"
    )
    every = Table(client, log, "all", order="id")
    new = Table(client, log, "new", where={"status": "new"})
    assert [key for key, _ in every.wait("rows")["rows"]] == list(range(1, 31))
    for table in (every, new):
        table.wait("live")
    log.sql("UPDATE orders SET status = 'paid' WHERE id = 1")
    paid = {"id": 1, "status": "paid", "total": 1}
    change = {"op": "UPDATE", "key": 1, "row": paid, "before": {**paid, "status": "new"}}
    assert every.wait("change")["change"] == change
    assert new.wait("change") == {
        "kind": "change", "name": "new", "size": 29, "change": {"op": "DELETE", "key": 1, "before": change["before"]},
    }  # fmt: skip
    log.sql("UPDATE orders SET status = 'new' WHERE id = 1")
    assert new.wait("change")["change"]["op"] == "INSERT"
    log.sql("UPDATE orders SET id = 100 WHERE id = 2")
    assert (change := every.wait("change")["change"])["before"]["id"] == 1, change
    assert (change := every.wait("change")["change"])["key"] == 100, change
    assert change["before"]["id"] == 2
    for table, condition in ((every, "true"), (new, "status = 'new'")):
        table.wait_same(condition)

    # A reconnect continues after the last change; a large statement brings all rows again.
    log.proxy.refuse()
    log.sql("DELETE FROM orders WHERE id < 10; UPDATE orders SET status = 'paid' WHERE id BETWEEN 10 AND 12")
    log.proxy.restore()
    for table in (every, new):
        table.wait("live")
    every.wait_same()
    new.wait_same("status = 'new'")
    assert [line for line in client.pending("rows") if line["name"] == "all"] == []
    log.sql("INSERT INTO orders SELECT n, 'new', n FROM generate_series(200, 300) AS n")
    assert every.wait("rows")["reason"] == "many_rows"
    every.wait_same()
    every.wait("live")
    log.server.kill()
    log.server.start()
    log.sql("UPDATE orders SET total = 0 WHERE id = 200")
    every.wait_same()
    log.sql("TRUNCATE orders")
    while (replaced := every.wait("rows"))["rows"]:
        pass
    assert replaced["reason"] == "truncate"
    client.call("unsubscribe", name="new")
    every.wait_same()


def test_live_table_that_cannot_be_read_ends_with_an_error(log: ProxiedLog, client: JavaScript) -> None:
    for name, table in (("hidden", "pg_catalog.pg_class"), ("missing", "public.missing")):
        client.call("table", name=name, request={"table": table})
        error = client.wait("error", name=name)
        assert error["retrying"] is False
        assert error["code"] == {"hidden": "forbidden", "missing": "invalid_request"}[name]
        with pytest.raises(Refused, match=error["code"]):
            client.call("live", name=name)
    assert client.call("timers") == 0
