"""The link of an AsyncSubscriber to the server: reconnects, renews the token, and runs the channels. One event loop."""

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from socketio_pg.aio.connection import Connection
from socketio_pg.aio.waiting import Changes, within
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import AuthenticationUnavailableError, UnauthorizedError
from socketio_pg.subscriber.answers import answer_error
from socketio_pg.subscriber.channel import Channel
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.login import Login
from socketio_pg.subscriber.shared_link import SharedLink
from socketio_pg.subscriber.subscription import Direct, Health

logger = logging.getLogger("socketio_pg.subscriber")

#: Refusals in a row before the link gives up: a token can expire in transit, or be newer than the server's clock.
_MAX_REFUSALS = 3


class Queue(Protocol):
    """The part of a subscription that the link uses."""

    @property
    def full(self) -> bool:
        """Whether so much waits for the application that the channel must be interrupted."""

    @property
    def relaxed(self) -> bool:
        """Whether the channel may continue."""

    def put(self, delivery: Delivery, /) -> None:
        """Add a message, a gap or an error."""

    def wake(self) -> None:
        """Let the application's task look again whether the subscription has ended."""


class Link(SharedLink[Connection]):
    """The connection, the channels, and the task that connects and reads.

    :meth:`~socketio_pg.subscriber.channel.Channel.settle` and everything else without ``await`` is atomic in the loop.
    """

    changed: Changes

    def __init__(
        self,
        url: str,
        login: Login | None,
        connect: Callable[[Callable[[Connection, str, Any], None]], Connection],
        *,
        timeout: float,
        retry_delays: tuple[float, float],
        reconnection_delays: tuple[float, float],
        on_health: Callable[[Health], object] | None,
        on_direct: Callable[[Direct], object] | None,
        auth: Any,
    ) -> None:
        super().__init__(
            url, login, Changes(), timeout=timeout, retry_delays=retry_delays, on_health=on_health,
            on_direct=on_direct,
        )  # fmt: skip
        self._connect = connect
        self._auth = auth
        self._backoff = Backoff(*reconnection_delays)
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing = False
        #: Calls :meth:`_tick`, and when (time.monotonic()).
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def start(self, connection: Connection | None) -> None:
        """Start the task that reads from ``connection`` and reconnects; without one, it connects first."""
        self._start(self._run(connection))

    async def close(self) -> None:
        """Drop all channels, close the connection and stop the tasks."""
        self.closed = True
        connection, self.connection, self.requests = self.connection, None, None
        members = [member for channel in self.channels.values() for member in channel.members]
        self.channels.clear()
        self.paused.clear()
        for member in members:
            member.ended = True
            _queue(member).wake()
        self.changed.notify_all()
        if self._timer is not None:
            self._timer.cancel()
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
            if connection is not None:
                await connection.close()
        finally:
            if connection is not None:
                connection.abort()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the connection ------------------------------------------------------------------------------------------------

    async def connect(self) -> Connection:
        """Connect once.

        Raises :class:`ConnectionError`, :class:`UnauthorizedError`, :class:`AuthenticationUnavailableError`, and what
        the application's token function raises.
        """
        auth = self._auth
        if self.login is not None and auth is None:
            auth = self.login.auth(await _awaited(self.login.fetch()))
        connection = self._connect(self._receive)
        try:
            await within(self.timeout, connection.open(auth))
        except BaseException as error:
            self._lose(connection)
            if isinstance(error, (OSError, TimeoutError)):
                reason = "it did not answer" if isinstance(error, TimeoutError) else error
                raise ConnectionError(f"no connection to {self.url}: {reason}") from error
            raise
        if self.closed:  # while connecting
            connection.abort()
            raise ConnectionError("the subscriber is closed")
        return connection

    async def _run(self, connection: Connection | None) -> None:
        refusals = 0
        while True:
            if connection is not None:
                refusals = 0
                self._backoff.reset()
                try:
                    await connection.read()
                except Exception:
                    logger.exception("the connection to %s failed; reconnecting", self.url)
                finally:
                    if not self.closed:
                        self._lose(connection)
                connection = None
            if self.refusal is not None:
                return
            await asyncio.sleep(self._backoff.next())
            try:
                connection = await self.connect()
            except (ConnectionError, AuthenticationUnavailableError) as error:
                logger.info("%s; retrying", error)
            except UnauthorizedError as error:
                refusals += 1
                if refusals >= _MAX_REFUSALS:
                    self.give_up(error)
                    return
                logger.warning("the server refused the token: %s; retrying", error)
            except Exception:
                # The application's `token` function may raise anything; retrying is the only option.
                logger.exception("connecting to %s failed; retrying", self.url)

    def _lose(self, connection: Connection) -> None:
        """Handle the loss of ``connection``. Idempotent."""
        connection.abort()
        if connection is self.connection:
            self.lost(connection)

    def _receive(self, connection: Connection, event: str, body: Any) -> None:
        """Handle the server's events in order, and the connection's ``connect``."""
        if event == "connect":
            self.opened(connection)
        elif connection is self.connection:
            self.receive(event, body, connection.size)

    # -- timers --------------------------------------------------------------------------------------------------------

    def schedule(self, due: float) -> None:
        """Settle the channels that are due, and renew the token if it is due, at ``due`` (time.monotonic())."""
        if due < self._due and not self.closed:
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer, self._due = None, math.inf
        now = time.monotonic()
        login = self.login
        if self.connection is not None:
            if any(channel.due <= now for channel in self.channels.values()):
                self.settle(self.channels.values())
            if login is not None and login.due <= now and not self._renewing:
                self._renewing = True
                self._start(self._renew(self.connection, login))
        due = min((channel.due for channel in self.channels.values()), default=math.inf)
        if login is not None and not self._renewing:
            due = min(due, login.due)
        if due < math.inf and self.connection is not None:
            self.schedule(max(due, now + 0.001))

    async def _renew(self, connection: Connection, login: Login) -> None:
        """Send a new token before the old one expires."""
        token = None
        try:
            try:
                token = await _awaited(login.fetch())
            except Exception:  # from the application's function
                logger.exception("fetching a new token failed; retrying")
            else:
                if token is None or token == login.sent:
                    logger.warning("no new token available; retrying")
        finally:
            self._renewing = False

        def answered(answer: Any) -> None:
            error = answer_error(answer)
            if error is None:
                login.renewed(token)
                self.changed.notify_all()
            else:
                logger.warning("the server refused the new token: %s; retrying", error[1])
                self.schedule(login.failed())

        if self.connection is not connection:
            return
        if token is None or token == login.sent:
            self.schedule(login.failed())
        elif connection.emit("authenticate", {"token": token}, answered):
            login.due = time.monotonic() + self.timeout
            self.schedule(login.due)

    # -- to the application's tasks ------------------------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Add to the queue of the delivery's subscription. A handler that belongs to none is called now."""
        if delivery.subscription is not None:
            _queue(delivery.subscription).put(delivery)
            return
        try:
            delivery.callback(delivery.argument)
        except Exception:  # an application's bug must not end the connection
            logger.exception("a handler failed")

    def is_full(self, channel: Channel) -> bool:
        """Return whether one of the channel's subscriptions has too much in its queue."""
        return any(_queue(member).full for member in channel.members)

    def relax(self, name: str) -> None:
        """Continue a channel that is interrupted, if its subscriptions have caught up."""
        channel = self.channels.get(name)
        if channel in self.paused and all(_queue(member).relaxed for member in channel.members):
            self.paused.remove(channel)
            channel.settle()


def _queue(member: Any) -> Queue:
    queue: Queue = member
    return queue


async def _awaited(value: Any) -> str | None:
    token: str | None = await value if inspect.isawaitable(value) else value
    return token
