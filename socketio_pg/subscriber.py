"""Subscriptions that outlive their connection, for Python programs with real threads. Needs a server, and no database.

Needs ``python-socketio[client]`` and its websocket-client; imports neither Flask nor eventlet. Programs that are green
themselves and reach the database have :class:`socketio_pg.PubSub`.
"""

import contextlib
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypedDict

import engineio
import socketio

from socketio_pg.errors import (
    AuthenticationUnavailableError,
    DatabaseUnavailableError,
    ForbiddenError,
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
    SocketIOPGError,
    UnauthorizedError,
)
from socketio_pg.messages import encode_payload

logger = logging.getLogger("socketio_pg.subscriber")


class Position(TypedDict):
    """A place in the log. Positions can only be compared within one epoch."""

    epoch: str
    position: int


class _Message(TypedDict):
    channel: str
    payload: Any


class Message(_Message, total=False):
    """A message as in docs/protocol.md: ``channel``, ``payload``, and the rest only for messages of the log.

    ``epoch`` and ``position`` together are what ``since`` takes.
    """

    epoch: str
    position: int
    published_at: str
    replayed: bool


class _Gap(TypedDict):
    channel: str
    tier: Literal["notify", "log"]
    reason: str


class Gap(_Gap, total=False):
    """Messages may have been missed: fetch again what must not be stale.

    ``tier`` says which. ``notify``: those of NOTIFY; all messages of the log still arrive, so who publishes only
    through the log can ignore it. ``log``: those of the log are lost for this subscription. Both are reported when both
    have happened.

    The reasons of docs/protocol.md, and two of the tier ``notify`` that are this client's own: ``client_disconnected``,
    at every reconnect (of the tier ``log`` only where the log was installed meanwhile), and ``slow_handler``, when so
    much was waiting for the handlers that the subscription was interrupted.

    ``since`` and ``until`` (ISO 8601) bound the time that is in doubt: by the server's clock with
    ``database_connection_lost``, otherwise by this machine's. ``epoch`` and ``position`` are there when the
    subscription goes on from another position.
    """

    since: str
    until: str
    epoch: str | None
    position: int


_ERRORS: dict[str, type[SocketIOPGError]] = {
    error.code: error
    for error in (
        InvalidRequestError, InvalidChannelError, PayloadTooLargeError, DatabaseUnavailableError,
        UnauthorizedError, AuthenticationUnavailableError, ForbiddenError,
    )
}  # fmt: skip
#: Worth another try, later. So is "internal" for what has worked before.
_TRANSIENT = frozenset({"database_unavailable", "rate_limited", "no_answer"})
#: Tokens refused in a row before that is believed: one can expire on its way, or be newer than the server's clock.
_MOST_REFUSALS = 3
#: The server warns 30 s before a token's end, which many tokens may share: seconds over which renewals are spread.
_RENEWAL_SPREAD = 10.0


