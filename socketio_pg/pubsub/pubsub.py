"""PubSub: subscribe and publish from Python, in a program with green threads. The server's core, without the sockets.

Programs that only publish, in their own transactions, use :mod:`socketio_pg.client`.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from socketio_pg.core import addresses, config, green, loading
from socketio_pg.core.channels import LOG_CHANNEL, RULES_CHANNEL, validate_channel
from socketio_pg.core.cursors import Since
from socketio_pg.core.errors import ConfigurationError, LogNotInstalledError
from socketio_pg.core.messages import Position
from socketio_pg.core.patterns import is_pattern, validate_pattern
from socketio_pg.core.problems import Problem
from socketio_pg.core.publications import Publication, Published
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History
from socketio_pg.log.log import DEFAULT_MESSAGES, Log, ReplayPage
from socketio_pg.log.recent import Recent
from socketio_pg.log.rule_reader import RuleReader
from socketio_pg.log.starts import LogPosition, Snapshot, requested_start
from socketio_pg.postgres.database import Database, wait_green
from socketio_pg.postgres.key_reader import ClusterKeys, KeyReader
from socketio_pg.postgres.listener import (
    ChannelListener,
    ListenCancelledError,
    OnGap,
    OnNotifications,
)
from socketio_pg.postgres.listeners import Listeners
from socketio_pg.postgres.outgoing import Outgoing
from socketio_pg.postgres.publisher import MessagePublisher, Publisher
from socketio_pg.postgres.schema import INSTALLED, REMOVED
from socketio_pg.pubsub.dispatch import Dispatcher, NodeReceiver
from socketio_pg.pubsub.filters import parse_filter
from socketio_pg.pubsub.holds import Holds
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.local import (
    LocalReplay,
    LocalSubscription,
    LocalSubscriptions,
    QueueReceiver,
    Receiver,
    SupportsPut,
)
from socketio_pg.pubsub.matching import Matching
from socketio_pg.pubsub.publishing import Publishing


class HasConfig(Protocol):
    """A Flask application, as far as :meth:`PubSub.from_app` needs it."""

    @property
    def config(self) -> Mapping[str, Any]: ...


class PubSub:
    """Messages of PostgreSQL channels.

    ``dsn`` is a libpq address; without it the address comes from ``DATABASE_URL`` or ``local.cfg``. ``listen_dsn`` is
    the address of the LISTEN connection when it differs. ``listener`` and ``publisher`` make these parts, ``keys``
    gets the reader of the cluster keys and returns what takes its place. With ``share_history`` live messages that
    must be read from the log share the connection of the replays, and come before them. Messages to the channels
    that match one of the patterns ``durable_channels`` go through the log where one is installed, unless their
    publisher says otherwise; a payload may have ``max_payload`` bytes there. ``cluster_key`` is the setting
    CLUSTER_KEY; ``sealing`` is shared with the other parts of a server. ``schema_owner`` is the setting SCHEMA_OWNER.
    Connects when it is first used.

    ``hub``, ``log``, ``holds`` and ``matching`` are for the parts of a server that manage subscriptions themselves.

    Raises :class:`ConfigurationError` when there is no address.
    """

    #: Seconds that :meth:`subscribe` and :meth:`join` wait for the LISTEN: normally, and while the connection is down.
    subscribe_timeout = 10.0
    subscribe_timeout_down = 2.0

    def __init__(
        self,
        dsn: str | None = None,
        listen_dsn: str | None = None,
        *,
        listener: Callable[[Database, OnNotifications, OnGap], ChannelListener] | None = None,
        publisher: Callable[[Database], MessagePublisher] | None = None,
        keys: Callable[[KeyReader], ClusterKeys] = lambda reader: reader,
        share_history: bool = False,
        durable_channels: Sequence[str] = ("*",),
        max_payload: int = 1_000_000,
        rules: Rules | None = None,
        cluster_key: Sequence[str] = (),
        sealing: Sealing | None = None,
        schema_owner: str | None = None,
    ) -> None:
        if dsn is None:
            settings = loading.load()
            dsn, listen_dsn = settings.database_url, listen_dsn or settings.listen_database_url
            cluster_key = cluster_key or settings.cluster_key
            schema_owner = schema_owner or settings.schema_owner
        if dsn is None:
            raise ConfigurationError(config.NO_DATABASE)
        wait_green()
        self.database = Database(
            addresses.database_url(dsn), addresses.database_url(listen_dsn) if listen_dsn else None, schema_owner
        )
        self.sealing = sealing or Sealing(Seal())
        self.keys = keys(KeyReader(self.database, self.sealing, cluster_key))
        self.hub = Hub()
        self._local = LocalSubscriptions()
        self.matching = Matching(self.hub)
        self._dispatcher = Dispatcher(self.hub, self._local, self.matching)
        #: Counts messages while somebody looks.
        self.tally = self._dispatcher.tally
        on_notifications, on_gap = self._dispatcher.on_notifications, self._dispatcher.on_gap
        self.listener: ChannelListener
        if listener is None:
            self.listener = Listeners(self.database, on_notifications, on_gap, self.sealing)
        else:
            self.listener = listener(self.database, on_notifications, on_gap)
        self._publisher = Publisher(self.database, self.sealing) if publisher is None else publisher(self.database)
        recent = Recent()
        self._history = History(self.database, recent)
        # On a connection of its own: live messages do not wait for replays.
        following = self._history if share_history else History(self.database, recent, "follower")
        self._follower = Follower(
            self.listener,
            following,
            recent,
            prepare=self.matching.prepare,
            deliver=self._dispatcher.deliver,
            on_gap=self._dispatcher.on_log_gap,
            on_trims=self._dispatcher.on_trims,
            sealing=self.sealing,
            on_found=self._on_log_changed,
            cost=self._dispatcher.cost,
        )
        # After a gap the log has the messages that were missed.
        self._dispatcher.reserve(LOG_CHANNEL, self._hear_log, self._follower.look)
        #: The rules for channels: ask :meth:`rule_of`.
        self.rules = rules or Rules(Rule(max_bytes=max_payload), durable_channels)
        self._rule_reader = RuleReader(self.rules, following)
        self._dispatcher.reserve_logged(RULES_CHANNEL, self._rule_reader.hear, self._rule_reader.look)
        self.log = Log(self._follower, self._history)
        self.holds = Holds(self.hub, self.log)
        self._publishing = Publishing(
            self._publisher, self._follower, self._has_log, self.start, self.rule_of, max_payload
        )
        self._log_watchers: list[Callable[[], None]] = []
        #: True from :meth:`start` to :meth:`disconnect`.
        self._started = False
        self._home = green.HomeThread()

    @classmethod
    def from_app(cls, app: HasConfig, listen_dsn: str | None = None) -> "PubSub":
        """Use the database of a Flask application: ``app.config["SQLALCHEMY_DATABASE_URI"]``, if it is set."""
        return cls(app.config.get("SQLALCHEMY_DATABASE_URI"), listen_dsn)

    def start(self) -> None:
        """Connect in the background. Methods that need the connection do it. Call it after a fork, not before."""
        if not self._started:
            self._home.reset()
        self._home.require("PubSub.start()")
        self.keys.start()
        self.listener.start()
        self._follower.start()
        self._rule_reader.start()
        if not self._started:
            self._started = True
            for subscription in self._local.all():
                if subscription.replay is not None:
                    subscription.replay.start()

    def disconnect(self) -> None:
        """Stop listening and publishing, and close all connections. Subscriptions stay, and continue after a start."""
        self._started = False
        self._home.reset()
        self._rule_reader.stop()
        self._follower.stop()
        self.listener.stop()
        self._publisher.stop()
        self._history.stop()
        self.keys.stop()

    @property
    def problem(self) -> Problem | None:
        """Why this node does not listen to all its channels, for the operator; None when it does."""
        return self.listener.problem

    @property
    def publish_problem(self) -> Problem | None:
        """Why messages cannot be published through the log, for the operator; None while that works."""
        return self._publisher.problem

    # -- subscribe -----------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        channel: str,
        queue: SupportsPut,
        *,
        since: Since | None = None,
        history: int | None = None,
        filter: Mapping[str, Any] | None = None,
        on_gap: Callable[[dict[str, Any]], object] | None = None,
        on_live: Callable[[dict[str, Any]], object] | None = None,
    ) -> LocalSubscription:
        """Put each message of ``channel`` into ``queue`` as ``{"channel": str, "payload": any JSON value}``.

        Returns when the subscription is complete: all messages that are published afterwards arrive. Messages of the
        log also have ``epoch``, ``position`` and ``published_at``. ``since`` first replays messages of the log: those
        after a position (``{"epoch": …, "position": …}`` or ``"EPOCH:POSITION"``), from a time on, or those that a
        snapshot does not have. ``history`` replays that many of the newest. These messages have ``replayed``. Each
        message of the log arrives once, in order. ``filter`` has conditions on the payload, as in docs/protocol.md:
        ``{"new.id": 5}``.

        ``on_gap`` is called when messages may have been missed, with the fields of the event ``gap`` in
        docs/protocol.md and ``tier``: ``notify`` or ``log``. It is also called when ``since`` cannot be replayed:
        with the reason ``trimmed`` the replay begins with the oldest message that is left, otherwise there is none.

        ``on_live`` is called when the replay has caught up and its last message is in the queue, or when there is none,
        with the fields of the event ``live`` in docs/protocol.md. The subscription's event ``live`` is set then.

        Raises :class:`InvalidChannelError`, :class:`InvalidRequestError` or :class:`DatabaseUnavailableError`.
        """
        receiver = QueueReceiver(queue, on_gap, on_live)
        return self.subscribe_receiver(channel, receiver, since=since, history=history, filter=filter)

    def subscribe_pattern(
        self,
        pattern: str,
        queue: SupportsPut,
        *,
        since: Since | None = None,
        history: int | None = None,
        filter: Mapping[str, Any] | None = None,
        on_gap: Callable[[dict[str, Any]], object] | None = None,
        on_live: Callable[[dict[str, Any]], object] | None = None,
    ) -> LocalSubscription:
        """Like :meth:`subscribe`, to all channels that match ``pattern``: ``*`` stands for any characters.

        The messages also have ``pattern``. All messages of the log arrive; of NOTIFY those that this program hears
        anyway. ``on_gap`` and ``on_live`` get ``pattern`` in place of ``channel``.

        Also raises :class:`LogNotInstalledError`.
        """
        receiver = QueueReceiver(queue, on_gap, on_live)
        return self._subscribe(validate_pattern(pattern), receiver, since=since, history=history, filter=filter)

    def subscribe_receiver(
        self,
        channel: str,
        receiver: Receiver,
        *,
        since: Since | None = None,
        history: int | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> LocalSubscription:
        """Like :meth:`subscribe`, with a receiver that gets messages whose payload is not parsed."""
        return self._subscribe(validate_channel(channel), receiver, since=since, history=history, filter=filter)

    def subscribe_paced(
        self,
        name: str,
        receiver: Receiver,
        pace: Callable[[], object],
        *,
        since: Since | None = None,
        history: int | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> LocalSubscription:
        """Like :meth:`subscribe_receiver`, to a channel or a pattern.

        ``pace()`` is called between two pages of the replay, and may wait until the receiver has room.
        """
        validated = validate_pattern(name) if is_pattern(name) else validate_channel(name)
        return self._subscribe(validated, receiver, since=since, history=history, filter=filter, pace=pace)

    def _subscribe(
        self,
        channel: str,
        receiver: Receiver,
        *,
        since: Since | None,
        history: int | None,
        filter: Mapping[str, Any] | None,
        pace: Callable[[], object] = green.sleep,
    ) -> LocalSubscription:
        self._home.require("PubSub.subscribe()")
        start = requested_start({"since": since, "history": history})
        subscription = LocalSubscription(channel, receiver, parse_filter(filter), self.log)
        subscription.pace = pace
        self.hub.add(subscription)
        try:
            self.join(subscription, channel)
            start = self.log.locate(start)
            after, told = self.log.find_start(channel, start)
        except BaseException:  # including the caller's own time-out
            self.unsubscribe(subscription)
            raise
        # Nothing waits from here to the hold: each live message of the log is either held back or delivered.
        self._local.add(subscription)
        reason = told.get("reason")
        if reason == "trimmed" and isinstance(start, LogPosition | Snapshot):
            after = start.position  # the replay reports the gap and continues with the oldest message
        if after is not None:
            hold = functools.partial(self.holds.hold, subscription, channel, after, start=start)
            subscription.replay = LocalReplay(subscription, hold, lambda: self._started)
            subscription.replay.start()
        epoch = self.log.epoch
        if epoch is not None:
            subscription.position = Position(epoch=epoch, position=self.holds.position_of(subscription, channel))
        if reason is not None and after is None:
            subscription.log_gap(reason)
        if after is None:
            subscription.caught_up(subscription.position)
        return subscription

    def unsubscribe(self, subscription: LocalSubscription) -> None:
        """End a subscription; twice is harmless."""
        subscription.ended = True
        self._local.discard(subscription)
        self.drop(subscription)

    def rule_of(self, channel: str) -> Rule:
        """Return what the rules for channels say of one channel, once they are known.

        Raises :class:`DatabaseUnavailableError` while they are not.
        """
        if not self.rules.known:
            self.start()
            self._rule_reader.wait_known(self._patience())
        return self.rules.of(channel)

    # -- publish -------------------------------------------------------------------------------------------------------

    def publish(
        self,
        channel: str,
        payload: object = None,
        durable: bool | None = None,
        *,
        id: str | None = None,
        exclude: str | None = None,
        traceparent: str | None = None,
        wait: bool = True,
    ) -> Published:
        """Publish any JSON value; return after the commit, and once the position of a message of the log is known.

        ``durable``: through the log (True) or with NOTIFY (False). None: through the log where one is installed, in
        ``durable_channels`` and for payloads too large for NOTIFY; otherwise with NOTIFY. The same ``id`` on a channel
        within five minutes is published once. The client with the Socket.IO id ``exclude`` does not get the message;
        ``traceparent``, that of W3C Trace Context, arrives with it. Waits for the position for up to two seconds, and
        not at all without ``wait``.

        Raises :class:`InvalidChannelError`, :class:`InvalidRequestError`, :class:`PayloadTooLargeError`,
        :class:`LogNotInstalledError` or :class:`DatabaseUnavailableError`. In another thread than the server's it
        raises RuntimeError: :class:`~socketio_pg.client.Client` works in any.
        """
        return self.publish_one(Publication(channel, payload, durable, id, exclude, traceparent), wait=wait)

    def publish_one(self, publication: Publication, *, wait: bool = True) -> Published:
        """Publish one message, as :meth:`publish` does."""
        self._home.require("PubSub.publish()")
        return self._publishing.publish(publication, wait=wait)

    def publish_together(self, publications: Sequence[Publication], *, wait: bool = True) -> list[Published]:
        """Publish all of them, or none, in one transaction; each otherwise as :meth:`publish` does.

        Raises :class:`InvalidRequestError` also for two equal messages that would go with NOTIFY: PostgreSQL delivers
        only one of them.
        """
        self._home.require("PubSub.publish_together()")
        return self._publishing.publish_together(publications, wait=wait)

    def _has_log(self) -> bool:
        """Return whether the database has a log, as this node knows. Raises :class:`DatabaseUnavailableError`."""
        self.start()
        self._follower.wait_known(self.subscribe_timeout_down)
        return self.log.installed

    @property
    def publish_waiting(self) -> int:
        """The number of publications that wait for their commit to begin."""
        return self._publisher.waiting

    def flush(self, seconds: float) -> None:
        """Wait until all publications so far are committed or refused, at most ``seconds``."""
        self._publisher.flush(seconds)

    @property
    def local_count(self) -> int:
        """The number of this program's own subscriptions, each of which is a subscriber of the hub."""
        return len(self._local)

    # -- read the log --------------------------------------------------------------------------------------------------

    def position(self) -> Position | None:
        """Return the newest position of the log on this node; None when the database has no log.

        Waits until this node follows the log. Raises :class:`DatabaseUnavailableError`.
        """
        self.wait_log()
        return self.log.current()

    def oldest(self) -> Position | None:
        """Return the position before the oldest message of the log, as ``since`` for all messages; None without a log.

        Raises :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        self.wait_log()
        return self.log.oldest() if self.log.installed else None

    def read_page(
        self,
        channel: str,
        *,
        since: Since | None = None,
        history: int | None = None,
        limit: int = DEFAULT_MESSAGES,
    ) -> ReplayPage:
        """Return at most ``limit`` messages of the log: after a position, or of the newest ``history`` messages.

        Without ``since`` and ``history`` the page only has the current position. Raises :class:`InvalidRequestError`,
        :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        start = requested_start({"since": since, "history": history})
        self.wait_log()
        return self.log.read_page(channel, start, limit)

    def watch_log(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` when the log's schema is installed or changed."""
        self._log_watchers.append(on_change)

    def wait_log(self, seconds: float | None = None) -> None:
        """Return when this node listens, and knows whether there is a log. Otherwise its position may be outdated.

        Raises :class:`DatabaseUnavailableError` after ``seconds``.
        """
        self.start()
        seconds = self._patience() if seconds is None else seconds
        self.listener.wait(LOG_CHANNEL, seconds)
        self._follower.wait_known(seconds)

    def _patience(self) -> float:
        return self.subscribe_timeout if self.listener.ready else self.subscribe_timeout_down

    # -- for a gateway, which delivers to its own subscribers -------------------------------------------------------

    def add_receiver(self, receiver: NodeReceiver) -> None:
        """Pass all messages and gaps of this node to ``receiver``."""
        self._dispatcher.add_receiver(receiver)

    def join(self, subscriber: Hashable, channel: str) -> None:
        """Subscribe ``subscriber``, which the hub knows, and return once the LISTEN has committed.

        A pattern needs no LISTEN of its own, but the log. When it raises, an earlier subscription of the same
        subscriber stays. Raises :class:`UnknownSubscriberError`, :class:`ListenCancelledError`,
        :class:`DatabaseUnavailableError` or :class:`LogNotInstalledError`.
        """
        self.start()
        new = not self.hub.is_subscribed(subscriber, channel)
        if self.hub.subscribe(subscriber, channel):
            self._listen(channel)
        try:
            timeout = self._patience()
            self.listener.wait(LOG_CHANNEL if is_pattern(channel) else channel, timeout)
            self._follower.wait_known(timeout)
            if is_pattern(channel) and not self.log.installed:
                raise LogNotInstalledError("patterns need the log, which this database does not have")
        except ListenCancelledError:
            raise  # nothing to undo, and a later subscription may have begun
        except BaseException:
            if new:
                self.leave(subscriber, channel)
            raise

    def leave(self, subscriber: Hashable, channel: str) -> None:
        """End one subscription of ``subscriber``."""
        if self.hub.unsubscribe(subscriber, channel):
            self._listen_no_more(channel)

    def drop(self, subscriber: Hashable) -> None:
        """Forget ``subscriber`` and all its subscriptions."""
        for channel in self.hub.drop(subscriber):
            self._listen_no_more(channel)

    def _listen(self, channel: str) -> None:
        if not is_pattern(channel):
            self.listener.acquire(channel)

    def _listen_no_more(self, channel: str) -> None:
        if not is_pattern(channel):
            self.listener.release(channel)

    # -- reserved channels ---------------------------------------------------------------------------------------------

    def receive_reserved(
        self, channel: str, receive: Callable[[Sequence[str]], None], on_gap: Callable[[], None]
    ) -> None:
        """Listen to one of the server's own channels: ``receive`` gets the texts that come together, in order.

        ``on_gap`` is called when some may have been missed. Both are called in the listener's green thread.
        """
        self._dispatcher.reserve(channel, receive, on_gap)
        self.listener.acquire(channel)

    def receive_logged(
        self, channel: str, receive: Callable[[Sequence[str]], None], on_gap: Callable[[], None]
    ) -> None:
        """Receive the payloads, as JSON, of one of the server's own channels in the log.

        ``on_gap`` is called when some are lost. Both are called in the green threads that deliver the log.
        """
        self._dispatcher.reserve_logged(channel, receive, on_gap)

    def publish_reserved(self, channel: str, texts: Iterable[str]) -> None:
        """Send different ``texts`` with NOTIFY on one of the server's own channels, in one transaction.

        Returns after the commit. Raises as :meth:`publish`.
        """
        self._publisher.publish([Outgoing(channel, text) for text in texts], numbered=False)

    def _hear_log(self, texts: Sequence[str]) -> None:
        """Handle notifications of the relay, and those that `init` and `drop` do not seal: only reasons to look."""
        batches = [text for text in texts if text not in (INSTALLED, REMOVED)]
        if len(batches) != len(texts):
            self._on_log_changed()
            self._follower.doubt()
        if batches:
            self._follower.hear(batches)

    def _on_log_changed(self) -> None:
        self.keys.look()
        self._rule_reader.look()
        for on_change in self._log_watchers:
            on_change()
