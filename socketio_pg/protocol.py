"""python-socketio's server, held to docs/protocol.md: every request is answered, whatever was sent.

Internals of python-socketio that are overridden are overridden here and nowhere else; tests/unit/test_internals.py
fails when a new version of it changes them.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import flask_socketio
import socketio
from flask import Flask

from socketio_pg import green, handover, metrics
from socketio_pg.engine import Engine
from socketio_pg.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.fanout import Manager
from socketio_pg.messages import WireJSON

logger = logging.getLogger("socketio_pg.protocol")

#: Events that the library raises itself: a client that sends them would run the handlers of those names.
RESERVED_EVENTS = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)


#: No event of ours takes binary data; an application's own may.
MAX_ATTACHMENTS = 16


class Packet(socketio.packet.Packet):  # type: ignore[misc]
    """A Socket.IO packet that carries strict JSON. A class of its own, because ``json`` is a class attribute."""

    json = WireJSON

    def decode(self, encoded_packet: Any) -> Any:
        try:
            attachments = super().decode(encoded_packet)
        except Exception as error:  # whatever the stock decoder stumbles over
            raise InvalidRequestError("this is not a Socket.IO packet") from error
        binary = self.packet_type in (socketio.packet.BINARY_EVENT, socketio.packet.BINARY_ACK)
        if binary and not 1 <= attachments <= MAX_ATTACHMENTS:
            # Without any, the next packet would be taken for one.
            raise InvalidRequestError(f"a binary packet has 1 to {MAX_ATTACHMENTS} attachments")
        return attachments

    def add_attachment(self, attachment: Any) -> Any:
        try:
            return super().add_attachment(attachment)
        except Exception as error:
            raise InvalidRequestError("this is not an attachment that was announced") from error


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler of ours returns: an event to the client, which is also its acknowledgement if it wanted one.

    ``then`` is called after it was sent, and may wait.
    """

    event: str
    body: dict[str, Any]
    then: Callable[[], None] | None = None


@dataclass(slots=True)
class _Attempt:
    """A client that is being let in: who it is, and the sid that it gets."""

    identity: object
    sid: str | None = None


