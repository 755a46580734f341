"""The link of a Subscriber to the server: reconnects, renews the token, and runs channels and handlers."""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import AuthenticationUnavailableError, UnauthorizedError
from socketio_pg.subscriber.answers import answer_error
from socketio_pg.subscriber.channel import Channel
from socketio_pg.subscriber.connection import Connection
from socketio_pg.subscriber.deliveries import Deliveries, Delivery
from socketio_pg.subscriber.login import Login
from socketio_pg.subscriber.requests import Requests
from socketio_pg.subscriber.subscription import Health

logger = logging.getLogger("socketio_pg.subscriber")

#: Refusals in a row before the link gives up: a token can expire in transit, or be newer than the server's clock.
_MAX_REFUSALS = 3


class Link:
    """The connection, the channels, and two threads: one connects and runs the channels' timers, one calls handlers.

    :attr:`lock` guards all shared state.
    """

    def __init__(
        self,
        url: str,
        login: Login | None,
        *,
        timeout: float,
        retry_delays: tuple[float, float],
        reconnection_delays: tuple[float, float],
        most_waiting: int,
        on_health: Callable[[Health], object] | None,
        connect_options: dict[str, Any],
        client_options: dict[str, Any],
        parse_float: Callable[[str], Any] = float,
    ) -> None:
        self.url = url
        self.login = login
        self.timeout = timeout
        self.retry_delays = retry_delays
        self._backoff = Backoff(*reconnection_delays)
        self._connect_options = connect_options
        self._client_options = client_options
        self._parse_float = parse_float
        self.lock = threading.RLock()
        #: Notified when a waiting call should check for its result, on connect and disconnect, and on close.
        self.changed = threading.Condition(self.lock)
        self.deliveries = Deliveries(self.lock, most_waiting)
        self._on_health = on_health
        self.health: Health | None = None
        #: Those of `server_hello` on :attr:`connection`; None before it.
        self.features: Collection[str] | None = None
        #: Whether messages get ids of their own: not once the server has refused them, without the schema.
        self.adds_ids = True
        self.connection: Connection | None = None
        #: Sends the channels' requests on :attr:`connection`.
        self.requests: Requests | None = None
        self.channels: dict[str, Channel] = {}
        #: Channels that are interrupted until the handlers catch up.
        self.paused: set[Channel] = set()
        self.closed = False
        #: The refusal after which the link stopped connecting.
        self.refusal: UnauthorizedError | None = None
        #: When the worker next wakes up on its own (time.monotonic()).
        self._due = math.inf
        self._wake_worker = threading.Condition(self.lock)
        self._threads = [
            threading.Thread(target=target, name=f"socketio_pg-{name}", daemon=True)
            for name, target in (("connection", self._run), ("handlers", self._deliver))
        ]

    def start(self) -> None:
        """Start the threads; they connect unless there is a connection already."""
        for thread in self._threads:
            thread.start()

    def channel(self, name: str) -> Channel:
        """Return the channel, created if necessary. Call with the lock held."""
        if name not in self.channels:
            self.channels[name] = Channel(name, self)
        return self.channels[name]

    def check(self) -> None:
        """Raise :class:`ConnectionError` after :meth:`close`, :class:`UnauthorizedError` after the final refusal."""
        if self.closed:
            raise ConnectionError("the subscriber is closed")
        if self.refusal is not None:
            raise self.refusal

    def close(self) -> None:
        """Drop all channels, close the connection and stop the threads."""
        with self.lock:
            self.closed = True
            connection, self.connection, self.requests = self.connection, None, None
            for channel in self.channels.values():
                for member in channel.members:
                    member.ended = True
            self.channels.clear()
            self.deliveries.wake()
            self.changed.notify_all()
            self._wake_worker.notify()
        if connection is not None:
            connection.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # -- the connection: opened by the worker, read in its own thread -------------------------------------------------

    def connect(self) -> None:
        options = self._connect_options
        if self.login is not None and options["auth"] is None:
            options = options | {"auth": self.login.auth(self.login.fetch())}
        connection = Connection(self._client_options, self.lock, self._receive, self._parse_float)
        connection.connect(self.url, options, self.timeout)
        if self.closed:  # while connecting
            connection.close()

    def _receive(self, connection: "Connection", event: str, body: Any) -> None:
        """Handle the server's events in order, and the connection's ``connect`` and ``disconnect``. Holds the lock."""
        if event == "connect":
            if not self.closed:
                self.connection, self.requests, self.features = connection, Requests(connection), None
                self.adds_ids = True
                self._settle(self.channels.values())
        elif connection is not self.connection:
            return
        elif event == "disconnect":
            self.connection = self.requests = None
            for channel in list(self.channels.values()):
                channel.lose(connection.heard, "client_disconnected")
            if self.login is not None:
                self.login.cancel()
            self._wake_worker.notify()
        elif event == "token_expiring":
            if self.login is not None:
                self.schedule(self.login.expires(body))
        elif event in ("server_hello", "health"):
            self._report(body if event == "health" else body.get("health"))
            if event == "server_hello":
                self.features = body.get("features") or ()
                self.changed.notify_all()
        elif isinstance(body, dict) and body.get("channel") in self.channels:
            channel = self.channels[body["channel"]]
            if event == "event":
                channel.receive(body, connection.size)
            elif event == "undecodable":
                channel.miss(body)
            elif event == "gap":
                channel.receive_gap(body)
            elif event == "live":
                channel.receive_live(body)
            elif event == "subscribed":
                channel.check_subscribed(body)
            elif event == "unsubscribed":
                channel.check_unsubscribed(body)
        if event in ("connect", "disconnect"):
            self.changed.notify_all()

    def _report(self, health: Health | None) -> None:
        if health and health != self.health:
            self.health = health
            if self._on_health is not None:
                self.deliveries.put(Delivery(None, self._on_health, health))

    def _run(self) -> None:
        refusals = 0
        while True:
            with self.lock:
                if self.closed:
                    return
                connection = self.connection
                if connection is not None:
                    refusals = 0
                    self._backoff.reset()
                    self._look_after_channels()
                else:
                    self._wake_worker.wait_for(lambda: self.closed, self._backoff.next())
                    if self.closed:
                        return
            if connection is not None:
                if self.login is not None and time.monotonic() >= self.login.due:
                    self._renew(connection, self.login)
                continue
            try:
                self.connect()
            except (ConnectionError, AuthenticationUnavailableError) as error:
                logger.info("%s; retrying", error)
            except UnauthorizedError as error:
                refusals += 1
                if refusals >= _MAX_REFUSALS:
                    self._give_up(error)
                    return
                logger.warning("the server refused the token: %s; retrying", error)
            except Exception:
                # The application's `token` function may raise anything; retrying is the only option.
                logger.exception("connecting to %s failed; retrying", self.url)

    def _look_after_channels(self) -> None:
        """Sleep until the next deadline or wake-up, then settle the channels that are due. Holds the lock."""
        due = [channel.due for channel in self.channels.values()]
        self._due = min([*due, math.inf if self.login is None else self.login.due])
        self._wake_worker.wait(None if self._due == math.inf else max(0.0, self._due - time.monotonic()))
        if self.connection is not None and time.monotonic() >= min(due, default=math.inf):
            self._settle(self.channels.values())

    def _settle(self, channels: Iterable[Channel]) -> None:
        """Settle channels, so that their requests are sent together. Holds the lock."""
        with contextlib.nullcontext() if self.requests is None else self.requests.together():
            for channel in list(channels):
                channel.settle()

    def _renew(self, connection: "Connection", login: "Login") -> None:
        """Send a new token before the old one expires. Fetches it without the lock, because that can take long."""
        token = None
        try:
            token = login.fetch()
        except Exception:  # from the application's function
            logger.exception("fetching a new token failed; retrying")
        else:
            if token is None or token == login.sent:
                logger.warning("no new token available; retrying")

        def answered(answer: Any) -> None:
            error = answer_error(answer)
            if error is None:
                login.renewed(token)
                self.changed.notify_all()
            else:
                logger.warning("the server refused the new token: %s; retrying", error[1])
                self.schedule(login.failed())

        with self.lock:
            if self.connection is not connection:
                return
            if token is None or token == login.sent:
                login.failed()
            elif connection.emit("authenticate", {"token": token}, answered):
                login.due = time.monotonic() + self.timeout

    def _give_up(self, error: UnauthorizedError) -> None:
        logger.error("the server refused the token: %s; the subscriber has stopped", error)
        with self.lock:
            self.refusal = error
            for channel in list(self.channels.values()):
                channel.end(channel.members, error)
                channel.settle()
            self.changed.notify_all()

    def schedule(self, due: float) -> None:
        """Wake the worker at ``due`` (time.monotonic())."""
        if due < self._due:
            self._wake_worker.notify()

    def deliver(self, delivery: Delivery) -> None:
        """Queue a call of a handler."""
        self.deliveries.put(delivery)

    def is_full(self, channel: Channel) -> bool:
        """Return whether too much is queued for the handlers, which have one queue for all channels."""
        return self.deliveries.full

    # -- the handlers' thread -----------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        # Avoids the lock where possible: the reading thread takes it for each message.
        while (delivery := self.deliveries.get(lambda: self.closed)) is not None:
            if self.paused and self.deliveries.relaxed:
                with self.lock:
                    paused, self.paused = self.paused, set()
                    self._settle(paused)
            subscription = delivery.subscription
            if subscription is not None and subscription.ended and not delivery.last:
                continue
            if subscription is not None and delivery.moved:
                subscription.handled = delivery.position
            try:
                delivery.callback(delivery.argument)
            except Exception:  # an application's bug must not stop the other handlers
                where = "of the server's health" if subscription is None else f"of channel {subscription.channel!r}"
                logger.exception("a handler %s failed", where)
