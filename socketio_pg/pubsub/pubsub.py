"""PubSub: subscribe and publish from Python, inside a green (eventlet) program. The server's core without the sockets.

For programs that only publish, in their own transactions, there is :mod:`socketio_pg.client`.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from flask import Flask

from socketio_pg.core import config, green
from socketio_pg.core.channels import LOG_CHANNEL, RESERVED_PREFIX, match_pattern, validate_channel
from socketio_pg.core.errors import ConfigurationError, InvalidRequestError
from socketio_pg.core.messages import (
    MAX_NOTIFY_BYTES,
    EncodedMessage,
    Publication,
    check_size,
    decode_notification,
    encode_payload,
    naming_message,
)
from socketio_pg.core.metrics import fan_out
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History
from socketio_pg.log.recent import Recent
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import ChannelListener, ListenCancelledError, Listener, Notification, NotifyGap
from socketio_pg.postgres.publisher import Outgoing, Publisher
from socketio_pg.pubsub.hub import Hub

logger = logging.getLogger("socketio_pg.pubsub")


OnNotifications: TypeAlias = Callable[[Sequence[Notification]], None]
OnGap: TypeAlias = Callable[[NotifyGap], None]


class SupportsPut(Protocol):
    """What a subscriber's queue must be able to do: :class:`queue.Queue`, ``eventlet.queue.Queue`` …"""

    def put(self, item: dict[str, Any], /) -> object: ...


@dataclass(frozen=True, eq=False, slots=True)
class QueueSubscription:
    """What :meth:`PubSub.subscribe` returns, for :meth:`PubSub.unsubscribe`."""

    channel: str
    queue: SupportsPut

    def receive(self, message: EncodedMessage) -> None:
        self.queue.put(message.to_wire() | {"payload": message.payload()})


@dataclass(frozen=True, eq=False, slots=True)
class _Reserved:
    """Who receives what is notified on a channel of ours."""

    receive: Callable[[Sequence[str]], None]
    on_gap: Callable[[], None]


