"""The Engine.IO server: python-engineio's, with request handling, WebSockets and pings of its own, and no threads.

docs/architecture.md lists the overridden methods of python-engineio and python-socketio.
"""

import base64
import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import engineio
from engineio import packet as eio_packet

from socketio_pg.core import green, metrics
from socketio_pg.core.channels import CLIENT_ID_END
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.engine import frames, handover, hosting, transport
from socketio_pg.engine.environs import MAX_HEADERS, headers_size, slim_environ
from socketio_pg.engine.http import (
    BAD_HANDSHAKE_METHOD,
    BAD_REQUEST,
    FORBIDDEN,
    UNKNOWN_SESSION,
    UNKNOWN_TRANSPORT,
    UNSUPPORTED_VERSION,
    compressed,
    error,
    fingerprint,
    ok,
    parsed,
    safe_headers,
)
from socketio_pg.engine.pending import Pending
from socketio_pg.engine.polling import BodyError, decode_payload, encode_payload, read_body
from socketio_pg.engine.socket import Environ, Socket
from socketio_pg.workers.local_counts import CLIENTS, LOGINS, Counts, LocalCounts

StartResponse = Callable[..., Any]

logger = logging.getLogger("socketio_pg.engine")
_hosting_log = RateLimitedLog(logger, seconds=60.0)


