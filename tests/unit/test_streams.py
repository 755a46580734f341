"""Streams as subscribers: what they get while others are being served, their cursor, and what they leave behind."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.engine.handover import TakenOver
from socketio_pg.engine.stream import StreamConnection
from socketio_pg.log.positions import Progress
from socketio_pg.pubsub.filters import parse_filter
from socketio_pg.streams.groups import Contents
from socketio_pg.streams.preparing import Found, StreamRequest
from socketio_pg.streams.streams import Streams
from socketio_pg.websocket import SocketServer
from tests.support.sse import Event, Parser


@dataclass
class Client:
    """The other end of a stream."""

    socket: socket.socket
    left: list[bool] = field(default_factory=list)
    parser: Parser = field(default_factory=Parser)

    def read(self) -> list[Event]:
        """Return the events that have arrived."""
        data = b""
        try:
            while found := self.socket.recv(65536):
                data += found
        except BlockingIOError:
            pass
        return list(self.parser.feed(data))

    def ids(self) -> list[str]:
        return [event.id for event in self.read() if event.name == "message"]


@pytest.fixture
def streams(socket_server: SocketServer) -> Streams:
    """Those of a server whose log is at position 7."""
    at(socket_server, 7)
    return socket_server.streams


def at(server: SocketServer, position: int, delivered: int | None = None) -> None:
    follower = server.pubsub._follower
    follower._progress = Progress("e", position)
    follower._delivered = position if delivered is None else delivered


@pytest.fixture
def begin(streams: Streams) -> Iterator[Callable[..., Client]]:
    made: list[socket.socket] = []
    connections: list[StreamConnection] = []

    def begin(*channels: str, **contents: Any) -> Client:
        ours, theirs = socket.socketpair()
        made.extend((ours, theirs))
        ours.setblocking(False)
        theirs.setblocking(False)
        client, sid = Client(theirs), f"stream:{len(made)}"
        streams._hub.add(sid)
        streams._access.sessions.set(sid, "stream", None)
        for channel in channels:
            streams._hub.subscribe(sid, channel)
            streams._hub.set_filter(sid, channel, contents.get("filter"))
        assert streams._engine.take_place()
        taken = cast(TakenOver, type("Taken", (), {"socket": ours}))
        request = StreamRequest(Contents(channels, **contents), None, {})
        connections.append(
            streams._begin(sid, request, Found(None, {}, "e"), taken, b"", lambda: client.left.append(True), "")
        )
        [subscribed] = client.read()
        assert subscribed.name == "subscribed"
        return client

    yield begin
    streams.stop()
    for connection in connections:
        connection._release()
    for one in made:
        one.close()


def messages(*places: str) -> list[EncodedMessage]:
    """Return messages of the log: ``a8`` is at position 8 of channel a."""
    return [EncodedMessage(place[0], f'{{"n": {place[1:]}}}', int(place[1:]), "now") for place in places]


def test_messages_of_several_channels_keep_the_order_of_the_log(
    streams: Streams, begin: Callable[..., Client], socket_server: SocketServer
) -> None:
    both, one, few = begin("a", "b"), begin("a"), begin("a", "b", filter=parse_filter({"n": {"gt": 8}}))
    at(socket_server, 11)
    streams.receive_messages(messages("a8", "b9", "c10", "a11"))
    assert both.ids() == ["e:8", "e:9", "e:11"]
    assert one.ids() == ["e:8", "e:11"]
    assert few.ids() == ["e:9", "e:11"]


def test_a_stream_that_begins_while_others_get_a_batch_gets_the_next_one(
    streams: Streams, begin: Callable[..., Client], socket_server: SocketServer
) -> None:
    """The position is that of the batch already, which the receiver before this one is still sending."""
    before = begin("a")
    at(socket_server, 9, delivered=7)
    during = begin("a")
    streams.receive_messages(messages("a8", "a9"))
    at(socket_server, 9)
    at(socket_server, 10, delivered=9)
    streams.receive_messages(messages("a10"))
    assert before.ids() == ["e:8", "e:9", "e:10"]
    assert during.ids() == ["e:10"]


def test_a_cursor_moves_only_beyond_what_was_sent(
    streams: Streams, begin: Callable[..., Client], socket_server: SocketServer
) -> None:
    client = begin("a")
    [stream] = streams._streams.values()
    streams._move(stream)
    assert (client.read(), client.parser.last_id) == ([], "e:7")
    # A batch is under way, of which this stream may still get messages.
    at(socket_server, 9, delivered=7)
    streams._move(stream)
    assert (client.read(), client.parser.last_id) == ([], "e:7")
    streams.receive_messages(messages("a8", "c9"))
    assert client.ids() == ["e:8"]
    assert client.parser.last_id == "e:9"
    # While a replay holds it back, it does not move either.
    at(socket_server, 12)
    streams._hub.hold(stream.sid, "a", "a replay")
    streams._move(stream)
    assert (client.read(), client.parser.last_id) == ([], "e:9")


def test_streams_end_once_and_leave_nothing(
    streams: Streams, begin: Callable[..., Client], socket_server: SocketServer
) -> None:
    clients = [begin("a"), begin("a", "b")]
    assert len(streams) == 2
    for end in [*streams.enders(), *streams.enders()]:
        end()
    for client in clients:
        assert client.read() == []
        assert client.parser.retry is not None
        assert client.left == [True]
    assert (len(streams), bool(streams._groups), streams._engine._others) == (0, False, 0)
    assert len(streams._hub) == 0
    assert len(streams._access.sessions) == 0
    streams.receive_messages(messages("a8"))


def test_streams_take_the_places_of_clients(streams: Streams) -> None:
    engine = streams._engine
    engine.max_connections = 2
    assert [engine.take_place() for _ in range(3)] == [True, True, False]
    engine.free_place()
    assert engine.take_place()
