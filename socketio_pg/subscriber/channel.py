"""A channel of a Subscriber: keeps the server's subscription as its members need it."""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, Protocol

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.subscriber.connection import TRANSIENT, Connection, answer_error, as_error
from socketio_pg.subscriber.deliveries import Deliveries, Delivery
from socketio_pg.subscriber.subscription import Member, Position, Request, next_request, position_of

logger = logging.getLogger("socketio_pg.subscriber")


class Owner(Protocol):
    """The subscriber, as its channels see it. All under its lock."""

    connection: Connection | None
    #: Those that wait for the handlers to catch up.
    paused: set["Channel"]
    channels: dict[str, "Channel"]
    deliveries: Deliveries
    #: Notified when a call may have its answer.
    changed: threading.Condition
    #: Seconds for an answer, and before what has failed is tried again.
    timeout: float
    retry_delays: tuple[float, float]

    def schedule(self, due: float, /) -> None:
        """Something is to be done at ``due`` (time.monotonic())."""


class Channel:
    """A channel: brings the server's subscription to what the members need, with one request at a time.

    All methods are called with the subscriber's lock held.
    """

    def __init__(self, name: str, owner: Owner) -> None:
        self.name = name
        self.members: list[Member] = []
        self._filter: Mapping[str, Any] | None = None
        #: As far as is known, the server has a subscription.
        self.open = False
        #: When :meth:`settle` is to be called even if nothing happens.
        self.due = math.inf
        self._owner = owner
        self._backoff = Backoff(*owner.retry_delays)
        #: The event that is not answered yet, and whose it is; answers to others come too late.
        self._awaited: tuple[str, list[Member]] | None = None

    def add(self, member: Member, filter: Mapping[str, Any] | None) -> None:
        """One more. Raises :class:`InvalidRequestError` when the others have another filter."""
        if self.members and (filter or None) != self._filter:
            message = "another handler of this channel has another filter: the server knows one for each client"
            raise InvalidRequestError(message, channel=self.name)
        self._filter = filter or None
        self.members.append(member)

    def settle(self) -> None:
        """Send the next request, when there is one and none is on its way; called again whenever something changes."""
        connection = self._owner.connection
        if connection is None:
            self._forget_if_done()
            return
        if self._awaited is not None:
            if time.monotonic() < self.due:
                return
            self._fail("no_answer", TimeoutError("the server did not answer"))
        new = any(one.error is None and not one.established for one in self.members)
        if time.monotonic() < self.due < math.inf and not new:
            return  # to be tried again later
        request = next_request(self.members, self.open, self in self._owner.paused)
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

        sent: dict[str, Any] = {"channel": self.name, **body}
        if event == "subscribe" and self._filter is not None:
            sent["filter"] = self._filter
        if connection.emit(event, sent, answered):
            self._wait_until(time.monotonic() + self._owner.timeout)
        else:
            self._awaited = None  # the connection is about to be reported as lost

    def _wait_until(self, due: float) -> None:
        self.due = due
        self._owner.schedule(due)

    def _forget_if_done(self) -> None:
        channels = self._owner.channels
        if not self.members and not self.open and channels.get(self.name) is self:
            del channels[self.name]
        self._owner.changed.notify_all()

    def _answered(self, answer: Any, request: Request) -> None:
        assert self._awaited is not None
        event, whose = self._awaited
        error = answer_error(answer, self.name)
        if error is not None:
            self._fail(*error)
        else:
            self._awaited, self.due = None, math.inf
            self._backoff.reset()
            if event == "subscribe":
                self._accept(answer, request, whose)
            else:
                self.open = False
        self.settle()
        self._owner.changed.notify_all()

    def _accept(self, answer: dict[str, Any], request: Request, whose: list[Member]) -> None:
        """The server has subscribed us, and sends the log's messages after ``start`` where that was asked for."""
        was_live = [one for one in self.members if one.live]
        start = position_of(answer)
        lost = answer.get("recovered") is False
        self._learn_epoch(start)
        if start is not None and not lost and request:
            for one in self.members:
                if one.live and one.received is None:  # subscribed before there was a log
                    one.received = start
                    self._move(one, start)
                if one.received is not None:
                    one.live = one.follows(start)
        for one in whose:
            if one not in self.members or one.live:
                continue
            one.live = True
            if lost or "since" not in request:
                reason = answer["reason"] if lost else None
                if one.established and one.received is None and start is not None:
                    reason = "client_disconnected"  # the log was installed meanwhile
                one.received, one.history = start, None
                if not one.established:
                    one.handled = start  # nothing waits for the handler yet, and subscribe() is about to return
                if reason is not None:
                    self._tell(one, "log", reason, start, moved=True)
                else:
                    self._move(one, start)
        for one in self.members:
            if one.live and one not in was_live:
                self._confirm(one)

    def _learn_epoch(self, start: Position | None) -> None:
        for one in self.members:
            if one.received is not None and one.lacks_epoch:
                one.received = start and Position(epoch=start["epoch"], position=one.received["position"])
                self._move(one, one.received)

    def _confirm(self, one: Member) -> None:
        one.established = True
        if one.lost is not None:
            (since, reason), one.lost = one.lost, None
            self._tell(one, "notify", reason, None, since=_iso(since), until=_iso(time.time()))

    def _fail(self, code: str, error: Exception) -> None:
        """Tell of the error, and arrange for another try where it is worth one."""
        assert self._awaited is not None
        (event, whose), self._awaited = self._awaited, None
        members = [one for one in whose if one in self.members]
        if code in TRANSIENT or (code == "internal" and any(one.established for one in members)):
            logger.warning("%s %r failed: %s; retrying", event, self.name, error)
            for one in members:
                one.error = error
            self._wait_until(time.monotonic() + self._backoff.next())
            return
        self.due = math.inf
        if event == "unsubscribe":
            self.open = False
        self.end(members, error)

    def end(self, members: Sequence[Member], error: Exception) -> None:
        """These subscriptions are over, and not by the application's wish."""
        for one in list(members):
            one.error, one.ended, one.live = error, True, False
            self.members.remove(one)
            if one.established:
                logger.error("the subscription of %r has ended: %s", self.name, error)
                if one.on_error is not None:
                    self._owner.deliveries.put(Delivery(one, one.on_error, error, last=True))

    # -- what the server says by itself -------------------------------------------------------------------------------

    def lose(self, at: float, reason: str) -> None:
        """The server's subscription is gone, or not wanted any more; ``at`` (seconds of the epoch) it was there."""
        if reason != "slow_handler":
            self.open, self._awaited, self.due = False, None, math.inf
            self._backoff.reset()
        self._learn_epoch(None)
        for one in self.members:
            one.live = False
            if one.established and one.lost is None:
                one.lost = (at, reason)
        self.settle()

    def receive(self, message: Any, size: int) -> None:
        position = message.get("position")
        deliveries = self._owner.deliveries
        for one in self.members:
            if not one.established or one.lost is not None:
                continue
            if position is not None:
                before = one.received
                if not one.live or (before is not None and position <= before["position"]):
                    continue  # comes again, or has come
                one.received = Position(epoch=before["epoch"] if before else "", position=position)
                if not one.lacks_epoch:
                    message["epoch"] = one.received["epoch"]
            # A message costs more in memory than its text.
            deliveries.put(Delivery(one, one.handler, message, one.received, position is not None, cost=1000 + size))
        if any(one.lacks_epoch for one in self.members):
            self.settle()
        if deliveries.full and any(one.live for one in self.members):
            logger.warning("the handlers are far behind: %r is interrupted until they have caught up", self.name)
            self._owner.paused.add(self)
            self.lose(time.time(), "slow_handler")

    def receive_gap(self, gap: Any) -> None:
        start = position_of(gap)
        for one in self.members:
            if not one.established:
                continue
            if "position" not in gap:
                self._put_gap(one, {**gap, "tier": "notify"})
            elif one.live and not (start and one.follows(start)):
                one.received = start
                self._put_gap(one, {**gap, "tier": "log"}, moved=True)

    def check_subscribed(self, body: Any) -> None:
        """Where it was no request of ours but one given up for lost, another replay may have begun."""
        start = position_of(body)
        if start is None or (self._awaited is not None and self._awaited[0] == "subscribe"):
            return
        self._learn_epoch(start)
        for one in self.members:
            if one.live and one.received is not None:
                one.live = one.follows(start)
        self.settle()

    def check_unsubscribed(self, body: Mapping[str, Any]) -> None:
        """Where it was no request of ours, it is not allowed any more, or the application has asked for it itself."""
        if "reason" in body:
            self.open = False
            reason = str(body["reason"])
            why = "it is not allowed any more" if reason == "forbidden" else reason
            self.end(self.members, as_error(reason, f"the server has ended the subscription: {why}", self.name))
            self.settle()
            self._owner.changed.notify_all()
        elif self._awaited is None or self._awaited[0] != "unsubscribe":
            self.lose(time.time(), "client_disconnected")

    # -- to the handlers' thread --------------------------------------------------------------------------------------

    def _tell(
        self,
        one: Member,
        tier: Literal["notify", "log"],
        reason: str,
        start: Position | None,
        moved: bool = False,
        **times: str,
    ) -> None:
        self._put_gap(one, {"channel": self.name, "tier": tier, "reason": reason, **times, **(start or {})}, moved)

    def _put_gap(self, one: Member, gap: dict[str, Any], moved: bool = False) -> None:
        callback = one.on_gap or _nothing
        self._owner.deliveries.put(Delivery(one, callback, gap, one.received, moved))

    def _move(self, one: Member, position: Position | None) -> None:
        """Past what still waits for the handler there may be nothing to deliver."""
        self._owner.deliveries.put(Delivery(one, _nothing, None, position, moved=True))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _nothing(_: object) -> None:
    pass
