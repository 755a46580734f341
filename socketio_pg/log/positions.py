"""Arithmetic of log positions: the relay's notifications, the order of delivery, trimming. Pure, no I/O.

Positions have no holes: if 7 is not followed by 8, then 8 must be read from the log. It may have been removed by then.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.meta import parse_meta
from socketio_pg.core.rules import Rule


@dataclass(frozen=True, slots=True)
class Head:
    """The newest position of the log, and the newest one that was trimmed. Both are 0 at first."""

    epoch: str
    position: int
    trimmed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A notification of the relay: the messages from ``first`` to ``last``; None if they must be read from the log."""

    epoch: str
    first: int
    last: int
    messages: Sequence[EncodedMessage] | None


def encode_batches(epoch: str, first: int, lines: str, max_bytes: int, *, with_meta: bool = False) -> Iterator[str]:
    """Yield the notifications of up to ``max_bytes`` bytes of UTF-8 for the messages from position ``first`` on.

    ``lines`` has one line for each message, as :func:`decode_batch` describes them. An empty line is a message that
    must be read from the log, and so is one that does not fit. ``with_meta``: some of the messages have metadata.
    """
    # Only then: servers that do not know the word read the messages from the log.
    contents = _WITH_META if with_meta else _WITH_IDS
    room = max_bytes - len(epoch) - 2 * 20 - len(contents) - 2  # positions have up to 19 digits
    # Cut in bytes and without splitting: these calls run in C.
    data = lines.encode()
    start = 0
    while start <= len(data):
        end = _end_of_part(data, start, room)
        if end > start:
            count = data.count(b"\n", start, end) + 1
            yield f"{epoch} {first} {first + count - 1} {contents}\n{data[start:end].decode()}"
        else:
            end, count = _end_of_unsent(data, start, room)
            yield f"{epoch} {first} {first + count - 1}"
        first += count
        start = end + 1


def _end_of_part(data: bytes, start: int, room: int) -> int:
    """Return the end of the last line that fits after ``start`` and follows no empty one; ``start`` if none does."""
    end = len(data) if len(data) - start <= room else data.rfind(b"\n", start, start + room + 1)
    if end <= start or data[start] == _NEWLINE:
        return start
    empty = data.find(b"\n\n", start, end + 1)
    if empty >= 0:
        return empty
    # An empty line at the very end.
    return end - 1 if data[end - 1] == _NEWLINE else end


def _end_of_unsent(data: bytes, start: int, room: int) -> tuple[int, int]:
    """Return the end of the lines from ``start`` on that are empty or do not fit, and their number."""
    count, end = 0, start - 1
    while end < len(data):
        following = data.find(b"\n", end + 1)
        following = len(data) if following < 0 else following
        if 0 < following - end - 1 <= room:
            break
        end, count = following, count + 1
    return end, count


_NEWLINE = 10
#: The last word of the header in front of lines with ids. Servers of an older version do not know it: they read such
#: messages from the log.
_WITH_IDS = "ids"
#: The same for lines of which some have metadata, too.
_WITH_META = "meta"


def decode_batch(text: str) -> Batch | None:
    """Parse a notification of the relay; return None for any other text.

    The first line is ``epoch first last``. If the notification contains the messages, ``ids`` follows, and each message
    is a line ``channel TAB time TAB id TAB payload`` with its id in the outbox: neither channel names nor ``jsonb`` as
    text contain tabs or line breaks. Relays of an older version send neither ``ids`` nor the id. After
    ``meta`` in place of ``ids``, lines of messages with metadata have it and a TAB in front of the payload.
    """
    header, _, body = text.partition("\n")
    epoch, *words = header.split(" ")
    with_ids = words[2:] in ([_WITH_IDS], [_WITH_META])
    # Up to 19 digits, as a bigint has: int() raises for very long texts.
    if not (len(words) == 2 or with_ids) or not all(word.isdecimal() and len(word) < 20 for word in words[:2]):
        return None
    first, last = int(words[0]), int(words[1])
    if not 1 <= first <= last:
        return None
    if not body:
        return Batch(epoch, first, last, None)
    lines = body.split("\n")
    if len(lines) != last - first + 1:
        return None
    messages = []
    most = 4 if words[2:] == [_WITH_META] else 3
    try:
        for position, line in enumerate(lines, first):
            if with_ids:
                channel, published_at, outbox_id, *meta, payload = line.split("\t", most)
                message = EncodedMessage(channel, payload, position, published_at, int(outbox_id))
                if meta:
                    message.meta = parse_meta(meta[0])
                messages.append(message)
            else:
                channel, published_at, payload = line.split("\t", 2)
                messages.append(EncodedMessage(channel, payload, position, published_at))
    except ValueError:
        return None
    return Batch(epoch, first, last, messages)


