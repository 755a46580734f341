"""The Socket.IO namespace /inspector: figures each second, and live messages, for the inspector's readers."""

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from socketio_pg.access.sessions import Sessions
from socketio_pg.core import green
from socketio_pg.core.errors import InvalidRequestError, UnauthorizedError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.inspector.access import InspectorAccess
from socketio_pg.inspector.latency import Sent
from socketio_pg.inspector.now import Now
from socketio_pg.inspector.passes import Reader
from socketio_pg.inspector.tail import Tail
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.pubsub import PubSub

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.inspector"))

#: Its name.
NAMESPACE = "/inspector"

Handler = Callable[[str, dict[str, Any]], dict[str, Any]]


class InspectorNamespace:
    """The clients of the namespace, and what they look at. ``start_server()`` connects the server."""

    #: Seconds between two events `now`, and for other processes to answer.
    interval, seconds = 1.0, 0.9
    #: Bytes that wait for a client, beyond which it gets nothing more for a while.
    max_buffered = 1_000_000

    def __init__(
        self,
        server: Server,
        sessions: Sessions,
        delivery: Delivery,
        pubsub: PubSub,
        access: InspectorAccess,
        now: Now,
        sent: Sent,
        start_server: Callable[[], None],
    ) -> None:
        self._server = server
        self._sessions = sessions
        self._delivery = delivery
        self._pubsub = pubsub
        self._access = access
        self._now = now
        self._sent = sent
        self._start_server = start_server
        self._readers: dict[str, Reader] = {}
        self._lookers: set[str] = set()
        self._tails: dict[str, Tail] = {}
        self._numbers = itertools.count(1)
        self._looking = green.Worker()
        self._ending = green.Worker()
        server.on("connect", self._connect, namespace=NAMESPACE)
        server.on("disconnect", self._disconnect, namespace=NAMESPACE)
        handlers: dict[str, Handler] = {
            "now": self._look,
            "tail": self._tail,
            "tail_pause": self._pause,
            "tail_stop": self._stop,
        }
        for event, handler in handlers.items():
            server.on(event, self._checked(handler), namespace=NAMESPACE)

    def stop(self) -> None:
        """Stop all green threads."""
        self._looking.stop()
        self._ending.stop()
        for tail in self._tails.values():
            tail.stop()

    # -- clients -------------------------------------------------------------------------------------------------------

    def _connect(self, sid: str, environ: dict[str, Any], auth: object = None) -> None:
        session = self._sessions.get(sid)
        assert session is not None
        assert session.claims is not None  # as `InspectorAccess.identify_socket` has made them
        self._readers[sid] = self._access.reader_of(session.claims)
        self._ending.start(self._end_expired)
        self._start_server()

    def _disconnect(self, sid: str, *reason: object) -> None:
        self._readers.pop(sid, None)
        self._lookers.discard(sid)
        tail = self._tails.pop(sid, None)
        if tail is not None:
            tail.stop()

    def _end_expired(self) -> None:
        """Disconnect clients whose sign-in has ended, also those that have renewed a token of another namespace."""
        while self._readers:
            for sid, reader in list(self._readers.items()):
                if reader.until is not None and time.time() >= reader.until:
                    self._readers.pop(sid, None)
                    error = UnauthorizedError("the sign-in has ended")
                    green.run_soon(self._delivery.cut_off, sid, error, "expired", NAMESPACE)
            green.sleep(self.interval)

    def _checked(self, handler: Handler) -> Callable[..., dict[str, Any]]:
        """Return an event handler that takes one object of a signed-in client, and acknowledges with ``ok``."""

        def handle(sid: str, *arguments: Any) -> dict[str, Any]:
            if sid not in self._readers:
                raise UnauthorizedError("the sign-in has ended")
            if len(arguments) != 1 or not isinstance(arguments[0], dict):
                raise InvalidRequestError("this event takes one object")
            return {"ok": True, **handler(sid, arguments[0])}

        return handle

    def _emit(self, sid: str, event: str, body: dict[str, Any]) -> bool:
        """Send an event. Return False if the client reads too slowly, or has left."""
        socket = self._server.manager.socket_of(sid, NAMESPACE)
        if socket is None or socket.buffered > self.max_buffered:
            return False
        with self._sent.uncounted():
            self._server.manager.emit(event, body, NAMESPACE, to=sid, ignore_queue=True)
        return True

    # -- now -----------------------------------------------------------------------------------------------------------

    def _look(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        if _boolean(request, "on"):
            self._lookers.add(sid)
            self._looking.start(self._tell_lookers)
        else:
            self._lookers.discard(sid)
        return {}

    def _tell_lookers(self) -> None:
        while self._lookers:
            began = time.monotonic()
            try:
                body = self._now.collect(series=False, seconds=self.seconds)
            except Exception:  # a bug: the next figures may be there
                _limited_log.failure("the figures of the inspector could not be collected")
            else:
                for sid in list(self._lookers):
                    self._emit(sid, "now", body)
            green.sleep(max(0.1, self.interval - (time.monotonic() - began)))

    # -- tail ----------------------------------------------------------------------------------------------------------

    def _tail(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        names = [request[key] for key in ("channel", "pattern") if key in request]
        if len(names) != 1 or not isinstance(names[0], str):
            raise InvalidRequestError("a tail is of one channel or pattern, which is a string")
        if ("pattern" in request) != ("*" in names[0]):
            raise InvalidRequestError("a pattern has a '*', and a channel has none")
        former = self._tails.pop(sid, None)
        if former is not None:
            former.stop()
        tail = Tail(next(self._numbers), self._pubsub, lambda event, body: self._emit(sid, event, body))
        self._tails[sid] = tail
        try:
            return tail.start(names[0], request.get("since"), request.get("history"), request.get("filter"))
        except BaseException:
            tail.stop()
            if self._tails.get(sid) is tail:
                del self._tails[sid]
            raise

    def _pause(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        tail = self._tails.get(sid)
        if tail is None:
            raise InvalidRequestError("there is no tail")
        return tail.set_paused(_boolean(request, "paused"))

    def _stop(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        tail = self._tails.pop(sid, None)
        if tail is not None:
            tail.stop()
        return {}


def _boolean(request: dict[str, Any], name: str) -> bool:
    value = request.get(name)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false")
    return value
