"""The link of a Subscriber to the server: reconnects, renews the token, and runs channels and handlers."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import AuthenticationUnavailableError, UnauthorizedError
from socketio_pg.subscriber.answers import answer_error
from socketio_pg.subscriber.channel import Channel
from socketio_pg.subscriber.connection import Connection
from socketio_pg.subscriber.deliveries import Deliveries, Delivery
from socketio_pg.subscriber.login import Login
from socketio_pg.subscriber.shared_link import SharedLink
from socketio_pg.subscriber.subscription import Direct, Health

logger = logging.getLogger("socketio_pg.subscriber")

#: Refusals in a row before the link gives up: a token can expire in transit, or be newer than the server's clock.
_MAX_REFUSALS = 3


class Link(SharedLink[Connection]):
    """The connection, the channels, and two threads: one connects and runs the channels' timers, one calls handlers.

    :attr:`lock` guards all shared state.
    """

    changed: threading.Condition

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
        on_direct: Callable[[Direct], object] | None,
        connect_options: dict[str, Any],
        client_options: dict[str, Any],
        parse_float: Callable[[str], Any] = float,
    ) -> None:
        self.lock = threading.RLock()
        super().__init__(
            url, login, threading.Condition(self.lock), timeout=timeout, retry_delays=retry_delays, on_health=on_health,
            on_direct=on_direct,
        )  # fmt: skip
        self._backoff = Backoff(*reconnection_delays)
        self._connect_options = connect_options
        self._client_options = client_options
        self._parse_float = parse_float
        self.deliveries = Deliveries(self.lock, most_waiting)
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

    def _receive(self, connection: Connection, event: str, body: Any) -> None:
        """Handle the server's events in order, and the connection's ``connect`` and ``disconnect``. Holds the lock."""
        if event == "connect":
            self.opened(connection)
        elif connection is not self.connection:
            if event == "disconnect":
                self.changed.notify_all()
        elif event == "disconnect":
            self.lost(connection)
            self._wake_worker.notify()
        else:
            self.receive(event, body, connection.size)

    def _run(self) -> None:
        refusals = 0
        while True:
            with self.lock:
                if self.closed:
                    return
                connection = self.connection
                if connection is None and self.refusal is not None:
                    return
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
                    with self.lock:
                        self.give_up(error)
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
            self.settle(self.channels.values())

    def _renew(self, connection: Connection, login: Login) -> None:
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
                    self.settle(paused)
            subscription = delivery.subscription
            if subscription is not None and subscription.ended and not delivery.last:
                continue
            if subscription is not None and delivery.moved:
                subscription.handled = delivery.position
            try:
                delivery.callback(delivery.argument)
            except Exception:  # an application's bug must not stop the other handlers
                where = "" if subscription is None else f" of channel {subscription.channel!r}"
                logger.exception("a handler%s failed", where)
