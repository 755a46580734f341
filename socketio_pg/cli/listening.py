"""The two sources of ``socketio-pg listen``: the database, through `PubSub`, or a server, through `Subscriber`."""

import contextlib
import decimal
import queue
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from socketio_pg.core import green
from socketio_pg.core.config import Settings
from socketio_pg.core.cursors import MAX_POSITION, Since
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import EncodedMessage, Position
from socketio_pg.log.starts import MAX_HISTORY, requested_start
from socketio_pg.postgres.database import Database, session, wait_green
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.subscriber.subscriber import Health, Subscriber

#: Begin with the oldest message of the log.
EARLIEST: Literal["earliest"] = "earliest"


@dataclass(frozen=True, slots=True)
class OfThisEpoch:
    """A position in the log's current epoch."""

    position: int


@dataclass(frozen=True, slots=True)
class Text:
    """Another `since`, which the log understands: ``EPOCH:POSITION``, a time, or a snapshot token."""

    since: str


#: Where to begin: after a position or another place, with this many of the newest messages, with the oldest one, or
#: (None) now.
Start: TypeAlias = OfThisEpoch | Text | int | Literal["earliest"] | None


@dataclass(frozen=True, slots=True)
class Event:
    """The body is as on the wire; messages of the log also have ``epoch``, gaps have ``tier``.

    ``health`` comes from a server, when its database has become unreachable, or reachable again.
    """

    kind: Literal["message", "gap", "health"]
    body: dict[str, Any]


class Source(Protocol):
    """Subscriptions, and one queue of their events. Raises as :class:`Subscriber` and :class:`PubSub` do."""

    def subscribe(self, channel: str, start: Start, filter: dict[str, Any] | None = None) -> None:
        """Return when all messages that are published from now on will arrive. ``filter`` is as in docs/protocol.md."""

    def next(self, seconds: float) -> Event | None:
        """Return the next event; None when there is none within ``seconds``."""

    def close(self) -> None: ...


def parse_since(text: str) -> OfThisEpoch | Text | Literal["earliest"]:
    """Parse ``earliest``, ``POSITION``, or a ``since`` as in docs/protocol.md. Raises :class:`InvalidRequestError`."""
    if text in (EARLIEST, "start"):  # the second was its name in earlier versions
        return EARLIEST
    if re.fullmatch("[0-9]{1,19}", text) and int(text) <= MAX_POSITION:
        return OfThisEpoch(int(text))
    requested_start({"since": text})
    return Text(text)


class FromDatabase:
    """Listens to the database in this process, and reads the log if it is installed."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url is not None
        wait_green()
        # Raises a precise error when the database is unreachable; the listener would retry.
        with session(Database(settings.database_url), "cli listen"):
            pass
        self._pubsub = PubSub(
            settings.database_url,
            settings.listen_database_url,
            cluster_key=settings.cluster_key,
            schema_owner=settings.schema_owner,
        )
        self._pubsub.database.label = self._pubsub.database.label or "cli listen"
        # The database is reachable. The listener takes a while to detect another problem: see Listener._prove().
        self._pubsub.subscribe_timeout_down = 15.0
        self._events: Any = green.Queue()

    def subscribe(self, channel: str, start: Start, filter: dict[str, Any] | None = None) -> None:
        receiver = _Events(self._events)
        try:
            since = self._since(start)
            if start is not None and self._pubsub.position() is None:
                receiver.gap({"channel": channel, "tier": "log", "reason": "not_installed"})
                start = since = None
            history = start if isinstance(start, int) else None
            self._pubsub.subscribe_receiver(channel, receiver, since=since, history=history, filter=filter)
        except DatabaseUnavailableError as error:
            raise DatabaseUnavailableError(self._pubsub.problem or str(error)) from None

    def _since(self, start: Start) -> Since | None:
        """Return the `since` that ``start`` means; None for a number, for now, and without a log."""
        if start == EARLIEST:
            return self._pubsub.oldest()
        if isinstance(start, Text):
            return start.since
        if not isinstance(start, OfThisEpoch):
            return None
        newest = self._pubsub.position()
        return None if newest is None else Position(epoch=newest["epoch"], position=start.position)

    def next(self, seconds: float) -> Event | None:
        try:
            event: Event = self._events.get(timeout=seconds)
        except green.QueueEmpty:
            return None
        return event

    def close(self) -> None:
        self._pubsub.disconnect()


@dataclass(frozen=True, slots=True)
class _Events:
    """Puts the messages and gaps of a subscription into ``queue``, which is not bounded.

    A message keeps the payload's text: it is not parsed and written again.
    """

    queue: Any

    def receive(self, message: EncodedMessage, extra: Mapping[str, Any]) -> None:
        sender = message.sender()
        more = {} if sender is None else {"from": sender}
        self.queue.put(Event("message", {**message.to_wire(), **more, **extra}))

    def gap(self, gap: dict[str, Any]) -> None:
        self.queue.put(Event("gap", gap))

    def live(self, live: dict[str, Any]) -> None:
        """Nothing is printed."""


class FromServer:
    """Subscribes at a server, as a Socket.IO client."""

    def __init__(self, url: str, token: str | None) -> None:
        # Bounded: when the output is not read, the subscriber interrupts its subscriptions.
        self._events: queue.Queue[Event | SocketIOPGError] = queue.Queue(1000)
        self._closed = False
        self._reachable = True
        self._subscriber = Subscriber(url, token=token, on_health=self._note_health, parse_float=decimal.Decimal)

    def subscribe(self, channel: str, start: Start, filter: dict[str, Any] | None = None) -> None:
        if isinstance(start, str):
            raise InvalidRequestError(f"--since earliest needs the database; with --url, use --history {MAX_HISTORY}")
        since: Since | None = start.since if isinstance(start, Text) else None
        if isinstance(start, OfThisEpoch):
            since = {"epoch": self._epoch(channel), "position": start.position}
        self._subscriber.subscribe(
            channel,
            lambda message: self._put(Event("message", dict(message))),
            since=since,
            history=start if isinstance(start, int) else None,
            filter=filter,
            on_gap=lambda gap: self._put(Event("gap", dict(gap))),
            on_error=self._put,
        )

    def _put(self, event: Event | SocketIOPGError) -> None:
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=0.5)
                return

    def _note_health(self, health: Health) -> None:
        reachable = health["database"] == "reachable"
        if reachable != self._reachable:
            self._reachable = reachable
            self._put(Event("health", dict(health)))

    def _epoch(self, channel: str) -> str:
        """Return the current epoch of the log."""
        asked = self._subscriber.subscribe(channel, lambda message: None)
        position = asked.position
        self._subscriber.unsubscribe(asked)
        if position is None:
            raise InvalidRequestError("the server's database has no log: run 'socketio-pg init'")
        return position["epoch"]

    def next(self, seconds: float) -> Event | None:
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(event, SocketIOPGError):
            raise event
        return event

    def close(self) -> None:
        self._closed = True
        self._subscriber.close()
