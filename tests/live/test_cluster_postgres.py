"""Flask-SocketIO's own API over PostgreSQL: what goes by the database, transactions, programs, nonsense, faults."""

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
from tests.support.cluster import Cell, Member, only_news
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster, in_thread
from tests.support.server import free_port


@pytest.fixture(scope="module")
def on_postgres(postgres18: Cluster) -> Iterator[Cell]:
    with contextlib.closing(Cell(postgres18, "postgres")) as made:
        yield made


@pytest.fixture
def pair(on_postgres: Cell, room: str) -> Iterator[list[Member]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Member(node.url, room)) for node in on_postgres.nodes]


def test_only_what_must_goes_by_the_database(on_postgres: Cell, pair: list[Member], room: str, channel: str) -> None:
    """Answers, hellos and emits to a client of this node do not; each would be a commit."""

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
    assert '"for the room"' in only


def test_emits_of_a_transaction(on_postgres: Cell, pair: list[Member], room: str) -> None:
    """They are sent with its commit, or not at all."""

    def write() -> None:
        engine = create_engine(on_postgres.database_url)
        with engine.connect() as connection:
            PostgresManager(connection, write_only=True).emit("news", "rolled back", room=room)
            connection.rollback()
        with Session(engine) as session, session.begin():
            PostgresManager(session, write_only=True).emit("news", "committed", room=room)
        engine.dispose()
        with contextlib.closing(psycopg2.connect(on_postgres.database_url)) as raw, raw:
            PostgresManager(raw, write_only=True).emit("news", "by the driver", room=room)

    in_thread(write)
    for member in pair:
        assert [member.next("news") for _ in range(2)] == [("committed",), ("by the driver",)]


def test_a_program_without_eventlet(on_postgres: Cell, pair: list[Member], room: str) -> None:
    """Also one that forks after it has emitted, as workers of a task queue do."""
    program = f"""
import os, sys
from socketio_pg import PostgresManager
assert "eventlet" not in sys.modules and "flask" not in sys.modules
manager = PostgresManager({on_postgres.database_url!r}, write_only=True)
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
    """A server that is not ours on the same queue, listening."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.stock_app", str(port), on_postgres.database_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_a_stock_server_on_the_same_queue(
    on_postgres: Cell, pair: list[Member], room: str, stock_url: str, postgres18: Cluster
) -> None:
    def arrives(member: Member, news: str) -> bool:
        on_postgres.emit(0, news, room=room)
        try:
            return bool(member.next("news", 0.2) == (news,))
        except AssertionError:
            return False

    with Member(stock_url, room, transports=("polling",)) as stock:
        # It begins to listen with its first client, and says nothing of it.
        until(lambda: arrives(stock, "are you there?"), "it listens")
        on_postgres.emit(0, "end", room=room)
        for member in [*pair, stock]:
            while member.next("news") != ("end",):
                pass
        stock.io.emit("tell", (room, "é" * 100_000))
        assert only_news([*pair, stock]) == [("é" * 100_000,)] * 3
        assert stock.call("ask", pair[1].sid) == {"asked": "why?"}
        assert on_postgres.post(0, f"/ask/{stock.sid}", "why?") == {"answer": {"asked": "why?"}}
        # Its connections are made again, too.
        assert postgres18.terminate_backends() >= 5
        until(lambda: arrives(stock, "and now?"), "it listens again")


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
def test_nonsense_on_the_queue_harms_nobody(on_postgres: Cell, pair: list[Member], room: str, text: str) -> None:
    """Whoever may connect to the database can send it."""
    with contextlib.closing(psycopg2.connect(on_postgres.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [QUEUE_CHANNEL, text])
        connection.commit()
    on_postgres.emit(0, "still there", room=room)
    for member in pair:
        assert member.next("news") == ("still there",)
    assert all(node.get("/readyz")[0] == 200 for node in on_postgres.nodes)


def test_a_lost_connection(on_postgres: Cell, pair: list[Member], room: str, postgres18: Cluster) -> None:
    """What is missed meanwhile is missed, and said in the log; then it goes on."""
    already = on_postgres.nodes[1].log.count("may have been missed")
    postgres18.terminate_backends()
    until(lambda: on_postgres.nodes[1].log.count("may have been missed") > already, "the node says so")
    until(lambda: all(node.get("/readyz")[0] == 200 for node in on_postgres.nodes), "the nodes are ready")
    on_postgres.emit(0, "back", room=room)
    for member in pair:
        assert member.next("news") == ("back",)


def test_without_a_database_the_emitter_is_told() -> None:
    writer = PostgresManager("postgresql://127.0.0.1:1/nowhere", write_only=True)
    with pytest.raises(DatabaseUnavailableError):
        writer.emit("news", 1)
    with pytest.raises(ConfigurationError, match="write_only"):
        PostgresManager(object())
    with pytest.raises(ConfigurationError, match="address"):
        PostgresManager("mysql://127.0.0.1/x", write_only=True)
    with pytest.raises(TypeError, match="object is not a connection"):
        PostgresManager(object(), write_only=True).emit("news", 1)
