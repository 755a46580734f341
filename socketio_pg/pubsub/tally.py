"""Counts the messages of each channel, only while somebody looks. Bounded memory, no I/O.

A rate is an average over the present window and the one before it. Nothing is counted, and nothing kept, when nobody
has looked for a while.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from socketio_pg.core.messages import EncodedMessage


@dataclass(frozen=True, slots=True)
class Rate:
    """The counts of one channel. The rates are per second; None while too little time has passed.

    ``last_at``: seconds since 1970, of the last message, which had ``last_bytes`` and this ``position`` in the log
    (None: it was a NOTIFY).
    """

    messages_in: float | None
    bytes_in: float | None
    last_at: float
    last_bytes: int
    position: int | None


class _Channel:
    """The counts of one channel in the window ``number``, and in the one before: messages, bytes."""

    __slots__ = ("before", "bytes", "last_at", "last_bytes", "messages", "number", "position")

    def __init__(self, number: int) -> None:
        self.number = number
        self.messages = self.bytes = 0
        self.before = (0, 0)
        self.last_at = 0.0
        self.last_bytes = 0
        self.position: int | None = None

    def turn(self, number: int) -> None:
        """Begin the window ``number``."""
        self.before = (self.messages, self.bytes) if number == self.number + 1 else (0, 0)
        self.number = number
        self.messages = self.bytes = 0


class Tally:
    """The counts of one process. :meth:`look` begins to count, for :attr:`linger` seconds; each look extends that."""

    #: Seconds of a window; for which a look lasts; before the first rate.
    window, linger, least = 5.0, 30.0, 1.0
    #: Channels that are counted; beyond that, messages of new ones are not.
    max_channels = 20_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Whether messages are counted. Plain, because each batch of messages reads it.
        self.active = False
        self._began = self._until = 0.0
        self._channels: dict[str, _Channel] = {}
        self._pruned = 0

    def look(self) -> None:
        """Count from now on, if that is not so already."""
        now = self._clock()
        if not self.active or now > self._until:
            self._channels.clear()
            self.active, self._began, self._pruned = True, now, 0
        self._until = now + self.linger

    def seconds(self) -> float:
        """Return for how long messages have been counted; 0 if they are not."""
        return self._clock() - self._began if self._counts() else 0.0

    def _counts(self) -> bool:
        return self.active and self._clock() <= self._until

    def count(self, messages: Sequence[EncodedMessage]) -> None:
        """Count messages that are about to be delivered. Call it only while :attr:`active`."""
        now = self._clock()
        if now > self._until:
            self.active = False
            self._channels.clear()
            return
        number, at = self._number(now), time.time()
        for message in messages:
            channel = self._channels.get(message.channel)
            if channel is None:
                if len(self._channels) >= self.max_channels and not self._prune(number):
                    continue
                channel = self._channels[message.channel] = _Channel(number)
            elif channel.number != number:
                channel.turn(number)
            text = message.payload_json
            size = len(text) if text.isascii() else len(text.encode())
            channel.messages += 1
            channel.bytes += size
            channel.last_at, channel.last_bytes, channel.position = at, size, message.position

    def of(self, channel: str) -> Rate | None:
        """Return what was counted of a channel; None if nothing was."""
        found = self._channels.get(channel)
        return None if found is None or not self._counts() else self._rate(found, self._clock())

    def all(self) -> Iterator[tuple[str, Rate]]:
        """Yield what was counted, by channel. The channels may change meanwhile."""
        if self._counts():
            now = self._clock()
            for name, channel in list(self._channels.items()):
                yield name, self._rate(channel, now)

    def __len__(self) -> int:
        return len(self._channels)

    def _number(self, now: float) -> int:
        return int((now - self._began) / self.window)

    def _rate(self, channel: _Channel, now: float) -> Rate:
        number = self._number(now)
        messages, size = 0, 0
        if channel.number == number:
            messages, size = channel.messages, channel.bytes
            before = channel.before
        else:
            before = (channel.messages, channel.bytes) if channel.number == number - 1 else (0, 0)
        # From the beginning of the window before this one.
        seconds = now - self._began - max(0, number - 1) * self.window
        known = now - self._began >= self.least
        return Rate(
            (messages + before[0]) / seconds if known else None,
            (size + before[1]) / seconds if known else None,
            channel.last_at,
            channel.last_bytes,
            channel.position,
        )

    def _prune(self, number: int) -> bool:
        """Forget channels without messages in two windows, once in each window. Return whether there is room now."""
        if self._pruned != number:
            self._pruned = number
            for name in [name for name, one in self._channels.items() if one.number < number - 1]:
                del self._channels[name]
        return len(self._channels) < self.max_channels
