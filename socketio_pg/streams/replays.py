"""Sends the replay of a stream, one page at a time, as its send buffer drains."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from socketio_pg.core import green, metrics
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.metrics import fan_out
from socketio_pg.log.replay import HeldReplay, Step
from socketio_pg.log.skipping import Skipping
from socketio_pg.pubsub.matching import Matching
from socketio_pg.streams.events import own_event
from socketio_pg.streams.groups import Stream, encode

logger = logging.getLogger("socketio_pg.streams")

#: Seconds after which other green threads run.
SLICE_SECONDS = 0.002


@dataclass(slots=True)
class StreamReplay:
    """Receives the replay of one stream. ``charge(steps)`` counts what its filter costs."""

    stream: Stream
    matching: Matching
    epoch: str | None
    charge: Callable[[int], None]
    page_bytes: int
    #: What the replay skips.
    skipping: Skipping | None = None
    #: The payloads of the page with numbers as strings, by position.
    strings: dict[int | None, str] = field(default_factory=dict)

    def select(self, messages: Sequence[EncodedMessage]) -> Sequence[EncodedMessage]:
        contents = self.stream.contents
        if contents.filter is not None:
            messages = self.matching.select(contents.filter, messages, self.charge)
        if contents.form == "strings":
            self.strings = self.matching.written_with_strings(messages)
        return messages

    def send(self, messages: Sequence[EncodedMessage]) -> None:
        form = self.stream.contents.form
        encoded = [encode(one, form, self.epoch, self._strings_of, self._place(one.position or 0)) for one in messages]
        blocks = [block for block in encoded if block is not None]
        if not blocks:
            return
        page = b"".join(blocks)
        self.stream.connection.send_page(page)
        metrics.replayed_messages.inc(len(blocks))
        fan_out.streamed += len(blocks)
        fan_out.streamed_bytes += len(page)

    def _place(self, position: int) -> str | None:
        """Return the id of a message while the replay has not passed all that it skips: the rest of the snapshot."""
        left = self.skipping.left(position) if self.skipping else None
        return None if left is None else left.to_token()

    def _strings_of(self, message: EncodedMessage) -> str:
        return self.strings[message.position]

    def gap(self, reason: str, epoch: str, position: int) -> None:
        metrics.unrecovered.labels(reason).inc()
        body = {"channels": self.stream.contents.channels, "reason": reason, "epoch": epoch, "position": position}
        self.stream.connection.send(own_event("gap", body, self._place(position) or f"{epoch}:{position}"))

    def live(self, epoch: str | None, position: int) -> None:
        """`streams` tells the client, for all channels together."""


def send_replay(stream: Stream, replay: HeldReplay, most_waiting: int) -> None:
    """Send a replay until it has arrived at the live messages. A page is sent when at most so many bytes wait."""
    turn_ends = time.monotonic() + SLICE_SECONDS
    while replay.held() and stream.connection.wait_room(most_waiting):
        step = replay.step()
        if step is Step.OVER:
            return
        if step is Step.AHEAD:
            replay.replay.wait_moved()
        if time.monotonic() > turn_ends:
            green.sleep()
            turn_ends = time.monotonic() + SLICE_SECONDS
