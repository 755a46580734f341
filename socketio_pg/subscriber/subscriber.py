"""A client for Python programs with real threads: its subscriptions survive reconnects. Needs a server, no database.

Needs ``python-socketio[client]`` and its websocket-client; imports neither Flask nor green threads. Programs that
run on green threads and can reach the database use :class:`socketio_pg.PubSub` instead.
"""

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from socketio_pg.core.cursors import Since
from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import Position
from socketio_pg.core.publications import Published
from socketio_pg.subscriber.connection import Connection
from socketio_pg.subscriber.link import Link
from socketio_pg.subscriber.loading import Load, Loader
from socketio_pg.subscriber.login import Login
from socketio_pg.subscriber.newest import EphemeralMessage
from socketio_pg.subscriber.presence import Presence
from socketio_pg.subscriber.presence_state import PresenceMember
from socketio_pg.subscriber.publishing import Publishing
from socketio_pg.subscriber.subscription import Direct, Gap, Health, Live, Member, Message, Subscription

__all__ = [
    "Direct", "EphemeralMessage", "Gap", "Health", "Live", "Message", "Position", "Presence", "PresenceMember",
    "Subscriber", "Subscription",
]  # fmt: skip

logger = logging.getLogger("socketio_pg.subscriber")


class Subscriber:
    """Subscriptions over one connection to the server at ``url``, which is reopened whenever it is lost.

    ``timeout`` is the number of seconds that connecting, :meth:`subscribe`, :meth:`unsubscribe` and :meth:`publish`
    wait for the server. With ``retry`` the constructor returns immediately and connects in the background.
    Failed requests are retried after ``retry_delay`` seconds, doubled with each failure up to ``retry_delay_max``;
    ``reconnection_delay`` and ``reconnection_delay_max`` are the same for connections. All delays have random jitter.
    ``auth``, ``headers``, ``transports`` and ``socketio_path`` are passed to :meth:`socketio.Client.connect`,
    ``client_options`` to :class:`socketio.Client`.

    Integers in payloads are exact; one that int() refuses, by default over 4,300 digits, is a
    :class:`decimal.Decimal`. ``parse_float`` makes the other numbers, as in :func:`json.loads`:
    :class:`decimal.Decimal` keeps all their digits.

    ``token`` is a token, or better a function that returns one: it is called for each connection and before the current
    token expires. It runs in a thread of the subscriber, and delays only reconnects and retries. Errors that it
    raises are logged, and it is called again later. A failed renewal is logged and retried until the old token
    expires; the server then closes the connection, and the subscriber reconnects. When the server keeps refusing
    tokens the subscriber stops: ``on_error`` gets :class:`UnauthorizedError`, and all methods raise it from then
    on, including :meth:`wait`. So it does with :class:`EndedByServerError` when the application or an operator has
    disconnected this client.

    ``on_health`` is called with the server's first report on its database, and with each change. :attr:`health` is the
    last report. ``on_direct`` is called with messages that are sent to this user, without a subscription.

    Handlers are called one after the other in a thread of their own, and may call all methods. When more than about
    ``most_waiting`` bytes are queued for them, subscriptions are interrupted until half of that is handled:
    messages of the log then continue without a loss, missed messages of NOTIFY are reported as a gap.

    All methods are thread-safe. The constructor raises :class:`ConnectionError` when the server cannot be reached,
    :class:`UnauthorizedError` when it refuses the token, :class:`AuthenticationUnavailableError` when it cannot check
    the token, and errors raised by ``token``.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 15.0,
        retry: bool = False,
        retry_delay: float = 1.0,
        retry_delay_max: float = 15.0,
        reconnection_delay: float = 0.5,
        reconnection_delay_max: float = 5.0,
        most_waiting: int = 64_000_000,
        token: str | Callable[[], str | None] | None = None,
        on_health: Callable[[Health], object] | None = None,
        on_direct: Callable[[Direct], object] | None = None,
        auth: Any = None,
        headers: Any = None,
        transports: Sequence[str] = ("websocket",),
        socketio_path: str = "socket.io",
        parse_float: Callable[[str], Any] = float,
        **client_options: Any,
    ) -> None:
        retry_delays = (retry_delay, retry_delay_max)
        self._link = Link(
            url,
            None if token is None else Login(token, retry_delays),
            timeout=timeout,
            retry_delays=retry_delays,
            reconnection_delays=(reconnection_delay, reconnection_delay_max),
            most_waiting=most_waiting,
            on_health=on_health,
            on_direct=on_direct,
            connect_options={
                "auth": auth, "headers": headers or {}, "transports": list(transports), "socketio_path": socketio_path
            },
            # Without it the stock client gives up after 5 s, whatever the timeout.
            client_options={"handle_sigint": False, "request_timeout": timeout}
            | client_options
            | {"reconnection": False},
            parse_float=parse_float,
        )  # fmt: skip
        if not retry:
            self._link.connect()
        self._link.start()

    @property
    def connected(self) -> bool:
        return self._link.connection is not None

    @property
    def health(self) -> Health | None:
        """The server's last report on its database; None before the first one, and with an older server."""
        return self._link.health

    def subscribe(
        self,
        channel: str,
        handler: Callable[[Message], object],
        *,
        history: int | None = None,
        since: Since | None = None,
        filter: Mapping[str, Any] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_error: Callable[[SocketIOPGError], object] | None = None,
        on_live: Callable[[Live], object] | None = None,
        on_ephemeral: Callable[[EphemeralMessage], object] | None = None,
        load: Load | None = None,
        on_rows: Callable[[Any], object] | None = None,
    ) -> Subscription:
        """Call ``handler`` with each message of ``channel``; return once the server has confirmed the subscription.

        Messages of the log arrive in order and exactly once, also across reconnects; replayed ones have ``replayed``.
        The order between them and messages of NOTIFY is undefined. ``since`` is a stored position, after which the
        messages are replayed (also as ``"EPOCH:POSITION"``), a time with its zone, or a token of the SQL function
        ``socketio_pg.snapshot()``. ``history`` replays that many of the newest messages (ignored when ``since`` is
        given). All handlers of a channel share one subscription at the server and must therefore have the same
        ``filter``: conditions on the payload, as in docs/protocol.md (``{"new.id": 5}``).

        ``on_gap`` is called when messages may have been missed, ``on_error`` when the subscription has ended because
        the server refused to renew it or revoked the permission (:class:`ForbiddenError`). Both are called
        in the handlers' thread, like ``handler``; errors that they raise are logged.

        ``on_live`` is called when the handler has been given all messages of the replay, or if there are none, and
        again after each reconnect. The subscription's event ``live`` is set then.

        ``on_ephemeral`` is called with ephemeral messages, ``handler`` gets none. If it is slow, it gets the newest one
        of each sender and key.

        ``load`` reads the rows that the messages change, and returns ``(rows, token)``, or the token alone: see
        docs/snapshots.md. The handler gets exactly the messages that are not in the rows; ``on_rows`` is called with
        the rows before that. The first call is here, and its errors are raised. It is called again, in a thread of its
        own, when messages of the log are missing (instead of ``on_gap``). Its errors are then logged, and it is
        retried; messages wait meanwhile. Not together with ``since`` and ``history``.

        Raises :class:`ForbiddenError`, :class:`InvalidChannelError`, :class:`InvalidRequestError`, or another
        :class:`SocketIOPGError` when the server refuses, :class:`DatabaseUnavailableError` when the server had no
        database for ``timeout`` seconds, :class:`TimeoutError` without an answer, :class:`ConnectionError` without a
        connection.
        """
        arguments = (handler, history, since, filter, on_gap, on_error, on_live, on_ephemeral, load, on_rows)
        return self._subscribe(channel, False, *arguments)

    def subscribe_pattern(
        self,
        pattern: str,
        handler: Callable[[Message], object],
        *,
        history: int | None = None,
        since: Since | None = None,
        filter: Mapping[str, Any] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_error: Callable[[SocketIOPGError], object] | None = None,
        on_live: Callable[[Live], object] | None = None,
        load: Load | None = None,
        on_rows: Callable[[Any], object] | None = None,
    ) -> Subscription:
        """As :meth:`subscribe`, to the channels that match a pattern, in which ``*`` stands for any characters.

        All messages of the log arrive, but not all of NOTIFY; ephemeral messages do not. A message goes to the handlers
        of its channel, too. ``since`` and ``history`` are of all these channels together.
        """
        arguments = (handler, history, since, filter, on_gap, on_error, on_live, None, load, on_rows)
        return self._subscribe(pattern, True, *arguments)

    def _subscribe(
        self,
        channel: str,
        is_pattern: bool,
        handler: Callable[[Message], object],
        history: int | None,
        since: Since | None,
        filter: Mapping[str, Any] | None,
        on_gap: Callable[[Gap], object] | None,
        on_error: Callable[[SocketIOPGError], object] | None,
        on_live: Callable[[Live], object] | None,
        on_ephemeral: Callable[[EphemeralMessage], object] | None,
        load: Load | None,
        on_rows: Callable[[Any], object] | None,
    ) -> Subscription:
        link = self._link
        if load is None:
            loader, rows = None, None
        elif since is not None or history is not None:
            raise InvalidRequestError("load does not go together with since and history", channel=channel)
        else:
            loader = Loader(load, on_rows, link)
            rows, since = loader.load()
        subscription = Member(channel, handler, history, since, on_gap, on_error, on_live, on_ephemeral)
        with link.lock:
            link.check()
            shared = link.channel(channel, pattern=is_pattern)
            shared.add(subscription, filter)
            if loader is not None:
                subscription.reload = functools.partial(loader.reload, shared, subscription)
                loader.deliver(subscription, rows)
            shared.settle()
            link.changed.wait_for(lambda: subscription.established or subscription.ended or link.closed, link.timeout)
            if subscription.established:
                return subscription
            error = subscription.error
            if error is None and link.connection is None:
                error = ConnectionError(f"no connection to {link.url}")
            self._end(subscription)
            raise error or TimeoutError("the server did not answer")

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription. Its handler is not called any more, but a call may still be running. Idempotent.

        The channel's last subscription waits for the server's confirmation, at most ``timeout`` seconds.
        """
        link = self._link
        with link.lock:
            self._end(subscription)
            shared = link.channels.get(subscription.channel)
            if shared is not None:
                link.changed.wait_for(lambda: shared.members or not shared.open or link.closed, link.timeout)

    def presence(
        self,
        channel: str,
        *,
        on_join: Callable[[PresenceMember], object] | None = None,
        on_update: Callable[[PresenceMember, PresenceMember], object] | None = None,
        on_leave: Callable[[PresenceMember], object] | None = None,
        on_sync: Callable[[dict[str, PresenceMember]], object] | None = None,
        on_error: Callable[[SocketIOPGError], object] | None = None,
    ) -> Presence:
        """Watch who is present on ``channel``; return once the members are known. Join with :meth:`Presence.join`.

        ``on_join`` is not called for those who are there at first. ``on_update`` gets the member and the former one: a
        state has changed, or another connection of the same member has come or gone. ``on_sync`` gets all members after
        each change, and when they are known for the first time or again. ``on_error`` is called when the server has
        ended it, and with refusals.

        Raises as :meth:`subscribe`.
        """
        with self._link.lock:
            presence = Presence(channel, self._link, on_join, on_update, on_leave, on_sync, on_error)
        presence.open()
        return presence

    def publish(
        self,
        channel: str,
        payload: Any,
        durable: bool | None = None,
        *,
        id: str | None = None,
        wait: bool = True,
        echo: bool = True,
        traceparent: str | None = None,
    ) -> Published:
        """Publish any JSON value; return after the commit.

        ``durable``, ``id``, ``wait``, ``echo`` and ``traceparent`` are those of docs/protocol.md. The result has the
        position of a message of the log; without ``wait`` it has none, and comes some milliseconds earlier. Unless
        ``durable`` is False, the message has an id, by default a new one: if the connection is lost before the answer,
        it is sent again on the next one, and is published once.

        Raises :class:`ForbiddenError`, :class:`InvalidChannelError`, :class:`InvalidRequestError`,
        :class:`PayloadTooLargeError`, :class:`LogNotInstalledError`, :class:`DatabaseUnavailableError`;
        :class:`ConnectionError` without a connection, or when it is lost before the answer and the message has no id;
        :class:`TimeoutError` without an answer. The message may have been sent or not after a TimeoutError, and
        after a ConnectionError that says so: publish it again with the same ``id``.
        """
        publishing = Publishing(channel, payload, durable, id, wait, echo, traceparent)
        link, deadline = self._link, time.monotonic() + self._link.timeout
        with link.lock:
            while True:
                if not publishing.sent:
                    link.check()
                connection = link.connection
                answers = [] if connection is None else self._send(connection, publishing, deadline)
                if answers:
                    published = publishing.finish(answers[0])
                    if published is not None:
                        return published
                    link.adds_ids = False
                    continue
                if not publishing.sent:
                    raise ConnectionError(f"not published: no connection to {link.url}")
                if publishing.repeatable and link.connection is not connection:
                    link.changed.wait_for(
                        lambda: link.connection is not None or link.closed or link.refusal, deadline - time.monotonic()
                    )
                    if link.connection is not None:
                        continue
                raise publishing.failure(lost=link.connection is not connection or connection is None)

    def _send(self, connection: Connection, publishing: Publishing, deadline: float) -> list[Any]:
        """Send a message on ``connection``; return the answer, or nothing. Holds the lock."""
        link, answers = self._link, list[Any]()

        def answered(answer: Any) -> None:
            answers.append(answer)
            link.changed.notify_all()

        # `server_hello` is the first event.
        link.changed.wait_for(
            lambda: link.features is not None or link.connection is not connection, deadline - time.monotonic()
        )
        if connection.emit("publish", publishing.body(link.features or (), adds_id=link.adds_ids), answered):
            link.changed.wait_for(lambda: answers or link.connection is not connection, deadline - time.monotonic())
            publishing.sent |= not answers
        return answers

    def publish_ephemeral(self, channel: str, payload: Any, *, key: str | None = None, echo: bool = False) -> bool:
        """Send an ephemeral message to the subscribers of ``channel``; return whether it was sent.

        It was not sent without a connection, and when the server knows no such messages. It may get lost afterwards.
        ``key`` and ``echo`` are those of docs/protocol.md. Errors that the server answers are logged.
        """
        with self._link.lock:
            return self._link.publish_ephemeral(channel, payload, key, echo)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until :meth:`close` is called, or for ``timeout`` seconds; return whether it was called.

        Raises :class:`UnauthorizedError` when the server keeps refusing the token, and :class:`EndedByServerError` when
        the application or an operator has disconnected this client.
        """
        link = self._link
        with link.lock:
            link.changed.wait_for(lambda: link.closed or link.refusal, timeout)
            if link.refusal is not None and not link.closed:
                raise link.refusal
            return link.closed

    def close(self) -> None:
        """End all subscriptions and close the connection. Drops messages that are queued for handlers. Idempotent.

        Waits for a running handler, unless called from it.
        """
        self._link.close()

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, subscription: Subscription) -> None:
        if not isinstance(subscription, Member):
            raise TypeError("not a subscription")
        subscription.ended = True
        subscription.current = False
        shared = self._link.channels.get(subscription.channel)
        if shared is not None and subscription in shared.members:
            shared.members.remove(subscription)
            shared.settle()
