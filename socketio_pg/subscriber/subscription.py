"""Types that Python subscriptions yield (messages, gaps, positions), and the choice of a channel's next request.

Pure, no I/O.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from socketio_pg.core.cursors import SNAPSHOT_PREFIX, Since, parse_cursor
from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import Position
from socketio_pg.subscriber.newest import EphemeralMessage, Newest


class _Message(TypedDict):
    channel: str
    payload: Any


class Message(_Message, TypedDict("_Sender", {"from": dict[str, Any]}, total=False), total=False):
    """A message as in docs/protocol.md: ``channel``, ``payload``, and further keys for messages of the log.

    ``epoch`` and ``position`` together can be passed as ``since``. ``retained``: it is the retained message, which
    comes first.

    ``pattern`` is the pattern through which it came, ``matches`` the list if it came through several subscriptions.
    ``from`` is the client that published it, as the server knows it: ``sub`` of its token, and further claims.
    """

    epoch: str
    position: int
    published_at: str
    replayed: bool
    retained: bool
    pattern: str
    matches: list[str]
    traceparent: str


class Health(TypedDict):
    """Whether the server reaches its database, and since when (ISO 8601, by the server's clock).

    While it is ``unreachable``, nothing arrives and nothing can be published: the connection to the server stays, and
    messages of the log arrive later.
    """

    database: Literal["reachable", "unreachable"]
    since: str


class _Direct(TypedDict):
    payload: Any


class Direct(_Direct, TypedDict("_Sender", {"from": dict[str, Any]}, total=False), total=False):
    """A message that is sent to this user, without a subscription. ``from``: as in :class:`Message`."""


class _Gap(TypedDict):
    tier: Literal["notify", "log"]
    reason: str


class Gap(_Gap, total=False):
    """Messages may have been missed: fetch data again that must not be stale.

    ``tier`` names the messages concerned. ``notify``: messages of NOTIFY; all messages of the log still arrive, so
    applications that publish only through the log can ignore it. ``log``: messages of the log are lost for this
    subscription. A loss in both tiers is reported as two gaps.

    ``reason`` is one of docs/protocol.md, or one of three that this client adds: in tier ``notify``
    ``client_disconnected`` at every reconnect (in tier ``log`` only when the log was installed while disconnected), and
    ``slow_handler`` when the subscription was interrupted because too much was queued for the handlers; in either tier
    ``undecodable`` for a message whose payload Python cannot decode, because it has over 1,024 levels.

    ``since`` and ``until`` (ISO 8601) bound the time in doubt: by the server's clock for
    ``database_connection_lost``, otherwise by this machine's. ``epoch`` and ``position`` are present when the
    subscription continues from another position. The subscription to a pattern has ``pattern`` in place of ``channel``.
    """

    channel: str
    pattern: str
    since: str
    until: str
    epoch: str | None
    position: int


class Live(TypedDict, total=False):
    """The replay has caught up: all messages up to this place were handed to the handler. Without a log it has none.

    It has the ``channel``, or the ``pattern``.
    """

    channel: str
    pattern: str
    epoch: str
    position: int


class Subscription(ABC):
    """One handler's subscription, as returned by :meth:`Subscriber.subscribe`.

    ``live`` is set once the handler has been given all messages of the replay, and cleared when the connection is lost.
    ``channel`` is the channel or the pattern. ``max_rate``: messages per second, of each key, that arrive at most; the
    others are skipped. None without such a rule.
    """

    channel: str
    live: threading.Event
    max_rate: float | None

    @property
    @abstractmethod
    def position(self) -> Position | None:
        """The position of the last message handed to the handler, including the one being handled.

        Store it, and pass it as ``since`` next time. None when the server has no log, and with a snapshot token until
        ``live``: only then the position is a place to continue from.
        """


class Member(Subscription):
    """The internal side of a subscription: its progress, and whether the server's next messages continue it."""

    def __init__(
        self,
        channel: str,
        handler: Callable[[Message], object],
        history: int | None,
        since: Since | None,
        on_gap: Callable[[Gap], object] | None,
        on_error: Callable[[SocketIOPGError], object] | None,
        on_live: Callable[[Live], object] | None = None,
        on_ephemeral: Callable[[EphemeralMessage], object] | None = None,
    ) -> None:
        self.channel = channel
        self.handler, self.on_gap, self.on_error, self._on_live = handler, on_gap, on_error, on_live
        self.on_ephemeral = on_ephemeral
        self.ephemeral = Newest()
        position = _parse_since(since, channel)
        #: Where the subscription begins, if not at a position: fields of the request, until the server confirms it. A
        #: snapshot token stays until `live`.
        self.start = Request()
        if isinstance(position, str):
            self.start["since"] = position
        elif position is None and history:
            self.start["history"] = history
        #: The handler's position and the receiver's. The epoch is "" while it is unknown, because the log was installed
        #: after the subscription.
        self.handled = self.received = None if isinstance(position, str) else position
        #: established: confirmed once. current: the server's messages follow ``received`` without a gap.
        self.established = self.current = self.ended = False
        self.max_rate: float | None = None
        self.live = threading.Event()
        #: The server has told that the replay has caught up; and the handler may store positions.
        self.caught_up = False
        self._exact = not self.snapshot
        #: Called when messages are missing, to load rows and get the token of a new snapshot.
        self.reload: Callable[[], None] | None = None
        #: Messages of NOTIFY that wait until the rows are there; None while there is nothing to load.
        self.held: list[Message] | None = None
        #: The time since which messages of NOTIFY are missing (Unix time), and the reason.
        self.lost: tuple[float, str] | None = None
        #: The last failure before the first confirmation.
        self.error: Exception | None = None

    @property
    def position(self) -> Position | None:
        return self.handled.copy() if self._exact and self.handled and self.handled["epoch"] else None

    @property
    def snapshot(self) -> bool:
        """Whether the messages follow a snapshot, until `live`: their positions are no places to continue from."""
        return str(self.start.get("since")).startswith(SNAPSHOT_PREFIX)

    def load_again(self) -> None:
        """Wait for new rows: :attr:`reload` is called, and then :meth:`restart`."""
        assert self.reload is not None
        self.current, self.start, self.held = False, Request(), []
        self.clear_live()
        self.reload()

    def restart(self, token: str) -> None:
        """Begin again with the token of a snapshot, which may be older than what was received."""
        self.start, self.received, self.held, self._exact = Request(since=token), None, None, False

    def clear_live(self) -> None:
        self.caught_up = False
        self.live.clear()

    def went_live(self, live: Live) -> None:
        """Called like a handler, after all messages of the replay."""
        if not self.caught_up:
            return  # the connection was lost meanwhile
        self._exact = True
        self.live.set()
        if self._on_live is not None:
            self._on_live(live)

    def take_ephemeral(self, _: object) -> None:
        """Called like a handler."""
        for message in self.ephemeral.take():
            if self.on_ephemeral is not None:
                self.on_ephemeral(message)

    @property
    def lacks_epoch(self) -> bool:
        return self.received is not None and not self.received["epoch"]

    def follows(self, start: Position) -> bool:
        """Return whether messages from ``start`` on leave no gap after the received ones."""
        last = self.received
        return last is not None and last["epoch"] == start["epoch"] and last["position"] >= start["position"]


def _parse_since(since: Since | None, channel: str) -> Position | str | None:
    """Return a position, or the text of another place, which only the server understands."""
    if isinstance(since, str):
        return parse_cursor(since) or since
    if isinstance(since, datetime):
        return since.isoformat()
    position = position_of(since) if since is not None else None
    if since is not None and position is None:
        raise InvalidRequestError(
            'since must be like {"epoch": "…", "position": 0}, "EPOCH:POSITION", a time, or a snapshot token',
            channel=channel,
        )
    return position


def place_of(name: str) -> dict[str, str]:
    """Return the field that names a subscription. Only patterns have an asterisk."""
    return {"pattern" if "*" in name else "channel": name}


def position_of(body: Mapping[str, Any]) -> Position | None:
    epoch, position = body.get("epoch"), body.get("position")
    if isinstance(epoch, str) and isinstance(position, int):
        return Position(epoch=epoch, position=position)
    return None


class Request(TypedDict, total=False):
    """The fields of ``subscribe`` besides the channel and its filter."""

    since: Position | str
    history: int


def next_request(
    members: Sequence[Member], is_open: bool, paused: bool, busy: bool = False
) -> tuple[Literal["subscribe", "unsubscribe"], Request, list[Member]] | None:
    """Return the event that a channel sends next, its body, and its members; None when there is nothing to do.

    ``is_open``: the server has a subscription. ``paused``: established members wait until the handlers catch up.
    ``busy``: the replay of a snapshot must not be replaced by another one.
    """
    waiting = [member for member in members if not member.current and not (paused and member.established)]
    waiting = [member for member in waiting if member.held is None]
    if busy:
        waiting = [member for member in waiting if not member.start and member.received is None]
    waiting += [member for member in members if member.current and member.lacks_epoch]
    if not waiting:
        idle = all(paused and not member.current for member in members) and not busy
        return ("unsubscribe", {}, []) if is_open and idle else None
    # Members with a position come first, starting at the lowest one: a later replay, for a new member's history,
    # would make live messages overtake their missing ones.
    placed = [member for member in waiting if member.received and not member.snapshot]
    first = next((member.received for member in placed if not member.lacks_epoch), None)
    if first is not None:
        epoch = first["epoch"]
        position = min(p["position"] for member in placed if (p := member.received) and p["epoch"] == epoch)
        since = Position(epoch=epoch, position=position)
        return "subscribe", {"since": since}, [member for member in placed if member.received == since]
    plain = [member for member in waiting if not member.start]
    start = waiting[0].start if not plain else Request()
    return "subscribe", start, [member for member in waiting if member.start == start]
