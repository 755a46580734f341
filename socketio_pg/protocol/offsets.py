"""Offsets of clients that can recover their session: the last argument of each event that they get. Pure, no I/O.

An offset says how far the log has been delivered to all subscriptions of the client: ``r1:EPOCH:POSITION``. While the
replay of a subscription is in progress, it also has that subscription's number and position: ``r1:…:900;3=60``. The
prefix tells an offset from other strings: a stock client sends the last argument of its last event, whatever that is.

One with numbers has the session's tag as the number 0: ``r1:…:900;0=770000003,3=60``. So has one that is not newer than
the beginning of the session, or the end of its last replay. The tag tells it from an offset of a former session, and
from one that the client got before a subscription: its last digits are the newest subscription at that time.
"""

import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

#: The maximum number of subscriptions with a position of their own in an offset. With more of them the offset ends with
#: ``;*``: the session cannot be recovered from there.
MAX_OTHERS = 8
#: The maximum length of an offset.
MAX_LENGTH = 64 + (1 + MAX_OTHERS) * 28
#: More than the number of any subscription.
_NUMBERS = 10**7
_PREFIX = "r1:"
_OFFSET = re.compile(r"r1:([0-9a-f-]{36}):([0-9]{1,18})(?:;(\*|[0-9]{1,9}=[0-9]{1,18}(?:,[0-9]{1,9}=[0-9]{1,18})*))?")


@dataclass(frozen=True, slots=True)
class Offset:
    """``position`` holds for all subscriptions but those in ``others`` (number → position).

    ``complete`` is False if subscriptions are missing in ``others``. ``tag``: the session's, if the offset has it. Then
    it holds for the subscriptions with numbers up to ``newest``.
    """

    epoch: str
    position: int
    others: Mapping[int, int] = field(default_factory=dict)
    complete: bool = True
    tag: int | None = None
    newest: int = 0

    def __str__(self) -> str:
        numbers = ({} if self.tag is None else {0: self.tag * _NUMBERS + self.newest}) | dict(self.others)
        rest = ",".join(f"{number}={position}" for number, position in numbers.items()) if self.complete else "*"
        return f"{_PREFIX}{self.epoch}:{self.position}{rest and ';'}{rest}"


def parse_offset(text: object) -> Offset | None:
    """Return an offset that a client has sent; None for anything else."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return None
    found = _OFFSET.fullmatch(text)
    if found is None or not found[0].isascii():
        return None
    epoch, position, rest = found.groups()
    if rest == "*":
        return Offset(epoch, int(position), complete=False)
    pairs = [pair.split("=") for pair in rest.split(",")] if rest else []
    others = {int(number): int(at) for number, at in pairs}
    tagged = others.pop(0, None)
    if len(pairs) > MAX_OTHERS + 1 or len(others) > MAX_OTHERS:
        return None
    if tagged is None:
        return Offset(epoch, int(position), others)
    return Offset(epoch, int(position), others, True, *divmod(tagged, _NUMBERS))


def tag_of(sid: str) -> int:
    """Return the tag of a session in its offsets."""
    return zlib.crc32(sid.encode())


class Delivered(Protocol):
    """How far a node has delivered the log."""

    @property
    def epoch(self) -> str | None:
        """The log's epoch; None without a log."""

    @property
    def delivered(self) -> int:
        """The position up to which all clients that are not behind have got everything."""


class Cursor:
    """How far the log has been delivered to one client. Its session has a ``tag``, and ``begins`` at a position."""

    __slots__ = (
        "_ahead",
        "_epoch",
        "_log",
        "_newest",
        "_tag",
        "_text",
        "_text_of",
        "_until",
        "behind",
        "numbers",
        "sent",
    )

    def __init__(self, log: Delivered, tag: int | None = None, begins: int = 0) -> None:
        self._log = log
        self._tag = tag
        #: Offsets up to this position have the tag.
        self._until = begins - 1
        #: The number of the newest subscription that was replayed.
        self._newest = 0
        self._epoch = log.epoch
        #: The position of the last live message of the log that the client was sent.
        self.sent = 0
        #: Channel → the number of the subscription.
        self.numbers: dict[str, int] = {}
        #: Channel → position, of the subscriptions whose replay is in progress.
        self.behind: dict[str, int] = {}
        #: The same, of subscriptions whose replay has overtaken the messages that are being delivered to the others.
        self._ahead: dict[str, int] = {}
        self._text, self._text_of = "", -1

    @property
    def alone(self) -> bool:
        """Whether the client may have other offsets than those that are up to date."""
        return bool(self.behind or self._ahead) or self._log.delivered <= self._until

    def hold(self, channel: str, position: int) -> None:
        """Note that a subscription is behind, at ``position`` of the log's present epoch."""
        self._follow_epoch()
        self.behind[channel] = position
        self._newest = max(self._newest, self.numbers.get(channel, 0))

    def catch_up(self, position: int) -> None:
        """Note that all subscriptions that were behind have arrived at ``position``, that of the last live message."""
        self._until = max(self._until, position)
        if len(self.behind) == len(self.numbers):
            self.sent = max(self.sent, position)
        else:
            self._ahead |= dict.fromkeys(self.behind, position)
        self.behind.clear()

    def leave(self, channel: str) -> None:
        """Forget a subscription that has ended."""
        for places in (self.numbers, self.behind, self._ahead):
            places.pop(channel, None)

    def offset(self) -> str:
        """Return the offset of the next event of this client."""
        epoch = self._follow_epoch()
        if epoch is None:
            return _PREFIX  # nothing to recover
        position = self._log.delivered
        if self.sent > position:
            position = self.sent
        if self.behind or self._ahead or position <= self._until:
            return self._partial(epoch, position)
        if position != self._text_of:
            self._text, self._text_of = f"{_PREFIX}{epoch}:{position}", position
        return self._text

    def _follow_epoch(self) -> str | None:
        """Return the log's epoch. Positions of a former one mean nothing."""
        epoch = self._log.epoch
        if epoch != self._epoch:
            self._epoch, self.sent, self._text_of, self._until = epoch, 0, -1, -1
            self.behind.clear()
            self._ahead.clear()
        return epoch

    def _partial(self, epoch: str, position: int) -> str:
        if self._ahead:
            self._ahead = {channel: at for channel, at in self._ahead.items() if at > position}
        places = self._ahead | self.behind
        if places and len(places) == len(self.numbers):  # no subscription is live
            position = Counter(places.values()).most_common(1)[0][0]
        others = {self.numbers[channel]: at for channel, at in places.items() if at != position}
        return str(Offset(epoch, position, others, len(others) <= MAX_OTHERS, self._tag, self._newest))
