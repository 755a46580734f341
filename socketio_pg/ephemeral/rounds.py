"""Gathers the messages of each channel for its next round: the newest of each sender and key. Pure, no I/O."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from socketio_pg.ephemeral.messages import EphemeralMessage

#: The payloads of one round have at most this many characters, unless one message has more; the others wait.
MAX_ROUND = 65_536

_Key: TypeAlias = tuple[str, str | None]


@dataclass(slots=True)
class _Channel:
    """The messages of a channel that wait, by sender and key, and the time of its next round."""

    due: float
    waiting: dict[_Key, EphemeralMessage] = field(default_factory=dict)


class Rounds:
    """``interval(channel)`` returns the seconds between two rounds of a channel. Times are those of a monotonic clock.

    The first message after a pause is due at once.
    """

    def __init__(self, interval: Callable[[str], float]) -> None:
        self._interval = interval
        self._channels: dict[str, _Channel] = {}
        #: Messages that a newer one has replaced before their round, so far.
        self.replaced = 0

    def __len__(self) -> int:
        """Return the number of messages that wait."""
        return sum(len(channel.waiting) for channel in self._channels.values())

    def add(self, message: EphemeralMessage, now: float) -> float:
        """Add a message. Return the time of its round."""
        channel = self._channels.get(message.channel)
        if channel is None:
            channel = self._channels[message.channel] = _Channel(now)
        key = message.sender, message.key
        # The replacement takes the place of the older message, so that no sender waits for ever.
        self.replaced += key in channel.waiting
        channel.waiting[key] = message
        return channel.due

    def next_due(self) -> float | None:
        """Return the time of the next round; None when nothing waits."""
        return min((channel.due for channel in self._channels.values() if channel.waiting), default=None)

    def take_due(self, now: float) -> Iterator[tuple[str, list[EphemeralMessage]]]:
        """Yield the channels whose round is due, with their messages in the order in which their senders began."""
        for name, channel in list(self._channels.items()):
            if channel.due > now:
                continue
            if not channel.waiting:
                del self._channels[name]
                continue
            messages = _taken(channel.waiting)
            channel.due = now + self._interval(name)
            yield name, messages


def _taken(waiting: dict[_Key, EphemeralMessage]) -> list[EphemeralMessage]:
    taken: list[EphemeralMessage] = []
    size = 0
    for message in waiting.values():
        size += len(message.payload_json)
        if taken and size > MAX_ROUND:
            break
        taken.append(message)
    if len(taken) == len(waiting):
        waiting.clear()
    else:
        for message in taken:
            del waiting[message.sender, message.key]
    return taken
