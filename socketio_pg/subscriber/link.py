"""The link of a Subscriber to the server: made again whenever it is lost, with what runs on it."""

import logging
import math
import threading
import time
from typing import Any

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import AuthenticationUnavailableError, UnauthorizedError
from socketio_pg.subscriber.channel import Channel
from socketio_pg.subscriber.connection import Connection, answer_error
from socketio_pg.subscriber.deliveries import Deliveries
from socketio_pg.subscriber.login import Login

logger = logging.getLogger("socketio_pg.subscriber")

#: Tokens refused in a row before that is believed: one can expire on its way, or be newer than the server's clock.
_MAX_REFUSALS = 3


class Link:
    """The connection, the channels, and the two threads: one connects and looks after the channels, one calls handlers.

    What is shared is under :attr:`lock`.
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
        connect_options: dict[str, Any],
        client_options: dict[str, Any],
    ) -> None:
        self.url = url
        self.login = login
        self.timeout = timeout
        self.retry_delays = retry_delays
        self._backoff = Backoff(*reconnection_delays)
        self._connect_options = connect_options
        self._client_options = client_options
        self.lock = threading.RLock()
        #: Notified when a call may have its answer, when the connection comes and goes, and at the end.
        self.changed = threading.Condition(self.lock)
        self.deliveries = Deliveries(self.lock, most_waiting)
        self.connection: Connection | None = None
        self.channels: dict[str, Channel] = {}
        #: Those that wait for the handlers to catch up.
        self.paused: set[Channel] = set()
        self.closed = False
        #: Why no connection is tried any more.
        self.refusal: UnauthorizedError | None = None
        #: When the worker looks after the channels by itself (time.monotonic()).
        self._due = math.inf
        self._wake_worker = threading.Condition(self.lock)
        self._threads = [
            threading.Thread(target=target, name=f"socketio_pg-{name}", daemon=True)
            for name, target in (("connection", self._run), ("handlers", self._deliver))
        ]

    def start(self) -> None:
        """Start the threads, which connect where there is no connection."""
        for thread in self._threads:
            thread.start()

    def channel(self, name: str) -> Channel:
        """The channel, a new one where there was none. With the lock."""
        if name not in self.channels:
            self.channels[name] = Channel(name, self)
        return self.channels[name]

    def check(self) -> None:
        """Raise :class:`ConnectionError` or :class:`UnauthorizedError` when it has ended."""
        if self.closed:
            raise ConnectionError("the subscriber is closed")
        if self.refusal is not None:
            raise self.refusal

    def close(self) -> None:
        """Forget all channels, end the connection and the threads."""
        with self.lock:
            self.closed = True
            connection, self.connection = self.connection, None
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

    # -- the connection: made by the worker, heard in its own reading thread ------------------------------------------

    def connect(self) -> None:
        options = self._connect_options
        if self.login is not None and options["auth"] is None:
            options = options | {"auth": self.login.bring()}
        connection = Connection(self._client_options, self.lock, self._receive)
        connection.connect(self.url, options, self.timeout)
        if self.closed:  # meanwhile
            connection.close()

    def _receive(self, connection: "Connection", event: str, body: Any) -> None:
        """What the server sends, in order, and the connection's own ``connect`` and ``disconnect``. With the lock."""
        if event == "connect":
            if not self.closed:
                self.connection = connection
                for channel in list(self.channels.values()):
                    channel.settle()
        elif connection is not self.connection:
            return
        elif event == "disconnect":
            self.connection = None
            for channel in list(self.channels.values()):
                channel.lose(connection.heard, "client_disconnected")
            if self.login is not None:
                self.login.rest()
            self._wake_worker.notify()
        elif event == "token_expiring":
            if self.login is not None:
                self.schedule(self.login.expires(body))
        elif isinstance(body, dict) and body.get("channel") in self.channels:
            channel = self.channels[body["channel"]]
            if event == "event":
                channel.receive(body, connection.size)
            elif event == "gap":
                channel.receive_gap(body)
            elif event == "subscribed":
                channel.check_subscribed(body)
            elif event == "unsubscribed":
                channel.check_unsubscribed(body)
        if event in ("connect", "disconnect"):
            self.changed.notify_all()

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
                # The application's `token` may raise anything. There is no other way on.
                logger.exception("connecting to %s failed; retrying", self.url)

    def _look_after_channels(self) -> None:
        """Wait until something is to be done. With the lock."""
        due = [channel.due for channel in self.channels.values()]
        self._due = min([*due, math.inf if self.login is None else self.login.due])
        self._wake_worker.wait(None if self._due == math.inf else max(0.0, self._due - time.monotonic()))
        if self.connection is not None and time.monotonic() >= min(due, default=math.inf):
            for channel in list(self.channels.values()):
                channel.settle()

    def _renew(self, connection: "Connection", login: "Login") -> None:
        """Bring a new token before the old one has ended. Without the lock: getting it can take long."""
        token = None
        try:
            token = login.fetch()
        except Exception:  # the application's
            logger.exception("there is no new token; retrying")
        else:
            if token is None or token == login.brought:
                logger.warning("there is no new token; retrying")

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
            if token is None or token == login.brought:
                login.failed()
            elif connection.emit("authenticate", {"token": token}, answered):
                login.due = time.monotonic() + self.timeout

    def _give_up(self, error: UnauthorizedError) -> None:
        logger.error("the server refused the token: %s; the subscriber has ended", error)
        with self.lock:
            self.refusal = error
            for channel in list(self.channels.values()):
                channel.end(channel.members, error)
                channel.settle()
            self.changed.notify_all()

    def schedule(self, due: float) -> None:
        """Something is to be done at ``due`` (time.monotonic())."""
        if due < self._due:
            self._wake_worker.notify()

    # -- the handlers' thread -----------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        # Without the lock where it can be: the reading thread takes it for each message.
        while (delivery := self.deliveries.get(lambda: self.closed)) is not None:
            if self.paused and self.deliveries.relaxed:
                with self.lock:
                    paused, self.paused = self.paused, set()
                    for channel in paused:
                        channel.settle()
            subscription = delivery.subscription
            if subscription.ended and not delivery.last:
                continue
            if delivery.moved:
                subscription.handled = delivery.position
            try:
                delivery.callback(delivery.argument)
            except Exception:  # the application's: it costs nobody else anything
                logger.exception("a handler of the channel %r failed", subscription.channel)