class Server(socketio.Server):  # type: ignore[misc]
    """A Socket.IO server whose handlers raise :class:`SocketIOPGError`, and whose clients always get an answer.

    A failure is answered with the acknowledgement ``{"ok": false, "error": {code, message}}`` when the client asked
    for one, otherwise with the event ``error``. The connection goes on.
    """

    def __init__(self, **options: Any) -> None:
        send_buffer_bytes = options.pop("send_buffer_bytes", Engine.send_buffer_bytes)
        max_connections = options.pop("max_connections", Engine.max_connections)
        connect_timeout = options.pop("connect_timeout", Engine.connect_timeout)
        super().__init__(serializer=Packet, client_manager=Manager(), **options)
        self.eio.send_buffer_bytes = send_buffer_bytes
        self.eio.max_connections = max_connections
        self.eio.connect_timeout = connect_timeout
        self.eio.handle_message = self.handle_message
        self.eio.is_connected = self.is_connected
        self._in_own_thread = False
        #: Called with (Engine.IO's sid, environ) and (sid) when a connection is open, and is not any more.
        self.on_opened: Callable[[str, dict[str, Any]], None] | None = None
        self.on_closed: Callable[[str], None] | None = None
        self._attempt: _Attempt | None = None
        #: Called with (environ, auth) when a client wants to connect to a namespace; returns who it is, or raises
        #: :class:`SocketIOPGError` to refuse it. May wait.
        self.identify: Callable[[dict[str, Any], object], Any] = lambda environ, auth: None
        #: Called with (sid, namespace, what `identify` returned) before the application's own connect handler.
        self.on_identified: Callable[[str, str, Any], None] | None = None
        #: Called with the sid of a client that sends an event, whatever it is; raises to refuse it.
        self.before_event: Callable[[str], None] | None = None
        #: Called with the sid after the CONNECT packet of a client of the namespace ``/`` was sent.
        self.on_connected: Callable[[str], None] | None = None
        #: Called with the sid when a client of any namespace has left, however it came about.
        self.on_disconnected: Callable[[str], None] | None = None

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    def handle_message(self, eio_sid: str, data: str | bytes, own_thread: bool) -> None:
        """A message of a client. ``own_thread``: the green thread is this message's alone, its handler may wait."""
        self._in_own_thread = own_thread
        self._handle_eio_message(eio_sid, data)

    def is_connected(self, eio_sid: str) -> bool:
        """Whether this Engine.IO client has come as far as a Socket.IO namespace."""
        return any(self.manager.sid_from_eio_sid(eio_sid, name) for name in list(self.manager.get_namespaces()))

    def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        namespace = namespace or "/"
        if eio_sid not in self.environ:
            return  # left before its turn came
        identity = None
        if self.manager.sid_from_eio_sid(eio_sid, namespace) is None:
            try:
                identity = self.identify(self.environ[eio_sid], data)
            except SocketIOPGError as refusal:
                self._refuse(eio_sid, namespace, refusal)
                return
            except Exception:
                logger.exception("finding out who a client is failed")
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
        except Exception:
            logger.exception("the application's connect handler failed")
            self._refuse(eio_sid, namespace, SocketIOPGError("the server failed to handle this"))
            self.manager.disconnect(self.manager.sid_from_eio_sid(eio_sid, namespace), namespace, ignore_queue=True)
        if eio_sid not in self.environ:
            # Left while the application's handler waited, when it did not count as connected yet.
            self._handle_disconnect(eio_sid, namespace, self.reason.TRANSPORT_CLOSE)
            return
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if attempt.sid is not None and attempt.sid != sid and self.on_disconnected:
            self.on_disconnected(attempt.sid)  # refused by the application
        if self.on_connected and sid and sid != before and namespace == "/":
            self.on_connected(sid)

    def _refuse(self, eio_sid: str, namespace: str, refusal: SocketIOPGError) -> None:
        metrics.refused_connections.labels(refusal.code).inc()
        data = {"message": refusal.message, "data": refusal.to_wire()}
        self._send_packet(eio_sid, self.packet_class(socketio.packet.CONNECT_ERROR, data=data, namespace=namespace))

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
            logger.exception("the application's disconnect handler failed")
            return None

    def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        try:
            super()._handle_eio_message(eio_sid, data)
        except (InvalidRequestError, ValueError) as error:  # ValueError: a packet type that clients do not send
            self._binary_packet.pop(eio_sid, None)
            sid = self.manager.sid_from_eio_sid(eio_sid, "/")
            if sid is not None:
                self._answer(sid, eio_sid, "/", None, InvalidRequestError(str(error)))

    def _handle_event(self, eio_sid: str, namespace: str | None, id: int | None, data: Any) -> None:
        in_own_thread, self._in_own_thread = self._in_own_thread, False
        problem = None
        if not isinstance(data, list) or not data or not isinstance(data[0], str):
            problem = "an event is a list that starts with its name"
        elif data[0] in RESERVED_EVENTS:
            problem = f"the event name '{data[0]}' is reserved"
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace or "/")
        if sid is None:
            return
        if self.before_event is not None:
            try:
                self.before_event(sid)
            except SocketIOPGError as error:
                self._answer(sid, eio_sid, namespace or "/", id, error)
                return
        if problem is not None:
            self._answer(sid, eio_sid, namespace or "/", id, InvalidRequestError(problem))
        elif not in_own_thread:
            super()._handle_event(eio_sid, namespace, id, data)
        elif self.manager.is_connected(sid, namespace or "/"):
            # What super() does, without one more green thread.
            self._handle_event_internal(self, sid, eio_sid, data, namespace or "/", id)

    def _handle_ack(self, eio_sid: str, namespace: str | None, id: int | None, data: Any) -> None:
        # Ids that we give begin with 1; under 0 python-socketio keeps something else.
        if id and isinstance(data, list):
            super()._handle_ack(eio_sid, namespace, id, data)

    def _handle_event_internal(
        self, server: Any, sid: str, eio_sid: str, data: list[Any], namespace: str, id: int | None
    ) -> None:
        try:
            result = self._trigger_event(data[0], namespace, sid, *data[1:])
            if result is self.not_handled:
                raise InvalidRequestError(f"there is no event '{showable(data[0])}'")
        except SocketIOPGError as error:
            self._answer(sid, eio_sid, namespace, id, error)
        except Exception:
            logger.exception("the handler of an event failed")
            self._answer(sid, eio_sid, namespace, id, SocketIOPGError("the server failed to handle this"))
        else:
            if isinstance(result, Answer):
                with self._corked(eio_sid):
                    self.emit(result.event, result.body, to=sid, namespace=namespace)
                    if id is not None:
                        self._acknowledge(eio_sid, namespace, id, [{"ok": True, **result.body}])
                if result.then is not None:
                    green.run_soon(result.then)
            elif id is not None:
                answer = list(result) if isinstance(result, tuple) else [] if result is None else [result]
                self._acknowledge(eio_sid, namespace, id, answer)

    @contextlib.contextmanager
    def _corked(self, eio_sid: str) -> Iterator[None]:
        """What the body sends to this client goes in one call."""
        socket = self.eio.sockets.get(eio_sid)
        connection = None if socket is None else socket.connection
        if connection is None:
            yield
            return
        connection.cork()
        try:
            yield
        finally:
            connection.uncork()

    def _answer(self, sid: str, eio_sid: str, namespace: str, id: int | None, error: SocketIOPGError) -> None:
        metrics.errors.labels(error.code).inc()
        if id is not None:
            self._acknowledge(eio_sid, namespace, id, [{"ok": False, "error": error.to_wire()}])
            return
        event: dict[str, str] = error.to_wire()
        if error.channel is not None:
            event["channel"] = error.channel
        self.emit("error", event, to=sid, namespace=namespace)

    def _acknowledge(self, eio_sid: str, namespace: str, id: int, answer: list[Any]) -> None:
        packet = self.packet_class(socketio.packet.ACK, namespace=namespace, id=id, data=answer)
        self._send_packet(eio_sid, packet)


