"""A server driven at its border with Engine.IO.

Strings go in as the transport would hand them over, and what would go to the transport is recorded.
"""

from collections.abc import Callable
from typing import Any

import socketio
from socketio.packet import ACK, EVENT

from socketio_pg.protocol.server import Lifecycle, Server

#: What a client hears when the fault is ours: nothing about the inside.
FAILED = {"code": "internal", "message": "the server failed to handle this"}


class Wire:
    """The transport's side of a server, with any number of clients, each known by its Engine.IO id."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sent: list[tuple[str, str | bytes]] = []
        #: The clients whose connections the server has closed.
        self.hung_up: list[str] = []
        server.eio.send_packet = self._record
        server.eio.disconnect = self._hang_up

    def _record(self, eio_sid: str, packet: Any) -> None:
        if isinstance(packet.data, str):
            packet.data.encode()  # what is no UTF-8 would cost the client its connection
        self.sent.append((eio_sid, packet.data))

    def _hang_up(self, eio_sid: str) -> None:
        self.hung_up.append(eio_sid)
        self.close(eio_sid)

    def open(self, client: str = "eio1") -> None:
        self.server._handle_eio_connect(client, {"REMOTE_ADDR": "192.0.2.1"})

    def connect(self, client: str = "eio1", namespace: str = "/") -> str:
        """A client that is connected; returns its sid. What it was sent so far is forgotten."""
        self.open(client)
        self.receive("0" if namespace == "/" else f"0{namespace},", client)
        sid = self.server.manager.sid_from_eio_sid(client, namespace)
        assert isinstance(sid, str)
        self.sent.clear()
        return sid

    def receive(self, data: str | bytes, client: str = "eio1") -> None:
        """The client sent ``data``."""
        self.server._handle_eio_message(client, data)

    def close(self, client: str = "eio1") -> None:
        """The client's transport has gone."""
        self.server._handle_eio_disconnect(client, "transport close")

    def answers(self, client: str = "eio1") -> list[tuple[int, int | None, Any]]:
        """What was sent to the client since the last call: (packet type, id, data)."""
        # Decoded by the stock class: clients are no different.
        packets = [socketio.packet.Packet(encoded_packet=data) for to, data in self.sent if to == client]
        self.sent.clear()
        return [(packet.packet_type, packet.id, packet.data) for packet in packets]

    def assert_hung_up(self, client: str = "eio1") -> None:
        """The client was told why in an event `error`, and its connection closed; nothing of it is left."""
        [(packet_type, id, [event, error])] = self.answers(client)
        assert (packet_type, id, event, error["code"]) == (EVENT, None, "error", "invalid_request")
        assert error.keys() == {"code", "message"}
        assert self.hung_up == [client]
        self.receive('2777["echo","dead"]', client)
        self.receive("0", client)
        assert self.answers(client) == []
        assert_nobody(self.server)

    def assert_alive(self, client: str = "eio1") -> None:
        """The connection goes on: the next request is answered, and nothing else comes."""
        self.receive('2777["echo","alive"]', client)
        assert self.answers(client) == [(ACK, 777, ["alive"])]


def echo(sid: str, *arguments: Any) -> Any:
    return arguments[0] if len(arguments) == 1 else arguments


def follow(server: Server, **callbacks: Callable[..., Any]) -> None:
    """Have ``server`` call ``callbacks``, named after methods of :class:`Lifecycle`, in their place."""
    for name, callback in callbacks.items():
        assert hasattr(Lifecycle, name)
        setattr(server.lifecycle, name, callback)


def assert_nobody(server: Server) -> None:
    """Nothing is kept for any client."""
    for kept in (server.manager.rooms, server.environ, server._connections, server._binary_packet):
        assert kept == {}
    for kept in (server.manager.pending_connect, server.manager.pending_disconnect, server.manager.callbacks):
        assert not any(kept.values())
