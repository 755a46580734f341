"""Sends the messages of channels with the rule ``max_rate`` conflated: see `pubsub/conflation`.

The position of this node has passed a message that waits, but its subscribers have not got it. So what begins a replay
asks for :meth:`Conflating.unsent`. A subscription that has begun, or whose replay has ended, while messages wait must
not get them: when they are sent, it gets a replay of what follows.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from socketio_pg.core import green, metrics
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.patterns import is_pattern, matches
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.pubsub.conflation import Conflated, Key
from socketio_pg.pubsub.hub import Hub

#: A channel, and whether its messages are those of the log.
_Id: TypeAlias = tuple[str, bool]


@dataclass(eq=False, slots=True)
class _Channel:
    """A channel whose messages wait. ``late``: (subscription, sid) → the position up to which it has all messages."""

    conflated: Conflated
    scheduled: bool = False
    late: dict[tuple[str, str], int] = field(default_factory=dict)
    #: Subscriptions that have begun since the last messages came, and the names of watched ones.
    joined: set[tuple[str, str]] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)


class Conflating:
    """Decides when messages are sent.

    ``send(messages)`` sends what came together, and may yield. ``send_late(messages)`` sends what has waited, of one
    channel: other channels of its subscribers are further on. ``replay(sid, name, after)`` holds a subscription, and
    replays what follows a position. ``position()`` is that of this node.
    """

    #: Seconds after which a channel without messages is forgotten.
    idle = 60.0

    def __init__(
        self,
        rules: Rules,
        hub: Hub,
        send: Callable[[Sequence[EncodedMessage]], None],
        send_late: Callable[[Sequence[EncodedMessage]], None],
        replay: Callable[[str, str, int], None],
        position: Callable[[], int],
    ) -> None:
        self._rules = rules
        self._hub = hub
        self._send = send
        self._send_late = send_late
        self._replay = replay
        self._position = position
        self._channels: dict[_Id, _Channel] = {}
        self._next_forget = 0.0
        #: Whether any rule has ``max_rate``.
        self._active = False
        rules.watch(self._follow_rules)
        self._follow_rules()

    def receive(self, messages: Sequence[EncodedMessage]) -> None:
        """Send messages that came together, except those that wait."""
        if not self._active and not self._channels:
            self._send(messages)
            return
        now, of_log = time.monotonic(), messages[0].position is not None
        if now >= self._next_forget:
            self._forget_idle(now)
        of_channel: dict[str, list[EncodedMessage]] = {}
        for message in messages:
            of_channel.setdefault(message.channel, []).append(message)
        sent: list[_Channel] = []
        #: The messages of this batch that wait or were replaced.
        withheld: set[int] = set()
        for channel, some in of_channel.items():
            one = self._channel((channel, of_log))
            if one is None:
                continue
            self._note_late(one, some[0])
            waits = bool(one.conflated)
            one.conflated.add(some)
            withheld.update(map(id, some))
            # Not together with messages of an earlier batch: other channels of this one have been sent those already.
            if one.conflated.is_due(now) and not waits:
                withheld.difference_update(map(id, self._take(one, now)))
                sent.append(one)
            else:
                self._schedule((channel, of_log), one)
        due = [message for message in messages if id(message) not in withheld] if withheld else messages
        self._send_all(due, sent, self._send)

    def unsent(self, name: str, position: int) -> int:
        """Return the position up to which a subscription that is live was sent everything, ``position`` at most."""
        for one in self._of_log(name):
            before = one.conflated.before
            if before is not None:
                position = min(position, before)
        return position

    def begin(self, sid: str, name: str) -> None:
        """Note that a subscription has begun: it is not to get what waits."""
        for one in self._of_log(name):
            if one.conflated:
                one.joined.add((name, sid))
                self._watch(one, name)

    def _of_log(self, name: str) -> list[_Channel]:
        """Return the channels of the log that a subscription hears."""
        if not is_pattern(name):
            one = self._channels.get((name, True))
            return [] if one is None else [one]
        return [one for (channel, of_log), one in self._channels.items() if of_log and matches(name, channel)]

    def drop_log(self) -> None:
        """Forget messages of the log that wait: their epoch has ended, and all subscribers get a gap."""
        for (_, of_log), one in self._channels.items():
            if of_log:
                one.conflated.drop()
                # Positions of the new epoch begin anew.
                one.late.clear()
                one.joined.clear()
                for name in one.watched:
                    self._hub.take_released(name, last=True)
                one.watched.clear()

    # -- channels ------------------------------------------------------------------------------------------------------

    def _follow_rules(self) -> None:
        self._active = any(one.rule.max_rate is not None for one in self._rules.sourced())

    def _channel(self, id: _Id) -> _Channel | None:
        """Return a channel, with the present rule; None if it is not conflated and nothing waits."""
        rule: Rule = self._rules.of(id[0])
        one = self._channels.get(id)
        # A subscription to a pattern has one position for all channels that it matches: none of them may lag behind.
        if rule.max_rate is None or self._hub.patterns.matching(id[0]) or not self._hub.has_channel(id[0]):
            # What waits comes first, and goes on as it began.
            return one if one is not None and (one.conflated or one.conflated.sending) else None
        if one is None:
            one = self._channels[id] = _Channel(Conflated(rule.max_rate, Key(rule.conflate_key)))
        elif not one.conflated and one.conflated.key.path != rule.conflate_key:
            one.conflated.key = Key(rule.conflate_key)
        one.conflated.rate = rule.max_rate
        return one

    def _watch(self, one: _Channel, name: str) -> None:
        one.watched.add(name)
        self._hub.watch_releases(name)

    def _note_late(self, one: _Channel, first: EncodedMessage) -> None:
        """Before messages are added: note which subscriptions have all messages before them."""
        if first.position is None:
            return
        for name in one.watched:
            one.joined |= {(name, sid) for sid in self._hub.take_released(name) if isinstance(sid, str)}
        one.late |= dict.fromkeys(one.joined, first.position - 1)
        one.joined.clear()
        self._watch(one, first.channel)

    def _take(self, one: _Channel, now: float) -> list[EncodedMessage]:
        """Take what is due, and let the late subscriptions have it by a replay."""
        for name in one.watched:
            one.joined |= {(name, sid) for sid in self._hub.take_released(name, last=True) if isinstance(sid, str)}
        late = one.late | dict.fromkeys(one.joined, self._position())
        one.watched.clear()
        one.joined.clear()
        one.late.clear()
        for (name, sid), after in late.items():
            if self._hub.is_subscribed(sid, name) and not self._hub.held_by(sid, name):
                self._replay(sid, name, after)
        metrics.conflated_messages.inc(one.conflated.replaced)
        one.conflated.replaced = 0
        return one.conflated.take(now)

    # -- green threads -------------------------------------------------------------------------------------------------

    def _schedule(self, id: _Id, one: _Channel) -> None:
        if not one.scheduled:
            one.scheduled = True
            green.run_soon(self._send_later, id, one)

    def _send_later(self, id: _Id, one: _Channel) -> None:
        """Send what waits when it is due; end when nothing waits."""
        try:
            while one.conflated:
                now = time.monotonic()
                if one.conflated.is_due(now):
                    self._send_all(self._take(one, now), [one], self._send_late)
                else:
                    green.sleep(max(0.001, min(one.conflated.due_at - now, 1.0)))
        finally:
            one.scheduled = False

    def _send_all(
        self,
        messages: Sequence[EncodedMessage],
        channels: Sequence[_Channel],
        send: Callable[[Sequence[EncodedMessage]], None],
    ) -> None:
        for one in channels:
            one.conflated.sending = True
        try:
            if messages:
                send(messages)
        finally:
            for one in channels:
                one.conflated.sending = False

    def _forget_idle(self, now: float) -> None:
        self._next_forget = now + self.idle
        for id, one in list(self._channels.items()):
            if not one.conflated and not one.scheduled and now > one.conflated.due_at + self.idle:
                del self._channels[id]