class Engine(engineio.Server):  # type: ignore[misc]
    """An Engine.IO server that takes WebSockets over from gunicorn, and pings all clients from one green thread.

    ``handle_message(sid, message, own_thread)`` handles a message in a green thread, with ``own_thread`` in one that is
    this message's alone. ``handle_at_once(sid, message)`` sees each event first: it may handle it, must not wait, and
    returns whether it has handled it. ``is_connected(sid)``: whether a client has connected to a Socket.IO namespace.
    ``client_address(environ)``: the address of the client that sends a request; "" when it is unknown.
    ``new_session_id()`` returns the id of a session, by default a random one.

    ``send_buffer_bytes`` may wait for one client (SEND_BUFFER_BYTES). A client must connect to a namespace, and
    complete an upgrade, within ``connect_timeout`` seconds (CONNECT_TIMEOUT). With ``max_connections`` clients
    (MAX_CONNECTIONS), a further one takes the place of one that is not connected to a namespace, or is answered 503.
    ``counts`` counts them: by default those of this process, otherwise those of all workers of the node. A worker makes
    room among its own clients. Other ``options`` are those of :class:`engineio.Server`.
    """

    sequence_number: int

    #: Bytes of all messages of a client that wait, including incomplete ones, before it is connected to a namespace:
    #: more than any token, and little for many unauthenticated clients.
    max_before_connect = 65_536
    #: The part of ``max_connections`` that long-polling sessions may take before they send a second request, shared
    #: equally by the workers of a node.
    silent_share = 0.25
    #: Seconds of delay from which the ping thread concludes that the whole process was suspended.
    stood_still = 0.2

    def __init__(
        self,
        *,
        handle_message: Callable[[str, str | bytes, bool], None],
        is_connected: Callable[[str], bool],
        handle_at_once: Callable[[str, str], bool] = lambda sid, message: False,
        client_address: Callable[[Environ], str] = lambda environ: "",
        new_session_id: Callable[[], str] | None = None,
        send_buffer_bytes: int = 1_000_000,
        max_connections: int = 10_000,
        counts: Counts | None = None,
        connect_timeout: float = 10.0,
        **options: Any,
    ) -> None:
        self.handle_message = handle_message
        self.is_connected = is_connected
        self.handle_at_once = handle_at_once
        self.client_address = client_address
        self._new_session_id = new_session_id
        self.send_buffer_bytes = send_buffer_bytes
        self.max_connections = max_connections
        self._counts = counts or LocalCounts()
        self.connect_timeout = connect_timeout
        # The stock monitor wakes up for each client; _watch does its work.
        super().__init__(**{**options, "monitor_clients": False})
        self._watcher = green.Worker()
        #: Session → the time of its next ping, the earliest first. Closed ones leave it: a flood may open many.
        self._to_ping: OrderedDict[Socket, float] = OrderedDict()
        self._to_check: deque[tuple[float, Socket]] = deque()
        #: The sessions that are not connected to a namespace.
        self.pending = Pending()
        #: The number of messages of clients that were not connected to a namespace and that are being handled, also
        #: after the client has left.
        self.identifying = 0
        #: Clients that take a place of ``max_connections`` and are no sessions.
        self._others = 0
        self._next_sweep = 0.0
        self._to_upgrade: deque[tuple[float, Socket, transport.WebSocketTransport]] = deque()

    # -- requests ------------------------------------------------------------------------------------------------------

    def handle_request(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The WSGI application. Replaces the stock one, which repeats client input in answers and in the log."""
        refusal = hosting.refusal_of_request(environ)
        if refusal is not None:
            _hosting_log(logging.ERROR, "%s", refusal)
            start_response("500 INTERNAL SERVER ERROR", [("Content-Type", "text/plain")])
            return [b"the server was started in a way in which it cannot work; its log says how to start it"]
        answer = self._answer(environ, start_response)
        if not isinstance(answer, dict):
            start_response("101 Switching Protocols", [])
            return answer  # type: ignore[no-any-return]
        # A refused request with a chunked body has not been read to its end.
        if answer.get("unread") or ("HTTP_TRANSFER_ENCODING" in environ and answer["status"] != "200 OK"):
            return handover.refuse(environ, start_response, answer["status"], answer["response"])
        if self.http_compression:
            compressed(environ, answer)
        # Without a length gunicorn would send the body in chunks, each in a packet of its own.
        length = ("Content-Length", str(len(answer["response"])))
        start_response(answer["status"], safe_headers([*answer["headers"], *self._cors_headers(environ), length]))
        return [answer["response"]]

    def accept_websocket(self, environ: Environ, take: Callable[[], Any]) -> bool:
        """Open a WebSocket for a request of :func:`head.plain_handshake`, past WSGI. Never waits.

        ``take()`` returns its connection, a non-blocking plain socket. Return False, without calling that, when
        :meth:`handle_request` must answer.
        """
        if (
            "websocket" not in self.transports
            or self._refuses_origin(environ)
            or handover.handshake_problem(environ) is not None
            or not self._make_room()
        ):
            return False
        socket = self._create(environ, "websocket")
        try:
            self._begin(socket, take(), environ)
        except BaseException:
            self.forget(socket)
            raise
        return True

    def _refuses_origin(self, environ: Environ) -> bool:
        origin = environ.get("HTTP_ORIGIN")
        if not origin or self.cors_allowed_origins == []:
            return False
        allowed = self._cors_allowed_origins(environ)
        return not origin.isprintable() or (allowed is not None and origin not in allowed)

    def _answer(self, environ: Environ, start_response: StartResponse) -> Any:
        method = environ["REQUEST_METHOD"]
        if self._refuses_origin(environ):
            return error(FORBIDDEN, "this origin is not allowed")
        if method == "OPTIONS":
            return ok()
        query = parsed(environ.get("QUERY_STRING", ""))
        if query.transport not in self.transports:
            return error(UNKNOWN_TRANSPORT)
        if query.version != "4" and (query.sid is None or query.version):
            return error(UNSUPPORTED_VERSION)
        if query.jsonp:
            return error(BAD_REQUEST, "JSONP is not supported")
        if query.sid is None:
            if method != "GET":
                return error(BAD_HANDSHAKE_METHOD)
            return self._handle_connect(environ, start_response, query.transport)
        socket = self.sockets.get(query.sid)
        # The same answer as for an unknown session, so that a foreign client learns nothing.
        if socket is None or socket.closed or not socket.connected or not socket.belongs_to(fingerprint(environ)):
            return error(UNKNOWN_SESSION)
        if method not in ("GET", "POST"):
            return error(BAD_REQUEST, "only GET and POST")
        if self.pending.answer(socket):
            self.watch(socket)
        if socket.upgraded or (query.transport == "websocket" and method == "POST"):
            return error(BAD_REQUEST, "this session is a WebSocket")
        if query.transport == "websocket":
            return socket.upgrade(environ)
        return self._handle_post(socket, environ) if method == "POST" else self._handle_poll(socket, environ)

    def _handle_post(self, socket: Socket, environ: Environ) -> Any:
        if socket.posting:
            # Their order is unknown.
            socket.close(reason=self.reason.TRANSPORT_ERROR)
            return error(BAD_REQUEST, "two POSTs at once") | {"unread": True}
        socket.posting = True
        try:
            packets = decode_payload(read_body(environ, socket.max_message()))
            if socket.closed:
                return error(UNKNOWN_SESSION)
            socket.receive_all(packets)
        except BodyError as problem:
            socket.close(reason=self.reason.TRANSPORT_ERROR)
            return error(BAD_REQUEST, str(problem)) | {"status": problem.status, "unread": True}
        except ValueError:
            socket.close(reason=self.reason.TRANSPORT_ERROR)
            return error(BAD_REQUEST, "this is not an Engine.IO payload")
        finally:
            socket.posting = False
        return ok()

    def _handle_poll(self, socket: Socket, environ: Environ) -> Any:
        if socket.polling:
            socket.close(reason=self.reason.TRANSPORT_ERROR)
            return error(BAD_REQUEST, "two polls at once")
        socket.polling = True
        try:
            with handover.noticing_hangup(environ, socket.hung_up):
                packets = socket.poll()
        except engineio.exceptions.EngineIOError:
            socket.close(reason=self.reason.TRANSPORT_ERROR)
            return error(UNKNOWN_SESSION)
        finally:
            socket.polling = False
        if socket.closed:
            self.forget(socket)
        return ok(encode_payload(packet.encode() for packet in packets))

    # -- handshakes ----------------------------------------------------------------------------------------------------

    def _handle_connect(
        self, environ: Environ, start_response: StartResponse, transport_name: str, jsonp_index: int | None = None
    ) -> Any:
        if headers_size(environ) > MAX_HEADERS:
            return error(BAD_REQUEST, "the headers are too large") | {"status": "431 REQUEST HEADER FIELDS TOO LARGE"}
        websocket = transport_name == "websocket"
        refusal = handover.handshake_problem(environ) if websocket else None
        if refusal is not None:
            return self.refuse_handshake(refusal)
        if not self._make_room():
            metrics.refused_connections.labels("too_many_connections").inc()
            headers = [("Content-Type", "text/plain"), ("Retry-After", "5")]
            return {"status": "503 SERVICE UNAVAILABLE", "headers": headers, "response": b"too many connections"}
        socket = self._create(environ, transport_name)
        if websocket:
            try:
                return self._handle_websocket(socket, environ)
            except BaseException:
                self.forget(socket)
                raise
        self._open(socket, transport_name)
        if not self._admit(socket, environ):
            return self._unauthorized()
        socket.connected = True
        return ok(encode_payload(packet.encode() for packet in socket.poll()))

    def _create(self, environ: Environ, transport_name: str) -> Socket:
        self._watcher.start(self._watch)
        sid = self._session_id()
        socket = self.sockets[sid] = Socket(self, sid, polling=transport_name == "polling")
        socket.fingerprint = fingerprint(environ)
        socket.address = self.client_address(environ)
        return socket

    def generate_id(self) -> str:
        """Return the id of a new Socket.IO client, which is the name of no channel: see :data:`CLIENT_ID_END`."""
        return self._session_id() + CLIENT_ID_END

    def _session_id(self) -> str:
        """Return a new id: 12 random bytes and a number, as the stock method of :meth:`generate_id` does."""
        if self._new_session_id is not None:
            return self._new_session_id()
        number = self.sequence_number
        self.sequence_number = (number + 1) & 0xFFFFFF
        return base64.urlsafe_b64encode(os.urandom(12) + number.to_bytes(3, "big")).decode()

    def _make_room(self) -> bool:
        """Return whether another client fits, after closing one that is not connected to a namespace if need be.

        The client counts from now on.
        """
        silent = self.pending.silent
        if silent and silent >= int(self.max_connections * self.silent_share / self._counts.workers):
            self._evict(self.pending.oldest_silent())
        if self._counts.sum(LOGINS) >= self.max_connections:
            return False
        if self._takes_place():
            return True
        self._sweep(time.monotonic())
        if self._takes_place():
            return True
        oldest = self.pending.oldest()
        # The place of that client is not free in between: another worker could take it.
        self._evict(oldest)
        return oldest is not None

    def _takes_place(self) -> bool:
        return self._counts.grow(CLIENTS, self._places() + 1, self.max_connections)

    def _places(self) -> int:
        return len(self.sockets) + self._others

    def take_place(self) -> bool:
        """Count a client that is no session, and return True. It makes room as a session does. False: there is none."""
        if not self._make_room():
            return False
        self._others += 1
        return True

    def free_place(self) -> None:
        """Note that such a client has left."""
        self._others -= 1
        self._counts.put(CLIENTS, self._places())

    def _evict(self, socket: Any) -> None:
        if socket is not None:
            metrics.cut_off.labels("not_connected").inc()
            self._remove(socket)
            green.run_soon(socket.close, False, socket.connection is None, self.reason.SERVER_DISCONNECT)

    def _remove(self, socket: Socket) -> None:
        self.sockets.pop(socket.sid, None)
        self.pending.remove(socket)

    def forget(self, socket: Socket) -> None:
        """Forget a session that is closed, and free its place."""
        self._remove(socket)
        self._counts.put(CLIENTS, self._places())

    def refuse_handshake(self, problem: str) -> dict[str, Any]:
        """Return the answer to an invalid WebSocket handshake."""
        if problem != handover.WRONG_VERSION:
            return error(BAD_REQUEST, problem)
        answer = error(BAD_REQUEST, problem) | {"status": "426 UPGRADE REQUIRED"}
        answer["headers"] += [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
        return answer

    def _handle_websocket(self, socket: Socket, environ: Environ) -> Any:
        request = handover.taken_over(environ)
        connection = self._begin(socket, request.socket, environ)
        request.hold_request(lambda: connection.closed)
        return ()

    def _begin(self, socket: Socket, taken: Any, environ: Environ) -> transport.WebSocketTransport:
        connection = socket.open_websocket(taken, environ)
        self._open(socket, "websocket")
        admitted = self._admit(socket, environ)
        connection.uncork()
        if admitted:
            self.watch(socket)
        else:
            connection.close(frames.POLICY_VIOLATION)
        return connection

    def watch_upgrade(self, socket: Socket, probe: transport.WebSocketTransport) -> None:
        """End an upgrade that does not complete in time: polls get nothing during an upgrade."""
        self._to_upgrade.append((time.monotonic() + self.connect_timeout, socket, probe))

    def watch(self, socket: Socket) -> None:
        """Start to ping ``socket``."""
        self._to_ping[socket] = time.monotonic() + self.ping_interval

    def closing(self, socket: Socket) -> None:
        """Note that a session is about to close."""
        self.pending.remove(socket)
        self._to_ping.pop(socket, None)

    def _open(self, socket: Socket, transport_name: str) -> None:
        _opened[transport_name].inc()
        self.pending.add(socket, time.monotonic(), silent=transport_name == "polling")
        times = f'"pingTimeout":{int(self.ping_timeout * 1000)},"pingInterval":{int(self.ping_interval * 1000)}'
        if socket.connection is not None:
            text = f'0{{"sid":"{socket.sid}","upgrades":[],{times},"maxPayload":{self.max_http_buffer_size}}}'
            socket.connection.send(frames.encode_text(text))
            return
        opening = {
            "sid": socket.sid,
            "upgrades": self._upgrades(socket.sid, transport_name),
            "pingTimeout": int(self.ping_timeout * 1000),
            "pingInterval": int(self.ping_interval * 1000),
            "maxPayload": self.max_http_buffer_size,
        }
        socket.send(eio_packet.Packet(eio_packet.OPEN, opening))

    def _admit(self, socket: Socket, environ: Environ) -> bool:
        answer = True
        handler = self.handlers.get("connect")
        if handler is not None:
            try:
                answer = handler(socket.sid, slim_environ(environ))
            except green.FAILURES:
                logger.exception("a connection could not be opened")
                answer = False
        if answer is None or answer is True:
            return True
        self.forget(socket)
        return False

    # -- pings: one green thread for all -------------------------------------------------------------------------------

    def _watch(self) -> None:
        tick = min(1.0, self.ping_interval / 4, self.ping_timeout / 4, self.connect_timeout / 4)
        held_up = False
        while True:
            began = time.monotonic()
            green.sleep(tick)
            now = time.monotonic()
            # After a suspension (a laptop, a migrated virtual machine) pongs must be read before any client counts as
            # late. Not twice in a row: an overloaded server must check pings too.
            held_up = not held_up and now - began > tick + self.stood_still
            if held_up:
                continue
            self._ping_due(now)
            self._close_unconnected(now)
            while self._to_upgrade and self._to_upgrade[0][0] <= now:
                _, socket, probe = self._to_upgrade.popleft()
                socket.give_up_upgrade(probe)
            self._sweep(now)

    def _ping_due(self, now: float) -> None:
        # Both are ordered by time, because all clients have the same intervals.
        while self._to_check and self._to_check[0][0] + self.ping_timeout <= now:
            sent, socket = self._to_check.popleft()
            if socket.unanswered_ping == sent and not socket.closed:
                green.run_soon(socket.close, False, False, self.reason.PING_TIMEOUT)
        turn_ends = time.monotonic() + 0.005
        while self._to_ping:
            socket, due = next(iter(self._to_ping.items()))
            if due > now:
                break
            del self._to_ping[socket]
            if socket.closed or socket.closing:
                continue
            if socket.stuck_seconds(now) > self.ping_interval + self.ping_timeout:
                # It answers pings that it has not read.
                green.run_soon(socket.close_stuck)
                continue
            if not socket.unanswered_ping:
                socket.unanswered_ping = now
                socket.ping()
                self._to_check.append((now, socket))
            self._to_ping[socket] = now + self.ping_interval
            if time.monotonic() > turn_ends:
                green.sleep()
                turn_ends = time.monotonic() + 0.005

    def begin_login(self, socket: Socket) -> None:
        """Note that a message of a client that is not connected to a namespace is being handled."""
        self.identifying += 1
        self._counts.put(LOGINS, self.identifying)
        self.pending.begin(socket)

    def end_login(self, socket: Socket) -> None:
        """Note that the message has been handled."""
        self.identifying -= 1
        self._counts.put(LOGINS, self.identifying)
        self.pending.end(socket)

    def await_connect(self, sid: str) -> None:
        """Give a client that has left its namespace ``connect_timeout`` again to enter one."""
        socket = self.sockets.get(sid)
        if socket is not None and not (socket.closed or socket.closing or self.is_connected(sid)):
            self.pending.add(socket, time.monotonic(), silent=False)

    def admitted(self, sid: str) -> None:
        """Note that a client connects to a namespace: it is about to get the answer to CONNECT."""
        socket = self.sockets.get(sid)
        if socket is not None:
            self.pending.remove(socket)
            socket.admit()

    def _close_unconnected(self, now: float) -> None:
        """Close connections that were refused or have not entered a namespace in time."""
        for found in list(self.pending.expired(now, self.connect_timeout)):
            socket: Any = found
            self.pending.remove(socket)
            if not socket.closed and not socket.closing and not self.is_connected(socket.sid):
                metrics.cut_off.labels("connect_timeout").inc()
                green.run_soon(socket.close, False, False, self.reason.SERVER_DISCONNECT)

    def _sweep(self, now: float) -> None:
        """Forget polling sessions that have ended. Does nothing soon after the last time, as it visits all sessions."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + 0.5
        for socket in [socket for socket in self.sockets.values() if socket.closed]:
            self.forget(socket)
        # python-engineio removes closed sessions, too.
        self._counts.put(CLIENTS, self._places())


_opened = {name: metrics.opened_connections.labels(name) for name in metrics.TRANSPORTS}