class Subscription:
    """What :meth:`Subscriber.subscribe` returns: one handler's subscription."""

    def __init__(
        self,
        channel: str,
        handler: Callable[[Message], object],
        history: int | None,
        since: Position | None,
        on_gap: Callable[[Gap], object] | None,
        on_error: Callable[[SocketIOPGError], object] | None,
    ) -> None:
        self.channel = channel
        self._handler, self._on_gap, self._on_error = handler, on_gap, on_error
        self._history = None if since else history
        if since is not None and _position(since) is None:
            raise InvalidRequestError('since must be like {"epoch": "…", "position": 0}', channel=channel)
        #: Where the handler is, and where what has been received is. The epoch is "" while it is not known: the log was
        #: installed when we had subscribed already.
        self._handled = self._received = None if since is None else _position(since)
        self._established = self._live = self._ended = False
        #: Since when messages of NOTIFY are missing (seconds of the epoch), and why.
        self._lost: tuple[float, str] | None = None
        #: The last failure, while the first confirmation is waited for.
        self._error: Exception | None = None

    @property
    def position(self) -> Position | None:
        """Up to where everything was handed to the handler, the message that it is handling included.

        Store it, and pass it as ``since`` next time. None where the server has no log.
        """
        return self._handled.copy() if self._handled and self._handled["epoch"] else None

    @property
    def _lacks_epoch(self) -> bool:
        return self._received is not None and not self._received["epoch"]

    def _follows(self, start: Position) -> bool:
        mine = self._received
        return mine is not None and mine["epoch"] == start["epoch"] and mine["position"] >= start["position"]


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
        self._url = url
        self._timeout = timeout
        self._retry_delays = (retry_delay, retry_delay_max)
        self._reconnection_delays = (reconnection_delay, reconnection_delay_max)
        self._connect_options = {
            "auth": auth, "headers": headers or {}, "transports": list(transports), "socketio_path": socketio_path
        }  # fmt: skip
        self._client_options = {"handle_sigint": False} | client_options | {"reconnection": False}
        self._login = None if token is None else _Login(token, self._retry_delays)
        self._lock = threading.RLock()
        #: Notified when a call may have its answer, when the connection comes and goes, and at the end.
        self._changed = threading.Condition(self._lock)
        self._deliveries = _Deliveries(self._lock, most_waiting)
        self._connection: _Connection | None = None
        self._channels: dict[str, _Channel] = {}
        #: Those that wait for the handlers to catch up.
        self._paused: set[_Channel] = set()
        self._closed = False
        #: Why no connection is tried any more.
        self._refusal: UnauthorizedError | None = None
        #: When the worker looks after the channels by itself (time.monotonic()).
        self._due = math.inf
        self._wake_worker = threading.Condition(self._lock)
        if not retry:
            self._connect()
        self._threads = [
            threading.Thread(target=target, name=f"socketio_pg-{name}", daemon=True)
            for name, target in (("connection", self._run), ("handlers", self._deliver))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def subscribe(
        self,
        channel: str,
        handler: Callable[[Message], object],
        *,
        history: int | None = None,
        since: Position | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_error: Callable[[SocketIOPGError], object] | None = None,
    ) -> Subscription:
        """Call ``handler`` with each message of ``channel``; returns when the server has confirmed it.

        Messages of the log come in order, each once, also across reconnects; ``replayed`` is with those that were sent
        again from it. Between them and those of NOTIFY there is no order. ``since``, a remembered position, replays
        what follows it; ``history`` replays so many of the newest (and is not used where ``since`` is given). Any
        number of handlers for a channel share one subscription at the server.

        ``on_gap`` is told when messages may have been missed, ``on_error`` when the subscription has ended: the server
        has refused to renew it, or does not allow it any more (:class:`ForbiddenError`). Like ``handler`` they are
        called in the handlers' thread; what they raise is logged.

        Raises :class:`ForbiddenError`, :class:`InvalidChannelError`, :class:`InvalidRequestError`, or another
        :class:`SocketIOPGError` when the server refuses, :class:`DatabaseUnavailableError` when it could not within
        ``timeout``, :class:`TimeoutError` when it did not answer, :class:`ConnectionError` when it was not reached.
        """
        subscription = Subscription(channel, handler, history, since, on_gap, on_error)
        with self._lock:
            self._check_not_closed()
            shared = self._channels.get(channel)
            if shared is None:
                shared = self._channels[channel] = _Channel(channel, self)
            shared.members.append(subscription)
            shared.settle()
            self._changed.wait_for(
                lambda: subscription._established or subscription._ended or self._closed, self._timeout
            )
            if subscription._established:
                return subscription
            error = subscription._error
            if error is None and self._connection is None:
                error = ConnectionError(f"no connection to {self._url}")
            self._end(subscription)
            raise error or TimeoutError("the server did not answer")

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription: its handler is not called any more, though a call may be under way. Twice is harmless.

        Returns when the server has confirmed it, where it was the channel's last, or after ``timeout``.
        """
        with self._lock:
            self._end(subscription)
            shared = self._channels.get(subscription.channel)
            if shared is not None:
                self._changed.wait_for(lambda: shared.members or not shared.open or self._closed, self._timeout)

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
        answers: list[Any] = []

        def answered(answer: Any) -> None:
            answers.append(answer)
            self._changed.notify_all()

        with self._lock:
            self._check_not_closed()
            connection = self._connection
            if connection is None or not connection.emit("publish", request, answered):
                raise ConnectionError(f"not published: no connection to {self._url}")
            self._changed.wait_for(lambda: answers or self._connection is not connection, self._timeout)
        if not answers:
            lost = self._connection is not connection
            what = "the connection was lost" if lost else "the server did not answer"
            raise (ConnectionError if lost else TimeoutError)(f"{what}: the message may have been sent or not")
        error = _error(answers[0], channel)
        if error is not None:
            raise error[1]

    def wait(self, timeout: float | None = None) -> bool:
        """Return when :meth:`close` was called, or after ``timeout`` seconds; whether it was.

        Raises :class:`UnauthorizedError` when the server goes on refusing the token.
        """
        with self._lock:
            self._changed.wait_for(lambda: self._closed or self._refusal, timeout)
            if self._refusal is not None and not self._closed:
                raise self._refusal
            return self._closed

    def close(self) -> None:
        """End all subscriptions and the connection. What the handlers have not got yet they do not get.

        Waits for a handler that is at work, except when that one calls it. Twice is harmless.
        """
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
            for channel in self._channels.values():
                for member in channel.members:
                    member._ended = True
            self._channels.clear()
            self._deliveries.wake()
            self._changed.notify_all()
            self._wake_worker.notify()
        if connection is not None:
            connection.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ConnectionError("the subscriber is closed")
        if self._refusal is not None:
            raise self._refusal

    def _end(self, subscription: Subscription) -> None:
        subscription._ended = True
        subscription._live = False
        shared = self._channels.get(subscription.channel)
        if shared is not None and subscription in shared.members:
            shared.members.remove(subscription)
            shared.settle()

    # -- the connection: made by the worker, heard in its own reading thread ------------------------------------------

    def _connect(self) -> None:
        options = self._connect_options
        if self._login is not None and options["auth"] is None:
            options = options | {"auth": self._login.bring()}
        connection = _Connection(self._client_options, self._lock, self._receive)
        connection.connect(self._url, options, self._timeout)
        if self._closed:  # meanwhile
            connection.close()

    def _receive(self, connection: "_Connection", event: str, body: Any) -> None:
        """What the server sends, in order, and the connection's own ``connect`` and ``disconnect``. With the lock."""
        if event == "connect":
            if not self._closed:
                self._connection = connection
                for channel in list(self._channels.values()):
                    channel.settle()
        elif connection is not self._connection:
            return
        elif event == "disconnect":
            self._connection = None
            for channel in list(self._channels.values()):
                channel.lose(connection.heard, "client_disconnected")
            if self._login is not None:
                self._login.rest()
            self._wake_worker.notify()
        elif event == "token_expiring":
            if self._login is not None:
                self._schedule(self._login.expires(body))
        elif isinstance(body, dict) and body.get("channel") in self._channels:
            channel = self._channels[body["channel"]]
            if event == "event":
                channel.receive(body, connection.size)
            elif event == "gap":
                channel.receive_gap(body)
            elif event == "subscribed":
                channel.check_subscribed(body)
            elif event == "unsubscribed":
                channel.check_unsubscribed(body)
        if event in ("connect", "disconnect"):
            self._changed.notify_all()

    def _run(self) -> None:
        attempt = refusals = 0
        while True:
            with self._lock:
                if self._closed:
                    return
                connection = self._connection
                if connection is not None:
                    attempt = refusals = 0
                    self._look_after_channels()
                else:
                    self._wake_worker.wait_for(lambda: self._closed, _spread(self._reconnection_delays, attempt))
                    if self._closed:
                        return
            if connection is not None:
                if self._login is not None and time.monotonic() >= self._login.due:
                    self._renew(connection, self._login)
                continue
            attempt += 1
            try:
                self._connect()
            except (ConnectionError, AuthenticationUnavailableError) as error:
                logger.info("%s; retrying", error)
            except UnauthorizedError as error:
                refusals += 1
                if refusals >= _MOST_REFUSALS:
                    self._give_up(error)
                    return
                logger.warning("the server refused the token: %s; retrying", error)
            except Exception:
                logger.exception("connecting to %s failed; retrying", self._url)

    def _look_after_channels(self) -> None:
        """Wait until something is to be done. With the lock."""
        due = [channel.due for channel in self._channels.values()]
        self._due = min([*due, math.inf if self._login is None else self._login.due])
        self._wake_worker.wait(None if self._due == math.inf else max(0.0, self._due - time.monotonic()))
        if self._connection is not None and time.monotonic() >= min(due, default=math.inf):
            for channel in list(self._channels.values()):
                channel.settle()

    def _renew(self, connection: "_Connection", login: "_Login") -> None:
        """Bring a new token before the old one has ended. Without the lock: getting it can take long."""
        token = None
        try:
            token = login.fetch()
        except Exception:
            logger.exception("there is no new token; retrying")
        else:
            if token is None or token == login.brought:
                logger.warning("there is no new token; retrying")

        def answered(answer: Any) -> None:
            error = _error(answer)
            if error is None:
                login.renewed(token)
                self._changed.notify_all()
            else:
                logger.warning("the server refused the new token: %s; retrying", error[1])
                self._schedule(login.failed())

        with self._lock:
            if self._connection is not connection:
                return
            if token is None or token == login.brought:
                login.failed()
            elif connection.emit("authenticate", {"token": token}, answered):
                login.due = time.monotonic() + self._timeout

    def _give_up(self, error: UnauthorizedError) -> None:
        logger.error("the server refused the token: %s; the subscriber has ended", error)
        with self._lock:
            self._refusal = error
            for channel in list(self._channels.values()):
                channel.end(channel.members, error)
                channel.settle()
            self._changed.notify_all()

    def _schedule(self, due: float) -> None:
        """Something is to be done at ``due`` (time.monotonic())."""
        if due < self._due:
            self._wake_worker.notify()

    # -- the handlers' thread -----------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        # Without the lock where it can be: the reading thread takes it for each message.
        while (delivery := self._deliveries.get(lambda: self._closed)) is not None:
            if self._paused and self._deliveries.relaxed:
                with self._lock:
                    paused, self._paused = self._paused, set()
                    for channel in paused:
                        channel.settle()
            subscription = delivery.subscription
            if subscription._ended and not delivery.last:
                continue
            if delivery.moved:
                subscription._handled = delivery.position
            try:
                delivery.callback(delivery.argument)
            except Exception:
                logger.exception("a handler of the channel %r failed", subscription.channel)


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Something for a handler; with ``moved``, ``position`` is where its subscription is then."""

    subscription: Subscription
    callback: Callable[[Any], object]
    argument: Any
    position: Position | None = None
    moved: bool = False
    cost: int = 0
    last: bool = False


class _Deliveries:
    """What waits for the handlers, with what it costs in memory. Put under the lock, taken by one thread without it."""

    def __init__(self, lock: threading.RLock, most: int) -> None:
        self._filled = threading.Condition(lock)
        self._waiting: deque[_Delivery] = deque()
        self._most = most
        #: All that was ever put costs, and all that was taken: each is counted by one thread.
        self._put = self._taken = 0

    @property
    def cost(self) -> int:
        """Bytes that wait, about."""
        return self._put - self._taken

    @property
    def full(self) -> bool:
        return self.cost > self._most

    @property
    def relaxed(self) -> bool:
        return self.cost <= self._most // 2

    def put(self, delivery: _Delivery) -> None:
        self._waiting.append(delivery)
        self._put += delivery.cost
        self._filled.notify()

    def get(self, closed: Callable[[], bool]) -> _Delivery | None:
        """The next; None when ``closed()``."""
        if not self._waiting:
            with self._filled:
                self._filled.wait_for(lambda: self._waiting or closed())
        if closed():
            return None
        delivery = self._waiting.popleft()
        self._taken += delivery.cost
        return delivery

    def wake(self) -> None:
        self._filled.notify()


class _Request(TypedDict, total=False):
    since: Position
    history: int


class _Channel:
    """A channel: brings the server's subscription to what the members need, with one request at a time.

    All methods are called with the subscriber's lock held.
    """

    def __init__(self, name: str, subscriber: Subscriber) -> None:
        self.name = name
        self.members: list[Subscription] = []
        #: As far as is known, the server has a subscription.
        self.open = False
        #: When :meth:`settle` is to be called even if nothing happens.
        self.due = math.inf
        self._subscriber = subscriber
        self._attempt = 0
        #: The event that is not answered yet, and whose it is; answers to others come too late.
        self._awaited: tuple[str, list[Subscription]] | None = None

    def settle(self) -> None:
        """Send the next request, when there is one and none is on its way; called again whenever something changes."""
        connection = self._subscriber._connection
        if connection is None:
            self._forget_if_done()
            return
        if self._awaited is not None:
            if time.monotonic() < self.due:
                return
            self._fail("no_answer", TimeoutError("the server did not answer"))
        new = any(one._error is None and not one._established for one in self.members)
        if time.monotonic() < self.due < math.inf and not new:
            return  # to be tried again later
        request = self._next()
        if request is None:
            self.due = math.inf
            self._forget_if_done()
            return
        event, body, whose = request
        if event == "subscribe":
            self.open = True
        awaited = self._awaited = (event, whose)

        def answered(answer: Any) -> None:
            if self._awaited is awaited:
                self._answered(answer, body)

        if connection.emit(event, {"channel": self.name, **body}, answered):
            self._wait_until(time.monotonic() + self._subscriber._timeout)
        else:
            self._awaited = None  # the connection is about to be reported as lost

    def _wait_until(self, due: float) -> None:
        self.due = due
        self._subscriber._schedule(due)

    def _forget_if_done(self) -> None:
        channels = self._subscriber._channels
        if not self.members and not self.open and channels.get(self.name) is self:
            del channels[self.name]
        self._subscriber._changed.notify_all()

    def _next(self) -> tuple[str, _Request, list[Subscription]] | None:
        """The request that is to be sent next, and whose it is; None when all is well."""
        paused = self in self._subscriber._paused
        waiting = [one for one in self.members if not one._live and not (paused and one._established)]
        waiting += [one for one in self.members if one._live and one._lacks_epoch]
        if not waiting:
            idle = all(paused and not one._live for one in self.members)
            return ("unsubscribe", {}, []) if self.open and idle else None
        # Those first that know where they were, from the lowest of their positions on: a replay that begins later, for
        # a new member's history, would take the live messages past them.
        first = next((one._received for one in waiting if one._received and not one._lacks_epoch), None)
        if first is not None:
            epoch = first["epoch"]
            position = min(p["position"] for one in waiting if (p := one._received) and p["epoch"] == epoch)
            since = Position(epoch=epoch, position=position)
            return "subscribe", {"since": since}, [one for one in waiting if one._received == since]
        plain = [one for one in waiting if not one._history]
        if plain:
            return "subscribe", {}, plain
        history = waiting[0]._history
        assert history is not None
        return "subscribe", {"history": history}, [one for one in waiting if one._history == history]

    def _answered(self, answer: Any, request: _Request) -> None:
        assert self._awaited is not None
        event, whose = self._awaited
        error = _error(answer, self.name)
        if error is not None:
            self._fail(*error)
        else:
            self._awaited, self._attempt, self.due = None, 0, math.inf
            if event == "subscribe":
                self._accept(answer, request, whose)
            else:
                self.open = False
        self.settle()
        self._subscriber._changed.notify_all()

    def _accept(self, answer: dict[str, Any], request: _Request, whose: list[Subscription]) -> None:
        """The server has subscribed us, and sends the log's messages after ``start`` where that was asked for."""
        was_live = [one for one in self.members if one._live]
        start = _position(answer)
        lost = answer.get("recovered") is False
        self._learn_epoch(start)
        if start is not None and not lost and request:
            for one in self.members:
                if one._live and one._received is None:  # subscribed before there was a log
                    one._received = start
                    self._move(one, start)
                if one._received is not None:
                    one._live = one._follows(start)
        for one in whose:
            if one not in self.members or one._live:
                continue
            one._live = True
            if lost or "since" not in request:
                reason = answer["reason"] if lost else None
                if one._established and one._received is None and start is not None:
                    reason = "client_disconnected"  # the log was installed meanwhile
                one._received, one._history = start, None
                if not one._established:
                    one._handled = start  # nothing waits for the handler yet, and subscribe() is about to return
                if reason is not None:
                    self._tell(one, "log", reason, start, moved=True)
                else:
                    self._move(one, start)
        for one in self.members:
            if one._live and one not in was_live:
                self._confirm(one)

    def _learn_epoch(self, start: Position | None) -> None:
        for one in self.members:
            if one._received is not None and one._lacks_epoch:
                one._received = start and Position(epoch=start["epoch"], position=one._received["position"])
                self._move(one, one._received)

    def _confirm(self, one: Subscription) -> None:
        one._established = True
        if one._lost is not None:
            (since, reason), one._lost = one._lost, None
            self._tell(one, "notify", reason, None, since=_iso(since), until=_iso(time.time()))

    def _fail(self, code: str, error: Exception) -> None:
        """Tell of the error, and arrange for another try where it is worth one."""
        assert self._awaited is not None
        (event, whose), self._awaited = self._awaited, None
        members = [one for one in whose if one in self.members]
        if code in _TRANSIENT or (code == "internal" and any(one._established for one in members)):
            logger.warning("%s %r failed: %s; retrying", event, self.name, error)
            for one in members:
                one._error = error
            self._wait_until(time.monotonic() + _spread(self._subscriber._retry_delays, self._attempt))
            self._attempt += 1
            return
        self.due = math.inf
        if event == "unsubscribe":
            self.open = False
        self.end(members, error)

    def end(self, members: Sequence[Subscription], error: Exception) -> None:
        """These subscriptions are over, and not by the application's wish."""
        for one in list(members):
            one._error, one._ended, one._live = error, True, False
            self.members.remove(one)
            if one._established:
                logger.error("the subscription of %r has ended: %s", self.name, error)
                if one._on_error is not None:
                    self._subscriber._deliveries.put(_Delivery(one, one._on_error, error, last=True))

    # -- what the server says by itself -------------------------------------------------------------------------------

    def lose(self, at: float, reason: str) -> None:
        """The server's subscription is gone, or not wanted any more; ``at`` (seconds of the epoch) it was there."""
        if reason != "slow_handler":
            self.open, self._awaited, self._attempt, self.due = False, None, 0, math.inf
        self._learn_epoch(None)
        for one in self.members:
            one._live = False
            if one._established and one._lost is None:
                one._lost = (at, reason)
        self.settle()

    def receive(self, message: Any, size: int) -> None:
        position = message.get("position")
        deliveries = self._subscriber._deliveries
        for one in self.members:
            if not one._established or one._lost is not None:
                continue
            if position is not None:
                before = one._received
                if not one._live or (before is not None and position <= before["position"]):
                    continue  # comes again, or has come
                one._received = Position(epoch=before["epoch"] if before else "", position=position)
                if not one._lacks_epoch:
                    message["epoch"] = one._received["epoch"]
            # A message costs more in memory than its text.
            deliveries.put(_Delivery(one, one._handler, message, one._received, position is not None, cost=1000 + size))
        if any(one._lacks_epoch for one in self.members):
            self.settle()
        if deliveries.full and any(one._live for one in self.members):
            logger.warning("the handlers are far behind: %r is interrupted until they have caught up", self.name)
            self._subscriber._paused.add(self)
            self.lose(time.time(), "slow_handler")

    def receive_gap(self, gap: Any) -> None:
        start = _position(gap)
        for one in self.members:
            if not one._established:
                continue
            if "position" not in gap:
                self._put_gap(one, {**gap, "tier": "notify"})
            elif one._live and not (start and one._follows(start)):
                one._received = start
                self._put_gap(one, {**gap, "tier": "log"}, moved=True)

    def check_subscribed(self, body: Any) -> None:
        """Where it was no request of ours but one given up for lost, another replay may have begun."""
        start = _position(body)
        if start is None or (self._awaited is not None and self._awaited[0] == "subscribe"):
            return
        self._learn_epoch(start)
        for one in self.members:
            if one._live and one._received is not None:
                one._live = one._follows(start)
        self.settle()

    def check_unsubscribed(self, body: Mapping[str, Any]) -> None:
        """Where it was no request of ours, it is not allowed any more, or the application has asked for it itself."""
        if "reason" in body:
            self.open = False
            reason = str(body["reason"])
            why = "it is not allowed any more" if reason == "forbidden" else reason
            self.end(self.members, _as_error(reason, f"the server has ended the subscription: {why}", self.name))
            self.settle()
            self._subscriber._changed.notify_all()
        elif self._awaited is None or self._awaited[0] != "unsubscribe":
            self.lose(time.time(), "client_disconnected")

    # -- to the handlers' thread --------------------------------------------------------------------------------------

    def _tell(
        self,
        one: Subscription,
        tier: Literal["notify", "log"],
        reason: str,
        start: Position | None,
        moved: bool = False,
        **times: str,
    ) -> None:
        self._put_gap(one, {"channel": self.name, "tier": tier, "reason": reason, **times, **(start or {})}, moved)

    def _put_gap(self, one: Subscription, gap: dict[str, Any], moved: bool = False) -> None:
        callback = one._on_gap or _nothing
        self._subscriber._deliveries.put(_Delivery(one, callback, gap, one._received, moved))

    def _move(self, one: Subscription, position: Position | None) -> None:
        """Past what still waits for the handler there may be nothing to deliver."""
        self._subscriber._deliveries.put(_Delivery(one, _nothing, None, position, moved=True))


class _Login:
    """The application's token: the one that was brought to the server, and when a new one is to be."""

    def __init__(self, source: str | Callable[[], str | None], delays: tuple[float, float]) -> None:
        self._source = source
        self._delays = delays
        self._attempt = 0
        self.may_change = callable(source)
        #: The last that the server got.
        self.brought: str | None = None
        #: When a new one is to be brought (time.monotonic()).
        self.due = math.inf

    def fetch(self) -> str | None:
        """May take long, and raise whatever the application raises."""
        return self._source() if callable(self._source) else self._source

    def bring(self) -> dict[str, str]:
        """Socket.IO's ``auth`` for a new connection."""
        self.brought = self.fetch()
        return {} if self.brought is None else {"token": self.brought}

    def expires(self, body: Any) -> float:
        """The server has said so; returns :attr:`due`."""
        if not self.may_change:
            logger.warning("the token ends, and is no function that could return another one")
            return self.due
        left = 0.0
        with contextlib.suppress(TypeError, KeyError, ValueError):
            left = datetime.fromisoformat(body["expires_at"]).timestamp() - time.time()
        # A token that lives shorter than the server warns is not renewed all the time, either.
        delay = min(_RENEWAL_SPREAD, max(self._delays[0], left / 3))
        self.due = time.monotonic() + _spread((delay, delay), 0)
        return self.due

    def failed(self) -> float:
        """Returns :attr:`due`."""
        self.due = time.monotonic() + _spread(self._delays, self._attempt)
        self._attempt += 1
        return self.due

    def renewed(self, token: str | None) -> None:
        self.brought = token
        self.rest()

    def rest(self) -> None:
        """Nothing is to be done."""
        self.due, self._attempt = math.inf, 0


class _Engine(engineio.Client):  # type: ignore[misc]
    """Engine.IO's client, whose packets are handled one after the other in the thread that reads them.

    The stock one starts a thread for each packet, and they overtake one another: a message would be taken for a
    duplicate because a later one had come first.
    """

    #: When the last packet came (seconds of the epoch), and its size in characters.
    heard = 0.0
    size = 0
    on_disconnect: Callable[[], None] = staticmethod(lambda: None)

    def _receive_packet(self, packet: Any) -> None:
        self.heard = time.time()
        self.size = len(packet.data) if isinstance(packet.data, (str, bytes)) else 0
        super()._receive_packet(packet)

    def _trigger_event(self, event: str, *arguments: Any, **options: Any) -> Any:
        result = super()._trigger_event(event, *arguments, **options | {"run_async": False})
        if event == "disconnect":
            # Not Socket.IO's event of that name, which does not come while it is still connecting.
            self.on_disconnect()
        return result

    def disconnect(self, abort: bool = False, reason: str | None = None) -> None:
        # When the server ends the connection it is this thread that reads, and it cannot wait for itself.
        super().disconnect(abort or threading.current_thread() is self.read_loop_task, reason)


class _Client(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[engineio.Client]:
        return _Engine


class _Connection:
    """One connection, never used again when it is lost: so nothing of it can be taken for something of the next."""

    def __init__(
        self,
        options: Mapping[str, Any],
        lock: threading.RLock,
        receive: Callable[["_Connection", str, Any], None],
    ) -> None:
        self._lock = lock
        self._receive = receive
        self._client = _Client(**options)
        #: What the server said when it refused the connection.
        self._refused: Any = None
        for event in ("connect", "event", "gap", "subscribed", "unsubscribed", "token_expiring"):
            self._client.on(event, self._listener(event))
        self._client.on("connect_error", self._note_refusal)
        self._client.eio.on_disconnect = self._listener("disconnect")

    @property
    def heard(self) -> float:
        """When the server was last heard, in seconds of the epoch."""
        return float(self._client.eio.heard)

    @property
    def size(self) -> int:
        """Characters of the packet that is being handled."""
        return int(self._client.eio.size)

    def connect(self, url: str, options: Mapping[str, Any], timeout: float) -> None:
        """Raises :class:`ConnectionError`, :class:`UnauthorizedError`, :class:`AuthenticationUnavailableError`."""
        try:
            self._client.connect(url, wait_timeout=timeout, **options)
        except (socketio.exceptions.ConnectionError, OSError, ValueError) as error:
            refusal = self._refused.get("data") if isinstance(self._refused, dict) else None
            if isinstance(refusal, dict):
                kind = _as_error(str(refusal.get("code")), str(refusal.get("message")))
                if isinstance(kind, (UnauthorizedError, AuthenticationUnavailableError)):
                    raise kind from None
            raise ConnectionError(f"no connection to {url}: {error}") from error

    def emit(self, event: str, body: Mapping[str, Any], answered: Callable[[Any], None]) -> bool:
        """Send it; False when the connection is lost. ``answered`` is called in the reading thread, with the lock."""

        def locked(*answer: Any) -> None:
            with self._lock:
                answered(answer[0] if answer else None)

        try:
            self._client.emit(event, dict(body), callback=locked)
        except socketio.exceptions.BadNamespaceError:
            return False
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._client.disconnect()

    def _note_refusal(self, *arguments: Any) -> None:
        self._refused = arguments[0] if arguments else None

    def _listener(self, event: str) -> Callable[..., None]:
        def listen(*arguments: Any) -> None:
            with self._lock:
                self._receive(self, event, arguments[0] if arguments else None)

        return listen


def _error(answer: Any, channel: str | None = None) -> tuple[str, SocketIOPGError] | None:
    """The error that ``answer`` is, with its wire code; None when it is none."""
    if isinstance(answer, dict) and answer.get("ok") is True:
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    code, message = str(error.get("code", "internal")), str(error.get("message", "the server did not say why"))
    return code, _as_error(code, message, channel)


def _as_error(code: str, message: str, channel: str | None = None) -> SocketIOPGError:
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(message, channel=channel)
    return SocketIOPGError(message if code == "internal" else f"{code}: {message}", channel=channel)


def _position(body: Mapping[str, Any]) -> Position | None:
    epoch, position = body.get("epoch"), body.get("position")
    if isinstance(epoch, str) and isinstance(position, int):
        return Position(epoch=epoch, position=position)
    return None


def _spread(delays: tuple[float, float], attempt: int) -> float:
    """Seconds before another attempt: doubled each time, and spread, so that many do not come back all at once."""
    return min(delays[1], delays[0] * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _nothing(_: object) -> None:
    pass
