"""Runs event handlers and answers every event, whatever its handler does."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import socketio

from socketio_pg.core import green, metrics
from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.engine import frames
from socketio_pg.protocol.packets import ACK, quick_packet

logger = logging.getLogger("socketio_pg.protocol")


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a handler: an event for the client, and its acknowledgement if the client asked for one.

    ``then`` is called afterwards, and may wait. ``once``: a large answer, which is not an event too if the client asked
    for an acknowledgement.
    """

    event: str
    body: dict[str, Any]
    then: Callable[[], None] | None = None
    once: bool = False


class AnsweringServer(socketio.Server):  # type: ignore[misc]
    """A Socket.IO server whose handlers raise :class:`SocketIOPGError` or return :class:`Answer`.

    A failure is answered with the acknowledgement ``{"ok": false, "error": {code, message}}`` when the client asked
    for one, otherwise with the event ``error``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: Logs events that clients can trigger.
        self._limited_log = RateLimitedLog(logger)

    def _handle_event_internal(
        self, server: Any, sid: str, eio_sid: str, data: list[Any], namespace: str, id: int | None
    ) -> None:
        try:
            result = self._trigger_event(data[0], namespace, sid, *data[1:])
            if result is self.not_handled:
                raise InvalidRequestError(f"there is no event '{showable(data[0])}'")
        except SocketIOPGError as error:
            self.answer_error(sid, eio_sid, namespace, id, error)
        except green.FAILURES as error:
            if _was_called_wrongly(error):
                self._limited_log(
                    logging.WARNING, "the arguments of an event do not fit its handler: %s", error,
                    connection=eio_sid,
                )  # fmt: skip
                self.answer_error(sid, eio_sid, namespace, id, InvalidRequestError("this event takes other arguments"))
                return
            self._limited_log.failure("the handler of an event failed", connection=eio_sid)
            self.answer_error(sid, eio_sid, namespace, id, SocketIOPGError("the server failed to handle this"))
        else:
            if isinstance(result, Answer):
                if not self._has(eio_sid, sid, namespace):
                    pass  # the event would reach the connection that has recovered the session since
                elif id is None:
                    self.manager.emit(result.event, result.body, namespace, to=sid, ignore_queue=True)
                else:
                    with self._corked(eio_sid):
                        if not result.once:
                            self.manager.emit(result.event, result.body, namespace, to=sid, ignore_queue=True)
                        self._acknowledge(eio_sid, namespace, id, [{"ok": True, **result.body}])
                if result.then is not None:
                    green.run_soon(result.then)
            elif id is not None:
                answer = list(result) if isinstance(result, tuple) else [] if result is None else [result]
                try:
                    self._acknowledge(eio_sid, namespace, id, answer)
                except (TypeError, ValueError, RecursionError):
                    # Often a value from the client that the handler returns.
                    self._limited_log(
                        logging.WARNING, "the return value of an event handler cannot be encoded as JSON",
                        connection=eio_sid,
                    )  # fmt: skip
                    failure = SocketIOPGError("the server failed to handle this")
                    self.answer_error(sid, eio_sid, namespace, id, failure)

    @contextlib.contextmanager
    def _corked(self, eio_sid: str) -> Iterator[None]:
        """Send everything that the body sends to this client in one call."""
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

    def answer_error(self, sid: str, eio_sid: str, namespace: str, id: int | None, error: SocketIOPGError) -> None:
        """Answer an event with an error: an acknowledgement if it has an ``id``, otherwise the event ``error``."""
        metrics.errors.labels(error.code).inc()
        if id is not None:
            self._acknowledge(eio_sid, namespace, id, [{"ok": False, "error": error.to_wire()}])
            return
        if not self._has(eio_sid, sid, namespace):
            return
        event: dict[str, str] = error.to_wire()
        if error.channel is not None:
            event["channel"] = error.channel
        elif error.pattern is not None:
            event["pattern"] = error.pattern
        self.emit("error", event, to=sid, namespace=namespace, ignore_queue=True)

    def _has(self, eio_sid: str, sid: str, namespace: str) -> bool:
        """Return whether a client still has the connection of its request."""
        return bool(self.manager.eio_sid_from_sid(sid, namespace) == eio_sid)

    def _acknowledge(self, eio_sid: str, namespace: str, id: int, answer: list[Any]) -> None:
        self.send_packet(eio_sid, ACK, namespace, answer, id)

    def send_packet(self, eio_sid: str, kind: int, namespace: str, data: Any, id: int | None = None) -> None:
        """Send a Socket.IO packet. Raises the errors of data that cannot be encoded."""
        socket = self.eio.sockets.get(eio_sid)
        connection = None if socket is None else socket.connection
        text = None if connection is None else quick_packet(kind, namespace, data, id)
        if connection is None or text is None:
            self._send_packet(eio_sid, self.packet_class(kind, namespace=namespace, id=id, data=data))
        else:
            connection.send(frames.encode_text(f"4{text}"))


def _was_called_wrongly(error: BaseException) -> bool:
    """Return whether the call itself failed, and not the handler: the client sent too many or too few arguments."""
    traceback = error.__traceback__
    if not isinstance(error, TypeError) or traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = str(traceback.tb_frame.f_globals.get("__name__"))
    return module.partition(".")[0] in ("socketio", "flask_socketio")


def showable(name: str) -> str:
    """Return a name from a client, shortened and valid as JSON, for an error message."""
    return name[:200].encode("utf-8", "replace").decode()