class PubSub:
    """Messages of PostgreSQL channels.

    ``dsn`` is a libpq address; without it the address comes from ``app.config["SQLALCHEMY_DATABASE_URI"]``, then from
    ``DATABASE_URL`` or ``local.cfg``. ``listen_dsn`` is the address of the LISTEN connection when it differs;
    ``listener`` is who listens. Connects when it is first used.

    Raises :class:`ConfigurationError` when there is no address.
    """

    #: Seconds that :meth:`join` waits for the LISTEN, and while the connection is known to be down.
    subscribe_timeout = 10.0
    subscribe_timeout_down = 2.0
    #: Messages that are delivered together, before other green threads get their turn.
    share_messages = 200
    share_characters = 100_000
    #: One filter that is tried on a message takes as long as so many characters, about: a microsecond.
    filter_characters = 10

    def __init__(
        self,
        app: Flask | None = None,
        dsn: str | None = None,
        listen_dsn: str | None = None,
        listener: Callable[[Database, OnNotifications, OnGap], ChannelListener] = Listener,
    ) -> None:
        if dsn is None and app is not None:
            dsn = app.config.get("SQLALCHEMY_DATABASE_URI")
        if dsn is None:
            settings = config.load()
            dsn, listen_dsn = settings.database_url, listen_dsn or settings.listen_database_url
        if dsn is None:
            raise ConfigurationError(config.NO_DATABASE)
        self.hub = Hub()
        self.database = Database(config.database_url(dsn), config.database_url(listen_dsn) if listen_dsn else None)
        self.listener = listener(self.database, self._on_notifications, self._on_gap)
        self.publisher = Publisher(self.database)
        #: Channels that always go through the log, and the most bytes of a payload there.
        self.durable_channels: Sequence[str] = ()
        self.max_payload = 1_000_000
        recent = Recent()
        self.history = History(self.database, recent)
        # A connection of its own: what is live does not wait for replays.
        self._follower_history = History(self.database, recent, "follower")
        self.follower = Follower(self.listener, self._follower_history, recent, self._deliver, self._on_log_gap)
        self.follower.cost = lambda message: self._cost(message.channel, message.payload_json)
        #: Called with the messages that came together, all of one tier, in order.
        self.on_messages: list[Callable[[Sequence[EncodedMessage]], None]] = []
        #: Called with each :class:`NotifyGap` of the notify tier.
        self.on_gap: list[Callable[[NotifyGap], None]] = []
        #: Called with the reason when messages of the log are lost to all subscribers.
        self.on_log_gap: list[Callable[[str], None]] = []
        #: Called when the log's schema was installed, or something else about it has changed.
        self.on_log_changed: list[Callable[[], None]] = []
        self._reserved: dict[str, _Reserved] = {}
        self._queues: dict[str, list[QueueSubscription]] = {}

    def start(self) -> None:
        """Connect in the background; called by everything that needs it. Call it after a fork, not before."""
        self.listener.start()
        self.follower.start()

    def subscribe(self, channel: str, queue: SupportsPut) -> QueueSubscription:
        """From the return on, ``queue`` gets each message as ``{"channel": str, "payload": any JSON value}``.

        Messages of the log have ``position`` and ``published_at`` too, as on the wire.

        Raises :class:`InvalidChannelError` or :class:`DatabaseUnavailableError`.
        """
        subscription = QueueSubscription(validate_channel(channel), queue)
        self.hub.add(subscription)
        # Before LISTEN is confirmed: a message that follows it at once must find the queue.
        self._queues.setdefault(channel, []).append(subscription)
        try:
            self.join(subscription, channel)
        except BaseException:  # the caller's own time-out, too
            self.unsubscribe(subscription)
            raise
        return subscription

    def unsubscribe(self, subscription: QueueSubscription) -> None:
        """End a subscription; twice is harmless."""
        members = self._queues.get(subscription.channel, [])
        if subscription in members:
            members.remove(subscription)
            if not members:
                del self._queues[subscription.channel]
        self.drop(subscription)

    def publish(self, channel: str, payload: object = None, durable: bool | None = None) -> None:
        """Publish any JSON value; returns after the commit.

        Through the log when ``durable`` is True, and when it is None in the :attr:`durable_channels`, and for what is
        too large for NOTIFY where there is a log; otherwise with NOTIFY.

        Raises :class:`InvalidChannelError`, :class:`InvalidRequestError`, :class:`PayloadTooLargeError`,
        :class:`LogNotInstalledError` or :class:`DatabaseUnavailableError`.
        """
        self.publisher.publish([self._outgoing(Publication(channel, payload, durable))])

    def publish_together(self, publications: Sequence[Publication]) -> None:
        """Publish all of them, or none, in one transaction; each otherwise as :meth:`publish` does.

        Raises :class:`InvalidRequestError` for two equal messages that would go with NOTIFY, too: PostgreSQL delivers
        only one of those.
        """
        messages = []
        seen: set[Outgoing] = set()
        for index, publication in enumerate(publications):
            with naming_message(index):
                message = self._outgoing(publication)
                if not message.durable and message in seen:
                    raise InvalidRequestError(
                        "the same message is there already, and NOTIFY carries it once in a transaction; durable "
                        "messages may be equal",
                        channel=message.channel,
                    )
                seen.add(message)
                messages.append(message)
        self.publisher.publish(messages)

    def _outgoing(self, publication: Publication) -> Outgoing:
        channel, durable = validate_channel(publication.channel), publication.durable
        text = encode_payload(publication.payload)
        if durable is None:
            durable = any(match_pattern(pattern, channel) for pattern in self.durable_channels)
            if not durable and len(text.encode()) > MAX_NOTIFY_BYTES:
                self.start()
                self.follower.wait_known(self.subscribe_timeout_down)
                durable = self.follower.installed
        check_size(text, self.max_payload if durable else MAX_NOTIFY_BYTES)
        return Outgoing(channel, text, durable)

    def receive_reserved(
        self, channel: str, receive: Callable[[Sequence[str]], None], on_gap: Callable[[], None]
    ) -> None:
        """Listen to one of the server's own channels: ``receive`` gets the texts that come together, in order.

        ``on_gap`` is called when some may have been missed. Both are called in the listener's green thread.
        """
        self._reserved[channel] = _Reserved(receive, on_gap)
        self.listener.acquire(channel)

    def disconnect(self) -> None:
        """Stop listening and publishing, and close all connections."""
        self.follower.stop()
        self.listener.stop()
        self.publisher.stop()
        self.history.stop()
        self._follower_history.stop()

    # -- for those who deliver by themselves (`websocket`): subscribers known to the hub -----------------------------

    def join(self, subscriber: Hashable, channel: str) -> None:
        """Subscribe ``subscriber``, which the hub knows, and return once the LISTEN has committed.

        When it raises, an earlier subscription of the same subscriber stays.
        Raises :class:`UnknownSubscriberError`, :class:`ListenCancelledError` or :class:`DatabaseUnavailableError`.
        """
        self.start()
        new = not self.hub.is_subscribed(subscriber, channel)
        if self.hub.subscribe(subscriber, channel):
            self.listener.acquire(channel)
        try:
            timeout = self.subscribe_timeout if self.listener.ready else self.subscribe_timeout_down
            self.listener.wait(channel, timeout)
            self.follower.wait_known(timeout)
        except ListenCancelledError:
            raise  # nothing to undo, and a later subscription may have begun
        except BaseException:
            if new:
                self.leave(subscriber, channel)
            raise

    def leave(self, subscriber: Hashable, channel: str) -> None:
        if self.hub.unsubscribe(subscriber, channel):
            self.listener.release(channel)

    def drop(self, subscriber: Hashable) -> None:
        """``subscriber`` has gone: forget it and all its subscriptions."""
        for channel in self.hub.drop(subscriber):
            self.listener.release(channel)

    # -- from the listener, in its green thread -----------------------------------------------------------------------

    def _on_notifications(self, notifications: Sequence[Notification]) -> None:
        fan_out.notifications += len(notifications)
        # Between the two tiers there is no order.
        ours = [found for found in notifications if found[0].startswith(RESERVED_PREFIX)]
        if ours:
            self._on_our_notifications(ours)
            notifications = [found for found in notifications if not found[0].startswith(RESERVED_PREFIX)]
        for share in self._shares(notifications):
            self._deliver([decode_notification(*found) for found in share])
            if share[-1] is not notifications[-1]:
                # Others get their turn, and what was sent is written to clients whose buffers have filled.
                green.sleep()

    def _on_our_notifications(self, notifications: Sequence[Notification]) -> None:
        for channel, reserved in tuple(self._reserved.items()):
            texts = [text for found, text in notifications if found == channel]
            if texts:
                self._guarded(reserved.receive, texts)
        of_log = [text for channel, text in notifications if channel == LOG_CHANNEL]
        if of_log:
            if any(text.isalpha() for text in of_log):  # a word and no batch
                for receive_change in self.on_log_changed:
                    receive_change()
            self.follower.hear(of_log)

    def _shares(self, notifications: Sequence[Notification]) -> Iterator[list[Notification]]:
        share: list[Notification] = []
        size = 0
        for found in notifications:
            share.append(found)
            size += self._cost(*found)
            if len(share) >= self.share_messages or size >= self.share_characters:
                yield share
                share, size = [], 0
        if share:
            yield share

    def _cost(self, channel: str, text: str) -> int:
        """How much work a message is, in characters: what must be tried on it counts too."""
        filters = self.hub.filters(channel)
        return len(text) + (0 if filters is None else self.filter_characters * filters.most_tried)

    def _deliver(self, messages: Sequence[EncodedMessage]) -> None:
        if messages[0].position is None:
            fan_out.notify_messages += len(messages)
        else:
            fan_out.log_messages += len(messages)
        for receive in self.on_messages:
            self._guarded(receive, messages)
        for message in messages:
            for subscription in tuple(self._queues.get(message.channel, ())):
                self._guarded(subscription.receive, message)

    def _on_log_gap(self, reason: str) -> None:
        for receive in self.on_log_gap:
            self._guarded(receive, reason)

    def _on_gap(self, gap: NotifyGap) -> None:
        if gap.channel == LOG_CHANNEL:
            self.follower.look()  # the log has what was missed
            return
        if gap.channel in self._reserved:
            try:
                self._reserved[gap.channel].on_gap()
            except Exception:  # a bug of one receiver: the others' gaps are still to come
                logger.exception("a receiver of gaps failed")
            return
        for receive in self.on_gap:
            self._guarded(receive, gap)

    def _guarded(self, receive: Callable[[Any], object], item: Any) -> None:
        """One receiver's failure must not cost the others the message."""
        try:
            receive(item)
        except Exception:  # the application's, or a bug of one receiver
            logger.exception("a receiver of messages failed")
