"""One Engine.IO client: python-engineio's socket on :class:`WebSocketTransport`, or on long-polling."""

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import engineio
from engineio import packet as eio_packet

from socketio_pg.core import green, metrics
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.engine import frames, handover, transport
from socketio_pg.engine.http import BAD_REQUEST, Fingerprint, error, same_client

logger = logging.getLogger("socketio_pg.engine")
_limited_log = RateLimitedLog(logger)

CLOSE, PING, PONG, MESSAGE, UPGRADE = "1", "2", "3", "4", "5"
PING_FRAME = frames.encode_text(PING)
#: Messages that may wait for an earlier one to be handled; beyond that the server stops reading from the client.
MAX_INBOX = 100
#: Seconds for which a poll waits during an upgrade, as in the reference implementation.
NOOP_AFTER = 0.1

Environ = dict[str, Any]


class Socket(engineio.socket.Socket):  # type: ignore[misc]
    """One Engine.IO client. A :class:`WebSocketTransport`, once it has one, carries everything to it, in order."""

    def __init__(self, server: Any, sid: str, *, polling: bool) -> None:
        # Does not call super().__init__(), whose queue takes 2 KB that a WebSocket does not need.
        self.server = server
        self.sid = sid
        self.queue: Any = server.create_queue() if polling else None
        # Unused: the stock time of the last ping, by the wall clock, which can be set. See `unanswered_ping`.
        self.last_ping: float | None = None
        self.connected = self.upgrading = self.upgraded = self.closing = self.closed = False
        self.session: dict[str, Any] = {}
        self.connection: transport.WebSocketTransport | None = None
        self._probe: transport.WebSocketTransport | None = None
        #: Bytes that wait for the next poll; those of them that do not count towards the limit; the time of the last
        #: poll that fetched some, while others wait.
        self._queued = self._spare = 0
        self._stuck_since = 0.0
        #: Set when a poll has fetched packets, or polling has ended.
        self._fetched: green.Event | None = None
        #: Messages that wait for an earlier one to be handled; None when none is being handled.
        self._inbox: deque[str | bytes] | None = None
        #: Bytes of the messages in the inbox, and of the one that is being handled.
        self._waiting = 0
        #: The time of the unanswered ping, by the monotonic clock; 0 when the client has answered.
        self.unanswered_ping = 0.0
        #: Identifies the requests of this client.
        self.fingerprint: Fingerprint = (None, None)
        #: Messages that the client has sent so far.
        self.messages = 0
        #: The client's address, in the form in which limits count it.
        self.address = ""
        #: True while a request of that kind is in progress.
        self.polling = self.posting = False
        self._closed_by_client = False
        self._admitted = False

    def belongs_to(self, shown: Fingerprint) -> bool:
        """Return whether a request with this fingerprint comes from the client that made the handshake."""
        return same_client(self.fingerprint, shown)

    def max_message(self) -> int:
        """Return the maximum size of a message in bytes: small before it is connected to a namespace."""
        most: int = self.server.max_http_buffer_size
        if not self._admitted:
            self._admitted = self.server.is_connected(self.sid)
        # The messages that wait already count, too.
        return most if self._admitted else max(125, min(most, self.server.max_before_connect) - self._waiting)

    def admit(self) -> None:
        """Raise the limits to those of a client that is connected to a namespace."""
        self._admitted = True
        if self.connection is not None:
            self.connection.max_message = self.max_message()

    def ping(self) -> None:
        """Send Engine.IO's ping."""
        if self.connection is not None:
            self.connection.send(PING_FRAME)
        elif self.queue is not None:
            self.queue.put(eio_packet.Packet(eio_packet.PING))

    def send(self, pkt: Any) -> None:
        if self.connection is not None:
            self.connection.send(_frame(pkt.encode()))
            return
        if self._queued > self.server.send_buffer_bytes + self._spare:
            green.run_soon(self._close_lost, "slow_consumer")
            return
        super().send(pkt)
        if not self._queued:
            self._stuck_since = time.monotonic()
        self._queued += _size(pkt)

    @contextlib.contextmanager
    def sending_page(self) -> Iterator[None]:
        """Send a page in the body, as :meth:`WebSocketTransport.send_page` does. The body must not wait."""
        before, self._spare = self._queued, sys.maxsize
        try:
            yield
        finally:
            self._spare = max(0, self._queued - before)

    @property
    def buffered(self) -> int:
        """The number of bytes that wait for the client to read."""
        return self._queued if self.connection is None else self.connection.buffered

    def wait_room(self, most: int) -> bool:
        """Wait until at most ``most`` bytes wait for this client to read. Return False when it has left.

        There is one caller at a time.
        """
        while not self.closed and not self.closing:
            connection = self.connection
            if connection is not None and connection.closed:
                return False
            if self.buffered <= most:
                return True
            room = green.Event()
            if connection is None:
                self._fetched = room
            else:
                connection.when_room(most, room.send)
            room.wait()
        return False

    def _report_fetched(self) -> None:
        if self._fetched is not None:
            fetched, self._fetched = self._fetched, None
            fetched.send()

    def stuck_seconds(self, now: float) -> float:
        """Return for how long the client has read nothing although something waits for it."""
        if self.connection is not None:
            return self.connection.stuck_seconds(now)
        return now - self._stuck_since if self._queued else 0.0

    def close_stuck(self) -> None:
        """Disconnect a client that does not read. May wait for the application's disconnect handlers."""
        self._close_lost("slow_consumer")

    def poll(self) -> Any:
        """Wait for packets like the stock method, but return at most as many as python-engineio's client decodes."""
        empty = self.server.get_queue_empty_exception()
        upgrading = self.upgrading
        try:
            packets = [
                self.queue.get(
                    timeout=NOOP_AFTER if upgrading else self.server.ping_interval + self.server.ping_timeout
                )
            ]
        except empty:
            if upgrading:
                # The answer to the probe may be slower than that to the last poll: the client, which has sent this one
                # without knowing of it, upgrades only when the poll has ended.
                return [eio_packet.Packet(eio_packet.NOOP)]
            raise engineio.exceptions.QueueEmpty() from None
        if packets == [None]:
            return []
        while len(packets) < engineio.payload.Payload.max_decode_packets:
            try:
                packet = self.queue.get(block=False)
            except empty:
                break
            if packet is None:
                self.queue.put(None)
                break
            packets.append(packet)
        self._queued -= sum(_size(packet) for packet in packets)
        self._stuck_since = time.monotonic()
        if not self._queued:
            self._spare = 0
        self._report_fetched()
        return packets

    def check_ping_timeout(self) -> bool:
        # Called by the stock send(). The engine handles time-outs, by the monotonic clock.
        if self.closed:
            raise engineio.exceptions.SocketIsClosedError()
        return True

    def receive_all(self, packets: list[str | bytes]) -> None:
        """Handle the packets of a POST in order. Raises ValueError for one that clients must not send."""
        for packet in packets:
            if self.closed:
                return
            kind = MESSAGE if isinstance(packet, bytes) else packet[0]
            self.messages += kind == MESSAGE
            if kind == PONG:
                self.unanswered_ping = 0.0
            elif isinstance(packet, bytes):
                self._handle_now(packet)
            elif kind == MESSAGE:
                if packet[1:2] != "2" or not self.server.handle_at_once(self.sid, packet[1:]):
                    self._handle_now(packet[1:])
            elif kind == CLOSE:
                self._closed_by_client = True
                self.close(abort=True, reason=self.server.reason.CLIENT_DISCONNECT)
            else:
                raise ValueError("a packet that clients must not send")

    def schedule_ping(self) -> None:
        """Do nothing: the engine pings."""

    def close(self, wait: bool = True, abort: bool = False, reason: str | None = None) -> None:
        """Close like the stock method. Runs the application's disconnect handlers, so the hub must not call it."""
        if self.connection is None:
            probe, self._probe = self._probe, None
            if probe is not None:
                probe.close(frames.GOING_AWAY)
            if self._closed_by_client and not self.closing and self.queue is not None:
                self.queue.put(eio_packet.Packet(eio_packet.NOOP))  # ends the waiting poll
            self.server.closing(self)
            # Does not wait for the client: one that never polls again would block this green thread.
            try:
                super().close(wait=False, abort=abort, reason=reason)
            finally:
                self._report_fetched()
            return
        if self.closed or self.closing:
            return
        self.closing = True
        self.server.closing(self)
        try:
            reason = reason or self.server.reason.SERVER_DISCONNECT
            self.server._trigger_event("disconnect", self.sid, reason, run_async=False)
        finally:
            if not abort:
                self.connection.send(_frame(CLOSE))
            self.closed = True
            self.connection.close(frames.GOING_AWAY)
            self.server.forget(self)

    def open_websocket(self, connection: Any, environ: Environ) -> transport.WebSocketTransport:
        """Take the WebSocket handshake of a client that starts with this transport. The result is corked."""
        self.connected = self.upgraded = True
        self.connection = self._transport(connection, environ, self._received)
        return self.connection

    def upgrade(self, environ: Environ) -> Any:
        """Answer a WebSocket handshake for this polling session (Engine.IO protocol, "Upgrade")."""
        refusal = handover.handshake_problem(environ)
        if refusal is not None:
            return self.server.refuse_handshake(refusal)
        if self.upgrading or self._probe is not None or self.closing:
            return error(BAD_REQUEST, "this session cannot be upgraded now")
        request = handover.taken_over(environ)
        probe = self._transport(request.socket, environ, self._probed)
        self._probe = probe
        probe.uncork()
        self.server.watch_upgrade(self, probe)
        request.hold_request(lambda: probe.closed)
        return ()

    def give_up_upgrade(self, probe: transport.WebSocketTransport) -> None:
        """End the upgrade over ``probe``, unless it is complete."""
        if self._probe is probe:
            self._probe, self.upgrading = None, False
            probe.close(frames.POLICY_VIOLATION)

    def _transport(
        self, connection: Any, environ: Environ, on_message: Callable[[str | bytes], None]
    ) -> transport.WebSocketTransport:
        opened = transport.WebSocketTransport(
            connection,
            on_message,
            self._lost,
            self.max_message(),
            self.server.send_buffer_bytes,
        )
        opened.cork()
        opened.send(handover.handshake_answer(environ))
        return opened

    # -- called by the hub, must not wait ------------------------------------------------------------------------------

    def _probed(self, data: str | bytes) -> None:
        """Handle a message on the WebSocket before the upgrade is complete."""
        if self.connection is not None:
            self._received(data)
            return
        if self._probe is None:
            return  # closed meanwhile
        if data == PING + "probe" and not self.upgrading:
            self.upgrading = True
            self._probe.send(frames.encode_text(PONG + "probe"))
            self.queue.put(eio_packet.Packet(eio_packet.NOOP))  # ends the waiting poll
        elif data == UPGRADE and self.upgrading and not self.closing and not self.closed:
            self.connection, self._probe = self._probe, None
            self.upgraded, self.upgrading = True, False
            # Sends packets that waited for a poll first, to keep the order.
            waiting = b""
            while not self.queue.empty():
                packet = self.queue.get(block=False)
                if packet is not None and packet.packet_type != eio_packet.NOOP:
                    waiting += _frame(packet.encode())
            if self.polling:  # ends a poll that still waits
                self.queue.put(eio_packet.Packet(eio_packet.NOOP))
            if waiting:
                self.connection.send(waiting)
            self.connection.max_message = self.max_message()
            self._report_fetched()
        else:
            self._probe.close(frames.POLICY_VIOLATION)
            self._probe, self.upgrading = None, False

    def _received(self, data: str | bytes) -> None:
        kind = data[:1]
        if kind == PONG:
            self.unanswered_ping = 0.0
            assert self.connection is not None
            self.connection.chatter()
        elif kind == MESSAGE or isinstance(data, bytes):
            self.messages += 1
            self._dispatch(data if isinstance(data, bytes) else data[1:])
        elif kind == CLOSE:
            green.run_soon(self.close, False, True, self.server.reason.CLIENT_DISCONNECT)
        else:  # includes pings, which only the server sends since version 4
            assert self.connection is not None
            self.connection.close(frames.POLICY_VIOLATION)
            green.run_soon(self.close, False, True, self.server.reason.TRANSPORT_ERROR)

    def _dispatch(self, message: str | bytes) -> None:
        """Handle events concurrently, and packets that change the session (CONNECT, attachments) before later ones."""
        if self._inbox is not None:
            self._inbox.append(message)
            self._waiting += sys.getsizeof(message)
            if self.connection is None:
                return
            if not self._admitted:
                self._limit_waiting(self.connection)
            elif len(self._inbox) > MAX_INBOX or self._waiting > self.server.max_http_buffer_size:
                self.connection.pause()
        elif isinstance(message, str) and message[:1] == "2":
            self._handle_apart(message)
        else:
            self._inbox, self._waiting = deque((message,)), sys.getsizeof(message)
            if not self._admitted and self.connection is not None:
                self.connection.max_message = self.max_message()
            green.run_soon(self._handle_in_order)

    def _handle_apart(self, event: str) -> None:
        """Handle an event without a delay for later messages. Does not wait."""
        if not self.server.handle_at_once(self.sid, event):
            green.run_soon(self.server.handle_message, self.sid, event, True)

    def _limit_waiting(self, connection: transport.WebSocketTransport) -> None:
        """Close the connection of a client that is not admitted and sends more than may wait for that."""
        # The transport refuses a frame that would exceed the limit at its header.
        connection.max_message = self.max_message()
        if not self._admitted and self._waiting > self.server.max_before_connect and self._inbox is not None:
            self._inbox.clear()
            metrics.cut_off.labels("not_connected").inc()
            connection.close(frames.TOO_BIG)
            green.run_soon(self.close, False, True, self.server.reason.TRANSPORT_ERROR)

    def _lost(self, reason: str) -> None:
        if self.connection is None:  # a failed probe; polling continues
            self._probe, self.upgrading = None, False
        elif not self.closed:
            green.run_soon(self._close_lost, reason)

    def hung_up(self) -> None:
        """Close the session: the client has closed the connection of its poll."""
        if not self.closed and self.connection is None:
            green.run_soon(self.close, False, True, self.server.reason.TRANSPORT_CLOSE)

    # -- in a green thread ---------------------------------------------------------------------------------------------

    def _close_lost(self, reason: str) -> None:
        if reason == "slow_consumer" and not self.closing:
            metrics.cut_off.labels("slow_consumer").inc()
            metrics.fan_out.cut_bytes += self._queued  # `transport` counts the buffer of a WebSocket
            _limited_log(logging.INFO, "slow consumer disconnected", connection=self.sid)
        self.close(False, True, reason)

    def _handle_in_order(self) -> None:
        assert self._inbox is not None
        handled = 0
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, str) and message[:1] == "2":
                self._waiting -= sys.getsizeof(message)
                self._handle_apart(message)
                continue
            self._handle_now(message)
            self._waiting -= sys.getsizeof(message)
            if not self._admitted and self.connection is not None:
                self.connection.max_message = self.max_message()
            handled += 1
            if handled % 20 == 0:
                green.sleep()  # a flood of messages must not block other clients
        self._inbox = None
        if self.connection is not None:
            self.connection.resume()

    def _handle_now(self, message: str | bytes) -> None:
        """Handle a message before the next one."""
        new = not self._admitted
        if new:
            self.server.begin_login(self)
        try:
            self.server.handle_message(self.sid, message, False)
        except Exception:  # a bug, which must not lose the messages that follow
            _limited_log.failure("a message could not be handled", connection=self.sid)
        finally:
            if new:
                self.server.end_login(self)


def _size(packet: Any) -> int:
    return len(packet.data) if isinstance(packet.data, (str, bytes)) else 0


def _frame(encoded: str | bytes) -> bytes:
    return frames.encode_text(encoded) if isinstance(encoded, str) else frames.encode_frame(frames.BINARY, encoded)
