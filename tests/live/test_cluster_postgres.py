"""Flask-SocketIO's own API over PostgreSQL: use of the database, transactions, programs, malformed input, faults."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import psycopg2
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from socketio_pg import PostgresManager
from socketio_pg.core.channels import QUEUE_CHANNEL
from socketio_pg.core.errors import ConfigurationError, DatabaseUnavailableError
from tests.support.cluster import CLUSTER_KEY, Cell, Member, only_news
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster, in_thread
from tests.support.server import free_port


@pytest.fixture(scope="module")
def on_postgres(newest_pg: Cluster) -> Iterator[Cell]:
    with contextlib.closing(Cell(newest_pg, "postgres")) as made:
        yield made


@pytest.fixture
def pair(on_postgres: Cell, room: str) -> Iterator[list[Member]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Member(node.url, room)) for node in on_postgres.nodes]


def test_only_emits_to_other_nodes_use_the_database(
    on_postgres: Cell, pair: list[Member], room: str, channel: str
) -> None:
    """Answers, hellos and emits to a client of this node do not use it: each would cost a commit."""

    def listen() -> list[str]:
        with contextlib.closing(psycopg2.connect(on_postgres.database_url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(f"LISTEN {QUEUE_CHANNEL}")
            with Member(on_postgres.nodes[0].url, room) as member:
                member.subscribe(channel)
                assert member.call("publish", {"channel": channel, "payload": 1})["ok"] is True
                member.io.emit("no such event")
                member.next("error")
                member.io.emit("reply", "for me")
                assert member.next("news") == ("for me",)
                on_postgres.emit(0, "for one", to=member.sid)
                assert on_postgres.post(0, f"/ask/{member.sid}", 1) == {"answer": {"asked": 1}}
                on_postgres.emit(0, "for the room", room=room)
            cursor.execute("SELECT 1")
            return [notification.payload for notification in connection.notifies]

    [only] = in_thread(listen)
    assert only.startswith("sealed1 ")
    assert "for the room" not in only


def test_emits_are_sent_with_the_commit_of_their_transaction(on_postgres: Cell, pair: list[Member], room: str) -> None:
    """A rollback discards them."""

    def write() -> None:
        engine = create_engine(on_postgres.database_url)
        with engine.connect() as connection:
            PostgresManager(connection, write_only=True, cluster_key=CLUSTER_KEY).emit("news", "rolled back", room=room)
            connection.rollback()
        with Session(engine) as session, session.begin():
            PostgresManager(session, write_only=True, cluster_key=CLUSTER_KEY).emit("news", "committed", room=room)
        engine.dispose()
        with contextlib.closing(psycopg2.connect(on_postgres.database_url)) as raw, raw:
            PostgresManager(raw, write_only=True, cluster_key=CLUSTER_KEY).emit("news", "by the driver", room=room)

    in_thread(write)
    for member in pair:
        assert [member.next("news") for _ in range(2)] == [("committed",), ("by the driver",)]


def test_program_without_eventlet_can_emit(on_postgres: Cell, pair: list[Member], room: str) -> None:
    """It may also fork after its first emit, as the workers of a task queue do."""
    program = f"""
import os, sys
from socketio_pg import PostgresManager
assert "eventlet" not in sys.modules and "flask" not in sys.modules
manager = PostgresManager({on_postgres.database_url!r}, write_only=True, cluster_key={CLUSTER_KEY!r})
manager.emit("news", "parent", room={room!r})
if os.fork() == 0:
    manager.emit("news", "child", room={room!r})
    os._exit(0)
