"""python-socketio's server, held to docs/protocol.md: who comes in, and what each packet leads to."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import metrics
from socketio_pg.core.errors import InvalidRequestError, RateLimitedError, SocketIOPGError
from socketio_pg.engine.server import Engine
from socketio_pg.protocol.answers import AnsweringServer
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.packets import (
    BINARY_EVENT,
    CONNECT,
    CONNECT_ERROR,
    DISCONNECT,
    EVENT,
    NotAPacketError,
    Packet,
)

logger = logging.getLogger("socketio_pg.protocol")

#: Events that the library raises itself: a client that sends them would run the handlers of those names. Under `*` are
#: the handlers of any event, which take the event's name and the sid from where such a client would have put its own.
RESERVED_EVENTS = frozenset(
    {"*", "connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)
#: In the environment of a connection that has been connected to a namespace.
_JOINED = "socketio_pg.joined"
#: In that of one that is being closed for what it has sent.
_GOING = "socketio_pg.going"
#: And how many bytes of a client wait to be handled.
_WAITING = "socketio_pg.waiting"


@dataclass(slots=True)
class _Attempt:
    """A client that is being let in: who it is, and the sid that it gets."""

    identity: object
    sid: str | None = None


class Server(AnsweringServer):
    """Lets clients in, and takes what they send. What is no Socket.IO packet ends the connection."""

    #: Bytes that a message counts for, besides its own, while it waits to be handled: a green thread and what it holds.
    event_cost = 1000
    #: Whether events and acknowledgements of clients may have binary data. No event of ours takes any.
    binary = False

    def __init__(self, **options: Any) -> None:
        send_buffer_bytes = options.pop("send_buffer_bytes", Engine.send_buffer_bytes)
        max_connections = options.pop("max_connections", Engine.max_connections)
        connect_timeout = options.pop("connect_timeout", Engine.connect_timeout)
        self.binary = options.pop("binary", self.binary)
        manager = options.pop("client_manager", None) or Manager()
        super().__init__(serializer=Packet, client_manager=manager, **options)
        self.eio.send_buffer_bytes = send_buffer_bytes
        self.eio.max_connections = max_connections
        self.eio.connect_timeout = connect_timeout
        self.eio.handle_message = self.handle_message
        self.eio.is_connected = self.is_connected
        #: Called with (Engine.IO's sid, environ) and (sid) when a connection is open, and is not any more.
        self.on_opened: Callable[[str, dict[str, Any]], None] | None = None
        self.on_closed: Callable[[str], None] | None = None
        self._attempt: _Attempt | None = None
        #: Called with (environ, auth) when a client wants to connect to a namespace; returns who it is, or raises
        #: :class:`SocketIOPGError` to refuse it. May wait.
        self.identify: Callable[[dict[str, Any], object], Any] = lambda environ, auth: None
        #: Called with (sid, namespace, what `identify` returned) before the application's own connect handler.
        self.on_identified: Callable[[str, str, Any], None] | None = None
        #: Called with the sid of a client that sends an event, whatever it is, and its characters; raises to refuse it.
        self.before_event: Callable[[str, int], None] | None = None
        #: Called with the sid after the CONNECT packet of a client of the namespace ``/`` was sent.
        self.on_connected: Callable[[str], None] | None = None
        #: Called with the sid when a client of any namespace has left, however it came about.
        self.on_disconnected: Callable[[str], None] | None = None

    def initialize_manager(self) -> None:
        """Have the client manager hear other nodes, before a client comes."""
        if not self.manager_initialized:
            self.manager_initialized: bool = True
            self.manager.initialize()

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    def handle_message(self, eio_sid: str, data: str | bytes, own_thread: bool) -> None:
        """A message of a client. ``own_thread``: the green thread is this message's alone, its handler may wait."""
        environ = self.environ.get(eio_sid)
        if environ is None or _GOING in environ:
            return  # what had arrived before the connection was closed
        with self._waiting(environ, len(data)):
            self._take_message(eio_sid, environ, data, own_thread)

    @contextlib.contextmanager
    def _waiting(self, environ: dict[str, Any], size: int) -> Iterator[None]:
        """What of a client waits to be handled grows by ``size`` while the body lasts."""
        size += self.event_cost
        environ[_WAITING] = environ.get(_WAITING, 0) + size
        try:
            yield
        finally:
            environ[_WAITING] -= size

    def _take_message(self, eio_sid: str, environ: dict[str, Any], data: str | bytes, own_thread: bool) -> None:
        try:
            packet = self._receive(eio_sid, data)
            if packet is None:
                return
            if packet.packet_type != CONNECT and _JOINED not in environ:
                raise NotAPacketError("the first packet is CONNECT")
        except NotAPacketError as error:
            self._hang_up(eio_sid, error)
            return
        namespace = packet.namespace or "/"
        if packet.packet_type == CONNECT:
            self._handle_connect(eio_sid, namespace, packet.data)
        elif packet.packet_type == DISCONNECT:
            self._handle_disconnect(eio_sid, namespace, self.reason.CLIENT_DISCONNECT)
            self.eio.await_connect(eio_sid)
        elif packet.packet_type in (EVENT, BINARY_EVENT):
            self._take_event(eio_sid, namespace, packet, own_thread)
        else:
            self._take_acknowledgement(eio_sid, namespace, packet)

    def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        self.handle_message(eio_sid, data, False)

    def _receive(self, eio_sid: str, data: str | bytes) -> Packet | None:
        """The packet that ``data`` is, or completes. Raises :class:`NotAPacketError`."""
        packet: Packet | None = self._binary_packet.get(eio_sid)
        if packet is None:
            if isinstance(data, bytes):
                raise NotAPacketError("no binary data was announced")
            packet = Packet()
            packet.before_data = functools.partial(self._admit, eio_sid)
            packet.attachment_count = packet.decode(data)
            if not packet.is_binary:
                return packet
            if not self.binary:
                raise NotAPacketError("this server takes no binary data")
            if _JOINED not in self.environ[eio_sid]:
                raise NotAPacketError("the first packet is CONNECT")
            self._binary_packet[eio_sid] = packet
            return None
        if sum(map(len, packet.attachments)) + len(data) > self.eio.max_http_buffer_size:
            raise NotAPacketError(f"attachments have over {self.eio.max_http_buffer_size} bytes")
        if not packet.add_attachment(data):
            return None
        del self._binary_packet[eio_sid]
        return packet

    def _admit(self, eio_sid: str, packet: Packet) -> None:
        """Return when an event may be read. Raises :class:`SocketIOPGError`, with which it is answered then."""
        sid = self.manager.sid_from_eio_sid(eio_sid, packet.namespace or "/")
        if sid is None:
            return
        if self.before_event is not None:
            self.before_event(sid, packet.size)
        if self.environ[eio_sid].get(_WAITING, 0) > 2 * self.eio.max_http_buffer_size:
            raise RateLimitedError("too much of what you have sent waits to be handled")

    def _hang_up(self, eio_sid: str, error: NotAPacketError) -> None:
        """End a connection that has left the protocol. Stock clients never do; they would come back."""
        # First of all: what follows may wait.
        self.environ[eio_sid][_GOING] = True
        self._binary_packet.pop(eio_sid, None)
        self._complain(logging.INFO, "hanging up on a client: %s", error.message, connection=eio_sid)
        sid = self.manager.sid_from_eio_sid(eio_sid, "/")
        if sid is not None:
            self._answer(sid, eio_sid, "/", None, error)
        self.eio.disconnect(eio_sid)

    def is_connected(self, eio_sid: str) -> bool:
        """Whether this Engine.IO client has come as far as a Socket.IO namespace."""
        return any(self.manager.sid_from_eio_sid(eio_sid, name) for name in list(self.manager.get_namespaces()))

    def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        namespace = namespace or "/"
        if eio_sid not in self.environ:
            return  # left before its turn came
        if self.manager.sid_from_eio_sid(eio_sid, namespace) is not None:
            self._hang_up(eio_sid, NotAPacketError("a second CONNECT"))
            return
        if not self._has_namespace(namespace):
            # Before anybody is asked who this is, in the words of the protocol document.
            self._send_connect_error(eio_sid, namespace, {"message": "Invalid namespace"})
            return
        try:
            identity = self.identify(self.environ[eio_sid], data)
        except SocketIOPGError as refusal:
            self._refuse(eio_sid, namespace, refusal)
            return
        except Exception:  # an application's own login may raise anything, and whatever it is lets nobody in
            self._complain.failure("finding out who a client is failed", connection=eio_sid)
            self._refuse(eio_sid, namespace, SocketIOPGError("the server failed to handle this"))
            return
        if self._get_event_handler("connect", namespace, ())[0] or self._get_namespace_handler(namespace, ())[0]:
            # The application's handler may wait, and nothing may while corked.
            self._connect(eio_sid, namespace, data, identity)
        else:
            with self._corked(eio_sid):
                self._connect(eio_sid, namespace, data, identity)

    def _connect(self, eio_sid: str, namespace: str, data: Any, identity: object) -> None:
        if eio_sid not in self.environ:
            return  # left meanwhile
        before = self.manager.sid_from_eio_sid(eio_sid, namespace)
        attempt = self._attempt = _Attempt(identity)
        try:
            super()._handle_connect(eio_sid, namespace, data)
        except Exception:  # as above: an application's code
            self._complain.failure("the application's connect handler failed", connection=eio_sid)
            self._refuse(eio_sid, namespace, SocketIOPGError("the server failed to handle this"))
            self.manager.disconnect(self.manager.sid_from_eio_sid(eio_sid, namespace), namespace, ignore_queue=True)
        finally:
            self.manager.send_early(attempt.sid)
        if eio_sid not in self.environ:
            # Left while the application's handler waited, when it did not count as connected yet.
            self._handle_disconnect(eio_sid, namespace, self.reason.TRANSPORT_CLOSE)
            return
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if attempt.sid is not None and attempt.sid != sid and self.on_disconnected:
            self.on_disconnected(attempt.sid)  # refused by the application
        if sid:
            self.environ[eio_sid][_JOINED] = True
        if self.on_connected and sid and sid != before and namespace == "/":
            self.on_connected(sid)

    def _refuse(self, eio_sid: str, namespace: str, refusal: SocketIOPGError) -> None:
        metrics.refused_connections.labels(refusal.code).inc()
        self._send_connect_error(eio_sid, namespace, {"message": refusal.message, "data": refusal.to_wire()})

    def _send_connect_error(self, eio_sid: str, namespace: str, data: dict[str, Any]) -> None:
        self._send_packet(eio_sid, self.packet_class(CONNECT_ERROR, data=data, namespace=namespace))

    def _has_namespace(self, namespace: str) -> bool:
        known = namespace in self.handlers or namespace in self.namespace_handlers
        return known or self.namespaces == "*" or namespace in self.namespaces

    def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> Any:
        result = super()._handle_eio_connect(eio_sid, environ)
        if self.on_opened:
            self.on_opened(eio_sid, environ)
        return result

    def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        if self.on_closed:
            self.on_closed(eio_sid)
        super()._handle_eio_disconnect(eio_sid, reason)

    def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        # Both here and not as handlers of the events: an application's own of the same name would replace ours.
        if event == "connect" and self._attempt is not None:
            # Nothing has waited since it was set; python-socketio has just given the client its sid.
            attempt, self._attempt = self._attempt, None
            attempt.sid = args[0]
            self.manager.hold_early(args[0])
            if self.on_identified:
                self.on_identified(args[0], namespace, attempt.identity)
        if event == "disconnect" and self.on_disconnected:
            self.on_disconnected(args[0])
        try:
            return super()._trigger_event(event, namespace, *args)
        except Exception:
            if event != "disconnect":
                raise
            # Let through, it would keep python-socketio from forgetting the client.
            self._complain.failure("the application's disconnect handler failed")
            return None

    def _take_event(self, eio_sid: str, namespace: str, packet: Packet, own_thread: bool) -> None:
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if not self.manager.is_connected(sid, namespace):
            return  # the server has disconnected it while this was on its way
        id: int | None = packet.id
        data: Any = packet.data
        problem: SocketIOPGError | None = packet.unread
        if problem is None and not isinstance(data[0], str):
            problem = InvalidRequestError("an event is a list that starts with its name")
        elif problem is None and data[0] in RESERVED_EVENTS:
            problem = InvalidRequestError(f"the event name '{data[0]}' is reserved")
        if problem is not None:
            self._answer(sid, eio_sid, namespace, id, problem)
        elif own_thread or not self.async_handlers:
            self._handle_event_internal(self, sid, eio_sid, data, namespace, id)
        else:
            # What follows must not wait for the handler.
            event = (sid, eio_sid, data, namespace, id)
            self.start_background_task(self._handle_apart, self.environ[eio_sid], packet, event)

    def _handle_apart(self, environ: dict[str, Any], packet: Packet, event: tuple[Any, ...]) -> None:
        with self._waiting(environ, packet.size):
            self._handle_event_internal(self, *event)

    def _take_acknowledgement(self, eio_sid: str, namespace: str, packet: Packet) -> None:
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        # Ids that we give begin with 1; under 0 python-socketio keeps something else.
        if not packet.id or packet.id not in self.manager.callbacks.get(sid, ()):
            return
        try:
            self.manager.trigger_callback(sid, packet.id, packet.data)
        except Exception:  # an application's code
            self._complain.failure("the application's callback of an acknowledgement failed")
