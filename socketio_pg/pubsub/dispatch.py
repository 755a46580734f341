"""Passes notifications, messages of the log, and gaps to their receivers."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from socketio_pg.core import green
from socketio_pg.core.channels import LOG_CHANNEL, RESERVED_PREFIX
from socketio_pg.core.messages import EncodedMessage, decode_notification
from socketio_pg.core.metrics import fan_out
from socketio_pg.postgres.companions import Notification
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.pubsub.filters import Reader
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.local import LocalSubscription, LocalSubscriptions
from socketio_pg.pubsub.matching import FilterCost, Matching
from socketio_pg.pubsub.tally import Tally

logger = logging.getLogger("socketio_pg.pubsub")


class NodeReceiver(Protocol):
    """Gets all messages and gaps of this node. Exceptions that it raises are logged."""

    def receive_messages(self, messages: Sequence[EncodedMessage], /) -> None:
        """Messages that came together, in order: either all of the log or all of NOTIFY."""

    def charge(self, costs: Sequence[FilterCost], /) -> None:
        """Take what filters have cost since the last call: channel, filter, and steps."""

    def receive_gap(self, gap: NotifyGap, /) -> None:
        """Messages of NOTIFY may have been missed in one channel."""

    def receive_log_gap(self, reason: str, /) -> None:
        """Messages of the log are lost to the subscribers of all channels."""

    def receive_trims(self, trims: Mapping[str, int], /) -> None:
        """Rules have removed messages of some channels before they were delivered: channel → up to which position."""


@dataclass(frozen=True, eq=False, slots=True)
class _Reserved:
    """The receiver of a reserved channel."""

    receive: Callable[[Sequence[str]], None]
    on_gap: Callable[[], None]


class Dispatcher:
    """Delivers to the node's receivers, local subscriptions and reserved channels.

    The listener and the follower call it in their green threads.
    """

    #: The limits of a batch: its messages are delivered together, before other green threads run.
    batch_messages = 200
    batch_characters = 100_000
    #: The cost of trying one filter on a message, in characters (about a microsecond).
    filter_characters = 10

    def __init__(self, hub: Hub, local: LocalSubscriptions, matching: Matching) -> None:
        self._hub = hub
        self._local = local
        self._matching = matching
        #: What is counted while somebody looks.
        self.tally = Tally()
        self._receivers: list[NodeReceiver] = []
        self._reserved: dict[str, _Reserved] = {}
        #: The receivers of reserved channels whose messages come through the log.
        self._logged: dict[str, _Reserved] = {}

    def add_receiver(self, receiver: NodeReceiver) -> None:
        """Pass all messages and gaps to ``receiver`` from now on."""
        self._receivers.append(receiver)

    def reserve(self, channel: str, receive: Callable[[Sequence[str]], None], on_gap: Callable[[], None]) -> None:
        """Pass the texts of one of the server's own channels to ``receive``, in order."""
        self._reserved[channel] = _Reserved(receive, on_gap)

    def reserve_logged(
        self, channel: str, receive: Callable[[Sequence[str]], None], on_gap: Callable[[], None]
    ) -> None:
        """Pass the payloads, as JSON, of a reserved channel of the log to ``receive``, in order."""
        self._logged[channel] = _Reserved(receive, on_gap)

    def on_notifications(self, notifications: Sequence[Notification]) -> None:
        """Deliver what one read of the LISTEN connection brought."""
        fan_out.notifications += len(notifications)
        # Between the two tiers there is no order.
        reserved = [found for found in notifications if found[0].startswith(RESERVED_PREFIX)]
        if reserved:
            self._on_reserved(reserved)
            notifications = [found for found in notifications if not found[0].startswith(RESERVED_PREFIX)]
        for batch in self._batches(notifications):
            messages = [decode_notification(*found) for found in batch]
            self._matching.prepare(messages)
            self.deliver(messages)
            if batch[-1] is not notifications[-1]:
                # Other green threads run, and sent messages are written to clients whose send buffers have filled.
                green.sleep()

    def _on_reserved(self, notifications: Sequence[Notification]) -> None:
        # The log comes last: emits of other nodes need not wait until its messages are sent.
        for channel in sorted(self._reserved, key=lambda channel: channel == LOG_CHANNEL):
            texts = [text for found, text in notifications if found == channel]
            if texts:
                self._guarded(self._reserved[channel].receive, texts)

    def _batches(self, notifications: Sequence[Notification]) -> Iterator[list[Notification]]:
        batch: list[Notification] = []
        size = 0
        for found in notifications:
            batch.append(found)
            size += self._cost(*found)
            if len(batch) >= self.batch_messages or size >= self.batch_characters:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def cost(self, message: EncodedMessage) -> int:
        """Return the work that a message causes, in characters, including the filters that are tried on it."""
        return self._cost(message.channel, message.payload_json)

    def _cost(self, channel: str, text: str) -> int:
        cost = len(text)
        if not self._hub.has_filters:
            return cost
        for name in self._hub.names(channel):
            filters = self._hub.filters(name)
            if filters is not None:
                cost += self.filter_characters * filters.max_tried
        return cost

    def deliver(self, messages: Sequence[EncodedMessage]) -> None:
        """Deliver messages in order, either all of the log or all of NOTIFY. Filters were tried on them before."""
        if messages[0].position is None:
            fan_out.notify_messages += len(messages)
        else:
            fan_out.log_messages += len(messages)
            for channel, logged in self._logged.items():
                payloads = [message.payload_json for message in messages if message.channel == channel]
                if payloads:
                    self._guarded(logged.receive, payloads)
        if self.tally.active:
            self.tally.count(messages)
        try:
            # Chosen before anything waits: a replay that ends in the meantime has sent these messages itself.
            due = self._due(messages) if self._local else ()
            for receiver in self._receivers:
                self._guarded(receiver.receive_messages, messages)
            if self._matching.has_due:
                costs = self._matching.take_due()
                for receiver in self._receivers:
                    self._guarded(receiver.charge, costs)
            if due:
                self._deliver_locally(due)
        finally:
            self._matching.finish(messages)

    def _deliver_locally(self, due: Sequence[tuple[LocalSubscription, EncodedMessage]]) -> None:
        reader: Reader | None = None
        read: EncodedMessage | None = None
        for subscription, message in due:
            if subscription.filter is not None and message is not read:
                read, reader = message, self._matching.reader(message)
            subscription.receive(message, reader)

    def _due(self, messages: Sequence[EncodedMessage]) -> list[tuple[LocalSubscription, EncodedMessage]]:
        """Return the messages of local subscriptions, without those that are held back for a replay."""
        return [
            (subscription, message)
            for message in messages
            for name in self._hub.names(message.channel)
            for subscription in self._local.of(name)
            if message.position is None or not self._hub.held_by(subscription, name)
        ]

    def on_gap(self, gap: NotifyGap) -> None:
        """Report that notifications of a channel may have been missed."""
        if gap.channel in self._reserved:
            try:
                self._reserved[gap.channel].on_gap()
            except Exception:  # a bug of one receiver: the others still get their gaps
                logger.exception("a receiver of gaps failed")
            return
        for receiver in self._receivers:
            self._guarded(receiver.receive_gap, gap)
        for subscription in self._local.of(gap.channel):
            subscription.notify_gap(gap)

    def on_log_gap(self, reason: str) -> None:
        """Report that messages of the log are lost to all subscribers."""
        if reason == "epoch_changed":
            # Replays of the former epoch end here, and live messages of the new one follow the gap. A replay that waits
            # for its client would notice later, and messages that were held back until then would be lost.
            self._hub.release_all()
        for logged in self._logged.values():
            logged.on_gap()
        for receiver in self._receivers:
            self._guarded(receiver.receive_log_gap, reason)
        for subscription in self._local.all():
            subscription.log_gap(reason)

    def on_trims(self, trims: Mapping[str, int]) -> None:
        """Report that rules have removed messages of some channels before they were delivered."""
        for channel in trims:
            if channel in self._logged:
                self._logged[channel].on_gap()
        for receiver in self._receivers:
            self._guarded(receiver.receive_trims, trims)
        for channel, upto in trims.items():
            for name in self._hub.names(channel):
                for subscription in self._local.of(name):
                    subscription.log_gap("trimmed", upto=upto)

    def _guarded(self, receive: Callable[[Any], object], item: Any) -> None:
        """Call one receiver. When it fails, the others still get the message."""
        try:
            receive(item)
        except Exception:  # the application's, or a bug of one receiver
            logger.exception("a receiver of messages failed")
