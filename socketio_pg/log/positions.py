"""The arithmetic of positions: what a notification of the relay says, what may be delivered now, what may be trimmed.

Pure, no I/O. Positions are gapless: after 7 comes 8, or something is missing that the log has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from socketio_pg.core.messages import EncodedMessage, from_log


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log is: its newest position, and the newest that was trimmed away. Both 0 at first."""

    epoch: str
    position: int
    trimmed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What the relay tells: the messages from ``first`` to ``last``, or None when they must be read from the log."""

    epoch: str
    first: int
    last: int
    messages: Sequence[EncodedMessage] | None


def decode_batch(text: str) -> Batch | None:
    """The batch in a notification of the relay; None for any other text (anybody may notify any channel).

    The first line is ``epoch first last``. If the messages are in it, each is a line ``channel TAB time TAB payload``:
    neither names nor ``jsonb`` as text contain a tab or a line break.
    """
    header, _, body = text.partition("\n")
    words = header.split(" ")
    # Up to 19 digits: a bigint, and nothing that int() would refuse.
    if len(words) != 3 or not all(word.isdecimal() and len(word) < 20 for word in words[1:]):
        return None
    epoch, first, last = words[0], int(words[1]), int(words[2])
    if not 1 <= first <= last:
        return None
    if not body:
        return Batch(epoch, first, last, None)
    messages = []
    for position, line in enumerate(body.split("\n"), first):
        fields = line.split("\t", 2)
        if len(fields) != 3:
            return None
        messages.append(from_log(position, *fields))
    return Batch(epoch, first, last, messages) if len(messages) == last - first + 1 else None


class Progress:
    """How far a node has delivered the log: ``position``, and ``target``, up to which it knows that there is more."""

    def __init__(self, epoch: str, position: int) -> None:
        self.epoch = epoch
        self.position = self.target = position

    @property
    def behind(self) -> bool:
        """Whether there is a hole that must be read from the log."""
        return self.position < self.target

    def expect(self, position: int) -> None:
        """There are messages up to ``position``."""
        self.target = max(self.target, position)

    def due(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        """Those of ``messages``, consecutive ones, that are to be delivered now, in order.

        The part after ``position``; nothing when something before it is missing. The caller moves :attr:`position`.
        """
        if not messages:
            return []
        first, last = messages[0].position, messages[-1].position
        assert first is not None
        assert last is not None
        self.expect(last)
        if first > self.position + 1:
            return []
        return messages[self.position + 1 - first :]


def trim_upto(oldest: Sequence[tuple[int, float]], head: int, retention: float, max_messages: int | None) -> int | None:
    """The position up to which messages may go, or None.

    ``oldest`` are (position, age in seconds) of the oldest messages, in order. A message goes when it is older than
    ``retention`` seconds, or when there are ``max_messages`` newer ones; but none before an older one, and never the
    newest of the log, from which the next position is counted.
    """
    upto = None
    for position, age in oldest:
        expired = age > retention or (max_messages is not None and head - position >= max_messages)
        if not expired or position >= head:
            break
        upto = position
    return upto
