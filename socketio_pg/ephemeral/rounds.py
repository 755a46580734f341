"""Gathers messages for the next round: the newest of each sender and key. Pure, no I/O.

Times are those of a monotonic clock.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from socketio_pg.ephemeral.messages import EphemeralMessage

#: The payloads of one round have at most this many characters, unless one message has more; the others wait.
MAX_ROUND = 65_536
#: Messages of one channel that wait at most, and those for other processes; beyond that the oldest are dropped.
MAX_WAITING = 2_000

#: Channel, sender, and key.
_Source: TypeAlias = tuple[str, str, str | None]


class Round:
    """The messages of one or several channels that wait for the same round. The first one is due at ``due``."""

    __slots__ = ("_waiting", "due")

    def __init__(self, due: float) -> None:
        self.due = due
        self._waiting: dict[_Source, EphemeralMessage] = {}

    def __len__(self) -> int:
        """Return the number of messages that wait."""
        return len(self._waiting)

    def add(self, message: EphemeralMessage) -> bool:
        """Add a message. Return whether an older one is dropped: the one that it replaces, or the oldest."""
        source = message.channel, message.sender, message.key
        drops = source in self._waiting
        # The replacement takes the place of the older message, so that no sender waits for ever.
        self._waiting[source] = message
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
            return True
        return drops

    def take(self) -> list[EphemeralMessage]:
        """Return the messages of this round, in the order in which their senders began."""
        taken: list[EphemeralMessage] = []
        size = 0
        for message in self._waiting.values():
            size += len(message.payload_json)
            if taken and size > MAX_ROUND:
                break
            taken.append(message)
        if len(taken) == len(self._waiting):
            self._waiting.clear()
        else:
            for message in taken:
                del self._waiting[message.channel, message.sender, message.key]
        return taken


class Rounds:
    """The rounds of each channel; ``pause(channel)`` returns the seconds between two of them.

    The first message after a pause is due at once.
    """

    def __init__(self, pause: Callable[[str], float]) -> None:
        self._pause = pause
        self._channels: dict[str, Round] = {}
        #: Messages that a newer one has replaced before their round, so far.
        self.replaced = 0

    def __len__(self) -> int:
        """Return the number of messages that wait."""
        return sum(map(len, self._channels.values()))

    def add(self, message: EphemeralMessage, now: float) -> float:
        """Add a message. Return the time of its round."""
        channel = self._channels.get(message.channel)
        if channel is None:
            channel = self._channels[message.channel] = Round(now)
        self.replaced += channel.add(message)
        return channel.due

    def next_due(self) -> float | None:
        """Return the time of the next round; None when nothing waits."""
        return min((channel.due for channel in self._channels.values() if channel), default=None)

    def take_due(self, now: float) -> Iterator[tuple[str, list[EphemeralMessage]]]:
        """Yield the channels whose round is due, with their messages."""
        for name, channel in list(self._channels.items()):
            if channel.due > now:
                continue
            if not channel:
                del self._channels[name]
                continue
            messages = channel.take()
            channel.due = now + self._pause(name)
            yield name, messages
