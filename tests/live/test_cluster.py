"""Flask-SocketIO's own API on two nodes: emits, disconnects, rooms and callbacks reach the clients of both."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
import requests
import socketio
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from socketio_pg import PostgresManager
from socketio_pg.channels import QUEUE_CHANNEL
from socketio_pg.errors import ConfigurationError, DatabaseUnavailableError
from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster, in_thread
from tests.support.redis import Redis
from tests.support.server import ServerProcess, free_port

APP = "tests.support.rooms_app:app"


class Member(SocketClient):
    """A client that gives everything that comes with ``news``, and answers questions with what was asked."""

    EVENTS = (*SocketClient.EVENTS, "news")

    def __init__(self, url: str, *rooms: str, transports: tuple[str, ...] = ("websocket",)) -> None:
        super().__init__(url, transports)
        self.io.on("question", self.answer)
        self.sid: str = self.next("server_hello")["sid"]
        for room in rooms:
            self.call("join", room)

    def __enter__(self) -> "Member":
        return self

    @staticmethod
    def answer(question: Any) -> Any:
        return b"\0\xff" * 3 if question == "binary" else {"asked": question}

    def _recorder(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._events[name].put(
            arguments if name == "news" else arguments[0] if arguments else None
        )


class Cell:
    """Two nodes, and what is between them."""

    def __init__(self, postgres18: Cluster, kind: str) -> None:
        self.kind = kind
        self.redis = Redis() if kind == "redis" else None
        self.queue = (
            os.environ["KAFKA_URL"] if kind == "kafka" else "postgres" if self.redis is None else self.redis.url
        )
        self.database_url = postgres18.url()
        self.nodes = [ServerProcess(self.database_url, app=APP, MESSAGE_QUEUE=self.queue) for _ in range(2)]

    def post(self, node: int, path: str, body: Any = None, method: str = "POST") -> Any:
        answer = requests.request(method, f"{self.nodes[node].url}{path}", json=body, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.text if answer.text == "done" else answer.json()

    def emit(self, node: int, data: Any, **options: Any) -> None:
        assert self.post(node, "/emit", {"data": data, **options}) == "done"

    def writer(self) -> Any:
        """A manager as a program has it that is no server."""
        if self.kind == "kafka":
            pytest.skip("python-socketio's own manager does not work with kafka-python")
        if self.redis is None:
            return PostgresManager(self.database_url, write_only=True)
        return socketio.RedisManager(self.redis.url, channel=QUEUE_CHANNEL, write_only=True)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        if self.redis is not None:
            self.redis.close()


#: Kafka is on no machine of ours: whoever has one names it, and installs kafka-python.
KINDS = ["postgres", "redis", *(["kafka"] if "KAFKA_URL" in os.environ else [])]


@pytest.fixture(scope="module", params=KINDS)
def cell(request: pytest.FixtureRequest, postgres18: Cluster) -> Iterator[Cell]:
    with contextlib.closing(Cell(postgres18, request.param)) as made:
        yield made


@pytest.fixture
def room(channel: str) -> str:
    return f"room of {channel}"


@pytest.fixture
def members(cell: Cell, room: str) -> Iterator[list[Member]]:
    """Two clients in the room on each node."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Member(node.url, room)) for node in cell.nodes for _ in range(2)]


def everybody_gets(members: list[Member], *news: Any) -> None:
    for member in members:
        assert member.next("news") == news
        assert member.pending("news") == 0


def test_an_emit_reaches_the_room_on_every_node_once(cell: Cell, members: list[Member], room: str) -> None:
    for node in (0, 1):
        cell.emit(node, {"from": node}, room=room)
        everybody_gets(members, {"from": node})


def test_the_order_is_that_of_the_emits(cell: Cell, members: list[Member], room: str) -> None:
    for number in range(20):
        cell.emit(0, number, room=room)
    for member in members:
        assert [member.next("news") for _ in range(20)] == [(number,) for number in range(20)]


@pytest.mark.parametrize(
    "data", [None, 0, "", [1, [2]], {"ä": "€ 😀 \\ \" \t"}, [], 2**53 + 1], ids=repr
)  # fmt: skip
def test_any_value(cell: Cell, members: list[Member], room: str, data: Any) -> None:
    cell.emit(0, data, room=room)
    everybody_gets(members, *(() if data is None else (data,)))


def test_several_arguments_and_binary_data(cell: Cell, members: list[Member], room: str) -> None:
    cell.emit(1, [1, "two", {"three": 3}], room=room, several=True)
    everybody_gets(members, 1, "two", {"three": 3})
    cell.emit(1, ["more"], room=room, binary="00ff10")
    everybody_gets(members, {"bytes": b"\0\xff\x10", "more": ["more"]})


