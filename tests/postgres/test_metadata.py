"""Metadata of messages in the database: what publishers may choose, and what only servers may set."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg2
import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from socketio_pg.client import Client
from socketio_pg.consumer import Consumer
from socketio_pg.core import green
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.meta import META_CHANNEL
from socketio_pg.core.publications import Publication
from socketio_pg.orm import publishes, publishing
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.testing import Published
from tests.support.log_database import LogDatabase
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster, in_thread

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SENDER = '{"sub":"42","n":12345678901234567890123}'


class Base(DeclarativeBase): ...


@publishes("things")
class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[LogDatabase]:
    made = LogDatabase(newest_pg, "metadata")
    made.sql("DROP ROLE IF EXISTS meta_publisher; CREATE ROLE meta_publisher LOGIN")
    made.sql("DROP ROLE IF EXISTS meta_server; CREATE ROLE meta_server LOGIN; CREATE TABLE things (id int PRIMARY KEY)")
    made.install(publisher="meta_publisher", server="meta_server")
    yield made
    made.sql("DROP OWNED BY meta_publisher, meta_server; DROP ROLE meta_publisher, meta_server")


def metas(log: LogDatabase) -> list[Any]:
    """Move everything to the log, and return the metadata of what was moved."""
    [(newest,)] = log.sql("SELECT coalesce(max(position), 0) FROM socketio_pg.log")
    log.move()
    rows = log.sql("SELECT meta, size - octet_length(payload::text) FROM socketio_pg.log WHERE position > %s", newest)
    assert all(size == (0 if meta is None else len(json.dumps(meta))) for meta, size in rows)
    return [meta for meta, _ in rows]


def test_publishers_choose_the_excluded_client_and_the_trace(log: LogDatabase) -> None:
    for arguments in (
        "true, exclude => 'abc'", f"NULL, traceparent => '{TRACE}'", f"true, 'once', 'abc', '{TRACE}'",
        "true, 'once', 'other'", "true, exclude => NULL",
    ):  # fmt: skip
        log.sql(f"SET ROLE meta_publisher; SELECT socketio_pg.publish('a', '1', {arguments})")
    assert metas(log) == [{"exclude": "abc"}, {"traceparent": TRACE}, {"exclude": "abc", "traceparent": TRACE}, None]


@pytest.mark.parametrize(
    "arguments",
    [
        "true, exclude => ''", "true, exclude => 'a b'", "true, exclude => repeat('x', 65)",
        "true, traceparent => 'none'", f"true, traceparent => '{TRACE.upper()}'", f"true, traceparent => '{TRACE}-1'",
        f"true, traceparent => '{TRACE.replace('b7ad6b7169203331', '0' * 16)}'", "false, exclude => 'abc'",
    ],
)  # fmt: skip
def test_invalid_choices_are_errors(log: LogDatabase, arguments: str) -> None:
    with pytest.raises(psycopg2.Error) as raised:
        log.sql(f"SELECT socketio_pg.publish('a', '1', {arguments})")
    assert raised.value.pgcode == "SG010"


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT socketio_pg.publish_with_meta('a', '1', true, NULL, '{{\"from\": {SENDER}}}', NULL)",
        f"SELECT socketio_pg.add_with_meta('a', '1', '{{\"from\": {SENDER}}}')",
        f"INSERT INTO socketio_pg.outbox (channel, payload, size, meta) VALUES ('a', '1', 1, '{SENDER}')",
        f"UPDATE socketio_pg.outbox SET meta = '{SENDER}'",
        f"UPDATE socketio_pg.log SET meta = '{SENDER}'",
        "SELECT key FROM socketio_pg.cluster_key",
    ],
)
def test_publishers_cannot_set_the_sender(log: LogDatabase, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        log.sql(f"SET ROLE meta_publisher; {statement}")


def test_reordered_message_of_a_watched_transaction_keeps_its_metadata(log: LogDatabase) -> None:
    log.sql("CREATE TABLE watched (id int); SELECT socketio_pg.watch('watched')")
    log.sql(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM socketio_pg.publish('a', '1', true, exclude => 'abc'); RETURN NULL; END $$;"
        "CREATE TRIGGER tell AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION tell()"
    )
    log.sql("INSERT INTO watched VALUES (1), (2)")
    assert sorted(map(str, metas(log))) == ["None", "None", "{'exclude': 'abc'}", "{'exclude': 'abc'}"]


def test_programs_choose_them_too(log: LogDatabase) -> None:
    def work() -> list[Any]:
        with contextlib.closing(psycopg.connect(log.url)) as connection:
            client = Client(connection)
            assert client.notify("a", 1, exclude="abc", traceparent=TRACE)
            assert client.publish("a", "created", {}, traceparent=TRACE, id="x")
            assert not client.notify("a", 2, id="x", exclude="abc")
            with pytest.raises(InvalidRequestError, match="exclude needs the log"):
                client.notify("a", 1, exclude="abc", durable=False)
            with pytest.raises(InvalidRequestError, match="W3C Trace Context"):
                client.notify("a", 1, traceparent="x")
            published = Published(connection)
            client.notify("a", 3, exclude="abc")
            assert [(one, one.exclude, one.traceparent) for one in published.all] == [(("a", 3), "abc", None)]
            connection.commit()
        engine = create_engine(log.url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
        with Session(engine) as session:
            session.add(Thing(id=1))
            with publishing(session, exclude="abc", traceparent=TRACE):
                session.add(Thing(id=2))
            session.add(Thing(id=3))
            session.commit()
        return metas(log)

    both = {"exclude": "abc", "traceparent": TRACE}
    assert in_thread(work) == [both, {"traceparent": TRACE}, {"exclude": "abc"}, None, both, None]


def test_consumer_gets_the_sender_and_the_trace(log: LogDatabase) -> None:
    found: list[Any] = []
    with contextlib.closing(
        Consumer(lambda: psycopg2.connect(log.url), "consumer", channels=["of_server"])
    ) as consumer:
        in_thread(lambda: consumer.run(lambda connection, message: None, until_idle=True))
        meta = json.dumps({"from": json.loads(SENDER), "traceparent": TRACE, "exclude": "abc"})
        log.sql("SELECT socketio_pg.publish_with_meta('of_server', '1', true, NULL, %s, NULL)", meta)
        log.publish("of_server", "2")
        log.move()
        in_thread(lambda: consumer.run(lambda connection, message: found.append(message), until_idle=True))
    keys = {"channel", "payload", "epoch", "position", "published_at"}
    assert [message.keys() for message in found] == [keys | {"from", "traceparent"}, keys]
    assert (found[0]["from"], found[0]["traceparent"]) == (json.loads(SENDER), TRACE)


def test_metadata_of_notify_cannot_be_forged(log: LogDatabase) -> None:
    """It arrives at a server with the key. What others see and send is the plain payload."""
    url = log.url.replace("postgres@", "meta_server@")
    with contextlib.closing(psycopg2.connect(log.url)) as witness:
        witness.autocommit = True
        statement = witness.cursor()
        statement.execute(f'LISTEN chat; LISTEN "{META_CHANNEL}"')
        sender, receiver = PubSub(url), PubSub(url)
        try:
            heard: Any = green.Queue()
            receiver.subscribe("chat", heard, on_gap=heard.put)
            sender.keys.read()
            receiver.keys.read()
            for id in (None, "x", "x"):
                sender.publish_one(Publication("chat", {"n": 1}, False, id, "abc", TRACE, SENDER))
            for _ in range(2):
                found = heard.get(timeout=PATIENCE)
                assert found == {
                    "channel": "chat",
                    "payload": {"n": 1},
                    "from": json.loads(SENDER),
                    "traceparent": TRACE,
                }
            until(lambda: witness.poll() or len(witness.notifies) >= 4, "the witness hears both messages")
            seen = [(one.channel, one.payload) for one in witness.notifies]
            assert [channel for channel, _ in seen] == [META_CHANNEL, "chat"] * 2, "the repeated id has no companion"
            assert seen[1::2] == [("chat", '{"n":1}')] * 2
            # Sent again by another role, and made up.
            for forged in (seen[0][1], seen[2][1], SENDER, ""):
                log.sql(f'SET ROLE meta_publisher; BEGIN; NOTIFY "{META_CHANNEL}", {quoted(forged)};'
                        """NOTIFY chat, '{"n":1}'; COMMIT""")  # fmt: skip
                assert heard.get(timeout=PATIENCE) == {"channel": "chat", "payload": {"n": 1}}
            # Metadata arrives again after the connections were lost.
            log.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'socketio_pg%%'"
            )
            assert heard.get(timeout=PATIENCE)["reason"] == "database_connection_lost"
            sender.publish_one(Publication("chat", 2, False, sender=SENDER))
            assert heard.get(timeout=PATIENCE)["from"] == json.loads(SENDER)
        finally:
            sender.disconnect()
            receiver.disconnect()


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
