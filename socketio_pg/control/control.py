"""Control over all processes: asks each of them, and adds their answers. Follows the functions of SQL in the log."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from socketio_pg.cluster.bus import Bus
from socketio_pg.control.local import LocalControl
from socketio_pg.core import green
from socketio_pg.core.channels import CONTROL_CHANNEL, validate_channel
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import check_size, encode_payload
from socketio_pg.core.patterns import is_pattern, validate_pattern
from socketio_pg.pubsub.pubsub import PubSub

logger = logging.getLogger("socketio_pg.control")
_limited_log = RateLimitedLog(logger)

#: The kind of question on the bus.
_KIND = "control"
#: The most connections of a list, and how many it has by default.
MAX_CONNECTIONS, DEFAULT_CONNECTIONS = 1_000, 100
#: The maximum lengths of a user's name, of a connection's id, and of a room's name, in characters.
MAX_SUB, MAX_SID, MAX_ROOM = 1_000, 100, 1_000


class Silent(NamedTuple):
    """A process that did not answer: the name of its node, and its slot there; None for the only one."""

    node: str
    worker: int | None


@dataclass(frozen=True, slots=True)
class Done:
    """The ``count`` of connections or subscriptions that it was done to, the number of ``processes`` that did it, and
    those that did not answer in time.
    """

    count: int
    processes: int
    unanswered: Sequence[Silent]

    def to_wire(self) -> dict[str, Any]:
        return _counted(self)


@dataclass(frozen=True, slots=True)
class Connections:
    """The newest ``connections``, as objects (docs/identity.md), the ``count`` of all, the number of ``processes`` that
    have answered, and those that did not in time.
    """

    connections: Sequence[dict[str, Any]]
    count: int
    processes: int
    unanswered: Sequence[Silent]

    def to_wire(self) -> dict[str, Any]:
        return {"connections": self.connections, **_counted(self)}


class Control:
    """Lists, ends and reaches connections on all nodes and workers. ``max_payload`` is MAX_PAYLOAD.

    All methods wait for the answers of the other processes. They raise :class:`InvalidRequestError` for invalid
    arguments, and RuntimeError in another thread than the server's.
    """

    #: Seconds for the other processes to answer.
    seconds = 3.0

    def __init__(self, bus: Bus, pubsub: PubSub, local: LocalControl, max_payload: int) -> None:
        self._bus = bus
        self._local = local
        self._max_payload = max_payload
        #: Actions of the log, in their order.
        self._logged: list[dict[str, Any]] = []
        self._worker = green.Worker()
        bus.answer(_KIND, lambda sender, body: self._act(body))
        pubsub.receive_logged(CONTROL_CHANNEL, self._receive, self._missed)

    def connections(
        self, sub: str | None, sid: str | None = None, limit: int = DEFAULT_CONNECTIONS, room: str | None = None
    ) -> Connections:
        """Return the newest connections: all, those of the user ``sub``, or the one with the id ``sid``.

        ``room``: of these, only those that are in a Socket.IO room, or subscribed to the channel of this name.
        """
        if not isinstance(limit, int) or not 1 <= limit <= MAX_CONNECTIONS:
            raise InvalidRequestError(f"limit must be a whole number from 1 to {MAX_CONNECTIONS}")
        if sub is not None:
            _check_text("sub", sub, MAX_SUB)
        if sid is not None:
            _check_text("sid", sid, MAX_SID)
        if room is not None:
            _check_text("room", room, MAX_ROOM)
        answers, unanswered = self._everywhere(
            {"action": "connections", "sub": sub, "sid": sid, "limit": limit, "room": room}
        )
        found = [connection for answer in answers for connection in answer["connections"]]
        found.sort(key=lambda connection: connection["since"], reverse=True)
        return Connections(found[:limit], sum(answer["count"] for answer in answers), len(answers), unanswered)

    def disconnect_user(self, sub: str) -> Done:
        """Disconnect all connections of a user, and forget sessions that could be recovered."""
        return self._do({"action": "disconnect_user", "sub": _check_text("sub", sub, MAX_SUB)})

    def disconnect_connection(self, sid: str) -> Done:
        """Disconnect one connection."""
        return self._do({"action": "disconnect_connection", "sid": _check_text("sid", sid, MAX_SID)})

    def unsubscribe_user(self, sub: str, channel: str) -> Done:
        """End the subscriptions of a user that get messages of ``channel``, which may be a pattern."""
        if isinstance(channel, str) and is_pattern(channel):
            validate_pattern(channel)
        else:
            validate_channel(channel)
        return self._do({"action": "unsubscribe_user", "sub": _check_text("sub", sub, MAX_SUB), "channel": channel})

    def send_to_user(self, sub: str, payload: object) -> Done:
        """Send the event `direct` with ``payload``, any JSON value, to all connections of a user.

        Raises :class:`PayloadTooLargeError`.
        """
        text = encode_payload(payload)
        check_size(text, self._max_payload)
        return self._do({"action": "send_to_user", "sub": _check_text("sub", sub, MAX_SUB), "payload": text})

    def _do(self, request: dict[str, Any]) -> Done:
        counts, unanswered = self._everywhere(request)
        return Done(sum(counts), len(counts), unanswered)

    def _everywhere(self, request: dict[str, Any]) -> tuple[list[Any], list[Silent]]:
        own = self._act(request)
        answers = self._bus.ask(_KIND, request, self.seconds)
        return [own, *answers.values()], [Silent(process.name, process.worker) for process in answers.silent]

    # -- on this process -----------------------------------------------------------------------------------------------

    def _act(self, request: dict[str, Any]) -> Any:
        """Do on this process what :meth:`_everywhere` does on all. Return the answer."""
        match request:
            case {"action": "connections", "sub": sub, "sid": sid, "limit": limit, "room": room}:
                own = self._bus.own
                answer = self._local.connections(sub, sid, limit, room)
                for connection in answer["connections"]:
                    connection |= {"node": own.name, "worker": own.worker}
                return answer
            case {"action": "disconnect_user", "sub": str(sub)}:
                return self._local.disconnect_user(sub)
            case {"action": "disconnect_connection", "sid": str(sid)}:
                return self._local.disconnect_connection(sid)
            case {"action": "unsubscribe_user", "sub": str(sub), "channel": str(channel)}:
                return self._local.unsubscribe_user(sub, channel)
            case {"action": "send_to_user", "sub": str(sub), "payload": str(payload)}:
                return self._local.send_to_user(sub, payload)
        raise ValueError("an action of another version")

    def _receive(self, payloads: Sequence[str]) -> None:
        """Receive actions of the functions of SQL, which have committed."""
        self._logged += [json.loads(text) for text in payloads]
        self._worker.start(self._act_in_order)

    def _act_in_order(self) -> None:
        while self._logged:
            request = self._logged.pop(0)
            try:
                self._act(request)
            except Exception:  # of another version, or a bug: the next actions must be done
                _limited_log.failure("an action of the log failed")

    def _missed(self) -> None:
        _limited_log(
            logging.WARNING, "messages of the log are lost: disconnect_user() and others may have had no effect"
        )


def _counted(found: Done | Connections) -> dict[str, Any]:
    unanswered = [process._asdict() for process in found.unanswered]
    return {"count": found.count, "processes": found.processes, "unanswered": unanswered}


def _check_text(name: str, value: object, most: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise InvalidRequestError(f"{name} must be a text of 1 to {most} characters")
    return value
