"""The presence of one channel: which request comes next, and what the answers and events mean. Pure, no I/O."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypedDict

from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import encode_payload, loads
from socketio_pg.subscriber.answers import as_error
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.presence_state import PresenceMember, PresenceState

logger = logging.getLogger("socketio_pg.subscriber")


class _Joined(TypedDict):
    state: Any


class Joined(_Joined, total=False):
    """How a client joins: the field ``presence`` of ``subscribe``."""

    key: str


#: False: no presence. True: watches only.
Wish: TypeAlias = bool | Joined
#: An event, and its fields besides the channel.
PresenceRequest: TypeAlias = tuple[
    Literal["subscribe", "presence_update", "presence_leave", "presence_get"], dict[str, Any]
]


class Watcher:
    """One use of a channel's presence: its handlers. They are called like those of subscriptions."""

    def __init__(
        self,
        on_join: Callable[[PresenceMember], object] | None,
        on_update: Callable[[PresenceMember, PresenceMember], object] | None,
        on_leave: Callable[[PresenceMember], object] | None,
        on_sync: Callable[[dict[str, PresenceMember]], object] | None,
        on_error: Callable[[SocketIOPGError], object] | None,
    ) -> None:
        self._on_change: dict[str, Callable[..., object] | None] = {
            "join": on_join, "update": on_update, "leave": on_leave, "sync": on_sync, "error": on_error,
        }  # fmt: skip
        #: confirmed: the server has confirmed it once. error: why it has ended, or the last failure before that.
        self.confirmed = self.ended = False
        self.error: Exception | None = None

    def delivery(self, kind: str, *arguments: Any) -> Delivery | None:
        """Return the call of a handler; None if there is none."""
        handler = self._on_change[kind]
        return None if handler is None else Delivery(None, functools.partial(self._call, kind, handler), arguments)

    def _call(self, kind: str, handler: Callable[..., object], arguments: tuple[Any, ...]) -> object:
        # Nothing after close(), but the error that has ended it.
        return handler(*arguments) if kind == "error" or not self.ended else None


class Call:
    """A call of join(), update() or leave() that waits for the server."""

    def __init__(self, watcher: Watcher, wish: Wish) -> None:
        self.watcher, self.wish = watcher, wish
        self.done = False
        self.error: Exception | None = None

    def finish(self, error: Exception | None = None) -> None:
        self.done, self.error = True, error


