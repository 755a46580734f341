"""Sends the replay of one client's subscription: the messages that its filter selects, in its form of numbers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from socketio_pg.access.channel_rights import ChannelRights
from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.patterns import is_pattern, named
from socketio_pg.gateway.replay_packets import ReplayPackets, through
from socketio_pg.protocol.encoded import EncodedPacket
from socketio_pg.protocol.fanout import Manager
from socketio_pg.pubsub.filters import Filter
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.matching import Matching

#: Seconds for which the permission for a channel of a pattern is asked before its messages are left out, and then for
#: which it counts as refused.
DECIDE_SECONDS, UNDECIDED_SECONDS = 10.0, 10.0


@dataclass(frozen=True, slots=True)
class ReplayTools:
    """The parts of a server that replays to clients need.

    ``charge(sid, channel, filter, steps)`` counts what a filter has cost. ``retained`` has the positions of retained
    messages that are to be sent, by client and channel.
    """

    manager: Manager
    hub: Hub
    matching: Matching
    packets: ReplayPackets
    rights: ChannelRights
    charge: Callable[[str, str, Filter, int], None]
    page_bytes: int
    retained: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class ReplayClient:
    """Receives the replay of the client ``sid``'s subscription to ``channel``, or to a pattern."""

    tools: ReplayTools
    sid: str
    channel: str
    epoch: str | None
    #: The payloads of the page with numbers as strings, by position.
    strings: dict[int | None, str] = field(default_factory=dict)

    @property
    def page_bytes(self) -> int:
        """The maximum size of a page in bytes."""
        return self.tools.page_bytes

    @property
    def wants_strings(self) -> bool:
        """Whether it gets numbers as strings."""
        return self.tools.hub.wants_strings(self.sid, self.channel)

    def select(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        hub = self.tools.hub
        if any(message.exclude == self.sid for message in messages):
            messages = [message for message in messages if message.exclude != self.sid]
        while True:
            filter = hub.filter_of(self.sid, self.channel)
            selected = messages if filter is None else self._matching_ones(filter, messages)
            selected = self._allowed(selected)
            self._write_strings(selected)
            # All of them yield, and the client may have replaced its filter in the meantime.
            if hub.filter_of(self.sid, self.channel) == filter:
                return selected

    def _allowed(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        """Return the messages of the channels that the client may hear through its pattern. Waits for the policies."""
        rights = self.tools.rights
        if not messages or not is_pattern(self.channel) or not rights.are_asked(self.channel):
            return messages
        channels = {message.channel for message in messages}
        backoff, give_up = Backoff(0.1, 2.0), time.monotonic() + DECIDE_SECONDS
        while True:
            try:
                allowed = rights.decide(self.sid, channels)
                return [message for message in messages if message.channel in allowed]
            except DatabaseError:
                if not self.tools.hub.is_subscribed(self.sid, self.channel):
                    return ()
                if time.monotonic() > give_up:
                    # Which channels these are, the client may not know.
                    rights.refuse(self.sid, channels, UNDECIDED_SECONDS)
                    self.gap("permission_unknown", self.epoch, messages[-1].position or 0)
                else:
                    green.sleep(backoff.next())

    def _write_strings(self, messages: Sequence[EncodedMessage]) -> None:
        self.strings.clear()
        if self.wants_strings:
            self.strings.update(self.tools.matching.written_with_strings(messages))

    def _with(self, mark: str, message: EncodedMessage, names: Sequence[str]) -> EncodedPacket:
        """Return the event with a ``mark``, which is ``replayed`` or ``retained``, in the client's form of numbers."""
        body = message.to_wire() | {mark: True}
        if self.wants_strings:
            # Not there if the client has asked for strings in the meantime.
            text = self.strings.get(message.position)
            text = self.tools.matching.strings(message) if text is None else text
            body["payload"] = orjson.Fragment(text)
        return self.tools.manager.encode_message("event", body | through(message.channel, names))

    def _matching_ones(self, filter: Filter, messages: Sequence[EncodedMessage]) -> list[EncodedMessage]:
        return self.tools.matching.select(
            filter,
            messages,
            lambda steps: self.tools.charge(self.sid, self.channel, filter, steps),
            lambda: self.tools.hub.filter_of(self.sid, self.channel) == filter,
        )

    def send(self, messages: Sequence[EncodedMessage]) -> None:
        socket = self.tools.manager.socket_of(self.sid)
        if socket is not None and messages:
            metrics.replayed_messages.inc(len(messages))
            packets = [self.encode(message, (self.channel,)) for message in messages]
            self.tools.manager.emit_page(packets, self.sid, socket)

    def encode(self, message: EncodedMessage, names: Sequence[str]) -> EncodedPacket:
        """Return the event of a message that comes through the client's subscriptions ``names``, this one included."""
        retained = self.tools.retained.get(self.sid)
        if retained and retained.get(self.channel) == message.position:
            del retained[self.channel]
            return self._with("retained", message, names)
        if self.wants_strings:
            return self._with("replayed", message, names)
        return self.tools.packets.of(message, names)

    def gap(self, reason: str, epoch: str | None, position: int) -> None:
        metrics.unrecovered.labels(reason).inc()
        self._emit("gap", {"reason": reason, "epoch": epoch, "position": position})

    def live(self, epoch: str | None, position: int) -> None:
        self._emit("live", {} if epoch is None else {"epoch": epoch, "position": position})

    def _emit(self, event: str, body: dict[str, Any]) -> None:
        self.tools.manager.emit(event, named(self.channel) | body, "/", to=self.sid, ignore_queue=True)
