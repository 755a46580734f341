"""One Socket.IO connection on asyncio: a WebSocket without long-polling, whose packets are handled in order.

Not the stock client: that one starts a task for each message, and these may overtake one another. This one handles each
packet when it is read, and sends without waiting, so that it can share its callers' code with threads.
"""

import asyncio
import contextlib
import itertools
import json
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import wsproto
from wsproto.events import (
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from socketio_pg.aio.waiting import within
from socketio_pg.core.messages import loads
from socketio_pg.subscriber.answers import place_of_undecodable, refusal_error

#: Seconds to wait for the connection's end after a close.
_CLOSE_SECONDS = 2.0


class Connection:
    """One connection. Never reused after a loss, so that its late events cannot be mistaken for the next one's.

    ``receive(connection, event, body)`` is called for each event of the server, and for ``connect``.
    """

    def __init__(
        self,
        url: str,
        socketio_path: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        receive: Callable[["Connection", str, Any], None],
        parse_float: Callable[[str], Any] = float,
    ) -> None:
        self._url = urlsplit(url)
        if self._url.scheme not in ("http", "https", "ws", "wss") or not self._url.hostname:
            raise ValueError(f"the server's URL must be like https://example.com, not {url!r}")
        self._path = f"/{socketio_path.strip('/')}/"
        self._headers = headers
        self._tls = tls
        self._receive = receive
        self._parse_float = parse_float
        #: When the last packet arrived (Unix time), and its size in characters.
        self.heard = 0.0
        self.size = 0
        self.connected = self.lost = False
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._websocket = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._auth: Any = None
        #: Why the server does not accept the connection.
        self._refused: Exception | None = None
        self._ids = itertools.count(1)
        self._answers: dict[int, Callable[[Any], None]] = {}
        #: Seconds without a packet after which the connection counts as lost: the server sends pings.
        self._patience = 0.0
        self._alive = 0.0
        self._watchdog: asyncio.TimerHandle | None = None

    async def open(self, auth: Any) -> None:
        """Connect. Raises :class:`OSError`, :class:`UnauthorizedError`, :class:`AuthenticationUnavailableError`.

        The caller must call :meth:`abort` if it raises anything.
        """
        url = self._url
        assert url.hostname is not None
        self._auth = auth
        secure = url.scheme in ("https", "wss")
        self._reader, self._writer = await asyncio.open_connection(
            url.hostname,
            url.port or (443 if secure else 80),
            ssl=(self._tls or ssl.create_default_context()) if secure else None,
        )
        query = f"{url.query}&" if url.query else ""
        host = url.netloc.rpartition("@")[2]
        target = f"{self._path}?{query}transport=websocket&EIO=4"
        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        self._send(Request(host=host, target=target, extra_headers=headers))
        while not self.connected:
            await self._read_some()
            if self._refused is not None:
                raise self._refused
            if self.lost:
                raise ConnectionError("the server closed the connection")

    async def read(self) -> None:
        """Handle the server's packets until the connection is lost."""
        while not self.lost:
            await self._read_some()

    def emit(self, event: str, body: Mapping[str, Any], answered: Callable[[Any], None] | None) -> bool:
        """Send an event; return False when the connection is lost. ``answered`` is called with the server's answer."""
        if self.lost:
            return False
        number: int | str = ""
        if answered is not None:
            number = next(self._ids)
            self._answers[number] = answered
        self._send_packet(f"42{number}{json.dumps([event, body], separators=(',', ':'))}")
        return True

    async def close(self) -> None:
        """Tell the server that the connection ends, and close it. Raises nothing."""
        if not self.lost:
            with contextlib.suppress(ProtocolError):
                self._send_packet("41")
                self._send(CloseConnection(1000))
        if self._writer is not None:
            self._writer.close()
            # Only until everything is sent: the server need not confirm.
            with contextlib.suppress(OSError, TimeoutError):
                await within(_CLOSE_SECONDS, self._writer.wait_closed())
        self.abort()

    def abort(self) -> None:
        """Close the connection now. Idempotent."""
        self.lost = True
        self._answers.clear()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._writer is not None:
            self._writer.transport.abort()

    # -- the WebSocket -------------------------------------------------------------------------------------------------

    async def _read_some(self) -> None:
        assert self._reader is not None
        try:
            data = await self._reader.read(1 << 16)
            self._websocket.receive_data(data or None)
            for event in self._websocket.events():
                self._handle(event)
        except (OSError, ProtocolError):
            data = b""
        if not data:
            self.lost = True

    def _handle(self, event: Any) -> None:
        if isinstance(event, TextMessage):
            self._parts.append(event.data)
            if event.message_finished:
                packet = "".join(self._parts)
                self._parts.clear()
                self._handle_packet(packet)
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, RejectConnection):
            self._refused = ConnectionError(f"the server answered with status {event.status_code}")
        elif isinstance(event, CloseConnection):
            self.lost = True
        # Not the handshake's confirmation, binary messages, which the server does not send, and pongs.

    def _send(self, event: Any) -> None:
        assert self._writer is not None
        self._writer.write(self._websocket.send(event))

    def _send_packet(self, packet: str) -> None:
        self._send(TextMessage(packet))

    # -- Engine.IO and Socket.IO ---------------------------------------------------------------------------------------

    def _handle_packet(self, packet: str) -> None:
        """Handle an Engine.IO packet. https://github.com/socketio/engine.io-protocol"""
        if self.lost:
            return
        self.heard, self.size = time.time(), len(packet)
        self._alive = time.monotonic()
        kind = packet[:1]
        if kind == "4":
            self._handle_message(packet[1:])
        elif kind == "2":
            self._send_packet(f"3{packet[1:]}")
        elif kind == "0":
            opened = json.loads(packet[1:])
            self._patience = (opened["pingInterval"] + opened["pingTimeout"]) / 1000
            self._watch()
            self._send_packet(f"40{json.dumps(self._auth or {})}")
        elif kind == "1":
            self.lost = True

    def _handle_message(self, text: str) -> None:
        """Handle a Socket.IO packet of the namespace ``/``. https://github.com/socketio/socket.io-protocol"""
        kind = text[:1]
        if kind == "2":
            try:
                event, *arguments = loads(text[text.index("[") :], self._parse_float)
            except ValueError:
                place = place_of_undecodable(text)
                if place is None:
                    raise ProtocolError("a packet cannot be decoded") from None
                event, arguments = "undecodable", [place]
            self._receive(self, event, arguments[0] if arguments else None)
        elif kind == "3":
            start = text.index("[")
            answered = self._answers.pop(int(text[1:start]), None)
            if answered is not None:
                arguments = loads(text[start:])
                answered(arguments[0] if arguments else None)
        elif kind == "0":
            self.connected = True
            self._receive(self, "connect", None)
        elif kind == "4":
            body = json.loads(text[1:] or "null")
            reason = body.get("message") if isinstance(body, dict) else body
            self._refused = refusal_error(body) or ConnectionError(f"the server refused the connection: {reason}")
        elif kind == "1":
            self.lost = True

    def _watch(self) -> None:
        """Abort the connection once nothing has arrived for longer than the server's pings allow."""
        left = self._alive + self._patience - time.monotonic()
        if left <= 0:
            self.abort()
        else:
            self._watchdog = asyncio.get_running_loop().call_later(left, self._watch)