class ChannelPresence:
    """The members of a channel, and whether this client has joined. After a reconnect it joins again.

    Call all methods with the subscriber's lock held, or in its event loop.
    """

    def __init__(self, channel: str, deliver: Callable[[Delivery], None]) -> None:
        self.state = PresenceState()
        #: The key that the server has given to this client.
        self._key: str | None = None
        self.watchers: list[Watcher] = []
        self._channel = channel
        self._deliver = deliver
        #: How the application wants to join, and the watcher that has joined.
        self._join: Joined | None = None
        self._joiner: Watcher | None = None
        #: What the server has confirmed on this connection, and whether it sends the members.
        self._confirmed: Wish = False
        self._sees = False
        self._calls: list[Call] = []

    @property
    def wish(self) -> Wish:
        """The field ``presence`` of ``subscribe``."""
        return bool(self.watchers) if self._join is None else self._join

    @property
    def key(self) -> str | None:
        """The key of this client's own member; None if it has not joined."""
        return None if self._join is None else self._key

    @property
    def worked(self) -> bool:
        return any(watcher.confirmed for watcher in self.watchers)

    def add(self, watcher: Watcher) -> None:
        self.watchers.append(watcher)
        if self._confirmed is not False:
            watcher.confirmed = True
            if self.state.current:
                self._tell([watcher], "sync", self.state.members.copy())

    def remove(self, watcher: Watcher) -> None:
        watcher.ended = True
        if watcher not in self.watchers:
            return
        self.watchers.remove(watcher)
        if watcher is self._joiner or not self.watchers:
            self._join = self._joiner = None
        self._finish([call for call in self._calls if call.watcher is watcher], ConnectionError("it is closed"))
        self._finish_fulfilled()

    def join(self, watcher: Watcher, joined: Joined | None) -> Call:
        """Join, or leave, for one of :attr:`watchers`.

        Raises what has ended it, and :class:`InvalidRequestError` for a state that is not JSON.
        """
        if joined is not None:
            # A copy: the application may change its object, and pass it again.
            joined = {**joined, "state": loads(encode_payload(joined["state"]))}
        if watcher not in self.watchers:
            raise watcher.error or ConnectionError("it is closed")
        self._join, self._joiner = joined, None if joined is None else watcher
        call = Call(watcher, True if joined is None else joined)
        self._calls.append(call)
        self._finish_fulfilled()
        return call

    def update(self, watcher: Watcher, state: Any) -> Call:
        """Change the state. Raises :class:`InvalidRequestError` before :meth:`join`."""
        if self._join is None:
            raise InvalidRequestError("join comes before update", channel=self._channel)
        return self.join(watcher, {**self._join, "state": state})

    def next_request(self) -> PresenceRequest | None:
        """Return the next request; None if there is nothing to do."""
        wish, now = self.wish, self._confirmed
        if wish == now:
            return ("presence_get", {}) if self._sees and not self.state.current else None
        if wish is True and now is not False:
            return "presence_leave", {}
        if isinstance(wish, dict) and isinstance(now, dict) and wish.get("key") == now.get("key"):
            return "presence_update", {"state": wish["state"]}
        return "subscribe", {"presence": wish}

    def accept(self, request: PresenceRequest, answer: Mapping[str, Any]) -> None:
        """Handle the answer to a request that has succeeded."""
        event, body = request
        if event == "presence_get":
            self.sync(answer)
            return
        own = answer.get("presence")
        if event == "presence_leave":
            self._confirmed = True
        elif event == "presence_update":
            self._confirmed = self._with_state(body["state"])
        elif body["presence"] is not False and not isinstance(own, dict):
            self.end(as_error("not_supported", "the server is of an older version", self._channel))
            return
        else:
            self._confirmed = body["presence"]
        if not isinstance(self._confirmed, dict):
            self._key = None
        elif isinstance(own, dict) and own.get("key") is not None:
            self._key = str(own["key"])
        if event == "subscribe":
            self._sees = isinstance(own, dict) and "version" in own
            if self._sees and own is not None:
                self.sync(own)
        for watcher in self.watchers:
            watcher.confirmed, watcher.error = True, None
        self._finish_fulfilled()

    def postpone(self, error: Exception) -> None:
        """Handle a failure that is retried."""
        for watcher in self.watchers:
            if not watcher.confirmed:
                watcher.error = error
        for call in self._calls:
            call.error = error

    def fail(self, request: PresenceRequest, error: Exception) -> None:
        """Handle a failure that is not retried: what the request was for is given up."""
        event, body = request
        wish = self._with_state(body["state"]) if event == "presence_update" else body.get("presence", True)
        if event == "presence_get" and isinstance(self._confirmed, dict):
            self._sees = False
        elif not isinstance(wish, dict):
            self.end(error)
            return
        else:
            self._finish([call for call in self._calls if call.wish == wish], error)
            if self._join == wish:  # the client remains what it was, and earlier calls cannot succeed
                self._finish(self._calls, error)
                self._join = self._confirmed if isinstance(self._confirmed, dict) else None
                self._joiner = None if self._join is None else self._joiner
        self._tell(self.watchers, "error", error)

    def end(self, error: Exception) -> None:
        """End it for all watchers: the server has ended the subscription, or refuses it."""
        watchers = self.watchers.copy()
        self.lose()
        self.watchers.clear()
        self._join = self._joiner = self._key = None
        self._finish(self._calls, error)
        for watcher in watchers:
            watcher.ended, watcher.error = True, error
            if watcher.confirmed:
                logger.error("the presence of %r ended: %s", self._channel, error)
                self._tell([watcher], "error", error)

    def lose(self) -> None:
        """Handle the loss of the server's subscription."""
        self._confirmed = self._sees = False
        self.state.lose()

    def sync(self, state: Mapping[str, Any]) -> None:
        """Take the members that the server has sent."""
        self._report(self.state.sync(state))

    def apply(self, difference: Mapping[str, Any]) -> None:
        """Take a difference. If one is missing, :meth:`next_request` asks for the members."""
        self._report(self.state.apply(difference))

    def receive_end(self, body: Mapping[str, Any]) -> None:
        """Handle ``presence_ended``. After a change of identity the client joins again."""
        joined, watching = body.get("joined") is True, body.get("watching") is True
        self._confirmed = self._confirmed if joined else watching
        self._sees = self._sees and watching
        self._finish_fulfilled()
        if body["reason"] == "identity_changed":
            return
        error = as_error(str(body["reason"]), "the server has ended the presence", self._channel)
        if not joined:
            self._join = self._joiner = self._key = None
        if joined or watching:
            self._tell(self.watchers, "error", error)
        else:
            self.end(error)

    def _with_state(self, state: Any) -> Joined:
        return {**self._confirmed, "state": state} if isinstance(self._confirmed, dict) else {"state": state}

    def _finish_fulfilled(self) -> None:
        if self.wish == self._confirmed:
            self._finish(self._calls)

    def _finish(self, calls: list[Call], error: Exception | None = None) -> None:
        for call in calls:
            call.finish(error)
        self._calls = [call for call in self._calls if not call.done]

    def _report(self, changes: list[Any]) -> None:
        for change in changes:
            arguments = (change.member, change.before) if change.kind == "update" else (change.member,)
            self._tell(self.watchers, change.kind, *arguments)
        if self.state.current:
            self._tell(self.watchers, "sync", self.state.members.copy())

    def _tell(self, watchers: list[Watcher], kind: str, *arguments: Any) -> None:
        for watcher in watchers:
            delivery = watcher.delivery(kind, *arguments)
            if delivery is not None:
                self._deliver(delivery)