def showable(name: str) -> str:
    """A name that a client sent, as it may stand in an error: not endless, and writable as JSON."""
    return name[:200].encode("utf-8", "replace").decode()


#: Gets the WSGI environ and start_response, and may answer a request in everybody's place.
BeforeRequest: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes] | None]


class Middleware(socketio.WSGIApp):  # type: ignore[misc]
    """Puts the Socket.IO server before a Flask application; ``before_request`` may answer in their place.

    The request of a WebSocket that was not taken over lasts as long as its connection: :attr:`websockets` has their
    green threads.
    """

    def __init__(
        self,
        server: Server,
        app: Flask,
        path: str,
        before_request: BeforeRequest,
    ) -> None:
        super().__init__(server, app.wsgi_app, socketio_path=path)
        self._app = app
        self._before_request = before_request
        self.websockets: set[green.GreenThread] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._before_request(environ, start_response)
        if answer is not None:
            return answer
        if not environ["PATH_INFO"].startswith(self.engineio_path):
            return self.wsgi_app(environ, start_response)  # type: ignore[no-any-return]
        environ["flask.app"] = self._app
        if environ.get("HTTP_UPGRADE", "").lower() != "websocket" or handover.can_take_over(environ):
            return self.engineio_app.handle_request(environ, start_response)  # type: ignore[no-any-return]
        thread = green.current()
        self.websockets.add(thread)
        try:
            # python-engineio's own WebSocket wants gunicorn's socket in eventlet's clothes, which super() puts it in.
            return super().__call__(environ, start_response)  # type: ignore[no-any-return]
        finally:
            self.websockets.discard(thread)


class SocketIO(flask_socketio.SocketIO):  # type: ignore[misc]
    """Flask-SocketIO on our :class:`Server`. Flask-SocketIO makes its server itself, hence :meth:`init_app` anew."""

    server: Server
    sockio_mw: Middleware
    before_request: BeforeRequest = staticmethod(lambda environ, start_response: None)

    def init_app(self, app: Flask, **options: Any) -> None:
        self.server_options.update(options)
        self.manage_session = self.server_options.pop("manage_session", True)
        path = self.server_options.pop("path", "socket.io").lstrip("/")
        self.server = Server(**self.server_options)
        self.async_mode = self.server.async_mode
        for message, handler, namespace in self.handlers:
            self.server.on(message, handler, namespace=namespace)
        for namespace_handler in self.namespace_handlers:
            self.server.register_namespace(namespace_handler)
        app.extensions["socketio"] = self
        self.sockio_mw = Middleware(self.server, app, path, lambda *arguments: self.before_request(*arguments))
        app.wsgi_app = self.sockio_mw  # type: ignore[method-assign]
