"""Delivers messages that patterns match: once to each client, whichever of its subscriptions match.

`delivery` uses it for batches with such messages only, and does all else for patterns as for channels.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import orjson

from socketio_pg.access.channel_rights import ChannelRights
from socketio_pg.core import green
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.metrics import fan_out
from socketio_pg.core.patterns import is_pattern
from socketio_pg.gateway.replay_packets import through
from socketio_pg.gateway.rooms import of_strings, room_of
from socketio_pg.protocol.encoded import EncodedPacket
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.overlapping import Part
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.matching import Matching


class PatternDelivery:
    """Sends batches to the rooms of channels and patterns.

    ``hold_lagging(names, after)`` holds the subscriptions of slow clients, by room → name; ``hold(sid, name, after)``
    one subscription, and those of the same client that overlap with it. Both replay what follows a position.
    """

    def __init__(
        self,
        manager: Manager,
        hub: Hub,
        matching: Matching,
        rights: ChannelRights,
        hold_lagging: Callable[[dict[str, str], int], None],
        hold: Callable[[str, str, int], None],
    ) -> None:
        self._manager = manager
        self._hub = hub
        self._matching = matching
        self._rights = rights
        self._hold_lagging = hold_lagging
        self._hold = hold
        #: Clients whose permission is being asked for NOTIFY messages, with the channels.
        self._asking: set[tuple[str, str]] = set()

    def concerns(self, messages: Sequence[EncodedMessage]) -> bool:
        """Return whether a pattern matches one of ``messages``."""
        matching = self._hub.patterns.matching
        return any(matching(message.channel) for message in messages)

    def send(self, messages: Sequence[EncodedMessage]) -> None:
        """Send a batch: messages of the log, or of NOTIFY. Yields in between."""
        #: Clients and patterns: it is not known whether the client may hear the channel of one of the messages.
        unknown: list[tuple[str, str]] = []
        parts = [part for message in messages for part in self._parts(message, unknown)]
        names = {room: name for part in parts for room, name in part.rooms.items()}
        held: dict[str, Collection[Any]] | None = None
        if messages[0].position is not None:
            after = messages[0].position - 1
            self._hold_lagging(names, after)
            for sid, name in unknown:
                if not self._hub.held_by(sid, name):
                    # Its replay waits for the answer, and then sends the whole batch.
                    self._hold(sid, name, after)
            held = {room: found for room, name in names.items() if (found := self._hub.held(name))}
        self._manager.emit_parts(parts, skipped=held)

    def _parts(self, message: EncodedMessage, unknown: list[tuple[str, str]]) -> Iterator[Part]:
        """Yield the message in each form that anybody wants. Adds to ``unknown``."""
        there = self._manager.rooms.get("/", {})
        plain: dict[str, str] = {}
        strings: dict[str, str] = {}
        for name in self._hub.names(message.channel):
            rooms = [room_of(name, None), *(room_of(name, one) for one in self._matching.matching(message, name))]
            plain.update((room, name) for room in rooms if room in there)
            if self._hub.has_strings(name):
                strings.update((of_strings(room), name) for room in rooms if of_strings(room) in there)
        if not plain and not strings:
            fan_out.unheard += 1
            return
        without = self._without(message, [*plain.items(), *strings.items()], unknown)
        if plain:
            yield Part(plain, functools.partial(self._encode, message, message.to_wire()), without)
        if strings:
            body = message.to_wire() | {"payload": orjson.Fragment(self._matching.strings(message))}
            yield Part(strings, functools.partial(self._encode, message, body), without)

    def _encode(self, message: EncodedMessage, body: dict[str, Any], names: Sequence[str]) -> EncodedPacket:
        return self._manager.encode_message("event", body | through(message.channel, names))

    def _without(
        self, message: EncodedMessage, rooms: Sequence[tuple[str, str]], unknown: list[tuple[str, str]]
    ) -> dict[str, set[str]]:
        """Return the members of each room that do not get the message there. Adds to ``unknown``."""
        found: dict[str, set[str]] = {}
        members_of = self._manager.rooms["/"]
        for room, name in rooms:
            if message.exclude is not None and message.exclude in members_of[room]:
                found.setdefault(room, set()).add(message.exclude)
            if is_pattern(name) and self._rights.are_asked(name):
                refused, undecided = self._rights.sort(message.channel, members_of[room])
                if message.position is None:
                    for sid in undecided:
                        self._ask_later(sid, message.channel)
                else:
                    unknown += [(sid, name) for sid in undecided]
                if refused or undecided:
                    found.setdefault(room, set()).update(refused, undecided)
        return found

    def refused(self, name: str, channel: str) -> list[str]:
        """Return the subscribers of a channel, or pattern, that must not learn about a channel."""
        if not is_pattern(name) or not self._rights.are_asked(name):
            return []
        return self._rights.sort(channel, [sid for sid in self._hub.subscribers(name) if isinstance(sid, str)])[0]

    def _ask_later(self, sid: str, channel: str) -> None:
        """Ask whether a client may hear a channel of NOTIFY. It misses the messages until then: none is replayed."""
        if (sid, channel) not in self._asking:
            self._asking.add((sid, channel))
            green.run_soon(self._ask, sid, channel)

    def _ask(self, sid: str, channel: str) -> None:
        try:
            self._rights.decide(sid, [channel])
        except SocketIOPGError:
            self._rights.refuse(sid, [channel], 1.0)
        finally:
            self._asking.discard((sid, channel))
