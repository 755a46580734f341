"""Subscriptions of the program that runs the `PubSub` itself. Each passes messages and gaps to a receiver."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage, Position
from socketio_pg.core.patterns import is_pattern, named
from socketio_pg.log.log import Log
from socketio_pg.log.replay import HeldReplay, ReplayReceiver, Step
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.pubsub.filters import Filter, Reader

logger = logging.getLogger("socketio_pg.pubsub")


class SupportsPut(Protocol):
    """A queue for :meth:`PubSub.subscribe`: :class:`queue.Queue`, eventlet's, gevent's …"""

    def put(self, item: dict[str, Any], /) -> object: ...


class Receiver(Protocol):
    """Gets the messages and gaps of a subscription, in order. Exceptions that it raises are logged."""

    def receive(self, message: EncodedMessage, extra: Mapping[str, Any], /) -> object:
        """``extra`` has the fields beside the message's own: ``epoch``, ``replayed``, and ``pattern`` of a pattern."""

    def gap(self, gap: dict[str, Any], /) -> object:
        """As on the wire, and ``tier``: ``notify`` or ``log``."""

    def live(self, live: dict[str, Any], /) -> object:
        """The replay has caught up, or there was none. As on the wire."""


@dataclass(frozen=True, slots=True)
class QueueReceiver:
    """Puts messages with parsed payloads into ``queue``. A payload that Python cannot parse is reported as a gap."""

    queue: SupportsPut
    on_gap: Callable[[dict[str, Any]], object] | None
    on_live: Callable[[dict[str, Any]], object] | None = None

    def receive(self, message: EncodedMessage, extra: Mapping[str, Any]) -> None:
        try:
            payload = message.payload()
        except ValueError:
            place = {"epoch": extra.get("epoch"), "position": message.position}
            self.gap({"channel": message.channel, "tier": "log", "reason": "undecodable", **place})
            return
        found = {**message.to_wire(), "payload": payload, **extra}
        sender = message.sender()
        if sender is not None:
            found["from"] = sender
        self.queue.put(found)

    def gap(self, gap: dict[str, Any]) -> None:
        if self.on_gap is not None:
            self.on_gap(gap)

    def live(self, live: dict[str, Any]) -> None:
        if self.on_live is not None:
            self.on_live(live)


class LocalSubscription:
    """The result of :meth:`PubSub.subscribe`: pass it to :meth:`PubSub.unsubscribe`."""

    def __init__(self, channel: str, receiver: Receiver, filter: Filter | None, log: Log) -> None:
        #: A channel, or a pattern.
        self.channel = channel
        #: Messages of the log follow this position; None without a log.
        self.position: Position | None = None
        self.replay: LocalReplay | None = None
        #: Set when the replay has caught up with the live messages, or there is none.
        self.live = green.Event()
        self.ended = False
        #: Called between two pages of the replay; may wait until the receiver has room.
        self.pace: Callable[[], object] = green.sleep
        self._receiver = receiver
        self.filter = filter
        self._log = log

    def receive(self, message: EncodedMessage, reader: Reader | None = None, *, replayed: bool = False) -> None:
        """Pass on a message that the filter lets through. ``reader`` is one of its payload, if there is one."""
        try:
            if not self.ended and self._lets_through(message, reader):
                extra: dict[str, Any] = {} if message.position is None else {"epoch": self._log.epoch}
                if is_pattern(self.channel):
                    extra["pattern"] = self.channel
                if replayed:
                    extra["replayed"] = True
                self._receiver.receive(message, extra)
        except Exception:  # the program's own: the other subscribers still get the message
            logger.exception("a receiver of messages failed")

    def _lets_through(self, message: EncodedMessage, reader: Reader | None) -> bool:
        if self.filter is None:
            return True
        reader = reader or Reader(message.payload_json)
        return self.filter.holds(reader, reader.values)

    def notify_gap(self, gap: NotifyGap) -> None:
        """Report that messages of NOTIFY may have been missed."""
        self._gap(gap.to_wire() | {"tier": "notify"})

    def log_gap(self, reason: str, after: Position | None = None, upto: int | None = None) -> None:
        """Report that messages of the log are lost; it goes on after a position, by default the current one.

        ``upto``: that position, in the current epoch.
        """
        position = after or self._log.current()
        if upto is not None and position is not None:
            position = Position(epoch=position["epoch"], position=upto)
        self._gap({**named(self.channel), "tier": "log", "reason": reason, **(position or {})})

    def caught_up(self, place: Position | None) -> None:
        """Report that live messages follow, those of the log after ``place``."""
        try:
            if not self.ended:
                self._receiver.live({**named(self.channel), **(place or {})})
        except Exception:
            logger.exception("a receiver of messages failed")
        self.live.send()

    def _gap(self, gap: dict[str, Any]) -> None:
        try:
            if not self.ended:
                self._receiver.gap(gap)
        except Exception:
            logger.exception("a receiver of gaps failed")


class LocalSubscriptions:
    """The complete subscriptions, by channel or pattern."""

    def __init__(self) -> None:
        self._of_channel: dict[str, list[LocalSubscription]] = {}

    def __bool__(self) -> bool:
        return bool(self._of_channel)

    def __len__(self) -> int:
        return sum(map(len, self._of_channel.values()))

    def add(self, subscription: LocalSubscription) -> None:
        self._of_channel.setdefault(subscription.channel, []).append(subscription)

    def discard(self, subscription: LocalSubscription) -> None:
        """Remove the subscription; twice is harmless."""
        members = self._of_channel.get(subscription.channel, [])
        if subscription in members:
            members.remove(subscription)
            if not members:
                del self._of_channel[subscription.channel]

    def of(self, channel: str) -> Sequence[LocalSubscription]:
        return tuple(self._of_channel.get(channel, ()))

    def all(self) -> list[LocalSubscription]:
        return [one for members in self._of_channel.values() for one in members]


class LocalReplay:
    """Replays the log to a subscription, in a green thread, until the live messages follow.

    ``hold(receiver)`` holds live messages back and returns the replay. ``started()`` is False while the
    `PubSub` is disconnected: then the green thread ends, and :meth:`start` continues where it was.
    """

    def __init__(
        self,
        subscription: LocalSubscription,
        hold: Callable[[ReplayReceiver], HeldReplay],
        started: Callable[[], bool],
    ) -> None:
        self._subscription = subscription
        self._started = started
        self._replay = hold(self)
        self._running = False

    def start(self) -> None:
        """Start the green thread; does nothing while it is running, or when the replay is complete."""
        if not self._running:
            self._running = True
            green.spawn(self._run)

    def _run(self) -> None:
        try:
            while self._started() and not self._subscription.ended:
                step = self._replay.step()
                if step is Step.OVER:
                    return
                if step is Step.AHEAD:
                    self._replay.replay.wait_moved()
                self._subscription.pace()
        finally:
            self._running = False

    # -- as ReplayReceiver

    #: More than the log's pages have: a program's queue is not bounded in bytes.
    page_bytes = sys.maxsize

    def select(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        return messages

    def send(self, messages: Sequence[EncodedMessage]) -> None:
        for message in messages:
            self._subscription.receive(message, replayed=True)

    def gap(self, reason: str, epoch: str, position: int) -> None:
        self._subscription.log_gap(reason, Position(epoch=epoch, position=position))

    def live(self, epoch: str | None, position: int) -> None:
        self._subscription.caught_up(None if epoch is None else Position(epoch=epoch, position=position))
