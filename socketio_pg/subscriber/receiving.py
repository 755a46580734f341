"""The local subscriptions (members) of one channel: which of them get a message of the server. No I/O."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, Literal

from socketio_pg.core.messages import Position
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.subscription import Member, place_of, position_of

#: Messages of NOTIFY that a member holds while its rows are loaded.
_MAX_HELD = 1000


class Receiver:
    """Delivers messages and gaps to the members of a channel, and keeps their positions.

    ``members`` is the list of the channel. Call all methods with the subscriber's lock held, or in its event loop.
    """

    def __init__(self, name: str, members: list[Member], deliver: Callable[[Delivery], None]) -> None:
        self._place = place_of(name)
        self._members = members
        self._deliver = deliver
        #: The newest message, of a channel with retained messages: the server sends it to a client once, not to each
        #: member.
        self._retained: Any = None

    def receive(self, message: Any, size: int) -> None:
        """Deliver a message. ``size``: in characters of the packet."""
        position = message.get("position")
        if message.get("retained") or (self._retained and position and position > self._retained["position"]):
            self._retained = message
        for member in self._members:
            if position is None and member.held is not None and len(member.held) <= _MAX_HELD:
                member.held.append(message)
        for member in self._receivers(position):
            if position is not None and member.received is not None and not member.lacks_epoch:
                message["epoch"] = member.received["epoch"]
            # A message takes more memory than its text.
            self._deliver(
                Delivery(member, member.handler, message, member.received, position is not None, cost=1000 + size)
            )

    def tell_retained(self, member: Member) -> None:
        """Deliver the retained message to a member that was added to others."""
        if self._retained is not None and self._retained["payload"] is not None:
            self._deliver(Delivery(member, member.handler, {**self._retained, "retained": True}))

    def receive_ephemeral(self, message: Any) -> None:
        for member in self._members:
            if member.established and member.on_ephemeral is not None and member.ephemeral.add(message):
                self._deliver(Delivery(member, member.take_ephemeral, None))

    def miss(self, message: Any) -> None:
        """Report a message that cannot be decoded as a gap."""
        position = message.get("position")
        for member in self._receivers(position):
            if position is None:
                self.report_gap(member, "notify", "undecodable", None)
            else:
                self.report_gap(member, "log", "undecodable", member.received, moved=True)

    def _receivers(self, position: int | None) -> Iterator[Member]:
        """Yield the members that a message is for, after setting ``received`` to its position, if it has one."""
        for member in self._members:
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
            for member in self._members:
                if member.established:
                    self._put_gap(member, {**gap, "tier": "notify"})
            return
        self._retained = None
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
        established = [member for member in self._members if member.established]
        start = position_of(gap)
        behind = [
            member for member in established if gap.get("reason") == "trimmed" and not (start and member.follows(start))
        ]
        return behind or established

    def tell_live(self, member: Member, place: Position | None) -> None:
        if not member.caught_up:
            member.caught_up = True
            live = {**self._place, **(place or {})}
            self._deliver(Delivery(member, member.went_live, live, member.received, moved=member.received is not None))

    def reloaded(self, member: Member, token: str) -> None:
        """Continue with a member whose rows were loaded again, and are queued for its handler."""
        held = member.held or []
        member.restart(token)
        for message in held[:_MAX_HELD]:
            self._deliver(Delivery(member, member.handler, message))
        if len(held) > _MAX_HELD:
            self.report_gap(member, "notify", "too_many_while_loading", None)

    def learn_epoch(self, start: Position | None) -> None:
        for member in self._members:
            if member.received is not None and member.lacks_epoch:
                member.received = start and Position(epoch=start["epoch"], position=member.received["position"])
                self.move(member, member.received)

    def confirm(self, member: Member) -> None:
        member.established = True
        if member.lost is not None:
            (since, reason), member.lost = member.lost, None
            self.report_gap(member, "notify", reason, None, since=_iso(since), until=_iso(time.time()))

    # -- to the handlers' thread --------------------------------------------------------------------------------------

    def report_gap(
        self,
        member: Member,
        tier: Literal["notify", "log"],
        reason: str,
        start: Position | None,
        moved: bool = False,
        **times: str,
    ) -> None:
        self._put_gap(member, {**self._place, "tier": tier, "reason": reason, **times, **(start or {})}, moved)

    def _put_gap(self, member: Member, gap: dict[str, Any], moved: bool = False) -> None:
        callback = member.on_gap or _nothing
        self._deliver(Delivery(member, callback, gap, member.received, moved))

    def move(self, member: Member, position: Position | None) -> None:
        """Move the handler's position once the handler has taken everything queued before."""
        self._deliver(Delivery(member, _nothing, None, position, moved=True))


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _nothing(_: object) -> None:
    pass