class Progress:
    """How far a node has delivered the log (``position``), and the newest position that it knows of (``target``)."""

    def __init__(self, epoch: str, position: int) -> None:
        self.epoch = epoch
        self.position = self.target = position

    @property
    def behind(self) -> bool:
        """True if messages up to ``target`` are missing and must be read from the log."""
        return self.position < self.target

    def expect(self, position: int) -> None:
        """Note that there are messages up to ``position``."""
        self.target = max(self.target, position)

    def due(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        """Return the part of ``messages`` (consecutive, in order) that can be delivered now.

        That is the part after ``position``, or nothing if earlier messages are missing. The caller advances
        :attr:`position`.
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

    def left(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        """Return the part of a page with holes, of messages that were removed, that comes after ``position``."""
        return messages[bisect_right([message.position or 0 for message in messages], self.position) :]


def consecutive(messages: Sequence[EncodedMessage], after: int) -> Sequence[EncodedMessage]:
    """Return the part of ``messages`` up to the first one that does not follow the one before, or ``after``."""
    for number, message in enumerate(messages, 1):
        if message.position != after + number:
            return messages[: number - 1]
    return messages


def explained(messages: Sequence[EncodedMessage], after: int, end: int, trims: Mapping[str, int]) -> bool:
    """Return whether rules may have removed all messages that a page lacks between ``after`` and ``end``.

    ``trims``: channel → the position up to which a rule has removed messages.
    """
    last = end
    for message in reversed(messages):
        if message.position != last:
            break
        last -= 1
    return last <= after or last <= max(trims.values(), default=0)


def trim_upto(oldest: Sequence[tuple[int, float]], head: int, retention: float, max_messages: int | None) -> int | None:
    """Return the position up to which messages can be trimmed, or None.

    ``oldest`` has (position, age in seconds) of the oldest messages, in order. A message is trimmed when it is older
    than ``retention`` seconds or has ``max_messages`` newer ones, but never before an older one. The newest message of
    the log is never trimmed, because the next position is counted from it.
    """
    upto = None
    for position, age in oldest:
        expired = age > retention or (max_messages is not None and head - position >= max_messages)
        if not expired or position >= head:
            break
        upto = position
    return upto


@dataclass(frozen=True, slots=True)
class ChannelState:
    """The messages of one channel in the log: its ``oldest`` (position, age in seconds), in order, and its newest one.

    ``surplus`` is the newest position that has ``max_messages`` newer ones in the channel; 0 if none has. ``cleared``:
    the payload of the newest message is null.
    """

    oldest: Sequence[tuple[int, float]]
    newest: int
    surplus: int
    cleared: bool


def channel_trim_upto(
    state: ChannelState, rule: Rule, head: int, default_max_messages: int | None, min_age: float
) -> int | None:
    """Return the position up to which a rule lets messages of a channel be trimmed, or None.

    A message is trimmed when it is older than ``max_age``, or has ``max_messages`` newer ones in the channel; without a
    rule for that, ``default_max_messages`` newer ones in the log. But never before an older one of the channel, nor if
    it is younger than ``min_age`` seconds, the newest one of a channel with ``retained``, or the newest one of the log.
    """
    upto = None
    for position, age in state.oldest:
        expired = rule.max_age is not None and age > rule.max_age
        if rule.max_messages is not None:
            expired = expired or position <= state.surplus
        elif default_max_messages is not None:
            expired = expired or head - position >= default_max_messages
        kept = age <= min_age or position >= head or (rule.retained and not state.cleared and position >= state.newest)
        if kept or not expired:
            break
        upto = position
    return upto