assert os.wait()[1] == 0
manager.emit("news", "parent again", room={room!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
    for member in pair:
        assert [member.next("news") for _ in range(3)] == [("parent",), ("child",), ("parent again",)]


@pytest.fixture
def stock_url(on_postgres: Cell) -> Iterator[str]:
    """The URL of a plain python-socketio server that listens on the same queue."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.stock_app", str(port), on_postgres.database_url, CLUSTER_KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_stock_server_can_share_the_queue(
    on_postgres: Cell, pair: list[Member], room: str, stock_url: str, newest_pg: Cluster
) -> None:
    def arrives(member: Member, news: str) -> bool:
        on_postgres.emit(0, news, room=room)
        try:
            return bool(member.next("news", 0.2) == (news,))
        except AssertionError:
            return False

    with Member(stock_url, room, transports=("polling",)) as stock:
        # The server starts to listen with its first client, without any signal.
        until(lambda: arrives(stock, "are you there?"), "the stock server listens")
        on_postgres.emit(0, "end", room=room)
        for member in [*pair, stock]:
            while member.next("news") != ("end",):
                pass
        stock.io.emit("tell", (room, "é" * 100_000))
        assert only_news([*pair, stock]) == [("é" * 100_000,)] * 3
        assert stock.call("ask", pair[1].sid) == {"asked": "why?"}
        assert on_postgres.post(0, f"/ask/{stock.sid}", "why?") == {"answer": {"asked": "why?"}}
        # The stock server reconnects, too.
        assert newest_pg.terminate_backends() >= 5
        until(lambda: arrives(stock, "and now?"), "the stock server listens again")


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "a 1/1 ", "a 1/1 x", "a 1/1 1", "a 1/1 []", "a 1/1 {}", 'a 1/1 {"method": 1}', "a 2/2 x", "a 1/2 {",
        "a 1/99999999999 x", "a 0/0 x", 'a 1/1 {"method": "emit"}', 'a 1/1 {"method": "callback"}',
        'a 1/1 {"method": "emit", "event": {}, "data": 1, "namespace": [], "room": {}, "callback": 1}',
        'a 1/1 {"method": "emit", "event": "x", "data": ["?"], "binary": true}',
        'a 1/1 {"method": "callback", "sid": [], "id": {}, "args": 1}',
        'a 1/1 {"method": "disconnect", "sid": ["x"], "namespace": []}',
        'a 1/1 {"method": "enter_room"}', 'a 1/1 {"method": "close_room", "room": []}', "a 1/1 " + "[" * 7000,
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_malformed_messages_on_the_queue_are_ignored(
    on_postgres: Cell, pair: list[Member], room: str, text: str
) -> None:
    """Any client of the database can send them."""
    with contextlib.closing(psycopg2.connect(on_postgres.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [QUEUE_CHANNEL, text])
        connection.commit()
    on_postgres.emit(0, "still there", room=room)
    for member in pair:
        assert member.next("news") == ("still there",)
    # They may still be reconnecting after an earlier test.
    until(lambda: all(node.get("/readyz")[0] == 200 for node in on_postgres.nodes), "the nodes are ready")


def test_lost_connection_is_logged_and_restored(
    on_postgres: Cell, pair: list[Member], room: str, newest_pg: Cluster
) -> None:
    """Emits during the outage are lost, which is logged; later ones arrive."""
    already = [node.log.count("may have been missed") for node in on_postgres.nodes]
    newest_pg.terminate_backends()
    for node, before in zip(on_postgres.nodes, already, strict=True):
        until(lambda node=node, before=before: node.log.count("may have been missed") > before, "the node says so")  # type: ignore[misc]
    until(lambda: all(node.get("/readyz")[0] == 200 for node in on_postgres.nodes), "the nodes are ready")
    on_postgres.emit(0, "back", room=room)
    for member in pair:
        assert member.next("news") == ("back",)


def test_emit_without_a_database_raises() -> None:
    writer = PostgresManager("postgresql://127.0.0.1:1/nowhere", write_only=True)
    with pytest.raises(DatabaseUnavailableError):
        writer.emit("news", 1)
    with pytest.raises(ConfigurationError, match="write_only"):
        PostgresManager(object())
    with pytest.raises(ConfigurationError, match="address"):
        PostgresManager("mysql://127.0.0.1/x", write_only=True)
    with pytest.raises(TypeError, match="object is not a psycopg or SQLAlchemy connection"):
        PostgresManager(object(), write_only=True).emit("news", 1)
