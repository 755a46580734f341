"""The Socket.IO server: connects clients to namespaces and handles their packets, as docs/protocol.md says."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import socketio

from socketio_pg.core import green, metrics
from socketio_pg.core.errors import InvalidRequestError, RateLimitedError, SocketIOPGError
from socketio_pg.engine.server import Engine
from socketio_pg.protocol.answers import AnsweringServer
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.lifecycle import Lifecycle
from socketio_pg.protocol.packets import (
    ACK,
    BINARY_ACK,
    BINARY_EVENT,
    CONNECT,
    CONNECT_ERROR,
    DISCONNECT,
    EVENT,
    NotAPacketError,
    Packet,
    not_a_packet,
)

logger = logging.getLogger("socketio_pg.protocol")

#: The maximum number of refused CONNECT packets of a connection; then it is closed.
MAX_REFUSED_CONNECTS = 10
#: The maximum number of namespaces that a connection is connected to at the same time.
MAX_NAMESPACES = 50
#: The maximum size in characters of an acknowledgement that is parsed although the server has not requested it.
MAX_UNREQUESTED = 1_000

#: Events that the library raises itself: a client that sends one would run the handlers of that name. `*` has the
#: handlers of all events, which take event name and sid from places that such a client would fill.
RESERVED_EVENTS = frozenset(
    {"*", "connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)


@dataclass(slots=True)
class _Connection:
    """The state of one Engine.IO connection."""

    #: Whether it has connected to a namespace, now or earlier.
    joined: bool = False
    #: Whether it is being closed: its packets are ignored, while disconnect handlers may still wait.
    closing: bool = False
    #: Bytes that it has sent and that wait to be handled.
    waiting: int = 0
    #: Refused CONNECT packets.
    refused: int = 0


class Server(AnsweringServer):
    """Connects clients to namespaces and takes the packets that they send. An invalid packet ends the connection.

    ``lifecycle`` follows connections and clients. ``binary``: events and acknowledgements may carry binary data. All
    other options are those of :class:`Engine` and of python-socketio's server, without ``always_connect``: the connect
    handler always runs before the answer to CONNECT.
    """

    #: Bytes that a waiting message counts for beside its own: its green thread and what that holds.
    event_cost = 1000

    def __init__(
        self,
        *,
        lifecycle: Lifecycle | None = None,
        binary: bool = False,
        client_manager: Manager | None = None,
        **options: Any,
    ) -> None:
        self.lifecycle = lifecycle or Lifecycle()
        self.binary = binary
        self._connections: dict[str, _Connection] = {}
        #: Clients that :meth:`disconnect` was called for before their CONNECT was answered.
        self._unwanted: set[str] = set()
        super().__init__(
            serializer=Packet,
            client_manager=client_manager or Manager(),
            handle_message=self.handle_message,
            is_connected=self.is_connected,
            **options,
        )

    def initialize_manager(self) -> None:
        """Connect the client manager to other nodes, before the first client."""
        if not self.manager_initialized:
            self.manager_initialized: bool = True
            self.manager.initialize()

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    def handle_message(self, eio_sid: str, data: str | bytes, own_thread: bool) -> None:
        """Handle a client's message. With ``own_thread`` it has a green thread of its own, so its handler may wait."""
        connection = self._connections.get(eio_sid)
        if connection is None or connection.closing:
            return  # it had arrived before the connection was closed
        size = len(data) + self.event_cost
        connection.waiting += size
        try:
            self._take_message(eio_sid, connection, data, own_thread)
        finally:
            connection.waiting -= size

    @contextlib.contextmanager
    def _waiting(self, connection: _Connection, size: int) -> Iterator[None]:
        """Count ``size`` bytes as waiting to be handled while the body runs."""
        size += self.event_cost
        connection.waiting += size
        try:
            yield
        finally:
            connection.waiting -= size

    def _take_message(self, eio_sid: str, connection: _Connection, data: str | bytes, own_thread: bool) -> None:
        try:
            packet = self._receive(eio_sid, data)
            if packet is None:
                return
            if packet.packet_type != CONNECT and not connection.joined:
                raise NotAPacketError("the first packet must be CONNECT")
        except NotAPacketError as error:
            self._hang_up(eio_sid, error)
            return
        namespace = packet.namespace or "/"
        if packet.packet_type == CONNECT:
            self._handle_connect(eio_sid, namespace, packet.data)
        elif packet.packet_type == DISCONNECT:
            sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
            if sid is not None:
                self.lifecycle.ended(sid, namespace)
            self._handle_disconnect(eio_sid, namespace, self.reason.CLIENT_DISCONNECT)
        elif packet.packet_type in (EVENT, BINARY_EVENT):
            self._take_event(eio_sid, namespace, packet, own_thread)
        else:
            self._take_acknowledgement(eio_sid, namespace, packet)

    def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        self.handle_message(eio_sid, data, False)

    def _receive(self, eio_sid: str, data: str | bytes) -> Packet | None:
        """Return the packet that ``data`` completes, or None. Raises :class:`NotAPacketError`."""
        packet: Packet | None = self._binary_packet.get(eio_sid)
        if packet is None:
            if isinstance(data, bytes):
                raise not_a_packet(data, "binary data without a packet that announces it")
            packet = Packet(binary=False)
            packet.before_data = functools.partial(self._admit, eio_sid)
            packet.attachment_count = packet.decode(data)
            if not packet.is_binary:
                return packet
            if not self.binary:
                raise NotAPacketError("this server accepts no binary data")
            if not self._connections[eio_sid].joined:
                raise NotAPacketError("the first packet must be CONNECT")
            self._binary_packet[eio_sid] = packet
            return None
        if sum(map(len, packet.attachments)) + len(data) > self.eio.max_http_buffer_size:
            raise NotAPacketError(f"attachments have over {self.eio.max_http_buffer_size} bytes")
        if not packet.add_attachment(data):
            return None
        del self._binary_packet[eio_sid]
        return packet

    def _admit(self, eio_sid: str, packet: Packet) -> None:
        """Return when an event or acknowledgement may be parsed. Raises :class:`SocketIOPGError` to leave it unparsed.

        An event is answered with the error. An event to a namespace that the client is not connected to counts for
        another one of its namespaces, and is ignored like an acknowledgement that was not requested.
        """
        sid = self.manager.sid_from_eio_sid(eio_sid, packet.namespace or "/")
        if packet.packet_type in (ACK, BINARY_ACK):
            if packet.size > MAX_UNREQUESTED and not self._is_requested(sid, packet):
                raise InvalidRequestError("this acknowledgement was not requested")
            return
        counted = sid or next(filter(None, self._sids(eio_sid)), None)
        if counted is not None:
            self.lifecycle.before_event(counted, packet.size)
        if sid is None:
            raise InvalidRequestError("not connected to this namespace")
        if self._connections[eio_sid].waiting > 2 * self.eio.max_http_buffer_size:
            raise RateLimitedError("too many of your messages wait to be handled")

    def _hang_up(self, eio_sid: str, error: NotAPacketError) -> None:
        """Close a connection that broke the protocol. Stock clients never do that; they would reconnect."""
        # Comes first, because the rest may wait.
        self._connections[eio_sid].closing = True
        self._binary_packet.pop(eio_sid, None)
        self._limited_log(logging.INFO, "closing the connection of a client: %s", error.message, connection=eio_sid)
        sid = self.manager.sid_from_eio_sid(eio_sid, "/")
        if sid is not None:
            self.answer_error(sid, eio_sid, "/", None, error)
        self.eio.disconnect(eio_sid)

    def is_connected(self, eio_sid: str) -> bool:
        """Return whether this Engine.IO client is connected to a Socket.IO namespace: not while a handler decides."""
        connection = self._connections.get(eio_sid)
        if connection is None or not connection.joined:
            return False
        manager = self.manager
        sids = ((manager.sid_from_eio_sid(eio_sid, name), name) for name in list(manager.get_namespaces()))
        return any(sid is not None and manager.is_connected(sid, name) for sid, name in sids)

    def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        connection = self._connections.get(eio_sid)
        if connection is None or not self._is_open(eio_sid):
            return  # it left before its turn
        self._answer_connect(eio_sid, namespace or "/", data)
        if connection.refused >= MAX_REFUSED_CONNECTS and not connection.closing:
            connection.closing = True
            self._limited_log(logging.INFO, "closing a connection after refused CONNECT packets", connection=eio_sid)
            self.eio.disconnect(eio_sid)

    def _answer_connect(self, eio_sid: str, namespace: str, data: Any) -> None:
        if self.manager.sid_from_eio_sid(eio_sid, namespace) is not None:
            self._hang_up(eio_sid, NotAPacketError("a second CONNECT"))
            return
        try:
            self.lifecycle.before_connect(eio_sid, self.environ[eio_sid])
            self._check_namespaces(eio_sid)
        except SocketIOPGError as refusal:
            self._refuse(eio_sid, namespace, refusal)
            if isinstance(refusal, RateLimitedError) and refusal.cut_off:
                self._connections[eio_sid].refused = MAX_REFUSED_CONNECTS
            return
        if not self._has_namespace(namespace):
            # Before the client is identified, with the text of the Socket.IO protocol.
            self._send_connect_error(eio_sid, namespace, {"message": "Invalid namespace"})
            return
        try:
            identity = self.lifecycle.identify(self.environ[eio_sid], data, namespace)
        except SocketIOPGError as refusal:
            self._refuse(eio_sid, namespace, refusal)
            return
        except green.FAILURES:  # the application's own hook may raise anything
            self._limited_log.failure("a client could not be identified", connection=eio_sid)
            self._refuse(eio_sid, namespace, SocketIOPGError("the server failed to handle this"))
            return
        former = self.lifecycle.resume(eio_sid, namespace, data, identity)
        handled = self._get_event_handler("connect", namespace, ())[0] or self._get_namespace_handler(namespace, ())[0]
        if handled or former is not None:
            # The application's handler may wait, which is not allowed while corked.
            self._connect(eio_sid, namespace, data, identity, former)
        else:
            with self._corked(eio_sid):
                self._connect(eio_sid, namespace, data, identity)

    def _check_namespaces(self, eio_sid: str) -> None:
        if len(self.manager.rooms) < MAX_NAMESPACES:
            return
        if sum(sid is not None for sid in self._sids(eio_sid)) >= MAX_NAMESPACES:
            raise RateLimitedError(f"a connection may connect to at most {MAX_NAMESPACES} namespaces")

    def _sids(self, eio_sid: str) -> Iterator[str | None]:
        """Yield the client's sid in each namespace that has clients; None where it is not connected."""
        for name in list(self.manager.get_namespaces()):
            yield self.manager.sid_from_eio_sid(eio_sid, name)

    def _connect(self, eio_sid: str, namespace: str, auth: Any, identity: object, former: str | None = None) -> None:
        """Connect a client that may come in, unless the application refuses it.

        python-socketio does this in `_handle_connect`, where an identity has no place. ``former`` is the sid of a
        session that is restored, if it can be.
        """
        if not self._is_open(eio_sid):
            return  # it left while it was identified
        if former is not None and not self._restore(eio_sid, former, identity):
            former = None
            if not self._is_open(eio_sid):
                return
        sid: str | None = former or self.manager.pre_connect(eio_sid, namespace)
        if sid is None:
            # Connected while it was identified, by a CONNECT over its other transport.
            self._send_connect_error(eio_sid, namespace, {"message": "Unable to connect"})
            return
        early: list[Callable[[], None]] = []
        try:
            if former is None:
                self.manager.hold_early(sid)
                self.lifecycle.identified(sid, namespace, identity)
            refusal = self._ask_application(sid, namespace, self.environ[eio_sid], auth)
            if refusal is None and sid in self._unwanted:
                refusal = socketio.exceptions.ConnectionRefusedError().error_args
            if refusal is None and former is not None and not self.lifecycle.restored(sid, eio_sid):
                # Without an answer: the client connects again.
                green.run_soon(self.eio.disconnect, eio_sid)
            elif refusal is None:
                # First, because the client may send a large packet as soon as it has the answer.
                self.eio.admitted(eio_sid)
                answer = {"sid": sid} | self.lifecycle.answer(sid, eio_sid, namespace)
                self.send_packet(eio_sid, CONNECT, namespace, answer)
                self.manager.connect(sid, namespace)
            else:
                self._send_connect_error(eio_sid, namespace, refusal)
                self.lifecycle.ended(sid, namespace)
        except green.FAILURES:  # the application's code
            self._limited_log.failure("the application's connect handler failed", connection=eio_sid)
            self._refuse(eio_sid, namespace, SocketIOPGError("the server failed to handle this"))
        finally:
            # Whatever was raised: a client that is not connected now leaves nothing behind.
            self._unwanted.discard(sid)
            early = self.manager.take_early(sid)
            if not self.manager.is_connected(sid, namespace):
                self.manager.disconnect(sid, namespace, ignore_queue=True)
                self.lifecycle.disconnected(sid)
        if self.manager.is_connected(sid, namespace):
            self._send_early(eio_sid, early)
        if self.manager.sid_from_eio_sid(eio_sid, namespace) != sid:
            return  # refused, or it left while the events were sent
        if not self._is_open(eio_sid):
            # It left while the application's handler waited, before it counted as connected.
            self._handle_disconnect(eio_sid, namespace, self.reason.TRANSPORT_CLOSE)
            return
        self._note_joined(eio_sid)
        if namespace == "/":
            self.lifecycle.connected(sid)

    def _restore(self, eio_sid: str, sid: str, identity: object) -> bool:
        """Restore a session. Return False if the client must get a new one, or has left."""
        if not self.manager.resume(sid, eio_sid):
            return False
        restored = False
        try:
            self.manager.hold_early(sid)
            self.lifecycle.identified(sid, "/", identity)
            self.eio.admitted(eio_sid)  # a replay may take longer than the time that it has to connect
            restored = self.lifecycle.restore(sid, eio_sid) and self._is_open(eio_sid)
        except green.FAILURES:
            self._limited_log.failure("a session could not be restored", connection=eio_sid)
        finally:
            if not restored:
                self.manager.take_early(sid)
                self.manager.disconnect(sid, "/", ignore_queue=True)
                self.lifecycle.disconnected(sid)
        return restored

    def disconnect(self, sid: str, namespace: str | None = None, ignore_queue: bool = False) -> None:
        """Disconnect a client. One whose CONNECT is not answered yet is refused; the stock method lets it connect."""
        self.lifecycle.ended(sid, namespace or "/")
        if self.manager.is_pre_connected(sid, namespace or "/"):
            self._unwanted.add(sid)
        else:
            super().disconnect(sid, namespace, ignore_queue)

    def _send_early(self, eio_sid: str, early: list[Callable[[], None]]) -> None:
        """Send what was emitted to a client before the answer to its CONNECT."""
        for send in early:
            try:
                send()
            except green.FAILURES:  # data that the application has changed since, so that it cannot be encoded
                self._limited_log.failure("an event for a new client could not be sent", connection=eio_sid)

    def _is_open(self, eio_sid: str) -> bool:
        connection = self._connections.get(eio_sid)
        return connection is not None and not connection.closing and eio_sid in self.environ

    def _note_joined(self, eio_sid: str) -> None:
        connection = self._connections[eio_sid]
        if not connection.joined:
            connection.joined = True
            self.lifecycle.joined(eio_sid)

    def _ask_application(self, sid: str, namespace: str, environ: dict[str, Any], auth: Any) -> Any:
        """Run the application's connect handler. Return what a refused client is told; None when it may come in."""
        try:
            try:
                answer = self._trigger_event("connect", namespace, sid, environ, auth or None)
            except TypeError as error:
                if auth:
                    raise
                try:
                    answer = self._trigger_event("connect", namespace, sid, environ)  # a handler without `auth`
                except TypeError:
                    raise error from None
        except socketio.exceptions.ConnectionRefusedError as refused:
            return refused.error_args
        except ConnectionRefusedError:
            return {"message": "Connection refused by server"}
        return socketio.exceptions.ConnectionRefusedError().error_args if answer is False else None

    def _refuse(self, eio_sid: str, namespace: str, refusal: SocketIOPGError) -> None:
        metrics.refused_connections.labels(refusal.code).inc()
        wire = refusal.to_wire()
        self._send_connect_error(eio_sid, namespace, {"message": wire["message"], "data": wire})

    def _send_connect_error(self, eio_sid: str, namespace: str, data: dict[str, Any]) -> None:
        connection = self._connections.get(eio_sid)
        if connection is not None:
            connection.refused += 1
        self._send_packet(eio_sid, self.packet_class(CONNECT_ERROR, data=data, namespace=namespace))

    def _has_namespace(self, namespace: str) -> bool:
        known = namespace in self.handlers or namespace in self.namespace_handlers
        return known or self.namespaces == "*" or namespace in self.namespaces

    def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> Any:
        self._connections[eio_sid] = _Connection()
        result = super()._handle_eio_connect(eio_sid, environ)
        self.lifecycle.opened(eio_sid, environ)
        return result

    def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        connection = self._connections.get(eio_sid)
        if connection is not None:
            # A CONNECT that is handled while a disconnect handler waits would leave a client that never ends.
            connection.closing = True
        self.lifecycle.closed(eio_sid)
        super()._handle_eio_disconnect(eio_sid, reason)
        self._connections.pop(eio_sid, None)

    def _trigger_event(self, event: str, namespace: str, *args: Any) -> Any:
        if event == "disconnect":
            # Here and not as a handler of the event, which an application's own of the same name would replace.
            self.lifecycle.disconnected(args[0])
            # Also when the application disconnects the client: its connection must not stay without a namespace.
            self.eio.await_connect(self.manager.eio_sid_from_sid(args[0], namespace))
        try:
            return super()._trigger_event(event, namespace, *args)
        except green.FAILURES:
            if event != "disconnect":
                raise
            # python-socketio would not forget the client otherwise.
            self._limited_log.failure("the application's disconnect handler failed")
            return None

    def _take_event(self, eio_sid: str, namespace: str, packet: Packet, own_thread: bool) -> None:
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if not self.manager.is_connected(sid, namespace):
            return  # the server has disconnected it meanwhile
        id: int | None = packet.id
        data: Any = packet.data
        problem: SocketIOPGError | None = packet.unread
        if problem is None and not isinstance(data[0], str):
            problem = InvalidRequestError("an event is a list that starts with its name")
        elif problem is None and data[0] in RESERVED_EVENTS:
            problem = InvalidRequestError(f"the event name '{data[0]}' is reserved")
        if problem is not None:
            self.answer_error(sid, eio_sid, namespace, id, problem)
        elif own_thread or not self.async_handlers:
            self._handle_event_internal(self, sid, eio_sid, data, namespace, id)
        else:
            # The next messages must not wait for the handler.
            event = (sid, eio_sid, data, namespace, id)
            self.start_background_task(self._handle_apart, self._connections[eio_sid], packet, event)

    def _handle_apart(self, connection: _Connection, packet: Packet, event: tuple[Any, ...]) -> None:
        with self._waiting(connection, packet.size):
            self._handle_event_internal(self, *event)

    def _is_requested(self, sid: str | None, packet: Packet) -> bool:
        # Ids begin with 1; python-socketio keeps its counter under 0.
        return bool(packet.id) and packet.id in self.manager.callbacks.get(sid, ())

    def _take_acknowledgement(self, eio_sid: str, namespace: str, packet: Packet) -> None:
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if packet.unread is not None or not self._is_requested(sid, packet):
            return
        try:
            self.manager.trigger_callback(sid, packet.id, packet.data)
        except green.FAILURES:  # the application's code
            self._limited_log.failure("the application's callback of an acknowledgement failed")
