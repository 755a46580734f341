"""A client for asyncio programs: its subscriptions survive reconnects. Needs a server, no database."""

import asyncio
import inspect
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from socketio_pg.aio.connection import Connection
from socketio_pg.aio.link import Link
from socketio_pg.aio.presence import AsyncPresence
from socketio_pg.core.cursors import Since
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.core.publications import Published
from socketio_pg.subscriber.answers import answer_error
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.login import Login
from socketio_pg.subscriber.newest import EphemeralMessage
from socketio_pg.subscriber.presence_state import PresenceMember
from socketio_pg.subscriber.publishing import Publishing
from socketio_pg.subscriber.subscription import Direct, Gap, Health, Live, Member, Message

__all__ = ["AsyncPresence", "AsyncSubscriber", "AsyncSubscription"]


class AsyncSubscription(Member):
    """A subscription: an asynchronous iterator of messages, made by :meth:`AsyncSubscriber.subscribe`.

    Iterate in one task at a time. A cancelled iteration loses nothing, and may go on later. It ends after
    :meth:`AsyncSubscriber.unsubscribe` and when the subscriber is closed. It raises what ``on_gap`` raises, and
    :class:`SocketIOPGError` when the server has ended the subscription, such as :class:`ForbiddenError`.

    :attr:`position` is the position of the last message that the iteration has returned: store it, and pass it as
    ``since`` next time. None when the server has no log.
    """

    def __init__(
        self,
        channel: str,
        history: int | None,
        since: Since | None,
        on_gap: Callable[[Gap], object] | None,
        on_live: Callable[[Live], object] | None,
        on_ephemeral: Callable[[EphemeralMessage], object] | None,
        most_waiting: int,
        link: Link,
    ) -> None:
        super().__init__(channel, _message, history, since, _gap, _error, None, on_ephemeral)
        self._call_on_gap, self._call_on_live = on_gap, on_live
        self._most = most_waiting
        self._link = link
        self._waiting: deque[Delivery] = deque()
        self._cost = 0
        self._woken: asyncio.Future[None] | None = None

    def __aiter__(self) -> "AsyncSubscription":
        return self

    async def __anext__(self) -> Message:
        while True:
            if self.ended and self.error is None:
                self._waiting.clear()
                raise StopAsyncIteration
            if not self._waiting:
                if self.error is not None and self.ended:
                    raise self.error
                await self._wait()
                continue
            delivery = self._waiting[0]
            call: Callable[[Any], object] | None = None
            if delivery.callback is _gap:
                call = self._call_on_gap
            elif delivery.callback == self.went_live and self.caught_up:
                call = self._call_on_live
            elif delivery.callback == self.take_ephemeral:
                call = self._call_on_ephemeral
            if call is not None:
                if delivery.moved:
                    self.handled = delivery.position
                # It stays in the queue until the call is over: a cancelled call is repeated.
                result = call(delivery.argument)
                if inspect.isawaitable(result):
                    await result
                if not self._waiting or self._waiting[0] is not delivery:
                    continue  # the subscription has ended meanwhile
            self._waiting.popleft()
            self._cost -= delivery.cost
            if delivery.moved:
                self.handled = delivery.position
            self._link.relax(self.channel)
            if delivery.callback == self.went_live:
                self.went_live(delivery.argument)
            if delivery.callback is _message:
                message: Message = delivery.argument
                return message

    async def _call_on_ephemeral(self, _: object) -> None:
        for message in self.ephemeral.take():
            result = None if self.on_ephemeral is None else self.on_ephemeral(message)
            if inspect.isawaitable(result):
                await result

    async def _wait(self) -> None:
        if self._woken is not None:
            raise RuntimeError(f"another task already waits for messages of {self.channel!r}")
        self._woken = asyncio.get_running_loop().create_future()
        try:
            await self._woken
        finally:
            self._woken = None

    # -- used by the link ----------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        return self._cost > self._most

    @property
    def relaxed(self) -> bool:
        return self._cost <= self._most // 2

    def put(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._cost += delivery.cost
        self.wake()

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def end(self) -> None:
        """End without an error, and drop what is queued."""
        self.ended, self.current, self.error = True, False, None
        self._waiting.clear()
        self._cost = 0
        self.wake()


class AsyncSubscriber:
    """Subscriptions over one connection to the server at ``url``, which is reopened whenever it is lost.

    Use it with ``async with``, which connects, and raises :class:`ConnectionError` when the server cannot be reached,
    :class:`UnauthorizedError` when it refuses the token, :class:`AuthenticationUnavailableError` when it cannot check
    the token, and errors raised by ``token``. With ``retry`` it connects in the background instead.

    Arguments, guarantees and errors are those of :class:`socketio_pg.subscriber.Subscriber`, except:

    - ``token`` may also be a function that returns an awaitable. It runs in the event loop: it must not block.
    - Messages come from the subscriptions, which are asynchronous iterators, each with a queue of its own. When more
      than about ``most_waiting`` bytes wait in one, its channel is interrupted until half of that is taken: messages of
      the log then continue without a loss, missed messages of NOTIFY are reported as a gap.
    - ``tls`` is the :class:`ssl.SSLContext` for an ``https://`` address. The only transport is the WebSocket.

    All methods belong to the event loop that has entered the ``async with`` block. They can be cancelled.
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
        most_waiting: int = 16_000_000,
        token: str | Callable[[], str | Awaitable[str | None] | None] | None = None,
        on_health: Callable[[Health], object] | None = None,
        on_direct: Callable[[Direct], object] | None = None,
        auth: Any = None,
        headers: Mapping[str, str] | None = None,
        socketio_path: str = "socket.io",
        tls: ssl.SSLContext | None = None,
        parse_float: Callable[[str], Any] = float,
    ) -> None:
        self._retry = retry
        self._most_waiting = most_waiting
        self._delays = (retry_delay, retry_delay_max)

        def connection(receive: Callable[[Connection, str, Any], None]) -> Connection:
            return Connection(url, socketio_path, headers or {}, tls, receive, parse_float)

        connection(lambda *_: None)  # raises ValueError for an invalid URL
        self._link = Link(
            url,
            None if token is None else Login(token, self._delays),
            connection,
            timeout=timeout,
            retry_delays=self._delays,
            reconnection_delays=(reconnection_delay, reconnection_delay_max),
            on_health=on_health,
            on_direct=on_direct,
            auth=auth,
        )

    async def __aenter__(self) -> "AsyncSubscriber":
        link = self._link
        link.check()
        try:
            link.start(None if self._retry else await link.connect())
        except BaseException:
            await link.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        return self._link.connection is not None

    @property
    def health(self) -> Health | None:
        """The server's last report on its database; None before the first one, and with an older server."""
        return self._link.health

    async def subscribe(
        self,
        channel: str,
        *,
        history: int | None = None,
        since: Since | None = None,
        filter: Mapping[str, Any] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_live: Callable[[Live], object] | None = None,
        on_ephemeral: Callable[[EphemeralMessage], object] | None = None,
    ) -> AsyncSubscription:
        """Return a subscription to ``channel`` once the server has confirmed it. ``async for`` takes its messages.

        Messages of the log arrive in order and exactly once, also across reconnects; replayed ones have ``replayed``.
        ``since``, ``history`` and ``filter`` are those of :meth:`socketio_pg.subscriber.Subscriber.subscribe`.
        Subscriptions of one channel share one at the server: one that is not read holds up the others.

        ``on_gap``, a function or a coroutine function, is called when messages may have been missed, in the task that
        takes the messages and in order with them. So is ``on_live``, when all messages of a replay have been taken: of
        ``since`` and ``history``, and after each reconnect. So is ``on_ephemeral``, with ephemeral messages: of each
        sender and key the newest one.

        Raises :class:`ForbiddenError`, :class:`InvalidChannelError`, :class:`InvalidRequestError`, or another
        :class:`SocketIOPGError` when the server refuses, :class:`DatabaseUnavailableError` when the server had no
        database for ``timeout`` seconds, :class:`TimeoutError` without an answer, :class:`ConnectionError` without a
        connection.
        """
        return await self._subscribe(channel, False, history, since, filter, on_gap, on_live, on_ephemeral)

    async def subscribe_pattern(
        self,
        pattern: str,
        *,
        history: int | None = None,
        since: Since | None = None,
        filter: Mapping[str, Any] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_live: Callable[[Live], object] | None = None,
    ) -> AsyncSubscription:
        """As :meth:`subscribe`, for :meth:`socketio_pg.subscriber.Subscriber.subscribe_pattern`."""
        return await self._subscribe(pattern, True, history, since, filter, on_gap, on_live, None)

    async def _subscribe(
        self,
        channel: str,
        is_pattern: bool,
        history: int | None,
        since: Since | None,
        filter: Mapping[str, Any] | None,
        on_gap: Callable[[Gap], object] | None,
        on_live: Callable[[Live], object] | None,
        on_ephemeral: Callable[[EphemeralMessage], object] | None,
    ) -> AsyncSubscription:
        link = self._link
        link.check()
        subscription = AsyncSubscription(
            channel, history, since, on_gap, on_live, on_ephemeral, self._most_waiting, link
        )
        shared = link.channel(channel, pattern=is_pattern)
        shared.add(subscription, filter)
        try:
            shared.settle()
            await link.changed.wait_for(
                lambda: subscription.established or subscription.ended or link.closed, link.timeout
            )
            if not subscription.established:
                error = subscription.error
                if error is None and link.connection is None:
                    error = ConnectionError(f"no connection to {link.url}")
                raise error or TimeoutError("the server did not answer")
        except BaseException:
            self._end(subscription)
            raise
        return subscription

    async def unsubscribe(self, subscription: AsyncSubscription) -> None:
        """End a subscription: its iteration stops. Idempotent.

        The channel's last subscription waits for the server's confirmation, at most ``timeout`` seconds.
        """
        link = self._link
        self._end(subscription)
        shared = link.channels.get(subscription.channel)
        if shared is not None:
            await link.changed.wait_for(lambda: shared.members or not shared.open or link.closed, link.timeout)

    async def presence(
        self,
        channel: str,
        *,
        on_join: Callable[[PresenceMember], object] | None = None,
        on_update: Callable[[PresenceMember, PresenceMember], object] | None = None,
        on_leave: Callable[[PresenceMember], object] | None = None,
        on_sync: Callable[[dict[str, PresenceMember]], object] | None = None,
        on_error: Callable[[SocketIOPGError], object] | None = None,
    ) -> AsyncPresence:
        """As :meth:`socketio_pg.subscriber.Subscriber.presence`. Handlers are functions that do not block."""
        presence = AsyncPresence(channel, self._link, on_join, on_update, on_leave, on_sync, on_error)
        await presence.open()
        return presence

    async def publish(
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
        :class:`TimeoutError` without an answer. The message may have been sent or not after a TimeoutError, a
        cancellation, and
        after a ConnectionError that says so: publish it again with the same ``id``.
        """
        publishing = Publishing(channel, payload, durable, id, wait, echo, traceparent)
        link, deadline = self._link, time.monotonic() + self._link.timeout
        while True:
            if not publishing.sent:
                link.check()
            connection = link.connection
            answers = [] if connection is None else await self._send(connection, publishing, deadline)
            if answers:
                published = publishing.finish(answers[0])
                if published is not None:
                    return published
                link.adds_ids = False
                continue
            if not publishing.sent:
                raise ConnectionError(f"not published: no connection to {link.url}")
            if publishing.repeatable and link.connection is not connection:
                await link.changed.wait_for(
                    lambda: link.connection is not None or link.closed or link.refusal, deadline - time.monotonic()
                )
                if link.connection is not None:
                    continue
            raise publishing.failure(lost=link.connection is not connection or connection is None)

    async def _send(self, connection: Connection, publishing: Publishing, deadline: float) -> list[Any]:
        """Send a message on ``connection``; return the answer, or nothing."""
        link, answers = self._link, list[Any]()

        def answered(answer: Any) -> None:
            answers.append(answer)
            link.changed.notify_all()

        # `server_hello` is the first event.
        await link.changed.wait_for(
            lambda: link.features is not None or link.connection is not connection, deadline - time.monotonic()
        )
        if connection.emit("publish", publishing.body(link.features or (), adds_id=link.adds_ids), answered):
            await link.changed.wait_for(
                lambda: answers or link.connection is not connection, deadline - time.monotonic()
            )
            publishing.sent |= not answers
        return answers

    def publish_ephemeral(self, channel: str, payload: Any, *, key: str | None = None, echo: bool = False) -> bool:
        """As :meth:`socketio_pg.subscriber.Subscriber.publish_ephemeral`. Does not wait."""
        return self._link.publish_ephemeral(channel, payload, key, echo)

    async def authenticate(self, token: str) -> None:
        """Send a token on this connection: the client has its permissions from now on.

        If ``token`` of the constructor is not a function, later connections use this one too.

        Raises :class:`UnauthorizedError` when the server refuses it, and as :meth:`publish` without an answer.
        """
        await self._request("authenticate", {"token": token}, None, "authenticated", "it may have been accepted or not")
        login = self._link.login
        if login is None or not login.may_change:
            login = self._link.login = Login(token, self._delays)
        login.renewed(token)

    async def close(self) -> None:
        """End all subscriptions and close the connection. Drops messages that are queued. Idempotent."""
        await self._link.close()

    async def _request(self, event: str, body: dict[str, Any], channel: str | None, done: str, doubt: str) -> Any:
        """Send a request and return the server's answer. ``done`` and ``doubt`` are for the errors."""
        link = self._link
        link.check()
        answers: list[Any] = []

        def answered(answer: Any) -> None:
            answers.append(answer)
            link.changed.notify_all()

        connection = link.connection
        if connection is None or not connection.emit(event, body, answered):
            raise ConnectionError(f"not {done}: no connection to {link.url}")
        await link.changed.wait_for(lambda: answers or link.connection is not connection, link.timeout)
        if not answers:
            lost = link.connection is not connection
            what = "the connection was lost" if lost else "the server did not answer"
            raise (ConnectionError if lost else TimeoutError)(f"{what}: {doubt}")
        error: tuple[str, SocketIOPGError] | None = answer_error(answers[0], channel)
        if error is not None:
            raise error[1]
        return answers[0]

    def _end(self, subscription: AsyncSubscription) -> None:
        if not isinstance(subscription, AsyncSubscription):
            raise TypeError("not a subscription")
        subscription.end()
        link = self._link
        shared = link.channels.get(subscription.channel)
        if shared is not None and subscription in shared.members:
            shared.members.remove(subscription)
            link.relax(subscription.channel)
            shared.settle()


# The kinds of deliveries: AsyncSubscription handles them itself.


def _message(_: object) -> None:
    """A message."""


def _gap(_: object) -> None:
    """A gap."""


def _error(_: object) -> None:
    """The error with which the server has ended the subscription."""
