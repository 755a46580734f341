"""Callbacks across nodes: they do not accumulate, and cannot be mixed up between clients.

Messages of other nodes for a client whose CONNECT is not answered yet.
"""

from typing import Any

import pytest
import socketio
from socketio.packet import CONNECT_ERROR

from socketio_pg.cluster.queue_manager import QueueManager
from socketio_pg.protocol import fanout
from socketio_pg.protocol.server import Server
from tests.support.wire import Wire, assert_no_client_state


class _Recorded(socketio.PubSubManager):  # type: ignore[misc]
    """A queue that records sent messages."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[dict[str, Any]] = []

    def _publish(self, data: dict[str, Any]) -> None:
        self.sent.append(data)


class Manager(QueueManager, _Recorded, fanout.Manager):
    pass


@pytest.fixture
def manager() -> Manager:
    made = Manager()
    server = socketio.Server(async_mode="threading", client_manager=made)
    # Background tasks run immediately.
    server.start_background_task = lambda function, *arguments: function(*arguments)
    return made


def ask(manager: Manager, sid: str, answers: list[Any]) -> dict[str, Any]:
    """Ask a client of another node. Return the queue message."""
    manager.emit("question", 1, room=sid, callback=answers.append)
    return manager.sent[-1]


def answer(manager: Manager, asked: dict[str, Any], value: Any, host: str | None = None) -> None:
    sid, namespace, id = asked["callback"]
    message = {"sid": sid, "namespace": namespace, "id": id, "args": [value], "host_id": host or manager.host_id}
    manager._handle_callback({"method": "callback"} | message)


def test_answer_is_accepted_once_and_callback_removed(manager: Manager) -> None:
    answers: list[Any] = []
    first, second = ask(manager, "elsewhere", answers), ask(manager, "elsewhere", answers)
    answer(manager, first, "another node's", host="another")
    answer(manager, second, 2)
    answer(manager, second, "again")
    answer(manager, first, 1)
    assert answers == [2, 1]
    assert not manager.callbacks
    assert not manager._remote
    # A late answer does not reach a later callback of the same client.
    third = ask(manager, "elsewhere", answers)
    answer(manager, first, "late")
    answer(manager, third, 3)
    assert answers == [2, 1, 3]


def test_number_of_unanswered_callbacks_is_limited(manager: Manager) -> None:
    manager.max_callbacks = 3
    answers: list[Any] = []
    asked = [ask(manager, f"client {number}", answers) for number in range(10)]
    assert len(manager.callbacks) == 3
    for number, one in enumerate(asked):
        answer(manager, one, number)
    assert answers == [7, 8, 9]


def test_disconnecting_client_keeps_local_callback_ids(manager: Manager) -> None:
    """In a disconnect handler the client is no longer connected, and its callbacks are removed with it."""
    sid = manager.connect("eio", "/")
    answers: list[Any] = []
    first = manager._generate_ack_id(sid, answers.append)
    manager.pre_disconnect(sid, "/")
    second = manager._generate_ack_id(sid, answers.append)
    assert first != second
    assert not manager._remote
    manager.disconnect(sid, "/", ignore_queue=True)
    assert not manager.callbacks


@pytest.mark.parametrize("args", [[b"\0"], [{"a": [b"\0", b"\1"]}, "b"], ["c"], []], ids=str)
def test_binary_answers_survive_the_queue(manager: Manager, args: list[Any]) -> None:
    """Answers are sent from the client's node to the asking node."""
    given: list[tuple[Any, ...]] = []
    other = Manager()
    manager.emit("question", 1, room="elsewhere", callback=lambda *found: given.append(found))
    sid, namespace, id = manager.sent[-1]["callback"]
    other._return_callback(manager.host_id, sid, namespace, id, *args)
    manager._handle_callback(other.sent[-1])
    assert given == [tuple(args)]


def serving(manager: Manager) -> Server:
    """Return a server that does not listen on the queue. Its background tasks run immediately."""
    server = Server(async_mode="threading", client_manager=manager)
    server.manager_initialized = True
    server.start_background_task = lambda function, *arguments: function(*arguments)
    return server


def test_client_in_its_connect_handler_is_one_of_this_node(manager: Manager) -> None:
    wire = Wire(serving(manager))
    server = wire.server

    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        server.enter_room(sid, "mine")
        server.emit("own", to=sid)
        assert manager.sent == []
        manager._handle_enter_room({"sid": sid, "namespace": "/", "room": "theirs"})
        manager._handle_emit({"event": "other's", "data": [1], "namespace": "/", "room": "theirs"})
        assert set(server.rooms(sid)) == {sid, "mine", "theirs"}

    wire.open()
    wire.receive("0")
    assert [data for _, _, data in wire.answers()][1:] == [["own"], ["other's", 1]]


def test_other_node_disconnects_a_client_in_its_connect_handler(manager: Manager) -> None:
    wire = Wire(serving(manager))
    server = wire.server

    @server.on("connect")
    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        manager._handle_disconnect({"sid": sid, "namespace": "/"})

    wire.open()
    wire.receive("0")
    assert [packet_type for packet_type, _, _ in wire.answers()] == [CONNECT_ERROR]
    assert manager.sent == []
    wire.close()
    assert_no_client_state(server)
