"""Flask-SocketIO's own API on two nodes: emits, disconnects, rooms and callbacks reach the clients of both."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support.cluster import Cell, Member, only_news
from tests.support.patience import until
from tests.support.postgres import Cluster

#: Kafka is on no machine of ours: whoever has one names it, and installs kafka-python.
KINDS = ["postgres", "redis", *(["kafka"] if "KAFKA_URL" in os.environ else [])]


@pytest.fixture(scope="module", params=KINDS)
def cell(request: pytest.FixtureRequest, postgres18: Cluster) -> Iterator[Cell]:
    with contextlib.closing(Cell(postgres18, request.param)) as made:
        yield made


@pytest.fixture
def members(cell: Cell, room: str) -> Iterator[list[Member]]:
    """Two clients in the room on each node."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Member(node.url, room)) for node in cell.nodes for _ in range(2)]


def test_an_emit_reaches_the_room_on_every_node_once(cell: Cell, members: list[Member], room: str) -> None:
    for node in (0, 1):
        cell.emit(node, {"from": node}, room=room)
        assert only_news(members) == [({"from": node},)] * len(members)


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
    assert only_news(members) == [() if data is None else (data,)] * len(members)


def test_several_arguments_and_binary_data(cell: Cell, members: list[Member], room: str) -> None:
    cell.emit(1, [1, "two", {"three": 3}], room=room, several=True)
    assert only_news(members) == [(1, "two", {"three": 3})] * len(members)
    cell.emit(1, ["more"], room=room, binary="00ff10")
    assert only_news(members) == [({"bytes": b"\0\xff\x10", "more": ["more"]},)] * len(members)


@pytest.mark.parametrize("size", [7_000, 8_000, 100_000, 1_000_000])
def test_any_size(cell: Cell, members: list[Member], room: str, size: int) -> None:
    if cell.kind == "kafka":
        size = min(size, 300_000)  # as its broker allows
    cell.emit(0, "é€" * (size // 2), room=room)
    assert only_news(members) == [("é€" * (size // 2),)] * len(members)


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
    assert only_news(members) == [("end",)] * len(members)


def test_a_client_of_another_node_is_disconnected(cell: Cell, members: list[Member]) -> None:
    cell.post(0, f"/disconnect/{members[2].sid}")
    members[2].next("disconnect")
    until(
        lambda: [members[2].sid, "server disconnect"] in cell.post(1, "/state", method="GET")["left"],
        "the application was told",
    )
    cell.emit(0, "end")
    others = [members[0], members[1], members[3]]
    assert only_news(others) == [("end",)] * len(others)


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
    assert only_news(members) == [({"number": 1},)] * len(members)
    writer.emit("news", b"\0\1", room=room)
    assert only_news(members) == [(b"\0\1",)] * len(members)
    with pytest.raises(RuntimeError, match="Callbacks"):
        writer.emit("question", 1, room=room, callback=print)
    if cell.kind == "postgres":  # python-socketio's own need a server for it
        writer.disconnect(members[0].sid)
        members[0].next("disconnect")
    writer.close_room(room)
    writer.emit("news", "closed", room=room)
    writer.emit("news", "end")
    assert only_news(members[1:]) == [("end",)] * len(members[1:])


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
    assert only_news(members) == [("to the channel's room",)] * len(members)
    assert all(member.pending("event") == 0 for member in members)
