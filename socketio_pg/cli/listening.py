"""Where ``socketio-pg listen`` gets its messages: from the database, with the server's own parts, or from a server.

Both take subscriptions, and then give one event after the other.
"""

import contextlib
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from socketio_pg.core import green
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.log.replay import MAX_HISTORY, LogPosition, Replay, find_start
from socketio_pg.postgres.database import Database, session
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.pubsub.filters import Filter, parse_filter
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.subscriber.subscriber import Position, Subscriber

#: From the oldest message that there is.
START: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Since:
    """A position in the log; without ``epoch`` that of the log as it is now is meant."""

    position: int
    epoch: str | None = None


#: From where on: a position, so many of the newest, the oldest that there is, or None: from now on.
Start: TypeAlias = Since | int | Literal["start"] | None


@dataclass(frozen=True, slots=True)
class Event:
    """``message``: as on the wire, with ``epoch`` where it is of the log. ``gap``: with ``tier`` and ``reason``."""

    kind: Literal["message", "gap"]
    body: dict[str, Any]


class Source(Protocol):
    """Subscriptions and their events. Raises as :class:`Subscriber` and :class:`PubSub` do."""

    def subscribe(self, channel: str, start: Start, filter: dict[str, Any] | None = None) -> None:
        """``filter`` as in docs/protocol.md. Returns when it is sure that what is published from now on will come."""

    def next(self, seconds: float) -> Event | None:
        """The next event; None when there is none within ``seconds``."""

    def close(self) -> None: ...


def parse_since(text: str) -> Since | Literal["start"]:
    """``start``, ``POSITION`` or ``EPOCH:POSITION``. Raises ValueError."""
    if text == START:
        return START
    epoch, _, position = text.rpartition(":")
    if not position.isdecimal() or not position.isascii() or int(position) >= 2**63:
        raise ValueError("start, POSITION, or EPOCH:POSITION")
    return Since(int(position), epoch or None)


class FromDatabase:
    """LISTEN, and the log where it is installed: what a server does, in this process."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url is not None
        # For the error that says what is wrong; the listener would go on trying.
        with session(Database(settings.database_url)):
            pass
        self._pubsub = PubSub(None, settings.database_url, settings.listen_database_url)
        # The database is there. So what can be wrong takes the listener a while to find out: see Listener._prove().
        self._pubsub.subscribe_timeout_down = 15.0
        self._pubsub.on_messages.append(self._receive)
        self._pubsub.on_gap.append(self._receive_gap)
        self._pubsub.on_log_gap.append(self._receive_log_gap)
        self._pubsub.hub.add(self)
        self._channels: set[str] = set()
        self._filters: dict[str, Filter | None] = {}
        self._events: Any = green.Queue()

    def subscribe(self, channel: str, start: Start, filter: dict[str, Any] | None = None) -> None:
        self._filters[channel] = parse_filter(filter)
        hub, follower, history = self._pubsub.hub, self._pubsub.follower, self._pubsub.history
        try:
            self._pubsub.join(self, channel)
        except DatabaseUnavailableError as error:
            raise DatabaseUnavailableError(self._pubsub.listener.problem or error.message) from None
        if not follower.installed:
            if start is not None:
                self._tell_gap(channel, "log", "not_installed")
            self._channels.add(channel)
            return
        after = self._find(channel, start)
        # From here on nothing waits: what is live from now on is either held back or comes by itself.
        self._channels.add(channel)
        if after is not None:
            replay = Replay(follower, history, channel, after)
            hub.hold(self, channel, replay)
            green.spawn(
                replay.run, _Replayed(self, channel), lambda: hub.held_by(self, channel) is replay,
                lambda: hub.release(self, channel),
            )  # fmt: skip

    def _find(self, channel: str, start: Start) -> int | None:
        """The position after which to begin; None for now."""
        follower, history = self._pubsub.follower, self._pubsub.history
        if isinstance(start, str):
            return history.head().trimmed
        if isinstance(start, Since):
            epoch = start.epoch or follower.epoch
            assert epoch is not None
            after, told = find_start(follower, history, channel, LogPosition(epoch, start.position))
            if told["recovered"]:
                return after
            self._tell_gap(channel, "log", told["reason"])
            return history.head().trimmed if told["reason"] == "trimmed" else None
        return find_start(follower, history, channel, start)[0]

    def next(self, seconds: float) -> Event | None:
        try:
            event: Event = self._events.get(timeout=seconds)
        except green.QueueEmpty:
            return None
        return event

    def close(self) -> None:
        self._pubsub.disconnect()

    def put(self, messages: Sequence[EncodedMessage], *, replayed: bool = False) -> None:
        """``messages`` become events."""
        for message in messages:
            filter = self._filters[message.channel]
            if filter is not None and not filter.matches(message.payload_json):
                continue
            body = message.to_wire()
            if message.position is not None:
                body["epoch"] = self._pubsub.follower.epoch
            if replayed:
                body["replayed"] = True
            self._events.put(Event("message", body))

    def _receive(self, messages: Sequence[EncodedMessage]) -> None:
        hub = self._pubsub.hub
        self.put([
            message for message in messages
            if message.channel in self._channels
            and not (message.position is not None and hub.held_by(self, message.channel))
        ])  # fmt: skip

    def _receive_gap(self, gap: NotifyGap) -> None:
        self._events.put(Event("gap", gap.to_wire() | {"tier": "notify"}))

    def _receive_log_gap(self, reason: str) -> None:
        for channel in sorted(self._channels):
            self._tell_gap(channel, "log", reason)

    def _tell_gap(self, channel: str, tier: str, reason: str) -> None:
        self._events.put(Event("gap", {"channel": channel, "tier": tier, "reason": reason}))


@dataclass(frozen=True, slots=True)
class _Replayed:
    """The receiver of a replay. Nothing holds it up: what waits is bounded by what the log has."""

    source: FromDatabase
    channel: str

    def send(self, messages: Sequence[EncodedMessage]) -> None:
        self.source.put(messages, replayed=True)

    def wait_sent(self) -> bool:
        green.sleep()
        return True

    def gap(self, reason: str, epoch: str, position: int) -> None:
        self.source._tell_gap(self.channel, "log", reason)


class FromServer:
    """A server's Socket.IO clients' way."""

    def __init__(self, url: str, token: str | None) -> None:
        self._subscriber = Subscriber(url, token=token)
        # Bounded: when nobody reads our output, the subscriber interrupts its subscriptions in time.
        self._events: queue.Queue[Event | SocketIOPGError] = queue.Queue(1000)
        self._closed = False

    def subscribe(self, channel: str, start: Start, filter: dict[str, Any] | None = None) -> None:
        if isinstance(start, str):
            raise InvalidRequestError(f"--since start needs the database; with --url, --history {MAX_HISTORY} is most")
        since: Position | None = None
        if isinstance(start, Since):
            since = {"epoch": start.epoch or self._epoch(channel), "position": start.position}
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

    def _epoch(self, channel: str) -> str:
        """The epoch of the log as it is now."""
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
