"""Measures how long messages of the log take from publishing to sent, and counts the bytes of all messages.

Of many messages it measures every second, every fourth …, so that it costs little. Times are raw differences between
the database's clock and that of this process: :class:`Clock` measures by how much the two differ.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.metrics import fan_out
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.pubsub.matching import FilterCost

#: This process's clock in seconds since 1970, which is never set back: monotonic time plus this.
_START = time.time() - time.monotonic()
_EPOCH = datetime(1970, 1, 1)


def clock() -> float:
    """Return the time that latencies are measured with, in seconds since 1970."""
    return time.monotonic() + _START


class Sent:
    """Counts the events that this process has sent to clients, without those of the inspector itself."""

    def __init__(self) -> None:
        self._own_events = self._own_bytes = 0

    @property
    def events(self) -> int:
        return fan_out.frames + fan_out.polled + fan_out.streamed - self._own_events

    @property
    def bytes(self) -> int:
        return fan_out.frame_bytes + fan_out.polled_bytes + fan_out.streamed_bytes - self._own_bytes

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count what the body sends. It must not yield to other green threads."""
        events, bytes = self.events, self.bytes
        try:
            yield
        finally:
            self._own_events += self.events - events
            self._own_bytes += self.bytes - bytes


class Measured(NamedTuple):
    """Raw latencies in seconds; each stands for ``weight`` messages. ``messages``: those that were sent."""

    raw: Sequence[float]
    weight: int
    messages: int


class Latencies:
    """A :class:`NodeReceiver` that comes after those that send, and measures when they have."""

    #: Latencies that are kept between two calls of :meth:`take`.
    most = 128

    def __init__(self, sent: Sent) -> None:
        self._counter = sent
        #: Bytes of the payloads of all messages, as JSON.
        self.bytes = 0
        #: The events that had been sent when the last messages came.
        self._sent = sent.events
        self._raw: list[float] = []
        self._weight = 1
        self._messages = 0

    def receive_messages(self, messages: Sequence[EncodedMessage]) -> None:
        for message in messages:
            text = message.payload_json
            self.bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        sent = self._counter.events
        if sent == self._sent:
            return  # nobody here gets them
        self._sent = sent
        if messages[0].published_at is not None:
            self._measure(messages)

    def _measure(self, messages: Sequence[EncodedMessage]) -> None:
        now = clock()
        # The next message that is measured, so that each stands for as many.
        first = -self._messages % self._weight
        self._messages += len(messages)
        for message in messages[first :: self._weight]:
            published = message.published_at
            if published is not None and published[-1] == "Z":
                at = datetime.fromisoformat(published[:-1])
                self._raw.append(now - (at - _EPOCH).total_seconds())
        while len(self._raw) > self.most:
            del self._raw[1::2]
            self._weight *= 2

    def take(self) -> Measured:
        """Return what was measured since the last call."""
        taken = Measured(self._raw, self._weight, self._messages)
        self._raw, self._weight, self._messages = [], 1, 0
        return taken

    def charge(self, costs: Sequence[FilterCost]) -> None:
        """Filters are no matter of this receiver."""

    def receive_gap(self, gap: NotifyGap) -> None:
        """Nor are gaps."""

    def receive_log_gap(self, reason: str) -> None:
        """Nor are these."""

    def receive_trims(self, trims: Mapping[str, int]) -> None:
        """Nor are these."""


def quantiles(measured: Sequence[Measured], *wanted: float) -> list[float] | None:
    """Return quantiles (0 to 1) of the raw latencies, weighted by the messages that each stands for; None without any.

    Each is a latency that was measured: the lowest one up to which at least that part of the messages is.
    """
    pairs = sorted((raw, one.weight) for one in measured for raw in one.raw)
    if not pairs:
        return None
    total = sum(weight for _, weight in pairs)
    found = []
    for quantile in wanted:
        passed = 0
        for raw, weight in pairs:
            passed += weight
            if passed >= quantile * total:
                found.append(raw)
                break
    return found
