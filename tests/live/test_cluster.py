"""Flask-SocketIO's own API on two nodes, or workers of one: emits, rooms and callbacks reach the clients of both."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support.cluster import Cell, Member, only_news
from tests.support.patience import until
from tests.support.postgres import Cluster

#: Kafka is tested only where KAFKA_URL names a broker and kafka-python is installed.
KINDS = ["workers", "postgres", "redis", *(["kafka"] if "KAFKA_URL" in os.environ else [])]


@pytest.fixture(scope="module", params=KINDS)
def cell(request: pytest.FixtureRequest, newest_pg: Cluster) -> Iterator[Cell]:
    with contextlib.closing(Cell(newest_pg, request.param)) as made:
        yield made


@pytest.fixture
def members(cell: Cell, room: str) -> Iterator[list[Member]]:
    """Two clients in the room on each node."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(cell.member(node, room)) for node in (0, 1) for _ in range(2)]


def test_emit_reaches_the_room_on_every_node_once(cell: Cell, members: list[Member], room: str) -> None:
    for node in (0, 1):
        cell.emit(node, {"from": node}, room=room)
        assert only_news(members) == [({"from": node},)] * len(members)


def test_emits_arrive_in_order(cell: Cell, members: list[Member], room: str) -> None:
    for number in range(20):
        cell.emit(0, number, room=room)
    for member in members:
        assert [member.next("news") for _ in range(20)] == [(number,) for number in range(20)]


@pytest.mark.parametrize(
    "data", [None, 0, "", [1, [2]], {"ä": "€ 😀 \\ \" \t"}, [], 2**53 + 1], ids=repr
)  # fmt: skip
def test_any_value_can_be_emitted(cell: Cell, members: list[Member], room: str, data: Any) -> None:
    cell.emit(0, data, room=room)
    assert only_news(members) == [() if data is None else (data,)] * len(members)


def test_several_arguments_and_binary_data_arrive(cell: Cell, members: list[Member], room: str) -> None:
    cell.emit(1, [1, "two", {"three": 3}], room=room, several=True)
    assert only_news(members) == [(1, "two", {"three": 3})] * len(members)
    cell.emit(1, ["more"], room=room, binary="00ff10")
    assert only_news(members) == [({"bytes": b"\0\xff\x10", "more": ["more"]},)] * len(members)


@pytest.mark.parametrize("size", [7_000, 8_000, 100_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
def test_emits_of_any_size_arrive(cell: Cell, members: list[Member], room: str, size: int) -> None:
    if cell.kind == "kafka":
        size = min(size, 300_000)  # as its broker allows
    cell.emit(0, "é€" * (size // 2), room=room)
    assert only_news(members) == [("é€" * (size // 2),)] * len(members)


def test_emit_skips_the_clients_in_skip_sid(cell: Cell, members: list[Member]) -> None:
    cell.emit(0, "all", skip_sid=[members[0].sid, members[3].sid])
    cell.emit(0, "then")
    for index, member in enumerate(members):
        assert [member.next("news") for _ in range(1 if index in (0, 3) else 2)][-1] == ("then",)
        assert member.pending("news") == 0


def test_no_other_client_gets_what_is_for_one(cell: Cell, members: list[Member]) -> None:
    """Ids of clients are no secret: presence and ephemeral messages show them to others, also on other nodes."""
    victim, attacker = members[-1], members[0]
    for request in ({"channel": victim.sid}, {"pattern": victim.sid}):
        assert attacker.call("subscribe", request)["error"]["code"] == "invalid_channel"
    cell.emit(0, "private", to=victim.sid)
    cell.emit(0, "then")
    assert attacker.next("news") == ("then",)
    assert victim.next("news") == ("private",)


def test_emit_to_one_client_reaches_it_on_any_node(cell: Cell, members: list[Member]) -> None:
    for node in (0, 1):
        for member in members:
            cell.emit(node, {"to": member.sid}, to=member.sid)
            assert member.next("news") == ({"to": member.sid},)
    assert all(member.pending("news") == 0 for member in members)


def test_rooms_of_a_client_on_another_node_can_be_changed(cell: Cell, members: list[Member], room: str) -> None:
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


def test_client_of_another_node_can_be_disconnected(cell: Cell, members: list[Member]) -> None:
    cell.post(0, f"/disconnect/{members[2].sid}")
    members[2].next("disconnect")
    until(
        lambda: [members[2].sid, "server disconnect"] in cell.post(1, "/state", method="GET")["left"],
        "the application handled the disconnect",
    )
    cell.emit(0, "end")
    others = [members[0], members[1], members[3]]
    assert only_news(others) == [("end",)] * len(others)


def test_callbacks_work_across_nodes(cell: Cell, members: list[Member]) -> None:
    for node in (0, 1):
        before = cell.post(node, "/state", method="GET")["callbacks"]
        for member in members:
            assert cell.post(node, f"/ask/{member.sid}", ["why?"]) == {"answer": {"asked": ["why?"]}}
            assert cell.post(node, f"/ask/{member.sid}", "binary") == {"bytes": "00ff00ff00ff"}
        # Callbacks of the other node's clients are removed; each local client keeps a counter until it disconnects.
        assert cell.post(node, "/state", method="GET")["callbacks"] <= before + 2


# Without a queue there is nothing that a program could write to.
@pytest.mark.parametrize("cell", KINDS[1:], indirect=True)
def test_write_only_manager_reaches_the_clients(cell: Cell, members: list[Member], room: str) -> None:
    writer = cell.writer()
    writer.emit("news", {"number": 1}, room=room)
    assert only_news(members) == [({"number": 1},)] * len(members)
    writer.emit("news", b"\0\1", room=room)
    assert only_news(members) == [(b"\0\1",)] * len(members)
    with pytest.raises(RuntimeError, match="Callbacks"):
        writer.emit("question", 1, room=room, callback=print)
    if cell.kind == "postgres":  # python-socketio's managers need a server for this
        writer.disconnect(members[0].sid)
        members[0].next("disconnect")
    writer.close_room(room)
    writer.emit("news", "closed", room=room)
    writer.emit("news", "end")
    assert only_news(members[1:]) == [("end",)] * len(members[1:])


def test_channels_and_rooms_work_side_by_side(cell: Cell, members: list[Member], channel: str, room: str) -> None:
    """Each node receives a channel's messages itself; the channel's room is an ordinary room."""
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
