"""One channel of a Subscriber: keeps the subscription at the server in step with the local subscriptions (members)."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.subscriber.answers import TRANSIENT, answer_error, as_error
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.presence_requests import ChannelPresence, PresenceRequest
from socketio_pg.subscriber.receiving import Receiver
from socketio_pg.subscriber.requests import Requests
from socketio_pg.subscriber.subscription import Member, Request, next_request, place_of, position_of

logger = logging.getLogger("socketio_pg.subscriber")

#: Seconds for which the request of an interrupted channel waits for those of others.
_JOIN_DELAY = 0.05


class Changes(Protocol):
    """Wakes calls that wait for a result. :class:`threading.Condition` is one."""

    def notify_all(self) -> None: ...


class Owner(Protocol):
    """The part of a link that channels use: of :class:`~socketio_pg.subscriber.link.Link` with its lock held, of
    :class:`~socketio_pg.aio.link.Link` in its event loop.
    """

    requests: Requests | None
    #: Channels that are interrupted until the handlers catch up.
    paused: set["Channel"]
    channels: dict[str, "Channel"]
    #: Seconds to wait for an answer, and the shortest and longest delay before a retry.
    timeout: float
    retry_delays: tuple[float, float]

    @property
    def changed(self) -> Changes:
        """Notified when a waiting call should check for its result."""

    def schedule(self, due: float, /) -> None:
        """Settle the channels that are due at ``due`` (time.monotonic())."""

    def deliver(self, delivery: Delivery, /) -> None:
        """Queue a call of a handler."""

    def is_full(self, channel: "Channel", /) -> bool:
        """Return whether so much is queued for the channel's handlers that it must be interrupted."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """A request that awaits its answer: for members, for presence, or for both."""

    event: str
    request: Request
    requesters: list[Member]
    presence: PresenceRequest | None


