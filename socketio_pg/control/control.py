"""Control over all processes: asks each of them, and adds their answers. Follows the functions of SQL in the log."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from socketio_pg.cluster.bus import Bus
from socketio_pg.cluster.processes import Answers
from socketio_pg.control import local_channels, local_clients
from socketio_pg.control.local import LocalControl
from socketio_pg.control.local_channels import LocalChannels
from socketio_pg.core import green
from socketio_pg.core.channels import CONTROL_CHANNEL, validate_channel
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.listing import Listing
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


@dataclass(frozen=True, slots=True)
class Listed:
    """Rows of all processes that have answered: their number, that of all rows that were wanted as far as it is known.

    ``complete``: no process has left rows out that may belong to these. ``found`` has further sums.
    """

    rows: Sequence[dict[str, Any]]
    total: int
    complete: bool
    found: dict[str, Any]
    processes: int
    unanswered: Sequence[Silent]

    def answered(self) -> dict[str, Any]:
        """Return the end of an answer: ``processes``, ``unanswered``."""
        return {"processes": self.processes, "unanswered": [process._asdict() for process in self.unanswered]}


class Control:
    """Lists, ends and reaches connections on all nodes and workers. ``max_payload`` is MAX_PAYLOAD.

    All methods wait for the answers of the other processes. They raise :class:`InvalidRequestError` for invalid
    arguments, and RuntimeError in another thread than the server's.
    """

    #: Seconds for the other processes to answer: to what changes something, and to a list.
    seconds, list_seconds = 3.0, 2.0

    def __init__(
        self, bus: Bus, pubsub: PubSub, local: LocalControl, channels: LocalChannels, max_payload: int
    ) -> None:
        self._bus = bus
        self._local = local
        self._channels = channels
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

    def clients(
        self,
        listing: Listing,
        *,
        sub: str | None = None,
        sid: str | None = None,
        channel: str | None = None,
        measure: float = 0.0,
    ) -> Listed:
        """Return the first connections of a listing with their figures: of all processes, each of which sorts its own.

        ``measure``: seconds between two looks, for rates; otherwise they are those since the last call.
        """
        listing = local_clients.validated(listing)
        request = {"action": "clients", "listing": listing.to_wire(), "sub": sub, "sid": sid, "channel": channel}
        answers, unanswered = self._list(request | {"measure": measure}, measure)
        rows = local_clients.merge([row for answer in answers for row in answer["clients"]], listing)
        total = sum(answer["total"] for answer in answers)
        slow = sum(answer["slow"] for answer in answers)
        complete = all(answer["complete"] for answer in answers)
        return Listed(rows, total, complete, {"slow": slow}, len(answers), unanswered)

    def channels(self, listing: Listing, names: Sequence[str] = ()) -> Listed:
        """Return the channels that may be the first of a listing, and those of ``names``, not in any order.

        If some processes have more than they list, all are asked again for those that others have listed: sums are
        right. A channel that is among the first of no process may be missing: then it is not ``complete``.
        """
        request = {"action": "channels", "listing": listing.to_wire(), "names": list(names)}
        answers, unanswered = self._list(request)
        total = max((answer["total"] for answer in answers), default=0)
        complete = all(answer["complete"] for answer in answers)
        found = local_channels.merge(answers)
        if not complete and len(answers) > 1:
            again = {"listing": Listing(limit=0, sort="channel").to_wire(), "names": list(found)}
            answers, unanswered = self._list(request | again)
            found = local_channels.merge(answers)
        measured = max((answer["measured"] for answer in answers), default=0.0)
        more = {"measured": measured}
        return Listed(list(found.values()), max(total, len(found)), complete, more, len(answers), unanswered)

    def channel(self, name: str) -> Listed:
        """Return one channel or pattern, one row for each process, with some of its subscribers."""
        answers, unanswered = self._list({"action": "channel", "name": name})
        measured = max((answer["measured"] for answer in answers), default=0.0)
        return Listed(answers, len(answers), True, {"measured": measured}, len(answers), unanswered)

    def rates(self, patterns: Sequence[str]) -> dict[str, float]:
        """Return the messages per second of the channels that match each pattern; none in the first second."""
        answers, _ = self._list({"action": "rates", "patterns": list(patterns)})
        found: dict[str, float] = {}
        for answer in answers:
            for pattern, rate in answer["rates"].items():
                found[pattern] = max(found.get(pattern, 0.0), rate)
        return found

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
        return self._with_others(own, self._bus.ask(_KIND, request, self.seconds))

    def _list(self, request: dict[str, Any], seconds: float = 0.0) -> tuple[list[Any], list[Silent]]:
        """Ask all processes at the same time: this one may have much to look at, too."""
        asked: list[Answers] = []
        asking = green.spawn(lambda: asked.append(self._bus.ask(_KIND, request, self.list_seconds + seconds)))
        own = self._act(request)
        asking.wait()
        return self._with_others(own, asked[0])

    @staticmethod
    def _with_others(own: Any, answers: Answers) -> tuple[list[Any], list[Silent]]:
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
            case {"action": "clients", "listing": listing, "measure": measure, **which}:
                chosen = {name: which[name] for name in ("sub", "sid", "channel")}
                return self._list_clients(Listing.from_wire(listing), min(5.0, measure), chosen)
            case {"action": "channels", "listing": listing, "names": list(names)}:
                return self._channels.list(Listing.from_wire(listing), names)
            case {"action": "channel", "name": str(name)}:
                own = self._bus.own
                return self._channels.describe(name) | {"node": own.name, "worker": own.worker}
            case {"action": "rates", "patterns": list(patterns)}:
                rates, measured = self._channels.rates_of(patterns)
                return {"rates": rates, "measured": measured}
            case {"action": "disconnect_user", "sub": str(sub)}:
                return self._local.disconnect_user(sub)
            case {"action": "disconnect_connection", "sid": str(sid)}:
                return self._local.disconnect_connection(sid)
            case {"action": "unsubscribe_user", "sub": str(sub), "channel": str(channel)}:
                return self._local.unsubscribe_user(sub, channel)
            case {"action": "send_to_user", "sub": str(sub), "payload": str(payload)}:
                return self._local.send_to_user(sub, payload)
        raise ValueError("an action of another version")

    def _list_clients(self, listing: Listing, measure: float, chosen: dict[str, Any]) -> dict[str, Any]:
        own = self._bus.own
        if measure > 0:
            self._local.clients.list(listing, **chosen)
            green.sleep(measure)
        answer = self._local.clients.list(listing, **chosen)
        for client in answer["clients"]:
            client |= {"node": own.name, "worker": own.worker}
        return answer

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
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which cannot be sent to other processes
        raise InvalidRequestError(f"{name} is not Unicode text") from None
    return value
