"""One channel of a Subscriber: keeps the subscription at the server in step with the local subscriptions (members)."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, Protocol

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import Position
from socketio_pg.subscriber.answers import TRANSIENT, answer_error, as_error
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.requests import Requests
from socketio_pg.subscriber.subscription import Member, Request, next_request, position_of

logger = logging.getLogger("socketio_pg.subscriber")

#: Seconds for which the request of an interrupted channel waits for those of others.
_JOIN_DELAY = 0.05
#: Messages of NOTIFY that a member holds while its rows are loaded.
_MAX_HELD = 1000


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


class Channel:
    """One channel: sends the requests that its members need, one at a time.

    Call all methods with the subscriber's lock held, or in its event loop.
    """

    def __init__(self, name: str, owner: Owner) -> None:
        self.name = name
        self.members: list[Member] = []
        self._filter: Mapping[str, Any] | None = None
        #: True while the server is believed to have a subscription.
        self.open = False
        #: When :meth:`settle` must be called even if nothing happens (time.monotonic()).
        self.due = math.inf
        self._owner = owner
        self._backoff = Backoff(*owner.retry_delays)
        #: The request that awaits its answer, and the members that it is for. Late answers to older ones are ignored.
        self._awaited: tuple[str, list[Member]] | None = None
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
        request = next_request(self.members, self.open, self in self._owner.paused, self._after_snapshot)
        if request is None:
            self.due = math.inf
            self._forget_if_done()
            return
        event, body, requesters = request
        if event == "subscribe":
            self.open = True
        awaited = self._awaited = (event, requesters)

        def answered(answer: Any) -> None:
            if self._awaited is awaited:
                self._answered(answer, body)
            elif event == "subscribe" and answer_error(answer) is None:
                self.check_subscribed(answer)  # it came after the timeout

        sent: dict[str, Any] = {"channel": self.name, **body}
        if event == "subscribe" and self._filter is not None:
            sent["filter"] = self._filter
        if requests.send(event, sent, answered, lambda: self._awaited is awaited):
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
        event, requesters = self._awaited
        error = answer_error(answer, self.name)
        if error is not None:
            self._fail(*error)
        else:
            self._awaited, self.due = None, math.inf
            self._backoff.reset()
            if event == "subscribe":
                self._accept(answer, request, requesters)
            else:
                self.open = self._replaying = self._after_snapshot = False
        self.settle()
        self._owner.changed.notify_all()

    def _accept(self, answer: dict[str, Any], request: Request, requesters: list[Member]) -> None:
        """Handle a successful ``subscribe``: ``since`` and ``history`` make the server replay from ``start`` on."""
        was_live = [member for member in self.members if member.current]
        start = position_of(answer)
        lost = answer.get("recovered") is False
        snapshot = start is not None and not lost and any(one.snapshot for one in requesters) and bool(request)
        self._replaying = self._replaying or bool(request)
        self._after_snapshot = self._after_snapshot or snapshot
        self._learn_epoch(start)
        if snapshot:
            # The replay lacks messages that these members may need. They continue afterwards.
            for member in self.members:
                if member not in requesters and member.received is not None:
                    member.current = False
        elif start is not None and not lost and request:
            for member in self.members:
                if member.current and member.received is None:  # subscribed before the log was installed
                    member.received = start
                    self._move(member, start)
                if member.received is not None:
                    member.current = member.follows(start)
        for member in requesters:
            if member not in self.members or member.current or member.held is not None:
                continue
            since = request.get("since")
            position = None if isinstance(since, str) else since
            if member.snapshot if position is not None else member.start != request:
                continue  # it was loaded again, and continues from another place
            if lost and member.reload is not None:
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
                    self._report_gap(member, "log", reason, start, moved=True)
                else:
                    self._move(member, start)
        for member in self.members:
            if member.current and member not in was_live:
                self._confirm(member)
                if not self._replaying:
                    self._tell_live(member, start)

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
            self._tell_live(member, place)
        self.settle()

    def _tell_live(self, member: Member, place: Position | None) -> None:
        if not member.caught_up:
            member.caught_up = True
            live = {"channel": self.name, **(place or {})}
            self._owner.deliver(
                Delivery(member, member.went_live, live, member.received, moved=member.received is not None)
            )

    def reloaded(self, member: Member, token: str) -> None:
        """Continue with a member whose rows were loaded again, and are queued for its handler."""
        held = member.held or []
        member.restart(token)
        for message in held[:_MAX_HELD]:
            self._owner.deliver(Delivery(member, member.handler, message))
        if len(held) > _MAX_HELD:
            self._report_gap(member, "notify", "too_many_while_loading", None)
        self.settle()

    def _learn_epoch(self, start: Position | None) -> None:
        for member in self.members:
            if member.received is not None and member.lacks_epoch:
                member.received = start and Position(epoch=start["epoch"], position=member.received["position"])
                self._move(member, member.received)

    def _confirm(self, member: Member) -> None:
        member.established = True
        if member.lost is not None:
            (since, reason), member.lost = member.lost, None
            self._report_gap(member, "notify", reason, None, since=_iso(since), until=_iso(time.time()))

    def _fail(self, code: str, error: Exception) -> None:
        """Retry later when the error is transient; otherwise end the subscriptions that the request was for."""
        assert self._awaited is not None
        (event, requesters), self._awaited = self._awaited, None
        members = [member for member in requesters if member in self.members]
        if code in TRANSIENT or (code == "internal" and any(member.established for member in members)):
            logger.warning("%s %r failed: %s; retrying", event, self.name, error)
            for member in members:
                member.error = error
            # At one of few moments, so that the retries of many channels share a request.
            slot = max(0.001, self._owner.retry_delays[0] / 4)
            self._wait_until(math.ceil((time.monotonic() + self._backoff.next()) / slot) * slot)
            return
        self.due = math.inf
        if event == "unsubscribe":
            self.open = False
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
            self.open, self._awaited, self.due = False, None, math.inf
            self._backoff.reset()
        self._learn_epoch(None)
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
        position = message.get("position")
        for member in self.members:
            if position is None and member.held is not None and len(member.held) <= _MAX_HELD:
                member.held.append(message)
        for member in self._receivers(position):
            if position is not None and member.received is not None and not member.lacks_epoch:
                message["epoch"] = member.received["epoch"]
            # A message takes more memory than its text.
            self._owner.deliver(
                Delivery(member, member.handler, message, member.received, position is not None, cost=1000 + size)
            )
        if any(member.lacks_epoch for member in self.members):
            self.settle()
        if self._owner.is_full(self) and any(member.current for member in self.members):
            logger.warning("the handlers are too slow: %r is interrupted until they catch up", self.name)
            self._owner.paused.add(self)
            self.lose(time.time(), "slow_handler")

    def miss(self, message: Any) -> None:
        """Report a message that cannot be decoded as a gap."""
        position = message.get("position")
        for member in self._receivers(position):
            if position is None:
                self._report_gap(member, "notify", "undecodable", None)
            else:
                self._report_gap(member, "log", "undecodable", member.received, moved=True)

    def _receivers(self, position: int | None) -> Iterator[Member]:
        """Yield the members that a message is for, after setting ``received`` to its position, if it has one."""
        for member in self.members:
            if not member.established or member.lost is not None or member.held is not None:
                continue
            if position is not None:
                before = member.received
                if not member.current or (before is not None and position <= before["position"]):
                    continue  # will be replayed, or is a duplicate
                member.received = Position(epoch=before["epoch"] if before else "", position=position)
            yield member

    def receive_gap(self, gap: Any) -> None:
        if "position" not in gap:
            for member in self.members:
                if member.established:
                    self._put_gap(member, {**gap, "tier": "notify"})
            return
        for member in self._missing(gap):
            if member.reload is not None:
                if member.held is None:
                    member.load_again()
                continue
            # Also to a lower position: the log may have begun again, in the same epoch too.
            member.received = position_of(gap)
            self._put_gap(member, {**gap, "tier": "log"}, moved=True)

    def _missing(self, gap: Any) -> list[Member]:
        """Return the members that miss messages of the log.

        With the reason ``trimmed`` these are the ones before the gap's position: the replay may have begun for one that
        was behind the others. If there are none, all members get the gap.
        """
        established = [member for member in self.members if member.established]
        start = position_of(gap)
        behind = [
            member for member in established if gap.get("reason") == "trimmed" and not (start and member.follows(start))
        ]
        return behind or established

    def check_subscribed(self, body: Any) -> None:
        """Handle ``subscribed``. A request that timed out may have succeeded late and started another replay."""
        start = position_of(body)
        if start is None or (self._awaited is not None and self._awaited[0] == "subscribe"):
            return
        self._learn_epoch(start)
        for member in self.members:
            if member.current and member.received is not None:
                member.current = member.follows(start)
        self.settle()

    def check_unsubscribed(self, body: Mapping[str, Any]) -> None:
        """Handle ``unsubscribed``: permission revoked, the application's own raw request, or our request's echo."""
        if "reason" in body:
            self.open = False
            reason = str(body["reason"])
            why = "permission was revoked" if reason == "forbidden" else reason
            self.end(self.members, as_error(reason, f"the server ended the subscription: {why}", self.name))
            self.settle()
            self._owner.changed.notify_all()
        elif self._awaited is None or self._awaited[0] != "unsubscribe":
            self.lose(time.time(), "client_disconnected")

    # -- to the handlers' thread --------------------------------------------------------------------------------------

    def _report_gap(
        self,
        member: Member,
        tier: Literal["notify", "log"],
        reason: str,
        start: Position | None,
        moved: bool = False,
        **times: str,
    ) -> None:
        self._put_gap(member, {"channel": self.name, "tier": tier, "reason": reason, **times, **(start or {})}, moved)

    def _put_gap(self, member: Member, gap: dict[str, Any], moved: bool = False) -> None:
        callback = member.on_gap or _nothing
        self._owner.deliver(Delivery(member, callback, gap, member.received, moved))

    def _move(self, member: Member, position: Position | None) -> None:
        """Move the handler's position once the handler has taken everything queued before."""
        self._owner.deliver(Delivery(member, _nothing, None, position, moved=True))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _nothing(_: object) -> None:
    pass