class Channel:
    """One channel or pattern: sends the requests that its members and its presence need, one at a time.

    Call all methods with the subscriber's lock held, or in its event loop.
    """

    def __init__(self, name: str, owner: Owner) -> None:
        self.name = name
        self.members: list[Member] = []
        self.presence = ChannelPresence(name, owner.deliver)
        self._receiver = Receiver(name, self.members, owner.deliver)
        self._filter: Mapping[str, Any] | None = None
        #: True while the server is believed to have a subscription.
        self.open = False
        #: When :meth:`settle` must be called even if nothing happens (time.monotonic()).
        self.due = math.inf
        self._owner = owner
        self._backoff = Backoff(*owner.retry_delays)
        #: The request that awaits its answer. Late answers to older ones are ignored.
        self._awaited: _Sent | None = None
        #: Presence is requested together with messages, unless the server has refused that.
        self._combines = True
        #: The server replays messages, and will tell when it has caught up; those that follow a snapshot.
        self._replaying = self._after_snapshot = False

    def add(self, member: Member, filter: Mapping[str, Any] | None) -> None:
        """Add a member. Raises :class:`InvalidRequestError` when the other members have a different filter."""
        if self.members and (filter or None) != self._filter:
            message = "another handler of this channel has a different filter: a client has one filter per channel"
            raise InvalidRequestError(message, channel=self.name)
        self._filter = filter or None
        self.members.append(member)

    def settle(self) -> None:
        """Send the next request, unless one is pending. Called again whenever something changes."""
        requests = self._owner.requests
        if requests is None:
            self._forget_if_done()
            return
        if self._awaited is not None:
            if time.monotonic() < self.due:
                return
            self._fail("no_answer", TimeoutError("the server did not answer"))
        new = any(member.error is None and not member.established for member in self.members)
        if time.monotonic() < self.due < math.inf and not new:
            return  # a retry is scheduled
        sent = self._next()
        if sent is None:
            self.due = math.inf
            self._forget_if_done()
            return
        self._awaited = sent
        if sent.event == "subscribe":
            self.open = True

        def answered(answer: Any) -> None:
            if self._awaited is sent:
                self._answered(answer, sent)
            elif sent.event == "subscribe" and answer_error(answer) is None:
                self.check_subscribed(answer)  # it came after the timeout

        body: dict[str, Any] = {**place_of(self.name), **sent.request, **(sent.presence[1] if sent.presence else {})}
        if sent.event == "subscribe" and self._filter is not None:
            body["filter"] = self._filter
        if requests.send(sent.event, body, answered, lambda: self._awaited is sent):
            self._wait_until(time.monotonic() + self._owner.timeout)
        else:
            self._awaited = None  # the connection is about to be reported as lost

    def _next(self) -> _Sent | None:
        """Return the next request; None if there is nothing to do."""
        presence = self.presence.next_request()
        found = next_request(self.members, self.open, self in self._owner.paused, self._after_snapshot)
        if found is None or (found[0] == "unsubscribe" and self.presence.wish is not False):
            return None if presence is None else _Sent(presence[0], Request(), [], presence)
        event, request, requesters = found
        together = event == "subscribe" and presence is not None and presence[0] == event and self._combines
        return _Sent(event, request, requesters, presence if together else None)

    def _wait_until(self, due: float) -> None:
        self.due = due
        self._owner.schedule(due)

    def _forget_if_done(self) -> None:
        channels = self._owner.channels
        if not self.members and self.presence.wish is False and not self.open and channels.get(self.name) is self:
            del channels[self.name]
        self._owner.changed.notify_all()

    def _answered(self, answer: Any, sent: _Sent) -> None:
        error = answer_error(answer, self.name)
        if error is not None:
            self._fail(*error)
        else:
            self._awaited, self.due = None, math.inf
            self._backoff.reset()
            if sent.event == "subscribe":
                self._accept(answer, sent.request, sent.requesters)
            elif sent.event == "unsubscribe":
                self._close()
            if sent.presence is not None:
                self.presence.accept(sent.presence, answer)
        self.settle()
        self._owner.changed.notify_all()

    def _close(self) -> None:
        self.open = self._replaying = self._after_snapshot = False
        self.presence.lose()

    def _accept(self, answer: dict[str, Any], request: Request, requesters: list[Member]) -> None:
        """Handle a successful ``subscribe``: ``since`` and ``history`` make the server replay from ``start`` on."""
        was_live = [member for member in self.members if member.current]
        start = position_of(answer)
        lost = answer.get("recovered") is False
        snapshot = start is not None and not lost and any(one.snapshot for one in requesters) and bool(request)
        for member in self.members:
            member.max_rate = answer.get("max_rate")
        self._replaying = self._replaying or bool(request)
        self._after_snapshot = self._after_snapshot or snapshot
        self._receiver.learn_epoch(start)
        if snapshot:
            # The replay lacks messages that these members may need. They continue afterwards.
            for member in self.members:
                if member not in requesters and member.received is not None:
                    member.current = False
        elif start is not None and not lost and request:
            for member in self.members:
                if member.current and member.received is None:  # subscribed before the log was installed
                    member.received = start
                    self._receiver.move(member, start)
                if member.received is not None:
                    member.current = member.follows(start)
        for member in requesters:
            if member not in self.members or member.current or member.held is not None:
                continue
            since = request.get("since")
            position = None if isinstance(since, str) else since
            if member.snapshot if position is not None else member.start != request:
                continue  # it was loaded again, and continues from another place
            if lost and member.reload is not None and answer["reason"] != "history_off":
                member.load_again()
                continue
            # Not if a gap has moved it since the request: it then requests what follows its new position.
            member.current = lost or position is None or member.follows(position)
            if lost or position is None:
                reason = answer["reason"] if lost else None
                if snapshot and start is not None and member.follows(start):
                    continue  # it has got a part of this replay before, over another connection
                if member.established and member.received is None and start is not None and not snapshot:
                    reason = "client_disconnected"  # the log was installed while disconnected
                member.received = start
                if not snapshot:
                    member.start = Request()
                if not member.established:
                    member.handled = start  # nothing is queued for the handler yet, and subscribe() is about to return
                if reason is not None:
                    self._receiver.report_gap(member, "log", reason, start, moved=True)
                else:
                    self._receiver.move(member, start)
        for member in self.members:
            if member.current and member not in was_live:
                self._receiver.confirm(member)
                if was_live and not request:
                    self._receiver.tell_retained(member)
                if not self._replaying:
                    self._receiver.tell_live(member, start)

    def receive_live(self, body: Mapping[str, Any]) -> None:
        """Handle ``live``: the members have got all messages up to a place."""
        place = position_of(body)
        self._replaying = self._after_snapshot = False
        for member in self.members:
            if not member.current:
                continue
            last = member.received
            if place is not None and last is not None and last["epoch"] == place["epoch"]:
                member.received = max(last, place, key=lambda at: at["position"])
            member.start = Request()
            self._receiver.tell_live(member, place)
        self.settle()

    def _fail(self, code: str, error: Exception) -> None:
        """Retry later when the error is transient; otherwise end what the request was for."""
        assert self._awaited is not None
        sent, self._awaited = self._awaited, None
        members = [member for member in sent.requesters if member in self.members]
        worked = any(member.established for member in members) or (sent.presence is not None and self.presence.worked)
        if code in TRANSIENT or (code == "internal" and worked):
            logger.warning("%s %r failed: %s; retrying", sent.event, self.name, error)
            for member in members:
                member.error = error
            if sent.presence is not None:
                self.presence.postpone(error)
            # At one of few moments, so that the retries of many channels share a request.
            slot = max(0.001, self._owner.retry_delays[0] / 4)
            self._wait_until(math.ceil((time.monotonic() + self._backoff.next()) / slot) * slot)
            return
        self.due = math.inf
        if sent.presence is not None and members:
            self._combines = False  # the next requests tell which of both the server refuses
            return
        if sent.presence is not None:
            self.presence.fail(sent.presence, error)
        if sent.event == "unsubscribe":
            self._close()
        self.end(members, error)

    def end(self, members: Sequence[Member], error: Exception) -> None:
        """End subscriptions because of an error, and report it to their ``on_error``."""
        for member in list(members):
            member.error, member.ended, member.current = error, True, False
            self.members.remove(member)
            if member.established:
                logger.error("the subscription to %r ended: %s", self.name, error)
                if member.on_error is not None:
                    self._owner.deliver(Delivery(member, member.on_error, error, last=True))

    # -- events that the server sends unasked -------------------------------------------------------------------------

    def lose(self, at: float, reason: str) -> None:
        """Handle the loss of the server's subscription, last seen working ``at`` (Unix time), or interrupt it."""
        if reason != "slow_handler":
            self._awaited, self.due = None, math.inf
            self._backoff.reset()
            self._close()
        self._receiver.learn_epoch(None)
        self._replaying = self._after_snapshot = False
        for member in self.members:
            member.current = False
            member.clear_live()
            if member.established and member.lost is None:
                member.lost = (at, reason)
        if reason != "slow_handler":
            self.settle()
        elif self._awaited is None:
            # A moment later, so that channels that are interrupted one after the other share a request.
            self._wait_until(time.monotonic() + _JOIN_DELAY)

    def receive(self, message: Any, size: int) -> None:
        self._receiver.receive(message, size)
        if any(member.lacks_epoch for member in self.members):
            self.settle()
        if self._owner.is_full(self) and any(member.current for member in self.members):
            logger.warning("the handlers are too slow: %r is interrupted until they catch up", self.name)
            self._owner.paused.add(self)
            self.lose(time.time(), "slow_handler")

    def receive_ephemeral(self, message: Any) -> None:
        self._receiver.receive_ephemeral(message)

    def miss(self, message: Any) -> None:
        """Report a message that cannot be decoded as a gap."""
        self._receiver.miss(message)

    def receive_gap(self, gap: Any) -> None:
        self._receiver.receive_gap(gap)

    def receive_presence(self, event: str, body: Mapping[str, Any]) -> None:
        """Handle ``presence``, ``presence_state`` and ``presence_ended``."""
        if event == "presence":
            self.presence.apply(body)
        elif event == "presence_state":
            self.presence.sync(body)
        else:
            self.presence.receive_end(body)
        self.settle()

    def reloaded(self, member: Member, token: str) -> None:
        """Continue with a member whose rows were loaded again, and are queued for its handler."""
        self._receiver.reloaded(member, token)
        self.settle()

    def check_subscribed(self, body: Any) -> None:
        """Handle ``subscribed``. A request that timed out may have succeeded late and started another replay."""
        start = position_of(body)
        if start is None or (self._awaited is not None and self._awaited.event == "subscribe"):
            return
        self._receiver.learn_epoch(start)
        for member in self.members:
            if member.current and member.received is not None:
                member.current = member.follows(start)
        self.settle()

    def check_unsubscribed(self, body: Mapping[str, Any]) -> None:
        """Handle ``unsubscribed``: permission revoked, the application's own raw request, or our request's echo."""
        if "reason" in body:
            reason = str(body["reason"])
            why = "permission was revoked" if reason == "forbidden" else reason
            error = as_error(reason, f"the server ended the subscription: {why}", self.name)
            self._close()
            self.end(self.members, error)
            self.presence.end(error)
            self.settle()
            self._owner.changed.notify_all()
        elif self._awaited is None or self._awaited.event != "unsubscribe":
            self.lose(time.time(), "client_disconnected")
