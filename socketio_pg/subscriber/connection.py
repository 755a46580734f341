"""One connection of a Subscriber: the stock Socket.IO client, whose packets are handled in order."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import engineio
import socketio

from socketio_pg.core.errors import (
    AuthenticationUnavailableError,
    DatabaseUnavailableError,
    ForbiddenError,
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
    SocketIOPGError,
    UnauthorizedError,
)


class EngineClient(engineio.Client):  # type: ignore[misc]
    """Engine.IO's client, whose packets are handled one after the other in the thread that reads them.

    The stock one starts a thread for each packet, and they overtake one another: a message would be taken for a
    duplicate because a later one had come first.
    """

    #: When the last packet came (seconds of the epoch), and its size in characters.
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
            # Not Socket.IO's event of that name, which does not come while it is still connecting.
            self.on_disconnect()
        return result

    def disconnect(self, abort: bool = False, reason: str | None = None) -> None:
        # When the server ends the connection it is this thread that reads, and it cannot wait for itself.
        super().disconnect(abort or threading.current_thread() is self.read_loop_task, reason)


class SocketClient(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[engineio.Client]:
        return EngineClient


class Connection:
    """One connection, never used again when it is lost: so nothing of it can be taken for something of the next."""

    def __init__(
        self,
        options: Mapping[str, Any],
        lock: threading.RLock,
        receive: Callable[["Connection", str, Any], None],
    ) -> None:
        self._lock = lock
        self._receive = receive
        # websocket-client checks UTF-8 in Python, byte by byte: 0.3 s for a megabyte, in which no ping is answered. Its
        # recv() decodes strictly all the same. A copy, because python-engineio takes the headers out of it.
        websocket = {"skip_utf8_validation": True, **(options.get("websocket_extra_options") or {})}
        self._client = SocketClient(**{**options, "websocket_extra_options": websocket})
        #: What the server said when it refused the connection.
        self._refused: Any = None
        for event in ("connect", "event", "gap", "subscribed", "unsubscribed", "token_expiring"):
            self._client.on(event, self._listener(event))
        self._client.on("connect_error", self._note_refusal)
        self._client.eio.on_disconnect = self._listener("disconnect")

    @property
    def heard(self) -> float:
        """When the server was last heard, in seconds of the epoch."""
        return float(self._client.eio.heard)

    @property
    def size(self) -> int:
        """Characters of the packet that is being handled."""
        return int(self._client.eio.size)

    def connect(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        """Raises :class:`ConnectionError`, :class:`UnauthorizedError`, :class:`AuthenticationUnavailableError`."""
        try:
            self._client.connect(url, wait_timeout=timeout, **options)
        except (socketio.exceptions.ConnectionError, OSError, ValueError) as error:
            refusal = self._refused.get("data") if isinstance(self._refused, dict) else None
            if isinstance(refusal, dict):
                kind = as_error(str(refusal.get("code")), str(refusal.get("message")))
                if isinstance(kind, (UnauthorizedError, AuthenticationUnavailableError)):
                    raise kind from None
            raise ConnectionError(f"no connection to {url}: {error}") from error

    def emit(self, event: str, body: Mapping[str, Any], answered: Callable[[Any], None]) -> bool:
        """Send it; False when the connection is lost. ``answered`` is called in the reading thread, with the lock."""

        def locked(*answer: Any) -> None:
            with self._lock:
                answered(answer[0] if answer else None)

        try:
            self._client.emit(event, dict(body), callback=locked)
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


_ERRORS: dict[str, type[SocketIOPGError]] = {
    error.code: error
    for error in (
        InvalidRequestError, InvalidChannelError, PayloadTooLargeError, DatabaseUnavailableError,
        UnauthorizedError, AuthenticationUnavailableError, ForbiddenError,
    )
}  # fmt: skip
#: Worth another try, later. So is "internal" for what has worked before.
TRANSIENT = frozenset({"database_unavailable", "rate_limited", "no_answer"})


def answer_error(answer: Any, channel: str | None = None) -> tuple[str, SocketIOPGError] | None:
    """The error that ``answer`` is, with its wire code; None when it is none."""
    if isinstance(answer, dict) and answer.get("ok") is True:
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    code, message = str(error.get("code", "internal")), str(error.get("message", "the server did not say why"))
    return code, as_error(code, message, channel)


def as_error(code: str, message: str, channel: str | None = None) -> SocketIOPGError:
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(message, channel=channel)
    return SocketIOPGError(message if code == "internal" else f"{code}: {message}", channel=channel)
