"""Replays the log to a client over all of its channels together, in the order of positions.

For clients that can recover their session: their offsets say how far all subscriptions have got (`protocol/offsets`).
And for those with patterns, which get each message once, however many of their subscriptions match it. So the replays
of their channels cannot go on independently, as in `replays`: those that are at the same position move on together, the
most distant ones first.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol

from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, LogNotInstalledError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.patterns import is_pattern, matches
from socketio_pg.log.history import Read
from socketio_pg.log.log import Log
from socketio_pg.log.replay import Replay, Step, beginning
from socketio_pg.log.skipping import Skipping
from socketio_pg.log.starts import Start
from socketio_pg.protocol.encoded import EncodedPacket
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.offsets import Cursor
from socketio_pg.pubsub.hub import Hub

logger = logging.getLogger("socketio_pg.replay")
_limited_log = RateLimitedLog(logger)


class Subscription(Protocol):
    """One subscription of the client, as `delivery` makes it."""

    @property
    def wants_strings(self) -> bool:
        """Whether it gets numbers as strings."""

    def select(self, messages: Sequence[EncodedMessage], /) -> Sequence[EncodedMessage]:
        """Return the messages that are to be sent. May wait."""

    def encode(self, message: EncodedMessage, names: Sequence[str], /) -> EncodedPacket:
        """Return the event of a message that :meth:`select` has returned: of all ``names``, not only of this one."""

    def gap(self, reason: str, epoch: str, position: int, /) -> None:
        """Report that messages are missing, see :class:`ReplayReceiver`."""

    def live(self, epoch: str | None, position: int, /) -> None:
        """Report that live messages follow."""


@dataclass(eq=False, slots=True)
class Place:
    """A subscription that is held for a replay. The hub has it as the reason; its position is in the cursor."""

    cursor: Cursor
    channel: str
    #: Deletions by hand up to this position were reported; None before the first page.
    reported: int | None
    #: Whether the client is told when it has caught up.
    announced: bool
    skipping: Skipping
    #: The number of the subscription.
    number: int | None

    @property
    def position(self) -> int:
        """The position up to which all messages of the channel were sent."""
        return self.cursor.behind.get(self.channel, 0)


class CatchingUp:
    """The replays of one client. ``of(channel)`` returns its subscription to a channel, or pattern.

    ``on_live(sid, channel, number)`` is called when a subscription has arrived at the live messages, and must not wait;
    ``on_failure(sid, channel)`` when it cannot, because of a bug. ``with_offsets``: its events have the offsets of
    ``cursor``.
    """

    def __init__(
        self,
        log: Log,
        hub: Hub,
        manager: Manager,
        sid: str,
        cursor: Cursor,
        page_bytes: int,
        of: Callable[[str], Subscription],
        on_live: Callable[[str, str, int | None], None],
        on_failure: Callable[[str, str], None],
        *,
        with_offsets: bool = True,
    ) -> None:
        self._log = log
        self._hub = hub
        self._manager = manager
        self._sid = sid
        self.cursor = cursor
        self._page_bytes = page_bytes
        self._of = of
        self._on_live = on_live
        self._on_failure = on_failure
        self._with_offsets = with_offsets
        self._places: dict[str, Place] = {}
        self._running = False
        self._backoff = Backoff(*Replay.retry)

    def hold(self, channel: str, after: int, start: Start = None) -> None:
        """Hold a subscription, to be sent what follows the position ``after``. :meth:`run` must follow.

        ``start``: see :class:`Replay`.
        """
        reported = None if isinstance(start, int) else 0
        skipping = self._log.skipping(channel, start)
        number = self.cursor.numbers.get(channel)
        place = self._places[channel] = Place(self.cursor, channel, reported, start is not None, skipping, number)
        self._hub.hold(self._sid, channel, place)
        self.cursor.hold(channel, after)

    def adopt(self, replay: Replay) -> None:
        """Continue a replay of the client that went on independently. :meth:`run` must follow."""
        channel = replay.channel
        number = self.cursor.numbers.get(channel)
        place = Place(self.cursor, channel, replay.reported, replay.announced, replay.skipping, number)
        self._places[channel] = place
        self._hub.hold(self._sid, channel, place)
        self.cursor.hold(channel, replay.position)

    def discard(self, channel: str) -> None:
        """Forget a subscription that has ended."""
        self._places.pop(channel, None)
        self.cursor.behind.pop(channel, None)

    def run(self) -> None:
        """Send everything up to the live messages. Returns at once if another green thread does that already."""
        if self._running:
            return
        self._running = True
        try:
            self._run()
        except Exception:  # a bug, which must not leave the subscriptions without messages
            logger.exception("replays of a client failed")
            for channel in list(self._places):
                self._on_failure(self._sid, channel)
        finally:
            self._running = False

    def _run(self) -> None:
        turn_ends = time.monotonic() + 0.002
        while self._places:
            socket = self._manager.socket_of(self._sid)
            if socket is None or not socket.wait_room(self._page_bytes):
                return  # the client has left
            step = self._step()
            if step is Step.OVER:
                return
            if step is Step.AHEAD:
                min((place.skipping for place in self._places.values()), key=attrgetter("known")).wait()
            if time.monotonic() > turn_ends:
                green.sleep()
                turn_ends = time.monotonic() + 0.002

    def _step(self) -> Step:
        behind = self.cursor.behind
        for channel in list(self._places):
            if not self._is_held(channel) or channel not in behind:
                self.discard(channel)  # unsubscribed, or the epoch has changed, and the client has got a gap
        if not behind:
            return Step.OVER
        if not all(place.skipping.known for place in self._places.values()):
            return Step.MORE if self._know_skipped() else Step.AHEAD
        epoch, upto = self._log.epoch, self._log.position
        first = min(behind.values())
        if first == upto and max(behind.values()) == upto and not any(one.skipping for one in self._places.values()):
            # No other green thread has run since the positions were compared.
            self._release()
            return Step.OVER
        if first >= upto:  # the client was connected to a node that is further on
            return Step.AHEAD
        group = [channel for channel, at in behind.items() if at == first]
        end = min([upto, *(at for at in behind.values() if at > first)])
        try:
            reads = self._read(group, first, end)
        except (DatabaseError, LogNotInstalledError) as error:
            self._log.look()  # if the log was removed, its epoch changes, and the replays end
            _limited_log(logging.WARNING, "a replay cannot read the log: %s; retrying", error)
            green.sleep(self._backoff.next())
            return Step.MORE
        self._backoff.reset()
        if not self._unchanged(group, first, epoch) or not self._report_missing(reads, first):
            return Step.MORE
        end = min(end, *(read.page.end for read in reads.values()))
        return self._send(reads, first, end, epoch)

    def _know_skipped(self) -> bool:
        """Return whether it is known what to skip, of the snapshots with which subscriptions begin. May wait."""
        for channel, place in list(self._places.items()):
            if not place.skipping.known:
                try:
                    problem = place.skipping.look()
                except (DatabaseError, LogNotInstalledError) as error:
                    self._log.look()
                    _limited_log(logging.WARNING, "a replay cannot read the log: %s; retrying", error)
                    return False
                if problem is not None and self._is_held(channel) and self._log.epoch is not None:
                    self._of(channel).gap(problem, self._log.epoch, place.position)
        return all(place.skipping.known for place in self._places.values())

    def _release(self) -> None:
        """End all holds: live messages follow."""
        places, self._places = self._places, {}
        for channel in places:
            self._hub.release(self._sid, channel)
        if self._with_offsets:
            self.cursor.catch_up(self._log.position)
        else:
            self.cursor.behind.clear()
        for channel, place in places.items():
            if place.announced:
                self._of(channel).live(self._log.epoch, self._log.position)
            self._on_live(self._sid, channel, place.number)

    def _read(self, group: Sequence[str], after: int, upto: int) -> dict[str, Read]:
        """Read a page of each channel. The reads that need the database are combined in a query.

        The page of a pattern has those of the channels that match it.
        """
        patterns = [one for one in group if is_pattern(one)]
        wanted = [one for one in group if not any(one != other and matches(other, one) for other in patterns)]
        if len(wanted) == 1:
            reads = {wanted[0]: self._log.channel_page(wanted[0], after, upto)}
        else:
            reads = {}
            found = green.run_together([functools.partial(self._log.channel_page, one, after, upto) for one in wanted])
            for channel, read in zip(wanted, found, strict=True):
                if isinstance(read, BaseException):
                    raise read
                reads[channel] = read
        by_channel: dict[str, dict[str, list[EncodedMessage]]] = {}
        for channel in group:
            if channel not in reads:
                pattern = next(other for other in patterns if matches(other, channel) and other in reads)
                page = reads[pattern].page
                if is_pattern(channel):
                    own = [message for message in page.messages if matches(channel, message.channel)]
                else:
                    if pattern not in by_channel:
                        parts = by_channel[pattern] = {}
                        for message in page.messages:
                            parts.setdefault(message.channel, []).append(message)
                    own = by_channel[pattern].get(channel, [])
                reads[channel] = replace(reads[pattern], page=replace(page, messages=own))
        return reads

    def _report_missing(self, reads: dict[str, Read], first: int) -> bool:
        """Report messages that the log no longer has. Return False if a subscription continues after them."""
        trimmed = False
        for channel, read in reads.items():
            place, epoch = self._places[channel], self._log.epoch
            assert epoch is not None
            if place.reported is None:
                place.reported = read.removed
            if read.trimmed > first or read.removed > max(first, place.reported):
                position = max(read.trimmed, first)
                self._of(channel).gap("trimmed", epoch, position)
                place.reported = max(place.reported, read.removed)
                if position > first:
                    self.cursor.behind[channel] = position
                    trimmed = True
        return not trimmed

    def _send(self, reads: dict[str, Read], first: int, end: int, epoch: str | None) -> Step:
        """Send the messages up to ``end`` as far as they fit into a page."""
        merged: dict[int, EncodedMessage] = {}
        rests: dict[str, set[int]] = {}
        for channel, read in reads.items():
            rest = self._places[channel].skipping.rest(read.page.messages)
            found = {message.position or 0: message for message in rest if (message.position or 0) <= end}
            rests[channel] = set(found)
            merged = found | merged  # the same object for all channels
        page = beginning(sorted(merged.values(), key=attrgetter("position")), self._page_bytes)
        if len(page) < len(merged):
            end = page[-1].position or 0
        selected: dict[int, list[str]] = {}
        subscriptions = {channel: self._of(channel) for channel in reads}
        for channel, subscription in subscriptions.items():
            wanted = [message for message in page if message.position in rests[channel]]
            for message in subscription.select(wanted) if wanted else ():
                selected.setdefault(message.position or 0, []).append(channel)
        if not self._unchanged(list(reads), first, epoch):
            return Step.MORE
        behind, packets = self.cursor.behind, []
        for position, names in sorted(selected.items()):
            for channel in reads:
                behind[channel] = position
            for packet in _encoded(merged[position], names, subscriptions):
                packets.append(packet.with_offset(self.cursor.offset()) if self._with_offsets else packet)
        for channel in reads:
            behind[channel] = end
            self._places[channel].skipping.passed(end)
        socket = self._manager.socket_of(self._sid)
        if packets and socket is not None:
            metrics.replayed_messages.inc(len(packets))
            self._manager.emit_page(packets, self._sid, socket)
        return Step.MORE

    def _unchanged(self, group: Sequence[str], first: int, epoch: str | None) -> bool:
        """Return whether the subscriptions are as they were before something waited."""
        behind = self.cursor.behind
        return self._log.epoch == epoch and all(
            self._is_held(channel) and behind.get(channel) == first for channel in group
        )

    def _is_held(self, channel: str) -> bool:
        place = self._places.get(channel)
        return place is not None and self._hub.held_by(self._sid, channel) is place


def _encoded(
    message: EncodedMessage, names: Sequence[str], subscriptions: Mapping[str, Subscription]
) -> Iterator[EncodedPacket]:
    """Yield the events of a message for subscriptions that get it: one for each form of numbers."""
    in_order = sorted(names, key=lambda name: (is_pattern(name), name))
    for strings in (False, True):
        some = [name for name in in_order if subscriptions[name].wants_strings is strings]
        if some:
            yield subscriptions[some[0]].encode(message, some)
