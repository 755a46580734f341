"""PubSub: subscribe and publish from Python, inside a green (eventlet) program. The server's core without the sockets.

For programs that only publish, in their own transactions, there is :mod:`socketio_pg.client`.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flask import Flask

from socketio_pg import config, green
from socketio_pg.channels import validate_channel
from socketio_pg.database import Database
from socketio_pg.errors import ConfigurationError
from socketio_pg.hub import Hub
from socketio_pg.listener import Gap, ListenCancelledError, Listener, Notification
from socketio_pg.messages import Message, decode_notification, encode_payload
from socketio_pg.publisher import Publisher

logger = logging.getLogger("socketio_pg.pubsub")


class SupportsPut(Protocol):
    """What a subscriber's queue must be able to do: :class:`queue.Queue`, ``eventlet.queue.Queue`` …"""

    def put(self, item: dict[str, Any], /) -> object: ...


@dataclass(frozen=True, eq=False, slots=True)
class Subscription:
    """What :meth:`PubSub.subscribe` returns, for :meth:`PubSub.unsubscribe`."""

    channel: str
    queue: SupportsPut

    def receive(self, message: Message) -> None:
        self.queue.put({"channel": message.channel, "payload": message.payload()})


class PubSub:
    """Messages of PostgreSQL channels.

    ``dsn`` is a libpq address; without it the address comes from ``app.config["SQLALCHEMY_DATABASE_URI"]``, then from
    ``DATABASE_URL`` or ``local.cfg``. ``listen_dsn`` is the address of the LISTEN connection when it differs. Connects
    when it is first used. Raises :class:`ConfigurationError` when there is no address.
    """

    #: Seconds that :meth:`join` waits for the LISTEN, and while the connection is known to be down.
    subscribe_timeout = 10.0
    subscribe_timeout_down = 2.0
    #: Messages that are delivered together, before other green threads get their turn.
    share_messages = 200
    share_characters = 100_000

    def __init__(self, app: Flask | None = None, dsn: str | None = None, listen_dsn: str | None = None) -> None:
        if dsn is None and app is not None:
            dsn = app.config.get("SQLALCHEMY_DATABASE_URI")
        if dsn is None:
            settings = config.load()
            dsn, listen_dsn = settings.database_url, listen_dsn or settings.listen_database_url
        if dsn is None:
            raise ConfigurationError(config.NO_DATABASE)
        self.hub = Hub()
        self.database = Database(config.database_url(dsn), config.database_url(listen_dsn) if listen_dsn else None)
        self.listener = Listener(self.database, self._on_notifications, self._on_gap)
        self.publisher = Publisher(self.database)
        #: Called with the messages that came together, and with each :class:`Gap`, in order.
        self.on_messages: list[Callable[[Sequence[Message]], None]] = []
        self.on_gap: list[Callable[[Gap], None]] = []
        self._queues: dict[str, list[Subscription]] = {}

    def start(self) -> None:
        """Connect in the background; called by everything that needs it. Call it after a fork, not before."""
        self.listener.start()

    def subscribe(self, channel: str, queue: SupportsPut) -> Subscription:
        """From the return on, ``queue`` gets each message as ``{"channel": str, "payload": any JSON value}``.

        Raises :class:`InvalidChannelError` or :class:`DatabaseUnavailableError`.
        """
        subscription = Subscription(validate_channel(channel), queue)
        self.hub.add(subscription)
        # Before LISTEN is confirmed: a message that follows it at once must find the queue.
        self._queues.setdefault(channel, []).append(subscription)
        try:
            self.join(subscription, channel)
        except BaseException:  # the caller's own time-out, too
            self.unsubscribe(subscription)
            raise
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; twice is harmless."""
        members = self._queues.get(subscription.channel, [])
        if subscription in members:
            members.remove(subscription)
            if not members:
                del self._queues[subscription.channel]
        self.drop(subscription)

    def publish(self, channel: str, payload: object = None) -> None:
        """NOTIFY ``channel`` with any JSON value; returns after the commit.

        Raises :class:`InvalidChannelError`, :class:`InvalidRequestError`, :class:`PayloadTooLargeError` or
        :class:`DatabaseUnavailableError`.
        """
        self.publisher.publish(validate_channel(channel), encode_payload(payload))

    def disconnect(self) -> None:
        """Stop listening and publishing, and close all connections."""
        self.listener.stop()
        self.publisher.stop()

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
        for share in self._shares(notifications):
            messages = [decode_notification(*found) for found in share]
            for receive in self.on_messages:
                self._guarded(receive, messages)
            for message in messages:
                for subscription in tuple(self._queues.get(message.channel, ())):
                    self._guarded(subscription.receive, message)
            if share[-1] is not notifications[-1]:
                # Others get their turn, and what was sent is written to clients whose buffers have filled.
                green.sleep()

    def _shares(self, notifications: Sequence[Notification]) -> Iterator[list[Notification]]:
        share: list[Notification] = []
        size = 0
        for found in notifications:
            share.append(found)
            size += len(found[1])
            if len(share) >= self.share_messages or size >= self.share_characters:
                yield share
                share, size = [], 0
        if share:
            yield share

    def _on_gap(self, gap: Gap) -> None:
        for receive in self.on_gap:
            self._guarded(receive, gap)

    def _guarded(self, receive: Callable[[Any], object], item: Any) -> None:
        """One receiver's failure must not cost the others the message."""
        try:
            receive(item)
        except Exception:
            logger.exception("a receiver of messages failed")
