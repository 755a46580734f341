"""One connection of a Subscriber: the stock Socket.IO client, changed to handle packets in order."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import engineio
import socketio
import socketio.packet

from socketio_pg.core.messages import loads
from socketio_pg.subscriber.answers import place_of_undecodable, refusal_error

#: The events of the server that the subscriber handles.
_EVENTS = (
    "server_hello", "health", "event", "undecodable", "gap", "live", "subscribed", "unsubscribed", "token_expiring",
    "presence", "presence_state", "presence_ended", "direct", "error",
)  # fmt: skip


class _JSON:
    """The ``json`` module of a connection's packets. The stock client's refuses integers of over 100 digits."""

    dumps = staticmethod(json.dumps)

    def __init__(self, parse_float: Callable[[str], Any]) -> None:
        self._parse_float = parse_float

    def loads(self, text: str) -> Any:
        return loads(text, self._parse_float)


class Packet(socketio.packet.Packet):  # type: ignore[misc]
    """Socket.IO packet. A message whose payload cannot be decoded becomes the event ``undecodable``."""

    def decode(self, encoded_packet: Any) -> Any:
        try:
            return super().decode(encoded_packet)
        except ValueError:
            place = place_of_undecodable(encoded_packet)
            if place is None:
                raise
            self.data = ["undecodable", place]
            return 0


class EngineClient(engineio.Client):  # type: ignore[misc]
    """Engine.IO client that handles packets one after the other, in the thread that reads them.

    The stock client starts a thread per packet, and those overtake one another: a message that a later one has
    overtaken would be dropped as a duplicate.
    """

    #: When the last packet arrived (Unix time), and its size in characters.
    heard = 0.0
    size = 0
    on_disconnect: Callable[[], None] = staticmethod(lambda: None)

    def _receive_packet(self, packet: Any) -> None:
        self.heard = time.time()
        self.size = len(packet.data) if isinstance(packet.data, (str, bytes)) else 0
        super()._receive_packet(packet)

    def _trigger_event(self, event: str, *arguments: Any, **options: Any) -> Any:
        result = super()._trigger_event(event, *arguments, **options | {"run_async": False})
        if event == "disconnect":
            # Socket.IO's own disconnect event is not triggered while the client is still connecting.
            self.on_disconnect()
        return result

    def disconnect(self, abort: bool = False, reason: str | None = None) -> None:
        # When the server closes the connection this runs in the reading thread, which cannot join itself.
        # None: another thread is connecting, and has not started the reading thread yet.
        no_wait = self.read_loop_task is None or threading.current_thread() is self.read_loop_task
        super().disconnect(abort or no_wait, reason)


class SocketClient(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[engineio.Client]:
        return EngineClient

    def disconnect(self) -> None:
        # A copy: the thread that reads may remove a namespace meanwhile, because the server disconnects the client.
        for namespace in list(self.namespaces):
            self._send_packet(self.packet_class(socketio.packet.DISCONNECT, namespace=namespace))
        self.eio.disconnect()


class Connection:
    """One connection. Never reused after a loss, so that its late events cannot be mistaken for the next one's."""

    def __init__(
        self,
        options: Mapping[str, Any],
        lock: threading.RLock,
        receive: Callable[["Connection", str, Any], None],
        parse_float: Callable[[str], Any] = float,
    ) -> None:
        self._lock = lock
        self._receive = receive
        # websocket-client validates UTF-8 in Python, byte by byte: 0.3 s per megabyte, in which no ping is answered.
        # Its recv() decodes strictly anyway. A copy, because python-engineio removes the headers from the dictionary.
        websocket = {"skip_utf8_validation": True, **(options.get("websocket_extra_options") or {})}
        # A class of its own: python-socketio keeps the JSON module in the class.
        packet = type("Packet", (Packet,), {"json": _JSON(parse_float)})
        self._client = SocketClient(**{"serializer": packet, **options, "websocket_extra_options": websocket})
        #: The body of the server's connect_error.
        self._refused: Any = None
        for event in ("connect", *_EVENTS):
            self._client.on(event, self._listener(event))
        self._client.on("connect_error", self._note_refusal)
        self._client.eio.on_disconnect = self._listener("disconnect")

    @property
    def heard(self) -> float:
        """When the last packet arrived, in Unix time."""
        return float(self._client.eio.heard)

    @property
    def size(self) -> int:
        """The size of the current packet, in characters."""
        return int(self._client.eio.size)

    def connect(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        """Raises :class:`ConnectionError`, :class:`UnauthorizedError`, :class:`AuthenticationUnavailableError`."""
        try:
            self._client.connect(url, wait_timeout=timeout, **options)
        except (socketio.exceptions.ConnectionError, OSError, ValueError) as error:
            refusal = refusal_error(self._refused)
            if refusal is not None:
                raise refusal from None
            raise ConnectionError(f"no connection to {url}: {error}") from error

    def emit(self, event: str, body: Mapping[str, Any], answered: Callable[[Any], None] | None) -> bool:
        """Send an event; return False when the connection is lost.

        ``answered`` is called with the server's answer, in the reading thread and with the lock held.
        """

        def locked(*answer: Any) -> None:
            assert answered is not None
            with self._lock:
                answered(answer[0] if answer else None)

        try:
            self._client.emit(event, dict(body), callback=None if answered is None else locked)
        except socketio.exceptions.BadNamespaceError:
            return False
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._client.disconnect()

    def _note_refusal(self, *arguments: Any) -> None:
        self._refused = arguments[0] if arguments else None

    def _listener(self, event: str) -> Callable[..., None]:
        def listen(*arguments: Any) -> None:
            with self._lock:
                self._receive(self, event, arguments[0] if arguments else None)

        return listen
