"""Drives a server at its interface to Engine.IO.

Passes data to the server like a transport, and records the data that the server sends to the transport.
"""

from collections.abc import Callable
from typing import Any

import socketio
from socketio.packet import ACK, EVENT

from socketio_pg.protocol.lifecycle import Lifecycle
from socketio_pg.protocol.server import Server

#: The error for internal failures, without details.
FAILED = {"code": "internal", "message": "the server failed to handle this"}


class Wire:
    """The transport's side of a server, with any number of clients, identified by their Engine.IO ids."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sent: list[tuple[str, str | bytes]] = []
        #: Clients whose connections the server has closed.
        self.closed: list[str] = []
        server.eio.send_packet = self._record
        server.eio.disconnect = self._disconnect

    def _record(self, eio_sid: str, packet: Any) -> None:
        if isinstance(packet.data, str):
            packet.data.encode()  # raises if it is not valid UTF-8, which would end the client's connection
        self.sent.append((eio_sid, packet.data))

    def _disconnect(self, eio_sid: str) -> None:
        self.closed.append(eio_sid)
        self.close(eio_sid)

    def open(self, client: str = "eio1") -> None:
        self.server._handle_eio_connect(client, {"REMOTE_ADDR": "192.0.2.1"})

    def connect(self, client: str = "eio1", namespace: str = "/") -> str:
        """Connect a client, and clear the recorded data. Return its sid."""
        self.open(client)
        self.receive("0" if namespace == "/" else f"0{namespace},", client)
        sid = self.server.manager.sid_from_eio_sid(client, namespace)
        assert isinstance(sid, str)
        self.sent.clear()
        return sid

    def receive(self, data: str | bytes, client: str = "eio1") -> None:
        """Pass ``data`` from the client to the server."""
        self.server._handle_eio_message(client, data)

    def close(self, client: str = "eio1") -> None:
        """Close the client's transport."""
        self.server._handle_eio_disconnect(client, "transport close")

    def answers(self, client: str = "eio1") -> list[tuple[int, int | None, Any]]:
        """Return (packet type, id, data) of packets sent to the client, and clear the recorded data."""
        # Decoded by the stock class, like in clients.
        packets = [socketio.packet.Packet(encoded_packet=data) for to, data in self.sent if to == client]
        self.sent.clear()
        return [(packet.packet_type, packet.id, packet.data) for packet in packets]

    def assert_closed(self, client: str = "eio1") -> None:
        """Assert that the client got an event `error`, that its connection was closed, and that no state is left."""
        [(packet_type, id, [event, error])] = self.answers(client)
        assert (packet_type, id, event, error["code"]) == (EVENT, None, "error", "invalid_request")
        assert error.keys() == {"code", "message"}
        assert self.closed == [client]
        self.receive('2777["echo","dead"]', client)
        self.receive("0", client)
        assert self.answers(client) == []
        assert_no_client_state(self.server)

    def assert_alive(self, client: str = "eio1") -> None:
        """Assert that the connection works: the next request is answered, and nothing else is sent."""
        self.receive('2777["echo","alive"]', client)
        assert self.answers(client) == [(ACK, 777, ["alive"])]


def echo(sid: str, *arguments: Any) -> Any:
    return arguments[0] if len(arguments) == 1 else arguments


def follow(server: Server, **callbacks: Callable[..., Any]) -> None:
    """Replace methods of the server's :class:`Lifecycle` by ``callbacks`` of the same names."""
    for name, callback in callbacks.items():
        assert hasattr(Lifecycle, name)
        setattr(server.lifecycle, name, callback)


def assert_no_client_state(server: Server) -> None:
    """Assert that the server has no state of any client."""
    for kept in (server.manager.rooms, server.environ, server._connections, server._binary_packet):
        assert kept == {}
    for kept in (server.manager.pending_connect, server.manager.pending_disconnect, server.manager.callbacks):
        assert not any(kept.values())
    assert server.manager._early == {}
    assert server._unwanted == set()
