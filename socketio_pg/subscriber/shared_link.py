"""The part of a link that threads and asyncio share: the channels, and the server's events for them. No I/O."""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from socketio_pg.core.errors import EndedByServerError, InvalidChannelError, SocketIOPGError
from socketio_pg.subscriber.answers import as_error
from socketio_pg.subscriber.channel import Changes, Channel
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.login import Login
from socketio_pg.subscriber.requests import Requests
from socketio_pg.subscriber.subscription import Direct, Health

logger = logging.getLogger("socketio_pg.subscriber")


class AnyConnection(Protocol):
    """The part of a connection that a link uses."""

    @property
    def heard(self) -> float:
        """When the last packet arrived, in Unix time."""

    @property
    def size(self) -> int:
        """The size of the current packet, in characters."""

    def emit(self, event: str, body: Mapping[str, Any], answered: Callable[[Any], None] | None, /) -> bool:
        """Send an event; return False when the connection is lost. ``answered`` is called with the server's answer."""


C = TypeVar("C", bound=AnyConnection)


class SharedLink(ABC, Generic[C]):
    """The connection and the channels. Call all methods with the subscriber's lock held, or in its event loop."""

    def __init__(
        self,
        url: str,
        login: Login | None,
        changed: Changes,
        *,
        timeout: float,
        retry_delays: tuple[float, float],
        on_health: Callable[[Health], object] | None,
        on_direct: Callable[[Direct], object] | None,
    ) -> None:
        self.url = url
        self.login = login
        self.timeout = timeout
        self.retry_delays = retry_delays
        #: Notified when a waiting call should check for its result, on connect and disconnect, and on close.
        self.changed = changed
        self._on_health = on_health
        self._on_direct = on_direct
        self.health: Health | None = None
        self.connection: C | None = None
        #: Sends the channels' requests on :attr:`connection`.
        self.requests: Requests | None = None
        #: Channels and patterns, by name: only patterns have an asterisk.
        self.channels: dict[str, Channel] = {}
        #: Channels that are interrupted until the handlers catch up.
        self.paused: set[Channel] = set()
        #: Those of `server_hello` on :attr:`connection`; None before it.
        self.features: Collection[str] | None = None
        #: Whether messages get ids of their own: not once the server has refused them, without the schema.
        self.adds_ids = True
        self.closed = False
        #: Why the link has stopped connecting: the server refuses the token, or has ended the connection for good.
        self.refusal: SocketIOPGError | None = None

    @abstractmethod
    def schedule(self, due: float) -> None:
        """Settle the channels that are due, and renew the token if it is due, at ``due`` (time.monotonic())."""

    @abstractmethod
    def deliver(self, delivery: Delivery) -> None:
        """Queue a call of a handler."""

    @abstractmethod
    def is_full(self, channel: Channel) -> bool:
        """Return whether so much is queued for the channel's handlers that it must be interrupted."""

    def channel(self, name: str, *, pattern: bool = False) -> Channel:
        """Return the channel or pattern, created if necessary. Raises :class:`InvalidChannelError`."""
        if pattern is not ("*" in name):
            message = "a pattern contains '*'" if pattern else "channel must not contain '*': use subscribe_pattern"
            raise InvalidChannelError(message, channel=name)
        if name not in self.channels:
            self.channels[name] = Channel(name, self)
        return self.channels[name]

    def check(self) -> None:
        """Raise :class:`ConnectionError` after closing, and :attr:`refusal` if there is one."""
        if self.closed:
            raise ConnectionError("the subscriber is closed")
        if self.refusal is not None:
            raise self.refusal

    def publish_ephemeral(self, channel: str, payload: Any, key: str | None, echo: bool) -> bool:
        """Send an ephemeral message; return whether it was sent."""
        if self.connection is None or "ephemeral" not in (self.features or ()):
            return False  # an older server would publish it
        body = {"channel": channel, "payload": payload, "ephemeral": True}
        if key is not None:
            body["key"] = key
        if echo:
            body["echo"] = True
        return self.connection.emit("publish", body, None)

    def opened(self, connection: C) -> None:
        """Handle a new connection."""
        if not self.closed:
            self.connection, self.requests, self.features = connection, Requests(connection), None
            self.adds_ids = True
            self.settle(self.channels.values())
        self.changed.notify_all()

    def lost(self, connection: C) -> None:
        """Handle the loss of the connection."""
        self.connection = self.requests = None
        for channel in list(self.channels.values()):
            channel.lose(connection.heard, "client_disconnected")
        if self.login is not None:
            self.login.cancel()
        self.changed.notify_all()

    def receive(self, event: str, body: Any, size: int) -> None:
        """Handle an event of the server. ``size``: of the packet, in characters."""
        if not isinstance(body, dict):
            return
        if event == "token_expiring":
            if self.login is not None:
                self.schedule(self.login.expires(body))
        elif event == "server_hello":
            self._report(body.get("health"))
            self.features = body.get("features") or ()
            self.changed.notify_all()
        elif event == "health":
            self._report(body)  # type: ignore[arg-type]
        elif event == "error":
            error = as_error(str(body.get("code")), str(body.get("message")))
            if isinstance(error, EndedByServerError):
                self.give_up(error)  # clients must not come back by themselves
            else:
                logger.warning("the server reports an error: %s", error)
        elif event == "direct":
            if self._on_direct is not None:
                self.deliver(Delivery(None, self._on_direct, body))
        elif event in ("subscribed", "unsubscribed") and isinstance(body.get("channels"), list):
            pass  # the answer to a request that the application has sent itself
        else:
            for channel in self._named(body):
                _pass_on(channel, event, body, size)

    def _named(self, body: Mapping[str, Any]) -> list[Channel]:
        """Return the channels and patterns that an event is for."""
        names = body.get("matches") or (body.get("pattern", body.get("channel")),)
        return [self.channels[name] for name in names if name in self.channels]

    def settle(self, channels: Iterable[Channel]) -> None:
        """Settle channels, so that their requests are sent together."""
        with contextlib.nullcontext() if self.requests is None else self.requests.together():
            for channel in list(channels):
                channel.settle()

    def give_up(self, error: SocketIOPGError) -> None:
        """Stop: the server keeps refusing the token, or has ended the connection for good."""
        logger.error("the server has refused this client: %s; the subscriber has stopped", error)
        self.refusal = error
        for channel in list(self.channels.values()):
            channel.end(channel.members, error)
            channel.presence.end(error)
            channel.settle()
        self.changed.notify_all()

    def _report(self, health: Health | None) -> None:
        if health and health != self.health:
            self.health = health
            if self._on_health is not None:
                self.deliver(Delivery(None, self._on_health, health))


def _pass_on(channel: Channel, event: str, body: dict[str, Any], size: int) -> None:
    if event == "event":
        if body.get("ephemeral"):
            channel.receive_ephemeral(body)
        else:
            channel.receive(body, size)
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
    elif event in ("presence", "presence_state", "presence_ended"):
        channel.receive_presence(event, body)
