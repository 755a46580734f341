"""Subscriptions that outlive their connection, for Python programs with real threads. Needs a server, and no database.

Needs ``python-socketio[client]`` and its websocket-client; imports neither Flask nor eventlet. Programs that are green
themselves and reach the database have :class:`socketio_pg.PubSub`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.core.messages import encode_payload
from socketio_pg.subscriber.connection import answer_error
from socketio_pg.subscriber.link import Link
from socketio_pg.subscriber.login import Login
from socketio_pg.subscriber.subscription import Gap, Member, Message, Position, Subscription

__all__ = ["Gap", "Message", "Position", "Subscriber", "Subscription"]

logger = logging.getLogger("socketio_pg.subscriber")


class Subscriber:
    """A connection to the server at ``url``, made again whenever it is lost, with its subscriptions.

    ``timeout`` is how many seconds connecting, :meth:`subscribe`, :meth:`unsubscribe` and :meth:`publish` wait for the
    server. With ``retry`` the constructor returns at once, and the connection is tried until it is there.
    ``retry_delay`` and ``retry_delay_max`` are the seconds before what has failed is tried again (doubled with each
    failure), ``reconnection_delay`` and ``reconnection_delay_max`` the same for the connection; each is spread at
    random. ``auth``, ``headers``, ``transports`` and ``socketio_path`` are those of :meth:`socketio.Client.connect`,
    ``client_options`` those of :class:`socketio.Client`.

    ``token`` is a token, or a function that is called for each connection and before its token's end: better, because
    it can return a new one. It is called in a thread of the subscriber's, which does nothing else meanwhile; what it
    raises is logged, and it is called again later. A renewal that fails is logged, and tried again until the old token
    has ended, when the server closes the connection, and another one is made. When the server goes on refusing tokens
    the subscriber has ended: ``on_error`` is told with :class:`UnauthorizedError`, which all methods raise from then
    on, :meth:`wait` as well.

    Handlers are called in one thread that is theirs alone, one after the other, and may call all methods. When more
    than ``most_waiting`` bytes wait for them (about), the subscriptions are interrupted until half of it is handled:
    messages of the log then come from where they were, NOTIFY's are reported as a gap.

    All methods can be called from any thread. Raises :class:`ConnectionError` when the server cannot be reached,
    :class:`UnauthorizedError` when it refuses the token, :class:`AuthenticationUnavailableError` when it cannot check
    it, and what ``token`` raises.
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
        auth: Any = None,
        headers: Any = None,
        transports: Sequence[str] = ("websocket",),
        socketio_path: str = "socket.io",
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
            connect_options={
                "auth": auth, "headers": headers or {}, "transports": list(transports), "socketio_path": socketio_path
            },
            client_options={"handle_sigint": False} | client_options | {"reconnection": False},
        )  # fmt: skip
        if not retry:
            self._link.connect()
        self._link.start()

    @property
    def connected(self) -> bool:
        return self._link.connection is not None

    def subscribe(
        self,
        channel: str,
        handler: Callable[[Message], object],
        *,
        history: int | None = None,
        since: Position | None = None,
        filter: Mapping[str, Any] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_error: Callable[[SocketIOPGError], object] | None = None,
    ) -> Subscription:
        """Call ``handler`` with each message of ``channel``; returns when the server has confirmed it.

        Messages of the log come in order, each once, also across reconnects; ``replayed`` is with those that were sent
        again from it. Between them and those of NOTIFY there is no order. ``since``, a remembered position, replays
        what follows it; ``history`` replays so many of the newest (and is not used where ``since`` is given). Any
        number of handlers for a channel share one subscription at the server, so they have the same ``filter``:
        conditions on the payload, as in docs/protocol.md (``{"new.id": 5}``).

        ``on_gap`` is told when messages may have been missed, ``on_error`` when the subscription has ended: the server
        has refused to renew it, or does not allow it any more (:class:`ForbiddenError`). Like ``handler`` they are
        called in the handlers' thread; what they raise is logged.

        Raises :class:`ForbiddenError`, :class:`InvalidChannelError`, :class:`InvalidRequestError`, or another
        :class:`SocketIOPGError` when the server refuses, :class:`DatabaseUnavailableError` when it could not within
        ``timeout``, :class:`TimeoutError` when it did not answer, :class:`ConnectionError` when it was not reached.
        """
        link = self._link
        subscription = Member(channel, handler, history, since, on_gap, on_error)
        with link.lock:
            link.check()
            shared = link.channel(channel)
            shared.add(subscription, filter)
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
        """End a subscription: its handler is not called any more, though a call may be under way. Twice is harmless.

        Returns when the server has confirmed it, where it was the channel's last, or after ``timeout``.
        """
        link = self._link
        with link.lock:
            self._end(subscription)
            shared = link.channels.get(subscription.channel)
            if shared is not None:
                link.changed.wait_for(lambda: shared.members or not shared.open or link.closed, link.timeout)

    def publish(self, channel: str, payload: Any, durable: bool | None = None) -> None:
        """Publish any JSON value; returns after the commit. ``durable`` as in docs/protocol.md.

        Raises :class:`ForbiddenError`, :class:`InvalidChannelError`, :class:`InvalidRequestError`,
        :class:`PayloadTooLargeError`, :class:`DatabaseUnavailableError`; :class:`ConnectionError` without a connection.
        After a ConnectionError while it waited, and a :class:`TimeoutError`, the message may have been sent or not.
        """
        encode_payload(payload)  # here it can be said what is wrong
        request: dict[str, Any] = {"channel": channel, "payload": payload}
        if durable is not None:
            request["durable"] = durable
        link = self._link
        answers: list[Any] = []

        def answered(answer: Any) -> None:
            answers.append(answer)
            link.changed.notify_all()

        with link.lock:
            link.check()
            connection = link.connection
            if connection is None or not connection.emit("publish", request, answered):
                raise ConnectionError(f"not published: no connection to {link.url}")
            link.changed.wait_for(lambda: answers or link.connection is not connection, link.timeout)
        if not answers:
            lost = link.connection is not connection
            what = "the connection was lost" if lost else "the server did not answer"
            raise (ConnectionError if lost else TimeoutError)(f"{what}: the message may have been sent or not")
        error = answer_error(answers[0], channel)
        if error is not None:
            raise error[1]

    def wait(self, timeout: float | None = None) -> bool:
        """Return when :meth:`close` was called, or after ``timeout`` seconds; whether it was.

        Raises :class:`UnauthorizedError` when the server goes on refusing the token.
        """
        link = self._link
        with link.lock:
            link.changed.wait_for(lambda: link.closed or link.refusal, timeout)
            if link.refusal is not None and not link.closed:
                raise link.refusal
            return link.closed

    def close(self) -> None:
        """End all subscriptions and the connection. What the handlers have not got yet they do not get.

        Waits for a handler that is at work, except when that one calls it. Twice is harmless.
        """
        self._link.close()

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, subscription: Subscription) -> None:
        if not isinstance(subscription, Member):
            raise TypeError("this is no subscription")
        subscription.ended = True
        subscription.live = False
        shared = self._link.channels.get(subscription.channel)
        if shared is not None and subscription in shared.members:
            shared.members.remove(subscription)
            shared.settle()
