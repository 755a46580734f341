"""Keeps streams alive with comments, and disconnects those whose client accepts nothing."""

import random
import time
from collections import OrderedDict
from collections.abc import Callable

from socketio_pg.core import green
from socketio_pg.streams.events import COMMENT
from socketio_pg.streams.groups import Stream


class Comments:
    """The comments of one server's streams.

    ``move_cursor(stream)`` is called with every second comment of a stream. A client that accepts nothing for
    ``patience`` seconds is disconnected.
    """

    #: Seconds between two comments of a stream, at least.
    comment_seconds = 15.0
    #: Seconds between two looks at what is due.
    tick = 0.5

    def __init__(self, move_cursor: Callable[[Stream], None], patience: float) -> None:
        self._move_cursor = move_cursor
        self._patience = patience
        #: Stream → when its next comment is due, the earliest first; and whether that one moves the cursor too.
        self._due: OrderedDict[Stream, tuple[float, bool]] = OrderedDict()
        self._worker = green.Worker()

    def add(self, stream: Stream) -> None:
        """Keep a stream alive from now on."""
        self._due[stream] = time.monotonic() + random.uniform(0.3, 1.0) * self.comment_seconds, False
        self._worker.start(self._watch)

    def discard(self, stream: Stream) -> None:
        """Forget a stream."""
        self._due.pop(stream, None)

    def stop(self) -> None:
        """Send no more comments."""
        self._worker.stop()

    def _watch(self) -> None:
        while self._due:
            self._comment(time.monotonic())
            green.sleep(self.tick)

    def _comment(self, now: float) -> None:
        turn_ends = time.monotonic() + 0.005
        while self._due:
            stream, (due, moves) = next(iter(self._due.items()))
            if due > now:
                return
            del self._due[stream]
            if stream.connection.stuck_seconds(now) > self._patience:
                stream.connection.cut("slow_consumer")
                continue
            stream.connection.send(COMMENT)
            if moves:
                self._move_cursor(stream)
            self._due[stream] = now + self.comment_seconds, not moves
            if time.monotonic() > turn_ends:
                green.sleep()
                turn_ends = time.monotonic() + 0.005
