"""What a program gets of a subscription in Python: messages, gaps, positions. Pure, no I/O."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError


class Position(TypedDict):
    """A place in the log. Positions can only be compared within one epoch."""

    epoch: str
    position: int


class _Message(TypedDict):
    channel: str
    payload: Any


class Message(_Message, total=False):
    """A message as in docs/protocol.md: ``channel``, ``payload``, and the rest only for messages of the log.

    ``epoch`` and ``position`` together are what ``since`` takes.
    """

    epoch: str
    position: int
    published_at: str
    replayed: bool


class _Gap(TypedDict):
    channel: str
    tier: Literal["notify", "log"]
    reason: str


class Gap(_Gap, total=False):
    """Messages may have been missed: fetch again what must not be stale.

    ``tier`` says which. ``notify``: those of NOTIFY; all messages of the log still arrive, so who publishes only
    through the log can ignore it. ``log``: those of the log are lost for this subscription. Both are reported when both
    have happened.

    The reasons of docs/protocol.md, and two of the tier ``notify`` that are this client's own: ``client_disconnected``,
    at every reconnect (of the tier ``log`` only where the log was installed meanwhile), and ``slow_handler``, when so
    much was waiting for the handlers that the subscription was interrupted.

    ``since`` and ``until`` (ISO 8601) bound the time that is in doubt: by the server's clock with
    ``database_connection_lost``, otherwise by this machine's. ``epoch`` and ``position`` are there when the
    subscription goes on from another position.
    """

    since: str
    until: str
    epoch: str | None
    position: int


class Subscription(ABC):
    """What :meth:`Subscriber.subscribe` returns: one handler's subscription."""

    channel: str

    @property
    @abstractmethod
    def position(self) -> Position | None:
        """Up to where everything was handed to the handler, the message that it is handling included.

        Store it, and pass it as ``since`` next time. None where the server has no log.
        """


class Member(Subscription):
    """A subscription from within: how far it has come, and whether what the server sends now follows without a hole."""

    def __init__(
        self,
        channel: str,
        handler: Callable[[Message], object],
        history: int | None,
        since: Position | None,
        on_gap: Callable[[Gap], object] | None,
        on_error: Callable[[SocketIOPGError], object] | None,
    ) -> None:
        self.channel = channel
        self.handler, self.on_gap, self.on_error = handler, on_gap, on_error
        self.history = None if since else history
        if since is not None and position_of(since) is None:
            raise InvalidRequestError('since must be like {"epoch": "…", "position": 0}', channel=channel)
        #: Where the handler is, and where what has been received is. The epoch is "" while it is not known: the log was
        #: installed when we had subscribed already.
        self.handled = self.received = None if since is None else position_of(since)
        self.established = self.live = self.ended = False
        #: Since when messages of NOTIFY are missing (seconds of the epoch), and why.
        self.lost: tuple[float, str] | None = None
        #: The last failure, while the first confirmation is waited for.
        self.error: Exception | None = None

    @property
    def position(self) -> Position | None:
        return self.handled.copy() if self.handled and self.handled["epoch"] else None

    @property
    def lacks_epoch(self) -> bool:
        return self.received is not None and not self.received["epoch"]

    def follows(self, start: Position) -> bool:
        mine = self.received
        return mine is not None and mine["epoch"] == start["epoch"] and mine["position"] >= start["position"]


def position_of(body: Mapping[str, Any]) -> Position | None:
    epoch, position = body.get("epoch"), body.get("position")
    if isinstance(epoch, str) and isinstance(position, int):
        return Position(epoch=epoch, position=position)
    return None


class Request(TypedDict, total=False):
    """What ``subscribe`` is asked besides the channel and its filter."""

    since: Position
    history: int


def next_request(
    members: Sequence[Member], is_open: bool, paused: bool
) -> tuple[Literal["subscribe", "unsubscribe"], Request, list[Member]] | None:
    """The request that a channel is to send next, and whose it is; None when all is well.

    ``is_open``: the server has a subscription. ``paused``: members whom it was confirmed to wait for their handlers.
    """
    waiting = [one for one in members if not one.live and not (paused and one.established)]
    waiting += [one for one in members if one.live and one.lacks_epoch]
    if not waiting:
        idle = all(paused and not one.live for one in members)
        return ("unsubscribe", {}, []) if is_open and idle else None
    # Those first that know where they were, from the lowest of their positions on: a replay that begins later, for
    # a new member's history, would take the live messages past them.
    first = next((one.received for one in waiting if one.received and not one.lacks_epoch), None)
    if first is not None:
        epoch = first["epoch"]
        position = min(p["position"] for one in waiting if (p := one.received) and p["epoch"] == epoch)
        since = Position(epoch=epoch, position=position)
        return "subscribe", {"since": since}, [one for one in waiting if one.received == since]
    plain = [one for one in waiting if not one.history]
    if plain:
        return "subscribe", {}, plain
    history = waiting[0].history
    assert history is not None
    return "subscribe", {"history": history}, [one for one in waiting if one.history == history]