@pytest.mark.parametrize("size", [7_000, 8_000, 100_000, 1_000_000])
def test_any_size(cell: Cell, members: list[Member], room: str, size: int) -> None:
    if cell.kind == "kafka":
        size = min(size, 300_000)  # as its broker allows
    cell.emit(0, "é€" * (size // 2), room=room)
    everybody_gets(members, "é€" * (size // 2))


def test_to_all_but_some(cell: Cell, members: list[Member]) -> None:
    cell.emit(0, "all", skip_sid=[members[0].sid, members[3].sid])
    cell.emit(0, "then")
    for index, member in enumerate(members):
        assert [member.next("news") for _ in range(1 if index in (0, 3) else 2)][-1] == ("then",)
        assert member.pending("news") == 0


def test_to_one_client_wherever_it_is(cell: Cell, members: list[Member]) -> None:
    for node in (0, 1):
        for member in members:
            cell.emit(node, {"to": member.sid}, to=member.sid)
            assert member.next("news") == ({"to": member.sid},)
    assert all(member.pending("news") == 0 for member in members)


def test_rooms_of_a_client_on_another_node(cell: Cell, members: list[Member], room: str) -> None:
    new, other = f"new {room}", members[3]
    cell.post(0, f"/rooms/{new}/{other.sid}", method="PUT")
    cell.emit(0, "in", room=new)
    assert other.next("news") == ("in",)
    cell.post(0, f"/rooms/{new}/{other.sid}", method="DELETE")
    cell.emit(0, "out", room=new)
    cell.post(0, f"/rooms/{room}", method="DELETE")
    cell.emit(0, "closed", room=room)
    cell.emit(0, "end")
    everybody_gets(members, "end")


def test_a_client_of_another_node_is_disconnected(cell: Cell, members: list[Member]) -> None:
    cell.post(0, f"/disconnect/{members[2].sid}")
    members[2].next("disconnect")
    until(
        lambda: [members[2].sid, "server disconnect"] in cell.post(1, "/state", method="GET")["left"],
        "the application was told",
    )
    cell.emit(0, "end")
    everybody_gets([members[0], members[1], members[3]], "end")


def test_callbacks_across_nodes(cell: Cell, members: list[Member]) -> None:
    for node in (0, 1):
        before = cell.post(node, "/state", method="GET")["callbacks"]
        for member in members:
            assert cell.post(node, f"/ask/{member.sid}", ["why?"]) == {"answer": {"asked": ["why?"]}}
            assert cell.post(node, f"/ask/{member.sid}", "binary") == {"bytes": "00ff00ff00ff"}
        # Nothing stays of clients of the other node; of our own there is a counter until they leave.
        assert cell.post(node, "/state", method="GET")["callbacks"] <= before + 2


def test_programs_that_are_no_server(cell: Cell, members: list[Member], room: str) -> None:
    writer = cell.writer()
    writer.emit("news", {"number": 1}, room=room)
    everybody_gets(members, {"number": 1})
    writer.emit("news", b"\0\1", room=room)
    everybody_gets(members, b"\0\1")
    with pytest.raises(RuntimeError, match="Callbacks"):
        writer.emit("question", 1, room=room, callback=print)
    if cell.kind == "postgres":  # python-socketio's own need a server for it
        writer.disconnect(members[0].sid)
        members[0].next("disconnect")
    writer.close_room(room)
    writer.emit("news", "closed", room=room)
    writer.emit("news", "end")
    everybody_gets(members[1:], "end")


def test_channels_and_rooms_side_by_side(cell: Cell, members: list[Member], channel: str, room: str) -> None:
    """Messages of a channel go to each node by itself; its room is a room like others."""
    for member in members:
        member.subscribe(channel)
    with contextlib.closing(psycopg2.connect(cell.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, '1')", [channel])
        connection.commit()
    for member in members:
        assert member.next("event") == {"channel": channel, "payload": 1}
    cell.emit(1, "to the channel's room", room=channel)
    everybody_gets(members, "to the channel's room")
    assert all(member.pending("event") == 0 for member in members)


# -- PostgreSQL alone --------------------------------------------------------------------------------------------------


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
        everybody_gets([*pair, stock], "é" * 100_000)
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
    with pytest.raises(ConfigurationError, match="listens"):
        PostgresManager(object())
    with pytest.raises(ConfigurationError, match="address"):
        PostgresManager("mysql://127.0.0.1/x", write_only=True)
    with pytest.raises(TypeError, match="object is not a connection"):
        PostgresManager(object(), write_only=True).emit("news", 1)
